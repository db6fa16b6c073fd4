"""`salver doctor`: what this machine offers, and how to get what it lacks."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.markup import escape
from rich.table import Table

import salver
from salver.backends import BACKENDS, BUILTIN, formats_of
from salver.builder.exporters import EXPORTERS
from salver.builder.importers import IMPORTERS
from salver.cli._accelerators import ACCELERATORS, UNTESTED
from salver.cli._output import print_json, print_rich
from salver.evaluation.host import describe_host
from salver.processing import PROCESSING

_REQUIREMENT: Final = re.compile(r"([A-Za-z0-9._-]+).*;.*extra == ['\"]([a-z]+)['\"]")
_PROBE_S: Final = 120.0
_ON_CPUS: Final = {"torch": ("cpu", "inductor")}  # those that have more than one way to run there
_LIGHT: Final = ("onnxruntime", "openvino")
_DEVICES: Final = Path("/dev")
_ACCELERATOR_DEVICES: Final = ("nvidia*", "kfd", "dxg", "accel*", "vfio/*")
"""As Linux names GPUs and TPUs; without any a framework has the CPU alone."""
# Members that need an optional library: the extra that brings it, and what has to be importable.
NEEDS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "torch": ("torch", ("torch", "onnxscript")),
    "pt2": ("torch", ("torch",)),
    "torchscript": ("torch", ("torch",)),
    "safetensors": ("safetensors", ("safetensors",)),
    "protobuf": ("tensorflow", ("tensorflow", "keras")),
    "tensorflow": ("tensorflow", ("tensorflow", "keras")),
    "savedmodel": ("tensorflow", ("tensorflow", "keras")),
    "keras": ("tensorflow", ("tensorflow", "keras")),
    "h5": ("tensorflow", ("tensorflow", "keras")),
    "litert": ("litert", ("ai_edge_litert",)),
    "tflite": ("litert", ("ai_edge_litert",)),
    "sklearn": ("sklearn", ("sklearn", "skl2onnx", "skops")),
    "xgboost": ("boosting", ("xgboost",)),
    "lightgbm": ("boosting", ("lightgbm",)),
    "catboost": ("boosting", ("catboost",)),
    "openvino": ("openvino", ("openvino",)),
    "jax": ("jax", ("jax",)),
    "tokenizer": ("text", ("tokenizers",)),
    "image": ("images", ("PIL",)),
}


def run(*, json: bool = False) -> None:
    """Print what was found."""
    found = examine()
    if json:
        print_json(found)
    else:
        print_rich(*_render(found))


def examine() -> dict[str, Any]:
    """Versions, host, backends with their execution providers, the members of the other families that need a library,
    hardware that is passed through by name, extras with what is missing of each."""
    backends = _examine_backends()
    return {
        "salver": salver.__version__,
        "python": platform.python_version(),
        "host": msgspec.to_builtins(describe_host()),
        "backends": backends,
        "importers": _examine_members(IMPORTERS),
        "exporters": _examine_members(EXPORTERS),
        "processing": _examine_members(PROCESSING),
        "accelerators": _examine_accelerators(backends),
        "extras": {extra: _examine_extra(extra, packages) for extra, packages in sorted(_extras().items())},
    }


def _examine_backends() -> dict[str, dict[str, Any]]:
    """Told from what is installed; loaded, in a process of its own each, where only that tells the providers."""
    found = _examine_members(BACKENDS)
    here = [name for name, member in found.items() if member["present"]]
    asked = _asked()
    distributions = packages_distributions()
    loaded = [name for name in here if name in asked or name not in BUILTIN]
    for name in here:
        if name not in loaded:
            versions = _installed_versions(name, distributions)
            found[name] |= {
                "versions": versions,
                "formats": formats_of(name),
                "providers": _ON_CPUS.get(name, ("cpu",)),
            }
    with ThreadPoolExecutor(max_workers=2) as pool:
        for name, offered in zip(loaded, pool.map(_probe, loaded), strict=True):
            found[name] |= offered
            found[name]["present"] = "versions" in offered
    return found


def _asked() -> set[str]:
    """Built-ins whose providers differ from machine to machine: those that load in no time, and, where this machine may
    have other hardware than CPUs, the frameworks."""
    if sys.platform == "linux" and not any(True for pattern in _ACCELERATOR_DEVICES for _ in _DEVICES.glob(pattern)):
        return set(_LIGHT)
    return {*_LIGHT, *(backend for one in ACCELERATORS for backend in one.backends)}


def _installed_versions(name: str, distributions: Mapping[str, list[str]]) -> dict[str, str]:
    modules = NEEDS.get(name, ("", ()))[1]
    wanted = {distribution for module in modules for distribution in distributions.get(module, ())}
    return {one.replace("_", "-"): version(one) for one in sorted(wanted)} or {"python": platform.python_version()}


def _probe(name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "salver.cli._probe", name]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PROBE_S, check=False)
        found: dict[str, Any] = msgspec.json.decode(done.stdout, type=dict[str, Any])
    except subprocess.TimeoutExpired:
        return {"missing": f"it does not load within {_PROBE_S:.0f} s"}
    except msgspec.DecodeError:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return {"missing": f"it does not load (exit code {done.returncode}): {' '.join(last)}"}
    return found


def _examine_members(family: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Member -> whether what it needs is here, else how to get it; nothing is loaded."""
    found = {}
    for name in family:
        extra, modules = NEEDS.get(name, ("", ()))
        missing = [module for module in modules if find_spec(module) is None]
        found[name] = {
            "present": not missing,
            "missing": ", ".join(missing),
            "install": f"pip install 'salver[{extra}]'" if missing else "",
        }
    return found


def _examine_accelerators(backends: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for one in ACCELERATORS:
        where = [name for name in one.backends if one.name in backends.get(name, {}).get("providers", ())]
        found.append({**msgspec.to_builtins(one), "present": where, "tested": UNTESTED})
    return found


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
    return [machine, _backends(found), *_families(found), _accelerators(found), _extras_table(found)]


def _backends(found: dict[str, Any]) -> Table:
    table = Table("backend", "version", "formats", "providers", "to get it", title="Backends", title_justify="left")
    for name, one in found["backends"].items():
        versions = ", ".join(f"{k} {v}" for k, v in one.get("versions", {}).items()) or "-"
        lists = [", ".join(one.get(key, ())) for key in ("formats", "providers")]
        table.add_row(name, versions, *lists, escape(one["install"] or ("" if one["present"] else one["missing"])))
    return table


def _families(found: dict[str, Any]) -> list[Table]:
    tables = []
    for family in ("importers", "exporters", "processing"):
        table = Table(family, "to get it", title=family.capitalize(), title_justify="left")
        for name, one in found[family].items():
            table.add_row(name, "present" if one["present"] else escape(one["install"]))
        tables.append(table)
    return tables


def _accelerators(found: dict[str, Any]) -> Table:
    table = Table("provider", "for", "through", "", "to get it", title="Other hardware", title_justify="left")
    for one in found["accelerators"]:
        state = f"present in {', '.join(one['present'])}" if one["present"] else "not here"
        table.add_row(one["name"], one["what"], ", ".join(one["backends"]), f"{state}; {one['tested']}",
                      "" if one["present"] else escape(one["install"]))  # fmt: skip
    return table


def _extras_table(found: dict[str, Any]) -> Table:
    table = Table("extra", "present", "to get it", title="Extras", title_justify="left")
    for name, extra in found["extras"].items():
        present = ", ".join(f"{k} {v}" for k, v in extra["present"].items())
        table.add_row(name, present or "-", escape(extra["install"]))
    return table
