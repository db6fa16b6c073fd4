"""The image step."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest

from salver.core.arrays import Array
from salver.core.errors import InvalidArgument, TooLarge
from salver.core.tensors import TensorSpec
from salver.testing.processing import ProcessingConformance
from tests.processing.conftest import carried, image_file, texts

Image = pytest.importorskip("PIL.Image", reason="pip install 'salver[images]'")


def drawn(height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray:
    """A picture of smooth colors."""
    down, right = np.mgrid[0:height, 0:width]
    return np.stack([down * 8 % 256, right * 7 % 256, (down + right + 40 * seed) * 4 % 256], axis=-1).astype(np.uint8)


class TestImage(ProcessingConformance):
    step = {"step": "image", "size": [8, 12], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.25]}
    wanted = (TensorSpec(name="pixels", datatype="FP32", shape=("batch", 3, 8, 12)),)

    @pytest.fixture
    def rows(self) -> dict[str, Array]:
        files = [
            image_file(drawn(seed=i, height=20 + i), kind) for i, kind in enumerate(("PNG", "JPEG", "BMP", "WEBP"))
        ]
        return {"image": carried(*files)}

    def run(self, *files: bytes, **settings: object) -> Array:
        step = self.make(settings)
        self.bind(step)
        (made,) = step.run({"image": carried(*files)}).values()
        return made

    def test_pixels_are_those_that_pillow_gives(self) -> None:
        data = image_file(drawn(), "JPEG")
        made = self.run(data)
        small = Image.open(io.BytesIO(data)).convert("RGB").resize((12, 8), Image.Resampling.BILINEAR)
        expected = (np.asarray(small, np.float32) / 255 - np.float32([0.5, 0.4, 0.3])) / np.float32([0.2, 0.2, 0.25])
        np.testing.assert_allclose(made[0], expected.transpose(2, 0, 1), atol=1e-5)

    def test_base64_and_bytes_are_the_same_image(self) -> None:
        data = image_file(drawn(), "JPEG")
        np.testing.assert_array_equal(self.run(data), self.run(base64.b64encode(data)))

    def test_the_orientation_that_a_camera_noted_is_applied(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # turn it right
        turned = np.ascontiguousarray(np.rot90(drawn(12, 8)))
        data = image_file(turned, "PNG", exif=exif)
        plain = {"size": [12, 8], "mean": [], "std": [], "scale": 1.0}
        self.wanted = (TensorSpec(name="pixels", datatype="FP32", shape=("batch", 3, 12, 8)),)
        np.testing.assert_array_equal(self.run(data, **plain)[0].transpose(1, 2, 0), drawn(12, 8))
        assert not np.array_equal(self.run(data, **plain, orient=False)[0].transpose(1, 2, 0), drawn(12, 8))

    @pytest.mark.parametrize(
        ("mode", "layout", "shape"), [("gray", "hw", (8, 12)), ("gray", "chw", (1, 8, 12)), ("bgr", "hwc", (8, 12, 3))]
    )
    def test_modes_and_layouts(self, mode: str, layout: str, shape: tuple[int, ...]) -> None:
        self.wanted = (TensorSpec(name="pixels", datatype="UINT8", shape=("batch", *shape)),)
        made = self.run(image_file(drawn()), mode=mode, layout=layout, mean=[], std=[])
        assert (made.shape, made.dtype) == ((1, *shape), np.dtype(np.uint8))
        if mode == "bgr":
            self.wanted = (TensorSpec(name="pixels", datatype="UINT8", shape=("batch", 8, 12, 3)),)
            other = self.run(image_file(drawn()), mode="rgb", layout="hwc", mean=[], std=[])
            np.testing.assert_array_equal(made, other[..., ::-1])

    def test_proportions_are_kept_where_that_is_declared(self) -> None:
        wide = np.zeros((10, 40, 3), np.uint8)
        wide[:, 15:25] = 255  # its middle
        self.wanted = (TensorSpec(name="pixels", datatype="UINT8", shape=("batch", 3, 8, 8)),)
        plain = {"size": [8, 8], "mean": [], "std": [], "filter": "nearest"}
        assert (self.run(image_file(wide), resize="shortest", **plain) == 255).all()
        inside = self.run(image_file(wide), resize="longest", fill=7, **plain)
        assert (inside[0, 0, :3] == 7).all()
        assert set(inside[0, 0, 4].tolist()) == {0, 255}
        cut = self.run(image_file(wide), resize="none", crop=[8, 8], mean=[], std=[])
        assert (cut == 255).all()

    def test_an_image_that_is_larger_than_it_may_be_is_refused_before_it_is_decoded(self) -> None:
        header = b"IHDR" + struct.pack(">IIBBBBB", 1 << 16, 1 << 16, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        content = b"IDAT" + zlib.compress(bytes(1 << 16))
        bomb += struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
        with pytest.raises(InvalidArgument, match=r"pixels"):
            self.run(bomb)
        with pytest.raises(TooLarge, match=r"30 x 20 pixels, at most 599 in all"):
            self.run(image_file(drawn()), max_pixels=599)

    def test_what_is_damaged_or_no_image_is_named_by_its_row(self) -> None:
        whole = image_file(drawn(), "JPEG")
        with pytest.raises(InvalidArgument, match="row 1: the image is damaged or truncated"):
            self.run(whole, whole[: len(whole) // 2])
        with pytest.raises(InvalidArgument, match="row 1: no image file; expected JPEG, PNG"):
            self.run(whole, b"%PDF-1.7 and so on")
        step = self.make()
        self.bind(step)
        with pytest.raises(InvalidArgument, match="input 'image': a text, expected the bytes of an image file"):
            step.run({"image": texts("päron 🍐")})
        with pytest.raises(InvalidArgument, match="no image file"):
            step.run({"image": texts("")})

    def test_settings_that_cannot_be_are_refused(self) -> None:
        with pytest.raises(InvalidArgument, match="got 2 numbers, expected 1 or 3"):
            self.make({"mean": [0.1, 0.2]})
        with pytest.raises(InvalidArgument, match="a zero cannot be divided by"):
            self.make({"std": [1.0, 0.0, 1.0]})
        with pytest.raises(InvalidArgument, match="goes with mode 'gray'"):
            self.make({"layout": "hw"})
        self.wanted = (TensorSpec(name="pixels", datatype="FP32", shape=("batch", 3, "h", "w")),)
        with pytest.raises(InvalidArgument, match="say to which"):
            self.bind(self.make({"size": None}))
