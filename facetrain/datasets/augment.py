"""Augmentation with DALI, from the batch as gathered, on the GPU where the batch is there.

Strength s, one number from 0 (flips only) to 5; 1 is what suits aligned face crops:

    flip         half of the images, at every strength
    rotation     by up to s·6°
    scale        by a factor of up to 1.06ˢ, either way
    shift        by up to s·3 % of the side, along each axis
    saturation   by up to s·12.5 %, either way
    hue          by up to s·4°
    grey         s·15 % of the images
    contrast, brightness    by up to s·12.5 %, either way
    blur         s·5 % of the images: Gaussian, σ from 0.4 % to 0.4 + s·0.5 % of the side
    JPEG         s·10 % of the images: quality from 90 − s·14 to 90
    erase        s·5 % of the images: a rectangle in one random colour, each side from 10 % to 10 + s·6 % of the image's

They happen in this order. All of the geometry is one warp, so that pixels are interpolated once; the border's colours
are carried on beyond it. Erasing is that of Zhong et al., "Random Erasing Data Augmentation", 2017.

All random numbers are drawn here, from the generator that is handed in, and given to DALI as arguments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from facetrain.errors import UserError

MAX_STRENGTH = 5

# What s stands beside in the table above; the side is 1.
ROTATION_RAD = np.deg2rad(6)
LOG_SCALE = np.log(1.06)
SHIFT = 0.03
COLOUR = 0.125
HUE_DEG = 4.0
GREY_SHARE = 0.15
BLUR_SHARE, BLUR_SIGMA_MIN, BLUR_SIGMA = 0.05, 0.004, 0.005
JPEG_SHARE, JPEG_QUALITY_MAX, JPEG_QUALITY = 0.1, 90, 14
ERASE_SHARE, ERASE_SIDE_MIN, ERASE_SIDE = 0.05, 0.1, 0.06

RANDOM_NUMBERS = 22  # of each image

Draws = dict[str, np.ndarray]


class Augment:
    """uint8 [n, size_px, size_px, 3] on ``device`` → a new tensor like it, n from 0 to ``max_batch``.

    On CUDA the work is queued on the current stream, and only the draws come from the host.

    :param strength: from 0 to 5, or UserError.
    :param threads: of the processor; they change no pixel.
    """

    def __init__(
        self,
        size_px: int,
        strength: float,
        *,
        max_batch: int,
        threads: int = 1,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> None:
        if not 0 <= strength <= MAX_STRENGTH:
            raise UserError(
                f"--augment {strength:g}: choose a strength from 0 (flips only) to {MAX_STRENGTH}"
            )
        self.size_px, self.strength, self.device = size_px, strength, device
        self._max_batch, self._threads = max_batch, threads
        self._pipeline: Any = None  # DALI's types are not public

    def __call__(self, images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Augment contiguous ``images``. What becomes of one follows from ``rng`` and its place in the batch: the
        others, and how many they are, have no part in it."""
        return self.apply(images, draw(rng, len(images), self.size_px, self.strength))

    def apply(self, images: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Do to contiguous ``images`` what `draw` has drawn for them."""
        if not len(images):
            return images.clone()
        if self._pipeline is None:
            self._pipeline = self._build()
        for name, values in draws.items():
            if (name == "flipped") == (self.strength == 0):  # elsewhere, the matrix flips
                self._pipeline.feed_input(name, values)
        if self.device.type == "cpu":
            # An array, since for a tensor DALI asks torch for a CUDA stream.
            self._pipeline.feed_input("images", images.numpy())
            (out,) = self._pipeline.run()
            # Not copied: DALI never uses a buffer again that someone holds.
            return from_dlpack(out.as_tensor())
        stream = torch.cuda.current_stream(images.device)
        self._pipeline.feed_input("images", images, cuda_stream=stream)
        (out,) = self._pipeline.run(stream)
        # Copied: torch keeps no memory but its own for other streams that still read it (record_stream).
        return from_dlpack(out.as_tensor()).clone()

    def _build(self) -> Any:
        device_id = self.device.index
        if self.device.type == "cuda" and device_id is None:
            device_id = torch.cuda.current_device()
        define = define_pipeline if self.strength else define_flip
        built = define(
            self.device.type, batch_size=self._max_batch, num_threads=self._threads, device_id=device_id
        )
        built.build()
        return built


def draw(rng: np.random.Generator, count: int, size_px: int, strength: float) -> Draws:
    """What is to be done to each of ``count`` images, by the names of the pipeline's inputs.

    matrix: float32 [count, 3, 3], from pixels of the result to pixels of the source, counted from the corner. Every
    image takes the same number of random numbers, whatever the strength, and those that are blurred (say) at one
    strength are blurred at any greater one too.
    """
    s = strength
    columns = iter(rng.random((count, RANDOM_NUMBERS)).T)

    def between(low: Any, high: Any) -> np.ndarray:
        return low + (high - low) * next(columns)

    def either_way(most: float) -> np.ndarray:
        return between(-most, most)

    def share(of_all: float) -> np.ndarray:
        return next(columns) < of_all

    flipped = share(0.5)
    matrix = _matrix(
        flipped,
        angle_rad=either_way(s * ROTATION_RAD),
        scale=np.exp(either_way(s * LOG_SCALE)),
        shift_px=size_px * np.stack([either_way(s * SHIFT), either_way(s * SHIFT)], -1),
        size_px=size_px,
    )
    brightness, contrast, saturation = (1 + either_way(s * COLOUR) for _ in range(3))
    hue_deg = either_way(s * HUE_DEG)
    grey = share(s * GREY_SHARE)
    blurred = share(s * BLUR_SHARE)
    sigma_px = size_px * between(BLUR_SIGMA_MIN, BLUR_SIGMA_MIN + s * BLUR_SIGMA)
    compressed = share(s * JPEG_SHARE)
    quality = np.rint(between(JPEG_QUALITY_MAX - s * JPEG_QUALITY, JPEG_QUALITY_MAX)).astype(np.int32)
    erased = share(s * ERASE_SHARE)
    sides = [between(ERASE_SIDE_MIN, ERASE_SIDE_MIN + s * ERASE_SIDE) for _ in "hw"]
    shape_px = np.rint(size_px * np.stack(sides, -1)) * erased[:, None]
    anchor_px = np.rint(np.stack([between(0, size_px - shape_px[:, axis]) for axis in (0, 1)], -1))
    colour = np.rint(np.stack([between(0, 255) for _ in "rgb"], -1))
    draws = {
        "flipped": flipped.astype(np.int32),
        "matrix": matrix,
        "brightness": brightness,
        "contrast": contrast,
        "saturation": np.where(grey, 0, saturation),
        "hue_deg": hue_deg,
        "blurred": blurred,
        "sigma_px": sigma_px,
        "compressed": compressed,
        "quality": quality,
        "anchor_px": anchor_px,
        "shape_px": shape_px,
        "colour": colour,
    }
    return {name: x.astype(np.float32) if x.dtype == np.float64 else x for name, x in draws.items()}


def _matrix(
    flipped: np.ndarray, angle_rad: np.ndarray, scale: np.ndarray, shift_px: np.ndarray, size_px: int
) -> np.ndarray:
    """Flip, then turn, scale and shift about the centre: [n, 3, 3] from the arrays [n] and [n, 2]."""
    cos, sin = scale * np.cos(angle_rad), scale * np.sin(angle_rad)
    linear = np.stack([cos, -sin, sin, cos], -1).reshape(-1, 2, 2)
    linear[flipped, :, 0] *= -1
    matrix = np.zeros((len(flipped), 3, 3))
    matrix[:, :2, :2] = linear
    matrix[:, :2, 2] = size_px / 2 + shift_px - linear.sum(-1) * (size_px / 2)
    matrix[:, 2, 2] = 1
    return matrix


def define_flip(device_type: str, **settings: Any) -> Any:
    """The DALI pipeline of strength 0, not built yet: inputs ``images``, on the device, and ``flipped``."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(prefetch_queue_depth=1, **settings)  # type: ignore[untyped-decorator]
    def pipeline() -> Any:
        return fn.flip(_images(device_type), horizontal=_drawn("flipped", types.INT32))

    return pipeline()


def define_pipeline(device_type: str, **settings: Any) -> Any:
    """The DALI pipeline of all other strengths, not built yet: inputs ``images``, on the device, and what `draw` draws."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(prefetch_queue_depth=1, enable_conditionals=True, **settings)  # type: ignore[untyped-decorator]
    def pipeline() -> Any:
        images, matrix = _images(device_type), _drawn("matrix", types.FLOAT, ndim=2)
        if (
            device_type == "cpu"
        ):  # OpenCV's warp: the same, at a quarter of the cost of warp_affine on a processor
            x = fn.experimental.warp_perspective(images, matrix=matrix, border_mode="replicate")
        else:
            x = fn.warp_affine(images, matrix=matrix[:2])
        x = fn.color_twist(
            x,
            brightness=_drawn("brightness", types.FLOAT),
            contrast=_drawn("contrast", types.FLOAT),
            saturation=_drawn("saturation", types.FLOAT),
            hue=_drawn("hue_deg", types.FLOAT),
            dtype=types.FLOAT,  # rounded once, after the blur
        )
        sigma_px = _drawn("sigma_px", types.FLOAT)
        if _drawn("blurred", types.BOOL):  # DALI's "if": only those images are blurred
            x = fn.gaussian_blur(x, sigma=sigma_px)
        x = fn.cast(x, dtype=types.UINT8)
        quality = _drawn("quality", types.INT32)
        if _drawn("compressed", types.BOOL):
            x = fn.jpeg_compression_distortion(x, quality=quality)
        # Of all images, of most nothing: it copies them, branched off or not, into one buffer.
        return fn.erase(
            x,
            anchor=_drawn("anchor_px", types.FLOAT, ndim=1),
            shape=_drawn("shape_px", types.FLOAT, ndim=1),
            fill_value=_drawn("colour", types.FLOAT, ndim=1),
            axis_names="HW",
        )

    return pipeline()


def _images(device_type: str) -> Any:
    from nvidia.dali import fn, types

    if device_type == "cpu":
        return fn.external_source(name="images", layout="HWC", dtype=types.UINT8, no_copy=True)
    return fn.external_source(name="images", device="gpu", layout="HWC", dtype=types.UINT8)


def _drawn(name: str, dtype: Any, ndim: int = 0) -> Any:
    from nvidia.dali import fn

    return fn.external_source(name=name, dtype=dtype, ndim=ndim)
