"""The geometry of alignment: landmarks must come to lie on the template."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from facetrain.image_spec import LANDMARK_SETS, ImageSpec
from facetrain.preprocess.crop import crop, crop_transform, encode, is_degenerate, template_landmarks
from facetrain.preprocess.detectors import choose

SPECS = [
    *(ImageSpec(size_px=size, landmarks=name, predictor=68) for name in LANDMARK_SETS for size in (96, 112)),
    *(ImageSpec(size_px=96, landmarks=name, predictor=5) for name in ("outer-eyes-nose", "five-point")),
]


def a_face(count: int, seed: int = 0, scale: float = 100.0) -> np.ndarray:
    """Landmarks, float32 [count, 2], with some order: no three that matter lie on a line."""
    rng = np.random.default_rng(seed)
    return (120 + scale * rng.uniform(-1, 1, (count, 2))).astype(np.float32)


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spec", [s for s in SPECS if s.transform == "affine"], ids=str)
def test_affine_lands_exactly(spec: ImageSpec, seed: int) -> None:
    points = a_face(spec.predictor, seed)
    landed = moved(crop_transform(points, spec), template_landmarks(points, spec))
    np.testing.assert_allclose(landed, spec.template_px, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(5, 500), predictor=st.sampled_from([5, 68]))
def test_similarity_is_the_least_squares_one(seed: int, scale: float, predictor: int) -> None:
    spec = ImageSpec(size_px=112, landmarks="five-point", predictor=predictor)
    points = a_face(predictor, seed, scale)
    source, target = template_landmarks(points, spec), np.array(spec.template_px)
    # x' = a·x − b·y + u; y' = b·x + a·y + v: four unknowns, two rows per landmark.
    x, y = source.T
    one, zero = np.ones_like(x), np.zeros_like(x)
    rows = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    (a, b, u, v), *_ = np.linalg.lstsq(rows, target.T.ravel(), rcond=None)
    np.testing.assert_allclose(crop_transform(points, spec), [[a, -b, u], [b, a, v]], rtol=1e-6, atol=1e-6)


def test_the_five_point_template_is_insightfaces() -> None:
    spec = ImageSpec(size_px=112, landmarks="five-point", predictor=68)
    expected = [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
    np.testing.assert_allclose(spec.template_px, expected, atol=1e-9)
    points = np.zeros((68, 2), np.float32)
    points[36:42], points[42:48], points[30], points[48], points[54] = expected
    np.testing.assert_allclose(crop_transform(points, spec), [[1, 0, 0], [0, 1, 0]], atol=1e-5)


def test_the_openface_templates() -> None:
    spec = ImageSpec(size_px=100, landmarks="outer-eyes-nose", predictor=5)
    np.testing.assert_allclose(
        spec.template_px, [(19.4157, 16.9267), (78.8859, 15.8171), (49.4951, 51.4441)], atol=1e-4
    )
    points = np.arange(136, dtype=np.float32).reshape(68, 2)
    inner = ImageSpec(landmarks="inner-eyes-bottom-lip", predictor=68)
    np.testing.assert_array_equal(template_landmarks(points, inner), points[[39, 42, 57]])
    outer = ImageSpec(landmarks="outer-eyes-nose", predictor=68)
    np.testing.assert_array_equal(template_landmarks(points, outer), points[[36, 45, 33]])


def blob(image: np.ndarray, centre: np.ndarray, sigma: float) -> None:
    y, x = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
    image += 255 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * sigma**2))


@pytest.mark.parametrize("spec", [s for s in SPECS if s.predictor == 68], ids=str)
def test_pixels_land_where_the_landmarks_do(spec: ImageSpec) -> None:
    """A light at one landmark of the photograph shines at its place in the template."""
    # A face as large as the crop, turned by 20° and moved, so that both transforms are of the usual kind.
    size, template = spec.size_px, np.array(spec.template_px)
    angle = np.deg2rad(20)
    turn = 1.3 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    places = template @ turn.T + (90, 40)
    points = np.zeros((68, 2), np.float32)
    groups = {"inner-eyes-bottom-lip": (39, 42, 57), "outer-eyes-nose": (36, 45, 33)}
    if spec.landmarks == "five-point":
        points[36:42], points[42:48], points[30], points[48], points[54] = places
    else:
        points[list(groups[spec.landmarks])] = places
    for place, wanted in zip(places, template, strict=True):
        light = np.zeros((260, 260))
        blob(light, place, 3.0)
        seen = crop(np.repeat(light.astype(np.uint8)[..., None], 3, 2), points, spec)[..., 0].astype(float)
        y, x = np.mgrid[0:size, 0:size]
        near = (x - wanted[0]) ** 2 + (y - wanted[1]) ** 2 < 7**2
        seen = seen * near
        centre = np.array([(x * seen).sum(), (y * seen).sum()]) / seen.sum()
        assert np.abs(centre - wanted).max() < 0.25


def test_beyond_the_border_it_is_black() -> None:
    spec = ImageSpec(size_px=64, landmarks="outer-eyes-nose", predictor=68)
    points = np.zeros((68, 2), np.float32)
    points[[36, 45, 33]] = np.array(spec.template_px) - 32  # the crop's upper left quarter is outside
    image = crop(np.full((200, 200, 3), 255, np.uint8), points, spec)
    assert image.shape == (64, 64, 3)
    assert (image[:31, :31] == 0).all()
    assert (image[34:, 34:] == 255).all()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_landmarks_without_extent_are_degenerate(spec: ImageSpec) -> None:
    rng = np.random.default_rng(1)
    assert not is_degenerate(a_face(spec.predictor), spec)
    assert is_degenerate(np.full((spec.predictor, 2), 7, np.float32), spec)
    on_a_line = np.outer(rng.uniform(0, 100, spec.predictor), (1, 2)).astype(np.float32)
    assert is_degenerate(on_a_line, spec) == (spec.transform == "affine")


def test_encoding() -> None:
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8), (0, 0), 3)
    png = encode(image, ImageSpec(format="png", quality=0))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), image)
    jpg = {quality: encode(image, ImageSpec(quality=quality)) for quality in (30, 95)}
    assert len(jpg[30]) < len(jpg[95])
    for data in jpg.values():
        decoded = Image.open(io.BytesIO(data))
        assert (decoded.format, decoded.mode) == ("JPEG", "RGB")
    error = np.abs(np.asarray(Image.open(io.BytesIO(jpg[95]))).astype(int) - image)
    assert error.mean() < 3, "channels in their order"


class TestChoose:
    BIG_LEFT, SMALL_CENTRE, BIG_RIGHT = (0, 0, 40, 40), (45, 45, 55, 55), (60, 0, 100, 40)

    def test_rules(self) -> None:
        boxes = [self.SMALL_CENTRE, self.BIG_RIGHT]
        assert choose(boxes, "largest", 100, 100) == self.BIG_RIGHT
        assert choose(boxes, "centre", 100, 100) == self.SMALL_CENTRE

    @given(st.permutations([BIG_LEFT, SMALL_CENTRE, BIG_RIGHT]))
    def test_order_does_not_matter(self, boxes: list) -> None:
        assert choose(boxes, "largest", 100, 100) == self.BIG_LEFT
        assert choose(boxes, "centre", 100, 100) == self.SMALL_CENTRE
