"""LFW: ``lfw/person_00001/person_00001_0001.jpg``, pairs.txt (View 2), pairsDevTrain.txt and pairsDevTest.txt (View 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, islice, product
from pathlib import Path
from typing import NamedTuple

from facetrain.datasets.synth.layouts import Drawing, Layout
from facetrain.errors import UserError
from facetrain.files import write_if_changed

NUM_FOLDS = 10
MOST_PAIRS = 300  # of either kind in a fold: as many as LFW has

Number = tuple[int, int]  # of a person and a photograph


class Pair(NamedTuple):
    """Two photographs; ``fold`` counts from 0."""

    first: Number
    second: Number
    same: bool
    fold: int


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


def require(layout: str, identities: int, images: int, *, least_identities: int, least_images: int) -> None:
    """UserError for numbers of which no lists can be made."""
    if identities < least_identities or images < least_images:
        raise UserError(
            f"the layout {layout} needs {least_identities} identities of {least_images} images or more, not {identities} "
            f"of {images}"
        )


def folds_of(people: Sequence[int]) -> list[list[int]]:
    """People dealt into ten folds, or fewer, so that none has less than two."""
    folds = min(NUM_FOLDS, len(people) // 2)
    return [list(people[fold::folds]) for fold in range(folds)]


def pairs_of(folds: Sequence[Sequence[int]], first: Sequence[int], second: Sequence[int]) -> list[Pair]:
    """Pairs of people of one fold, fold by fold, the same-person pairs first; of either kind as many in each.

    first, second: numbers of the photographs that come first and second in a pair: the same ones, or others.
    """

    def numbers() -> Iterator[tuple[int, int]]:
        return combinations(first, 2) if first == second else product(first, second)

    def same(people: Sequence[int]) -> Iterator[tuple[Number, Number]]:
        return (((p, a), (p, b)) for a, b in numbers() for p in people)

    def different(people: Sequence[int]) -> Iterator[tuple[Number, Number]]:
        return (((p, a), (q, b)) for a, b in product(first, second) for p, q in combinations(people, 2))

    kinds = [(list(islice(same(f), MOST_PAIRS)), list(islice(different(f), MOST_PAIRS))) for f in folds]
    half = min(len(pairs) for of_fold in kinds for pairs in of_fold)
    return [
        Pair(*ends, is_same, fold)
        for fold, of_fold in enumerate(kinds)
        for is_same, pairs in zip((True, False), of_fold, strict=True)
        for ends in pairs[:half]
    ]


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """A text file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_if_changed(path, "".join(f"{line}\n" for line in lines).encode())
