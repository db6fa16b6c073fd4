"""Each extra installed alone, at the newest versions and at the oldest its bounds allow, and all of them together.

    python benchmarks/extras.py                        # every extra in a fresh environment, then `all`
    python benchmarks/extras.py torch boosting         # only these
    python benchmarks/extras.py --resolve              # resolve only, pairs included: a minute, for every change
    python benchmarks/extras.py --write                # and write docs/extras.md from what was found
    python benchmarks/extras.py torch --with torch==2.13.0   # a build of one's own choice

Installing needs an index (PyPI or what uv is configured with) and some gigabytes in `build/extras`, which are freed
again. An extra is good when it resolves, installs, every member of Salver that it is for loads, a model crosses, and
then, with what tests need beside it and no version changed, the tests of those members pass.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
FOLDER: Final = ROOT / "build" / "extras"
FOUND: Final = FOLDER / "found.json"
PAGE: Final = ROOT / "docs" / "extras.md"
TOGETHER: Final = "all"
MARK: Final = "<!-- Written by benchmarks/extras.py --write from installations on one machine. -->"
_LIMIT_S: Final = 1800.0

# What an extra is for: the members that must load, and a few lines that must run.
SMOKE: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "sklearn": (
        ("salver.backends._sklearn", "salver.builder.importers._sklearn"),
        "from sklearn.linear_model import LogisticRegression\n"
        "from sklearn.datasets import load_iris\n"
        "import salver\n"
        "model = salver.load(LogisticRegression(max_iter=500).fit(*load_iris(return_X_y=True)))\n"
        "assert model.format == 'onnx'\n",
    ),
    "boosting": (
        (
            "salver.builder.importers._xgboost",
            "salver.builder.importers._lightgbm",
            "salver.builder.importers._catboost",
            "salver.backends._xgboost",
            "salver.backends._lightgbm",
            "salver.backends._catboost",
        ),
        "import numpy as np, xgboost, salver\n"
        "x = np.random.default_rng(0).random((60, 3))\n"
        "trees = xgboost.train({'seed': 0}, xgboost.DMatrix(x, x[:, 0]), 3)\n"
        "trees.save_model('m.ubj')\n"
        "assert salver.load('m.ubj').format in ('onnx', 'xgboost')\n",
    ),
    "torch": (
        (
            "salver.backends._torch",
            "salver.builder.importers._torch",
            "salver.builder.exporters._pt2",
            "salver.builder.exporters._torchscript",
        ),
        "import torch, salver\n"
        "model = salver.load(torch.nn.Linear(3, 2).eval(), inputs='x:float32[batch,3]')\n"
        "assert model.format == 'onnx'\n",
    ),
    "tensorflow": (
        (
            "salver.backends._tensorflow",
            "salver.builder.importers._keras",
            "salver.builder.importers._savedmodel",
            "salver.builder.exporters._keras",
            "salver.builder.exporters._h5",
            "salver.builder.exporters._savedmodel",
            "salver.builder.exporters._protobuf",
        ),
        "import keras, salver\n"
        "x = keras.Input((3,), name='x')\n"
        "keras.Model(x, keras.layers.Dense(2)(x)).save('m.keras')\n"
        "assert salver.load('m.keras').format == 'onnx'\n",
    ),
    "litert": (("salver.backends._litert",), "from ai_edge_litert.interpreter import Interpreter\n"),
    "jax": (
        ("salver.backends._jax", "salver.builder.importers._jax"),
        "import jax\nassert float(jax.numpy.ones(3).sum()) == 3\n",
    ),
    "openvino": (
        (
            "salver.backends._openvino",
            "salver.builder.importers._openvino",
            "salver.builder.exporters._openvino",
            "salver.builder.passes._openvino",
        ),
        "from salver.backends import find_backend\nassert 'cpu' in find_backend('openvino').providers()\n",
    ),
    "safetensors": (("salver.builder.exporters._safetensors",), ""),
    "extensions": ((), "from onnxruntime_extensions import get_library_path\nassert get_library_path()\n"),
    "text": (
        ("salver.processing._tokenizer",),
        "import tokenizers\ntokenizers.Tokenizer(tokenizers.models.WordLevel())\n",
    ),
    "images": (("salver.datasets._images", "salver.processing._image"), ""),
    "parquet": (("salver.datasets._parquet",), ""),
    "search": (("salver.builder.passes._onnxslim",), ""),
}

# What the tests of every extra need, and those of one: the data of most are scikit-learn's.
TESTING: Final = ("pytest>=8.3", "pytest-timeout>=2.3", "hypothesis>=6.120", "scikit-learn>=1.9", "pandas>=2.2")
BESIDE: Final = {"litert": "tensorflow"}
TESTS_TOO: Final = {"extensions": "tests/builder/importers/test_onnx_anywhere.py"}


# Why a bound is not lower: what failed below it, or that nothing below it was tried.
BOUNDS: Final = {
    "torch": "older builds for CPUs are not on PyPI, and none was tried; onnxscript 0.5 does not know PyTorch 2.13.",
    "boosting": "XGBoost 3.0 and older and LightGBM 4.5 call scikit-learn in ways that 1.9, which `sklearn` needs,\n"
    "  took away; LightGBM 4.6 warns at each call. XGBoost 3.1 was not tried.",
    "tensorflow": "three tests of Keras files fail with Keras 3.10; 3.11.0 to 3.11.2 were not tried.",
    "litert": "2.0 and TensorFlow do not load in one process, and 2.1.0 to 2.1.3 crash on a damaged file;\n"
    "  2.1.4 and 2.1.5 were not tried.",
    "jax": "`jax.enable_x64` is new in 0.8.",
    "openvino": "2026.1 gives wrong answers for a network with a branch, which the proof of a move refuses;\n"
    "  2026.0 and older report an operator that they lack in a way that Salver takes for a damaged file.",
}


def extras() -> dict[str, list[str]]:
    """The extras that something imports, with their requirements."""
    return {name: _project()["optional-dependencies"][name] for name in SMOKE}


def bounds(name: str) -> list[str]:
    """What one extra asks for, and what Salver does: uv takes the oldest of what it is asked for by name only."""
    return [*_project()["dependencies"], *extras()[name]]


def tests(names: list[str]) -> list[str]:
    """The tests of the members that some extras are for: `salver.backends._jax` has `tests/backends/test_jax.py`."""
    members = [member for name in names for member in SMOKE[name][0]]
    paths = [f"tests/{'/'.join(member.split('.')[1:-1])}/test{member.split('.')[-1]}.py" for member in members]
    return [*paths, *(TESTS_TOO[name] for name in names if name in TESTS_TOO)]


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SMOKE)} and {TOGETHER}; all where none is named")
    parser.add_argument("--resolve", action="store_true", help="resolve only: each, each pair, all")
    parser.add_argument("--write", action="store_true", help="write docs/extras.md")
    parser.add_argument("--lowest", action="store_true", help="only the oldest versions that the bounds allow")
    parser.add_argument("--newest", action="store_true", help="only the newest versions")
    parser.add_argument("--with", dest="pins", action="append", default=[], help="a further requirement")
    given = parser.parse_args()
    unknown = set(given.names) - {*SMOKE, TOGETHER}
    if unknown:
        parser.error(f"no such extra: {', '.join(sorted(unknown))}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    good = True
    if given.resolve:
        good = resolve_all(given.pins)
    elif given.names or not given.write:
        for name in given.names or [*SMOKE, TOGETHER]:
            # Together, only the newest: the oldest of each are the newest that the others leave.
            both = ["newest"] if given.newest or name == TOGETHER else ["lowest-direct"] if given.lowest else None
            for resolution in both or ["newest", "lowest-direct"]:
                good &= try_extra(name, resolution, given.pins)
    if given.write:
        PAGE.write_text(page(_read()), encoding="utf-8")
        print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0 if good else 1


def try_extra(name: str, resolution: str, pins: list[str]) -> bool:
    """Install one extra into a fresh environment, load what it is for, run its lines and tests; remember it."""
    began = time.monotonic()
    folder = FOLDER / f"{name}-{resolution}"
    shutil.rmtree(folder, ignore_errors=True)
    python = folder / "bin" / "python"
    names = list(SMOKE) if name == TOGETHER else [name]
    found: dict[str, Any] = {"resolution": resolution, "outcome": "installs", "with": pins, "on": _machine()}
    found["asked"] = bounds(name) if name != TOGETHER else []
    try:
        _uv("venv", "--python", sys.executable, str(folder))
        mode = [] if resolution == "newest" else ["--resolution", resolution, *bounds(name)]
        _uv("pip", "install", "--python", str(python), *mode, f"{_wheel()}[{name}]", *pins)
        _python(python, folder, "\n".join(f"import {member}" for each in names for member in SMOKE[each][0]))
        for each in names:
            _python(python, folder, SMOKE[each][1])
        listed = json.loads(_uv("pip", "list", "--python", str(python), "--format", "json"))
        found["packages"] = {each["name"]: each["version"] for each in listed}
        found["bytes"] = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
        found["tests"] = _test(python, folder, names, found["packages"])
    except subprocess.SubprocessError as error:
        found |= {"outcome": "fails", "reason": _reason(error)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found["seconds"] = round(time.monotonic() - began, 1)
    _remember(f"{name} {resolution}", found)
    print(f"{name} ({resolution}): {found['outcome']} {found.get('reason', '')}", flush=True)
    return found["outcome"] == "installs"


def resolve_all(pins: list[str]) -> bool:
    """Whether each extra, each pair and all of them resolve, without installing anything."""
    sets = [*((name,) for name in SMOKE), *itertools.combinations(SMOKE, 2), (TOGETHER,)]
    failed = {}
    for names in sets:
        wanted = f"salver[{','.join(names)}] @ {_wheel().as_uri()}\n" + "\n".join(pins)
        try:
            _uv("pip", "compile", "--quiet", "--python", sys.executable, "-", given=wanted)
        except subprocess.SubprocessError as error:
            failed[" + ".join(names)] = _reason(error)
    _remember("resolve", {"sets": len(sets), "failed": failed})
    print(f"{len(sets) - len(failed)} of {len(sets)} sets of extras resolve")
    for names, reason in failed.items():
        print(f"{names}: {reason}")
    return not failed


def page(found: dict[str, Any]) -> str:
    """`docs/extras.md`."""
    lines = [
        "# Extras",
        "",
        MARK,
        "",
        "`pip install salver` brings what serving and optimizing ONNX models needs. Everything else is an extra:",
        "`pip install 'salver[torch,text]'`. Every extra goes with every other, and `salver[all]` has them all.",
        "[`salver doctor`](cli.md#salver-doctor) says which are here and what a missing one is for.",
        "",
        "| extra | brings | environment | packages | at the newest versions | at the oldest versions |",
        "|---|---|---|---|---|---|",
    ]
    for name, requirements in [*extras().items(), (TOGETHER, ["all of the above"])]:
        newest, lowest = found.get(f"{name} newest"), found.get(f"{name} lowest-direct")
        if lowest and lowest["asked"] != bounds(name):
            lowest = None
        brings = ", ".join(f"`{r.partition(';')[0].strip()}`" if name != TOGETHER else r for r in requirements)
        told = [f"`{name}`", brings, _size(newest), _count(newest), _outcome(newest), _outcome(lowest)]
        lines.append(f"| {' | '.join(told)} |")
    resolved = found.get("resolve")
    machines = sorted({each["on"] for each in found.values() if "on" in each})
    lines += [
        "",
        f"Each was installed alone into a fresh environment ({'; '.join(machines)}): every member that it is",
        "for loads, and a model crosses. Where numbers stand, the tests of these members then ran beside those very",
        "versions: what is skipped needs another extra. The oldest versions are those of every package that Salver or",
        "the extra names; what these ask for in turn is the newest.",
        "",
    ]
    if resolved:
        good = resolved["sets"] - len(resolved["failed"])
        lines += [f"Of the {resolved['sets']} sets tried (each, each pair, all), {good} resolve without a conflict."]
    lines += [f"- {names}: {reason}" for names, reason in (resolved or {}).get("failed", {}).items()]
    lines += [
        "",
        "`make extras` does all of this again; `make extras ARGS=--resolve` only resolves.",
        "",
        "## Why these bounds",
        "",
        *(f"- `{extra}`: {reason}" for extra, reason in BOUNDS.items()),
        "",
        "## PyTorch for CPUs",
        "",
        "On Linux, `torch` from PyPI is built for CUDA and brings several gigabytes of NVIDIA's libraries. Where there",
        "is no GPU, install the build for CPUs first, as [PyTorch's page](https://pytorch.org/get-started/locally/)",
        "says for the platform, then the extra, which takes what is there:",
        "",
        "```",
        "pip install torch --index-url https://download.pytorch.org/whl/cpu",
        "pip install 'salver[torch]'",
        "```",
        "",
        "TensorFlow needs nothing of the kind: the extra takes `tensorflow-cpu` on Linux. To use a GPU, install",
        "`tensorflow[and-cuda]`, or `onnxruntime-gpu` in the place of `onnxruntime`; [what has been tried of",
        "that](accelerators.md) is said there.",
    ]
    return "\n".join(lines) + "\n"


def _size(found: dict[str, Any] | None) -> str:
    return "not tried" if found is None else f"{found['bytes'] / 1e6:,.0f} MB" if "bytes" in found else "**fails**"


def _count(found: dict[str, Any] | None) -> str:
    return str(len(found["packages"])) if found and "packages" in found else ""


def _outcome(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not tried"
    beside = f" with `{'`, `'.join(found['with'])}`" if found.get("with") else ""
    told = f"**{found['reason']}**" if "reason" in found else ", ".join(filter(None, ["works", found.get("tests")]))
    return told + beside


def _test(python: Path, folder: Path, names: list[str], packages: dict[str, str]) -> str:
    """Run the tests of some extras beside the versions that are there; pytest's last line."""
    pins = folder / "pins.txt"
    pins.write_text("\n".join(f"{name}=={version}" for name, version in packages.items()), encoding="utf-8")
    beside = [need for name in names for need in extras().get(BESIDE.get(name, ""), [])]
    _uv("pip", "install", "--python", str(python), "--constraint", str(pins), *TESTING, *beside)
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", *tests(names)]
    said = _run(command, ROOT, "").strip().splitlines()[-1]
    return re.sub(r" in [\d.]+s.*|=", "", said).strip()


@functools.cache
def _project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


@functools.cache
def _wheel() -> Path:
    shutil.rmtree(FOLDER / "wheel", ignore_errors=True)
    _uv("build", "--wheel", "--out-dir", str(FOLDER / "wheel"), str(ROOT))
    return next((FOLDER / "wheel").glob("salver-*.whl"))


def _machine() -> str:
    return f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"


def _uv(*words: str, given: str = "") -> str:
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    return _run([uv, *words], ROOT, given)


def _python(python: Path, folder: Path, code: str) -> None:
    if code:
        _run([str(python), "-c", code], folder, "")


def _run(command: list[str], folder: Path, given: str) -> str:
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""}
    done = subprocess.run(
        command, cwd=folder, input=given, capture_output=True, text=True, timeout=_LIMIT_S, env=quiet, check=True
    )
    return done.stdout


def _reason(error: subprocess.SubprocessError) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"took longer than {_LIMIT_S:.0f} s"
    lines = str(getattr(error, "stderr", "") or getattr(error, "stdout", "") or "").strip().splitlines()
    said = [line for line in lines if not line.startswith(("=", "SKIPPED"))]
    return " ".join(line.strip() for line in said[-4:])[:400].replace("|", "\\|")


def _read() -> dict[str, Any]:
    return json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.is_file() else {}


def _remember(key: str, found: dict[str, Any]) -> None:
    FOUND.write_text(json.dumps({**_read(), key: found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
