"""Reading a photograph: any common format, upright, RGB, 8 bits; strict, so that a damaged file is noticed.

Pillow reads here, not OpenCV: OpenCV returns a truncated JPEG as a picture with a grey end, and its handling of EXIF
orientation differs between formats. Both decode intact JPEGs to the same pixels.

Colour profiles are ignored: the numbers in the file are taken for sRGB. Only the first picture of a file is decoded:
the first frame, the first page, the main picture of those that a phone stores together.
"""

from __future__ import annotations

import ctypes
import io
import logging
import re
import threading
import warnings

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError, _imaging

MAX_PIXELS = 200_000_000  # larger is taken for a decompression bomb
MAX_SCANS = 100  # of a progressive JPEG; each costs time like a whole picture, and real ones have ten or so
STRIP_PX = 512  # rows that are converted at a time where a whole copy would be large
# What may lie behind the suffixes that we look at. Pillow knows more, and hands PostScript to another program.
Image.init()
FORMATS: list[str] = [
    name
    for name in ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "JPEG2000", "AVIF", "PPM")
    if name in Image.OPEN
]
ORIENTATIONS = (b"Exif\0\0", b"http://ns.adobe.com/xap/")  # the blocks of a JPEG that may hold one
NEXT_MARKER = re.compile(
    rb"\xff([^\x00\x01\xd0-\xd8\xff])"
)  # of a JPEG: those that have a length, and its end
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Unreadable(Exception):
    """The photograph cannot be used; the message says why."""


class TooLarge(Unreadable):
    """It has more pixels than the limit allows."""

    def __init__(self, width_px: int, height_px: int, max_pixels: int) -> None:
        super().__init__(f"{width_px}×{height_px} is over the limit of {max_pixels:,} pixels")
        self.width_px, self.height_px = width_px, height_px


class OutOfMemory(Unreadable):
    """There is not enough memory to decode it here and now."""


class _OurRules:
    """Pillow's limit of pixels gives way to ours, and its warnings, of odd EXIF blocks and the like, are not shown.

    Both are settings of the whole process: the first of the threads that read at the same time makes them, and the
    last one takes them back.
    """

    def __init__(self) -> None:
        self._lock, self._readers = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if self._readers == 0:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.simplefilter("ignore")
            self._readers += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                Image.MAX_IMAGE_PIXELS = self._limit
                self._warnings.__exit__(None, None, None)


_OUR_RULES = _OurRules()


def read_photograph(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an encoded photograph to uint8 RGB [height, width, 3], EXIF orientation applied.

    Transparent parts are laid on white; of an animation the first frame is taken; grey of 16 bits, or as floats, is
    scaled to 8 bits.
    Raises Unreadable with the reason, TooLarge before anything over ``max_pixels`` is decoded.
    """
    if not data:
        raise Unreadable("the file is empty")
    try:
        plain = _plain_jpeg(data, max_pixels)
        if plain is not None:
            return plain
        with _OUR_RULES, Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise TooLarge(*image.size, max_pixels)
            if image.format in ("JPEG", "MPO") and _scans(data) > MAX_SCANS:
                raise Unreadable(f"damaged: a JPEG of more than {MAX_SCANS} scans")
            image.load()
            return _pixels(_upright(_to_rgb(image), _orientation(image)))
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable(_what_it_is(data)) from None
    except MemoryError:
        raise OutOfMemory("not enough memory to decode it") from None
    except Exception as error:  # Pillow's parsers raise whatever they stumble over (struct, Syntax, Value…)
        if "MAX_TEXT_CHUNK" in str(error) or "MAX_TEXT_MEMORY" in str(error):
            raise Unreadable("damaged: its comments or colour profile unpack to megabytes") from None
        raise Unreadable(f"damaged: {' '.join(str(error).split()) or type(error).__name__}") from None


def _plain_jpeg(data: bytes, max_pixels: int) -> np.ndarray | None:
    """A JPEG that is whole, in colour, and has no orientation: the same pixels as Pillow's, in half the time.

    None where Pillow must look: at anything else, and at the least damage, to say what it is.
    """
    if not data.startswith(b"\xff\xd8\xff") or any(block in data for block in ORIENTATIONS):
        return None
    if data.count(b"\xff\xda") > MAX_SCANS:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours != "YCbCr" or height * width > max_pixels:
            return None
        return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError:
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(grey: np.ndarray) -> np.ndarray:
    """Scale grey of any depth, [h, w], to uint8, in strips: a copy in floats would be eight times as large.

    Which value is white nobody tells: the least of 1 (floats only), 8, 10, 12, 14 and 16 bits that holds the brightest.
    """
    brightest = grey[np.isfinite(grey)].max(initial=0)
    whites = [1.0] if grey.dtype.kind == "f" else []
    whites += [2.0**bits - 1 for bits in (8, 10, 12, 14)]
    white = next((white for white in whites if brightest <= white), 65535.0)
    out = np.empty(grey.shape, np.uint8)
    for top in range(0, len(grey), STRIP_PX):
        strip = np.nan_to_num(grey[top : top + STRIP_PX].astype(np.float64))
        out[top : top + STRIP_PX] = np.clip(np.rint(strip * (255.0 / white)), 0, 255)
    return out


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except MemoryError:
        raise
    except Exception:  # what is damaged is the EXIF block; the picture has been decoded
        return None


def _upright(image: Image.Image, orientation: object) -> Image.Image:
    method = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _pixels(image: Image.Image) -> np.ndarray:
    """uint8 [h, w, 3]; of a large picture in strips, since Pillow copies all of it twice on the way."""
    if image.height <= STRIP_PX:
        return np.asarray(image)
    out = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, STRIP_PX):
        bottom = min(top + STRIP_PX, image.height)
        out[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return out


def _scans(jpeg: bytes) -> int:
    """How many scans a JPEG has, at least where they are many; what follows its end (a film, say) does not count."""
    scans = jpeg.count(b"\xff\xda")
    if scans <= MAX_SCANS:
        return scans
    scans, at = 0, 2
    while (found := NEXT_MARKER.search(jpeg, at)) is not None and found[1] != b"\xd9":
        scans += found[1] == b"\xda"
        at = found.end() + int.from_bytes(jpeg[found.end() : found.end() + 2], "big")
    return scans


def _what_it_is(data: bytes) -> str:
    """Why Pillow could not tell what ``data`` is, by its first bytes."""
    begins = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
    kind = next((kind for magic, kind in begins.items() if data.startswith(magic)), None)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "WebP"
    if kind is not None:
        return f"damaged, or of a kind that cannot be read: it begins as a {kind}"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"):
        return "HEIC, which cannot be read: convert it to JPEG"
    if data[:200].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, no photograph"
    return "no image format that we know"


def _keep_quiet() -> None:
    """Damage becomes an exception, and so a reason; that libtiff prints it too only garbles the terminal."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    try:
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)
    except (AttributeError, OSError):
        pass  # a Pillow whose libtiff is not to be found that way


_keep_quiet()
