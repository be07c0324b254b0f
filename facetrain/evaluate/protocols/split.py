"""The validation split of a dataset: verification on pairs drawn from it, and retrieval. No files are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.evaluate.protocols.base import Figure, Measured, Photographs, Protocol
from facetrain.evaluate.protocols.pairwise import FIGURES, PairRows, measure_pairs
from facetrain.evaluate.retrieval import retrieve
from facetrain.evaluate.search import Embeddings
from facetrain.evaluate.verification import make_pairs

MOST_SEARCHED = 100_000  # photographs, each among all others: half a minute on two cores
RETRIEVAL = {
    "precision_at_1": Figure("precision@1"),
    "r_precision": Figure("R-precision"),
    "map_at_r": Figure("MAP@R"),
}


class Split(Protocol):
    """root, paths: the crops. labels: int [n], equal = same person. people: their names. retrieval: whether each is looked
    for among the others (not among more than MOST_SEARCHED)."""

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        labels: NDArray[Any],
        people: Sequence[str],
        *,
        num_pairs: int,
        seed: int,
        retrieval: bool = True,
    ) -> None:
        self.photographs = Photographs(root, paths, kind="crops")
        self.labels, self.people = labels, frozenset(people)
        pairs = make_pairs(labels, num_pairs=num_pairs, seed=seed)
        self.pairs = PairRows(pairs.first, pairs.second, pairs.same, pairs.folds)
        self.figures = FIGURES | (RETRIEVAL if retrieval else {})
        self.retrieval = retrieval
        self.facts = {"dataset": str(root), "people": len(people), "photographs": len(paths), "seed": seed}

    def measure(self, embeddings: Embeddings, found: NDArray[np.bool_], *, device: Any = None) -> Measured:
        verification = measure_pairs(self.pairs, embeddings, found)
        if not self.retrieval:
            return verification
        values: dict[str, float | None] = dict.fromkeys(RETRIEVAL)
        if len(self.labels) > MOST_SEARCHED:
            note = f"retrieval is not measured among more than {MOST_SEARCHED:,} photographs"
            return replace(verification, values={**verification.values, **values}, notes=[note])
        result = retrieve(embeddings, self.labels, device=device)
        values = {name: getattr(result, name) for name in RETRIEVAL}
        return replace(
            verification,
            values={**verification.values, **values},
            counts={**verification.counts, "photographs looked for": result.queries},
            details={**verification.details, "retrieval": result.to_dict()},
        )
