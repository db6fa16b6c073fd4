"""What the user named, as models to load: bundles, bare ONNX files, and folders ``<name>/<version>/model.onnx``."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from salver.backends import find_backend
from salver.bundle import Bundle
from salver.core.errors import AlreadyExists, InvalidArgument, NotFound
from salver.core.model import Blob, Model, Step

BUNDLE_SUFFIX: Final = ".salver"
RAW_SUFFIX: Final = ".onnx"
FIRST_VERSION: Final = "1"

_LOG = logging.getLogger(__name__)
_NAME: Final = re.compile(r"[^\s/\\?#%\x00-\x1f]+")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a model to load.

    Args:
        path: a bundle or an ONNX file.
        name: under which it is served; empty to take the bundle's own.
        version: a number, as text.
    """

    path: Path
    name: str
    version: str = FIRST_VERSION

    @property
    def title(self) -> str:
        """The name, or the file's until the bundle has been opened."""
        return self.name or self.path.stem


def discover(sources: Iterable[str], name: str = "", named: Mapping[str, str] | None = None) -> list[Entry]:
    """Find the models behind sources; looks at names of files only.

    Args:
        sources: files, or folders of models.
        name: the model's name, where there is one source and it is a file.
        named: name -> file, or folder of versions.

    Raises:
        NotFound: a source does not exist, or a folder holds no model.
        InvalidArgument: a file of another kind, an ambiguous folder, or a name that does not fit.
        AlreadyExists: two sources claim the same name and version.
    """
    paths = [Path(source) for source in sources]
    if name and (len(paths) != 1 or paths[0].is_dir()):
        what = f"the folder '{paths[0]}'" if len(paths) == 1 else f"{len(paths)} sources"
        raise InvalidArgument(f"name '{name}' was given for {what}; it names one file")
    entries: list[Entry] = []
    for path in paths:
        entries += _read_repository(path) if path.is_dir() else [_read_file(path, name)]
    for own, source in (named or {}).items():
        path = Path(source)
        entries += _read_versions(path, own) if path.is_dir() else [_read_file(path, own)]
    seen: dict[tuple[str, str], Path] = {}
    for entry in entries:
        if entry.name and not _NAME.fullmatch(entry.name):
            raise InvalidArgument(
                f"'{entry.name}' cannot be a model's name: white space and / \\ ? # % do not fit in a URL"
            )
        if entry.name and (first := seen.setdefault((entry.name, entry.version), entry.path)) is not entry.path:
            raise AlreadyExists(
                f"model '{entry.name}' version {entry.version} is given twice: '{first}' and '{entry.path}'; rename one"
            )
    if not entries:
        raise InvalidArgument("nothing to serve: name a bundle, an ONNX file, or a folder of models")
    return entries


def open_entry(entry: Entry) -> Bundle:
    """Open a bundle, or wrap a bare file as an untested one.

    Raises:
        CorruptArtifact, Unimplemented: the file is damaged, or no backend runs it.
    """
    if entry.path.suffix == BUNDLE_SUFFIX:
        return Bundle.open(entry.path)
    blob = Blob.of(entry.path)
    model = Model(
        format="onnx",
        signature=find_backend("onnx").describe(blob),
        blobs=(blob,),
        lineage=(Step(action="source", name=entry.path.name, output_digest=blob.digest),),
    )
    return Bundle.wrap(model, entry.name, "served from a bare model file: it was never built, evaluated or sealed")


def _read_file(path: Path, name: str) -> Entry:
    if not path.is_file():
        raise NotFound(f"no such file or folder: '{path}'")
    if path.suffix == BUNDLE_SUFFIX:
        return Entry(path=path, name=name)
    if path.suffix == RAW_SUFFIX:
        return Entry(path=path, name=name or path.stem)
    raise InvalidArgument(
        f"'{path}' is neither a bundle ({BUNDLE_SUFFIX}) nor an ONNX model ({RAW_SUFFIX}); make one with 'salver build'"
    )


def _read_repository(root: Path) -> list[Entry]:
    entries: list[Entry] = []
    for folder in _folders(root):
        entries += _read_versions(folder, folder.name)
    if not entries:
        raise NotFound(f"'{root}' holds no model; expected {root}/<name>/<version>/model.onnx or *.salver")
    return entries


def _read_versions(folder: Path, name: str) -> list[Entry]:
    entries = []
    for child in _folders(folder):
        if child.name.isdecimal() and child.name == str(int(child.name)):
            entries.append(Entry(path=_find_model(child), name=name, version=child.name))
        else:
            _LOG.warning("'%s' is no version (a number without leading zeros) and was left out", child)
    if not entries:
        raise NotFound(f"'{folder}' holds no version; expected {folder}/<number>/model.onnx or *.salver")
    return sorted(entries, key=lambda entry: int(entry.version))


def _find_model(folder: Path) -> Path:
    if (usual := folder / "model.onnx").is_file():
        return usual
    found = sorted(p for p in folder.iterdir() if p.suffix in (BUNDLE_SUFFIX, RAW_SUFFIX) and p.is_file())
    if not found:
        raise NotFound(f"'{folder}' holds no model; expected model.onnx or one *.salver")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InvalidArgument(f"'{folder}' holds several models ({names}); keep one, or name it model.onnx")
    return found[0]


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "_")))
