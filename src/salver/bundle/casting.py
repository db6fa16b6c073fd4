"""Fits arrays that a person has at hand to a signature, where no value is lost."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, NotFound
from salver.core.tensors import Signature, TensorSpec, to_datatype

if TYPE_CHECKING:
    import numpy.typing as npt


def fit(inputs: Mapping[str, Any] | Any | Path, signature: Signature) -> dict[str, Array]:
    """Inputs as the signature wants them.

    Args:
        inputs: name -> array; or one array where the model has one input; or an ``.npz`` or ``.npy`` file of these.

    Raises:
        NotFound, InvalidArgument: no such file, not readable without pickle, wrong names, shapes or datatypes, or
            values that the datatype of the signature cannot hold.
    """
    given = read_arrays(inputs) if isinstance(inputs, Path) else inputs
    if not isinstance(given, Mapping):
        if len(signature.inputs) != 1:
            names = ", ".join(f"'{s.name}'" for s in signature.inputs)
            raise InvalidArgument(f"got one array, the model's inputs are {names}; give a mapping of names to arrays")
        given = {signature.inputs[0].name: given}
    specs = {spec.name: spec for spec in signature.inputs}
    fitted = {
        name: cast(np.asarray(value), specs[name]) if name in specs else np.asarray(value)
        for name, value in given.items()
    }
    signature.check(fitted)
    return fitted


def cast(array: Array, spec: TensorSpec) -> Array:
    """An array in the datatype of a spec. Whole numbers become any number type that holds them exactly; floats become a
    narrower float, rounded, if none overflows; strings of any kind become BYTES.

    Raises:
        InvalidArgument: naming the input and the first value that does not fit.
    """
    if spec.datatype == "BYTES":
        return _to_strings(array, spec)
    if array.dtype == spec.dtype:
        return array
    whole = array.dtype.kind in "iu"
    to_float = spec.datatype in ("FP16", "FP32", "FP64")
    to_whole = spec.dtype.kind in "iu" and spec.datatype != "BF16"
    if not ((whole and (to_float or to_whole)) or (array.dtype.kind == "f" and to_float)):
        return array  # the signature's own check names what is wrong
    with np.errstate(over="ignore", invalid="ignore"):
        fitted = array.astype(spec.dtype)
        lost = np.isinf(fitted) & np.isfinite(array) if not whole else ~_same_whole(fitted, array)
    if lost.any():
        value = np.atleast_1d(array)[np.atleast_1d(lost)][0]
        raise InvalidArgument(
            f"input '{spec.name}': {spec.datatype} cannot hold the {to_datatype(array.dtype)} value {value}"
        )
    return fitted


def read_arrays(path: Path) -> Mapping[str, Array] | Array:
    """The arrays of an ``.npz`` file, or the one of an ``.npy`` file. Never unpickles.

    Raises:
        NotFound, InvalidArgument: as it says.
    """
    if not path.is_file():
        raise NotFound(f"no such file: '{path}'")
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InvalidArgument(f"'{path}' is not an .npz or .npy file of plain arrays: {error}") from error


def _same_whole(fitted: Array, array: Array) -> npt.NDArray[np.bool_]:
    """Where a cast of whole numbers kept the value; exact also for 64-bit numbers beyond what a float holds."""
    if fitted.dtype.kind == "f":
        limit = 1 << (np.finfo(fitted.dtype).nmant + 1)
        return np.asarray((array <= limit) & ((array >= -limit) if array.dtype.kind == "i" else True))
    info = np.iinfo(fitted.dtype)
    low_ok = array >= max(int(info.min), int(np.iinfo(array.dtype).min))
    return np.asarray(low_ok & (array <= min(int(info.max), int(np.iinfo(array.dtype).max))))


def _to_strings(array: Array, spec: TensorSpec) -> Array:
    name = spec.name
    if array.dtype.kind not in "OUS":
        return array
    out = np.empty(array.shape, dtype=object)
    for index, value in np.ndenumerate(array):
        if isinstance(value, bytes):
            try:
                value = value.decode("latin-1" if spec.binary else "utf-8")
            except UnicodeDecodeError as error:
                raise InvalidArgument(f"input '{name}': element {list(index)} is not UTF-8 ({error.reason})") from None
        if not isinstance(value, str):
            raise InvalidArgument(f"input '{name}': element {list(index)} is {type(value).__name__}, expected a string")
        out[index] = str(value)
    return out
