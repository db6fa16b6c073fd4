"""A folder of images, one sub-folder per class; the only file that imports Pillow."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, MissingExtra
from salver.core.model import digest_bytes, digest_file
from salver.core.tensors import TensorSpec
from salver.datasets.base import Reader, ReaderConfig
from salver.datasets.typing_rules import object_array

try:
    from PIL import Image, UnidentifiedImageError
except ImportError:
    raise MissingExtra("reading a folder of images", "Pillow", "images") from None

_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


class ImagesConfig(ReaderConfig, frozen=True, kw_only=True):
    """How images become arrays.

    Args:
        mode: ``rgb``; ``gray``: one channel, which is not a dimension; or ``file``: no pixels but the file's bytes, for
            models that decode images themselves.
        layout: ``hwc`` (channels last) or ``chw``; of no matter for ``gray``.
        size: ``(height, width)`` to resize to, bilinear; None takes images as they are, which must then be of one size.
    """

    mode: Literal["rgb", "gray", "file"] = "rgb"
    layout: Literal["hwc", "chw"] = "hwc"
    size: tuple[int, int] | None = None


class ImagesDataset(Reader):
    """Column ``image``, UINT8, and ``label``: the name of the sub-folder, as text. Sub-folders and files are read in
    the order of their names. A folder that has images and no sub-folders has no labels."""

    name: ClassVar[str] = "images"
    Config: ClassVar[type[Any]] = ImagesConfig

    def __init__(self, source: Path, config: ImagesConfig | None = None) -> None:
        self._root = source
        self._config = config or ImagesConfig()
        self._files, self._classes = self._list()
        specs = {"image": self._image_spec()}
        if self._classes:
            specs["label"] = TensorSpec(name="label", datatype="BYTES", shape=("batch",))
        super().__init__(str(source), specs, len(self._files), self._config.label)

    @functools.cached_property
    def _digest(self) -> str:
        lines = [f"{f.relative_to(self._root).as_posix()} {digest_file(f)}" for f in self._files]
        return digest_bytes("\n".join(lines).encode())

    @property
    def digest(self) -> str:
        return self._digest

    def _image_spec(self) -> TensorSpec:
        if self._config.mode == "file":
            return TensorSpec(name="image", datatype="BYTES", shape=("batch",), binary=True)
        inner = self._load(self._files[0]).shape if self._files else ()
        return TensorSpec(name="image", datatype="UINT8", shape=("batch", *inner))

    def blocks(self, size: int) -> Iterator[dict[str, Array]]:
        for start in range(0, len(self), size):
            files = self._files[start : start + size]
            if self._config.mode == "file":
                block = {"image": object_array([file.read_bytes().decode("latin-1") for file in files])}
            else:
                block = {"image": self._stack(files)}
            if self._classes:
                block["label"] = object_array([file.parent.name for file in files])
            yield block

    def _stack(self, files: list[Path]) -> Array:
        shape = self.columns[0].shape[1:]
        images = [self._load(file) for file in files]
        for file, image in zip(files, images, strict=True):
            if image.shape != shape:
                raise InvalidArgument(
                    f"'{file}': image of shape {list(image.shape)}, the first one ('{self._files[0]}') has "
                    f"{list(shape)}; "
                    "give size=(height, width) to resize them"
                )
        return np.stack(images)

    def _list(self) -> tuple[list[Path], list[str]]:
        folders = sorted(p for p in self._root.iterdir() if p.is_dir() and not p.name.startswith("."))
        loose = self._images(self._root)
        if folders and loose:
            raise InvalidArgument(
                f"'{self._root}': '{loose[0].name}' lies beside the class folders; put it in one of them"
            )
        if not folders:
            return loose, []
        return [file for folder in folders for file in self._images(folder)], [f.name for f in folders]

    def _images(self, folder: Path) -> list[Path]:
        files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
        for file in files:
            if file.suffix.lower() not in _SUFFIXES:
                raise InvalidArgument(
                    f"'{file}' is not an image (known: {', '.join(sorted(_SUFFIXES))}); move it elsewhere"
                )
        return files

    def _load(self, file: Path) -> Array:
        try:
            with Image.open(file) as image:
                pixels = image.convert("L" if self._config.mode == "gray" else "RGB")
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise InvalidArgument(f"'{file}' is not an image, or it is damaged: {error}") from None
        if self._config.size is not None:
            height, width = self._config.size
            pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
        array = np.asarray(pixels)
        return array.transpose(2, 0, 1) if self._config.layout == "chw" and array.ndim == 3 else array
