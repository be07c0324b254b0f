"""LFW: ``lfw/person_00001/person_00001_0001.jpg``, pairs.txt (View 2), pairsDevTrain.txt and pairsDevTest.txt (View 1)."""

from __future__ import annotations

from pathlib import Path

from facetrain.datasets.synth.layouts import Drawing, Layout
from facetrain.datasets.synth.layouts._pairs import Pair, folds_of, pairs_of, require, write_lines


def lay_out(identities: int, images: int, seed: int, size_px: int) -> Layout:
    require("lfw", identities, images, least_identities=4, least_images=2)

    def write_lists(out: Path) -> None:
        people = range(1, identities + 1)
        every = range(1, images + 1)
        views = {
            "pairs.txt": folds_of(people),
            "pairsDevTrain.txt": [[person for person in people if person % 2]],
            "pairsDevTest.txt": [[person for person in people if not person % 2]],
        }
        for name, folds in views.items():
            pairs = pairs_of(folds, every, every)
            half = len(pairs) // (2 * len(folds))
            head = f"{len(folds)}\t{half}" if name == "pairs.txt" else str(half)
            write_lines(out / name, [head, *(_line(pair) for pair in pairs)])

    return Layout(
        [
            Drawing(f"lfw/{_name(p)}/{_name(p)}_{i:04d}.jpg", p, i, size_px)
            for p in range(1, identities + 1)
            for i in range(1, images + 1)
        ],
        write_lists,
    )


def _line(pair: Pair) -> str:
    (person1, number1), (person2, number2) = pair.first, pair.second
    if pair.same:
        return f"{_name(person1)}\t{number1}\t{number2}"
    return f"{_name(person1)}\t{number1}\t{_name(person2)}\t{number2}"


def _name(person: int) -> str:
    return f"person_{person:05d}"
