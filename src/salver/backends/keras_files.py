"""What a Keras file holds, told without Keras: code, custom layers, and sizes that no honest file declares. The only
file that imports h5py.

A `.keras` file is a zip of ``metadata.json``, ``config.json`` and ``model.weights.h5``; the older format is one HDF5
file whose attribute ``model_config`` is the configuration (https://keras.io/guides/serialization_and_saving/).
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from salver.core.errors import CorruptArtifact, MissingExtra, NotFound, PermissionDenied, TooLarge

try:
    import h5py
except ImportError as missing:
    raise MissingExtra("reading a Keras file", str(missing.name), "tensorflow") from None

ZIP_MAGIC: Final = b"PK\x03\x04"
H5_MAGIC: Final = b"\x89HDF\r\n\x1a\n"

_WEIGHTS: Final = "model.weights.h5"
_MOST_GROWTH: Final = 100
_HARMLESS_BYTES: Final = 64 << 20
_MOST_CONFIG_BYTES: Final = 64 << 20
_MOST_DEPTH: Final = 200
# Layers whose configuration carries code, or names files that are loaded and run.
_CODE: Final = frozenset({"Lambda", "__lambda__", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TFSMLayer"})
_KERAS_MODULE: Final = re.compile(
    r"keras(\.src)?(\.(activations|constraints|dtype_policies|initializers|layers|losses|metrics|models|ops|optimizers|"
    r"quantizers|random|regularizers|backend\.common\.keras_tensor)(\.\w+)*)?"
)
_TRAINING: Final = frozenset({"compile_config", "training_config"})


class KerasContents(msgspec.Struct, frozen=True, kw_only=True):
    """What a Keras file holds.

    Args:
        suffix: that of its format, ``.keras`` or ``.h5``, whatever the file is called.
        keras: the version that wrote it, empty where the file does not say.
        code: class names of layers that carry code.
        custom: names of classes and functions that are not Keras' own.
    """

    suffix: str
    keras: str
    code: tuple[str, ...]
    custom: tuple[str, ...]


def examine(path: Path, *, trusted: bool) -> KerasContents:
    """Read what a file declares, before anything of that size is allocated.

    Args:
        trusted: whether its user trusts who made it, so that layers that carry code may stand in it.

    Raises:
        NotFound: there is no such file.
        CorruptArtifact: no Keras file, truncated or damaged; or weights alone.
        TooLarge: it declares far more than it holds.
        PermissionDenied: it carries code, or reads other files.
    """
    if not path.is_file():
        raise NotFound(f"no such model file: '{path}'")
    with path.open("rb") as file:
        magic = file.read(len(H5_MAGIC))
    if magic.startswith(ZIP_MAGIC):
        suffix, (config, version) = ".keras", _read_zip(path)
    elif magic == H5_MAGIC:
        suffix, (config, version) = ".h5", _read_h5(path)
    else:
        raise CorruptArtifact(f"'{path}' is no Keras file: it begins neither as a .keras archive nor as HDF5")
    code: dict[str, None] = {}
    custom: dict[str, None] = {}
    for name, is_code in _walk(config, 0):
        (code if is_code else custom).setdefault(name)
    if code and not trusted:
        names = ", ".join(code)
        raise PermissionDenied(
            f"'{path}' holds {names}: code from the file, which loading it runs. If you trust who made it, say "
            "--trust-pickle (Python: trust_pickle=True); or replace such layers by Keras' own"
        )
    return KerasContents(suffix=suffix, keras=version, code=tuple(code), custom=tuple(custom))


def _read_zip(path: Path) -> tuple[Any, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            _check_growth(path, sum(sizes.values()))
            for name in ("config.json", _WEIGHTS):
                if name not in sizes:
                    raise CorruptArtifact(
                        f"'{path}' is no .keras file: '{name}' is not in it; save the whole model with model.save()"
                    )
            if sizes["config.json"] > _MOST_CONFIG_BYTES:
                raise TooLarge(f"'{path}': its configuration has {sizes['config.json']} bytes")
            config = json.loads(archive.read("config.json"))
            metadata = json.loads(archive.read("metadata.json")) if "metadata.json" in sizes else {}
            with h5py.File(io.BytesIO(archive.read(_WEIGHTS)), "r") as weights:
                _check_h5(path, weights, sizes[_WEIGHTS])
    except (zipfile.BadZipFile, EOFError, OSError, KeyError, ValueError, RecursionError, NotImplementedError) as error:
        raise CorruptArtifact(f"'{path}' is damaged or truncated: {error}") from None
    return config, str(metadata.get("keras_version", "")) if isinstance(metadata, dict) else ""


def _read_h5(path: Path) -> tuple[Any, str]:
    try:
        with h5py.File(path, "r") as file:
            _check_h5(path, file, path.stat().st_size)
            text = file.attrs.get("model_config")
            version = file.attrs.get("keras_version", "")
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise CorruptArtifact(f"'{path}' is damaged or truncated: {error}") from None
    if text is None:
        raise CorruptArtifact(
            f"'{path}' holds no model configuration, perhaps weights alone: save the whole model with model.save()"
        )
    try:
        return json.loads(text), version.decode() if isinstance(version, bytes) else str(version)
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptArtifact(f"'{path}': its configuration cannot be read: {error}") from None


def _check_growth(path: Path, declared: int, held: int = 0) -> None:
    held = held or path.stat().st_size
    if declared > max(_HARMLESS_BYTES, _MOST_GROWTH * held):
        raise TooLarge(
            f"'{path}' declares {declared >> 20} MiB in a file of {held / (1 << 20):.1f} MiB: it is taken for a "
            "decompression bomb and not read; if it is none, save the model again"
        )


def _check_h5(path: Path, file: h5py.File, held: int) -> None:
    """Refuse declared sizes out of all proportion, and links to other files."""
    declared = 0
    for dataset in _datasets(path, file):
        if dataset.external or dataset.is_virtual:
            raise PermissionDenied(f"'{path}': '{dataset.name}' reads another file; save the model again, in one file")
        elements = max(dataset.size or 0, _product(dataset.chunks or ()))
        declared += elements * dataset.dtype.itemsize
    _check_growth(path, declared, held)


def _datasets(path: Path, group: h5py.Group) -> Iterator[h5py.Dataset]:
    pending, seen = [group], set()
    while pending:
        group = pending.pop()
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise PermissionDenied(f"'{path}': '{name}' is a link, perhaps to another file; save the model again")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(item, h5py.Group):
                pending.append(item)
            elif isinstance(item, h5py.Dataset):
                yield item


def _product(sizes: tuple[int, ...]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product


def _walk(value: Any, depth: int) -> Iterator[tuple[str, bool]]:
    """Names in a configuration that are not Keras' own, and whether each is code."""
    if depth > _MOST_DEPTH:
        raise CorruptArtifact("the configuration of a Keras file is nested without end")
    if isinstance(value, list):
        for item in value:
            yield from _walk(item, depth + 1)
    if not isinstance(value, dict):
        return
    name, module = value.get("class_name"), value.get("module")
    if isinstance(name, str):
        registered = value.get("registered_name")
        if name in _CODE:
            yield "Lambda" if name == "__lambda__" else name, True
        elif isinstance(registered, str) and ">" in registered:
            yield registered, False
        elif isinstance(module, str) and not _KERAS_MODULE.fullmatch(module):
            yield _told(name, module, value), False
        elif ">" in name:
            yield name, False
    for key, item in value.items():
        if key not in _TRAINING:
            yield from _walk(item, depth + 1)


def _told(name: str, module: str, value: dict[str, Any]) -> str:
    own = value.get("config") if name == "function" else name
    return f"{module}.{own}" if module != "builtins" else str(own)
