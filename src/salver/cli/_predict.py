"""`salver predict`."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape

import salver
from salver.bundle.golden import to_float
from salver.cli._output import print_json, print_rich, write_file
from salver.core.arrays import Array
from salver.core.tensors import TensorSpec
from salver.datasets import bind, open_dataset

_ROWS_SHOWN = 20


def run(bundle: str, input: str, *, output: Path | None = None, json: bool = False) -> None:
    """Run all examples through the model, and print or write its outputs."""
    opened = salver.Bundle.open(bundle)
    answers = predict(opened, input)
    if output is not None:
        write_file(output, _npz(answers))
        print_rich(f"wrote {output}")
    elif json:
        print_json({"outputs": {spec.name: _plain(spec, answers[spec.name]) for spec in opened.signature.outputs}})
    else:
        print_rich(*(line for spec in opened.signature.outputs for line in _render(spec, answers[spec.name])))


def predict(bundle: salver.Bundle, source: str) -> dict[str, Array]:
    """Outputs for all examples of a source, one run per example where batch-mates could change the answers."""
    examples = bind(open_dataset(source), bundle.signature)
    merge = bundle.record is not None and bool(bundle.record.hints.get("merge"))
    first = bundle.signature.inputs[0].shape[:1]
    fixed = first[0] if first and isinstance(first[0], int) else 1
    runs = [bundle.predict(batch.inputs) for batch in examples.batches(256 if merge else fixed)]
    return {name: np.concatenate([run[name] for run in runs]) for name in bundle.signature.output_names}


def _npz(arrays: dict[str, Array]) -> bytes:
    """An ``.npz`` file. `numpy.savez` would pickle strings, and trip over an output called ``file``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            plain = array.astype(np.str_) if array.dtype == object else array
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, plain, allow_pickle=False)
    return buffer.getvalue()


def _plain(spec: TensorSpec, array: Array) -> Any:
    return array.tolist() if spec.datatype != "BF16" else to_float(array, spec.datatype).tolist()


def _render(spec: TensorSpec, array: Array) -> list[str]:
    """The first rows of an output: the class and its score where the classes have names, else the values."""
    lines = [f"[bold]{escape(spec.name)}[/bold] {spec.datatype} {escape(str(list(array.shape)))}"]
    for number, row in enumerate(array[:_ROWS_SHOWN]):
        if spec.labels and row.shape == (len(spec.labels),):
            best = int(np.argmax(to_float(row, spec.datatype)))
            lines.append(f"{number:>6}  {escape(spec.labels[best])}  ({row[best]:.4g})")
        else:
            lines.append(f"{number:>6}  {escape(np.array2string(row, threshold=10, precision=4))}")
    left = len(array) - _ROWS_SHOWN
    return [*lines, f"        and {left} more; --json or -o FILE.npz gives all"] if left > 0 else lines
