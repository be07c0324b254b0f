"""The measurements against slow, plain versions of themselves and against scikit-learn."""

from __future__ import annotations

import json
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facetrain.errors import UserError
from facetrain.evaluate.verification import auc, deal_folds, eer, make_pairs, roc, verify

CLOSE = 1e-12


# Slow and plain: every threshold is tried on every pair.


def plain_best_threshold(scores, same):
    candidates = [math.inf, *sorted({s for s in scores if s > -math.inf}, reverse=True)]
    right = [sum((s >= t) == y for s, y in zip(scores, same, strict=True)) for t in candidates]
    best = [t for t, r in zip(candidates, right, strict=True) if r == max(right)]
    return best[len(best) // 2]


def plain_folds(scores, same, folds):
    accuracies, thresholds = [], []
    for fold in sorted(set(folds)):
        inside = [i for i in range(len(scores)) if folds[i] == fold]
        others = [i for i in range(len(scores)) if folds[i] != fold] or inside
        t = plain_best_threshold([scores[i] for i in others], [same[i] for i in others])
        thresholds.append(t)
        accuracies.append(sum((scores[i] >= t) == same[i] for i in inside) / len(inside))
    return accuracies, thresholds


def plain_auc(scores, same):
    positive = [s for s, y in zip(scores, same, strict=True) if y]
    negative = [s for s, y in zip(scores, same, strict=True) if not y]
    wins = sum(Fraction((p > n) * 2 + (p == n), 2) for p in positive for n in negative)
    return float(wins / (len(positive) * len(negative)))


def plain_rates(scores, same, threshold):
    """(FAR, TAR) as fractions."""
    positive = [s >= threshold for s, y in zip(scores, same, strict=True) if y]
    negative = [s >= threshold for s, y in zip(scores, same, strict=True) if not y]
    return Fraction(sum(negative), len(negative)), Fraction(sum(positive), len(positive))


def plain_tar_at_far(scores, same, target):
    if target < 1 / (len(same) - sum(same)):
        return None
    thresholds = [math.inf, *{s for s in scores if s > -math.inf}]
    rates = [plain_rates(scores, same, t) for t in thresholds]
    return float(max(tar for far, tar in rates if float(far) <= target))


def plain_eer(scores, same):
    points = [plain_rates(scores, same, t) for t in [math.inf, *sorted(set(scores), reverse=True)]]
    for (far0, tar0), (far1, tar1) in zip(points, points[1:], strict=False):
        gap0, gap1 = far0 + tar0 - 1, far1 + tar1 - 1
        if gap0 < 0 <= gap1:
            return float(far0 + (far1 - far0) * -gap0 / (gap1 - gap0))
    raise AssertionError("the curve ends at (1, 1)")


@st.composite
def pair_sets(draw):
    """(scores, same, folds): few distinct scores, so ties abound; some pairs refused; both kinds present."""
    n = draw(st.integers(4, 40))
    levels = st.one_of(st.integers(-3, 3).map(float), st.just(-math.inf), st.floats(-4, 4, width=16))
    scores = draw(st.lists(levels, min_size=n, max_size=n))
    same = draw(st.lists(st.booleans(), min_size=n - 2, max_size=n - 2)) + [True, False]
    folds = draw(st.lists(st.integers(0, draw(st.integers(0, 4))), min_size=n, max_size=n))
    return scores, same, folds


@given(pair_sets())
@settings(max_examples=200, deadline=None)
def test_everything_equals_the_plain_version(pairs):
    scores, same, folds = pairs
    targets = (0.0, 0.05, 0.1, 0.25, 1 / 3, 0.5, 1.0)
    result = verify(scores, same, folds, far_targets=targets)
    accuracies, thresholds = plain_folds(scores, same, folds)
    assert result.accuracies == pytest.approx(accuracies, abs=CLOSE)
    assert list(result.thresholds) == thresholds
    assert result.accuracy_mean == pytest.approx(np.mean(accuracies), abs=CLOSE)
    assert result.auc == pytest.approx(plain_auc(scores, same), abs=CLOSE)
    assert result.eer == pytest.approx(plain_eer(scores, same), abs=CLOSE)
    for target in targets:
        expected = plain_tar_at_far(scores, same, target)
        if expected is None:
            assert result.tar_at_far[target] is None
        else:
            assert result.tar_at_far[target] == pytest.approx(expected, abs=CLOSE)
    assert result.same_pairs == sum(same)
    assert result.different_pairs == len(same) - sum(same)
    refused = [y for s, y in zip(scores, same, strict=True) if s == -math.inf]
    assert (result.refused_same_pairs, result.refused_different_pairs) == (
        sum(refused),
        len(refused) - sum(refused),
    )


@given(pair_sets(), st.randoms())
@settings(max_examples=100, deadline=None)
def test_only_the_order_of_scores_counts_not_that_of_pairs(pairs, random):
    scores, same, folds = pairs
    before = verify(scores, same, folds)

    stretched = np.arctan(scores) ** 3 + 2 * np.arctan(scores)  # strictly increasing; -inf is put back below
    stretched[np.isneginf(scores)] = -np.inf
    if len(set(stretched)) == len(set(scores)):  # else rounding has joined two scores
        after = verify(stretched, same, folds)
        assert after.accuracies == before.accuracies
        assert (after.auc, after.eer, after.tar_at_far) == (before.auc, before.eer, before.tar_at_far)

    order = list(range(len(scores)))
    random.shuffle(order)
    shuffled = verify(*([column[i] for i in order] for column in (scores, same, folds)))
    assert shuffled == before


@pytest.mark.parametrize("decimals", [0, 1, 12])
@pytest.mark.parametrize("seed", range(3))
def test_roc_equals_scikit_learn(seed, decimals):
    from sklearn.metrics import roc_auc_score, roc_curve

    rng = np.random.default_rng(seed)
    same = rng.random(2000) < 0.3
    scores = np.round(rng.normal(size=2000) + same, decimals)
    far, tar, thresholds = roc(scores, same)
    expected = roc_curve(same, scores, drop_intermediate=False)
    for ours, theirs in zip((far, tar, thresholds), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=CLOSE)
    assert auc(far, tar) == pytest.approx(roc_auc_score(same, scores), abs=CLOSE)


def test_folds_of_lfw_size_equal_the_plain_version():
    rng = np.random.default_rng(1)
    same = np.tile(np.repeat([True, False], 30), 10)
    scores = np.round(rng.normal(size=600) + 1.5 * same, 1)
    folds = np.repeat(np.arange(10), 60)
    result = verify(scores, same, folds)
    accuracies, thresholds = plain_folds(scores.tolist(), same.tolist(), folds.tolist())
    assert list(result.thresholds) == thresholds
    assert result.accuracies == pytest.approx(accuracies, abs=CLOSE)
    mean = sum(accuracies) / 10
    squares = sum((a - mean) ** 2 for a in accuracies)
    assert result.accuracy_standard_error == pytest.approx(math.sqrt(squares / 9) / math.sqrt(10), abs=CLOSE)
    assert result.accuracy_population_deviation == pytest.approx(math.sqrt(squares / 10), abs=CLOSE)
    assert verify(scores, same) == result  # dealt contiguously, this is what deal_folds gives as well


def test_a_search_does_not_stop_at_the_first_dip():
    # From the top: right, wrong, then right for long. A search that stops at the first dip accepts one pair.
    same = [True, False] + [True] * 10 + [False] * 8
    scores = np.arange(20, 0, -1.0)
    result = verify(scores, same, np.zeros(20, int))
    assert result.threshold_on_itself
    assert result.thresholds == (9.0,)
    assert result.accuracies == (0.95,)
    assert result.accuracy_standard_error is None
    assert result.accuracy_population_deviation == 0


def test_the_middle_one_of_equally_good_thresholds():
    # Each of 3, 2, 1, 0 gets one pair right and one wrong, so all thresholds, +inf included, are as good.
    scores = [3, 3, 2, 2, 1, 1, 0, 0]
    same = [True, False] * 4
    assert verify(scores, same, [0] * 8).thresholds == (2.0,)
    assert verify(scores[:6], same[:6], [0] * 6).thresholds == (2.0,)  # inf, 3, 2, 1: the lower of 3 and 2


def test_scores_without_overlap_are_perfect():
    same = np.arange(200) % 2 == 0
    result = verify(np.where(same, 0.9, 0.1), same)
    assert (result.accuracy_mean, result.auc, result.eer) == (1, 1, 0)
    assert result.accuracy_standard_error == 0
    assert result.tar_at_far == {0.1: 1, 0.01: 1, 0.001: None, 0.0001: None, 1e-5: None, 1e-6: None}
    upside_down = verify(np.where(same, 0.1, 0.9), same)
    assert (upside_down.auc, upside_down.eer) == (0, 1)
    assert upside_down.accuracy_mean == 0.5  # accepts none


def test_refused_pairs_are_called_different_always():
    same = np.arange(100) % 2 == 0
    scores = np.where(same, 1.0, 0.0)
    refused = scores.copy()
    refused[:20] = -np.inf  # ten of either kind
    result = verify(refused, same, far_targets=(1.0, 0.1))
    assert result.accuracy_mean == pytest.approx(0.9)
    assert result.tar_at_far == {1.0: 0.8, 0.1: 0.8}
    assert (result.refused_same_pairs, result.refused_different_pairs) == (10, 10)

    nothing = verify(np.full(100, -np.inf), same)
    assert nothing.accuracy_mean == 0.5
    assert set(nothing.thresholds) == {np.inf}
    assert (nothing.auc, nothing.eer) == (0.5, 0.5)
    assert nothing.tar_at_far[0.1] == 0
    assert nothing.to_dict()["thresholds"] == [None] * 10


def test_eer_lies_between_two_points():
    far, tar = np.array([0, 0.2, 1.0]), np.array([0, 0.6, 1.0])
    assert eer(far, tar) == pytest.approx(0.2 + 0.8 / 6)  # FAR 0.2 + 0.8 x, FRR 0.4 (1 - x): x = 1/6


def test_to_dict_is_json():
    same = np.arange(60) % 3 == 0
    result = verify(np.linspace(0, 1, 60), same, far_targets=(0.1, 1e-5))
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["accuracy_mean"] == result.accuracy_mean
    assert values["tar_at_far"] == {"0.1": result.tar_at_far[0.1], "1e-05": None}
    assert len(values["accuracies"]) == len(values["thresholds"]) == 10


def test_dealt_folds_are_contiguous_and_balanced():
    same = np.random.default_rng(0).random(997) < 0.4
    folds = deal_folds(same, 10)
    for kind in (same, ~same):
        counts = np.bincount(folds[kind], minlength=10)
        assert counts.max() - counts.min() <= 1
        assert (np.diff(folds[kind]) >= 0).all()
    assert set(deal_folds([True, True, False, True, False], 10)) == {0, 1}  # two different-person pairs
    assert deal_folds([True, False], 10).tolist() == [0, 0]


@pytest.mark.parametrize("same", [[True, True], [False, False], []])
def test_pairs_of_one_kind_only(same):
    with pytest.raises(UserError, match="same-person and different-person"):
        verify(np.zeros(len(same)), same)


@pytest.mark.parametrize("scores", [[0.0, np.nan], [0.0, np.inf], [[0.0, 1.0]], [0.0]])
def test_scores_that_make_no_sense(scores):
    with pytest.raises(ValueError, match="scores"):
        verify(scores, [True, False])


def test_folds_that_do_not_fit():
    with pytest.raises(ValueError, match="folds"):
        verify([0.0, 1.0], [True, False], [0, 1, 2])


# make_pairs


@given(
    st.lists(st.integers(0, 12), min_size=3, max_size=60),
    st.integers(2, 400),
    st.integers(0, 2**32),
)
@settings(max_examples=300, deadline=None)
def test_pairs_are_right_for_any_labels(codes, num_pairs, seed):
    sizes = Counter(codes)
    if len(sizes) < 2 or max(sizes.values()) < 2:
        with pytest.raises(UserError):
            make_pairs(codes, num_pairs=num_pairs, seed=seed)
        return
    pairs = make_pairs(codes, num_pairs=num_pairs, seed=seed)
    labels = np.array(codes)

    possible_same = sum(c * (c - 1) // 2 for c in sizes.values())
    possible_different = len(codes) * (len(codes) - 1) // 2 - possible_same
    half = min(num_pairs // 2, possible_same, possible_different)
    assert len(pairs) == len(pairs.first) == len(pairs.second) == len(pairs.same) == len(pairs.folds)
    assert pairs.same.sum() == (~pairs.same).sum() == half
    assert ((labels[pairs.first] == labels[pairs.second]) == pairs.same).all()
    unordered = {frozenset(pair) for pair in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)}
    assert len(unordered) == 2 * half
    assert all(len(pair) == 2 for pair in unordered)

    folds = np.unique(pairs.folds)
    assert folds.tolist() == list(range(min(10, half)))
    for fold in folds:
        inside = pairs.same[pairs.folds == fold]
        assert inside.sum() == (~inside).sum()

    # In rounds: nobody gives two more than another who had more to give.
    given_by = Counter(labels[pairs.first[pairs.same]].tolist())
    for person, count in sizes.items():
        if given_by[person] < count * (count - 1) // 2:
            assert max(given_by.values()) <= given_by[person] + 1


def test_pairs_depend_on_the_seed_alone():
    codes = np.repeat(np.arange(50), 8)
    one, same_again, other = (make_pairs(codes, num_pairs=200, seed=seed) for seed in (7, 7, 8))
    for field in ("first", "second", "same", "folds"):
        assert (getattr(one, field) == getattr(same_again, field)).all()
    assert (one.first != other.first).any()


def test_nobody_dominates():
    # One person with 2,000 photographs among a hundred with five.
    codes = np.concatenate([np.zeros(2000, int), np.repeat(np.arange(1, 101), 5)])
    pairs = make_pairs(codes, num_pairs=1000, seed=0)
    given = np.bincount(codes[pairs.first[pairs.same]], minlength=101)
    assert given.min() >= 4 and given.max() <= 5
    different = ~pairs.same
    rows = np.concatenate([pairs.first[different], pairs.second[different]])
    met = np.bincount(codes[rows], minlength=101)
    assert met.min() >= 8 and met.max() <= 11

    # Photographs take turns too: with 2,000 of them, none is used twice in either kind of pair.
    for kind in (pairs.same, different):
        rows = np.concatenate([pairs.first[kind], pairs.second[kind]])
        first_person = rows[codes[rows] == 0]
        assert len(set(first_person.tolist())) == len(first_person) >= 8


def test_large_and_negative_codes():
    codes = np.array([-5, 2**60, -5, 2**60, 7])
    pairs = make_pairs(codes, num_pairs=100, seed=0)
    assert pairs.same.sum() == 2
    assert ((codes[pairs.first] == codes[pairs.second]) == pairs.same).all()


@pytest.mark.parametrize(
    "codes, num_pairs, message",
    [
        ([], 10, "two people"),
        ([3, 3, 3], 10, "two people"),
        ([1, 2, 3], 10, "two photographs"),
        ([1, 1, 2], 1, "too few"),
    ],
)
def test_too_little_for_pairs(codes, num_pairs, message):
    with pytest.raises(UserError, match=message):
        make_pairs(codes, num_pairs=num_pairs, seed=0)
