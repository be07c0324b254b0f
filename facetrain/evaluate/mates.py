"""How far down its list does a query find its mates?

By the exact scores of `facetrain.evaluate.search`, and by counting: no list is sorted.

Shapes: Q queries, G gallery rows, D dimensions, P pairs of a query and a mate, N numbers of distractors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from facetrain.evaluate.search import (
    BLOCK_BYTES,
    Embeddings,
    Floats,
    Ints,
    count_at_or_above,
    scores_of_pairs,
)


@dataclass(frozen=True, eq=False)
class RankedMates:
    """Every (query, mate) pair of a search, P of them, by query and from its best mate down (of equal scores
    the lower gallery row first).

    ``wrong_above[p, n]`` is the number of gallery rows that are not mates of the query and score at or above
    the mate, under the n-th number of distractors asked. At or above: among equal scores wrong rows are put
    before mates, the worst case, so that a system gains nothing by giving equal scores (one that gives all
    pairs the same score finds nobody).
    """

    query_rows: Ints  # [P] ascending; queries without a mate do not occur
    gallery_rows: Ints  # [P]
    scores: Floats  # [P]
    wrong_above: Ints  # [P, N]
    place: Ints  # [P] 1 for the best mate of the query, 2 for the next, ...
    mates: Ints  # [P] how many mates the query has

    @property
    def positions(self) -> Ints:
        """Where in the query's whole list each mate stands, from 1, int64 [P, N]."""
        return self.wrong_above + self.place[:, None]


def rank_mates(
    queries: Embeddings,
    query_labels: ArrayLike,
    gallery: Embeddings,
    gallery_labels: ArrayLike,
    *,
    exclude_self: bool = False,
    best_only: bool = False,
    distractors: Embeddings | None = None,
    num_distractors: Sequence[int] | None = None,
    device: torch.device | str | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> RankedMates:
    """Where each query's mates (gallery rows of equal label; ``best_only``: the best of them) stand among all
    gallery rows, without sorting any list: rows at or above are counted.

    Labels are [Q] and [G], of any kind that NumPy can sort. ``exclude_self``: one set searched in itself, row
    i is not in query i's gallery. ``distractors`` [number, D] are added to the gallery, nobody's mates: the
    first n of them for each n of ``num_distractors`` (None: all). Memory grows with the number of pairs.
    """
    query_rows, gallery_rows = mate_pairs(query_labels, gallery_labels, exclude_self=exclude_self)
    _check_labels(queries, query_labels, "query")
    _check_labels(gallery, gallery_labels, "gallery")
    where: dict[str, Any] = {"device": device, "block_bytes": block_bytes}
    scores = scores_of_pairs(queries, gallery, query_rows, gallery_rows, **where)
    order = np.lexsort((-scores, query_rows))
    query_rows, gallery_rows, scores = query_rows[order], gallery_rows[order], scores[order]

    # Mates at or above each mate: the place of the last one of its score.
    _, first, mates = np.unique(query_rows, return_index=True, return_counts=True)
    place = np.arange(len(scores)) - np.repeat(first, mates) + 1
    last_of_score = np.ones(len(scores), dtype=bool)
    last_of_score[:-1] = (np.diff(query_rows) != 0) | (np.diff(scores) != 0)
    right_above = place[last_of_score][np.cumsum(last_of_score) - last_of_score]
    mates = np.repeat(mates, mates)
    if best_only:
        query_rows, gallery_rows, scores = query_rows[first], gallery_rows[first], scores[first]
        right_above, place, mates = right_above[first], place[first], mates[first]

    above = count_at_or_above(queries, gallery, query_rows, scores, **where)
    if exclude_self:  # the query itself was counted where it scores that high
        every = np.unique(query_rows)
        own = np.empty(len(queries), dtype=np.float32)
        own[every] = scores_of_pairs(queries, gallery, every, every, **where)
        above -= (own[query_rows] >= scores)[:, None]
    wrong = above - right_above[:, None]
    if distractors is not None:
        asked = [len(distractors)] if num_distractors is None else num_distractors
        wrong = wrong + count_at_or_above(queries, distractors, query_rows, scores, ends=asked, **where)
    elif num_distractors is not None:
        raise ValueError("num_distractors was given without distractors")
    return RankedMates(query_rows, gallery_rows, scores, wrong, place, mates)


def ranks_of_mates(
    queries: Embeddings,
    query_labels: ArrayLike,
    gallery: Embeddings,
    gallery_labels: ArrayLike,
    *,
    exclude_self: bool = False,
    device: torch.device | str | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[Floats, Ints]:
    """(score float32 [Q], rank int64 [Q]) of each query's best mate in the gallery; -inf and 0 for a query
    without one.

    The rank is 1 + the number of rows that are not mates and score at or above it: worst case for ties, as
    in :class:`RankedMates`. Other mates take no rank from the best one.
    """
    best = rank_mates(
        queries,
        query_labels,
        gallery,
        gallery_labels,
        exclude_self=exclude_self,
        best_only=True,
        device=device,
        block_bytes=block_bytes,
    )
    scores = np.full(len(queries), -np.inf, dtype=np.float32)
    ranks = np.zeros(len(queries), dtype=np.int64)
    scores[best.query_rows] = best.scores
    ranks[best.query_rows] = best.positions[:, 0]
    return scores, ranks


def mate_pairs(
    query_labels: ArrayLike, gallery_labels: ArrayLike, *, exclude_self: bool = False
) -> tuple[Ints, Ints]:
    """(query rows, gallery rows), int64 [P] each: all pairs of equal labels, by query, then by gallery row;
    ``exclude_self``: without those of row i with row i."""
    query_labels, gallery_labels = np.asarray(query_labels), np.asarray(gallery_labels)
    if query_labels.ndim != 1 or gallery_labels.ndim != 1:
        raise ValueError(f"labels must be 1-d, not {query_labels.shape} and {gallery_labels.shape}")
    if exclude_self and len(query_labels) != len(gallery_labels):
        raise ValueError(
            f"exclude_self needs one set, not {len(query_labels)} queries in {len(gallery_labels)} rows"
        )
    kinds, codes = np.unique(np.concatenate([query_labels, gallery_labels]), return_inverse=True)
    of_query, of_gallery = codes[: len(query_labels)], codes[len(query_labels) :]
    size = np.bincount(of_gallery, minlength=len(kinds))
    start = np.cumsum(size) - size
    by_label = np.argsort(of_gallery, kind="stable")
    mates = size[of_query]
    query_rows = np.repeat(np.arange(len(of_query)), mates)
    turn = np.arange(len(query_rows)) - np.repeat(np.cumsum(mates) - mates, mates)
    gallery_rows = by_label[np.repeat(start[of_query], mates) + turn]
    if exclude_self:
        others = query_rows != gallery_rows
        query_rows, gallery_rows = query_rows[others], gallery_rows[others]
    return query_rows.astype(np.int64), gallery_rows.astype(np.int64)


def _check_labels(embeddings: Embeddings, labels: ArrayLike, name: str) -> None:
    if len(np.asarray(labels)) != len(embeddings):
        raise ValueError(f"{len(np.asarray(labels))} {name} labels for {len(embeddings)} embeddings")
