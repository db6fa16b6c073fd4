"""The tuned file beside a bundle: what `salver tune` measured to be best for it on this CPU.

    digits.salver             the bundle
    digits.salver.tuned.toml  how to run it here

A file that was measured on another CPU, with another number of cores or for another bundle is left alone, and the log
says so.
"""

from __future__ import annotations

import logging
import tomllib
from pathlib import Path
from typing import Any, Final

import msgspec

from salver.core.errors import InvalidArgument
from salver.core.host import describe_cpu, usable_cores

SUFFIX: Final = ".tuned.toml"
_LOG = logging.getLogger(__name__)


class TunedSettings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Settings that were chosen; see `ServeSettings`. None where they were not."""

    workers: int | None = None
    affinity: bool | None = None
    threads: int | None = None
    lanes: int | None = None
    max_batch: int | None = None
    share_weights: bool | None = None
    slo_s: float | None = None


class Tuned(msgspec.Struct, frozen=True, kw_only=True):
    """A tuned file.

    Args:
        bundle: digest of the bundle that was measured.
        fingerprint, cpu, cores: of the machine; see `salver.core.host`.
        settings: what was chosen.
        why: sentences that explain it.
        measured: a row for each candidate that was measured, the best first.
        origin: how messages name the file.
    """

    bundle: str
    fingerprint: str
    cpu: str
    cores: int
    settings: TunedSettings
    why: tuple[str, ...] = ()
    measured: tuple[dict[str, Any], ...] = ()
    origin: str = ""


def tuned_path(bundle: Path) -> Path:
    """Where the tuned file of a bundle lies."""
    return bundle.with_name(bundle.name + SUFFIX)


def read_tuned(bundle: Path, digest: str = "") -> Tuned | None:
    """The tuned file of a bundle, if there is one and it holds here.

    Args:
        digest: of the bundle; empty where it is not known yet.

    Raises:
        InvalidArgument: a file that is none.
    """
    path = tuned_path(bundle)
    if not path.is_file():
        return None
    try:
        tuned = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Tuned)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise InvalidArgument(f"{path}: no tuned file: {error}; write it again with 'salver tune {bundle}'") from None
    why_not = _mismatch(tuned, digest)
    if why_not:
        _LOG.warning("'%s' is not obeyed: %s; run 'salver tune %s' here", path, why_not, bundle)
        return None
    return msgspec.structs.replace(tuned, origin=path.name)


def _mismatch(tuned: Tuned, digest: str) -> str:
    cores = usable_cores()
    cpu = describe_cpu()
    if tuned.fingerprint != cpu.fingerprint:
        return f"it was measured on another CPU ({tuned.cpu}; this is {cpu.name})"
    if tuned.cores != cores:
        return f"it was measured with {tuned.cores} cores, this process may use {cores}"
    if digest and tuned.bundle != digest:
        return f"it was measured for another bundle ({tuned.bundle[:19]}; this is {digest[:19]})"
    return ""


def format_tuned(tuned: Tuned, command: str) -> str:
    """A tuned file as TOML.

    Args:
        command: that made it.
    """
    lines = [f"# Written by `{command}`. `salver serve` obeys it on this CPU, for this bundle.", ""]
    lines += [f"{name} = {_value(getattr(tuned, name))}" for name in ("bundle", "fingerprint", "cpu", "cores")]
    lines += ["why = [", *(f"  {_value(sentence)}," for sentence in tuned.why), "]", "", "[settings]"]
    lines += [f"{name} = {_value(value)}" for name, value in msgspec.to_builtins(tuned.settings).items()]
    for row in tuned.measured:
        lines += ["", "[[measured]]", *(f"{name} = {_value(value)}" for name, value in row.items())]
    return "\n".join(lines) + "\n"


def _value(value: str | float | bool) -> str:
    """TOML writes texts, numbers and truth as JSON does, control characters aside, which JSON escapes as TOML reads."""
    return msgspec.json.encode(value).decode()
