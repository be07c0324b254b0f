"""Retrieval: what share of the rows found for a photograph are of the same person, or of the same picture?

For labelled sets, precision@1, R-precision and MAP@R of Musgrave et al., "A Metric Learning Reality Check"
(2020). For pairs that were predicted among all possible ones, the score of the image-similarity challenge
(Douze et al., "The 2021 Image Similarity Dataset and Challenge").

Among equal scores wrong rows stand before right ones, the worst case.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from facetrain.errors import UserError
from facetrain.evaluate.mates import rank_mates
from facetrain.evaluate.search import BLOCK_BYTES, Embeddings, Ints

PRECISION_TARGET = 0.9


@dataclass(frozen=True)
class RetrievalResult:
    """What :func:`retrieve` measured: means over queries, fractions, 0 to 1."""

    precision_at_1: float
    r_precision: float
    map_at_r: float
    queries: int
    queries_without_mate: int  # left out of every figure

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ImageSimilarityResult:
    """What :func:`image_similarity` measured; rates are fractions, 0 to 1."""

    micro_average_precision: float
    recall_at_precision: float  # 0 where no threshold reaches the precision
    precision_target: float
    threshold: float | None  # the score at or above which that recall is had; None where there is none
    predictions: int
    true_matches: int
    true_matches_predicted: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def retrieve(
    queries: Embeddings,
    query_labels: ArrayLike,
    references: Embeddings | None = None,
    reference_labels: ArrayLike | None = None,
    *,
    device: Any = None,
    block_bytes: int = BLOCK_BYTES,
) -> RetrievalResult:
    """Search ``queries`` [Q, D] among ``references`` [G, D], or, without references, each in all the others.

    Labels are [Q] and [G]; rows of equal label are mates. With R the number of mates of a query:

    - precision@1: is the first row a mate?
    - R-precision: the share of mates among the first R rows.
    - MAP@R: (1/R) Σ over the first R rows of (precision up to that row, if it is a mate, else 0).

    Queries without a mate are left out and counted. Raises UserError when no query has one.
    """
    if (references is None) != (reference_labels is None):
        raise ValueError("references and reference_labels go together")
    itself = references is None
    ranking = rank_mates(
        queries,
        query_labels,
        queries if references is None else references,
        query_labels if reference_labels is None else reference_labels,
        exclude_self=itself,
        device=device,
        block_bytes=block_bytes,
    )
    if len(ranking.query_rows) == 0:
        raise UserError(
            "retrieval needs a person with at least two photographs; each has one"
            if itself
            else f"retrieval needs queries with a mate among the references; none of {len(queries):,} has"
        )
    positions, place, mates = ranking.positions[:, 0], ranking.place, ranking.mates
    first = place == 1
    count = int(first.sum())
    within = positions <= mates
    return RetrievalResult(
        precision_at_1=float(np.mean(positions[first] == 1)),
        r_precision=float((within / mates).sum() / count),
        map_at_r=float((within * place / positions / mates).sum() / count),
        queries=count,
        queries_without_mate=len(queries) - count,
    )


def image_similarity(
    query_ids: ArrayLike,
    reference_ids: ArrayLike,
    scores: ArrayLike,
    true_query_ids: ArrayLike,
    true_reference_ids: ArrayLike,
    *,
    precision_target: float = PRECISION_TARGET,
) -> ImageSimilarityResult:
    """The score of the image-similarity challenge, exactly.

    P predictions say that ``query_ids[p]`` was made from ``reference_ids[p]``, with ``scores`` [P]; T true
    matches are (``true_query_ids[t]``, ``true_reference_ids[t]``). The predictions of all queries are pooled
    and sorted by score, highest first, of equal ones the wrong before the right.

    - Micro average precision: Σ (rᵢ - rᵢ₋₁) pᵢ, pᵢ and rᵢ being precision and recall of the first i; recall is
      of all true matches, also of those that were never predicted.
    - Recall at precision: the largest rᵢ with pᵢ at or above ``precision_target``.

    A threshold cannot part equal scores; none of the figures needs one that does, since the right ones come
    last. Raises UserError for a pair that is listed twice or when there are no true matches, ValueError for
    NaN or arrays that do not fit together.
    """
    values = np.asarray(scores, dtype=np.float64)
    predicted = np.asarray(query_ids), np.asarray(reference_ids)
    true = np.asarray(true_query_ids), np.asarray(true_reference_ids)
    if values.ndim != 1 or any(ids.shape != values.shape for ids in predicted):
        raise ValueError(
            f"predictions must be three lists of one length, not {predicted[0].shape}, {predicted[1].shape} "
            f"and {values.shape}"
        )
    if true[0].ndim != 1 or true[0].shape != true[1].shape:
        raise ValueError(
            f"true matches must be two lists of one length, not {true[0].shape} and {true[1].shape}"
        )
    if np.isnan(values).any():
        raise ValueError("scores must be numbers")
    if not 0 < precision_target <= 1:
        raise ValueError(f"precision_target must be above 0, at most 1, not {precision_target}")
    total = len(true[0])
    if total == 0:
        raise UserError("image similarity needs at least one true match; there are none")

    pairs = _pair_codes(predicted, true)
    predicted_pairs, true_pairs = pairs[: len(values)], pairs[len(values) :]
    _check_once(predicted_pairs, predicted, "predicted")
    _check_once(true_pairs, true, "a true match")
    right = np.isin(predicted_pairs, true_pairs)
    order = np.lexsort((right, -values))
    right, values = right[order], values[order]
    found = np.cumsum(right)
    precision = found / np.arange(1, len(found) + 1)
    good = np.flatnonzero(right & (precision >= precision_target))
    last = int(good[-1]) if len(good) else None
    return ImageSimilarityResult(
        micro_average_precision=float(precision[right].sum() / total),
        recall_at_precision=0.0 if last is None else float(found[last] / total),
        precision_target=float(precision_target),
        threshold=None if last is None else float(values[last]),
        predictions=len(values),
        true_matches=total,
        true_matches_predicted=int(right.sum()),
    )


def _pair_codes(*lists: tuple[np.ndarray, np.ndarray]) -> Ints:
    """One number for each pair of ids in all lists, one after another: equal for equal pairs only."""
    first, second = (np.concatenate(ids) for ids in zip(*lists, strict=True))
    _, a = np.unique(first, return_inverse=True)
    kinds, b = np.unique(second, return_inverse=True)
    return a.astype(np.int64) * len(kinds) + b


def _check_once(pairs: Ints, ids: tuple[np.ndarray, np.ndarray], what: str) -> None:
    _, first, counts = np.unique(pairs, return_index=True, return_counts=True)
    if (counts > 1).any():
        twice = int(first[counts > 1].min())
        raise UserError(f"{ids[0][twice]}, {ids[1][twice]} is {what} more than once: list each pair once")
