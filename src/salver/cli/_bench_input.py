"""What `salver bench` reads: rates, ranges, and files of arrays."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, NotFound

_RATE: Final = re.compile(r"(\d+(?:\.\d+)?)(?:/(s|m))?")
_PER_S: Final = {None: 1.0, "s": 1.0, "m": 1 / 60}
_RANGE: Final = re.compile(r"(-?\d+)\.\.(-?\d+)")
_MAX_RATES: Final = 64


def parse_rates(text: str) -> list[float]:
    """Rates in requests per second: one (``500/s``), several (``100/s,200/s``), or doublings (``100/s..1600/s``).

    Raises:
        InvalidArgument: anything else.
    """
    if not text:
        return []
    low, dots, high = text.partition("..")
    if not dots:
        return [_rate(each, text) for each in text.split(",")]
    rate, last = _rate(low, text), _rate(high, text)
    rates: list[float] = []
    while rate < last * 0.999 and len(rates) < _MAX_RATES:
        rates.append(rate)
        rate *= 2
    return [*rates, last]


def _rate(word: str, text: str) -> float:
    found = _RATE.fullmatch(word.strip())
    rate = float(found[1]) * _PER_S[found[2]] if found else 0.0
    if not rate:
        raise InvalidArgument(f"--rate: got '{text}', expected 500/s, 100/s,200/s, 100/s..1600/s or max")
    return rate


def parse_range(text: str) -> tuple[int, int]:
    """Two integers, ``0..30521``.

    Raises:
        InvalidArgument: anything else.
    """
    found = _RANGE.fullmatch(text)
    if found is None or int(found[1]) > int(found[2]):
        raise InvalidArgument(f"--int-range: got '{text}', expected the smallest and the largest, as 0..30521")
    return int(found[1]), int(found[2])


def read_arrays(path: Path) -> dict[str, Array]:
    """Name -> array, from ``.npz`` or from a JSON object of nested lists.

    Raises:
        NotFound, InvalidArgument: the file is not there, or is neither.
    """
    try:
        arrays = _read_json(path) if path.suffix == ".json" else _read_npz(path)
    except FileNotFoundError:
        raise NotFound(f"no such file or folder: '{path}'") from None
    except (OSError, ValueError, zipfile.BadZipFile, msgspec.DecodeError) as error:
        raise InvalidArgument(f"{path}: expected .npz, or .json with an array for each name: {error}") from None
    sizes = {array.shape[0] if array.shape else 0 for array in arrays.values()}
    if len(sizes) != 1 or not min(sizes):
        raise InvalidArgument(f"{path}: expected arrays with equally many rows, got {sorted(sizes) or 'none'}")
    return arrays


def _read_npz(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _read_json(path: Path) -> dict[str, Array]:
    lists = msgspec.json.decode(path.read_bytes(), type=dict[str, list[object]])
    return {name: _array(values) for name, values in lists.items()}


def _array(values: list[object]) -> Array:
    array = np.array(values)
    if array.dtype == np.float64:
        return array.astype(np.float32)
    return array.astype(object) if array.dtype.kind == "U" else array
