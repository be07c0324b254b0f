"""RFW: ``data/African/m.00001/m.00001_0001.jpg``, ``txts/African/African_pairs.txt`` and ``African_lmk.txt``.

People are dealt among the four races; they are drawn as all others are.
"""

from __future__ import annotations

from pathlib import Path

from facetrain.datasets.synth.landmarks import face_landmarks
from facetrain.datasets.synth.layouts import Drawing, Layout
from facetrain.datasets.synth.layouts._pairs import Pair, folds_of, pairs_of, require, write_lines

RACES = ("African", "Asian", "Caucasian", "Indian")


def lay_out(identities: int, images: int, seed: int, size_px: int) -> Layout:
    require("rfw", identities, images, least_identities=2 * len(RACES), least_images=2)
    people = {race: range(1 + at, identities + 1, len(RACES)) for at, race in enumerate(RACES)}
    every = range(1, images + 1)

    def write_lists(out: Path) -> None:
        for race in RACES:
            folder = out / "txts" / race
            pairs = pairs_of(folds_of(people[race]), every, every)
            write_lines(folder / f"{race}_pairs.txt", [_line(pair) for pair in pairs])
            lines = []
            for person in people[race]:
                for image in every:
                    five, _ = face_landmarks(seed, person, image, size_px)
                    points = "\t".join(f"{value:.3f}" for value in five.ravel().tolist())
                    lines.append(f"/data/{race}/{_path(person, image)}\t0\t{points}")
            write_lines(folder / f"{race}_lmk.txt", lines)

    return Layout(
        [
            Drawing(f"data/{race}/{_path(person, image)}", person, image, size_px)
            for race in RACES
            for person in people[race]
            for image in every
        ],
        write_lists,
    )


def _line(pair: Pair) -> str:
    (person1, number1), (person2, number2) = pair.first, pair.second
    second = f"{number2}" if pair.same else f"{_name(person2)}\t{number2}"
    return f"{_name(person1)}\t{number1}\t{second}"


def _path(person: int, image: int) -> str:
    return f"{_name(person)}/{_name(person)}_{image:04d}.jpg"


def _name(person: int) -> str:
    return f"m.{person:05d}"
