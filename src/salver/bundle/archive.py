"""The tar that a bundle is: written one way only, so that every byte of it can be checked when it is read.

Only the subset of USTAR (POSIX.1-1988, https://www.gnu.org/software/tar/manual/html_node/Standard.html) that plain
files need: mode 0644, owner and time zero, no prefix, two zero blocks at the end and nothing after them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from salver.core.errors import (
    CorruptArtifact,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    SalverError,
    TooLarge,
)
from salver.core.model import Blob

BLOCK_BYTES: Final = 512
MAX_MEMBER_BYTES: Final = 8**11 - 1
"""What eleven octal digits can say: 8 GiB less one byte."""
MAX_MEMBERS: Final = 10_000
_CHUNK_BYTES: Final = 1 << 20
_END: Final = bytes(2 * BLOCK_BYTES)
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A file in the archive: where its content lies and what the content's digest is."""

    name: str
    offset: int
    size_bytes: int
    digest: str


def header(name: str, size_bytes: int) -> bytes:
    """The 512 header bytes of a member. ``name`` is ASCII of at most 100 characters."""
    block = bytearray(BLOCK_BYTES)
    encoded = name.encode("ascii")
    block[0 : len(encoded)] = encoded
    block[100:124] = b"0000644\0" + b"0000000\0" * 2
    block[124:148] = b"%011o\0" % size_bytes + b"00000000000\0"
    block[148:157] = b" " * 8 + b"0"
    block[257:265] = b"ustar\x0000"
    block[329:345] = b"0000000\0" * 2
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def write_archive(path: Path, members: Sequence[tuple[str, bytes | Blob]]) -> Path:
    """Write an archive to a new file in the folder of ``path`` and flush it to the disk.

    Args:
        path: where the archive is to stand in the end; not touched here.
        members: name and content, in order.

    Returns:
        The new file; the caller moves it with `publish`, or removes it.

    Raises:
        ResourceExhausted: the disk is full; nothing is left behind.
        NotFound, PermissionDenied: the folder is missing or may not be written.
        TooLarge: a member is over `MAX_MEMBER_BYTES`.
        FailedPrecondition: a file that is copied in has another digest than its `Blob` says.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    done = False
    try:
        with partial.open("xb") as out:
            for name, content in members:
                _write_member(out, name, content)
            out.write(_END)
            out.flush()
            os.fsync(out.fileno())
        done = True
    except OSError as error:
        raise translate(error, path) from error
    finally:
        if not done:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                partial.unlink(missing_ok=True)
    return partial


def publish(partial: Path, path: Path) -> None:
    """Put a finished file in its place, atomically; the folder entry is flushed too."""
    try:
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise translate(error, path) from error


def translate(error: OSError, path: Path) -> SalverError:
    """What an operating-system error means for the person who named ``path``."""
    if error.errno in _FULL:
        return ResourceExhausted(
            f"'{path}': the disk is full ({error.strerror}); free space in '{path.parent}' or write elsewhere"
        )
    if isinstance(error, FileNotFoundError):
        return NotFound(f"'{error.filename or path}': no such file or folder")
    if isinstance(error, PermissionError):
        return PermissionDenied(f"'{error.filename or path}': {error.strerror}")
    return FailedPrecondition(f"'{path}': {error.strerror or error}")


def scan(path: Path) -> list[Member]:
    """Read a whole archive, once, and check each byte that is not content.

    Returns:
        The members in order, with the digests of what was read.

    Raises:
        NotFound: there is no such file.
        CorruptArtifact: naming the member, or what stands after the end.
    """
    if not path.is_file():
        raise NotFound(f"no such bundle: '{path}'")
    try:
        with path.open("rb", buffering=0) as file:
            return list(_scan(path, file))
    except OSError as error:
        raise translate(error, path) from error


def _write_member(out: BinaryIO, name: str, content: bytes | Blob) -> None:
    size = len(content) if isinstance(content, bytes) else content.size_bytes
    if size > MAX_MEMBER_BYTES:
        raise TooLarge(f"'{name}': {size} bytes; one file in a bundle holds at most {MAX_MEMBER_BYTES}. Split the data")
    out.write(header(name, size))
    if isinstance(content, bytes):
        out.write(content)
    else:
        _copy(out, content)
    out.write(bytes(-size % BLOCK_BYTES))


def _copy(out: BinaryIO, blob: Blob) -> None:
    sha = hashlib.sha256()
    left = blob.size_bytes
    with blob.path.open("rb") as source:
        source.seek(blob.offset)
        while left and (chunk := source.read(min(left, _CHUNK_BYTES))):
            sha.update(chunk)
            out.write(chunk)
            left -= len(chunk)
    if f"sha256:{sha.hexdigest()}" != blob.digest:
        raise FailedPrecondition(
            f"'{blob.path}': '{blob.name}' is not what it was when it was read ({blob.digest}); load the model again"
        )


def _scan(path: Path, file: BinaryIO) -> Iterator[Member]:
    total = os.fstat(file.fileno()).st_size
    position = 0
    names: set[str] = set()
    while True:
        block = _read(path, file, BLOCK_BYTES, "a header")
        if block == _END[:BLOCK_BYTES]:
            break
        name, size = _parse(path, block, position)
        if name in names:
            raise CorruptArtifact(f"'{path}': '{name}' stands in it twice")
        names.add(name)
        if len(names) > MAX_MEMBERS:
            raise CorruptArtifact(f"'{path}': more than {MAX_MEMBERS} files in it")
        position += BLOCK_BYTES
        if position + size > total:
            raise CorruptArtifact(f"'{path}' is truncated within '{name}' ({total} bytes in all)")
        yield Member(name=name, offset=position, size_bytes=size, digest=_hash(path, file, size, name))
        padding = -size % BLOCK_BYTES
        if _read(path, file, padding, f"the padding after '{name}'").strip(b"\0"):
            raise CorruptArtifact(f"'{path}': the padding after '{name}' is not zero")
        position += size + padding
    if _read(path, file, BLOCK_BYTES, "the end-of-archive mark") != _END[:BLOCK_BYTES]:
        raise CorruptArtifact(f"'{path}': the end-of-archive mark is damaged")
    extra = total - position - len(_END)
    if extra:
        raise CorruptArtifact(f"'{path}': {extra} bytes stand after the end of the archive")


def _parse(path: Path, block: bytes, position: int) -> tuple[str, int]:
    """Name and size of a header, refused unless it is, byte for byte, the one that `header` writes for them."""
    name = block[:100].split(b"\0", 1)[0].decode("ascii", "backslashreplace")
    if block[257:262] != b"ustar":
        if position == 0:
            raise CorruptArtifact(f"'{path}' is not a Salver bundle, or its beginning is damaged")
        raise CorruptArtifact(f"'{path}': the header at byte {position} is damaged")
    if block[156:157] != b"0":
        raise CorruptArtifact(
            f"'{path}': '{name}' is a link, a folder or a special file; a bundle holds plain files only"
        )
    if name.startswith("/") or ".." in name.split("/"):
        raise CorruptArtifact(f"'{path}': '{name}' points outside the bundle")
    digits = block[124:135]
    if digits.strip(b"01234567") or header(name, int(digits, 8)) != block:
        raise CorruptArtifact(f"'{path}': the header of '{name}' is damaged, or not written by Salver")
    return name, int(digits, 8)


def _read(path: Path, file: BinaryIO, size: int, what: str) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise CorruptArtifact(f"'{path}' is truncated within {what}")
    return data


def _hash(path: Path, file: BinaryIO, size: int, name: str) -> str:
    sha = hashlib.sha256()
    while size:
        chunk = _read(path, file, min(size, _CHUNK_BYTES), f"'{name}'")
        sha.update(chunk)
        size -= len(chunk)
    return f"sha256:{sha.hexdigest()}"
