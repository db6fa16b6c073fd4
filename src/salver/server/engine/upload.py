"""Files of a model that an administrator sent, laid out in a private folder like those of a repository."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from salver.core.errors import InvalidArgument, ResourceExhausted
from salver.server.engine.config import is_version

_FILE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")


def check_names(files: Mapping[str, bytes]) -> None:
    """Refuse names that are no ``<version>/<file>``.

    Raises:
        InvalidArgument: no file, or a name that would be written elsewhere.
    """
    if not files:
        raise InvalidArgument("no files were sent; expected '<version>/model.onnx'")
    for name in files:
        version, _, file = name.partition("/")
        if not is_version(version) or not _FILE.fullmatch(file):
            raise InvalidArgument(
                f"the file name '{name[:256]}' does not fit; expected '<version>/<file>', as in '1/model.onnx'"
            )


class Upload:
    """A folder ``<version>/<file>`` that only this user may read. It is removed by `close`.

    Args:
        files: as `check_names` admits them.

    Raises:
        InvalidArgument: as `check_names`.
        ResourceExhausted: there is no room for them.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        check_names(files)
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="salver-upload-")
        except OSError as error:
            raise _full(error) from None
        self.path = Path(self._folder.name)
        try:
            for name, content in files.items():
                path = self.path / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
        except OSError as error:
            self.close()
            raise _full(error) from None

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()


def _full(error: OSError) -> ResourceExhausted:
    return ResourceExhausted(f"the files that were sent cannot be kept: {error}")
