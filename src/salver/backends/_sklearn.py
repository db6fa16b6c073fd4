"""scikit-learn models, run by scikit-learn; the only backend file that imports skops."""

from __future__ import annotations

import importlib
import pickle
import warnings
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from salver.backends.base import Backend, Session, SessionOptions
from salver.backends.native import NativeSession, check_provider, check_trust, describe_outputs, read_blob
from salver.backends.sklearn_inputs import Column, plan_inputs, synthetic, to_frame
from salver.backends.sklearn_model import chosen, predict
from salver.core.arrays import Array
from salver.core.errors import CorruptArtifact, MissingExtra
from salver.core.model import Blob, Model
from salver.core.tensors import Signature, TensorSpec

try:
    import sklearn
    import skops
    import skops.io
    import threadpoolctl
    from sklearn.base import BaseEstimator
except ImportError as missing:
    raise MissingExtra("running a scikit-learn model", str(missing.name), "sklearn") from None

_ZIP: Final = b"PK"
_PICKLE: Final = b"\x80"
_ROWS: Final = 3
_LIBRARIES: Final = ("sklearn", "xgboost", "lightgbm", "catboost")


class SklearnBackend(Backend):
    """Runs ``.skops`` files (https://skops.readthedocs.io), and pickles that are trusted, with scikit-learn itself."""

    name = "sklearn"
    formats = ("sklearn",)
    isolated = True

    def versions(self) -> dict[str, str]:
        return {"scikit-learn": sklearn.__version__, "skops": skops.__version__}

    def providers(self) -> tuple[str, ...]:
        return ("cpu",)

    def load(self, model: Model, options: SessionOptions) -> Session:
        check_provider(options)
        estimator = _read(model)
        columns = [_column(spec, estimator) for spec in model.signature.inputs]
        pools = threadpoolctl.ThreadpoolController()

        def answer(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            with pools.limit(limits=options.threads):
                return predict(estimator, to_frame(estimator, columns, inputs))

        return NativeSession(model.signature, answer)

    def describe(self, blob: Blob) -> Signature:
        return describe_estimator(
            _read(Model(format="sklearn", signature=Signature(inputs=(), outputs=()), blobs=(blob,)))
        )


def describe_estimator(
    estimator: Any, columns: list[Column] | None = None, rows: Mapping[str, Array] | None = None
) -> Signature:
    """What goes in and out of a fitted model that scikit-learn runs: numbers as FP64, outputs as it gives them.

    Args:
        rows: inputs that it takes; None makes some up.

    Raises:
        FailedPrecondition: its inputs cannot be told from it.
        CorruptArtifact: it runs on no made-up input.
    """
    columns = [column.with_number("FP64") for column in columns or plan_inputs(estimator, None)]
    tried = [rows] if rows is not None else _made_up(synthetic(estimator, columns))
    inputs = tuple(TensorSpec(name=c.name, datatype=c.datatype, shape=("batch", *c.inner)) for c in columns)
    for given in tried:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of numbers that mean nothing
                return Signature(
                    inputs=inputs, outputs=describe_outputs(predict(estimator, to_frame(estimator, columns, given)))
                )
        except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
            why = error
    raise CorruptArtifact(f"the {type(estimator).__name__} runs on no made-up input: {why}") from why


def _made_up(rows: Mapping[str, Array]) -> list[Mapping[str, Array]]:
    """A few rows, and the same without what functions such as logarithms do not take."""
    few = {name: array[:_ROWS] for name, array in rows.items()}
    return [few, {name: array if array.dtype == object else np.abs(array) + 1 for name, array in few.items()}]


def _column(spec: TensorSpec, estimator: Any) -> Column:
    inner = tuple(int(d) for d in spec.shape[1:])
    role = next((c.role for c in plan_inputs(estimator, None) if c.name == spec.name), "column")
    return Column(spec.name, spec.datatype, inner, role)


def _read(model: Model) -> Any:
    """
    Raises:
        CorruptArtifact: it is no such file, or damaged.
        PermissionDenied: it holds code, and nobody said that it is trusted.
    """
    blob = model.blobs[0]
    data = read_blob(blob)
    if data.startswith(_PICKLE):
        check_trust(model, "a pickle")
        estimator = _unpickle(data, blob.name)
    elif data.startswith(_ZIP):
        estimator = _read_skops(data, model)
    else:
        raise CorruptArtifact(f"'{blob.name}' is neither a skops file nor a pickle")
    if not isinstance(estimator, BaseEstimator):
        raise CorruptArtifact(f"'{blob.name}' holds a {type(estimator).__name__}, expected a scikit-learn estimator")
    return chosen(estimator)


def _read_skops(data: bytes, model: Model) -> Any:
    name = model.blobs[0].name
    untrusted, known = find_types(data, name)
    if untrusted:
        check_trust(model, f"types that are not known to be safe ({', '.join(untrusted)})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # another version of scikit-learn: golden requests tell whether it matters
            return skops.io.loads(data, trusted=[*untrusted, *known])
    except Exception as error:  # boundary: a file from anywhere, read by a foreign library
        raise CorruptArtifact(f"'{name}' cannot be loaded: {type(error).__name__}: {error}") from error


def find_types(data: bytes, name: str) -> tuple[list[str], list[str]]:
    """Types in a skops file that skops does not know to be safe, and of these the classes of scikit-learn itself and of
    the boosting libraries, and numpy's functions of numbers: to make one of those does no more than it says.

    Returns:
        Those that need trust, and those that do not.

    Raises:
        CorruptArtifact: it is no such file, or damaged.
    """
    try:
        found = skops.io.get_untrusted_types(data=data)
    except Exception as error:  # boundary: a file from anywhere, read by a foreign library
        raise CorruptArtifact(f"'{name}' is not a skops file, or it is damaged: {error}") from error
    known = [each for each in found if _is_known(each)]
    return [each for each in found if each not in known], known


def _is_known(full: str) -> bool:
    module, _, name = full.rpartition(".")
    top = module.partition(".")[0]
    if module == "numpy":
        return isinstance(getattr(np, name, None), np.ufunc)
    if top not in _LIBRARIES:
        return False
    try:
        return isinstance(getattr(importlib.import_module(module), name, None), type)
    except ImportError:
        return False


def _unpickle(data: bytes, name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as above
            return pickle.loads(data)  # its user trusts it
    except Exception as error:  # boundary: unpickling runs code from the file
        raise CorruptArtifact(f"'{name}' cannot be unpickled: {type(error).__name__}: {error}") from error
