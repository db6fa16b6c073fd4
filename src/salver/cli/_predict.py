"""`salver predict`."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from rich.markup import escape

import salver
from salver.cli._output import print_json, print_rich, write_file
from salver.core.arrays import Array
from salver.core.tensors import TensorSpec
from salver.datasets import bind
from salver.evaluation.runner import RowRunner
from salver.processing import open_processed
from salver.processing.dataset import open_examples

_ROWS_SHOWN = 20
_ROWS_PER_RUN = 256


def run(
    bundle: str,
    input: str,
    *,
    trusted_key: Path | None = None,
    output: Path | None = None,
    json: bool = False,
) -> None:
    """Run all examples through the model, and print or write its outputs."""
    opened = salver.Bundle.open(bundle)
    if trusted_key is not None:
        opened.trust(trusted_key)
    answers = predict(opened, input)
    if output is not None:
        write_file(output, _npz(answers))
        print_rich(f"wrote {output}")
    elif json:
        print_json({"outputs": {name: array.tolist() for name, array in answers.items()}})
    else:
        print_rich(*(line for spec in opened.signature.outputs for line in _render(spec, answers[spec.name])))


def predict(bundle: salver.Bundle, source: str) -> dict[str, Array]:
    """Outputs ``[rows, ...]`` for all examples of a source, BF16 widened to FP32, one run per example where batch-mates
    could change the answers."""
    files = any(spec.binary for spec in bundle.signature.inputs)
    examples = bind(open_examples(source, files=files), bundle.signature)
    merge = bundle.record is not None and bool(bundle.record.hints.get("merge"))
    with open_processed(bundle.model) as session:
        runner = RowRunner(session)
        size = runner.batch or (_ROWS_PER_RUN if merge else 1)
        runs = [runner.run(batch.inputs, batch.rows) for batch in examples.batches(size)]
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


def _render(spec: TensorSpec, array: Array) -> list[str]:
    """The first rows of an output: the class and its score where the classes have names, else the values."""
    lines = [f"[bold]{escape(spec.name)}[/bold] {spec.datatype} {escape(str(list(array.shape)))}"]
    for number in range(min(len(array), _ROWS_SHOWN)):
        row = array[number, ...]
        if spec.labels and row.shape == (len(spec.labels),):
            best = int(np.argmax(row))
            text = f"{spec.labels[best]}  ({row[best]:.4g})"
        else:
            text = str(row) if row.ndim == 0 else np.array2string(row, threshold=10, precision=4)
        lines.append(f"{number:>6}  {escape(text)}")
    left = len(array) - _ROWS_SHOWN
    return [*lines, f"        and {left} more; --json or -o FILE.npz gives all"] if left > 0 else lines
