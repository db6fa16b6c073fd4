"""Recorded runs of the original: how they are stored, and what comes of running them again.

The limit of a replay is twice the certificate's tolerance: once for the crossing, once for another machine, on which
the same model may round otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from salver.backends.base import Session
from salver.bundle.tensors import TensorEntry, decode_array, encode_array
from salver.core.arrays import Array, array_bytes
from salver.core.errors import CorruptArtifact, SalverError, format_shape
from salver.core.tensors import to_datatype
from salver.evaluation.parity import (
    OutputParity,
    ParityCertificate,
    ParityReplay,
    Recording,
    compare_output,
    find_ties,
    join_parity,
)

_MACHINES: Final = 2.0


class RecordingEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One recorded run; the tensors of ``inputs`` come first."""

    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]


def encode_parity(certificate: ParityCertificate) -> tuple[dict[str, Any], bytes]:
    """The certificate as plain data, its arrays as one run of bytes."""
    chunks: list[bytes] = []

    def add(arrays: Mapping[str, Array]) -> tuple[TensorEntry, ...]:
        entries = []
        for name, array in arrays.items():
            raw = encode_array(array)
            chunks.append(raw)
            datatype = to_datatype(array.dtype)
            entries.append(TensorEntry(name=name, datatype=datatype, shape=array.shape, size_bytes=len(raw)))
        return tuple(entries)

    recorded = [RecordingEntry(inputs=add(r.inputs), outputs=add(r.outputs)) for r in certificate.recorded]
    plain: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(certificate, recorded=()))
    if recorded:
        plain["recorded"] = msgspec.to_builtins(recorded)
    return plain, b"".join(chunks)


def describe_parity(certificate: ParityCertificate | None) -> dict[str, Any] | None:
    """The certificate as plain data, with the sizes of what it recorded in the place of the arrays."""
    if certificate is None:
        return None
    plain: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(certificate, recorded=()))
    sizes = [sum(map(array_bytes, (*r.inputs.values(), *r.outputs.values()))) for r in certificate.recorded]
    return {**plain, "recorded": {"runs": len(sizes), "bytes": sum(sizes)}}


def decode_parity(certificate: bytes, blob: bytes) -> ParityCertificate:
    """The certificate of `encode_parity`; the arrays are copies.

    Raises:
        CorruptArtifact: it cannot be read, or the arrays are not those it lists.
    """
    try:
        plain = msgspec.json.decode(certificate, type=dict[str, Any])
        entries = msgspec.convert(plain.pop("recorded", []), tuple[RecordingEntry, ...])
        made = msgspec.convert(plain, ParityCertificate)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptArtifact(f"the parity certificate cannot be read: {error}") from None
    position = 0

    def take(tensors: tuple[TensorEntry, ...]) -> dict[str, Array]:
        nonlocal position
        arrays = {}
        for entry in tensors:
            arrays[entry.name] = decode_array(blob[position : position + entry.size_bytes], entry)
            position += entry.size_bytes
        return arrays

    recorded = tuple(Recording(inputs=take(entry.inputs), outputs=take(entry.outputs)) for entry in entries)
    if position != len(blob):
        raise CorruptArtifact(f"the recorded runs' tensors are {len(blob)} bytes, their list says {position}")
    return msgspec.structs.replace(made, recorded=recorded)


def replay_parity(session: Session, certificate: ParityCertificate, tolerance: float | None = None) -> ParityReplay:
    """Run the recorded inputs on a session and say how far its outputs are from the original's. A model that refuses
    them is a failure, not an error.

    Args:
        tolerance: the limit; None takes twice the certificate's.
    """
    limit = _MACHINES * certificate.tolerance if tolerance is None else tolerance
    failures: list[str] = []
    found: dict[str, OutputParity] = {}
    for expected, given in _join(_run_all(session, certificate.recorded, failures)):
        ties = find_ties(expected, limit)
        for name, wanted in expected.items():
            datatype = session.signature.output(name).datatype
            if wanted.shape != given[name].shape:
                shapes = [format_shape(array.shape) for array in (wanted, given[name])]
                failures.append(f"output '{name}': the original gives shape {shapes[0]}, the model {shapes[1]}")
                continue
            here, failure = compare_output(name, wanted, given[name], datatype, limit, ties)
            failures += [failure] if failure else []
            found[name] = join_parity(found[name], here) if name in found else here
    judged = not certificate.changed_by
    unusable = not found
    return ParityReplay(
        runs=len(certificate.recorded),
        outputs=tuple(found.values()),
        judged_by="tolerance" if judged else "quality",
        limit=limit,
        changed_by=certificate.changed_by,
        failures=tuple(failures) if judged or unusable else (),
    )


Pair = tuple[dict[str, Array], dict[str, Array]]


def _run_all(session: Session, recorded: Sequence[Recording], failures: list[str]) -> list[Pair]:
    pairs: list[Pair] = []
    for number, run in enumerate(recorded, 1):
        try:
            dtypes = {name: session.signature.input(name).dtype for name in run.inputs}
            inputs = {name: array.astype(dtypes[name], copy=False) for name, array in run.inputs.items()}
            pairs.append((run.outputs, session.run(inputs, list(run.outputs))))
        except SalverError as error:
            failures.append(f"recorded run {number} of the original cannot be repeated: {error.message}")
    return pairs


def _join(pairs: Sequence[Pair]) -> list[Pair]:
    """Runs whose rows have the same shape, as one: what is noise is found by looking at many rows."""
    groups: dict[tuple[Any, ...], list[Pair]] = {}
    for number, pair in enumerate(pairs):
        arrays = [array for side in pair for array in side.values()]
        aligned = len({array.shape[:1] for array in arrays}) == 1 and all(array.ndim for array in arrays)
        key = tuple(array.shape[1:] for array in arrays) if aligned else (number,)
        groups.setdefault(key, []).append(pair)
    return [(_concat([e for e, _ in group]), _concat([g for _, g in group])) for group in groups.values()]


def _concat(sides: Sequence[dict[str, Array]]) -> dict[str, Array]:
    if len(sides) == 1:
        return sides[0]
    return {name: np.concatenate([side[name] for side in sides]) for name in sides[0]}
