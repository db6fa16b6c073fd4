"""Results that are worked out once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Lookup(dict[K, V]):
    """``lookup[key]`` is ``make(key)``, made once: a dictionary that fills itself. Cheaper to ask than
    `functools.lru_cache`, which keeps an order that nobody needs where the bound is hardly ever reached.

    Args:
        make: what it raises is raised by the lookup, and nothing is kept.
        most: it is emptied before it has more.
    """

    def __init__(self, make: Callable[[K], V], most: int) -> None:
        super().__init__()
        self._make = make
        self._most = most

    def __missing__(self, key: K) -> V:
        if len(self) >= self._most:
            self.clear()
        value = self[key] = self._make(key)
        return value
