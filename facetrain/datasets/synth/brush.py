"""Drawing tools: smooth curves, and a canvas that takes them at twice the final size.

Shapes are float arrays [n, 2] of (x, y) in canvas pixels; colours are RGB triples in 0..1.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]  # float32 or float64
Pixels = NDArray[Any]  # uint8
Colour = tuple[float, float, float]

SUBPIXEL_BITS = 3  # cv2 draws at fixed-point coordinates: eighths of a pixel


@lru_cache(maxsize=64)
def _catmull_rom(controls: int, steps: int, closed: bool) -> NDArray[np.float64]:
    """The matrix [points, controls] that turns control points into a Catmull-Rom spline through them."""
    segments = controls if closed else controls - 1
    t = np.arange(steps) / steps
    weights = 0.5 * np.stack(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3], axis=1
    )
    basis = np.zeros((segments * steps + (not closed), controls))
    for segment in range(segments):
        rows = slice(segment * steps, (segment + 1) * steps)
        for tap, control in enumerate(range(segment - 1, segment + 3)):
            index = control % controls if closed else min(max(control, 0), controls - 1)
            basis[rows, index] += weights[:, tap]
    if not closed:
        basis[-1, -1] = 1.0
    return basis


def curve(points: object, *, closed: bool = False, steps: int = 6) -> Floats:
    """A smooth curve [m, k] through control points [n, k], ``steps`` points from each to the next."""
    controls = np.asarray(points, dtype=np.float64)
    return _catmull_rom(len(controls), steps, closed) @ controls


def ellipse(x: float, y: float, half_width: float, half_height: float, points: int = 28) -> Floats:
    """The outline [points, 2] of an upright ellipse."""
    return _circle(points) * (half_width, half_height) + (x, y)


@lru_cache(maxsize=16)
def _circle(points: int) -> Floats:
    angle = np.linspace(0.0, 2 * np.pi, points, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def mirrored(half: object) -> Floats:
    """Points [n, 2] on one side, then their mirror images on the way back; a last one at x = 0 comes once."""
    points = np.asarray(half, dtype=np.float64)
    back = points[::-1] * [-1, 1]
    return np.concatenate([points, back[1:] if points[-1, 0] == 0 else back])


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """``a`` with ``share`` of ``b`` in it."""
    return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share)


def shade(colour: Colour, factor: float) -> Colour:
    """``colour`` made darker (``factor`` < 1) or lighter."""
    return (min(colour[0] * factor, 1.0), min(colour[1] * factor, 1.0), min(colour[2] * factor, 1.0))


def fixed_point(points: Floats) -> NDArray[np.int32]:
    """Pixel coordinates as cv2 wants them; the half is the centre of a pixel."""
    return np.rint((points - 0.5) * (1 << SUBPIXEL_BITS)).astype(np.int32)


def fill_mask(mask: Pixels, points: Floats, value: int = 255) -> None:
    """Set ``mask`` to ``value`` inside the polygon, with smooth edges."""
    cv2.fillPoly(mask, [fixed_point(points)], (value,), cv2.LINE_AA, SUBPIXEL_BITS)


def grain_tile(rng: np.random.Generator, size_px: int) -> Pixels:
    """Fine noise, uint8 [size_px, size_px]: hairs and pores, when it scales the strength of a brush."""
    noise = rng.integers(0, 256, (size_px // 2, size_px // 2), dtype=np.uint8)
    return cv2.resize(noise, (size_px, size_px), interpolation=cv2.INTER_LINEAR)


class Canvas:
    """An RGBA picture to paint on, empty at first; alpha says where something has been painted.

    ``unit`` is the number of canvas pixels in one unit of the figure's own measure, half the width of a head.
    """

    def __init__(self, size_px: int, unit: float, grain: Pixels) -> None:
        self.pixels: Pixels = np.zeros((size_px, size_px, 4), np.uint8)
        self.size_px, self.unit, self._grain = size_px, unit, grain

    def fill(self, points: Floats, colour: Colour) -> None:
        """Fill a polygon, opaque."""
        cv2.fillPoly(self.pixels, [fixed_point(points)], _bytes(colour), cv2.LINE_AA, SUBPIXEL_BITS)

    def line(self, points: Floats, colour: Colour, width: float, *, closed: bool = False) -> None:
        """An opaque line ``width`` units wide."""
        thickness = max(1, round(width * self.unit))
        path = [fixed_point(points)]
        cv2.polylines(self.pixels, path, closed, _bytes(colour), thickness, cv2.LINE_AA, SUBPIXEL_BITS)

    def soft(
        self,
        points: Floats,
        colour: Colour,
        strength: float,
        blur: float = 0.0,
        *,
        line_width: float = 0.0,
        grain: float = 0.0,
        inside: Floats | None = None,
    ) -> None:
        """Paint ``strength`` (0..1) of ``colour`` in a polygon, or along a line of ``line_width`` units.

        ``blur`` (units) softens the edge, ``grain`` (0..1) breaks the paint up into fine hairs or pores, and
        only the part within the polygon ``inside`` is painted, where it is given.
        """
        blur_px = blur * self.unit
        path = fixed_point(points)
        margin = int(2.0 * blur_px + line_width * self.unit) + 2
        x, y, width, height = cv2.boundingRect(path >> SUBPIXEL_BITS)
        left, top = max(x - margin, 0), max(y - margin, 0)
        right, bottom = min(x + width + margin, self.size_px), min(y + height + margin, self.size_px)
        if left >= right or top >= bottom:
            return
        mask: Pixels = np.zeros((bottom - top, right - left), np.uint8)
        corner = np.array([left, top], np.int32) << SUBPIXEL_BITS
        if line_width:
            thickness = max(1, round(line_width * self.unit))
            cv2.polylines(mask, [path - corner], False, (255,), thickness, cv2.LINE_AA, SUBPIXEL_BITS)
        else:
            cv2.fillPoly(mask, [path - corner], (255,), cv2.LINE_AA, SUBPIXEL_BITS)
        if blur_px > 0.4:
            box = 2 * int((6 * blur_px**2 + 1) ** 0.5 / 2) + 1
            mask = cv2.blur(cv2.blur(mask, (box, box)), (box, box))  # near a Gaussian, and much faster
        if grain:
            tile = self._grain[top:bottom, left:right]
            tile = cv2.convertScaleAbs(tile, alpha=grain, beta=255 * (1 - grain))
            mask = cv2.multiply(mask, tile, scale=1 / 255)
        if inside is not None:
            limit = np.zeros_like(mask)
            cv2.fillPoly(limit, [fixed_point(inside) - corner], (255,), cv2.LINE_AA, SUBPIXEL_BITS)
            mask = cv2.multiply(mask, limit, scale=1 / 255)
        keep = cv2.convertScaleAbs(mask, alpha=-strength, beta=255)
        paint = [cv2.convertScaleAbs(mask, alpha=strength * channel) for channel in colour]
        patch = self.pixels[top:bottom, left:right]
        kept = cv2.multiply(patch, cv2.merge((keep, keep, keep, np.full_like(mask, 255))), scale=1 / 255)
        added = cv2.merge((*paint, np.zeros_like(mask)))  # alpha stays as it is: soft paint fills no void
        patch[:] = cv2.add(kept, added)


def _bytes(colour: Colour) -> tuple[int, int, int, int]:
    return (round(colour[0] * 255), round(colour[1] * 255), round(colour[2] * 255), 255)
