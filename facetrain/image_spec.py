"""ImageSpec: what the pixels of a face crop mean. Written by align, carried by index, cache and checkpoint.

Two parts of the pipeline may only exchange crops when their specs are equal; `require_same` says so otherwise.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from facetrain.errors import SpecMismatch, UserError

# OpenFace's template: mean positions of landmarks 36, 45, 33 and 39, 42, 57, min-max-normalised over all 68.
# The 5-point one: insightface's and FaceX-Zoo's 112-pixel template, divided by 112.
# dlib's 5-point model finds no mouth: its template are the mean positions of its points (eye corners and base of the
# nose) in crops made with the former, over 2,489 faces of LFW, left and right averaged. Same framing, other points.
_TEMPLATES: dict[str, tuple[str, tuple[tuple[float, float], ...]]] = {
    "inner-eyes-bottom-lip": (
        "affine",
        ((0.363784947, 0.177946862), (0.618963134, 0.172778126), (0.500203960, 0.750584384)),
    ),
    "outer-eyes-nose": (
        "affine",
        ((0.194156995, 0.169266902), (0.788859082, 0.158171151), (0.494950915, 0.514441322)),
    ),
    "five-point": (
        "similarity",
        tuple(
            (x / 112, y / 112)
            for x, y in (
                (38.2946, 51.6963),
                (73.5318, 51.5014),
                (56.0252, 71.7366),
                (41.5493, 92.3655),
                (70.7299, 92.2041),
            )
        ),
    ),
    # dlib's own chips (`get_face_chip` with a padding of 1/4), which its face recognition network was trained on.
    "dlib-chip": (
        "similarity",
        tuple(
            ((0.25 + x) / 1.5, (0.25 + y) / 1.5)
            for x, y in (
                (0.8595674595992, 0.2134981538014),
                (0.6460604764104, 0.2289674387677),
                (0.1205750620789, 0.2137274526848),
                (0.3340850613712, 0.2290642403242),
                (0.4901123135679, 0.6277975316475),
            )
        ),
    ),
}
_FIVE_POINT_OF_5 = tuple(
    (x / 112, y / 112)
    for x, y in ((80.28, 52.86), (66.57, 53.22), (31.72, 52.86), (45.43, 53.22), (56.0, 79.57))
)
LANDMARK_SETS = tuple(_TEMPLATES)
OTHER_LANDMARKS = "other"  # of crops made elsewhere: no template is known
FORMATS = ("jpg", "png")
SPEC_FILE = "imagespec.json"  # in an aligned tree, so that it says itself what it holds


@dataclass(frozen=True)
class ImageSpec:
    """How a crop was made and how its values are scaled.

    size_px: side of the square crop. landmarks: name of the template. predictor: number of landmarks of dlib's model
    (68 or 5). detector: name of the face detector. format, quality: how the crop is stored (JPEG quality; 0 for PNG).
    channels: colour order of every array. A network is fed ``(x - subtract) / divide``.

    Crops that another program made are described too: predictor 0 when the landmarks are not dlib's, landmarks
    ``other`` when they are on none of the templates, quality 0 when it is not known, and any text for the detector.
    """

    size_px: int = 96
    landmarks: str = "five-point"
    predictor: int = 5
    detector: str = "hog"
    format: str = "jpg"
    quality: int = 95
    channels: str = "RGB"
    subtract: float = 127.5
    divide: float = 128.0

    def __post_init__(self) -> None:
        if self.landmarks not in (*_TEMPLATES, OTHER_LANDMARKS):
            raise UserError(
                f"unknown landmark set '{self.landmarks}': choose one of {', '.join(LANDMARK_SETS)}"
            )
        if self.predictor not in (0, 5, 68):
            raise UserError(f"no {self.predictor}-point predictor: choose 5 or 68")
        if self.predictor == 5 and self.landmarks == "inner-eyes-bottom-lip":
            raise UserError(f"--landmarks {self.landmarks} needs points that only --predictor 68 finds")
        if self.predictor == 68 and self.landmarks == "dlib-chip":
            raise UserError(f"--landmarks {self.landmarks} is of dlib's 5 points: choose --predictor 5")
        if not 16 <= self.size_px <= 1024:
            raise UserError(f"a crop of {self.size_px} pixels: choose a size from 16 to 1024")
        if self.format not in FORMATS:
            raise UserError(f"unknown crop format '{self.format}': choose jpg or png")
        unknown = self.quality == 0 and not self.made_here
        if self.format == "jpg" and not 1 <= self.quality <= 100 and not unknown:
            raise UserError(f"JPEG quality {self.quality}: choose 1 to 100")

    @property
    def made_here(self) -> bool:
        """True when `ft align` can make such crops, False when they were made elsewhere."""
        return self.predictor in (5, 68) and self.landmarks != OTHER_LANDMARKS

    @property
    def transform(self) -> str:
        """``affine`` (exact, three points) or ``similarity`` (least squares, five points). UserError as below."""
        return self._template[0]

    @cached_property
    def template_px(self) -> tuple[tuple[float, float], ...]:
        """Where the landmarks come to lie in the crop, (x, y) in pixels. UserError for landmarks ``other``."""
        points = self._template[1]
        if (self.landmarks, self.predictor) == ("five-point", 5):
            points = _FIVE_POINT_OF_5
        return tuple((x * self.size_px, y * self.size_px) for x, y in points)

    @property
    def _template(self) -> tuple[str, tuple[tuple[float, float], ...]]:
        if self.landmarks == OTHER_LANDMARKS:
            raise UserError(
                f"where the landmarks of these crops lie is not known (detector {self.detector}): "
                f"they were made elsewhere, on a template of their own"
            )
        return _TEMPLATES[self.landmarks]

    def to_json(self) -> str:
        """Canonical JSON: equal specs give equal text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> ImageSpec:
        """Inverse of `to_json`; a spec with fields that this version does not know is an error."""
        try:
            fields = json.loads(text)
            if not isinstance(fields, dict):
                raise ValueError
        except ValueError:
            raise UserError("an image spec is damaged (is it imagespec.json?): align again") from None
        return cls.from_dict(fields)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ImageSpec:
        """A spec from plain data, such as a checkpoint's metadata."""
        try:
            return cls(**fields)
        except TypeError as error:
            raise UserError(
                f"image spec written by another version of facetrain ({error}): align again"
            ) from None

    def differences(self, other: ImageSpec) -> str:
        """``size_px 96 against 112, landmarks …``; empty when equal."""
        ours, theirs = asdict(self), asdict(other)
        return ", ".join(
            f"{key} {ours[key]} against {theirs[key]}" for key in ours if ours[key] != theirs[key]
        )


def require_same(ours: ImageSpec, our_name: str, theirs: ImageSpec, their_name: str) -> None:
    """Raise SpecMismatch, naming both sides, unless the specs are equal."""
    if ours != theirs:
        raise SpecMismatch(
            f"{our_name} and {their_name} hold different kinds of crops ({ours.differences(theirs)}): "
            f"align the photographs again with the settings of one of them"
        )
