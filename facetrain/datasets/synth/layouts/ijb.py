"""IJB-C, as insightface hands it out: faces cut out loosely, their templates and media, pairs, and two galleries.

A person has three templates: one of stills in a gallery, a probe of stills, and a probe of a still and a video's frames
(of frames alone where a person has few photographs). Every other person is in the first gallery, the rest in the
second: each probe has a mate in one of the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facetrain.datasets.synth.landmarks import face_landmarks
from facetrain.datasets.synth.layouts import Drawing, Layout
from facetrain.errors import UserError
from facetrain.files import write_bytes

FEWEST_PEOPLE = 4
FEWEST_IMAGES = 5
OTHERS = 100  # people whose galleries a probe is compared with, at most
COLUMNS = "TEMPLATE_ID,SUBJECT_ID,FILENAME,SIGHTING_ID,FACE_X,FACE_Y,FACE_WIDTH,FACE_HEIGHT,FRAME_NUM"


@dataclass(frozen=True)
class _Face:
    """One photograph: number is its file's, from 1; frame is "" for a still."""

    number: int
    identity: int
    image: int
    template: int
    medium: int
    frame: str


def lay_out(identities: int, images: int, seed: int, size_px: int) -> Layout:
    """``meta/ijbc_*`` and ``loose_crop/1.jpg …``; see `facetrain.datasets.synth.layouts`."""
    if identities < FEWEST_PEOPLE or images < FEWEST_IMAGES:
        raise UserError(
            f"the layout ijb needs at least {FEWEST_PEOPLE} people with {FEWEST_IMAGES} photographs each, not "
            f"{identities} with {images}: a gallery template and two probes of each person"
        )
    faces = _faces(identities, images)
    drawings = [Drawing(_path(face), face.identity, face.image, size_px) for face in faces]
    return Layout(drawings, lambda out: _write_lists(out, faces, identities, seed, size_px))


def _path(face: _Face) -> str:
    return f"loose_crop/{face.number}.jpg"


def _faces(identities: int, images: int) -> list[_Face]:
    enrolled, stills = images // 3, (images + 1) // 3
    faces: list[_Face] = []
    medium = 0
    for identity in range(1, identities + 1):
        video = enrolled + stills + (images - enrolled - stills > 2)  # photographs after this one are frames
        for image in range(1, images + 1):
            medium += image <= video + 1
            kind = 0 if image <= enrolled else 1 if image <= enrolled + stills else 2
            frame = str(30 * (image - video)) if image > video else ""
            faces.append(_Face(len(faces) + 1, identity, image, 3 * (identity - 1) + kind + 1, medium, frame))
    return faces


def _write_lists(out: Path, faces: Sequence[_Face], identities: int, seed: int, size_px: int) -> None:
    found = [face_landmarks(seed, face.identity, face.image, size_px) for face in faces]
    scores = np.random.default_rng([seed, len(faces)]).uniform(0.7, 1.0, len(faces))
    points = [
        f"{face.number}.jpg {' '.join(f'{value:.3f}' for value in five.ravel())} {score:.3f}"
        for face, (five, _), score in zip(faces, found, scores.tolist(), strict=True)
    ]
    listed = []
    for face, (_, box) in zip(faces, found, strict=True):
        left, top, right, bottom = np.round(box).astype(int).tolist()
        name = f"frames/{face.medium}_{face.frame}.jpg" if face.frame else f"img/{face.number}.jpg"
        where = f"{face.medium},{left},{top},{right - left},{bottom - top},{face.frame}"
        listed.append(f"{face.template},{face.identity},{name},{where}")

    def write(name: str, lines: Iterable[str]) -> None:
        write_bytes(
            out / "meta" / f"ijbc_{name}", "".join(f"{line}\n" for line in lines).encode(), sync=False
        )

    def templates(*kinds: int, parity: int | None = None) -> list[str]:
        chosen = ((face.template - 1) % 3 in kinds and parity in (None, face.identity % 2) for face in faces)
        return [COLUMNS, *(line for line, take in zip(listed, chosen, strict=True) if take)]

    (out / "meta").mkdir(exist_ok=True)
    write("face_tid_mid.txt", (f"{face.number}.jpg {face.template} {face.medium}" for face in faces))
    write("name_5pts_score.txt", points)
    write("1N_gallery_G1.csv", templates(0, parity=1))
    write("1N_gallery_G2.csv", templates(0, parity=0))
    write("1N_probe_mixed.csv", templates(1, 2))
    write("template_pair_label.txt", _pairs(identities))


def _pairs(identities: int) -> Iterable[str]:
    """Each gallery template with the probes of its person, then with those of the people after it, around the circle."""
    for apart in range(min(identities, OTHERS + 1)):
        for identity in range(identities):
            other = (identity + apart) % identities
            for probe in (2, 3):
                yield f"{3 * identity + 1} {3 * other + probe} {int(apart == 0)}"
