"""What a model's own folder says of it: ``model.toml``, or Triton's ``config.pbtxt``, and files of class names."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from salver.core.errors import InvalidArgument, TooLarge, UnknownName
from salver.core.registry import load
from salver.server.engine.config import ModelConfig, VersionPolicy

OWN_CONFIG: Final = "model.toml"
TRITON_CONFIG: Final = "config.pbtxt"
_MAX_BYTES: Final = 16 << 20

# protobuf is imported only where there is a configuration of Triton's.
_FROM_TEXT: Final = "salver.server.engine._pbtxt:read_text"
_FROM_JSON: Final = "salver.server.engine._pbtxt:read_json"
_ONLY_VERSIONS: Final = {"version_policy", "versionPolicy"}
_NOT_IN_FILE: Final = ("ignored", "inputs", "outputs")


class Told(msgspec.Struct, frozen=True):
    """What a model's folder says.

    Args:
        config: all but files' contents.
        asked: what came with a load request, and stands above the server's settings.
        class_names: output -> names of its classes, in order.
    """

    config: ModelConfig = ModelConfig()
    asked: ModelConfig = ModelConfig()
    class_names: dict[str, tuple[str, ...]] = {}


def read_folder(folder: Path, name: str, override: Mapping[str, Any] | None = None) -> Told:
    """Read a model's folder. ``model.toml`` stands in for ``config.pbtxt`` where there are both.

    Args:
        folder: of a model; a single file has no configuration.
        name: under which it is served.
        override: Triton's model configuration in JSON, in place of the file's. One that says nothing but which
            versions are served leaves the rest to the file.

    Raises:
        InvalidArgument: a file that cannot be read, or says what cannot be.
        UnknownName: a field that does not exist; the nearest is offered.
    """
    asked = _read_triton(_FROM_JSON, override, name) if override else ModelConfig()
    if override is not None and not override.keys() <= _ONLY_VERSIONS:
        config = asked
    elif (own := folder / OWN_CONFIG).is_file():
        config = _read_toml(own)
    elif (foreign := folder / TRITON_CONFIG).is_file():
        config = _read_triton(_FROM_TEXT, _read(foreign), str(foreign), name)
    else:
        config = ModelConfig()
    names = {output: _read_lines(folder, file) for output, file in config.label_files.items()}
    return Told(config, asked, names)


def _read_triton(reader: str, *given: Any) -> ModelConfig:
    read: Callable[..., ModelConfig] = load(reader)
    return read(*given)


def _read_toml(path: Path) -> ModelConfig:
    try:
        data = tomllib.loads(_read(path))
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"'{path}': {error}") from None
    known = [name for name in ModelConfig.__struct_fields__ if name not in _NOT_IN_FILE]
    for name in data:
        if name not in known:
            raise UnknownName(f"field in '{path}'", name, known)
    try:
        versions = data.pop("versions", None)
        config = msgspec.convert(data, ModelConfig)
        policy = None if versions is None else VersionPolicy.parse(str(versions))
    except (msgspec.ValidationError, InvalidArgument) as error:
        raise InvalidArgument(f"'{path}': {error}") from None
    return msgspec.structs.replace(config, versions=policy)


def _read_lines(folder: Path, name: str) -> tuple[str, ...]:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidArgument(f"the label file '{name}' is not in the model's folder '{folder}'")
    return tuple(line.strip() for line in _read(path).splitlines())


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise TooLarge(f"'{path}' has {path.stat().st_size} bytes; a configuration has at most {_MAX_BYTES}")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"'{path}' cannot be read: {error}") from None
