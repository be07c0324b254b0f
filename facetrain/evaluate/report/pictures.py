"""Photographs as data URIs, small enough for hundreds of them on a page."""

from __future__ import annotations

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

LARGEST_PX = 112
QUALITY = 82


def jpeg_uri(crop: NDArray[np.uint8]) -> str:
    """A crop, uint8 [height, width, 3], RGB, as ``data:image/jpeg;…``; made smaller where it is larger than LARGEST_PX."""
    height, width = crop.shape[:2]
    scale = LARGEST_PX / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        crop = cv2.resize(crop, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    )
    assert done
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def png_as_jpeg_uri(data: bytes) -> str | None:
    """The same of a PNG file's bytes; None where they are none."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    return None if image is None else jpeg_uri(cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8))
