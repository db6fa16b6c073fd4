"""Build a bundle from a real network and print the verdicts: what a user's `salver build` finds on this machine.

    python benchmarks/certify.py magika          # magika's file-type network on this machine's files
    python benchmarks/certify.py digits          # the digits network of the examples
    python benchmarks/certify.py magika --json   # for scripts

Nothing but the command line of the README is run; the network's package only lends its model file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def run(*command: object) -> str:
    """Run a program, showing its progress; its standard output."""
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def prepare(name: str, folder: Path) -> tuple[Path, Path, Path]:
    """Model, validation examples and labels of a benchmark."""
    if name == "digits":
        home = ROOT / "examples" / "digits"
        return home / "digits.onnx", home / "val.npz", home / "labels.txt"
    found = importlib.util.find_spec("magika")
    if found is None or found.origin is None:
        sys.exit("magika is not installed: pip install --no-deps magika")
    model = next(Path(found.origin).parent.rglob("*.onnx"))
    data, labels = folder / "val.npz", folder / "labels.txt"
    run(sys.executable, ROOT / "benchmarks" / "magika_data.py", "--out", data, "--labels", labels)
    return model, data, labels


def build(name: str, budget: str, cache: Path | None) -> dict[str, Any]:
    """Build and give the evaluation that the bundle holds."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model, data, labels = prepare(name, folder)
        target = folder / f"{name}.salver"
        where = ["--cache", cache if cache is not None else folder / "cache"]
        settings = ["--max-drop", "1pp", "--threads", "1", "--batch", "1", "--budget", budget, "--labels", labels]
        began = time.monotonic()
        run(sys.executable, "-m", "salver", "build", model, "--data", data, *settings, *where, "-o", target)
        seconds = time.monotonic() - began
        shown: dict[str, Any] = json.loads(run(sys.executable, "-m", "salver", "inspect", target, "--json"))
    return {"seconds": seconds, **shown["evaluation"]}


def table(record: dict[str, Any]) -> str:
    """The candidates as a Markdown table, in the order tried."""
    lines = ["| candidate | speed-up | size | quality | verdict |", "|---|---|---|---|---|"]
    for candidate in record["candidates"]:
        measured = candidate.get("evaluation")
        cells = ["", "", ""]
        if measured:
            timed = measured["latency"][0]
            ratio = measured["baseline_size_bytes"] / measured["size_bytes"]
            size = f"{ratio:.2f}x smaller" if ratio > 1 else f"{1 / ratio:.2f}x larger" if ratio < 1 else "same"
            quality = (measured["certify"] or measured["steer"])[0]
            cells = [
                f"{timed['speedup']:.2f}x ({timed['speedup_ci']['low']:.2f}-{timed['speedup_ci']['high']:.2f})",
                size,
                f"{quality['value']:.4f} ({quality.get('role', 'steer')}, n={quality['examples']})",
            ]
        name = f"**{candidate['name']}**" if candidate["name"] == record["chosen"] else candidate["name"]
        verdict = candidate["verdict"]
        lines.append(f"| {name} | {' | '.join(cells)} | {verdict['outcome']}: {verdict['reason']} |")
    return "\n".join(lines)


def main() -> None:
    """Build one benchmark and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("magika", "digits"))
    parser.add_argument("--budget", default="5m", help="wall time for the search (default: %(default)s)")
    parser.add_argument("--cache", type=Path, help="keep trials here, to resume; default: a folder that is thrown away")
    parser.add_argument("--json", action="store_true", help="print the whole evaluation as JSON")
    arguments = parser.parse_args()
    record = build(arguments.name, arguments.budget, arguments.cache)
    if arguments.json:
        print(json.dumps(record))
        return
    print(table(record))
    print("\n" + "\n".join(f"- {reason}" for reason in record["why"]))
    print(f"- {record['seconds']:.0f} s, of which the search may use {arguments.budget}.")


if __name__ == "__main__":
    main()
