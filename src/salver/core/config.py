"""Versioned configs: frozen data that describes a member's settings, and canonical JSON for hashing them."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import msgspec

from salver.core.errors import InvalidArgument, UnknownName
from salver.core.model import digest_bytes


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one member of a family. Subclasses add fields with defaults and raise `VERSION` when a field changes
    its meaning; plain data carries the version so that an older reader can refuse it."""

    VERSION: ClassVar[int] = 1

    def to_data(self) -> dict[str, Any]:
        """Plain data: every field, and ``version``."""
        fields = {name: msgspec.to_builtins(getattr(self, name)) for name in self.__struct_fields__}
        return {"version": self.VERSION, **fields}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Self:
        """Read plain data back.

        Raises:
            UnknownName: a field that does not exist.
            InvalidArgument: a newer version, or a value of the wrong type.
        """
        version = data.get("version", cls.VERSION)
        if version != cls.VERSION:
            raise InvalidArgument(f"{cls.__name__}: got version {version}, this release reads version {cls.VERSION}")
        fields = {k: v for k, v in data.items() if k != "version"}
        for name in fields:
            if name not in cls.__struct_fields__:
                raise UnknownName(f"field of {cls.__name__}", name, cls.__struct_fields__)
        try:
            return msgspec.convert(fields, cls)
        except msgspec.ValidationError as error:
            raise InvalidArgument(f"{cls.__name__}: {error}") from None

    @property
    def digest(self) -> str:
        """Digest of class, version and fields; equal configs have equal digests."""
        return digest_bytes(canonical_json([type(self).__name__, self.to_data()]))


_CANONICAL = msgspec.json.Encoder(order="sorted")


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no white space: equal values give equal bytes."""
    return _CANONICAL.encode(value)
