"""The port of a target."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import numpy as np

from salver.core.errors import SalverError
from salver.server.engine.base import Packed
from tests.fuzz.world import Finding, check_error


class Target(abc.ABC):
    """One codec or connection. `run` depends on nothing but the input and what was run since `renew`."""

    name: str

    def renew(self) -> None:  # noqa: B027  # a target may have nothing to forget
        """Forget what earlier inputs left behind: caches, templates, states."""

    @abc.abstractmethod
    def make(self, random: Random) -> bytes:
        """An input by the target's grammar."""

    @abc.abstractmethod
    def mutate(self, data: bytes, random: Random) -> bytes:
        """Another input, near one that is given."""

    @abc.abstractmethod
    def run(self, data: bytes) -> bool:
        """Take an input.

        Returns:
            Whether it came past the first parse.

        Raises:
            Exception: whatever it is, it is a finding.
        """


class Said:
    """What a codec did: gave a value, or said why not."""

    def __init__(self, step: Callable[..., Any], *args: Any) -> None:
        self.value: Any = None
        self.error: SalverError | None = None
        try:
            self.value = step(*args)
        except SalverError as error:
            self.error = error

    def check(self) -> Said:
        """The error is one that may be said."""
        if self.error is not None:
            check_error(self.error)
        return self


def agree(first: Said, second: Said, what: str) -> None:
    """Two ways to read the same bytes gave the same."""
    if first.error is None and second.error is None:
        same = alike(first.value, second.value)
    else:
        same = type(first.error) is type(second.error) and str(first.error) == str(second.error)
    if not same:
        raise Finding(f"{what} differ: {first.error or show(first.value)!r} and {second.error or show(second.value)!r}")


def alike(one: Any, other: Any) -> bool:
    """Equal, arrays bit for bit, whether they are packed or not."""
    one, other = (each.array() if isinstance(each, Packed) else each for each in (one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        return bool(one.tolist() == other.tolist()) if one.dtype.hasobject else one.tobytes() == other.tobytes()
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(alike, one, other))
    if type(one) is type(other) and hasattr(one, "__slots__") and not isinstance(one, str | bytes | int | float):
        return all(alike(getattr(one, name), getattr(other, name)) for name in one.__slots__)
    if isinstance(one, float) and isinstance(other, float):
        return repr(one) == repr(other)
    return type(one) is type(other) and bool(one == other)


def show(value: Any) -> Any:
    """A value for people."""
    if hasattr(value, "__slots__"):
        return {name: getattr(value, name) for name in value.__slots__}
    return value
