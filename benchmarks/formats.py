"""The matrix of formats: every source into every target, each crossing proved, sized and timed.

    python benchmarks/formats.py                          # run what has not been run yet
    python benchmarks/formats.py "torch CNN" --again      # one source, anew
    python benchmarks/formats.py --write                  # and write docs/formats.md

A source is imported and exported to each target in a process of its own, with a time limit; a cell that crashes or
hangs costs that cell, and the process is started again for the next. Results are kept in `build/formats`, a file each.
Whole models, from what a client sends to what it gets, are checked beside that (`format_checks.py`). Install the
toolchains first (`salver toolchain install onnx2tf`, and `litert-torch`): what takes one that is not there is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from format_checks import CHECKS
from format_sources import SOURCES

from salver.backends import BACKENDS, open_session
from salver.builder import toolchains
from salver.builder.exporters import BUILTIN, export_model, find_exporter
from salver.builder.importers import load_model
from salver.core.errors import MissingExtra, SalverError, Unimplemented
from salver.datasets import open_dataset
from salver.evaluation.host import describe_host
from salver.report import words

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = ROOT / "build" / "formats"
PAGE: Final = ROOT / "docs" / "formats.md"
IMPORT: Final = "import"
CHECK: Final = "check"
_LIMIT_S: Final = 240.0
_TIMED_S: Final = 0.5
_LONGEST: Final = 600
_PREFIX: Final = re.compile(r"^no clean route from '.*?' \(\w+\) to '\w+': ")
MARK: Final = "<!-- Written by benchmarks/formats.py --write from runs on one machine. -->"


def targets() -> tuple[str, ...]:
    """The import itself, then every exporter."""
    return (IMPORT, *BUILTIN)


def run_source(name: str, wanted: list[str]) -> Iterator[dict[str, Any]]:
    """Import a source, then fill the wanted cells, one after another; in this process."""
    with tempfile.TemporaryDirectory(prefix="salver-formats-") as scratch:
        folder = Path(scratch)
        (folder / "source").mkdir()
        (folder / "import").mkdir()
        try:
            source = SOURCES[name](folder / "source")
            imported = _import(source, folder / "import")
        except ImportError as error:
            yield from ({"target": target, "outcome": "not run", "reason": str(error)} for target in wanted)
            return
        except SalverError as error:
            yield from ({"target": target, "outcome": "failed", "reason": error.message} for target in wanted)
            return
        for target in wanted:
            yield {"target": target, **_fill(target, imported, source, folder)}


def run_check(name: str) -> dict[str, Any]:
    """Check a whole model; in this process."""
    with tempfile.TemporaryDirectory(prefix="salver-formats-") as scratch:
        try:
            return {"target": CHECK, **CHECKS[name](Path(scratch))}
        except ImportError as error:
            return {"target": CHECK, "outcome": "not run", "reason": str(error)}
        except SalverError as error:
            return {"target": CHECK, "outcome": "failed", "reason": error.message}


def _import(source: Any, folder: Path) -> Any:
    return load_model(source.given, data=source.data, workdir=folder, **source.options)


def _fill(target: str, imported: Any, source: Any, folder: Path) -> dict[str, Any]:
    if target == IMPORT:
        cell = _describe(imported.model, imported.parity, f"to {imported.model.format}")
        return cell if imported.model.format == "onnx" else {**cell, "notes": list(imported.model.notes)}
    data = None if source.data is None else open_dataset(source.data)
    try:
        exporter = find_exporter(target)
        exported = export_model(imported, exporter, folder / f"{target}{exporter.suffix}", data=data)
    except MissingExtra as error:
        return {"outcome": "not run", "reason": error.message}
    except Unimplemented as error:
        return {"outcome": "refused", "reason": error.message}
    except SalverError as error:
        return {"outcome": "failed", "reason": error.message}
    return _describe(exported.model, exported.parity, exported.route)


def _describe(model: Any, parity: Any, route: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"outcome": "passed", "route": route, "bytes": model.size_bytes}
    if parity is None:
        return cell
    cell |= {
        "max_abs": max(o.max_abs for o in parity.outputs),
        "max_rel": max(o.max_rel for o in parity.outputs),
        "labels": min(o.label_agreement for o in parity.outputs),
        "tolerance": parity.tolerance,
        "examples": parity.examples,
        "inputs": parity.inputs,
        "sizes": words.tested_sizes(parity),
    }
    return cell | _time(model, parity)


def _time(model: Any, parity: Any) -> dict[str, Any]:
    """Median of runs of the smallest recorded request, on one thread."""
    if not parity.recorded:
        return {}
    inputs = parity.recorded[0].inputs
    try:
        with open_session(model) as session:
            own = [spec.name for spec in session.signature.inputs]
            given = inputs if set(own) == set(inputs) else dict(zip(own, inputs.values(), strict=True))
            given = {k: v.astype(session.signature.input(k).dtype, copy=False) for k, v in given.items()}
            session.run(given)
            times, end = [], time.perf_counter() + _TIMED_S
            while time.perf_counter() < end or len(times) < 3:
                began = time.perf_counter()
                session.run(given)
                times.append(time.perf_counter() - began)
    except SalverError as error:
        return {"untimed": error.message}
    return {"ms": statistics.median(times) * 1000}


def measure(names: list[str], *, again: bool) -> None:
    """Fill the cells of these sources that are not filled yet, each source in a process of its own."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in names:
        done = {} if again else load(name)
        while wanted := [target for target in ((CHECK,) if name in CHECKS else targets()) if target not in done]:
            found, why = _run_apart(name, wanted)
            done |= {cell["target"]: cell for cell in found}
            left = [target for target in wanted if target not in done]
            if left:
                done[left[0]] = {"target": left[0], "outcome": "failed", "reason": why}
            _file(name).write_text(json.dumps(done, indent=1), encoding="utf-8")
        print(f"{name}: " + ", ".join(f"{target} {cell['outcome']}" for target, cell in done.items()), flush=True)


def _run_apart(name: str, wanted: list[str]) -> tuple[list[dict[str, Any]], str]:
    command = [sys.executable, __file__, name, "--cells", ",".join(wanted)]
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            code = subprocess.run(command, stdout=out, stderr=err, timeout=_LIMIT_S, env=quiet, check=False).returncode
            why = f"the process ended with code {code}"
        except subprocess.TimeoutExpired:
            why = f"took longer than {_LIMIT_S:.0f} s"
        out.seek(0)
        err.seek(0)
        lines = [line.removeprefix(b"cell ") for line in out.read().splitlines() if line.startswith(b"cell ")]
        last = err.read().decode(errors="replace").strip().splitlines()[-1:]
    return [json.loads(line) for line in lines], ": ".join([why, *last])


def _file(name: str) -> Path:
    return RESULTS / f"{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-').lower()}.json"


def load(name: str) -> dict[str, Any]:
    """The cells of a source that were filled before."""
    file = _file(name)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def page(results: dict[str, dict[str, Any]], host: str, versions: str, made_by: str = "") -> str:
    """`docs/formats.md`: the matrix, the whole models, every cell of every source, and what is refused."""
    columns = targets()
    lines = [
        "# Formats: every model in, every format out",
        "",
        MARK,
        "",
        "Each row is a trained model, each column what it became: imported (what is served), then exported to a format",
        "by `salver convert SOURCE --to FORMAT`. A number is the largest difference from the original over all inputs,",
        "batch sizes and other dynamic sizes that were tried, relative to 1 + the original's value; every format was",
        "loaded by its own backend and run on the same inputs. Where no backend runs the original beside the import",
        "(ONNX, scikit-learn, boosting), exports are compared with what was imported, and that with the original.",
        "**—** is a refusal: there is no clean route; [the list at the end](#what-is-refused) says why, and which",
        "route there is instead. **fails** is an export that was made, and refused because its answers are not those",
        "of the source. **·** was not run.",
        "",
        f"Measured on {host}, one thread, with {versions}.",
        *([made_by] if made_by else []),
        "Times are of a machine that may have been busy: compare them within a source only.",
        "",
        "| source | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    sources = {name: cells for name, cells in results.items() if name not in CHECKS}
    for name, cells in sources.items():
        lines.append(f"| {name} | " + " | ".join(_mark(cells.get(target)) for target in columns) + " |")
    checked = [(name, results[name][CHECK]) for name in CHECKS if results.get(name)]
    if checked:
        lines += ["", "## Whole models", ""]
    for name, cell in checked:
        told = cell.get("told") or f"{cell['outcome']}: {_text(cell['reason'])}"
        lines += [f"**{name}.** {told}", "", f'`python benchmarks/formats.py "{name}" --again` measures it again.', ""]
    lines = lines[:-1] if checked else lines
    for name, cells in sources.items():
        if cells:
            lines += ["", f"## {name}", "", *_source_table(cells)]
    return "\n".join([*lines, *_refusals(sources)]) + "\n"


def _mark(cell: dict[str, Any] | None) -> str:
    if cell is None or cell["outcome"] == "not run":
        return "·"
    if cell["outcome"] == "refused":
        return "—"
    if cell["outcome"] == "failed":
        return "**fails**"
    return f"{cell['max_rel']:.1g}" if "max_rel" in cell else "weights"


def _source_table(cells: dict[str, Any]) -> list[str]:
    lines = [
        "| to | largest difference | relative | same label | size | a run | compared at | how |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ordered = [cells[target] for target in targets() if target in cells]
    lines += [f"| {cell['target']} | {_passed(cell)} |" for cell in ordered if cell["outcome"] == "passed"]
    notes = [f"- {cell['target']}: {_text(note)}" for cell in ordered for note in cell.get("notes", ())]
    notes += [
        f"- {cell['target']}, {cell['outcome']}: {_text(cell['reason'])}"
        for cell in ordered
        if cell["outcome"] not in ("passed", "refused")
    ]
    return [*lines, *([""] if notes else []), *notes]


def _refusals(sources: dict[str, dict[str, Any]]) -> list[str]:
    """Each refusal once, with the sources it is of."""
    found: dict[str, dict[str, list[str]]] = {target: {} for target in targets()}
    for name, cells in sources.items():
        for target, cell in cells.items():
            if cell["outcome"] == "refused":
                found[target].setdefault(_PREFIX.sub("", cell["reason"]), []).append(name)
    lines = [
        "",
        "## What is refused",
        "",
        "By target: what stands in the way; the route that exists; of which sources.",
    ]
    for target, reasons in found.items():
        if reasons:
            lines += ["", f"### To {target}", ""]
            lines += [f"- {_text(reason)} ({_listed(names)})" for reason, names in reasons.items()]
    return lines


def _listed(names: list[str]) -> str:
    """Sources by name, or `each of FAMILY` where all of a family are in."""
    told: list[str] = []
    for name in names:
        family = [source for source in SOURCES if source.split()[0] == name.split()[0]]
        whole = len(family) > 1 and set(family) <= set(names)
        told.append(f"each of {name.split()[0]}" if whole else name)
    return ", ".join(dict.fromkeys(told))


def _passed(cell: dict[str, Any]) -> str:
    if "max_rel" not in cell:
        return f"| | | {words.show_bytes(cell['bytes'])} | | | {_text(cell['route'])}"
    took = words.show_ms(cell["ms"]) if "ms" in cell else words.DASH
    numbers = [f"{cell['max_abs']:.2g}", f"{cell['max_rel']:.2g}", words.show_share(cell["labels"])]
    sizes = f"{cell['examples']} {'real' if cell['inputs'] == 'data' else 'made-up'}: {_text(cell['sizes'])}"
    return " | ".join([*numbers, words.show_bytes(cell["bytes"]), took, sizes, _text(cell["route"])])


def _text(text: str) -> str:
    text = re.sub(r"/(?:[\w.+-]+/)+", "", " ".join(text.split()))
    text = text.replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
    return text if len(text) <= _LONGEST else text[:_LONGEST].rsplit(" ", 1)[0] + " …"


def write() -> None:
    """Write the page from what has been measured."""
    host = describe_host()
    results = {name: load(name) for name in (*SOURCES, *CHECKS)}
    text = page(results, f"{host.cpu}, {host.cores} cores", _versions(), _toolchains())
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


def _versions() -> str:
    found: dict[str, str] = {}
    for name in BACKENDS:
        try:
            found |= BACKENDS.get(name)().versions()
        except MissingExtra:
            continue
    return ", ".join(f"{name} {version}" for name, version in found.items() if name != "python")


def _toolchains() -> str:
    """Those that are installed, for the page."""
    told = [f"`{one.name}` {one.versions[one.name]}" for one in toolchains.list_installed()]
    if not told:
        return ""
    return f"What takes a [toolchain](builder/toolchains.md) had it: {', '.join(told)}."


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*SOURCES, *CHECKS]
    parser.add_argument("sources", nargs="*", help=f"of {', '.join(every)}; all where none is named")
    parser.add_argument("--again", action="store_true", help="also cells that were filled before")
    parser.add_argument("--write", action="store_true", help="write docs/formats.md")
    parser.add_argument("--cells", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    unknown = set(given.sources) - set(every)
    if unknown:
        parser.error(f"no such source: {', '.join(sorted(unknown))}")
    if given.cells:
        name = given.sources[0]
        for cell in (run_check(name),) if name in CHECKS else run_source(name, given.cells.split(",")):
            print("cell " + json.dumps(cell), flush=True)
        return
    if given.sources or not given.write:
        measure(given.sources or every, again=given.again)
    if given.write:
        write()


if __name__ == "__main__":
    main()
