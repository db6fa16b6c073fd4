"""A trained model in one format: content-addressed, immutable, with its lineage."""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path
from typing import Any, Final

import msgspec

from salver.core.errors import CorruptArtifact, NotFound
from salver.core.tensors import Signature

_CHUNK_BYTES: Final = 1 << 20


def digest_file(path: Path) -> str:
    """``sha256:<hex>`` of a file, read in chunks."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha.update(chunk)
    return f"sha256:{sha.hexdigest()}"


def digest_bytes(data: bytes | memoryview) -> str:
    """``sha256:<hex>`` of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """A run of bytes in a file: a whole file, or one member of a bundle.

    Args:
        name: the file name by which a model refers to it (external data is found by this name).
        path: the file that holds it.
        offset: where it begins in that file, in bytes.
        size_bytes: its length.
        digest: ``sha256:<hex>`` of its content.
    """

    name: str
    path: Path
    size_bytes: int
    digest: str
    offset: int = 0

    @classmethod
    def of(cls, path: Path, name: str | None = None) -> Blob:
        """Describe a whole file.

        Raises:
            NotFound: there is no such file.
        """
        if not path.is_file():
            raise NotFound(f"no such file: '{path}'")
        return cls(name=name or path.name, path=path, size_bytes=path.stat().st_size, digest=digest_file(path))

    def read(self) -> bytes:
        """The content, in memory."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size_bytes)
        if len(data) != self.size_bytes:
            raise CorruptArtifact(f"'{self.path}': '{self.name}' is truncated ({len(data)} of {self.size_bytes} bytes)")
        return data

    def map(self) -> memoryview:
        """The content, memory-mapped and read-only; the mapping lives as long as the view."""
        if self.size_bytes == 0:
            return memoryview(b"")
        with self.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(mapped) < self.offset + self.size_bytes:
            raise CorruptArtifact(f"'{self.path}': '{self.name}' is truncated")
        return memoryview(mapped)[self.offset : self.offset + self.size_bytes]

    @property
    def is_whole_file(self) -> bool:
        """Whether the blob is exactly one file, so that a runtime may be given its path."""
        return self.offset == 0 and self.path.is_file() and self.path.stat().st_size == self.size_bytes


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step of a model's lineage: what was done, with what settings, by which tool, to which input.

    Args:
        action: ``source``, ``import`` or ``pass``; ``data`` for examples that took part in a build.
        name: file name of a source; name of the importer or pass; role and file name of examples.
        input_digest, output_digest: digests of the main blob before and after; ``output_digest`` of examples is theirs.
        config: the member's config as plain data.
        tools: name -> version of every library that took part.
    """

    action: str
    name: str
    output_digest: str
    input_digest: str = ""
    config: dict[str, Any] = {}
    tools: dict[str, str] = {}


class Processing(msgspec.Struct, frozen=True, kw_only=True):
    """Declared steps before and after a graph, so that clients send and get what people have at hand.

    Args:
        before, after: one mapping per step, in order: ``step`` is its name in the `processing` family, the rest its
            config as plain data.
        outputs: outputs that clients get, in order; empty for what the steps make and what they leave alone.
        files: what the steps read (a tokenizer, a list of labels), found by name.
        signature: what clients send and get.
    """

    before: tuple[dict[str, Any], ...]
    after: tuple[dict[str, Any], ...]
    outputs: tuple[str, ...]
    files: tuple[Blob, ...]
    signature: Signature

    @property
    def digest(self) -> str:
        """Digest of the steps and of all that they read."""
        said = [self.before, self.after, self.outputs, self.signature, [(b.name, b.digest) for b in self.files]]
        return digest_bytes(msgspec.json.encode(said, order="sorted"))


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A graph in one format, its signature and its lineage.

    Args:
        format: ``onnx``, later others; names the backends that can run it.
        signature: inputs and outputs of the graph.
        blobs: the main file first, then external data, which the main file finds by name.
        lineage: what led here, oldest first.
        notes: facts an importer found that a user should know ("batch dimension is fixed at 1").
        processing: steps around the graph; None where clients send and get its own tensors.
        trusted: whether its user trusts who made it, so that code that comes with it may be run. Said anew wherever a
            model is opened: no file says it of itself.
        distrust: why a key that its user trusts does not vouch for it; empty where none was tried.
    """

    format: str
    signature: Signature
    blobs: tuple[Blob, ...]
    lineage: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()
    processing: Processing | None = None
    trusted: bool = False
    distrust: str = ""

    @property
    def served(self) -> Signature:
        """What clients send and get: the graph's own signature, or that of the steps around it."""
        return self.signature if self.processing is None else self.processing.signature

    @property
    def path(self) -> Path:
        """The main file."""
        return self.blobs[0].path

    @property
    def digest(self) -> str:
        """Digest of the main blob; of all of them where there is external data."""
        if len(self.blobs) == 1:
            return self.blobs[0].digest
        return digest_bytes("\n".join(f"{b.name} {b.digest}" for b in self.blobs).encode())

    @property
    def size_bytes(self) -> int:
        """Size of the model blobs together, in bytes."""
        return sum(b.size_bytes for b in self.blobs)
