"""Blobs as files in a folder, for runtimes that read nothing else: those that lie there already, or copies."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from salver.core.errors import CorruptArtifact, NotFound
from salver.core.model import Blob

_CHUNK_BYTES: Final = 1 << 20


class LaidOut:
    """A folder in which a model's files lie under the names they refer to each other by.

    Args:
        files: name relative to the folder, with forward slashes -> blob, the main one first. Where each is a whole file
            that lies so already, nothing is copied.

    Raises:
        NotFound: a blob's file is missing.
        CorruptArtifact: a name leads out of the folder, or what is copied is not what it was when the model was opened.
    """

    def __init__(self, files: Mapping[str, Blob]) -> None:
        for name, blob in files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or not path.parts or ".." in path.parts:
                raise CorruptArtifact(f"'{blob.path}': the name '{name}' leads out of the model's folder")
            if not blob.path.is_file():
                raise NotFound(f"no such model file: '{blob.path}'")
        self._copies: tempfile.TemporaryDirectory[str] | None = None
        main_name, main = next(iter(files.items()))
        home = main.path.parents[len(PurePosixPath(main_name).parts) - 1]
        if all(blob.is_whole_file and blob.path == home / name for name, blob in files.items()):
            self.folder = home
            return
        self._copies = tempfile.TemporaryDirectory(prefix="salver-model-")
        self.folder = Path(self._copies.name)
        try:
            for name, blob in files.items():
                _copy(blob, self.folder / name)
        except BaseException:
            self._copies.cleanup()
            raise

    def close(self) -> None:
        """Remove the copies, if any were made."""
        if self._copies is not None:
            self._copies.cleanup()


def _copy(blob: Blob, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    sha, left = hashlib.sha256(), blob.size_bytes
    with blob.path.open("rb") as source, target.open("wb") as out:
        source.seek(blob.offset)
        while left and (chunk := source.read(min(left, _CHUNK_BYTES))):
            out.write(chunk)
            sha.update(chunk)
            left -= len(chunk)
    if left:
        raise CorruptArtifact(f"'{blob.path}': '{blob.name}' is truncated")
    if f"sha256:{sha.hexdigest()}" != blob.digest:
        raise CorruptArtifact(f"'{blob.path}': '{blob.name}' has changed since the model was opened; open it again")
