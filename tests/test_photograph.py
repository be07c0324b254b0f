"""Reading photographs: every format upright, every damage a reason."""

from __future__ import annotations

import io
import random
import resource
import struct
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import STORED
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from facetrain.preprocess import photograph
from facetrain.preprocess.photograph import TooLarge, Unreadable, read_photograph


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
        (np.array([[0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0, 2048, 4095]], np.uint16), [0, 128, 255]),
        (np.array([[-5, 40_000, 70_000]], np.int32), [0, 156, 255]),
        (np.array([[-5, np.inf, 255]], np.float32), [0, 255, 255]),
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
    "a JPEG's first bytes": (JPEG[:3], "damaged, or of a kind that cannot be read: it begins as a JPEG"),
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


def test_a_photograph_beyond_the_limit_says_how_large_it_is() -> None:
    data = encoded(Image.fromarray(picture(40, 56)), "JPEG")
    with pytest.raises(TooLarge) as error:
        read_photograph(data, max_pixels=1000)
    assert (error.value.width_px, error.value.height_px) == (56, 40)


def test_pillows_own_limit_does_not_bind_and_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for suffix in ("PNG", "JPEG", "TIFF", "WEBP", "GIF"):
        assert read_photograph(encoded(Image.fromarray(picture()), suffix)).shape == (40, 56, 3)
        with pytest.raises(Unreadable):
            read_photograph(b"torn")
        assert Image.MAX_IMAGE_PIXELS == 100


def test_threads_may_read_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    filters = list(warnings.filters)
    data = encoded(Image.fromarray(picture()), "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    with ThreadPoolExecutor(8) as pool:
        shapes = list(pool.map(lambda _: read_photograph(data).shape, range(400)))
    assert set(shapes) == {(40, 56, 3)}
    assert Image.MAX_IMAGE_PIXELS == 100
    assert warnings.filters == filters


def test_a_large_picture_comes_back_whole() -> None:
    """Larger than the strips in which it is converted, and no multiple of them."""
    tall = np.random.default_rng(0).integers(0, 256, (1301, 9, 3), np.uint8)
    np.testing.assert_array_equal(read_photograph(encoded(Image.fromarray(tall), "PNG")), tall)
    deep = tall[..., 0].astype(np.uint16) * 257
    grey = read_photograph(encoded(Image.fromarray(deep), "PNG"))
    np.testing.assert_array_equal(grey, np.repeat(tall[..., :1], 3, axis=2))


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


def oriented(orientation: int) -> bytes:
    """An EXIF block."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def kinds() -> dict[str, bytes]:
    """A small file of every format, compression and mode that has a decoder of its own."""
    image = Image.fromarray(picture())
    turned = oriented(6)
    more = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    pages = encoded(image, "TIFF", **more)  # first: Pillow cannot once these pictures have been saved as JPEG
    made = {
        "JPEG": encoded(image, "JPEG", exif=turned),
        "progressive": encoded(image, "JPEG", progressive=True),
        "CMYK": encoded(image.convert("CMYK"), "JPEG"),
        "MPO": encoded(image, "MPO", **more),
        "PNG": encoded(image, "PNG", exif=turned),
        "palette": encoded(image.quantize(16), "PNG", transparency=3),
        "16 bits": encoded(Image.fromarray(picture()[..., 0].astype(np.uint16) * 257), "PNG"),
        "APNG": encoded(image, "PNG", **more),
        "WebP": encoded(image, "WEBP", exif=turned),
        "lossless": encoded(image, "WEBP", lossless=True),
        "moving WebP": encoded(image, "WEBP", **more),
        "BMP": encoded(image, "BMP"),
        "BMP palette": encoded(image.quantize(16), "BMP"),
        "GIF": encoded(
            image.quantize(16), "GIF", save_all=True, append_images=[image.rotate(90).quantize(16)]
        ),
        "JPEG 2000": encoded(image, "JPEG2000"),
        "PPM": encoded(image, "PPM"),
        "floats": encoded(Image.fromarray(picture()[..., 0].astype(np.float32)), "TIFF"),
        "pages": pages,
        "fax": encoded(image.convert("1"), "TIFF", compression="group4"),
    }
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        made[compression] = encoded(image, "TIFF", compression=compression, exif=turned)
    if "AVIF" in Image.SAVE:
        made["AVIF"] = encoded(image, "AVIF")
    return made


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut short, with bits flipped, a length or offset blown up, or a piece of it in the wrong place."""
    out, at = bytearray(data), rng.randrange(len(data))
    how = rng.randrange(5)
    if how == 0:
        return data[:at]
    if how == 1:
        for _ in range(rng.randrange(1, 4)):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif how == 2:
        out[rng.randrange(min(300, len(out)))] = rng.choice([0, 255, 127, 128, rng.randrange(256)])
    elif how == 3:
        out[at : at + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", rng.randbytes(4)])
    else:
        start = rng.randrange(len(out))
        out[at : at + rng.randrange(200)] = data[start : start + rng.randrange(200)]
    return bytes(out)


def test_thousands_of_damaged_files(capfd: pytest.CaptureFixture[str], no_more_memory: None) -> None:
    """A picture or one line of a reason, nothing on stderr (libtiff likes to write there), and no memory to speak of."""
    rng = random.Random(7)
    reasons = set()
    for name, data in kinds().items():
        for _ in range(150):
            try:
                image = read_photograph(damaged(data, rng), max_pixels=1_000_000)
            except Unreadable as error:
                reasons.add(str(error))
                continue
            assert image.dtype == np.uint8, name
            assert image.ndim == 3, name
            assert image.shape[2] == 3, name
            assert image.shape[0] * image.shape[1] <= 1_000_000, name
    assert capfd.readouterr() == ("", "")
    assert len(reasons) > 100
    assert all(reason.isprintable() and 0 < len(reason) < 200 for reason in reasons)
    assert "not enough memory to decode it" not in reasons


@pytest.fixture
def no_more_memory() -> Iterator[None]:
    """Let this process grow by half a gigabyte and no more, where that can be had."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (512 << 20), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_what_is_no_picture_is_called_by_its_name() -> None:
    said = {}
    for name, data in {
        "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "a web page": b"\xef\xbb\xbf\r\n<!doctype HTML><html>",
        "it begins as a WebP": b"RIFF\0\0\0\0WEBPVP9 ",
        "it begins as a PNG": b"\x89PNG\r\n\x1a\n" + bytes(50),
        "no image format that we know": b"PK\x03\x04 an archive",
    }.items():
        with pytest.raises(Unreadable) as error:
            read_photograph(data)
        said[name] = str(error.value)
    assert all(name in reason for name, reason in said.items()), said


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0garbage!",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0six\0\0\0\0\0",
        oriented(0),
        oriented(77),
    ],
)
def test_an_odd_exif_block_does_not_matter(suffix: str, block: bytes) -> None:
    image = Image.fromarray(picture())
    plain = read_photograph(encoded(image, suffix))
    np.testing.assert_array_equal(read_photograph(encoded(image, suffix, exif=block)), plain)


def test_a_jpeg_of_a_thousand_scans_takes_too_long_to_be_tried() -> None:
    data = encoded(Image.fromarray(picture()), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    few, many = (data[:-2] + scan * times + data[-2:] for times in (50, 1000))
    assert read_photograph(few).shape == (40, 56, 3)
    with pytest.raises(Unreadable, match="a JPEG of more than 100 scans"):
        read_photograph(many)
    film = data + b"\xff\xda\0\2" * 1000  # behind its end, as phones append them
    assert read_photograph(film).shape == (40, 56, 3)


def test_a_real_drawn_photograph(drawn: Path) -> None:
    path = drawn / "ann" / "1.jpg"
    np.testing.assert_array_equal(
        read_photograph(path.read_bytes()), np.asarray(Image.open(path).convert("RGB"))
    )


class TestPlainJpegs:
    """Those that Pillow does not have to read must come out as if it had."""

    def both(self, data: bytes, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray | str]:
        """What comes of it with the short way, and without."""
        found: list[np.ndarray | str] = []
        for way in (photograph._plain_jpeg, lambda *arguments: None):
            with monkeypatch.context() as patch:
                patch.setattr(photograph, "_plain_jpeg", way)
                try:
                    found.append(read_photograph(data))
                except Unreadable as error:
                    found.append(str(error))
        return found

    def test_the_same_pixels(self, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for path in sorted(drawn.rglob("*.jpg"))[:10]:
            assert photograph._plain_jpeg(path.read_bytes(), 10**9) is not None, "or nothing is shown here"
            short, long = self.both(path.read_bytes(), monkeypatch)
            np.testing.assert_array_equal(short, long)

    @pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 1}, {"progressive": True}])
    def test_other_samplings_and_progressive_ones(
        self, drawn: Path, options: dict, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        image = Image.open(drawn / "ann" / "1.jpg").resize((101, 77))
        data = encoded(image, "JPEG", **options)
        assert photograph._plain_jpeg(data, 10**9) is not None
        np.testing.assert_array_equal(*self.both(data, monkeypatch))

    def test_the_same_verdict_on_damage(self, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = (drawn / "ann" / "1.jpg").read_bytes()
        rng = np.random.default_rng(5)
        for number in range(400):
            damaged = bytearray(data)
            if number % 4 == 0:
                del damaged[int(rng.integers(2, len(data))) :]
            for position in rng.integers(0, len(damaged), 1 + number % 3):
                damaged[position] ^= 1 << int(rng.integers(8))
            short, long = self.both(bytes(damaged), monkeypatch)
            assert isinstance(short, str) == isinstance(long, str), number
            np.testing.assert_array_equal(short, long)

    def test_what_pillow_must_read(self, drawn: Path) -> None:
        image = Image.open(drawn / "ann" / "1.jpg")
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        for data in (
            encoded(image, "JPEG", exif=exif),
            encoded(image.convert("CMYK"), "JPEG"),
            encoded(image, "PNG"),
            encoded(image, "JPEG")[:-100],
        ):
            assert photograph._plain_jpeg(data, 10**9) is None
        assert photograph._plain_jpeg(encoded(image, "JPEG"), 1000) is None
