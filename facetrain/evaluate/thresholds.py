"""A threshold chosen on one set of comparisons, a development set, and the errors that it makes on another.

How verification is reported where a system must be set up before it is used (BANCA, Bailly-Baillière et al. 2003; Bob,
Anjos et al. 2012): nothing of the evaluation set has a say in the threshold.

A comparison is accepted iff its score is at or above the threshold. A score of -inf is one that was refused: no threshold
accepts it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facetrain.errors import UserError

CRITERIA = ("eer", "min-hter", "far")
FAR = 0.001


@dataclass(frozen=True)
class ErrorRates:
    """The errors at a threshold; rates are fractions, 0 to 1."""

    threshold: float  # +inf: nothing is accepted
    false_matches: int  # different-person comparisons that were accepted
    false_non_matches: int  # same-person comparisons that were not
    different_pairs: int
    same_pairs: int

    @property
    def fmr(self) -> float:
        """False match rate."""
        return self.false_matches / self.different_pairs

    @property
    def fnmr(self) -> float:
        """False non-match rate; refused comparisons count in it."""
        return self.false_non_matches / self.same_pairs

    @property
    def hter(self) -> float:
        """Half total error rate, (FMR + FNMR) / 2, with one rounding."""
        errors = self.false_matches * self.same_pairs + self.false_non_matches * self.different_pairs
        return errors / (2 * self.different_pairs * self.same_pairs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an infinite threshold becomes None."""
        threshold = self.threshold if math.isfinite(self.threshold) else None
        return asdict(self) | {
            "threshold": threshold,
            "fmr": self.fmr,
            "fnmr": self.fnmr,
            "hter": self.hter,
        }


def choose_threshold(
    scores: ArrayLike, same: ArrayLike, criterion: str = "eer", *, far: float = FAR
) -> float:
    """The threshold for ``scores`` float [n], higher = more alike, -inf = refused; ``same`` bool [n].

    What can be told apart is which scores are accepted: all at or above some score that occurs, or none. Of these:

    - ``eer``: where FMR and FNMR differ least;
    - ``min-hter``: where their mean is least;
    - ``far``: the most that can be accepted with an FMR at or below ``far``.

    Of equally good ones the one that accepts fewest is taken. Rates are compared as whole numbers, without rounding (against
    ``far``: in float64).

    The threshold itself lies midway between the lowest score that is accepted and the highest that is not, as bob.measure's
    for the first two criteria; it is the lowest score where nothing but refusals lies below, and +inf where none
    is accepted.

    Takes O(n log n). Raises UserError for an unknown criterion, unless there are comparisons of both kinds, and for a
    ``far`` that so few cannot resolve, ValueError for NaN or +inf.
    """
    check_criterion(criterion, far)
    scores, same = _checked(scores, same)
    values, false_matches, misses = _steps(scores, same)
    different_pairs, same_pairs = int((~same).sum()), int(same.sum())
    if criterion == "far":
        check_resolution(far, different_pairs)
        best = int(np.searchsorted(false_matches / different_pairs, far, side="right")) - 1
    else:
        # FMR and FNMR times the product of both numbers: whole numbers, exact up to 3·10⁹ comparisons of either kind.
        fmr, fnmr = false_matches * same_pairs, misses * different_pairs
        best = int(np.argmin(np.abs(fmr - fnmr) if criterion == "eer" else fmr + fnmr))
    return _threshold(values, best)


def check_criterion(criterion: str, far: float) -> None:
    """UserError for a criterion that is none, or an impossible rate."""
    if criterion not in CRITERIA:
        raise UserError(f"criterion = '{criterion}': choose {', '.join(CRITERIA[:-1])} or {CRITERIA[-1]}")
    if not 0 < far < 1:
        raise UserError(f"far = {far}: a false accept rate lies between 0 and 1")


def check_resolution(far: float, different_pairs: int) -> None:
    """UserError where one comparison of different people is a larger share than ``far``."""
    if far < 1 / different_pairs:
        raise UserError(
            f"far = {far:g} cannot be told with {different_pairs:,} comparisons of different people: it takes "
            f"{math.ceil(1 / far):,}, or a larger far"
        )


def error_rates(scores: ArrayLike, same: ArrayLike, threshold: float) -> ErrorRates:
    """The errors of ``scores`` float [n], ``same`` bool [n], at a threshold that was chosen before. Raises as
    :func:`choose_threshold`."""
    scores, same = _checked(scores, same)
    accepted = (scores >= threshold) & (scores > -np.inf)
    return ErrorRates(
        threshold=float(threshold),
        false_matches=int((accepted & ~same).sum()),
        false_non_matches=int((~accepted & same).sum()),
        different_pairs=int((~same).sum()),
        same_pairs=int(same.sum()),
    )


def _steps(
    scores: NDArray[np.float64], same: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """(scores, false matches, misses) of accepting none, then all at or above each score that occurs, highest first; what
    was refused is never accepted. The first score is +inf."""
    values, rank = np.unique(scores, return_inverse=True)
    usable = values > -np.inf

    def accepted(kind: NDArray[np.bool_]) -> NDArray[np.int64]:
        counts = np.bincount(rank[kind], minlength=len(values))[usable][::-1]
        return np.concatenate([[0], np.cumsum(counts)])

    return np.append(np.inf, values[usable][::-1]), accepted(~same), int(same.sum()) - accepted(same)


def _threshold(values: NDArray[np.float64], step: int) -> float:
    """What accepts the values up to ``step``, and no further one."""
    lowest = float(values[step])
    if step == 0 or step + 1 == len(values):
        return lowest
    below = float(values[step + 1])
    midway = below + (lowest - below) / 2
    return midway if below < midway <= lowest else lowest  # neighbours in float64: nothing lies between


def _checked(scores: ArrayLike, same: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    scores, same = np.asarray(scores, np.float64), np.asarray(same, bool)
    if scores.ndim != 1 or scores.shape != same.shape:
        raise ValueError(
            f"scores and same must be 1-d and of one length, not {scores.shape} and {same.shape}"
        )
    if not (scores < np.inf).all():
        raise ValueError("scores must be numbers below +inf; use -inf for a comparison that was refused")
    check_kinds(int(same.sum()), int((~same).sum()))
    return scores, same


def check_kinds(same_pairs: int, different_pairs: int, where: str = "") -> None:
    """UserError unless there are comparisons of both kinds; ``where`` comes first in it."""
    if not (same_pairs and different_pairs):
        raise UserError(
            f"{where}a threshold needs comparisons of one person and of two; these are {same_pairs:,} and "
            f"{different_pairs:,}"
        )
