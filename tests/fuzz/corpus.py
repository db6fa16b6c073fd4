"""Inputs worth keeping, in one small file for each target: gzip over inputs that each begin with a 4-byte length."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"


def pack(inputs: Iterable[bytes]) -> bytes:
    """One file of some inputs."""
    return gzip.compress(b"".join(len(data).to_bytes(4) + data for data in inputs), 9, mtime=0)


def unpack(packed: bytes) -> list[bytes]:
    """The inputs of a file."""
    data = gzip.decompress(packed)
    inputs = []
    at = 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4])
        inputs.append(data[at + 4 : end])
        at = end
    return inputs


def read(target: str) -> list[bytes]:
    """The corpus of a target."""
    path = FOLDER / f"{target}.gz"
    return unpack(path.read_bytes()) if path.exists() else []


def write(target: str, inputs: Iterable[bytes]) -> None:
    """Replace the corpus of a target."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{target}.gz").write_bytes(pack(inputs))
