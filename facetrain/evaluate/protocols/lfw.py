"""LFW (Huang et al., 2007), and any list of pairs in its format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.evaluate.pairs import PairList, find_photographs, read_pairs
from facetrain.evaluate.protocols.base import Figure, Measured, Photographs, Protocol
from facetrain.evaluate.protocols.files import first_there
from facetrain.evaluate.protocols.pairwise import (
    FIGURES,
    PairRows,
    check_no_face,
    measure_pairs,
    no_face_notes,
    pairs_without_face,
    rate_figures,
    unique_rows,
)
from facetrain.evaluate.search import Embeddings
from facetrain.image_spec import SPEC_FILE

VIEW_1 = ("pairsDevTrain.txt", "pairsDevTest.txt")


class Lfw(Protocol):
    """View 2: each fold is measured at the threshold that is best on the others.

    data: the folder with ``pairs.txt`` and the photographs, in ``lfw/``, ``raw/``, ``images/`` or itself. ``pairs`` and
    ``images`` name them where they are called something else. allow_missing: photographs that are not there have no
    face, as in an aligned tree.

    view: 1 measures the pairs of ``pairsDevTest.txt`` at the threshold that is best on those of ``pairsDevTrain.txt``.
    """

    figures = FIGURES

    def __init__(
        self,
        data: Path,
        *,
        pairs: str | None = None,
        images: str | None = None,
        view: int = 2,
        no_face: str = "different",
        allow_missing: bool = False,
    ) -> None:
        self.no_face = check_no_face(no_face)
        self.view = view
        if view == 1:
            self.figures = {"accuracy": Figure("accuracy, test pairs"), **rate_figures()}
        list_files = _list_files(data, view, pairs)
        root = Path(images) if images else data
        if images is None:
            root = first_there(data, ("lfw", "raw", "images", "."), "photographs")
        lists = [read_pairs(file) for file in list_files]
        allow_missing = allow_missing or (root / SPEC_FILE).is_file()
        self.photographs, self.lists, self.people = _rows_of(lists, root, allow_missing=allow_missing)
        self.facts = {"pairs": str(list_files[-1]), "images": str(root)}
        if view == 1:
            self.facts |= {"view": 1, "training_pairs_list": str(list_files[0])}
            self.lists = [replace(rows, folds=np.zeros_like(rows.folds)) for rows in self.lists]

    def measure(self, embeddings: Embeddings, found: NDArray[np.bool_], *, device: Any = None) -> Measured:
        measured = [measure_pairs(rows, embeddings, found, no_face=self.no_face) for rows in self.lists]
        return measured[0] if self.view == 2 else _view_1(*measured, found=found, no_face=self.no_face)


def _list_files(data: Path, view: int, pairs: str | None) -> list[Path]:
    if view not in (1, 2):
        raise UserError(
            f"view = {view}: LFW has View 1, for development, and View 2, for the figures to report"
        )
    if view == 1 and pairs is not None:
        raise UserError(f"View 1 has two lists, {' and '.join(VIEW_1)} in --data: leave out pairs")
    if view == 1:
        return [first_there(data, (name,), f"list of pairs {name}") for name in VIEW_1]
    return [Path(pairs) if pairs else first_there(data, ("pairs.txt",), "list of pairs")]


def _rows_of(
    lists: Sequence[PairList], root: Path, *, allow_missing: bool
) -> tuple[Photographs, list[PairRows], frozenset[str]]:
    """The photographs that the lists name, the pairs of each list as rows of them, and the people."""
    found: dict[tuple[str, int], Path] = {}
    names: list[tuple[str, int]] = []
    for pairs in lists:
        found |= find_photographs(root, pairs, allow_missing=allow_missing)
        names += [(pair.person1, pair.number1) for pair in pairs]
        names += [(pair.person2, pair.number2) for pair in pairs]
    keys, rows = unique_rows(names)
    photographs = Photographs(root, [found[key].as_posix() if key in found else "" for key in keys])
    ends = np.split(rows, np.cumsum([len(pairs) for pairs in lists for _ in (1, 2)])[:-1])
    pair_rows = [
        PairRows(first, second, pairs.same, pairs.folds)
        for first, second, pairs in zip(ends[::2], ends[1::2], lists, strict=True)
    ]
    return photographs, pair_rows, frozenset(person for person, _ in keys)


def _view_1(train: Measured, test: Measured, *, found: NDArray[np.bool_], no_face: str) -> Measured:
    """The test pairs at the threshold that is best on the training pairs: they are one fold, whose threshold `verify`
    chooses on itself."""
    threshold = train.details["thresholds"][0]
    threshold = math.inf if threshold is None else threshold
    trials = test.trials
    assert trials is not None
    accuracy = float(np.mean((trials.scores >= threshold) == trials.same))
    own = (
        "accuracy_mean",
        "accuracy_standard_error",
        "accuracy_population_deviation",
    )  # at another threshold
    details = {name: value for name, value in test.details.items() if name not in own}
    details |= {
        "accuracies": [accuracy],
        "thresholds": train.details["thresholds"],
        "threshold_on_itself": False,
    }
    details["training_pairs"] = train.details
    without = f"the {pairs_without_face(train):,} training pairs and {pairs_without_face(test):,} test pairs with one"
    rates = {name: value for name, value in test.values.items() if name in rate_figures()}
    return replace(
        test,
        values={"accuracy": accuracy, **rates},
        counts={
            f"{what} pairs, same / different": f"{part.details['same_pairs']:,} / {part.details['different_pairs']:,}"
            for what, part in (("training", train), ("test", test))
        },
        details=details,
        notes=no_face_notes(found, without, no_face),
    )
