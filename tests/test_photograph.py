"""Reading photographs: every format upright, every damage a reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from facetrain.preprocess import photograph
from facetrain.preprocess.photograph import Unreadable, read_photograph

# What a camera held at each EXIF orientation stores, from the upright picture.
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}


def picture(height: int = 40, width: int = 56) -> np.ndarray:
    """Smooth, so that JPEG keeps it, and different in all four corners."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 40 + 3 * x, 30 + 4 * y
    return np.stack([red, green, np.full_like(red, 90)], -1).astype(np.uint8)


def encoded(image: Image.Image, suffix: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, suffix, **options)
    return out.getvalue()


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("suffix", "options", "tolerance"),
    [
        ("JPEG", {"quality": 98, "subsampling": 0}, 4),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("TIFF", {}, 0),
    ],
)
def test_orientation_is_applied(orientation: int, suffix: str, options: dict, tolerance: int) -> None:
    upright = picture()
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_photograph(encoded(stored, suffix, exif=exif, **options))
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).max() <= tolerance


@pytest.mark.parametrize("suffix", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_exactly(suffix: str) -> None:
    image = read_photograph(encoded(Image.fromarray(picture()), suffix))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, picture())


def test_grey_palette_and_cmyk_become_rgb() -> None:
    grey = Image.fromarray(picture()).convert("L")
    np.testing.assert_array_equal(
        read_photograph(encoded(grey, "PNG")), np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    )
    palette = Image.fromarray(picture() // 64 * 64).convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(
        read_photograph(encoded(palette, "PNG")), np.asarray(palette.convert("RGB"))
    )
    cmyk = Image.fromarray(picture()).convert("CMYK")
    read = read_photograph(encoded(cmyk, "JPEG", quality=98))
    assert np.abs(read.astype(int) - picture()).max() < 12


def test_transparent_parts_are_laid_on_white() -> None:
    rgba = np.dstack([picture(), np.full((40, 56), 255, np.uint8)])
    rgba[:10, :, 3] = 0
    for suffix in ("PNG", "WEBP"):
        options = {"lossless": True, "exact": True} if suffix == "WEBP" else {}
        image = read_photograph(encoded(Image.fromarray(rgba), suffix, **options))
        assert (image[:10] == 255).all()
        np.testing.assert_array_equal(image[10:], picture()[10:])
    marked = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode="P")
    marked.putpalette([10, 20, 30, 200, 100, 0])
    image = read_photograph(encoded(marked, "PNG", transparency=0))
    np.testing.assert_array_equal(image[0], [[255, 255, 255], [200, 100, 0]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 257 * 100, 65535]], np.uint16), [0, 100, 255]),
        (np.array([[0, 77, 255]], np.uint16), [0, 77, 255]),
        (np.array([[0, 100.0, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[0, 0.5, 1.0]], np.float32), [0, 127, 255]),
        (np.array([[np.nan, 0.5, 1.0]], np.float32), [0, 127, 255]),
    ],
)
def test_deep_grey_is_scaled_to_8_bits(values: np.ndarray, expected: list[int]) -> None:
    image = read_photograph(encoded(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(image[0], np.repeat(np.array(expected)[:, None], 3, axis=1))


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (200, 30)]
    for suffix in ("WEBP", "GIF", "PNG"):
        data = encoded(frames[0], suffix, save_all=True, append_images=frames[1:], lossless=True)
        assert (read_photograph(data) == 200).all(), suffix


JPEG = encoded(Image.fromarray(picture(200, 200)), "JPEG")


DAMAGED = {
    "empty": (b"", "the file is empty"),
    "text": (b"this is a letter, not a picture\n" * 20, "no image format that we know"),
    "postscript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "no image format that we know",
    ),
    "zeros": (bytes(100_000), "no image format that we know"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "damaged: "),
    "a JPEG's first bytes": (JPEG[:3], "no image format that we know"),
    "a JPEG's header": (JPEG[:30], "damaged: "),
    "PNG": (encoded(Image.fromarray(picture()), "PNG")[:-60], "damaged: "),
    "WebP": (encoded(Image.fromarray(picture()), "WEBP")[:-20], "damaged: "),
    "TIFF": (encoded(Image.fromarray(picture()), "TIFF")[:-2000], "damaged: "),
    "BMP": (encoded(Image.fromarray(picture()), "BMP")[:-2000], "damaged: "),
}


@pytest.mark.parametrize(("data", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_damage_is_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable) as error:
        read_photograph(data)
    assert str(error.value).startswith(reason)
    assert "\n" not in str(error.value)


def test_a_photograph_beyond_the_limit_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(picture(40, 56)), "PNG")
    assert read_photograph(data, max_pixels=40 * 56).shape == (40, 56, 3)
    monkeypatch.setattr(photograph, "_to_rgb", lambda image: pytest.fail("it was decoded"))
    with pytest.raises(Unreadable, match="56×40 is over the limit of 2,239 pixels"):
        read_photograph(data, max_pixels=40 * 56 - 1)


def test_a_bomb_is_a_reason() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    with pytest.raises(Unreadable):
        read_photograph(bomb)


@settings(max_examples=150, deadline=None)
@given(
    suffix=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"]),
    where=st.floats(0, 1, exclude_max=True),
    junk=st.binary(min_size=1, max_size=12),
)
def test_no_damage_raises_anything_else(suffix: str, where: float, junk: bytes) -> None:
    data = bytearray(encoded(Image.fromarray(picture()), suffix))
    start = int(where * len(data))
    data[start : start + len(junk)] = junk
    try:
        image = read_photograph(bytes(data), max_pixels=10_000)
    except Unreadable:
        return
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image.dtype == np.uint8


def test_a_real_drawn_photograph(drawn: Path) -> None:
    path = drawn / "ann" / "1.jpg"
    np.testing.assert_array_equal(
        read_photograph(path.read_bytes()), np.asarray(Image.open(path).convert("RGB"))
    )
