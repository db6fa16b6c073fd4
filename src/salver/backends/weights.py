"""Files that are made once from a model, for all processes of a user to map: by whoever comes first, checked by all."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from salver.core.errors import CorruptArtifact, FailedPrecondition
from salver.core.model import digest_file

_SUMS: Final = "sums.json"
_UNUSED_S: Final = 30 * 86_400.0
_OTHERS_MAY_WRITE: Final = 0o022


class WeightStore:
    """A folder of folders, each named by everything that its content depends on. Used by several processes at once.

    Args:
        folder: made on first use, and writable to this user alone.

    Raises:
        FailedPrecondition: others may write to it, or it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            facts = folder.stat()
        except OSError as error:
            raise FailedPrecondition(f"'{folder}' cannot be used: {error.strerror}; set XDG_CACHE_HOME") from None
        if facts.st_uid != os.geteuid() or facts.st_mode & _OTHERS_MAY_WRITE:
            raise FailedPrecondition(f"'{folder}' belongs to, or is writable by, others, who could change models there")
        self._folder = folder

    def get(self, key: str, make: Callable[[Path], None]) -> Path:
        """The folder that ``make`` filled, by whichever process came first. Others wait for it.

        Args:
            key: a file name; names everything that the content depends on.
            make: writes files into a folder.

        Raises:
            CorruptArtifact: what was just written is not what is read.
            OSError: the disk is full. What else ``make`` raises is raised, too; nothing is left.
        """
        target = self._folder / key
        if not _is_whole(target):
            with self._alone():
                if not _is_whole(target):
                    self._fill(target, make)
        os.utime(target)
        return target

    def _fill(self, target: Path, make: Callable[[Path], None]) -> None:
        shutil.rmtree(target, ignore_errors=True)
        self._drop_unused()
        work = Path(tempfile.mkdtemp(prefix=".", dir=self._folder))
        try:
            make(work)
            sums = {path.name: digest_file(path) for path in sorted(work.iterdir())}
            (work / _SUMS).write_bytes(msgspec.json.encode(sums))
            work.rename(target)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        if not _is_whole(target):
            raise CorruptArtifact(f"'{target}' is not what was written to it")

    def _drop_unused(self) -> None:
        """Remove what nobody has used for a month, and what a process left that was killed while it wrote."""
        until_s = time.time() - _UNUSED_S
        for path in self._folder.iterdir():
            if path.is_dir() and (path.name.startswith(".") or path.stat().st_mtime < until_s):
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self._folder / "lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _is_whole(folder: Path) -> bool:
    """Whether a folder holds what was written to it."""
    try:
        sums = msgspec.json.decode((folder / _SUMS).read_bytes(), type=dict[str, str])
        return all(digest_file(folder / name) == digest for name, digest in sums.items())
    except (OSError, msgspec.DecodeError):
        return False
