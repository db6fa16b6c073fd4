"""scikit-learn estimators and pipelines: to ONNX, or as they are, to be run by scikit-learn itself."""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from salver.builder.importers.base import Imported, Importer, ImportOptions
from salver.builder.importers.native import finish_native, native_model
from salver.builder.importers.onnx_batch import Leading
from salver.builder.importers.onnx_check import check_model
from salver.builder.importers.onnx_finish import Draft, backend_versions, finish
from salver.builder.importers.parity import Run
from salver.builder.importers.pickled import inspect_pickle
from salver.builder.importers.probes import Probe, from_data
from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import (
    CorruptArtifact,
    FailedPrecondition,
    InvalidArgument,
    MissingExtra,
    NotFound,
    ParityFailed,
    PermissionDenied,
    SalverError,
    Unimplemented,
    UntrustedPickle,
)
from salver.core.model import Step, digest_bytes, digest_file
from salver.core.tensors import Signature, TensorSpec

try:
    import joblib
    import sklearn
    import skops
    import skops.io
    from sklearn.base import BaseEstimator
    from sklearn.exceptions import InconsistentVersionWarning, NotFittedError
    from sklearn.utils.validation import check_is_fitted
except ImportError as missing:
    raise MissingExtra("importing a scikit-learn model", str(missing.name), "sklearn") from None

from salver.backends._sklearn import describe_estimator, find_types
from salver.backends.sklearn_inputs import ROWS, Column, plan_inputs, synthetic, to_frame
from salver.backends.sklearn_model import LABEL, chosen, output_names, predict
from salver.builder.importers.sklearn_convert import convert, versions

_LOG = logging.getLogger(__name__)
_PICKLES: Final = frozenset({".pkl", ".pickle", ".joblib", ".cloudpickle", ".dill"})
_UNWRITABLE: Final = (TypeError, AttributeError, ValueError, KeyError, NotImplementedError, RecursionError)
_NEEDS_TRUST: Final = "it holds code: a server runs it only from a bundle that is signed by a key that it trusts"
_RUNGS: Final = ("FP32", "FP64")


class Source(msgspec.Struct, frozen=True):
    """What was given.

    Args:
        estimator: fitted.
        step: where it comes from.
        notes: facts for the user.
        trusted: whether code that belongs to it may be run: it is in memory already, or its user said so.
        path: of its file, where it came in one.
    """

    estimator: Any
    step: Step
    notes: tuple[str, ...]
    trusted: bool
    path: Path | None = None


class SklearnImporter(Importer):
    """Reads ``.skops`` files (https://skops.readthedocs.io), trusted pickles (also of joblib, cloudpickle and dill),
    and fitted estimators in memory.

    The original is the estimator itself: ``predict`` with ``predict_proba`` or ``decision_function``, ``predict``, or
    ``transform``. Matrices of numbers are taken as FP32; where that does not give the original's answers, as FP64;
    where no ONNX graph does, the model is kept as it is and run by scikit-learn.
    """

    name = "sklearn"

    def recognizes(self, source: Any) -> bool:
        if isinstance(source, Path):
            return source.suffix.lower() in (*_PICKLES, ".skops")
        return isinstance(source, BaseEstimator)

    def load(self, source: Any, workdir: Path, data: Dataset | None, options: ImportOptions) -> Imported:
        given = _open(source, options)
        kind = type(given.estimator).__name__
        try:
            check_is_fitted(given.estimator)
        except NotFittedError:
            raise InvalidArgument(f"{kind} is not fitted; call fit before importing it") from None
        given = msgspec.structs.replace(given, estimator=chosen(given.estimator))
        columns = plan_inputs(given.estimator, data)
        draft = _draft(given, columns, workdir, data, options)
        refusals: list[str] = []
        for number in _RUNGS if any(c.datatype == "FP32" for c in columns) else _RUNGS[:1]:
            note = "" if number == "FP32" else f"numbers are taken as FP64: {refusals[0]}"
            try:
                graph = convert(given.estimator, [c.with_number(number) for c in columns])
                check_model(graph, kind, workdir)
                return finish(graph, msgspec.structs.replace(draft, notes=_join(*given.notes, note)))
            except (ParityFailed, Unimplemented, CorruptArtifact) as error:
                refusals.append(f"with {number}: {error.message}")
                if isinstance(error, Unimplemented) and number == "FP32":
                    break
        return _keep(given, columns, draft, ". ".join(refusals))


def _draft(given: Source, columns: list[Column], workdir: Path, data: Dataset | None, options: ImportOptions) -> Draft:
    # The original gets numbers as precise as they are; the import rounds them to what its inputs take.
    estimator, exact = given.estimator, [c.with_number("FP64") for c in columns]
    wide = tuple(TensorSpec(name=c.name, datatype=c.datatype, shape=("batch", *c.inner)) for c in exact)
    if data is None:
        probe = Probe(synthetic(estimator, exact), ROWS, "synthetic")
    else:
        probe = from_data(data, Signature(inputs=wide, outputs=()))
    classes = getattr(estimator, "classes_", ())
    classes = () if isinstance(classes, list) else tuple(str(c) for c in classes)
    return Draft(
        importer=SklearnImporter.name,
        original=_predict_by_name(estimator, exact),
        described=f"scikit-learn {sklearn.__version__} {type(estimator).__name__}",
        probe=probe,
        leading=Leading(True),
        workdir=workdir,
        options=options,
        lineage=(given.step,),
        tools={**backend_versions(), **versions(), "scikit-learn": sklearn.__version__},
        labels=dict.fromkeys([n for n in output_names(estimator) if n != LABEL], classes),
        notes=_join(*given.notes),
    )


def _join(*notes: str) -> tuple[str, ...]:
    return tuple(note for note in notes if note)


def _keep(given: Source, columns: list[Column], draft: Draft, why: str) -> Imported:
    """The model as it is, run by scikit-learn: as ``.skops`` where that holds all of it, else as a pickle.

    Raises:
        ParityFailed, Unimplemented: it can be kept in neither.
    """
    signature = describe_estimator(given.estimator, columns, draft.probe.cut(0, 3))
    refusals = []
    for kind, write in (("skops", _to_skops), ("file", _to_given), ("pickle", _to_pickle)):
        path = draft.workdir / ("model.skops" if kind == "skops" else "model.pkl")
        try:
            path.write_bytes(write(given))
            needs_trust = kind != "skops" or find_types(path.read_bytes(), path.name)[0]
            noted = msgspec.structs.replace(draft, notes=_join(*draft.notes, _NEEDS_TRUST if needs_trust else ""))
            return finish_native(
                native_model("sklearn", signature, {path.name: path}, trusted=given.trusted), noted, why
            )
        except (SalverError, pickle.PicklingError, *_UNWRITABLE) as error:
            refusals.append(f"{kind}: {error}")
            path.unlink(missing_ok=True)
    raise Unimplemented(
        f"this {type(given.estimator).__name__} cannot be converted ({why}), nor kept as it is ({'; '.join(refusals)})"
    )


def _to_skops(given: Source) -> bytes:
    data: bytes = skops.io.dumps(given.estimator)
    return data


def _to_given(given: Source) -> bytes:
    """The pickle that was given: those of cloudpickle and dill hold functions that no other does."""
    if given.path is None:
        raise TypeError("it came in memory")
    return given.path.read_bytes()


def _to_pickle(given: Source) -> bytes:
    return pickle.dumps(given.estimator)


def _open(source: Any, options: ImportOptions) -> Source:
    if not isinstance(source, Path):
        # An estimator in memory has no bytes of its own; a pickle of it names its content.
        return Source(
            source, Step(action="source", name=type(source).__name__, output_digest=_digest(source)), (), True
        )
    if not source.is_file():
        raise NotFound(f"no such model file: '{source}'")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = _load_skops(source, options) if source.suffix.lower() == ".skops" else _load_pickle(source, options)
    if not isinstance(loaded, BaseEstimator):
        raise InvalidArgument(
            f"'{source}' holds a {type(loaded).__name__}, expected a scikit-learn estimator or pipeline"
        )
    old = [w.message for w in caught if isinstance(w.message, InconsistentVersionWarning)]
    note = (
        ""
        if not old
        else (
            f"fitted with scikit-learn {old[0].original_sklearn_version}, read with {sklearn.__version__}: compare "
            "its answers"
        )
    )
    step = Step(action="source", name=source.name, output_digest=digest_file(source))
    return Source(loaded, step, (note,), options.trust_pickle, source)


def _digest(estimator: Any) -> str:
    try:
        return digest_bytes(pickle.dumps(estimator))
    except (pickle.PicklingError, TypeError, AttributeError):  # it holds a function without a name
        return digest_bytes(repr(estimator).encode())


def _load_skops(path: Path, options: ImportOptions) -> Any:
    untrusted, known = find_types(path.read_bytes(), str(path))
    if untrusted and not options.trust_pickle:
        raise PermissionDenied(
            f"'{path}' holds types that are not known to be safe: {', '.join(untrusted)}. If you trust who made "
            "it, say "
            "--trust-pickle (Python: trust_pickle=True); or save the model without them"
        )
    try:
        return skops.io.load(path, trusted=[*untrusted, *known])
    except Exception as error:  # boundary: an untrusted file, read by a foreign library
        raise CorruptArtifact(f"'{path}' cannot be loaded: {type(error).__name__}: {error}") from error


def _load_pickle(path: Path, options: ImportOptions) -> Any:
    found = inspect_pickle(path)
    if not options.trust_pickle:
        raise UntrustedPickle(str(path), str(found))
    _LOG.warning("'%s' is a pickle that you trust; %s", path, found)
    if found.dangerous:
        raise PermissionDenied(
            f"'{path}' is refused though pickles are trusted: no model needs {', '.join(found.dangerous)}. If it must "
            f"be run all the same, load it yourself in Python and give Salver the estimator in memory\n{found}"
        )
    try:
        return joblib.load(path)
    except Exception as error:  # boundary: unpickling runs code from the file
        raise CorruptArtifact(
            f"'{path}' cannot be unpickled: {type(error).__name__}: {error}. Is it whole, and is what it was made "
            "with installed?"
        ) from error


def _predict_by_name(estimator: Any, columns: list[Column]) -> Run:
    def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        try:
            return predict(estimator, to_frame(estimator, columns, inputs))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise FailedPrecondition(
                f"the original {type(estimator).__name__} refuses the examples: {error}"
            ) from error

    return run
