"""Thresholds from a development set, against plain loops that try every one."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from facetrain.errors import UserError
from facetrain.evaluate.thresholds import ErrorRates, choose_threshold, error_rates
from facetrain.evaluate.verification import roc, tar_at_far

INF = float("inf")


def drawn(seed: int, count: int = 60) -> tuple[list[float], list[bool]]:
    """Scores with many ties, some of them refused."""
    rng = np.random.default_rng(seed)
    same = rng.random(count) < 0.4
    same[:2] = True, False
    scores = np.round(rng.normal(size=count) + same, 1)
    scores[rng.random(count) < 0.1] = -INF
    return scores.tolist(), same.tolist()


def rates_by_hand(scores: list[float], same: list[bool], threshold: float) -> tuple[Fraction, Fraction]:
    accepted = [score != -INF and score >= threshold for score in scores]
    wrong = sum(a and not s for a, s in zip(accepted, same, strict=True))
    missed = sum(s and not a for a, s in zip(accepted, same, strict=True))
    return Fraction(wrong, same.count(False)), Fraction(missed, same.count(True))


def by_hand(scores: list[float], same: list[bool], criterion: str, far: float) -> float:
    """From the highest threshold down, so that of equally good ones the first is kept."""
    candidates = [INF, *sorted({score for score in scores if score != -INF}, reverse=True)]
    best, best_cost = 0, None
    for i, candidate in enumerate(candidates):
        fmr, fnmr = rates_by_hand(scores, same, candidate)
        if criterion == "far":
            cost = fnmr - 1 + Fraction(-i, 10**6) if float(fmr) <= far else Fraction(2)
        else:
            cost = abs(fmr - fnmr) if criterion == "eer" else fmr + fnmr
        if best_cost is None or cost < best_cost:
            best, best_cost = i, cost
    if best == 0 or best == len(candidates) - 1:
        return candidates[best]
    return (candidates[best] + candidates[best + 1]) / 2


@pytest.mark.parametrize("criterion", ["eer", "min-hter", "far"])
@pytest.mark.parametrize("seed", range(40))
def test_as_by_hand(criterion: str, seed: int) -> None:
    scores, same = drawn(seed)
    found = choose_threshold(scores, same, criterion, far=0.1)
    assert found == pytest.approx(by_hand(scores, same, criterion, 0.1), abs=1e-12)
    rates = error_rates(scores, same, found)
    fmr, fnmr = rates_by_hand(scores, same, found)
    assert (rates.fmr, rates.fnmr, rates.hter) == (float(fmr), float(fnmr), float((fmr + fnmr) / 2))
    other_scores, other_same = drawn(seed + 1000)
    other = error_rates(other_scores, other_same, found)
    assert (other.fmr, other.fnmr) == tuple(map(float, rates_by_hand(other_scores, other_same, found)))


@pytest.mark.parametrize("seed", range(20))
def test_far_is_what_tar_at_far_has(seed: int) -> None:
    scores, same = drawn(seed, 200)
    far, tar, thresholds = roc(scores, same)
    expected = tar_at_far(far, tar, thresholds, [0.05], different_pairs=same.count(False))[0.05]
    assert 1 - error_rates(
        scores, same, choose_threshold(scores, same, "far", far=0.05)
    ).fnmr == pytest.approx(expected)


def test_the_order_of_scores_is_all_that_counts() -> None:
    scores, same = drawn(3)
    for criterion in ("eer", "min-hter", "far"):
        rates = []
        for change in (lambda x: x, lambda x: 3 * x - 7, lambda x: np.arctan(x)):
            values = np.where(np.isinf(scores), -INF, change(np.array(scores)))
            rates.append(error_rates(values, same, choose_threshold(values, same, criterion, far=0.2)).hter)
        assert len(set(rates)) == 1


def test_ties_accept_fewest() -> None:
    # One wrong accepted of two (FMR 1/2, FNMR 1/2) is as unequal as nothing; accepted first: the higher threshold.
    assert choose_threshold([1, 1], [True, False]) == INF
    assert choose_threshold([3, 2, 1, 0], [True, False, True, False], "min-hter") == 2.5
    assert choose_threshold([3, 2, 1, 0], [True, False, True, False], "eer") == 1.5
    assert choose_threshold([3, 2, 1, 0], [False, False, True, True], "min-hter") == INF


def test_midway_stays_between() -> None:
    low, high = 1.0, math.nextafter(1.0, 2.0)
    threshold = choose_threshold([high, low], [True, False])
    assert threshold == high  # 1.0 must not be accepted, and no number lies between
    assert choose_threshold([2.0, -INF], [True, False]) == 2.0


def test_refused_scores_are_never_accepted() -> None:
    rates = error_rates([-INF, -INF, 1.0], [True, False, True], -INF)
    assert (rates.false_matches, rates.false_non_matches) == (0, 1)
    assert choose_threshold([-INF, -INF], [True, False], "min-hter") == INF
    assert ErrorRates(INF, 0, 1, 1, 1).to_dict()["threshold"] is None


def test_what_cannot_be() -> None:
    with pytest.raises(UserError, match="choose eer, min-hter or far"):
        choose_threshold([1, 2], [True, False], "hter")
    with pytest.raises(UserError, match="lies between 0 and 1"):
        choose_threshold([1, 2], [True, False], "far", far=1.0)
    with pytest.raises(UserError, match=r"far = 0\.001 cannot be told with 1 comparisons .* takes 1,000"):
        choose_threshold([1, 2], [True, False], "far")
    with pytest.raises(UserError, match="of one person and of two; these are 2 and 0"):
        choose_threshold([1, 2], [True, True])
    with pytest.raises(ValueError, match="below \\+inf"):
        choose_threshold([1, float("nan")], [True, False])
    with pytest.raises(ValueError, match="of one length"):
        error_rates([1, 2], [True], 0.0)
