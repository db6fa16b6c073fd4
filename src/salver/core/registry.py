"""The one registry: a family's built-in table merged with its entry points, loaded on first use.

Built-ins are found without a look at the entry points: scanning every installed distribution costs a server a tenth of
a second at its start, and is done only when a name is unknown or all names are wanted.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from salver.core.errors import DuplicateName, Internal, UnknownName

T = TypeVar("T")


def load(target: str) -> Any:
    """Import what ``"module:attribute"`` names.

    Raises:
        MissingExtra: as the module raises it.
        Internal: the module or attribute cannot be loaded.
    """
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise Internal(f"cannot load '{target}': {error}") from error


class Family(Generic[T]):
    """Members of one extension family, by name.

    Args:
        name: the family's name; the entry-point group is ``salver.<name>``.
        builtin: name -> ``"module:attribute"``. Built-ins and plug-ins are loaded by the same door, on first use.
    """

    def __init__(self, name: str, builtin: Mapping[str, str]) -> None:
        self.name = name
        self._builtin = dict(builtin)
        self._table: dict[str, str] | None = None
        self._loaded: dict[str, T] = {}

    def __iter__(self) -> Iterator[str]:
        """Names of all members, built-ins first; plug-ins are looked for when the built-ins are exhausted."""
        yield from self._builtin
        yield from (name for name in self._targets() if name not in self._builtin)

    def names(self) -> tuple[str, ...]:
        """Names of all members, built-ins first."""
        return tuple(self)

    def get(self, name: str) -> T:
        """The member of that name, imported if need be. A plug-in never takes the place of a built-in.

        Raises:
            UnknownName: no such member; the message lists the valid names.
            MissingExtra, Internal: as `load`.
        """
        if name not in self._loaded:
            table = self._builtin if name in self._builtin else self._targets()
            if name not in table:
                raise UnknownName(f"member of {self.name}", name, table)
            self._loaded[name] = load(table[name])
        return self._loaded[name]

    def _targets(self) -> dict[str, str]:
        if self._table is None:
            table = dict(self._builtin)
            from importlib.metadata import entry_points

            for point in entry_points(group=f"salver.{self.name}"):
                if point.name in table:
                    raise DuplicateName(self.name, point.name, table[point.name], point.value)
                table[point.name] = point.value
            self._table = table
        return self._table
