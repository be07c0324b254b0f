"""From landmarks to a crop: the transform onto the template, and the warp."""

from __future__ import annotations

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
}


def template_landmarks(points: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """Of all landmarks, float [68 or 5, 2], those of the spec's template in its order, float64 [3 or 5, 2]."""
    groups = (_OF_68 if spec.predictor == 68 else _OF_5)[spec.landmarks]
    return np.array([points[list(group)].mean(axis=0) for group in groups], np.float64)


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
    # In the plane a similarity is z → a·z + b over the complex numbers, and least squares has a closed form.
    z, w = source @ [1, 1j], target @ [1, 1j]
    z0, w0 = z.mean(), w.mean()
    a = np.vdot(z - z0, w - w0) / np.vdot(z - z0, z - z0).real
    b = w0 - a * z0
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def is_degenerate(points: np.ndarray, spec: ImageSpec) -> bool:
    """True when the landmarks lie on a line or in a point, so that no transform follows from them."""
    source = template_landmarks(points, spec)
    spread = np.linalg.svd(source - source.mean(axis=0), compute_uv=False)
    return bool(spread[-1 if spec.transform == "affine" else 0] < 1e-3)


def crop(image: np.ndarray, points: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """Warp uint8 [h, w, 3] to uint8 [size_px, size_px, 3]: bilinear, black beyond the border (as OpenFace does)."""
    size = (spec.size_px, spec.size_px)
    return cv2.warpAffine(image, crop_transform(points, spec), size, flags=cv2.INTER_LINEAR)


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
