"""Errors: one root with a canonical code, and typed constructors that write the message.

A message names what was given, what was expected and what to do. Frontends map `Code` to a status in one table each;
the CLI maps it to an exit code. Codes are those of gRPC (https://grpc.io/docs/guides/status-codes/).
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable
from typing import ClassVar, Final, Self

_MAX_TYPO: Final = 256
"""Characters of a name that is compared with others; difflib keeps a number for each, and names come from clients."""


class Code(enum.StrEnum):
    """Canonical error codes, named as gRPC names them."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    UNAVAILABLE = "UNAVAILABLE"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


class SalverError(Exception):
    """Root of every error Salver raises on purpose.

    Args:
        message: one sentence or two for the person who has to act on it.
        retry_after_s: seconds after which a retry may succeed, where that is known.
    """

    code: ClassVar[Code] = Code.INTERNAL
    reason: str = ""
    """Why a request was refused without a run, in one word that is counted; empty for all other errors."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s

    def reworded(self, message: str) -> Self:
        """The same error, told in other words; this one stays as it is."""
        made = type(self).__new__(type(self), message)
        made.__dict__.update(self.__dict__)
        made.message = message
        return made


class InvalidArgument(SalverError):
    """The caller gave something that can never work."""

    code = Code.INVALID_ARGUMENT


class NotFound(SalverError):
    """What was named does not exist."""

    code = Code.NOT_FOUND


class AlreadyExists(SalverError):
    """What was to be made is there already."""

    code = Code.ALREADY_EXISTS


class FailedPrecondition(SalverError):
    """The request is sound but the system is not in a state to do it."""

    code = Code.FAILED_PRECONDITION


class ResourceExhausted(SalverError):
    """A queue, a disk, a budget or a quota is full. Retrying later may help."""

    code = Code.RESOURCE_EXHAUSTED


class TooLarge(InvalidArgument):
    """The request is over a size limit. Retrying never helps (HTTP 413, not 429).

    Args:
        limit: name of the setting that is the limit, where it has not been counted as hit yet.
    """

    def __init__(self, message: str, *, limit: str = "") -> None:
        super().__init__(message)
        self.limit = limit


class DeadlineExceeded(SalverError):
    """The caller's deadline passed before the answer was ready."""

    code = Code.DEADLINE_EXCEEDED


class Unavailable(SalverError):
    """Not now: starting, draining or broken."""

    code = Code.UNAVAILABLE


class Unauthenticated(SalverError):
    """Who is asking is not known."""

    code = Code.UNAUTHENTICATED


class PermissionDenied(SalverError):
    """Who is asking is known, or the origin is, and may not."""

    code = Code.PERMISSION_DENIED


class Unimplemented(SalverError):
    """Not something this installation can do."""

    code = Code.UNIMPLEMENTED


class Cancelled(SalverError):
    """The caller went away."""

    code = Code.CANCELLED


class Internal(SalverError):
    """A defect of Salver or of a model."""

    code = Code.INTERNAL


_BY_CODE: Final[dict[Code, type[SalverError]]] = {
    kind.code: kind
    for kind in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        ResourceExhausted,
        DeadlineExceeded,
        Unavailable,
        Unauthenticated,
        PermissionDenied,
        Unimplemented,
        Cancelled,
        Internal,
    )
}


def error_of(code: Code, message: str, retry_after_s: float | None = None) -> SalverError:
    """The typed error for what another process said."""
    return _BY_CODE[code](message, retry_after_s=retry_after_s)


class CorruptArtifact(FailedPrecondition):
    """A bundle or model file is damaged, truncated or altered."""


class MissingExtra(FailedPrecondition):
    """A feature needs an optional package that is not installed."""

    def __init__(self, needed_by: str, package: str, extra: str) -> None:
        super().__init__(f"{needed_by} needs {package}: pip install 'salver[{extra}]'")


class UnknownName(InvalidArgument):
    """A name that is not in a closed list; the nearest valid one is offered."""

    def __init__(self, kind: str, name: str, valid: Iterable[str]) -> None:
        names = sorted(valid)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5) if len(name) <= _MAX_TYPO else []
        hint = f" Did you mean '{near[0]}'?" if near else ""
        listing = ", ".join(names) if names else "(none)"
        super().__init__(f"unknown {kind} '{name}'.{hint} Valid: {listing}")


class DuplicateName(AlreadyExists):
    """Two members of one family claim the same name."""

    def __init__(self, family: str, name: str, first: str, second: str) -> None:
        super().__init__(f"{family}: '{name}' is registered twice, by {first} and by {second}; uninstall or rename one")


class PassNotApplicable(SalverError):
    """A pass has nothing to do on this model, or cannot do it. Not a failure: a verdict."""

    code = Code.FAILED_PRECONDITION


class ParityFailed(SalverError):
    """An imported model does not give what the original gives."""

    code = Code.FAILED_PRECONDITION


class UntrustedPickle(PermissionDenied):
    """A pickle was given without the user's word that it may be run."""

    def __init__(self, path: str, inspection: str = "") -> None:
        super().__init__(
            f"'{path}' is a pickle: loading it runs code from the file. If you trust who made it, say --trust-pickle "
            "(Python: trust_pickle=True); or save the model with skops (.skops), which needs no trust"
            + (f"\n{inspection}" if inspection else "")
        )


def format_shape(shape: Iterable[int | str]) -> str:
    """Write a shape as people read it: ``[batch, 28, 28]``."""
    return "[" + ", ".join(str(d) for d in shape) + "]"
