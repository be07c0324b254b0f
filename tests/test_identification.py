"""Identification against plain loops, scikit-learn and examples worked by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from facetrain.errors import UserError
from facetrain.evaluate.identification import (
    closed_set,
    megaface,
    open_set,
    tpir_at_fpir,
)

# One-dimensional embeddings make scores that can be read: a query of 1 scores a row of x just x.
ONE = np.ones((1, 1), dtype=np.float32)


def column(*values):
    return np.array(values, dtype=np.float32)[:, None]


def small_integers(rng, n, dim=4):
    return rng.integers(-1, 2, (n, dim)).astype(np.float32)  # exact products, many ties


# Slow and plain.


def plain_closed_set(queries, labels, gallery, gallery_labels, distractors, ranks):
    everyone = np.concatenate([gallery, distractors]).astype(np.float64)
    best, precisions = [], []
    for query, label in zip(queries, labels, strict=True):
        mate = [g == label for g in gallery_labels] + [False] * len(distractors)
        if not any(mate):
            continue
        scores = [sum(a * b for a, b in zip(query, row, strict=True)) for row in everyone]
        order = sorted(range(len(mate)), key=lambda j: (-scores[j], mate[j]))
        places = [place for place, j in enumerate(order, start=1) if mate[j]]
        best.append(places[0])
        precisions.append(np.mean([found / place for found, place in enumerate(places, start=1)]))
    return {rank: np.mean([b <= rank for b in best]) for rank in ranks}, np.mean(precisions), len(best)


def plain_tpir(mate_scores, mate_ranks, alarms, rank, target):
    if target < 1 / len(alarms):
        return None
    thresholds = [t for t in {*mate_scores, *alarms, math.inf} if t > -math.inf]
    allowed = [t for t in thresholds if sum(a >= t for a in alarms) / len(alarms) <= target]
    return max(
        sum(s >= t and r <= rank for s, r in zip(mate_scores, mate_ranks, strict=True)) / len(mate_scores)
        for t in allowed
    )


def test_closed_set_by_hand():
    queries, labels = np.repeat(ONE, 3, axis=0), ["ann", "bob", "nobody"]
    gallery, gallery_labels = column(0.5, 0.75, 0.25, 0.5), ["ann", "bob", "ann", "eve"]
    none, two, three = closed_set(
        queries,
        labels,
        gallery,
        gallery_labels,
        distractors=column(0.75, 0.375, 1.0),
        num_distractors=[0, 2, 3],
        ranks=[1, 2, 3, 4],
    )
    # bob .75 | ann: wrong rows .75, .5 (a tie, so before) → rank 3, then .25 is fourth
    assert none.rank_rates == {1: 0.5, 2: 0.5, 3: 1, 4: 1}
    assert none.mean_average_precision == (1 + (1 / 3 + 2 / 4) / 2) / 2
    assert (none.searches, none.searches_without_mate, none.gallery_size, none.distractors) == (2, 1, 4, 0)
    # with .75 and .375: bob second by the tie; ann fourth, then sixth
    assert two.rank_rates == {1: 0, 2: 0.5, 3: 0.5, 4: 1}
    assert two.mean_average_precision == (1 / 2 + (1 / 4 + 2 / 6) / 2) / 2
    assert three.rank_rates == {1: 0, 2: 0, 3: 0.5, 4: 0.5}
    assert (two.distractors, three.distractors) == (2, 3)
    assert json.loads(json.dumps(none.to_dict()))["rank_rates"] == {"1": 0.5, "2": 0.5, "3": 1, "4": 1}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3000))
def test_closed_set_is_that_of_plain_loops(seed, block_bytes):
    rng = np.random.default_rng(seed)
    queries, gallery, distractors = small_integers(rng, 12), small_integers(rng, 25), small_integers(rng, 30)
    labels, gallery_labels = rng.integers(0, 8, 12), rng.integers(0, 7, 25)
    gallery_labels[0] = labels[0]
    numbers, ranks = [30, 0, 11], [1, 3, 10]
    results = closed_set(
        queries,
        labels,
        gallery,
        gallery_labels,
        distractors=distractors,
        num_distractors=numbers,
        ranks=ranks,
        block_bytes=block_bytes,
    )
    for result, number in zip(results, numbers, strict=True):
        rates, precision, searches = plain_closed_set(
            queries, labels, gallery, gallery_labels, distractors[:number], ranks
        )
        assert result.rank_rates == rates
        assert result.mean_average_precision == pytest.approx(precision, abs=1e-12)
        assert (result.searches, result.searches_without_mate) == (searches, 12 - searches)


def test_mean_average_precision_is_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    queries, gallery = rng.standard_normal((20, 6)), rng.standard_normal((70, 6))
    labels, gallery_labels = rng.integers(0, 6, 20), rng.integers(0, 6, 70)
    expected = [
        average_precision_score(gallery_labels == label, gallery @ query)
        for query, label in zip(queries, labels, strict=True)
    ]
    [result] = closed_set(queries, labels, gallery, gallery_labels)
    assert result.mean_average_precision == pytest.approx(np.mean(expected), abs=1e-12)
    assert result.distractors == 0


def test_the_order_of_rows_does_not_matter():
    rng = np.random.default_rng(2)
    queries, gallery = small_integers(rng, 30), small_integers(rng, 60)
    labels, gallery_labels = rng.integers(0, 9, 30), rng.integers(0, 7, 60)
    a, b = rng.permutation(30), rng.permutation(60)
    [result] = closed_set(queries, labels, gallery, gallery_labels)
    [turned] = closed_set(queries[a], labels[a], gallery[b], gallery_labels[b])
    assert turned.rank_rates == result.rank_rates
    assert turned.mean_average_precision == pytest.approx(result.mean_average_precision, abs=1e-12)
    assert open_set(queries, labels, gallery, gallery_labels) == open_set(
        queries[a], labels[a], gallery[b], gallery_labels[b]
    )


def test_megaface_is_a_search_for_each_pair():
    rng = np.random.default_rng(3)
    probes, distractors = small_integers(rng, 14), small_integers(rng, 40)
    labels = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 4, 5, 5])
    numbers = [5, 40]
    results = megaface(probes, labels, distractors, num_distractors=numbers, ranks=[1, 4])
    for result, number in zip(results, numbers, strict=True):
        # By the other road: a closed set with a gallery of one.
        places = []
        for i in range(14):
            for j in range(14):
                if i != j and labels[i] == labels[j]:
                    mate = probes[i] @ probes[j]
                    places.append(1 + sum(probes[i] @ d >= mate for d in distractors[:number]))
        assert result.rank_rates == {rank: np.mean([p <= rank for p in places]) for rank in (1, 4)}
        assert result.mean_average_precision == pytest.approx(np.mean([1 / p for p in places]), abs=1e-12)
        assert (result.searches, result.searches_without_mate) == (len(places), 1)
        assert (result.gallery_size, result.distractors) == (1, number)


def test_open_set_by_hand():
    # Alarms .9 .8 .7 .6: at most one of four (FPIR .25) means T above .8.
    mates, ranks, alarms = [0.95, 0.85, 0.85, 0.8, 0.1], [1, 1, 2, 1, 1], [0.6, 0.9, 0.7, 0.8]
    result = tpir_at_fpir(mates, ranks, alarms, ranks=[1, 20], fpir_targets=[0.24, 0.25, 0.5, 1])
    assert result.thresholds == {0.24: None, 0.25: 0.85, 0.5: 0.8, 1.0: 0.1}
    assert result.tpir[1] == {0.24: None, 0.25: 2 / 5, 0.5: 3 / 5, 1.0: 4 / 5}
    assert result.tpir[20] == {0.24: None, 0.25: 3 / 5, 0.5: 4 / 5, 1.0: 1}
    assert (result.mated, result.non_mated) == (5, 4)


def test_open_set_to_dict_is_plain():
    result = tpir_at_fpir([0.5], [1], [0.9, 0.9], fpir_targets=[0.5, 0.1])
    assert result.thresholds == {0.5: math.inf, 0.1: None}  # the two alarms are tied: neither or both
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == {
        "tpir": {"1": {"0.5": 0, "0.1": None}, "20": {"0.5": 0, "0.1": None}},
        "thresholds": {"0.5": None, "0.1": None},
        "mated": 1,
        "non_mated": 2,
    }


SCORES = st.sampled_from([-math.inf, -1.0, 0.0, 0.25, 0.5, 0.75, 1.0])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(SCORES, st.integers(1, 25)), min_size=1, max_size=15),
    st.lists(SCORES, min_size=1, max_size=30),
)
def test_tpir_is_the_best_of_all_thresholds(mated, alarms):
    scores, places = [s for s, _ in mated], [r for _, r in mated]
    targets = [1, 0.3, 0.29, 0.2, 0.1, 0.01]
    result = tpir_at_fpir(scores, places, alarms, ranks=[1, 20], fpir_targets=targets)
    for rank in (1, 20):
        for target in targets:
            assert result.tpir[rank][target] == plain_tpir(scores, places, alarms, rank, target)
    for target, threshold in result.thresholds.items():
        if threshold is not None:
            assert sum(a >= threshold for a in alarms) / len(alarms) <= target


def test_a_target_that_is_just_reached():
    alarms = np.arange(100) / 100
    for count in range(1, 100):  # 0.29 * 100 is 28.999999999999996
        result = tpir_at_fpir([2.0], [1], alarms, fpir_targets=[count / 100])
        at = tpir_at_fpir(alarms, np.ones(100), alarms, fpir_targets=[count / 100], ranks=[1])
        assert at.tpir[1][count / 100] == count / 100
        assert result.tpir[1][count / 100] == 1


def test_open_set_of_embeddings_is_that_of_its_searches():
    rng = np.random.default_rng(4)
    queries, gallery = small_integers(rng, 80, 6), small_integers(rng, 40, 6)
    labels, gallery_labels = rng.integers(0, 40, 80), rng.integers(0, 20, 40)
    for i in range(0, 80, 2):  # half of the queries look like one of their mates
        rows = np.flatnonzero(gallery_labels == labels[i])
        queries[i] = gallery[rows[0]] if len(rows) else queries[i]
    mated, alarms = [], []
    for query, label in zip(queries, labels, strict=True):
        scores, mate = gallery @ query, gallery_labels == label
        if mate.any():
            best = scores[mate].max()
            mated.append((best, 1 + int((scores[~mate] >= best).sum())))
        else:
            alarms.append(scores.max())
    result = open_set(queries, labels, gallery, gallery_labels, ranks=[1, 5], fpir_targets=[0.5, 0.3, 0.1])
    assert (result.mated, result.non_mated) == (len(mated), len(alarms)) and len(mated) > 9 < len(alarms)
    for rank in (1, 5):
        for target in (0.5, 0.3, 0.1):
            assert result.tpir[rank][target] == plain_tpir(*zip(*mated, strict=True), alarms, rank, target)
    assert result.tpir[1][0.5] < result.tpir[5][0.5]
    blocked = open_set(
        queries, labels, gallery, gallery_labels, ranks=[1, 5], fpir_targets=[0.5, 0.3, 0.1], block_bytes=500
    )
    assert blocked == result


def test_what_cannot_be_measured():
    x = column(1, 0.5)
    for call in (
        lambda: closed_set(x, [1, 2], x, [3, 4]),
        lambda: megaface(x, [1, 2], x),
        lambda: open_set(x, [1, 2], x, [1, 2]),
        lambda: open_set(x, [1, 2], x, [3, 4]),
    ):
        with pytest.raises(UserError):
            call()
    for call, words in (
        (lambda: closed_set(x, [1, 2], x, [1, 2], ranks=[0]), "begin at 1"),
        (lambda: closed_set(x, [1, 2], x, [1, 2], num_distractors=[1]), "without distractors"),
        (lambda: megaface(x, [1], x), "probe labels"),
        (lambda: megaface(x, [1, 1], x, num_distractors=[3]), "ends"),
        (lambda: tpir_at_fpir([1.0], [1, 2], [0.5]), "one length"),
        (lambda: tpir_at_fpir([np.nan], [1], [0.5]), "below"),
        (lambda: tpir_at_fpir([1.0], [1], [np.inf]), "below"),
        (lambda: tpir_at_fpir([1.0], [0], [0.5]), "begin at 1"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
