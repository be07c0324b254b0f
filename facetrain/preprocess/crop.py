"""From landmarks to a crop: the transform onto the template, and the warp."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np

from facetrain.image_spec import ImageSpec

# Which of dlib's points make up a landmark set. A tuple of several points stands for their mean (an eye's centre).
_OF_68: dict[str, tuple[tuple[int, ...], ...]] = {
    "inner-eyes-bottom-lip": ((39,), (42,), (57,)),
    "outer-eyes-nose": ((36,), (45,), (33,)),
    "five-point": (tuple(range(36, 42)), tuple(range(42, 48)), (30,), (48,), (54,)),
}
# dlib's 5-point model gives points 45, 42, 36, 39 and 33 of the 68, in this order.
_OF_5: dict[str, tuple[tuple[int, ...], ...]] = {
    "outer-eyes-nose": ((2,), (0,), (4,)),
    "five-point": ((0,), (1,), (2,), (3,), (4,)),
    "dlib-chip": ((0,), (1,), (2,), (3,), (4,)),
}


def template_landmarks(points: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """Of all landmarks, float [68 or 5, 2], those of the spec's template in its order, float64 [3 or 5, 2]."""
    groups = {68: _OF_68, 5: _OF_5}[spec.predictor][spec.landmarks]
    return np.array(
        [points[group[0]] if len(group) == 1 else points[list(group)].mean(axis=0) for group in groups],
        np.float64,
    )


def crop_transform(points: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """The 2×3 matrix, float64, that takes the photograph's pixels to the crop's.

    ``affine`` is exact on three points (OpenFace); ``similarity`` is the least-squares rotation, scale and shift
    (Umeyama 1991, without reflection), as insightface and FaceX-Zoo use it.
    """
    source = template_landmarks(points, spec)
    target = np.array(spec.template_px, np.float64)
    if spec.transform == "affine":
        return cv2.getAffineTransform(source.astype(np.float32), target.astype(np.float32))
    return _similarity(source, target)


def _similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    # In the plane a similarity is z → a·z + b over the complex numbers, and least squares has a closed form. Python's
    # numbers, since these are a few points only, and NumPy's calls take ten times as long.
    z, w = ([complex(x, y) for x, y in points.tolist()] for points in (source, target))
    z0, w0 = sum(z) / len(z), sum(w) / len(w)
    across = sum((p - z0).conjugate() * (q - w0) for p, q in zip(z, w, strict=True))
    a = across / sum(abs(p - z0) ** 2 for p in z)
    b = w0 - a * z0
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def is_degenerate(points: np.ndarray, spec: ImageSpec) -> bool:
    """True when the landmarks lie on a line or in a point, so that no transform follows from them."""
    xs, ys = template_landmarks(points, spec).T.tolist()
    x0, y0 = sum(xs) / len(xs), sum(ys) / len(ys)
    largest, smallest = _singular_values([x - x0 for x in xs], [y - y0 for y in ys])
    return (smallest if spec.transform == "affine" else largest) < 1e-3


def _singular_values(first: list[float], second: list[float]) -> tuple[float, float]:
    """Both of the matrix of these two rows, from the eigenvalues of rows·rowsᵀ: NumPy's SVD takes ten times as long."""
    a, c = sum(x * x for x in first), sum(y * y for y in second)
    b = sum(x * y for x, y in zip(first, second, strict=True))
    middle, half = (a + c) / 2, math.hypot((a - c) / 2, b)
    return math.sqrt(middle + half), math.sqrt(max(middle - half, 0.0))


def crop(image: np.ndarray, points: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """Warp uint8 [h, w, 3] to uint8 [size_px, size_px, 3]: bilinear, black beyond the border (as OpenFace does).

    Bilinear sampling looks at four pixels. A face of more than twice the crop's size is therefore first shrunk by a
    whole factor, each pixel the mean of its block, so that what is too fine for the crop becomes grey, not moiré.
    """
    return _warp(image, crop_transform(points, spec), spec.size_px)


def crop_on_five(image: np.ndarray, five: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """The same from five landmarks that another detector found, float [5, 2]: eyes, nose, corners of the mouth.

    For crops on the template ``five-point``; which of dlib's predictors the spec names plays no part.
    """
    target = np.array(replace(spec, predictor=68).template_px, np.float64)
    return _warp(image, _similarity(np.asarray(five, np.float64), target), spec.size_px)


def _warp(image: np.ndarray, matrix: np.ndarray, size_px: int) -> np.ndarray:
    factor = _shrink_factor(matrix)
    if factor > 1:
        image, matrix = _shrink(image, matrix, size_px, factor)
    return cv2.warpAffine(image, matrix, (size_px, size_px), flags=cv2.INTER_LINEAR)


def _shrink_factor(matrix: np.ndarray) -> int:
    """How many of the photograph's pixels fall on one of the crop's, along the axis that is shrunk less; 1 for ≤ 2."""
    scale, _ = _singular_values(*matrix[:, :2].tolist())
    return int(1 / scale) if scale < 0.5 else 1


def _shrink(
    image: np.ndarray, matrix: np.ndarray, size_px: int, factor: int
) -> tuple[np.ndarray, np.ndarray]:
    """The part of the photograph that the crop shows, shrunk by ``factor``, and the matrix from there to the crop."""
    # A pixel of the crop more on every side, since bilinear sampling looks there; then a block, which may be cut.
    corners = np.array([(x, y) for x in (-1, size_px) for y in (-1, size_px)], np.float64)
    there = (corners - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    limits = np.array(image.shape[1::-1])
    first = np.clip(np.floor(there.min(axis=0)).astype(int), 0, limits - 1)
    last = np.clip(np.ceil(there.max(axis=0)).astype(int) + factor, first + 1, limits)
    (left, top), (right, bottom) = first, last
    # Black up to a whole number of blocks: beyond the photograph's border it is black.
    more_x, more_y = -(right - left) % factor, -(bottom - top) % factor
    part = cv2.copyMakeBorder(image[top:bottom, left:right], 0, more_y, 0, more_x, cv2.BORDER_CONSTANT)
    size = (part.shape[1] // factor, part.shape[0] // factor)
    # Pixel j of the small one covers pixels first + factor·j and on, the centre of which is half a block further.
    to_photograph = first + (factor - 1) / 2
    shift = matrix[:, :2] @ to_photograph + matrix[:, 2]
    return (
        cv2.resize(part, size, interpolation=cv2.INTER_AREA),
        np.column_stack([factor * matrix[:, :2], shift]),
    )


def encode(image: np.ndarray, spec: ImageSpec) -> bytes:
    """Encode an RGB crop in the spec's format."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    options = (
        [cv2.IMWRITE_JPEG_QUALITY, spec.quality] if spec.format == "jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 6]
    )
    done, data = cv2.imencode(f".{spec.format}", bgr, options)
    if not done:
        raise RuntimeError(f"OpenCV could not encode a {spec.format} crop")
    return data.tobytes()
