"""Image files to pixels with Pillow (https://pillow.readthedocs.io)."""

from __future__ import annotations

import base64
import binascii
import io
import struct
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

import numpy as np

from salver.core.arrays import Array
from salver.core.config import Config
from salver.core.errors import InvalidArgument, MissingExtra, TooLarge, format_shape
from salver.core.tensors import TensorSpec
from salver.processing.base import FLOATS, ProcessingStep, Read, find, row_name

try:
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError:
    raise MissingExtra("the processing step 'image'", "Pillow", "images") from None

_MAGIC: Final = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "WEBP": (b"RIFF",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*"),
}
_FILTERS: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_SHOWN: Final = 40
_DAMAGED: Final = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    OverflowError,
    struct.error,
)

Pair = tuple[int, int]


class ImageConfig(Config, frozen=True, kw_only=True):
    """How an image file becomes pixels, in the order of the fields.

    Args:
        input: what clients send: a file's bytes, or these in base64.
        output: the model's input; empty for its only one.
        max_pixels: an image that says it has more is refused before it is decoded.
        orient: whether the orientation that a camera noted (EXIF) is applied.
        mode: three channels or one.
        size: ``[height, width]`` to resize to; empty for what the model takes.
        resize: ``exact`` to that size whatever the proportions; ``shortest`` so that it covers that size and keeps its
            proportions; ``longest`` so that it lies inside, the rest filled with ``fill``; ``none`` not at all.
        filter: with which it is resized.
        crop: ``[height, width]`` cut from the middle; empty for the whole, with ``shortest`` the size.
        fill: value of pixels around an image with ``longest``, 0 to 255.
        layout: channels first, channels last, or no dimension for a single channel.
        scale: pixels of 0 to 255 are multiplied by this, where the model takes floats.
        mean, std: subtracted after that, and divided by; one for each channel, or one for all.
    """

    input: str = "image"
    output: str = ""
    max_pixels: int = 64_000_000
    orient: bool = True
    mode: Literal["rgb", "bgr", "gray"] = "rgb"
    size: Pair | None = None
    resize: Literal["exact", "shortest", "longest", "none"] = "exact"
    filter: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    crop: Pair | None = None
    fill: int = 0
    layout: Literal["chw", "hwc", "hw"] = "chw"
    scale: float = 1.0 / 255.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


class ImageStep(ProcessingStep):
    """Pixels of JPEG, PNG, WebP, GIF, BMP and TIFF files; of several frames the first."""

    name = "image"
    Config: ClassVar[type[Any]] = ImageConfig
    is_even = False
    takes_files = True

    def __init__(self, config: ImageConfig, read: Read) -> None:
        self._config = config
        channels = 1 if config.mode == "gray" else 3
        if config.layout == "hw" and channels != 1:
            raise InvalidArgument("layout 'hw' has no channels: it goes with mode 'gray'")
        for what, values in (("mean", config.mean), ("std", config.std)):
            if len(values) not in (0, 1, channels):
                raise InvalidArgument(f"{what}: got {len(values)} numbers, expected 1 or {channels}")
        if 0.0 in config.std:
            raise InvalidArgument("std: a zero cannot be divided by")
        self._mean = _per_channel(config.mean or (0.0,), config.layout)
        self._std = _per_channel(config.std or (1.0,), config.layout)
        self._final: Pair = (0, 0)
        self._size: Pair = (0, 0)
        self._spec: TensorSpec

    @property
    def consumes(self) -> tuple[str, ...]:
        return (self._config.input,)

    def raw(self, name: str, batch: int | str) -> TensorSpec:
        return TensorSpec(name=name, datatype="BYTES", shape=(batch,), binary=True)

    def bind(self, given: Mapping[str, TensorSpec], wanted: Mapping[str, TensorSpec]) -> tuple[TensorSpec, ...]:
        config = self._config
        find(given, config.input, ("BYTES",), (1,))
        name = config.output or (next(iter(wanted)) if len(wanted) == 1 else "")
        if name not in wanted:
            raise InvalidArgument(f"output: say which of the model's inputs takes the image: {', '.join(wanted)}")
        target = find(wanted, name, ("UINT8", *FLOATS), (3, 4))
        sides = target.shape[1:3] if config.layout != "chw" else target.shape[2:4]
        fixed = tuple(side for side in sides if isinstance(side, int))
        final = config.crop or (config.size if config.resize != "none" else None)
        if final is None and len(fixed) == 2:
            final = (fixed[0], fixed[1])
        if final is None or min(final) < 1:
            raise InvalidArgument("size: say to which [height, width] images are resized; the model leaves it open")
        self._final = final
        self._size = config.size or final
        height, width = final
        channels = 1 if config.mode == "gray" else 3
        inner = {"chw": (channels, height, width), "hwc": (height, width, channels), "hw": (height, width)}
        batch = given[config.input].shape[0]
        if target.datatype == "UINT8" and (config.mean or config.std):
            raise InvalidArgument(f"mean and std are for floats; the model takes '{name}' as UINT8")
        self._spec = TensorSpec(name=name, datatype=target.datatype, shape=(batch, *inner[config.layout]))
        return (self._spec,)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        elements = arrays[self._config.input].tolist()
        shape = (len(elements), *(int(dim) for dim in self._spec.shape[1:]))
        pixels = np.empty(shape, self._spec.dtype)
        for row, element in enumerate(elements):
            pixels[row] = self._decode(element, row_name(self._config.input, row, len(elements)))
        return {self._spec.name: pixels}

    def _decode(self, element: str, where: str) -> Array:
        data, kinds = file_content(element, where)
        config = self._config
        try:
            with Image.open(io.BytesIO(data), formats=kinds) as image:
                width, height = image.size
                if width * height > config.max_pixels:
                    raise TooLarge(
                        f"{where}: an image of {width} x {height} pixels, at most {config.max_pixels} in all are taken "
                        "(max_pixels of the image step)"
                    )
                image.load()
                upright = ImageOps.exif_transpose(image) if config.orient else image
                made = self._fit(upright.convert("L" if config.mode == "gray" else "RGB"))
        except _DAMAGED as error:
            raise InvalidArgument(f"{where}: the image is damaged or truncated: {error}") from None
        if made.size != (self._final[1], self._final[0]):
            raise InvalidArgument(
                f"{where}: an image of {format_shape((made.height, made.width))} pixels, expected "
                f"{format_shape(self._final)}"
            )
        return self._to_numbers(np.asarray(made))

    def _fit(self, image: Image.Image) -> Image.Image:
        config = self._config
        height, width = self._size
        if config.resize == "exact":
            image = image.resize((width, height), _FILTERS[config.filter])
        elif config.resize != "none":
            ratios = (width / image.width, height / image.height)
            ratio = max(ratios) if config.resize == "shortest" else min(ratios)
            sides = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
            image = image.resize(sides, _FILTERS[config.filter])
            if config.resize == "longest":
                color = config.fill if image.mode == "L" else (config.fill,) * 3
                around = Image.new(image.mode, (width, height), color)
                around.paste(image, ((width - sides[0]) // 2, (height - sides[1]) // 2))
                image = around
        if config.crop is None and config.resize != "shortest":
            return image
        down, right = self._final
        left, top = (image.width - right) // 2, (image.height - down) // 2
        if left < 0 or top < 0:
            raise ValueError(f"{image.width} x {image.height} pixels are fewer than the {right} x {down} to be cut out")
        return image.crop((left, top, left + right, top + down))

    def _to_numbers(self, pixels: Array) -> Array:
        config = self._config
        if config.mode == "bgr":
            pixels = pixels[..., ::-1]
        if config.layout == "chw":
            pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        elif config.layout == "hwc" and pixels.ndim == 2:
            pixels = pixels[..., None]
        if self._spec.datatype == "UINT8":
            return pixels
        return (pixels.astype(np.float32) * np.float32(config.scale) - self._mean) / self._std


def file_content(element: str, where: str) -> tuple[bytes, tuple[str, ...]]:
    """The bytes of an image file, and what kind they begin as.

    Args:
        element: one character per byte, or base64.

    Raises:
        InvalidArgument: it is neither.
    """
    try:
        data = element.encode("latin-1")
    except UnicodeEncodeError:
        raise InvalidArgument(f"{where}: a text, expected the bytes of an image file, or these in base64") from None
    kinds = _kinds_of(data)
    if not kinds:
        try:
            data = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            data = b""
        kinds = _kinds_of(data)
    if not kinds:
        shown = element[:_SHOWN].encode("latin-1")
        raise InvalidArgument(
            f"{where}: no image file; expected {', '.join(_MAGIC)} or one of these in base64, got {len(element)} bytes "
            f"that begin with {shown!r}"
        )
    return data, kinds


def _kinds_of(data: bytes) -> tuple[str, ...]:
    return tuple(kind for kind, starts in _MAGIC.items() if data.startswith(starts))


def _per_channel(values: tuple[float, ...], layout: str) -> Array:
    array = np.array(values, np.float32)
    return array.reshape(-1, 1, 1) if layout == "chw" else array
