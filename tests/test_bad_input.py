"""Whatever a disk can hold, `ft align` makes of it the right crop or a row with a reason, and prints nothing odd.

The order is that of the promise: what files hold, how they lie on the disk, what happens to them meanwhile. Most of it
is one large tree, aligned once by the real command in a process of its own; the tables say what must come out.
"""

from __future__ import annotations

import csv
import ctypes
import io
import os
import resource
import shutil
import stat
import struct
import subprocess
import sys
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from conftest import STORED
from PIL import Image

from facetrain.file_table import Stat
from facetrain.index import read_index
from facetrain.preprocess import aligner
from facetrain.progress import Progress
from facetrain.workspace import Workspace

ALIGN = ("--size", 64, "--format", "png", "--landmarks", "outer-eyes-nose")
LOSSY = (
    10.0  # levels: a landmark may move by a pixel; the crops of two people differ by several times as much
)
BOMB = (20_000, 20_000)  # pixels
MEMORY_BYTES = 4 << 30  # of addresses, which the models and libraries take half of


def rows(root: Path) -> dict[str, dict]:
    """The index of the one dataset of a workspace, as a command leaves it."""
    (folder,) = (root / ".ft" / "datasets").iterdir()
    return {row["path"]: row for row in read_index(folder).rows.to_pylist()}


def outcome(row: dict) -> tuple[str, str | None]:
    return row["status"], row["reason"]


def crop(root: Path, row: dict) -> np.ndarray:
    """The crop of an aligned row, int [64, 64, 3]."""
    assert row["status"] == "aligned", row["reason"]
    return np.asarray(Image.open(root / "aligned" / row["aligned"])).astype(int)


def encoded(picture: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(out, kind, **options)
    return out.getvalue()


def by_opencv(suffix: str, picture: np.ndarray) -> bytes:
    """Another implementation, which writes kinds that Pillow does not. ``picture``: grey, RGB or RGBA of any dtype."""
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR if picture.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    done, data = cv2.imencode(suffix, picture)
    assert done
    return data.tobytes()


# -- what files hold -------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A photograph of the drawn face, encoded so that ``like`` must come out: the same crop as of that plain PNG.

    ``within``: the crop's mean difference to it in levels; 0 means the same bytes. Without ``like``, ``status`` and
    the beginning of ``reason`` are what the row must say.
    """

    name: str
    data: bytes | Callable[[], bytes]  # a function where making it takes long
    like: str | None = None
    within: float = 0.0
    status: str = "unreadable"
    reason: str | None = None


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """A chunk more, right after the header."""
    return png[:33] + chunk(kind, data) + png[33:]


def cut(data: bytes, share: float) -> bytes:
    return data[: int(share * len(data))]


def flipped(data: bytes, share: float) -> bytes:
    at = int(share * len(data))
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def ycck(picture: np.ndarray) -> bytes:
    """As Photoshop writes it: luma and chroma of the inverted inks, and inverted black."""
    inks = np.asarray(Image.fromarray(picture).convert("CMYK"))
    luma = np.asarray(Image.fromarray(inks[..., :3]).convert("YCbCr"))
    # Pillow inverts what it writes, and marks it as CMYK; the marker's last byte says YCCK instead.
    data = bytearray(
        encoded(Image.fromarray(255 - np.dstack([luma, 255 - inks[..., 3]]), "CMYK"), "JPEG", quality=98)
    )
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def without_adobe_marker(jpeg: bytes) -> bytes:
    at = jpeg.index(b"\xff\xee\x00\x0eAdobe")
    return jpeg[:at] + jpeg[at + 16 :]


def turned(picture: np.ndarray, orientation: int, kind: str, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(np.ascontiguousarray(STORED[orientation](picture)), kind, exif=exif, **options)


def many_scans(picture: np.ndarray) -> bytes:
    """A progressive JPEG whose last scan, of a few bytes, comes a thousand times: each costs a pass over the picture."""
    data = encoded(picture, "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 1000 + data[-2:]


def megabytes() -> bytes:
    return zlib.compress(bytes(50_000_000))


def png_bomb() -> bytes:
    """50 kB that are a whole picture of 400 million pixels."""
    width, height = BOMB
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((1 + width // 8) * height)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def panorama(image: Image.Image) -> bytes:
    """30,000 pixels wide, with the face in it large."""
    wide = Image.new("L", (30_000, 1500), 128)
    wide.paste(image.convert("L").resize((1500, 1500), Image.Resampling.BICUBIC), (12_000, 0))
    return encoded(wide, "JPEG", quality=90)


def references(picture: np.ndarray) -> dict[str, np.ndarray]:
    """Plain 8-bit RGB pictures that others must come out like."""
    image = Image.fromarray(picture)
    on_white = picture.copy()
    on_white[185:] = 255
    return {
        "colour": picture,
        "grey": np.asarray(image.convert("L").convert("RGB")),
        "palette": np.asarray(image.quantize(64).convert("RGB")),
        "1-bit": np.asarray(image.convert("1").convert("RGB")),
        "on white": on_white,
    }


def cases(picture: np.ndarray) -> Iterator[Case]:
    """Everything that a file can hold. ``picture``: uint8 RGB, one face."""
    image = Image.fromarray(picture)
    grey = np.asarray(image.convert("L"))
    alpha = np.full_like(grey, 255)
    alpha[185:] = 0
    opaque = np.full_like(grey, 255)
    others = [Image.fromarray(255 - picture), image.rotate(90)]
    jpeg, png = encoded(picture, "JPEG", quality=95), encoded(picture, "PNG")
    lossless = {
        "PNG": png,
        "BMP": encoded(picture, "BMP"),
        "TIFF": encoded(picture, "TIFF", compression="tiff_deflate"),
        "WEBP": encoded(picture, "WEBP", lossless=True),
        "GIF": encoded(image.quantize(64), "GIF"),
        "JPEG": jpeg,
    }

    # Every format.
    yield Case("plain.jpg", jpeg, "colour", LOSSY)
    yield Case("plain.jfif", jpeg, "colour", LOSSY)
    yield Case("progressive.jpeg", encoded(picture, "JPEG", quality=95, progressive=True), "colour", LOSSY)
    yield Case("plain.bmp", lossless["BMP"], "colour")
    yield Case("plain.tif", encoded(picture, "TIFF"), "colour")
    yield Case("lzw.tiff", encoded(picture, "TIFF", compression="tiff_lzw"), "colour")
    yield Case("jpeg.tiff", encoded(picture, "TIFF", compression="jpeg", quality=95), "colour", LOSSY)
    yield Case("lossless.webp", lossless["WEBP"], "colour")
    yield Case("lossy.webp", encoded(picture, "WEBP", quality=95), "colour", LOSSY)
    yield Case("plain.gif", lossless["GIF"], "palette")
    yield Case("plain.jp2", encoded(picture, "JPEG2000"), "colour")
    yield Case("plain.ppm", encoded(picture, "PPM"), "colour")
    yield Case("plain.pgm", encoded(grey, "PPM"), "grey")
    yield Case("plain.pnm", encoded(picture, "PPM"), "colour")
    if "AVIF" in Image.SAVE:
        yield Case("plain.avif", encoded(picture, "AVIF", quality=95), "colour", LOSSY)

    # Zero bytes, and no picture at all.
    yield Case("empty.jpg", b"", reason="the file is empty")
    yield Case("zeros.jpg", bytes(50_000), reason="no image format that we know")
    yield Case(
        "postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", reason="no image format that"
    )

    # Truncated: of every format, near the start, in the middle, near the end.
    for kind, data in lossless.items():
        for share in (0.01, 0.5, 0.97):
            yield Case(f"cut at {share:.0%}.{kind}", cut(data, share), reason="damaged")

    # Bit-flipped: PNG has checksums, so that a flip anywhere is noticed. For JPEG see a test of its own.
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        yield Case(f"flipped at {share:.0%}.png", flipped(png, share), reason="damaged: ")
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        yield Case(
            f"flipped signature.{kind}", flipped(lossless[kind], 0), reason="no image format that we know"
        )

    # Wrong extension: what counts is what the file holds.
    yield Case("a png.jpg", png, "colour")
    yield Case("a jpeg.png", jpeg, "colour", LOSSY)
    yield Case("a webp.tiff", lossless["WEBP"], "colour")
    yield Case("a letter.jpg", b"dear ann, " * 100, reason="no image format that we know")
    yield Case("a web page.png", b"\n<!DOCTYPE html><title>404</title>", reason="a web page, no photograph")
    yield Case("a sound.webp", b"RIFF\x24\0\0\0WAVEfmt " + bytes(30), reason="no image format that we know")
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)
    yield Case("from a phone.jpg", heic, reason="HEIC, which cannot be read: convert it to JPEG")

    # CMYK as browsers show it: inverted, whether Adobe's marker says so or not.
    inks = encoded(image.convert("CMYK"), "JPEG", quality=98, subsampling=0)
    yield Case("cmyk.jpg", inks, "colour", LOSSY)
    yield Case("cmyk without a marker.jpg", without_adobe_marker(inks), "colour", LOSSY)
    yield Case("ycck.jpg", ycck(picture), "colour", LOSSY)
    yield Case("cmyk.tiff", encoded(image.convert("CMYK"), "TIFF"), "colour")

    # 16 bits and floats.
    deep, deep_grey = picture.astype(np.uint16) * 257, grey.astype(np.uint16) * 257
    yield Case("16-bit.png", by_opencv(".png", deep), "colour")
    yield Case("16-bit.tiff", by_opencv(".tiff", deep), "colour")
    yield Case(
        "16-bit alpha.png", by_opencv(".png", np.dstack([deep, opaque.astype(np.uint16) * 257])), "colour"
    )
    yield Case("16-bit grey.png", by_opencv(".png", deep_grey), "grey")
    yield Case("16-bit grey.tiff", by_opencv(".tiff", deep_grey), "grey")
    yield Case(
        "16-bit grey.pgm", b"P5 %d %d 65535\n" % grey.shape[::-1] + deep_grey.astype(">u2").tobytes(), "grey"
    )
    yield Case("12 bits of 16.png", by_opencv(".png", (grey.astype(np.uint16) * 257) >> 4), "grey")
    yield Case("8 bits of 16.png", by_opencv(".png", grey.astype(np.uint16)), "grey")
    yield Case("float grey.tiff", by_opencv(".tiff", grey.astype(np.float32)), "grey")
    yield Case("float grey to 1.tiff", by_opencv(".tiff", (grey / 255).astype(np.float32)), "grey")
    yield Case(
        "float colour.tiff",
        by_opencv(".tiff", (picture / 255).astype(np.float32)),
        reason="damaged, or of a kind that cannot be read: it begins as a TIFF",
    )

    # Grey, palette, 1 bit, alpha.
    yield Case("grey.jpg", encoded(grey, "JPEG", quality=95), "grey", LOSSY)
    yield Case("grey.png", encoded(grey, "PNG"), "grey")
    yield Case(
        "grey alpha.png",
        encoded(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(opaque)]), "PNG"),
        "grey",
    )
    yield Case("palette.png", encoded(image.quantize(64), "PNG"), "palette")
    yield Case("palette.bmp", encoded(image.quantize(64), "BMP"), "palette")
    yield Case("1-bit.png", encoded(image.convert("1"), "PNG"), "1-bit")
    yield Case("fax.tiff", encoded(image.convert("1"), "TIFF", compression="group4"), "1-bit")
    yield Case("alpha.png", encoded(np.dstack([picture, alpha]), "PNG"), "on white")
    yield Case("alpha.webp", encoded(np.dstack([picture, alpha]), "WEBP", lossless=True), "on white")
    yield Case("alpha.tiff", encoded(np.dstack([picture, alpha]), "TIFF"), "on white")

    # Several pictures in a file: the first one, and no other is looked at.
    gif = encoded(
        image.quantize(64), "GIF", save_all=True, append_images=[other.quantize(64) for other in others]
    )
    yield Case("animated.gif", gif, "palette")
    yield Case("damaged later.gif", gif[: len(lossless["GIF"]) + 100], "palette")
    for kind in ("WEBP", "PNG", "TIFF", "MPO"):
        options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "MPO" else {}
        data = encoded(picture, kind, save_all=True, append_images=others, **options)
        name = "of a phone.jpg" if kind == "MPO" else f"animated.{kind}"
        yield Case(name, data, "colour", LOSSY if kind == "MPO" else 0)
    yield Case("with a film.jpg", jpeg + b"\0\0\0\x18ftypmp42" + b"\xff\xda\0\2" * 500, "colour", LOSSY)

    # EXIF.
    for orientation in STORED:
        yield Case(f"turned {orientation}.png", turned(picture, orientation, "PNG"), "colour")
        yield Case(f"turned {orientation}.tiff", turned(picture, orientation, "TIFF"), "colour")
        yield Case(
            f"turned {orientation}.webp", turned(picture, orientation, "WEBP", lossless=True), "colour"
        )
        yield Case(
            f"turned {orientation}.jpg", turned(picture, orientation, "JPEG", quality=98), "colour", LOSSY
        )
    for kind in ("PNG", "WEBP", "JPEG"):
        options = {"lossless": True} if kind == "WEBP" else {"quality": 98} if kind == "JPEG" else {}
        data = encoded(picture, kind, exif=b"Exif\0\0garbage", **options)
        yield Case(f"odd exif.{kind}", data, "colour", LOSSY if kind == "JPEG" else 0)

    # Bombs: small files that claim to be large pictures, or unpack to large notes.
    limit = "20000×20000 is over the limit of 200,000,000 pixels"
    yield Case("bomb.png", png_bomb, reason=limit)
    yield Case("bomb.tiff", lambda: encoded(Image.new("1", BOMB), "TIFF", compression="group4"), reason=limit)
    yield Case("bomb.gif", b"GIF89a" + struct.pack("<HH", *BOMB) + lossless["GIF"][10:], reason=limit)
    at = jpeg.index(b"\xff\xc0") + 5
    yield Case("bomb.jpg", jpeg[:at] + struct.pack(">HH", *BOMB) + jpeg[at + 4 :], reason=limit)
    yield Case("bomb.ppm", b"P6 20000 20000 255\n" + bytes(100), reason=limit)
    yield Case("many scans.jpg", many_scans(picture), reason="damaged: a JPEG of more than 100 scans")
    notes = "damaged: its comments or colour profile unpack to megabytes"
    yield Case("text bomb.png", lambda: with_chunk(png, b"zTXt", b"Comment\0\0" + megabytes()), reason=notes)
    yield Case("profile bomb.png", lambda: with_chunk(png, b"iCCP", b"sRGB\0\0" + megabytes()), reason=notes)
    yield Case(
        "odd profile.png", with_chunk(png, b"iCCP", b"sRGB\0\0" + zlib.compress(b"no profile")), "colour"
    )

    # Hardly a picture.
    for width, height in ((1, 1), (1, 900), (900, 1), (2, 2), (1, 60_000)):
        line = encoded(np.full((height, width, 3), 128, np.uint8), "PNG")
        yield Case(f"{width} by {height}.png", line, status="no-face", reason="no face found")

    # 30,000 pixels wide.
    yield Case("panorama.jpg", lambda: panorama(image), "grey", LOSSY)


class Aligned(NamedTuple):
    root: Path
    rows: dict[str, dict]
    cases: dict[str, Case]
    stderr: str


@pytest.fixture(scope="module")
def kinds(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Aligned:
    """All cases of one face, and the plain pictures that they must come out like, aligned by the real command."""
    root = tmp_path_factory.mktemp("kinds")
    picture = np.asarray(Image.open(drawn / "ann" / "1.jpg").convert("RGB"))
    table = {case.name: case for case in cases(picture)}
    files = {f"ann/{name}": case.data() if callable(case.data) else case.data for name, case in table.items()}
    files |= {f"like/{name}.png": encoded(plain, "PNG") for name, plain in references(picture).items()}
    scan = encoded(picture, "JPEG", quality=95)
    files |= {f"flips/{percent}.jpg": flipped(scan, percent / 100) for percent in range(20, 100, 8)}
    files["bob/1.jpg"] = (drawn / "bob" / "1.jpg").read_bytes()
    for name, data in files.items():
        (root / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "raw" / name).write_bytes(data)
    command = [sys.executable, "-m", "facetrain.cli", "align", "raw", "aligned", *map(str, ALIGN), "-j", "1"]
    done = subprocess.run(
        command,
        cwd=root,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES)),
    )
    assert done.returncode == 0, done.stderr
    # Each case under its own name only, so that one that is written twice in the table does not hide another.
    assert len(table) == len(list(cases(picture)))
    return Aligned(root, rows(root), table, done.stderr)


def case_names() -> list[str]:
    return [case.name for case in cases(np.zeros((250, 250, 3), np.uint8))]


class TestWhatFilesHold:
    @pytest.mark.parametrize("name", case_names())
    def test_the_right_crop_or_a_reason(self, kinds: Aligned, name: str) -> None:
        case, row = kinds.cases[name], kinds.rows[f"ann/{name}"]
        if case.like is None:
            assert row["status"] == case.status
            assert row["reason"].startswith(case.reason)
            assert "\n" not in row["reason"]
            assert row["aligned"] is None
            return
        plain = kinds.rows[f"like/{case.like}.png"]
        assert row["status"] == "aligned", row["reason"]
        difference = np.abs(crop(kinds.root, row) - crop(kinds.root, plain))
        assert difference.mean() <= case.within
        if case.within == 0:
            assert row["aligned_content"] == plain["aligned_content"]
            assert row["landmarks"] == plain["landmarks"]

    def test_the_plain_pictures_differ(self, kinds: Aligned) -> None:
        """Or being like one of them would mean little."""
        plain = [row for path, row in kinds.rows.items() if path.startswith("like/")]
        assert len({row["aligned_content"] for row in plain}) == len(plain) == 5
        one, other = (crop(kinds.root, kinds.rows[path]) for path in ("like/colour.png", "bob/1.jpg"))
        assert np.abs(one - other).mean() > 2.5 * LOSSY

    def test_a_flipped_bit_of_a_jpeg_may_go_unnoticed_but_never_without_a_row(self, kinds: Aligned) -> None:
        """JPEG has no checksums: what the flip does to the picture is all there is to see."""
        flips = [row for path, row in kinds.rows.items() if path.startswith("flips/")]
        assert len(flips) == 10
        for row in flips:
            if row["status"] == "aligned":
                assert crop(kinds.root, row).shape == (64, 64, 3)
            else:
                assert row["status"] in ("no-face", "unreadable")
                assert row["reason"]

    def test_nothing_is_printed_but_progress(self, kinds: Aligned) -> None:
        assert [line for line in kinds.stderr.splitlines() if not line.startswith("aligning: ")] == []

    def test_the_list_of_rejects_has_every_one(self, kinds: Aligned) -> None:
        (path,) = (kinds.root / ".ft" / "datasets").glob("*/rejected.csv")
        with open(path, newline="") as file:
            listed = {line["path"]: (line["status"], line["reason"]) for line in csv.DictReader(file)}
        assert listed == {
            path: outcome(row) for path, row in kinds.rows.items() if row["status"] != "aligned"
        }


def test_the_limit_of_pixels_can_be_set(
    one_person: Path, ft: Callable, wrong: Callable, in_process: None
) -> None:
    root = one_person.parent
    Image.new("1", (1000, 1001)).save(one_person / "ann" / "3.png")
    how = ["align", one_person, root / "aligned", *ALIGN, "--max-megapixels"]
    assert "--max-megapixels" in wrong(root, *how, 0)
    ft(root, *how, 1)
    reason = "1000×1001 is over the limit of 1,000,000 pixels"
    assert outcome(rows(root)["ann/3.png"]) == ("unreadable", reason)
    ft(root, *how, 2)
    assert outcome(rows(root)["ann/3.png"]) == ("no-face", "no face found")


# -- how they lie on the disk ----------------------------------------------------------------------------------------


@pytest.fixture
def root(one_person: Path, in_process: None) -> Path:
    """A workspace with photographs to be added to: ann/1.jpg, ann/2.jpg and bob/1.jpg."""
    return one_person.parent


def align(root: Path, ft: Callable) -> dict[str, dict]:
    ft(root, "align", root / "raw", root / "aligned", *ALIGN)
    return rows(root)


def copy(root: Path, name: str) -> Path:
    """The photograph ann/1.jpg under another name."""
    path = root / "raw" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root / "raw" / "ann" / "1.jpg", path)
    return path


NAMES = [
    "ann/two\nlines.jpg",
    "ann/return\r.jpg",
    "ann/tab\t.jpg",
    "ann/colour\x1b[31m.jpg",
    'ann/"it\'s", she said.jpg',
    "-rf/--help.jpg",
    "  spaces  /  and more  .jpg",
    "O\\Brien/c:\\a.jpg",
    "$(HOME)/`ls`;& #.jpg",
    "[*]?/%s{}.jpg",
    "~/1.jpg",
    "😀👩🏽‍🚀/🎂.jpg",
    "\u202egnp/\u202egpj.jpg",
    "x" * 255 + "/" + "y" * 251 + ".jpg",
    "é" * 127 + "/" + "é" * 125 + ".jpg",
    "deep/" + "f" * 255 + "/" + "g" * 255 + "/1.jpg",
    "folder.jpg/1.jpg",
    "CON/nul.jpg",
]


class TestHowTheyLieOnTheDisk:
    def test_names(self, root: Path, ft: Callable) -> None:
        for name in NAMES:
            copy(root, name)
        table = align(root, ft)
        assert sorted(table) == sorted([*NAMES, "ann/1.jpg", "ann/2.jpg", "bob/1.jpg"])
        for name in NAMES:
            assert table[name]["identity"] == name.split("/")[0]
            assert np.array_equal(crop(root, table[name]), crop(root, table["ann/1.jpg"]))
        assert len({row["aligned"] for row in table.values()}) == len(table)
        assert "nothing to do" in ft(root, "align", root / "raw", root / "aligned", *ALIGN).stdout

    def test_names_in_the_list_of_rejects(self, root: Path, ft: Callable) -> None:
        for name in NAMES:
            copy(root, name).write_bytes(b"")
        table = align(root, ft)
        (path,) = (root / ".ft" / "datasets").glob("*/rejected.csv")
        with open(path, newline="", encoding="utf-8") as file:
            listed = {line["path"]: line["reason"] for line in csv.DictReader(file)}
        assert listed == dict.fromkeys(NAMES, "the file is empty")
        assert {outcome(table[name]) for name in NAMES} == {("unreadable", "the file is empty")}

    def test_names_that_are_not_utf8(self, root: Path, ft: Callable) -> None:
        try:
            copy(root, os.fsdecode(b"ann/\xff.jpg"))
        except OSError:
            pytest.skip("this file system allows no such names")
        copy(root, os.fsdecode(b"Jos\xe9/1.jpg"))
        table = align(root, ft)
        for path in ("ann/\\xff.jpg", "Jos\\xe9/1.jpg"):
            assert outcome(table[path]) == ("unreadable", "its name is not UTF-8: rename it")
        assert table["ann/1.jpg"]["status"] == "aligned"

    def test_a_path_longer_than_the_system_takes(self, root: Path, ft: Callable) -> None:
        """Files that no program can open by their path, only step by step."""
        here = os.open(root / "raw" / "ann", os.O_RDONLY)
        for _ in range(17):
            os.mkdir("d" * 255, dir_fd=here)
            here, above = os.open("d" * 255, os.O_RDONLY, dir_fd=here), here
            os.close(above)
        os.close(os.open("1.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        os.close(here)
        table = align(root, ft)
        (path,) = table.keys() - {"ann/1.jpg", "ann/2.jpg", "bob/1.jpg"}
        assert path.startswith("ann/" + "d" * 255)
        assert outcome(table[path]) == ("unreadable", "File name too long")

    def test_links(self, root: Path, ft: Callable, tmp_path: Path) -> None:
        raw, outside = root / "raw", tmp_path / "outside"
        outside.mkdir()
        shutil.copy(raw / "bob" / "1.jpg", outside / "1.jpg")
        (outside / "back").symlink_to(raw)
        links = {
            "ann/self.jpg": "self.jpg",
            "ann/here": ".",
            "ann/up": "..",
            "ann/there.jpg": "back.jpg",
            "ann/back.jpg": "there.jpg",
            "ann/nowhere.jpg": "no/such.jpg",
            "ann/zero.jpg": "/dev/zero",
            "ann/notes": "/etc/passwd",
            "cat": outside,
            "dan/1.jpg": "../../outside/1.jpg",
        }
        (raw / "dan").mkdir()
        for name, target in links.items():
            (raw / name).symlink_to(target)
        table = align(root, ft)
        rejected = {path: outcome(row) for path, row in table.items() if row["status"] != "aligned"}
        loop, many = "a link back to a folder above it", "Too many levels of symbolic links"
        assert rejected == {
            "ann/self.jpg": ("unreadable", many),
            "ann/here": ("unreadable", loop),
            "ann/up": ("unreadable", loop),
            "ann/there.jpg": ("unreadable", many),
            "ann/back.jpg": ("unreadable", many),
            "ann/nowhere.jpg": ("unreadable", "No such file or directory"),
            "ann/zero.jpg": ("unreadable", "not a file but a pipe, socket or device"),
            "cat/back": ("unreadable", loop),
        }
        for path in ("cat/1.jpg", "dan/1.jpg"):
            assert np.array_equal(crop(root, table[path]), crop(root, table["bob/1.jpg"]))

    def test_what_is_no_file(self, root: Path, ft: Callable) -> None:
        os.mkfifo(root / "raw" / "ann" / "pipe.jpg")
        os.mknod(root / "raw" / "ann" / "socket.jpg", stat.S_IFSOCK | 0o600)
        (root / "raw" / "ann" / "folder.jpg").mkdir()
        (root / "raw" / "empty").mkdir()
        table = align(root, ft)
        for path in ("ann/pipe.jpg", "ann/socket.jpg"):
            assert outcome(table[path]) == ("unreadable", "not a file but a pipe, socket or device")
        assert len(table) == 5, "folders without photographs are no rows"

    def test_files_and_folders_that_may_not_be_read(self, root: Path, ft: Callable) -> None:
        file, folder = copy(root, "ann/3.jpg"), copy(root, "eve/1.jpg").parent
        closed = copy(root, "fay/1.jpg").parent
        file.chmod(0)
        folder.chmod(0)
        closed.chmod(0o600)  # may be listed, but nothing in it can be reached
        try:
            with unprivileged():
                table = align(root, ft)
        finally:
            folder.chmod(0o700)
            closed.chmod(0o700)
            file.chmod(0o600)
        rejected = {path: outcome(row) for path, row in table.items() if row["status"] != "aligned"}
        denied = ("unreadable", "Permission denied")
        assert rejected == {"ann/3.jpg": denied, "eve": denied, "fay/1.jpg": denied}
        table = align(root, ft)
        assert table.keys() == {"ann/1.jpg", "ann/2.jpg", "ann/3.jpg", "bob/1.jpg", "eve/1.jpg", "fay/1.jpg"}
        assert {row["status"] for row in table.values()} == {"aligned"}

    def test_identities_that_look_alike(self, root: Path, ft: Callable, drawn: Path) -> None:
        """Case and Unicode normalisation tell people apart, as they tell folders apart on this disk."""
        people = ["ann", "Ann", "ANN", "Zoë", unicodedata.normalize("NFD", "Zoë"), "ﬁa", "fia"]
        for number, name in enumerate(people):
            (root / "raw" / name).mkdir(exist_ok=True)
            shutil.copyfile(drawn / "cat" / f"{1 + number % 5}.jpg", root / "raw" / name / "1.jpg")
        if len(os.listdir(root / "raw")) < len(people) + 1:
            pytest.skip("this disk takes some of these names for one")
        table = align(root, ft)
        assert {row["identity"] for row in table.values()} == {*people, "bob"}
        for number, name in enumerate(people):
            row = table[f"{name}/1.jpg"]
            assert row["content"] == table[f"{people[number % 5]}/1.jpg"]["content"]
            assert (root / "aligned" / name / "1.jpg.png").is_file()
        assert "people" in ft(root, "prune", "--min", 1, "--dry-run").stdout

    def test_equal_photographs(self, root: Path, ft: Callable, drawn: Path) -> None:
        """The same bytes under several names, of one person and of two, also as a hard link: each is a photograph."""
        for name in ("cat", "dan", "eve"):
            shutil.copytree(drawn / name, root / "raw" / name)
        copies = ["ann/copy.jpg", "ann/link.jpg", "bob/copy.jpg", "with\nnewline/copy.jpg"]
        for name in copies:
            copy(root, name)
        (root / "raw" / copies[1]).unlink()
        os.link(root / "raw" / "ann" / "1.jpg", root / "raw" / copies[1])
        table = align(root, ft)
        for name in copies:
            assert table[name]["content"] == table["ann/1.jpg"]["content"]
            assert table[name]["aligned_content"] == table["ann/1.jpg"]["aligned_content"]
        aligned = sum(row["status"] == "aligned" for row in table.values())
        ft(root, "prune", "--min", 1)
        ft(root, "split", 0.4)
        cached = ft(root, "cache").stdout
        assert f"{aligned} crops in " in cached
        (folder,) = (root / ".ft" / "datasets").iterdir()
        index = read_index(folder)
        usable = dict(zip(index.rows["path"].to_pylist(), np.asarray(index.kept).tolist(), strict=True))
        assert all(usable[name] for name in [*copies, "ann/1.jpg"])
        ft(root, "export-tree", root / "out")
        assert sum(path.is_symlink() for path in (root / "out").rglob("*")) == aligned

    def test_equal_crops_of_others(self, root: Path, ft: Callable, drawn: Path) -> None:
        """Also where they are indexed: two files of the same bytes, one of them a hard link, are two rows."""
        crops = root / "crops"
        for name in ("ann/1.jpg", "ann/2.jpg", "bob/1.jpg", "bob/2.jpg"):
            (crops / name).parent.mkdir(parents=True, exist_ok=True)
            Image.open(drawn / "ann" / "1.jpg").resize((112, 112)).save(crops / name)
        (crops / "bob" / "2.jpg").unlink()
        os.link(crops / "ann" / "1.jpg", crops / "bob" / "2.jpg")
        ft(root, "index", crops, "--size", 112)
        index = read_index(Workspace.find(root).dataset().folder)
        table = index.rows.to_pylist()
        assert [row["path"] for row in table] == ["ann/1.jpg", "ann/2.jpg", "bob/1.jpg", "bob/2.jpg"]
        assert {outcome(row) for row in table} == {("aligned", None)}
        assert [row["aligned"] for row in table] == [row["path"] for row in table]
        assert len({row["content"] for row in table}) == 1


@contextmanager
def unprivileged() -> Iterator[None]:
    """Let permission bits bind us even when the tests run as root: lay down, for a while, the right to ignore them."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", 0x20080522, 0)  # version 3, this thread
    before = ctypes.create_string_buffer(24)  # effective, permitted, inheritable; twice
    if not hasattr(libc, "capget") or libc.capget(header, before):
        pytest.skip("running as root, and no way to be less here")
    sets = list(struct.unpack("=6I", before))
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, struct.pack("=6I", *sets)) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


# -- what happens to them meanwhile ----------------------------------------------------------------------------------


def replaced(path: Path, other: Path) -> None:
    shutil.copyfile(other, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def shrinks(path: Path, other: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def grows(path: Path, other: Path) -> None:
    with open(path, "ab") as file:
        file.write(bytes(1000))


def becomes_a_folder(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


def becomes_a_loop(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def becomes_a_pipe(path: Path, other: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def becomes_a_socket(path: Path, other: Path) -> None:
    path.unlink()
    os.mknod(path, stat.S_IFSOCK | 0o600)


def loses_its_folder(path: Path, other: Path) -> None:
    shutil.rmtree(path.parent)


class Mischief(NamedTuple):
    """What happens between the listing and the reading; the row then, and when `ft align` runs again."""

    does: Callable[[Path, Path], None]
    then: tuple[str, str | None]
    again: tuple[str, str | None] | None  # None: there is no such row any more


GONE = ("unreadable", "No such file or directory")
MISSING = ("missing", "no longer in RAW")
MISCHIEF = [
    Mischief(lambda path, other: path.unlink(), GONE, MISSING),
    Mischief(loses_its_folder, GONE, MISSING),
    Mischief(becomes_a_folder, ("unreadable", "Is a directory"), MISSING),
    Mischief(becomes_a_loop, ("unreadable", "Too many levels"), ("unreadable", "Too many levels")),
    Mischief(
        becomes_a_socket, ("unreadable", "No such device"), ("unreadable", "not a file but a pipe, socket")
    ),
    Mischief(
        becomes_a_pipe, ("unreadable", "not a file but a pipe"), ("unreadable", "not a file but a pipe")
    ),
    Mischief(shrinks, ("unreadable", "damaged: "), ("unreadable", "damaged: ")),
    Mischief(grows, ("aligned", None), ("aligned", None)),
    Mischief(replaced, ("aligned", None), ("aligned", None)),
]


class TestWhatHappensMeanwhile:
    @pytest.mark.parametrize("attempts", [1, 2, 3])
    def test_a_file_that_changes_while_it_is_read_is_read_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempts: int
    ) -> None:
        """What is begun with and what is ended with are of one state, or the file is read once more."""
        path = tmp_path / "1.jpg"
        path.write_bytes(b"before")
        what_happens = iter(["opened", "changed"])
        real = os.fstat

        def fstat(handle: int) -> os.stat_result:
            found = real(handle)  # of the state before the change
            if next(what_happens, None) == "changed":
                path.write_bytes(b"after, and longer")
            return found

        monkeypatch.setattr(aligner.os, "fstat", fstat)
        if attempts == 1:
            with pytest.raises(OSError, match="kept changing"):
                aligner.read_whole(path, attempts)
            return
        data, state = aligner.read_whole(path, attempts)
        assert data == b"after, and longer"
        assert state == Stat.of(path.stat())

    @pytest.mark.parametrize("mischief", MISCHIEF, ids=lambda m: m.does.__name__.strip("<>"))
    def test_between_listing_and_reading(
        self, root: Path, ft: Callable, drawn: Path, monkeypatch: pytest.MonkeyPatch, mischief: Mischief
    ) -> None:
        path, real = copy(root, "eve/1.jpg"), Progress.begin

        def begin(bar: Progress, total: int, **words: str) -> None:
            if words.get("description") != "checking":  # the crops, which comes before
                mischief.does(path, drawn / "bob" / "1.jpg")
            real(bar, total, **words)

        with monkeypatch.context() as patch:
            patch.setattr(Progress, "begin", begin)
            table = align(root, ft)
        same = "bob/1.jpg" if mischief.does is replaced else "ann/1.jpg"
        for expected in (mischief.then, mischief.again):
            row = table["eve/1.jpg"]
            assert row["status"] == expected[0]
            if expected[1] is None:
                assert np.array_equal(crop(root, row), crop(root, table[same]))
            else:
                assert row["reason"].startswith(expected[1])
                assert not (root / "aligned" / "eve" / "1.jpg.png").exists()
            assert {table[name]["status"] for name in ("ann/1.jpg", "ann/2.jpg", "bob/1.jpg")} == {"aligned"}
            table = align(root, ft)

    @pytest.mark.parametrize("how", ["in place", "by rename"])
    def test_a_photograph_that_another_process_keeps_rewriting(
        self, root: Path, ft: Callable, drawn: Path, how: str
    ) -> None:
        """Never a crash, and once there is peace the right crop, whatever was read in between."""
        paths = [copy(root, f"eve/{number}.jpg") for number in range(8)]
        sources = [str(drawn / name / "1.jpg") for name in ("ann", "bob")]
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, how, *sources, *map(str, paths)], stdout=subprocess.PIPE
        )
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"writing\n"
            for _ in range(3):
                table = align(root, ft)
                for path in paths:
                    row = table[f"eve/{path.name}"]
                    assert row["status"] == "aligned" or row["reason"]
                    if how == "by rename" and row["status"] == "aligned":
                        assert row["content"] in {
                            table[name]["content"] for name in ("ann/1.jpg", "bob/1.jpg")
                        }
        finally:
            writer.kill()
            writer.communicate()
        for path in paths:
            shutil.copyfile(drawn / "bob" / "1.jpg", path)
        table = align(root, ft)
        for path in paths:
            assert np.array_equal(crop(root, table[f"eve/{path.name}"]), crop(root, table["bob/1.jpg"]))


WRITER = """
import itertools, os, sys
how, *names = sys.argv[1:]
sources, paths = [open(name, "rb").read() for name in names[:2]], names[2:]
for number in itertools.count():
    for path in paths:
        data = sources[number % 2]
        target = path + ".new" if how == "by rename" else path
        with open(target, "wb", buffering=0) as file:
            for at in range(0, len(data), 4096):
                file.write(data[at : at + 4096])
        if how == "by rename":
            os.replace(target, path)
    if number == 0:
        print("writing", flush=True)
"""
