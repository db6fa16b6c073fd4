"""Virtual environments of toolchains: made, found and removed. One stands complete or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from salver.builder.toolchains.table import TOOLCHAINS, Toolchain
from salver.core.cache import default_cache_dir
from salver.core.errors import DeadlineExceeded, FailedPrecondition, NotFound, UnknownName

INSTALL_TIMEOUT_S: Final = 1800.0
_RECORD: Final = "toolchain.json"
_LIST: Final = (
    "import importlib.metadata as m, json; "
    "print(json.dumps({d.metadata['Name']: d.version for d in m.distributions()}))"
)


class InstalledToolchain(msgspec.Struct, frozen=True, kw_only=True):
    """A toolchain that stands.

    Args:
        name: of the toolchain.
        requirements: what it was made from.
        versions: library -> version, of all that is in it.
    """

    name: str
    requirements: tuple[str, ...]
    versions: dict[str, str]

    @property
    def folder(self) -> Path:
        """Its virtual environment."""
        return home() / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"


def home() -> Path:
    """The folder in which toolchains stand: ``toolchains`` in the cache folder."""
    return default_cache_dir() / "toolchains"


def get(name: str) -> Toolchain:
    """The toolchain of that name.

    Raises:
        UnknownName: there is none; the valid ones are listed.
    """
    if name not in TOOLCHAINS:
        raise UnknownName("toolchain", name, TOOLCHAINS)
    return TOOLCHAINS[name]


def find(name: str) -> InstalledToolchain | None:
    """A toolchain that is installed, as this release wants it."""
    wanted = get(name)
    record = home() / name / _RECORD
    try:
        found = msgspec.json.decode(record.read_bytes(), type=InstalledToolchain)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.requirements == wanted.requirements and found.python.exists() else None


def list_installed() -> list[InstalledToolchain]:
    """Those that are installed."""
    return [found for name in TOOLCHAINS if (found := find(name)) is not None]


def install(name: str, *, timeout_s: float = INSTALL_TIMEOUT_S) -> InstalledToolchain:
    """Make a toolchain's environment; one that stands already is left as it is.

    Raises:
        UnknownName: there is no such toolchain.
        FailedPrecondition: the environment cannot be made, with pip's reason.
        DeadlineExceeded: it took too long.
    """
    wanted = get(name)
    if (found := find(name)) is not None:
        return found
    home().mkdir(parents=True, exist_ok=True)
    folder = home() / name
    with tempfile.TemporaryDirectory(dir=home(), prefix=f".{name}.", suffix=".partial") as scratch:
        made = Path(scratch) / "environment"
        _run(wanted, [sys.executable, "-m", "venv", str(made)], timeout_s)
        python = str(made / "bin" / "python")
        pip = [python, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
        _run(wanted, [*pip, *wanted.requirements], timeout_s)
        versions = json.loads(_run(wanted, [python, "-I", "-c", _LIST], timeout_s))
        installed = InstalledToolchain(
            name=name, requirements=wanted.requirements, versions=dict(sorted(versions.items()))
        )
        (made / _RECORD).write_bytes(msgspec.json.encode(installed))
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return installed


def remove(name: str) -> None:
    """Remove a toolchain's environment.

    Raises:
        UnknownName: there is no such toolchain.
        NotFound: it is not installed.
    """
    get(name)
    folder = home() / name
    if not folder.is_dir():
        raise NotFound(f"toolchain '{name}' is not installed")
    shutil.rmtree(folder)


def _run(toolchain: Toolchain, command: list[str], timeout_s: float) -> str:
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environ = {key: value for key, value in os.environ.items() if key not in hidden}
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise DeadlineExceeded(
            f"toolchain '{toolchain.name}' was not installed within {timeout_s:g} s; try again on a faster network"
        ) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in said if line.startswith("ERROR")] or said or ["nothing was said"]
        raise FailedPrecondition(
            f"toolchain '{toolchain.name}' cannot be installed ({', '.join(toolchain.requirements)}): {errors[-1]}"
        )
    return done.stdout
