"""Tracing takes one way through the code for all ways: look for inputs that take another."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import numpy as np

from salver.backends import open_session
from salver.builder.importers.onnx_finish import Draft
from salver.builder.importers.parity import certify
from salver.builder.importers.probes import Probe
from salver.core.arrays import Array
from salver.core.errors import ParityFailed, SalverError
from salver.core.model import Model


def compare_elsewhere(made: Model, draft: Draft) -> None:
    """Compare with the original on inputs unlike those it was exported with; those it refuses are left out.

    Raises:
        ParityFailed: the answers differ on them.
    """
    batched = draft.leading.batched and draft.leading.fixed is None
    with open_session(made) as session:
        for what, probe in _elsewhere(draft.probe):
            try:
                draft.original(probe.inputs)
                certify(
                    draft.original,
                    session.run,
                    probe,
                    (probe.rows, 1) if batched else (0,),
                    described=draft.described,
                    specs=made.signature.outputs,
                    tolerance=draft.options.tolerance,
                )
            except ParityFailed as error:
                raise ParityFailed(f"on inputs {what}: {error}") from None
            except SalverError:
                continue


def _elsewhere(probe: Probe) -> Iterator[tuple[str, Probe]]:
    changes: dict[str, Callable[[Array], Array]] = {
        "of the other sign": lambda a: np.negative(a) if a.dtype.kind == "f" else a,
        "ten times as large": lambda a: a * 10 if a.dtype.kind == "f" else a,
        "of zeros": np.zeros_like,
        "in reverse order": lambda a: a[..., ::-1].copy() if a.ndim else a,
    }
    for what, change in changes.items():
        inputs = {name: change(array).astype(array.dtype) for name, array in probe.inputs.items()}
        yield what, msgspec.structs.replace(probe, inputs=inputs)
