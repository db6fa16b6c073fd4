"""What the exit code of `salver` says; one table, which `docs/cli.md` repeats."""

from __future__ import annotations

from typing import Final

from salver.core.errors import Code, CorruptArtifact, SalverError, UntrustedPickle

INTERRUPTED: Final = 130

MEANINGS: Final = {
    0: "done",
    1: "a defect of Salver, or of a model",
    2: "the command line, a setting or the input can never work",
    3: "what was named does not exist",
    4: "a bundle or model is damaged, verification failed, or access is denied",
    5: "a condition is not met: a missing extra, a pickle without trust, parity that fails",
    6: "something is full: disk, memory, queue",
    7: "not now: unavailable, or out of time",
    8: "not something this installation can do",
    9: "what was to be made is there already",
    INTERRUPTED: "interrupted with Ctrl-C",
}

_CODES: Final = {
    Code.INVALID_ARGUMENT: 2,
    Code.NOT_FOUND: 3,
    Code.FAILED_PRECONDITION: 5,
    Code.PERMISSION_DENIED: 4,
    Code.UNAUTHENTICATED: 4,
    Code.RESOURCE_EXHAUSTED: 6,
    Code.UNAVAILABLE: 7,
    Code.DEADLINE_EXCEEDED: 7,
    Code.UNIMPLEMENTED: 8,
    Code.ALREADY_EXISTS: 9,
    Code.CANCELLED: INTERRUPTED,
    Code.INTERNAL: 1,
}

_CLASSES: Final[dict[type[SalverError], int]] = {CorruptArtifact: 4, UntrustedPickle: 5}


def exit_code(error: SalverError) -> int:
    """The exit code of an error; a class that has its own comes before its canonical code."""
    return next((own for kind, own in _CLASSES.items() if isinstance(error, kind)), _CODES[error.code])
