"""What one option is: a row of the tables from which flags, environment variables, `salver.toml` keys, their checks and
their documentation all follow."""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["text", "path", "integer", "number", "boolean", "duration", "size", "margin", "list"]


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One option.

    Args:
        name: as in ``--max-body``, ``SALVER_MAX_BODY`` and ``max-body = ...``, with underscores.
        kind: what its text is converted to: ``duration`` to seconds, ``size`` to bytes, ``list`` to a tuple of texts.
        verbs: the verbs that take it.
        help: one sentence, without a full stop.
        example: a value, as a user would write it.
        default: what holds when nobody says anything, in words a user understands.
        field: the keyword of the Python function behind the verb; the name when empty. Quantities carry their unit.
        choices: the only values a text may have; empty for any.
        minimum: the smallest value of a number or quantity.
        short: a one-letter flag, ``-o``.
        per_model: whether ``[models.NAME]`` tables take it.
        joined: what is put between the texts of a flag that is given several times; empty when the last one counts.
        flag_only: whether it can only be given as a flag, because it belongs to one command and not to a place.
    """

    name: str
    kind: Kind
    verbs: tuple[str, ...]
    help: str
    example: str = ""
    default: str = ""
    field: str = ""
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    short: str = ""
    per_model: bool = False
    joined: str = ""
    flag_only: bool = False

    @property
    def flag(self) -> str:
        """``--max-body``."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """``SALVER_MAX_BODY``."""
        return "SALVER_" + self.name.upper()

    @property
    def key(self) -> str:
        """The keyword argument that its value becomes."""
        return self.field or self.name
