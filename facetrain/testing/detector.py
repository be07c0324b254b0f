"""The contract of a detector, checked on synthetic photographs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from facetrain.testing.expect import expect, name_of

SYNTHETIC_PHOTOGRAPHS = 4


def check_detector(
    make_detector: Callable[[], Any], *, photographs: Sequence[np.ndarray] | None = None
) -> None:
    """Hold a detector to the contract of `facetrain.preprocess.detectors`.

    ``make_detector`` is the class or a function that makes one, and is called without arguments. photographs: uint8
    RGB [h, w, 3], with a face in one of them at least; None: four synthetic ones. Raises AssertionError, which says
    what went wrong.
    """
    if photographs is None:
        from facetrain.datasets.synth import draw_face

        photographs = [draw_face(1, person, 1) for person in range(1, 1 + SYNTHETIC_PHOTOGRAPHS)]
    check = _DetectorCheck(make_detector, list(photographs))
    check.finds_faces()
    check.company_plays_no_part()
    check.odd_photographs()


class _DetectorCheck:
    def __init__(self, make_detector: Callable[[], Any], photographs: list[np.ndarray]) -> None:
        self.make_detector, self.name, self.photographs = make_detector, name_of(make_detector), photographs
        self.detector = make_detector()
        self.found = self.detect("photographs", photographs)

    def detect(self, which: str, photographs: list[np.ndarray], detector: Any = None) -> list[Any]:
        """What is found, after every single thing in it has been looked at."""
        before = [image.copy() for image in photographs]
        try:
            found = (detector or self.detector)(photographs)
        except Exception as error:
            raise AssertionError(f"{self.name} on {which}: {type(error).__name__}: {error}") from error
        expect(
            isinstance(found, list) and len(found) == len(photographs),
            f"{self.name} on {which}: it must return a list with a list of Face for each of the {len(photographs)}",
        )
        for faces in found:
            self.faces(which, faces)
        same = all(np.array_equal(one, other) for one, other in zip(before, photographs, strict=True))
        expect(same, f"{self.name} changes {which} in place")
        return found

    def faces(self, which: str, faces: Any) -> None:
        from facetrain.preprocess.detectors import Face  # dlib and OpenCV: for detectors alone

        expect(isinstance(faces, list), f"{self.name} on {which}: for one it returns {faces!r}, not a list")
        for face in faces:
            expect(isinstance(face, Face), f"{self.name} on {which}: {face!r} is no Face")
            numbers = (*face.box, face.score)
            expect(
                len(numbers) == 5 and bool(np.isfinite(numbers).all()),
                f"{self.name} on {which}: {face!r} must hold left, top, right, bottom and a score",
            )
            left, top, right, bottom = face.box
            expect(left < right and top < bottom, f"{self.name} on {which}: the box {face.box} has no extent")
        scores = [face.score for face in faces]
        expect(
            scores == sorted(scores, reverse=True),
            f"{self.name} on {which}: scores {scores}, not the surest face first",
        )

    def finds_faces(self) -> None:
        expect(any(self.found), f"{self.name} finds no face in any of {len(self.photographs)} photographs")

    def company_plays_no_part(self) -> None:
        backwards = self.detect("photographs", self.photographs[::-1])[::-1]
        alone = [self.detect("one photograph", [image])[0] for image in self.photographs]
        another = self.detect("photographs", self.photographs, self.make_detector())
        for found, says in (
            (backwards, "in another order"),
            (alone, "alone"),
            (another, "by one made anew"),
        ):
            expect(
                found == self.found,
                f"{self.name}: in photographs shown {says} it finds other faces; crops must not depend on that",
            )

    def odd_photographs(self) -> None:
        expect(self.detect("no photographs", []) == [], f"{self.name}: faces in an empty list of photographs")
        for height, width in ((1, 1), (1, 300), (300, 2), (7, 9), (64, 512)):
            self.detect(
                f"a photograph of {width} × {height} pixels", [np.full((height, width, 3), 128, np.uint8)]
            )
        mixed = [self.photographs[0], np.zeros((30, 20, 3), np.uint8), self.photographs[0][:, ::-1]]
        self.detect("photographs of several sizes", mixed)
        view = [
            np.flip(image, 1) for image in self.photographs[:1]
        ]  # rows that do not lie one after the other
        self.detect("a mirrored view", view)
