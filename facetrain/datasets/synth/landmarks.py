"""Where the face is in a synthetic photograph: it need not be looked for, since it was put there."""

from __future__ import annotations

import numpy as np

from facetrain.datasets.synth.brush import Floats
from facetrain.datasets.synth.face import HEAD_EDGE_DEPTH, head_outline
from facetrain.datasets.synth.person import Person, make_person, stream
from facetrain.datasets.synth.shot import Shot, make_shot
from facetrain.datasets.synth.view import View


def face_landmarks(seed: int, identity: int, image: int, size_px: int = 250) -> tuple[Floats, Floats]:
    """Five landmarks, float64 [5, 2], and the box of the head without hair, float64 [4]: left, top, right, bottom.

    In pixels of the photograph: the eyes, the nose and the corners of the mouth, the left one as one sees it first.
    """
    person, shot = make_person(seed, identity), make_shot(stream(seed, identity, image))
    view = View(shot.pose, size_px)
    outline = view.place_at(head_outline(person, shot.expression), HEAD_EDGE_DEPTH)
    return _five(person, shot, view), np.concatenate([outline.min(axis=0), outline.max(axis=0)])


def _five(person: Person, shot: Shot, view: View) -> Floats:
    eye, mouth, nose, expression = person.eyes.apart, person.mouth, person.nose, shot.expression
    half = mouth.half_width * (1.0 + 0.16 * expression.smile - 0.10 * expression.mouth_open)
    corner = nose.tip_y + mouth.below_nose - (0.09 * expression.smile + 0.015 - mouth.corner)
    points = view.place(
        [
            (-eye, 0.0),
            (eye, 0.0),
            (-half, corner - expression.lopsided),
            (half, corner + expression.lopsided),
        ]
    )
    tip = view.place([(nose.skew, nose.tip_y - nose.lift)], 0.10)
    return np.concatenate([points[:2], tip, points[2:]])
