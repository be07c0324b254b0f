"""From the measures of a head to the pixels of a picture: rotation, weak perspective, place in the frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from facetrain.datasets.synth.brush import Floats
from facetrain.datasets.synth.shot import Pose

HEAD_CENTRE_Y = 0.12  # the head turns about this point, between the ears
HEAD_DEPTH = 0.95
HEAD_HALF_WIDTH, HEAD_HALF_HEIGHT = (
    1.12,
    1.75,
)  # the ellipsoid that features lie on, a little outside the outline


def surface_depth(points: Floats) -> Floats:
    """How far the face stands out towards the camera, [n], at points [n, 2]."""
    narrower = 1.0 - 0.15 * np.clip(points[:, 1] - 0.4, 0.0, 1.0)  # towards the chin
    x, y = points[:, 0] / (HEAD_HALF_WIDTH * narrower), (points[:, 1] - HEAD_CENTRE_Y) / HEAD_HALF_HEIGHT
    return HEAD_DEPTH * np.sqrt(np.maximum(1.0 - x * x - y * y, 0.04))


class View:
    """Where a posed head lies on a canvas ``canvas_px`` wide."""

    def __init__(self, pose: Pose, canvas_px: int) -> None:
        self.unit = pose.unit * canvas_px
        self.centre = np.array([pose.x, pose.y]) * canvas_px
        self.roll = pose.roll
        self._distance = pose.distance
        self._rotation = _rotation(pose)

    def place(self, points: object, lift: float | Floats = 0.0) -> Floats:
        """Canvas pixels [n, 2] of points [n, 2] on the face, raised ``lift`` above its surface."""
        flat = np.asarray(points, dtype=np.float64)
        return self.place_at(flat, surface_depth(flat) + lift)

    def place_at(self, points: object, depth: float | Floats) -> Floats:
        """Canvas pixels [n, 2] of points [n, 2] at a given depth; 0 is the plane of the ears."""
        flat = np.asarray(points, dtype=np.float64)
        solid = np.empty((len(flat), 3))
        solid[:, :2] = flat
        solid[:, 1] -= HEAD_CENTRE_Y
        solid[:, 2] = depth
        turned = solid @ self._rotation.T
        scale = self.unit * self._distance / (self._distance - turned[:, 2:])
        return turned[:, :2] * scale + self.centre


def _rotation(pose: Pose) -> NDArray[np.float64]:
    (cy, sy), (cp, sp), (cr, sr) = ((np.cos(a), np.sin(a)) for a in (pose.yaw, pose.pitch, pose.roll))
    yaw = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    pitch = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    roll = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return roll @ pitch @ yaw
