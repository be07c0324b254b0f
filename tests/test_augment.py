"""Augmentation: exact where nothing is asked for, bounded by the strength, the same for the same draws."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from facetrain.datasets.augment import COLOUR, GREY_PROBABILITY, LOG_SCALE, ROTATION_RAD, SHIFT, Augment
from facetrain.errors import UserError

SIZE = 48


@pytest.fixture(scope="module")
def images(drawn: Path) -> np.ndarray:
    photographs = [Image.open(path).resize((SIZE, SIZE)) for path in sorted((drawn / "ann").iterdir())]
    return np.stack([np.asarray(p.convert("RGB")) for p in photographs] * 4)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def fixed(
    augment: Augment, monkeypatch: pytest.MonkeyPatch, matrices: np.ndarray, colour: tuple = (1, 1, 1)
) -> None:
    """Let the augmentation draw these numbers."""
    n = len(matrices)
    draws = (matrices.astype(np.float32), *(np.full(n, value, np.float32) for value in colour))
    monkeypatch.setattr(augment, "draw", lambda count, generator: draws)


def test_strength_zero_flips_and_does_nothing_else(images: np.ndarray) -> None:
    out = Augment(SIZE, 0, max_batch=32)(images, rng())
    assert (out.dtype, out.shape) == (np.uint8, images.shape)
    flipped = [(image == source[:, ::-1]).all() for image, source in zip(out, images, strict=True)]
    kept = [(image == source).all() for image, source in zip(out, images, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 3 <= sum(flipped) <= 17


def test_the_identity_is_exact(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    augment = Augment(SIZE, 1, max_batch=32)
    fixed(augment, monkeypatch, np.tile([[1.0, 0, 0], [0, 1, 0]], (len(images), 1, 1)))
    np.testing.assert_array_equal(augment(images, rng()), images)


def test_a_flip_is_exact(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    augment = Augment(SIZE, 1, max_batch=32)
    fixed(augment, monkeypatch, np.tile([[-1.0, 0, SIZE], [0, 1, 0]], (len(images), 1, 1)))
    np.testing.assert_array_equal(augment(images, rng()), images[:, :, ::-1])


def test_the_warp_is_opencvs(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrices lead from output to input pixels, counted from corners; the border is carried on beyond it."""
    augment = Augment(SIZE, 1, max_batch=32)
    matrices = augment.draw(len(images), rng(3))[0]
    fixed(augment, monkeypatch, matrices)
    out = augment(images, rng())
    for image, source, matrix in zip(out, images, matrices.astype(np.float64), strict=True):
        centres = matrix.copy()
        centres[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5  # OpenCV counts from pixel centres
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        expected = cv2.warpAffine(source, centres, (SIZE, SIZE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        difference = np.abs(image.astype(int) - expected)
        assert np.median(difference) <= 1
        assert difference.mean() < 2.5  # OpenCV rounds coordinates to 1/32 pixel


def test_colours(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    augment = Augment(SIZE, 1, max_batch=32)
    identity = np.tile([[1.0, 0, 0], [0, 1, 0]], (len(images), 1, 1))
    fixed(augment, monkeypatch, identity, (0.5, 1, 1))
    np.testing.assert_allclose(augment(images, rng()), images * 0.5, atol=1)
    fixed(augment, monkeypatch, identity, (1, 1, 0))
    grey = augment(images, rng()).astype(int)
    assert np.abs(grey - grey[..., :1]).max() <= 1
    np.testing.assert_allclose(grey[..., 0], images @ (0.299, 0.587, 0.114), atol=2)


def test_the_same_draws_give_the_same_pixels(images: np.ndarray) -> None:
    first, second = Augment(SIZE, 1, max_batch=32, threads=1), Augment(SIZE, 1, max_batch=64, threads=2)
    out = first(images, rng(5))
    np.testing.assert_array_equal(second(images, rng(5)), out)
    assert (first(images, rng(6)) != out).any()
    np.testing.assert_array_equal(first(images, rng(5)), out)
    np.testing.assert_array_equal(first(images[:7], rng(8)), second(images[:7], rng(8)))


def test_results_stay_when_the_next_batch_is_made(images: np.ndarray) -> None:
    augment = Augment(SIZE, 1, max_batch=32)
    out = augment(images, rng(1))
    copy = out.copy()
    augment(images[::-1].copy(), rng(2))
    np.testing.assert_array_equal(out, copy)
    assert out.flags.writeable


@pytest.mark.parametrize("strength", [0, 0.5, 1, 3])
def test_draws_are_within_bounds_and_reach_them(strength: float) -> None:
    augment = Augment(SIZE, strength, max_batch=1)
    matrices, brightness, contrast, saturation = augment.draw(4000, rng())
    linear = matrices[:, :, :2].astype(np.float64)
    determinant = np.linalg.det(linear)
    zoom = np.sqrt(np.abs(determinant))
    turned = linear.copy()
    turned[determinant < 0, :, 0] *= -1
    angle = np.arctan2(turned[:, 1, 0], turned[:, 0, 0])
    centre = np.full(2, SIZE / 2)
    shift = linear @ centre + matrices[:, :, 2] - centre
    for values, bound in (
        (angle, strength * ROTATION_RAD),
        (np.log(zoom), strength * LOG_SCALE),
        (shift / SIZE, strength * SHIFT),
    ):
        assert np.abs(values).max() <= bound + 1e-5
        assert np.abs(values).max() >= 0.97 * bound
        assert abs(values.mean()) <= 0.05 * bound + 1e-6
    colour = min(strength * COLOUR, 0.9)
    for values in (brightness, contrast, saturation[saturation > 0]):
        assert np.abs(values - 1).max() <= colour + 1e-5
    assert 0.45 < (determinant < 0).mean() < 0.55
    grey = (saturation == 0).mean()
    assert abs(grey - min(strength * GREY_PROBABILITY, 1)) < 0.03


def test_a_strength_leaves_the_other_draws_where_they_were() -> None:
    """So that runs of different strength flip the same photographs."""
    weak, strong = (Augment(SIZE, strength, max_batch=1).draw(100, rng(4))[0] for strength in (0.0, 1.0))
    np.testing.assert_array_equal(np.linalg.det(weak[:, :, :2]) < 0, np.linalg.det(strong[:, :, :2]) < 0)


@pytest.mark.parametrize("strength", [-0.1, 5.1, float("nan")])
def test_strengths_that_cannot_be(strength: float) -> None:
    with pytest.raises(UserError, match="choose a strength from 0"):
        Augment(SIZE, strength, max_batch=1)
