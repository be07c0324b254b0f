"""Augmentation with DALI, from the batch as gathered. Every draw follows from (seed, epoch, position).

Strength, one number from 0 (only flips) upwards; 1 is what suits aligned face crops: rotation up to 6°, scale by up to
6 %, shift up to 3 % of the side, brightness, contrast and saturation by up to 12 %, three in twenty in grey. All of the
geometry is one warp per image, so that pixels are interpolated once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from facetrain.errors import UserError

ROTATION_RAD = np.deg2rad(6)
LOG_SCALE = np.log(1.06)
SHIFT = 0.03  # of the side
COLOUR = 0.125
GREY_PROBABILITY = 0.15


class Augment:
    """uint8 [n, H, W, 3] → the same shape, n up to ``max_batch``."""

    def __init__(self, size_px: int, strength: float, *, max_batch: int, threads: int = 1) -> None:
        if not 0 <= strength <= 5:
            raise UserError(f"--augment {strength:g}: choose a strength from 0 (flips only) to 5")
        self.size_px, self.strength = size_px, strength
        self._max_batch, self._threads = max_batch, threads
        self._pipeline: Any = None

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Augment a batch; ``rng`` is read in a fixed order, whatever the strength."""
        matrices, brightness, contrast, saturation = self.draw(len(images), rng)
        if self.strength == 0:
            flipped = matrices[:, 0, 0] < 0
            return np.where(flipped[:, None, None, None], images[:, :, ::-1], images)
        if self._pipeline is None:
            self._pipeline = self._build()
        feeds = {"matrix": matrices, "brightness": brightness, "contrast": contrast, "saturation": saturation}
        for name, values in {"images": images, **feeds}.items():
            self._pipeline.feed_input(name, values)
        (out,) = self._pipeline.run()
        return np.asarray(out.as_tensor()).copy()

    def draw(
        self, count: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Matrices float32 [n, 2, 3] from output to input pixels; brightness, contrast, saturation float32 [n]."""
        s = self.strength
        flip = np.where(rng.random(count) < 0.5, -1.0, 1.0)
        angle = s * ROTATION_RAD * rng.uniform(-1, 1, count)
        zoom = np.exp(s * LOG_SCALE * rng.uniform(-1, 1, count))
        shift = s * SHIFT * self.size_px * rng.uniform(-1, 1, (count, 2))
        rotation = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(
            -1, 2, 2
        )
        linear = rotation * zoom[:, None, None]
        linear[:, :, 0] *= flip[:, None]
        centre = np.full(2, self.size_px / 2)
        matrices = np.concatenate([linear, (centre + shift - linear @ centre)[..., None]], axis=-1)
        brightness, contrast, saturation = 1 + min(s * COLOUR, 0.9) * rng.uniform(-1, 1, (3, count))
        saturation[rng.random(count) < min(s * GREY_PROBABILITY, 1)] = 0
        return tuple(x.astype(np.float32) for x in (matrices, brightness, contrast, saturation))  # type: ignore[return-value]

    def _build(self) -> Any:
        from nvidia.dali import fn, pipeline_def, types

        @pipeline_def(
            batch_size=self._max_batch, num_threads=self._threads, device_id=None, prefetch_queue_depth=1
        )  # type: ignore[untyped-decorator]
        def pipeline() -> Any:
            images = fn.external_source(name="images", layout="HWC", dtype=types.UINT8)
            matrix = fn.external_source(name="matrix", dtype=types.FLOAT, ndim=2)
            brightness, contrast, saturation = (
                fn.external_source(name=name, dtype=types.FLOAT, ndim=0)
                for name in ("brightness", "contrast", "saturation")
            )
            warped = fn.warp_affine(images, matrix=matrix, interp_type=types.INTERP_LINEAR)
            return fn.color_twist(warped, brightness=brightness, contrast=contrast, saturation=saturation)

        built = pipeline()
        built.build()
        return built
