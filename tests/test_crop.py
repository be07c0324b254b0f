"""The geometry of alignment: landmarks must come to lie on the template."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import dlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from facetrain.dlib_models import model_path
from facetrain.image_spec import LANDMARK_SETS, ImageSpec
from facetrain.preprocess import crop as crop_module
from facetrain.preprocess.crop import crop, crop_transform, encode, is_degenerate, template_landmarks
from facetrain.preprocess.detectors import Face, choose

OF_68 = [name for name in LANDMARK_SETS if name != "dlib-chip"]
OF_5 = [name for name in LANDMARK_SETS if name != "inner-eyes-bottom-lip"]
SPECS = [
    *(ImageSpec(size_px=size, landmarks=name, predictor=68) for name in OF_68 for size in (96, 112)),
    *(ImageSpec(size_px=96, landmarks=name, predictor=5) for name in OF_5),
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


SCALES = [0.9, 0.55, 0.49, 0.34, 0.3, 0.11, 0.05]


def face_at(spec: ImageSpec, scale: float, angle_deg: float, place: tuple[float, float]) -> np.ndarray:
    """Landmarks of a face that must be scaled so, and turned back, to become the crop; its corner at ``place``."""
    angle = np.deg2rad(angle_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    return (np.array(spec.template_px) @ turn.T + place).astype(np.float32)


class TestAntialiasing:
    """Faces larger than the crop."""

    SPEC = ImageSpec(size_px=48, landmarks="five-point", predictor=5)

    @staticmethod
    def averaged(
        value: Callable[[np.ndarray, np.ndarray], np.ndarray], matrix: np.ndarray, size: int
    ) -> np.ndarray:
        """The mean of ``value(x, y)`` over each pixel of the crop, from 12 × 12 points in it, float64."""
        back, shift = np.linalg.inv(matrix[:, :2]), matrix[:, 2]
        fine = (np.arange(12 * size) + 0.5) / 12 - 0.5
        points = (np.stack(np.meshgrid(fine, fine), -1) - shift) @ back.T
        return value(points[..., 0], points[..., 1]).reshape(size, 12, size, 12).mean((1, 3))

    @pytest.mark.parametrize("scale", SCALES)
    @pytest.mark.parametrize("angle_deg", [0, 25])
    def test_smooth_pictures_keep_their_place(self, scale: float, angle_deg: float) -> None:
        """Against the exact mean over each pixel; an error of a tenth of a pixel would be seen."""
        size = self.SPEC.size_px
        points = face_at(self.SPEC, scale, angle_deg, (0.45 * size / scale + 3, 11))
        period = 12 / scale  # so that it looks the same in the crop at every scale

        def value(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return 127 + 60 * np.sin(2 * np.pi * x / period) + 50 * np.cos(2 * np.pi * (y + x / 2) / period)

        matrix = crop_transform(points, self.SPEC)
        expected = self.averaged(value, matrix, size)
        side = int(2 * size / scale) + 20
        y, x = np.mgrid[0:side, 0:side]
        image = np.repeat(np.rint(value(x, y)).astype(np.uint8)[..., None], 3, 2)
        seen = crop(image, points, self.SPEC)[..., 0].astype(float)
        # A tenth of a pixel is 60 · 2π/12 · 0.1 ≈ 3; sampling at a point against the mean over a pixel about as much.
        error = seen - expected
        assert np.abs(error.mean()) < 0.4
        assert np.sqrt((error**2).mean()) < 2.4
        shifted = self.averaged(value, matrix + [[0, 0, 0.1], [0, 0, 0.1]], size)
        assert (error**2).mean() < ((seen - shifted) ** 2).mean(), "no nearer when moved"

    @pytest.mark.parametrize("scale", [s for s in SCALES if s < 0.5])
    def test_what_is_too_fine_becomes_grey(self, scale: float) -> None:
        y, x = np.mgrid[0:400, 0:400]
        board = np.repeat(((x + y) % 2 * 255).astype(np.uint8)[..., None], 3, 2)
        seen = crop(board, face_at(self.SPEC, max(scale, 0.2), 10, (60, 30)), self.SPEC)[8:40, 8:40]
        assert abs(seen.mean() - 127.5) < 1
        assert seen.std() < 12, "plain bilinear sampling leaves 40 to 60"

    @pytest.mark.parametrize("scale", [1.4, 0.8, 0.51])
    @pytest.mark.parametrize("spec", SPECS, ids=str)
    def test_others_are_warped_in_one_step(self, spec: ImageSpec, scale: float) -> None:
        points = np.zeros((spec.predictor, 2), np.float32)
        groups = (crop_module._OF_68 if spec.predictor == 68 else crop_module._OF_5)[spec.landmarks]
        for group, place in zip(groups, face_at(spec, scale, 12, (50, 20)), strict=True):
            points[list(group)] = place
        image = np.random.default_rng(0).integers(0, 256, (300, 320, 3), np.uint8)
        size = (spec.size_px, spec.size_px)
        plain = cv2.warpAffine(image, crop_transform(points, spec), size, flags=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(crop(image, points, spec), plain)

    @pytest.mark.parametrize("scale", [0.3, 0.12])
    def test_beyond_the_border_it_is_black(self, scale: float) -> None:
        spec, size = self.SPEC, self.SPEC.size_px
        side = int(size / scale)
        image = np.full((side, side + 1, 3), 255, np.uint8)
        for x, y in ((-0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)):  # half of the crop outside, to every side
            seen = crop(image, face_at(spec, scale, 0, (x * side, y * side)), spec)
            inside = np.zeros((size, size), bool)
            rows = slice(size // 2 + 2, None) if y < 0 else slice(None, size // 2 - 2)
            columns = slice(size // 2 + 2, None) if x < 0 else slice(None, size // 2 - 2)
            inside[rows, columns] = True
            assert (seen[inside] == 255).all()
            rows = slice(None, size // 2 - 2) if y < 0 else slice(size // 2 + 2, None)
            assert (seen[rows] == 0).all()
        for place in ((-3.0 * side, 0.0), (0.0, 3.0 * side), (3.0 * side, 3.0 * side)):
            assert (crop(image, face_at(spec, scale, 0, place), spec) == 0).all(), "not in it at all"

    @pytest.mark.parametrize("scale", [0.45, 0.3, 0.12])
    @pytest.mark.parametrize("more_px", range(4))
    def test_the_border_is_where_it_was(self, scale: float, more_px: int) -> None:
        """Whether or not a whole number of blocks fits into the photograph."""
        spec, size = self.SPEC, self.SPEC.size_px
        image = np.full((int(size / scale) + more_px, int(0.6 * size / scale) + more_px, 3), 255, np.uint8)
        points = face_at(spec, scale, 0, (0.2 * size / scale, 0))
        seen = crop(image, points, spec)[..., 0].astype(float)
        matrix = crop_transform(points, spec)
        border = (matrix @ [image.shape[1] - 0.5, image.shape[0] / 2, 1])[0]
        covered = (
            seen[size // 2].sum() / 255
        )  # in pixels; those from the crop's border, at -0.5, to the photograph's
        assert covered == pytest.approx(border + 0.5, abs=0.15)

    def test_only_what_the_crop_shows_is_shrunk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shrunk = []
        real = cv2.resize

        def resize(image: np.ndarray, *arguments: Any, **options: Any) -> np.ndarray:
            shrunk.append(image.shape[:2])
            return real(image, *arguments, **options)

        monkeypatch.setattr(cv2, "resize", resize)
        crop(np.zeros((3000, 4000, 3), np.uint8), face_at(self.SPEC, 0.25, 0, (2000, 1500)), self.SPEC)
        ((height, width),) = shrunk
        assert 192 <= height <= 220
        assert 192 <= width <= 220


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
    BIG_LEFT, SMALL_CENTRE, BIG_RIGHT = (
        Face(box, score)
        for box, score in (((0, 0, 40, 40), 0.1), ((45, 45, 55, 55), 2.0), ((60, 0, 100, 40), 0.5))
    )

    def test_rules(self) -> None:
        faces = [self.SMALL_CENTRE, self.BIG_RIGHT]
        assert choose(faces, "largest", 100, 100) == self.BIG_RIGHT
        assert choose(faces, "centre", 100, 100) == self.SMALL_CENTRE

    @given(st.permutations([BIG_LEFT, SMALL_CENTRE, BIG_RIGHT]))
    def test_order_does_not_matter(self, faces: list) -> None:
        assert choose(faces, "largest", 100, 100) == self.BIG_LEFT
        assert choose(faces, "centre", 100, 100) == self.SMALL_CENTRE


def test_dlibs_chips_are_dlibs(drawn: Path) -> None:
    """Of the same points, up to half a pixel and to how pixels are blended."""
    image = np.asarray(Image.open(drawn / "ann" / "1.jpg").convert("RGB"))
    box = dlib.get_frontal_face_detector()(image, 1)[0]
    shape = dlib.shape_predictor(str(model_path("shape_predictor_5_face_landmarks.dat")))(image, box)
    points = np.array([(part.x, part.y) for part in shape.parts()], np.float32)
    image = cv2.GaussianBlur(image, (0, 0), 3)  # dlib shrinks by a pyramid
    for size_px in (96, 150):
        theirs = dlib.get_face_chip(image, shape, size=size_px, padding=0.25)
        ours = crop(image, points, ImageSpec(size_px=size_px, landmarks="dlib-chip", format="png", quality=0))
        assert np.abs(ours.astype(float) - theirs).mean() < 4
        moved_away = np.abs(np.roll(ours, 3, axis=1).astype(float) - theirs).mean()
        assert moved_away > 2 * np.abs(ours.astype(float) - theirs).mean()
