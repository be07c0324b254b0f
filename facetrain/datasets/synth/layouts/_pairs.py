"""What layouts of pairs share: people dealt into folds, pairs of them, and lists as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, islice, product
from pathlib import Path
from typing import NamedTuple

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
