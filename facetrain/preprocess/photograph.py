"""Reading a photograph: any common format, upright, RGB, 8 bits; strict, so that a damaged file is noticed.

Pillow reads here, not OpenCV: OpenCV returns a truncated JPEG as a picture with a grey end, and its handling of EXIF
orientation differs between formats. Both decode intact JPEGs to the same pixels.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 200_000_000  # larger is taken for a decompression bomb
# What may lie behind the suffixes that we look at. Pillow knows more, and hands PostScript to another program.
Image.init()
FORMATS: list[str] = [
    name
    for name in ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "JPEG2000", "AVIF", "PPM")
    if name in Image.OPEN
]


class Unreadable(Exception):
    """The photograph cannot be used; the message says why."""


def read_photograph(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an encoded photograph to uint8 RGB [height, width, 3], EXIF orientation applied.

    Transparent parts are laid on white; of an animation the first frame is taken; grey of 16 bits, or as floats, is
    scaled to 8 bits.
    Raises Unreadable with the reason.
    """
    if not data:
        raise Unreadable("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit below; odd EXIF blocks are no concern of ours
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise Unreadable(f"{width}×{height} is over the limit of {max_pixels:,} pixels")
                return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable("no image format that we know") from None
    except Image.DecompressionBombError as error:
        raise Unreadable(str(error)) from None
    except MemoryError:
        raise Unreadable("not enough memory to decode it") from None
    except (
        Exception
    ) as error:  # Pillow's decoders raise whatever their parsers stumble over (struct, Syntax, Value…)
        raise Unreadable(f"damaged: {error}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, np.float64))
        brightest = values.max(initial=0)
        top = 1.0 if image.mode == "F" and brightest <= 1 else 255.0 if brightest <= 255 else 65535.0
        image = Image.fromarray(np.clip(values * (255.0 / top), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    return image.convert("RGB")
