"""What the sources hold now: bundles, bare ONNX files, and folders ``<name>/<version>/{model.onnx, *.salver}``."""

from __future__ import annotations

import logging
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from salver.backends import find_backend, runs_apart
from salver.bundle import Bundle
from salver.core.errors import AlreadyExists, InvalidArgument, NotFound, SalverError, Unavailable
from salver.core.model import Blob, Model, Step
from salver.server.engine.config import is_version
from salver.server.engine.folder import OWN_CONFIG, TRITON_CONFIG
from salver.server.settings import ServeSettings

BUNDLE_SUFFIX: Final = ".salver"
RAW_SUFFIX: Final = ".onnx"
FIRST_VERSION: Final = "1"

_LOG = logging.getLogger(__name__)
_MAX_NAME: Final = 255
_NAME: Final = re.compile(r"[^\s/\\?#%\x00-\x1f]+")

Stamp = tuple[tuple[str, int, int, int], ...]
"""Path, size, time of change and inode of files: equal while nobody wrote to them."""


class Shelf(msgspec.Struct, frozen=True, kw_only=True):
    """What the sources hold of one model.

    Args:
        name: under which it is served.
        origin: the file or folder it comes from.
        files: version -> a bundle or an ONNX file; versions are numbers, as text, lowest first.
        stamps: version -> of all that stands in its folder.
        empty: versions whose folder holds no model (yet).
        settings: the folder's own files: what its configuration is read from; empty for a single file.
        left_out: folders whose names are no version.
        fault: why it cannot be served at all; None where it may.
    """

    name: str
    origin: Path
    files: dict[str, Path] = {}
    stamps: dict[str, Stamp] = {}
    empty: tuple[str, ...] = ()
    settings: Stamp = ()
    left_out: tuple[Path, ...] = ()
    fault: SalverError | None = None

    @property
    def stamp(self) -> tuple[object, ...]:
        """Equal between two looks while nothing changed."""
        return self.settings, tuple(self.stamps.items()), self.empty, self.fault is None


class Sources:
    """The files and folders a server was told to serve.

    Args:
        sources: files, or folders of models.
        name: the model's name, where there is one source and it is a file.
        named: name -> file, or folder of versions.

    Raises:
        InvalidArgument: a name that fits no source.
    """

    def __init__(self, sources: Iterable[str] = (), name: str = "", named: Mapping[str, str] | None = None) -> None:
        self._paths = [Path(source) for source in sources]
        self._name = name
        self._named = {own: Path(source) for own, source in (named or {}).items()}
        self._names: dict[Path, tuple[Stamp, str]] = {}
        if name and (len(self._paths) != 1 or self._paths[0].is_dir()):
            what = f"the folder '{self._paths[0]}'" if len(self._paths) == 1 else f"{len(self._paths)} sources"
            raise InvalidArgument(f"name '{name}' was given for {what}; it names one file")

    @classmethod
    def of(cls, settings: ServeSettings) -> Sources:
        """Those of a server."""
        named = {name: model.source for name, model in settings.models.items() if model.source}
        return cls(settings.sources, settings.name, named)

    def check(self, *, may_be_empty: bool = False) -> None:
        """Look at names of files only, and refuse what can never be served.

        Args:
            may_be_empty: whether models may come later.

        Raises:
            NotFound: a source does not exist, or a folder holds no model.
            InvalidArgument: a file of another kind, an ambiguous folder, or a name that does not fit.
            AlreadyExists: two sources claim the same name.
        """
        shelves = self._scan()
        for path in [path for shelf in shelves for path in shelf.left_out]:
            _LOG.warning("'%s' is no version (a number without leading zeros) and was left out", path)
        names = [shelf.name for shelf in shelves if shelf.name]
        for shelf in shelves:
            if names.count(shelf.name) > 1:
                raise _claimed_twice(shelf, next(s for s in shelves if s.name == shelf.name and s is not shelf))
        faults = [shelf.fault for shelf in shelves if shelf.fault is not None]
        if faults and len(faults) == len(shelves):
            raise faults[0]
        if not shelves and not may_be_empty:
            if self._paths or self._named:
                root = next(iter((*self._paths, *self._named.values())))
                raise NotFound(f"'{root}' holds no model; expected {root}/<name>/<version>/model.onnx or *.salver")
            raise InvalidArgument("nothing to serve: name a bundle, an ONNX file, or a folder of models")

    def look(self) -> dict[str, Shelf]:
        """All models by name. Opens bundles that it does not know, for their names: call it on a thread.

        Raises:
            NotFound: a source does not exist (any more).
            Unavailable: a folder cannot be read, or went away meanwhile.
        """
        found: dict[str, Shelf] = {}
        for shelf in self._scan():
            name = shelf.name or self._read_name(shelf)
            first = found.get(name)
            if first is not None:
                name = shelf.origin.stem if shelf.origin.stem not in found else str(shelf.origin)
                shelf = msgspec.structs.replace(shelf, fault=_claimed_twice(shelf, first))
            found[name] = msgspec.structs.replace(shelf, name=name)
        return found

    def _scan(self) -> list[Shelf]:
        try:
            return list(self._read_all())
        except OSError as error:
            raise Unavailable(f"the sources cannot be read: {error}") from None

    def _read_all(self) -> Iterator[Shelf]:
        for path in self._paths:
            if path.is_dir():
                yield from (_read_versions(folder, folder.name) for folder in _folders(path))
            else:
                yield _read_file(path, self._name)
        for own, path in self._named.items():
            yield _read_versions(path, own) if path.is_dir() else _read_file(path, own)

    def _read_name(self, shelf: Shelf) -> str:
        """The name in a bundle; its file's where it cannot be opened."""
        stamp = shelf.stamps[FIRST_VERSION]
        known = self._names.get(shelf.origin)
        if known is None or known[0] != stamp:
            try:
                name = Bundle.open(shelf.origin).name
            except SalverError:  # loading it will say why
                name = shelf.origin.stem
            known = self._names[shelf.origin] = (stamp, name)
        return known[1]


def open_model(path: Path, name: str) -> Bundle:
    """Open a bundle, or wrap a bare file as an untested one.

    Raises:
        CorruptArtifact, Unimplemented: the file is damaged, or no backend runs it.
    """
    if path.suffix == BUNDLE_SUFFIX:
        return Bundle.open(path)
    blob = Blob.of(path)
    model = Model(
        format="onnx",
        signature=find_backend("onnx").describe(blob),
        blobs=(blob,),
        lineage=(Step(action="source", name=path.name, output_digest=blob.digest),),
    )
    return Bundle.wrap(model, name, "served from a bare model file: it was never built, evaluated or sealed")


def needs_process(path: Path) -> bool:
    """Whether a model gets a process of its own: see `runs_apart`. One that cannot be opened does not."""
    if path.suffix != BUNDLE_SUFFIX:
        return False
    try:
        return runs_apart(Bundle.open(path).model.format)
    except SalverError:  # loading it will say why
        return False


def any_needs_process(settings: ServeSettings) -> bool:
    """Whether a server is told to serve a model that gets a process of its own. What cannot be read is left."""
    try:
        shelves = Sources.of(settings).look().values()
    except SalverError:  # starting will say why
        return False
    return any(needs_process(path) for shelf in shelves for path in shelf.files.values())


def shelve(folder: Path, name: str) -> Shelf:
    """The versions in a folder. What is wrong with it is its fault, not an error."""
    return _read_versions(folder, name)


def stamp_of(shelf: Shelf, version: str) -> Stamp | None:
    """The stamp that a version has now; the shelf's own while nobody wrote to its files."""
    path = shelf.files.get(version)
    if path is None:
        return None
    return _stamp([path]) if path == shelf.origin else _stamp_folder(path.parent)


def _claimed_twice(shelf: Shelf, first: Shelf) -> AlreadyExists:
    return AlreadyExists(f"model '{first.name}' is given twice: '{first.origin}' and '{shelf.origin}'; rename one")


def check_name(name: str) -> None:
    """Refuse what cannot be a model's name.

    Raises:
        InvalidArgument: it would not fit in a URL, or is too long for one.
    """
    if not _NAME.fullmatch(name) or name in (".", "..") or len(name) > _MAX_NAME:
        raise InvalidArgument(
            f"'{name[:_MAX_NAME]}' cannot be a model's name: white space and / \\ ? # % do not fit in a URL, nor do "
            f"'.', '..' and names of more than {_MAX_NAME} characters"
        )


def _fault_of_name(name: str) -> SalverError | None:
    try:
        check_name(name or FIRST_VERSION)
    except InvalidArgument as error:
        return error
    return None


def _read_file(path: Path, name: str) -> Shelf:
    if not path.is_file():
        raise NotFound(f"no such file or folder: '{path}'")
    if path.suffix not in (BUNDLE_SUFFIX, RAW_SUFFIX):
        raise InvalidArgument(
            f"'{path}' is neither a bundle ({BUNDLE_SUFFIX}) nor an ONNX model ({RAW_SUFFIX}); make one with "
            "'salver build'"
        )
    name = name or ("" if path.suffix == BUNDLE_SUFFIX else path.stem)
    return Shelf(
        name=name,
        origin=path,
        files={FIRST_VERSION: path},
        stamps={FIRST_VERSION: _stamp([path])},
        fault=_fault_of_name(name),
    )


def _read_versions(folder: Path, name: str) -> Shelf:
    files: dict[str, Path] = {}
    empty: list[str] = []
    fault = _fault_of_name(name)
    children = _folders(folder)
    versions = [child for child in children if is_version(child.name)]
    for child in sorted(versions, key=lambda child: int(child.name)):
        found = _find_models(child)
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            fault = InvalidArgument(f"'{child}' holds several models ({names}); keep one, or name it model.onnx")
        elif found:
            files[child.name] = found[0]
        else:
            empty.append(child.name)
    own = _stamp(path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
    if fault is None and not files and not any((folder / name).is_file() for name in (OWN_CONFIG, TRITON_CONFIG)):
        lacks = f"'{folder / empty[0]}' holds no model" if empty else f"'{folder}' holds no version"
        fault = NotFound(f"{lacks}; expected {folder}/<number>/model.onnx or *.salver")
    return Shelf(
        name=name,
        origin=folder,
        files=files,
        stamps={version: _stamp_folder(path.parent) for version, path in files.items()},
        empty=tuple(empty),
        settings=own,
        left_out=tuple(child for child in children if child not in versions),
        fault=fault,
    )


def _find_models(folder: Path) -> list[Path]:
    if (usual := folder / "model.onnx").is_file():
        return [usual]
    return sorted(p for p in folder.iterdir() if p.suffix in (BUNDLE_SUFFIX, RAW_SUFFIX) and p.is_file())


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "_")))


def _stamp_folder(folder: Path) -> Stamp:
    return _stamp(sorted(folder.rglob("*")))


def _stamp(paths: Iterable[Path]) -> Stamp:
    """Of the regular files among paths; one that went away meanwhile is left out."""
    found = []
    for path in paths:
        try:
            facts = path.stat()
        except FileNotFoundError:
            continue
        if stat.S_ISREG(facts.st_mode):
            found.append((str(path), facts.st_size, facts.st_mtime_ns, facts.st_ino))
    return tuple(found)
