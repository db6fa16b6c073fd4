"""Each extra installed alone, at the newest versions and at the oldest its bounds allow, and all of them together.

    python benchmarks/extras.py                        # every extra in a fresh environment, then `all`
    python benchmarks/extras.py torch boosting         # only these
    python benchmarks/extras.py --resolve              # resolve only, pairs included: a minute, for every change
    python benchmarks/extras.py --write                # and write docs/extras.md from what was found
    python benchmarks/extras.py torch --with torch==2.13.0   # a build of one's own choice

Installing needs an index (PyPI or what uv is configured with) and some gigabytes in `build/extras`, which are freed
again. An extra is good when it resolves, installs, every member of Salver that it is for loads, and a model crosses.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
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
        ),
        "import numpy as np, xgboost, salver\n"
        "x = np.random.default_rng(0).random((60, 3))\n"
        "trees = xgboost.train({'seed': 0}, xgboost.DMatrix(x, x[:, 0]), 3)\n"
        "trees.save_model('m.ubj')\n"
        "assert salver.load('m.ubj').format in ('onnx', 'xgboost')\n",
    ),
    "torch": (
        ("salver.backends._torch", "salver.builder.importers._torch", "salver.builder.exporters._torchscript"),
        "import torch, salver\n"
        "model = salver.load(torch.nn.Linear(3, 2).eval(), inputs='x:float32[batch,3]')\n"
        "assert model.format == 'onnx'\n",
    ),
    "tensorflow": (
        ("salver.backends._tensorflow", "salver.builder.importers._keras", "salver.builder.importers._savedmodel"),
        "import keras, salver\n"
        "x = keras.Input((3,), name='x')\n"
        "keras.Model(x, keras.layers.Dense(2)(x)).save('m.keras')\n"
        "assert salver.load('m.keras').format == 'onnx'\n",
    ),
    "litert": (("salver.backends._litert",), "from ai_edge_litert.interpreter import Interpreter\n"),
    "jax": (("salver.backends._jax",), "import jax\nassert float(jax.numpy.ones(3).sum()) == 3\n"),
    "openvino": (
        ("salver.backends._openvino", "salver.builder.exporters._openvino"),
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


def extras() -> dict[str, list[str]]:
    """The extras that something imports, with their requirements."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        declared = tomllib.load(file)["project"]["optional-dependencies"]
    return {name: declared[name] for name in SMOKE}


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
    """Install one extra into a fresh environment, load what it is for, run its lines; remember what came of it."""
    began = time.monotonic()
    folder = FOLDER / f"{name}-{resolution}"
    shutil.rmtree(folder, ignore_errors=True)
    python = folder / "bin" / "python"
    found: dict[str, Any] = {"resolution": resolution, "outcome": "installs"}
    try:
        _uv("venv", "--python", sys.executable, str(folder))
        mode = [] if resolution == "newest" else ["--resolution", resolution]
        _uv("pip", "install", "--python", str(python), *mode, f"{_wheel()}[{name}]", *pins)
        members = [member for key in ([name] if name != TOGETHER else SMOKE) for member in SMOKE[key][0]]
        _python(python, folder, "\n".join(f"import {member}" for member in members))
        for key in [name] if name != TOGETHER else list(SMOKE):
            _python(python, folder, SMOKE[key][1])
        listed = json.loads(_uv("pip", "list", "--python", str(python), "--format", "json"))
        found["packages"] = {each["name"]: each["version"] for each in listed}
        found["bytes"] = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
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
        "| extra | brings | environment | packages | at the oldest versions |",
        "|---|---|---|---|---|",
    ]
    for name, requirements in [*extras().items(), (TOGETHER, ["all of the above"])]:
        newest, lowest = found.get(f"{name} newest"), found.get(f"{name} lowest-direct")
        brings = ", ".join(f"`{r.partition(';')[0].strip()}`" if name != TOGETHER else r for r in requirements)
        lines.append(f"| `{name}` | {brings} | {_size(newest)} | {_count(newest)} | {_outcome(lowest)} |")
    resolved = found.get("resolve")
    lines += ["", "Installed in fresh environments, each member that an extra is for loaded, a model imported."]
    if resolved:
        good = resolved["sets"] - len(resolved["failed"])
        lines += [f"Of the {resolved['sets']} sets tried (each, each pair, all), {good} resolve without a conflict."]
    lines += [f"- {names}: {reason}" for names, reason in (resolved or {}).get("failed", {}).items()]
    lines += [
        "",
        "`make extras` does all of this again; `make extras ARGS=--resolve` only resolves.",
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
    return "" if found is None else f"**{found['reason']}**" if "reason" in found else "works"


def _wheel() -> Path:
    made = sorted((FOLDER / "wheel").glob("salver-*.whl"))
    if not made:
        _uv("build", "--wheel", "--out-dir", str(FOLDER / "wheel"), str(ROOT))
        made = sorted((FOLDER / "wheel").glob("salver-*.whl"))
    return made[-1]


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
    said = str(getattr(error, "stderr", "") or "").strip().splitlines()
    return " ".join(line.strip() for line in said[-4:])[:400].replace("|", "\\|")


def _read() -> dict[str, Any]:
    return json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.is_file() else {}


def _remember(key: str, found: dict[str, Any]) -> None:
    FOUND.write_text(json.dumps({**_read(), key: found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
