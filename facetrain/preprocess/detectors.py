"""Finding faces and their landmarks with dlib, and the contract that detectors of one's own fulfil.

A detector is made by calling a class or function without arguments, once in each worker, and called with a sequence
of photographs, uint8 RGB [h, w, 3] of any sizes. It returns a list of `Face` for each, in the same order, the surest
first. What it finds in a photograph must not depend on the others that it is shown with it: they differ from run to
run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import cv2
import dlib
import numpy as np

from facetrain.dlib_models import model_path
from facetrain.errors import UserError
from facetrain.plugins import resolve

# Larger photographs are shrunk for detection, so that its cost is bounded. By area, not by side: a panorama's faces
# are as high as it is.
HOG_MAX_PIXELS = 1024 * 768
CNN_MAX_PIXELS = 640 * 640  # takes the network 0.5 GB, and 1.7 GB upsampled
CNN_MIN_SIDE_PX = 32  # it finds faces from 40 pixels on, upsampled; dlib fails on photographs of a few pixels
CNN_BATCH_PIXELS = 2_000_000  # shown to the network at a time: 32 photographs of 250 × 250

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


@dataclass(frozen=True, slots=True)
class Face:
    """Where a face is, in pixels of the photograph, and how sure the detector is of it: higher is surer.

    A box may reach beyond the photograph. Scores of different detectors do not compare.
    """

    box: Box
    score: float


Detector = Callable[[Sequence[np.ndarray]], list[list[Face]]]


class HogDetector:
    """dlib's frontal face detector (HOG and a linear SVM, finds faces from 80 pixels on).

    A photograph is searched at its own scale first, and at twice that only when nothing was found: on LFW this is
    3 to 4 times faster than always upsampling, and finds as many. Scores are distances from the SVM's hyperplane.
    """

    def __init__(self) -> None:
        self._detect = dlib.get_frontal_face_detector()

    def __call__(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """The faces of each photograph, uint8 RGB [h, w, 3], the surest first."""
        return [self._faces(image) for image in images]

    def _faces(self, image: np.ndarray) -> list[Face]:
        small, scale = _shrunk(image, HOG_MAX_PIXELS)
        if min(small.shape[:2]) < 2:
            return []  # a line, in which no face can be
        for upsample in (0, 1):
            boxes, scores, _ = self._detect.run(small, upsample, 0.0)
            if boxes:
                return [_face(box, score, scale) for box, score in zip(boxes, scores, strict=True)]
        return []


class CnnDetector:
    """dlib's max-margin network (King 2015): finds turned, tilted and half-hidden faces that HOG does not.

    Searched at their own scale first, then those where nothing was found at twice that. Photographs of one size are
    shown to the network together. On the processor it takes about 50 times as long as HOG; a dlib that was built with
    CUDA runs it on the GPU.
    """

    def __init__(self) -> None:
        self._detect = dlib.cnn_face_detection_model_v1(str(model_path("mmod_human_face_detector.dat")))

    def __call__(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """The faces of each photograph, uint8 RGB [h, w, 3], the surest first."""
        found: list[list[Face]] = [[] for _ in images]
        smaller = [_shrunk(image, CNN_MAX_PIXELS) for image in images]
        large_enough = [i for i, (small, _) in enumerate(smaller) if min(small.shape[:2]) >= CNN_MIN_SIDE_PX]
        for upsample in (0, 1):
            todo = [i for i in large_enough if not found[i]]
            sizes = {i: smaller[i][0].shape for i in todo}
            for batch in _batches(sizes, CNN_BATCH_PIXELS // 4**upsample):
                shown = [smaller[i][0] for i in batch]
                for i, detections in zip(
                    batch, self._detect(shown, upsample, batch_size=len(batch)), strict=True
                ):
                    found[i] = [_face(d.rect, d.confidence, smaller[i][1]) for d in detections]
        return [sorted(faces, key=lambda face: -face.score) for faces in found]


def _shrunk(image: np.ndarray, max_pixels: int) -> tuple[np.ndarray, float]:
    """The photograph, made smaller where it has more pixels than that, and its scale; not less than a pixel high."""
    height, width = image.shape[:2]
    if height * width <= max_pixels:
        return image, 1.0
    scale = (max_pixels / (height * width)) ** 0.5
    height, width = (max(1, round(scale * side)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), scale


def _face(box: Any, score: float, scale: float) -> Face:
    """dlib's rectangle in a photograph that was shrunk by ``scale``, as a Face of the photograph."""
    left, top, right, bottom = box.left(), box.top(), box.right(), box.bottom()
    return Face((round(left / scale), round(top / scale), round(right / scale), round(bottom / scale)), score)


def _batches(sizes: dict[int, tuple[int, ...]], max_pixels: int) -> Iterator[list[int]]:
    """The keys in lists of equal sizes (height, width, …), each of at most so many pixels together, or of one."""
    for (height, width, *_), group in groupby(sorted(sizes, key=lambda i: sizes[i]), lambda i: sizes[i]):
        keys, count = list(group), max(1, max_pixels // (height * width))
        yield from (keys[i : i + count] for i in range(0, len(keys), count))


def detector_factory(name: str) -> Callable[[], Detector]:
    """What makes the detector of that name: ``hog``, ``cnn``, ``module:attribute`` or that of an installed package.

    Raises UserError when there is none.
    """
    factory = resolve("detectors", name)
    if not callable(factory):
        raise UserError(f"detector '{name}' is {factory!r}: it must be a class or a function that makes one")
    return factory


def detect_faces(detector: Detector, name: str, images: Sequence[np.ndarray]) -> list[list[Face]]:
    """What the detector finds, held to the contract: whole pixels, boxes that have an extent.

    Raises UserError, which names the detector, when it returns anything else than lists of Faces.
    """
    found = detector(images)
    try:
        if len(found) == len(images):
            return [list(_in_whole_pixels(faces)) for faces in found]
        problem = f"{len(found)} lists for {len(images)} photographs"
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        problem = f"something else ({error})"
    raise UserError(
        f"detector '{name}' returned {problem}: it must return a list of Face for each photograph"
    )


def _in_whole_pixels(faces: Iterable[Face]) -> Iterator[Face]:
    for face in faces:
        left, top, right, bottom = (round(float(side)) for side in face.box)
        if right > left and bottom > top:
            yield Face((left, top, right, bottom), float(face.score))


class LandmarkPredictor:
    """dlib's 5- or 68-point shape predictor (Kazemi and Sullivan 2014)."""

    def __init__(self, points: int) -> None:
        self._predict = dlib.shape_predictor(str(model_path(f"shape_predictor_{points}_face_landmarks.dat")))

    def __call__(self, image: np.ndarray, box: Box) -> np.ndarray:
        """Landmarks of the face in ``box``: float32 [points, 2], (x, y) in pixels."""
        shape = self._predict(image, dlib.rectangle(*box))
        return np.array([(point.x, point.y) for point in shape.parts()], np.float32)


def choose(faces: Sequence[Face], rule: str, width_px: int, height_px: int) -> Face:
    """The face that a photograph is taken to show: ``largest`` by area, or nearest to the ``centre``.

    Ties go to the face further left, then further up, so that the choice does not depend on the detector's order.
    """

    def largest(face: Face) -> tuple[Any, ...]:
        left, top, right, bottom = face.box
        return -(right - left) * (bottom - top), face.box, -face.score

    def nearest(face: Face) -> tuple[Any, ...]:
        left, top, right, bottom = face.box
        return (left + right - width_px) ** 2 + (top + bottom - height_px) ** 2, face.box, -face.score

    return min(faces, key=largest if rule == "largest" else nearest)
