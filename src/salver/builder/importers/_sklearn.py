"""scikit-learn estimators and pipelines; the only file that imports scikit-learn, skops and joblib."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from salver.builder.importers.base import Imported, Importer, ImportOptions
from salver.builder.importers.onnx_batch import Leading
from salver.builder.importers.onnx_check import check_model
from salver.builder.importers.onnx_finish import Draft, backend_versions, finish
from salver.builder.importers.parity import Run
from salver.builder.importers.probes import from_data
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

from salver.builder.importers.sklearn_convert import LABEL, convert, output_names, predict, versions
from salver.builder.importers.sklearn_inputs import Column, plan_inputs, synthetic, to_frame

_PICKLES: Final = frozenset({".pkl", ".pickle", ".joblib"})
_RUNGS: Final = ("FP32", "FP64")


class SklearnImporter(Importer):
    """Reads ``.skops`` files (https://skops.readthedocs.io), trusted pickles (also of joblib), and fitted estimators
    in memory.

    The original is the estimator itself: ``predict`` with ``predict_proba`` or ``decision_function``, ``predict``, or
    ``transform``. Matrices of numbers are taken as FP32; where that does not give the original's answers, as FP64.
    """

    name = "sklearn"

    def recognizes(self, source: Any) -> bool:
        if isinstance(source, Path):
            return source.suffix.lower() in (*_PICKLES, ".skops")
        return isinstance(source, BaseEstimator)

    def load(self, source: Any, workdir: Path, data: Dataset | None, options: ImportOptions) -> Imported:
        estimator, step, notes = _open(source, options)
        try:
            check_is_fitted(estimator)
        except NotFittedError:
            raise InvalidArgument(f"{type(estimator).__name__} is not fitted; call fit before importing it") from None
        columns = plan_inputs(estimator, data)
        refusals: list[str] = []
        for number in _RUNGS if any(c.datatype == "FP32" for c in columns) else _RUNGS[:1]:
            rung = [c.with_number(number) for c in columns]
            note = "" if number == "FP32" else f"numbers are taken as FP64: with FP32 {refusals[0]}"
            try:
                return self._import(estimator, rung, workdir, data, options, step, (*notes, note))
            except (ParityFailed, Unimplemented, CorruptArtifact) as error:
                refusals.append(str(error))
                failure = error
                if isinstance(error, Unimplemented) and number == "FP32":
                    break
        raise failure if len(refusals) == 1 else ParityFailed(f"with FP32: {refusals[0]}. With FP64: {refusals[1]}")

    def _import(
        self,
        estimator: Any,
        columns: list[Column],
        workdir: Path,
        data: Dataset | None,
        options: ImportOptions,
        source: Step,
        notes: tuple[str, ...],
    ) -> Imported:
        graph = convert(estimator, columns)
        check_model(graph, type(estimator).__name__, workdir)
        # The original gets numbers as precise as they are; the import rounds them to what its inputs take.
        exact = [c.with_number("FP64") for c in columns]
        wide = tuple(TensorSpec(name=c.name, datatype=c.datatype, shape=("batch", *c.inner)) for c in exact)
        probe = synthetic(estimator, exact) if data is None else from_data(data, Signature(inputs=wide, outputs=()))
        names = output_names(estimator)
        classes = tuple(str(c) for c in getattr(estimator, "classes_", ()))
        draft = Draft(
            importer=self.name,
            original=_predict_by_name(estimator, exact, names),
            described=f"scikit-learn {sklearn.__version__} {type(estimator).__name__}",
            probe=probe,
            leading=Leading(True),
            workdir=workdir,
            options=options,
            lineage=(source,),
            tools={**backend_versions(), **versions(), "scikit-learn": sklearn.__version__},
            labels=dict.fromkeys([n for n in names if n != LABEL], classes),
            notes=tuple(note for note in notes if note),
        )
        return finish(graph, draft)


def _open(source: Any, options: ImportOptions) -> tuple[Any, Step, tuple[str, ...]]:
    if not isinstance(source, Path):
        # An estimator in memory has no bytes of its own; a pickle of it names its content.
        digest = digest_bytes(pickle.dumps(source))
        return source, Step(action="source", name=type(source).__name__, output_digest=digest), ()
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
    return loaded, Step(action="source", name=source.name, output_digest=digest_file(source)), (note,)


def _load_skops(path: Path, options: ImportOptions) -> Any:
    try:
        untrusted = skops.io.get_untrusted_types(file=path)
    except Exception as error:  # boundary: an untrusted file, read by a foreign library
        raise CorruptArtifact(f"'{path}' is not a skops file, or it is damaged: {error}") from error
    if untrusted and not options.trust_pickle:
        raise PermissionDenied(
            f"'{path}' holds types that skops does not know to be safe: {', '.join(untrusted)}. If you trust who made "
            "it, say "
            "--trust-pickle (Python: trust_pickle=True); or save the model without them"
        )
    try:
        return skops.io.load(path, trusted=untrusted)
    except Exception as error:  # boundary: an untrusted file, read by a foreign library
        raise CorruptArtifact(f"'{path}' cannot be loaded: {type(error).__name__}: {error}") from error


def _load_pickle(path: Path, options: ImportOptions) -> Any:
    if not options.trust_pickle:
        raise UntrustedPickle(str(path))
    try:
        return joblib.load(path)
    except Exception as error:  # boundary: unpickling runs code from the file
        raise CorruptArtifact(
            f"'{path}' cannot be unpickled: {type(error).__name__}: {error}. Is it whole, and is what it was made "
            "with installed?"
        ) from error


def _predict_by_name(estimator: Any, columns: list[Column], names: tuple[str, ...]) -> Run:
    def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        try:
            return dict(zip(names, predict(estimator, to_frame(estimator, columns, inputs)), strict=True))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise FailedPrecondition(
                f"the original {type(estimator).__name__} refuses the examples: {error}"
            ) from error

    return run
