"""One-to-many identification: who in the gallery is this? Of those that are nobody in it, how many raise an
alarm?

Closed set (TinyFace, MegaFace): every search has a mate in the gallery, and what counts is its rank. Open set
(IJB 1:N, SurvFace): some searches have none, and a candidate counts only at or above a threshold.

Among equal scores wrong rows stand before mates, the worst case. Labels are of any kind that NumPy can sort;
rows of equal label are mates. A photograph that could not be embedded may stand as a row of zeros: it scores
0 with everything, so that as a query it finds its mate last.

Shapes: Q queries, G gallery rows, D dimensions, M mated and N non-mated searches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facetrain.errors import UserError
from facetrain.evaluate.mates import mate_pairs, rank_mates, ranks_of_mates
from facetrain.evaluate.search import (
    BLOCK_BYTES,
    Embeddings,
    Ints,
    count_at_or_above,
    scores_of_pairs,
    top_k,
)

RANKS = (1, 5, 10, 20)
OPEN_SET_RANKS = (1, 20)
FPIR_TARGETS = (0.3, 0.2, 0.1, 0.01)  # SurvFace's; IJB's are 0.1 and 0.01

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClosedSetResult:
    """What :func:`closed_set` and :func:`megaface` measured; rates are fractions, 0 to 1."""

    rank_rates: dict[int, float]  # share of searches whose best mate is within the rank: the CMC curve
    mean_average_precision: float
    searches: int
    searches_without_mate: int  # left out of every figure
    gallery_size: int  # rows, without distractors
    distractors: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the ranks become text, as "5"."""
        return asdict(self) | {"rank_rates": {str(rank): rate for rank, rate in self.rank_rates.items()}}


@dataclass(frozen=True)
class OpenSetResult:
    """What :func:`open_set` measured; rates are fractions, 0 to 1.

    ``tpir[rank][target]`` and ``thresholds[target]`` are None where the target is below 1 / ``non_mated``: so
    few non-mated searches cannot resolve it. A threshold of +inf accepts nobody.
    """

    tpir: dict[int, dict[float, float | None]]
    thresholds: dict[float, float | None]
    mated: int
    non_mated: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: ranks and targets become text, infinite thresholds None."""
        return asdict(self) | {
            "tpir": {
                str(rank): {f"{target:g}": rate for target, rate in rates.items()}
                for rank, rates in self.tpir.items()
            },
            "thresholds": {
                f"{target:g}": t if t is not None and math.isfinite(t) else None
                for target, t in self.thresholds.items()
            },
        }


def closed_set(
    queries: Embeddings,
    query_labels: ArrayLike,
    gallery: Embeddings,
    gallery_labels: ArrayLike,
    *,
    distractors: Embeddings | None = None,
    num_distractors: Sequence[int] | None = None,
    ranks: Sequence[int] = RANKS,
    device: Any = None,
    block_bytes: int = BLOCK_BYTES,
) -> list[ClosedSetResult]:
    """Closed-set identification, as TinyFace has it (Cheng et al., 2018): one result for each number of
    distractors, in the order asked.

    ``distractors`` [number, D] are nobody's mates; the first n of them join the gallery, for each n of
    ``num_distractors`` (None: all of them).

    - Rank-R: the share of queries whose best mate has rank R or better; the rank is 1 + the number of rows
      that are not mates and score at or above it, distractors included. Further mates take no rank.
    - mAP: the mean over queries of the average precision over all of a query's mates, (1/m) Σ j / position of
      the j-th mate in the whole list.

    Queries without a mate in the gallery are left out and counted. Raises UserError when no query has one.
    """
    _check_ranks(ranks)
    ranking = rank_mates(
        queries,
        query_labels,
        gallery,
        gallery_labels,
        distractors=distractors,
        num_distractors=num_distractors,
        device=device,
        block_bytes=block_bytes,
    )
    if len(ranking.query_rows) == 0:
        raise UserError(
            f"identification needs queries with a mate in the gallery; none of {len(queries):,} has"
        )
    first = ranking.place == 1
    searches = int(first.sum())
    if distractors is None:
        numbers = [0]
    else:
        numbers = [len(distractors)] if num_distractors is None else list(num_distractors)
    results = []
    for positions, number in zip(ranking.positions.T, numbers, strict=True):
        shares = ranking.place / positions / ranking.mates  # summed over its mates: AP of a query
        results.append(
            ClosedSetResult(
                rank_rates=_rank_rates(positions[first], ranks),
                mean_average_precision=float(shares.sum() / searches),
                searches=searches,
                searches_without_mate=len(queries) - searches,
                gallery_size=len(gallery),
                distractors=int(number),
            )
        )
    return results


def megaface(
    probes: Embeddings,
    probe_labels: ArrayLike,
    distractors: Embeddings,
    *,
    num_distractors: Sequence[int] | None = None,
    ranks: Sequence[int] = RANKS,
    device: Any = None,
    block_bytes: int = BLOCK_BYTES,
) -> list[ClosedSetResult]:
    """MegaFace's challenge 1 (Kemelmacher-Shlizerman et al., 2016): one result for each number of distractors.

    Each ordered pair of two photographs of one person is a search of its own: the first is the query, the
    second alone joins the distractors. Its rank is 1 + the number of distractors at or above its score. So a
    person with n photographs counts n(n - 1) times. With one mate, average precision is 1 / rank.

    Photographs of people who have only one are left out and counted (as photographs). Raises UserError when
    nobody has two.
    """
    _check_ranks(ranks)
    numbers = [len(distractors)] if num_distractors is None else list(num_distractors)
    where: dict[str, Any] = {"device": device, "block_bytes": block_bytes}
    if len(np.asarray(probe_labels)) != len(probes):
        raise ValueError(f"{len(np.asarray(probe_labels))} probe labels for {len(probes)} embeddings")
    first, second = mate_pairs(probe_labels, probe_labels, exclude_self=True)
    if len(first) == 0:
        raise UserError("identification needs a person with at least two photographs; each has one")
    scores = scores_of_pairs(probes, probes, first, second, **where)
    above = count_at_or_above(probes, distractors, first, scores, ends=numbers, **where)
    return [
        ClosedSetResult(
            rank_rates=_rank_rates(wrong + 1, ranks),
            mean_average_precision=float(np.mean(1 / (wrong + 1))),
            searches=len(first),
            searches_without_mate=len(probes) - len(np.unique(first)),
            gallery_size=1,
            distractors=int(number),
        )
        for wrong, number in zip(above.T, numbers, strict=True)
    ]


def open_set(
    queries: Embeddings,
    query_labels: ArrayLike,
    gallery: Embeddings,
    gallery_labels: ArrayLike,
    *,
    ranks: Sequence[int] = OPEN_SET_RANKS,
    fpir_targets: Sequence[float] = FPIR_TARGETS,
    device: Any = None,
    block_bytes: int = BLOCK_BYTES,
) -> OpenSetResult:
    """Open-set identification of embeddings: queries with a mate in the gallery are the mated searches, the
    others the non-mated ones. See :func:`tpir_at_fpir` for the figures.

    A set with two galleries (IJB) is measured once with each, all probes against either. Ranks count gallery rows: a gallery with several rows a person (SurvFace)
    may be reduced to one template each beforehand.
    """
    where: dict[str, Any] = {"device": device, "block_bytes": block_bytes}
    mate_scores, mate_ranks = ranks_of_mates(queries, query_labels, gallery, gallery_labels, **where)
    mated = mate_ranks > 0
    strangers = np.flatnonzero(~mated)
    best, _ = top_k(queries[strangers], gallery, 1, **where)
    return tpir_at_fpir(
        mate_scores[mated], mate_ranks[mated], best[:, 0], ranks=ranks, fpir_targets=fpir_targets
    )


def tpir_at_fpir(
    mate_scores: ArrayLike,
    mate_ranks: ArrayLike,
    non_mated_scores: ArrayLike,
    *,
    ranks: Sequence[int] = OPEN_SET_RANKS,
    fpir_targets: Sequence[float] = FPIR_TARGETS,
) -> OpenSetResult:
    """TPIR at FPIR, as NIST's FRVT 1:N defines them, exactly.

    ``mate_scores`` [M] and ``mate_ranks`` int [M] (from 1) are of the best mate of each mated search,
    ``non_mated_scores`` [N] the best score of each non-mated search. A score of -inf is a search that failed
    or gave no candidate: no threshold accepts it.

    - FPIR(T): share of non-mated searches with a candidate at or above T.
    - TPIR_R(T): share of mated searches whose mate is within rank R and at or above T (NIST's 1 - FNIR).

    For each target the threshold is the lowest of all scores seen, and +inf, whose FPIR is at or below the
    target; nothing is interpolated. Since TPIR only falls as T rises, that is the largest TPIR of any threshold
    with such an FPIR, for every rank at once. Targets below 1/N give None.

    Raises UserError unless there are searches of both kinds, ValueError for NaN, +inf, ranks below 1 or
    arrays that do not fit together.
    """
    _check_ranks(ranks)
    scores = np.asarray(mate_scores, dtype=np.float64)
    mate_ranks = np.asarray(mate_ranks)
    alarms = np.asarray(non_mated_scores, dtype=np.float64)
    if scores.ndim != 1 or scores.shape != mate_ranks.shape or alarms.ndim != 1:
        raise ValueError(
            f"scores and ranks must be 1-d and of one length, not {scores.shape}, {mate_ranks.shape} and "
            f"{alarms.shape}"
        )
    if not ((scores < np.inf).all() and (alarms < np.inf).all()):
        raise ValueError("scores must be numbers below +inf; use -inf for a search that failed")
    if (mate_ranks < 1).any():
        raise ValueError("ranks begin at 1")
    if not (len(scores) and len(alarms)):
        raise UserError(
            f"open-set identification needs mated and non-mated searches; these are {len(scores):,} and "
            f"{len(alarms):,}"
        )

    candidates = np.unique(np.concatenate([scores, alarms, [np.inf]]))
    candidates = candidates[candidates > -np.inf]
    fpir = (len(alarms) - np.searchsorted(np.sort(alarms), candidates, side="left")) / len(alarms)  # falls
    thresholds: dict[float, float | None] = {}
    for target in fpir_targets:
        resolved = target >= 1 / len(alarms)
        thresholds[float(target)] = float(candidates[np.argmax(fpir <= target)]) if resolved else None
    return OpenSetResult(
        tpir={
            int(rank): {
                target: None if t is None else float(np.mean((mate_ranks <= rank) & (scores >= t)))
                for target, t in thresholds.items()
            }
            for rank in ranks
        },
        thresholds=thresholds,
        mated=len(scores),
        non_mated=len(alarms),
    )


def _rank_rates(best: Ints, ranks: Sequence[int]) -> dict[int, float]:
    return {int(rank): float(np.mean(best <= rank)) for rank in ranks}


def _check_ranks(ranks: Sequence[int]) -> None:
    if any(rank < 1 for rank in ranks):
        raise ValueError(f"ranks begin at 1, not {list(ranks)}")
