"""What changes from one photograph of a person to the next: pose, expression, light, camera.

Angles are in radians, lengths as in ``person``. Background and clothes draw their own numbers where they are
painted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from facetrain.datasets.synth.brush import Colour


@dataclass(frozen=True)
class Pose:
    yaw: float
    pitch: float
    roll: float
    unit: float  # pixels in one head half-width, as a share of the picture's width
    x: float  # where the head is, as shares of the picture
    y: float
    distance: float  # of the camera, in head half-widths: how strong the perspective is


@dataclass(frozen=True)
class Expression:
    smile: float  # -0.15 to 1
    mouth_open: float  # 0 to 1
    eyes_open: float  # 1: at rest
    gaze_x: float
    gaze_y: float
    brow_raise: float
    frown: float
    lopsided: float


@dataclass(frozen=True)
class Light:
    direction: tuple[float, float, float]  # unit vector towards the light
    key: Colour
    ambient: Colour
    gloss: float


@dataclass(frozen=True)
class Camera:
    exposure: float
    gamma: float
    white_balance: Colour
    saturation: float
    blur: float  # standard deviation, pixels of a 250-pixel picture
    noise: float  # standard deviation, levels of 255
    jpeg_quality: int


@dataclass(frozen=True)
class Shot:
    pose: Pose
    expression: Expression
    light: Light
    camera: Camera
    glasses_on: bool


def make_shot(rng: np.random.Generator) -> Shot:
    """Draw the conditions of one photograph."""
    u = rng.uniform
    pose = Pose(
        yaw=float(np.clip(rng.normal(0, 0.16), -0.32, 0.32)),
        pitch=float(np.clip(rng.normal(0, 0.09), -0.20, 0.20)),
        roll=float(np.clip(rng.normal(0, 0.08), -0.22, 0.22)),
        unit=u(0.185, 0.255),
        x=u(0.44, 0.56),
        y=u(0.43, 0.51),
        distance=u(7.0, 16.0),
    )
    talking = u() < 0.4
    expression = Expression(
        smile=u(-0.15, 1.0) if u() < 0.75 else 0.0,
        mouth_open=u(0.1, 1.0) if talking else 0.0,
        eyes_open=u(0.70, 1.20),
        gaze_x=rng.normal(0, 0.02),
        gaze_y=rng.normal(0, 0.008),
        brow_raise=u(-0.03, 0.07),
        frown=u(0.0, 1.0) if u() < 0.3 else 0.0,
        lopsided=rng.normal(0, 0.012),
    )
    warm = rng.normal(0, 0.09)
    contrast = u(0.15, 0.60)
    azimuth, elevation = u(-1.3, 1.3), u(-0.1, 1.1)
    light = Light(
        direction=(
            float(np.sin(azimuth) * np.cos(elevation)),
            float(-np.sin(elevation)),
            float(np.cos(azimuth) * np.cos(elevation)),
        ),
        key=(contrast * (1 + warm), contrast, contrast * (1 - warm)),
        ambient=((1 - contrast) * (1 - 0.3 * warm), 1 - contrast, (1 - contrast) * (1 + 0.3 * warm)),
        gloss=u(0.0, 0.22),
    )
    camera = Camera(
        exposure=u(0.78, 1.15),
        gamma=u(0.80, 1.30),
        white_balance=(u(0.90, 1.10), u(0.95, 1.05), u(0.88, 1.12)),
        saturation=u(0.55, 1.15) if u() < 0.93 else 0.0,
        blur=u(0.0, 1.0),
        noise=u(0.0, 7.0),
        jpeg_quality=int(rng.integers(60, 97)),
    )
    return Shot(pose, expression, light, camera, glasses_on=u() < 0.8)
