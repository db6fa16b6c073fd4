"""`salver doctor`: what this machine offers, and how to get what it lacks."""

from __future__ import annotations

import platform
import re
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, distribution, version
from typing import Any, Final

import msgspec
from rich.table import Table

import salver
from salver.backends import BACKENDS
from salver.cli._output import print_json, print_rich
from salver.evaluation.host import describe_host

_REQUIREMENT: Final = re.compile(r"([A-Za-z0-9._-]+).*;.*extra == ['\"]([a-z]+)['\"]")


def run(*, json: bool = False) -> None:
    """Print what was found."""
    found = examine()
    if json:
        print_json(found)
    else:
        print_rich(*_render(found))


def examine() -> dict[str, Any]:
    """Versions, host, runtimes with their execution providers, extras with what is missing of each."""
    runtimes = {}
    for name in BACKENDS:
        backend = BACKENDS.get(name)()
        runtimes[name] = {
            "versions": backend.versions(),
            "formats": list(backend.formats),
            "providers": list(backend.providers()),
        }
    return {
        "salver": salver.__version__,
        "python": platform.python_version(),
        "host": msgspec.to_builtins(describe_host()),
        "runtimes": runtimes,
        "extras": {extra: _examine_extra(extra, packages) for extra, packages in sorted(_extras().items())},
    }


def _extras() -> dict[str, list[str]]:
    """Extra -> its packages, as the installed distribution declares them."""
    packages = defaultdict(list)
    for requirement in distribution("salver").requires or ():
        match = _REQUIREMENT.match(requirement)
        if match and match[1] != "salver":
            packages[match[2]].append(match[1])
    packages.pop("all", None)
    return packages


def _examine_extra(extra: str, packages: list[str]) -> dict[str, Any]:
    present, missing = {}, []
    for package in packages:
        try:
            present[package] = version(package)
        except PackageNotFoundError:
            missing.append(package)
    return {"present": present, "missing": missing, "install": f"pip install 'salver[{extra}]'" if missing else ""}


def _render(found: dict[str, Any]) -> list[Any]:
    host = found["host"]
    machine = Table(title="Machine", title_justify="left", show_header=False)
    machine.add_row("salver", found["salver"])
    machine.add_row("python", found["python"])
    machine.add_row("system", host["os"])
    machine.add_row("cpu", f"{host['cpu']}, {host['cores']} cores")
    machine.add_row("features", " ".join(host["features"]) or "none that inference uses")
    machine.add_row("memory", f"{host['memory_bytes'] / 2**30:.1f} GiB")
    runtimes = Table("runtime", "version", "formats", "execution providers", title="Runtimes", title_justify="left")
    for name, runtime in found["runtimes"].items():
        versions = ", ".join(f"{k} {v}" for k, v in runtime["versions"].items())
        runtimes.add_row(name, versions, ", ".join(runtime["formats"]), ", ".join(runtime["providers"]))
    extras = Table("extra", "present", "to get it", title="Extras", title_justify="left")
    for name, extra in found["extras"].items():
        present = ", ".join(f"{k} {v}" for k, v in extra["present"].items())
        extras.add_row(name, present or "-", extra["install"].replace("[", r"\["))
    return [machine, runtimes, extras]
