"""Retrieval against plain loops, scikit-learn, pytorch-metric-learning and examples worked by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import average_precision_score, precision_recall_curve

from facetrain.errors import UserError
from facetrain.evaluate.retrieval import image_similarity, retrieve


def small_integers(rng, n, dim=4):
    return rng.integers(-1, 2, (n, dim)).astype(np.float32)  # exact products, many ties


def unit(rng, n, dim=8):
    x = rng.standard_normal((n, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


# Slow and plain: the definitions, row by row.


def plain_retrieval(queries, labels, references, reference_labels, itself):
    ones, rs, maps = [], [], []
    for i, (query, label) in enumerate(zip(queries, labels, strict=True)):
        rows = [j for j in range(len(references)) if not (itself and i == j)]
        scores = references.astype(np.float64) @ query.astype(np.float64)
        order = sorted(rows, key=lambda j: (-scores[j], reference_labels[j] == label))
        right = [reference_labels[j] == label for j in order]
        r = sum(right)
        if r:
            ones.append(right[0])
            rs.append(sum(right[:r]) / r)
            maps.append(sum(sum(right[: n + 1]) / (n + 1) for n in range(r) if right[n]) / r)
    return np.mean(ones), np.mean(rs), np.mean(maps), len(ones)


def plain_similarity(predictions, true, target):
    """(micro average precision, recall at precision) of {(query, reference): score}."""
    order = sorted(predictions, key=lambda pair: (-predictions[pair], pair in true))
    average, recall_before, best, right = 0.0, 0.0, 0.0, 0
    for n, pair in enumerate(order, start=1):
        right += pair in true
        precision, recall = right / n, right / len(true)
        average += (recall - recall_before) * precision
        recall_before = recall
        if precision >= target:
            best = max(best, recall)
    return average, best


def measure(predictions, true, **options):
    pairs, truth = list(predictions), list(true)
    return image_similarity(
        [q for q, _ in pairs],
        [r for _, r in pairs],
        [predictions[pair] for pair in pairs],
        [q for q, _ in truth],
        [r for _, r in truth],
        **options,
    )


def test_retrieval_by_hand():
    # One-dimensional: a query of 1 scores x with a row of x. Mates (label 1) at .9, .7, .6; R = 3.
    references = np.array([[0.9], [0.8], [0.7], [0.6], [0.5]], dtype=np.float32)
    result = retrieve(np.ones((1, 1)), [1], references, [1, 0, 1, 1, 0])
    assert result.precision_at_1 == 1
    assert result.r_precision == pytest.approx(2 / 3)
    assert result.map_at_r == pytest.approx((1 + 2 / 3) / 3)
    assert json.loads(json.dumps(result.to_dict()))["queries"] == 1
    # A tie at the top: the wrong row first.
    tied = retrieve(np.ones((1, 1)), [1], np.ones((2, 1)), [1, 0])
    assert (tied.precision_at_1, tied.r_precision, tied.map_at_r) == (0, 0, 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.integers(1, 3000))
def test_retrieval_is_that_of_plain_loops(seed, itself, block_bytes):
    rng = np.random.default_rng(seed)
    queries, labels = small_integers(rng, 20), rng.integers(0, 9, 20)
    labels[1] = labels[0]
    references, reference_labels = queries, labels
    if not itself:
        references, reference_labels = small_integers(rng, 30), rng.integers(0, 7, 30)
        reference_labels[0] = labels[0]
    given_references = () if itself else (references, reference_labels)
    result = retrieve(queries, labels, *given_references, block_bytes=block_bytes)
    ones, r, m, count = plain_retrieval(queries, labels, references, reference_labels, itself)
    assert result.precision_at_1 == pytest.approx(ones, abs=1e-12)
    assert result.r_precision == pytest.approx(r, abs=1e-12)
    assert result.map_at_r == pytest.approx(m, abs=1e-12)
    assert (result.queries, result.queries_without_mate) == (count, 20 - count)


@pytest.mark.parametrize("itself", [True, False])
def test_retrieval_is_that_of_pytorch_metric_learning(itself):
    rng = np.random.default_rng(1)
    queries, labels = unit(rng, 90), rng.integers(0, 25, 90)
    references, reference_labels = (queries, labels) if itself else (unit(rng, 120), rng.integers(0, 22, 120))
    calculator = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        k="max_bin_count",
        knn_func=CustomKNN(CosineSimilarity()),
        device=torch.device("cpu"),
    )
    tensors = [torch.tensor(x) for x in (queries, labels, references, reference_labels)]
    expected = calculator.get_accuracy(*tensors, ref_includes_query=itself)
    result = retrieve(queries, labels, *(() if itself else (references, reference_labels)))
    assert result.queries_without_mate > 0
    assert 0 < result.map_at_r < result.r_precision < 1
    assert result.precision_at_1 == pytest.approx(expected["precision_at_1"], abs=1e-9)
    assert result.r_precision == pytest.approx(expected["r_precision"], abs=1e-9)
    assert result.map_at_r == pytest.approx(expected["mean_average_precision_at_r"], abs=1e-9)


def test_the_order_of_rows_does_not_matter_in_retrieval():
    rng = np.random.default_rng(2)
    queries, labels = small_integers(rng, 60), rng.integers(0, 9, 60)
    order = rng.permutation(60)
    plain, turned = retrieve(queries, labels), retrieve(queries[order], labels[order])
    for name, value in plain.to_dict().items():
        assert turned.to_dict()[name] == pytest.approx(value, abs=1e-12)


def test_retrieval_that_cannot_be():
    x = np.ones((2, 3), dtype=np.float32)
    with pytest.raises(UserError, match="two photographs"):
        retrieve(x, [1, 2])
    with pytest.raises(UserError, match="none of 2"):
        retrieve(x, [1, 2], x, [3, 4])
    with pytest.raises(ValueError, match="go together"):
        retrieve(x, [1, 2], x)
    with pytest.raises(ValueError, match="labels"):
        retrieve(x, [1, 1, 1])


def test_image_similarity_by_hand():
    predictions = {
        ("q1", "r1"): 0.9,
        ("q2", "r9"): 0.8,
        ("q2", "r2"): 0.8,
        ("q3", "r3"): 0.5,
        ("q4", "r1"): 0.4,
    }
    true = [("q1", "r1"), ("q2", "r2"), ("q3", "r3"), ("q5", "r5")]  # the last is never predicted
    result = measure(predictions, true)
    # right, wrong (tied, so first), right, right, wrong: precisions 1, 2/3, 3/4 at recalls 1/4, 2/4, 3/4
    assert result.micro_average_precision == pytest.approx((1 + 2 / 3 + 3 / 4) / 4)
    assert (result.recall_at_precision, result.threshold) == (0.25, 0.9)
    assert (result.predictions, result.true_matches, result.true_matches_predicted) == (5, 4, 3)
    lower = measure(predictions, true, precision_target=0.75)
    assert (lower.recall_at_precision, lower.threshold) == (0.75, 0.5)
    assert json.loads(json.dumps(result.to_dict()))["precision_target"] == 0.9


def test_precision_that_is_just_reached_and_never_reached():
    predictions = {(i, 0): -float(i) for i in range(10)}
    nine = [(i, 0) for i in range(10) if i != 4]
    assert measure(predictions, nine).recall_at_precision == 1  # 9 of 10 is 90 %
    result = measure({(0, 0): 2.0, (1, 1): 1.0}, [(1, 1)])
    assert (result.recall_at_precision, result.threshold) == (0, None)
    assert result.micro_average_precision == 0.5


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.integers(0, 5), st.integers(0, 5)),
        st.sampled_from([-1.0, 0.0, 0.5, 0.75, 1.0]),
        max_size=36,
    ),
    st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1),
    st.sampled_from([0.25, 0.5, 0.9, 1.0]),
)
def test_image_similarity_is_that_of_plain_loops(predictions, true, target):
    result = measure(predictions, true, precision_target=target)
    average, recall = plain_similarity(predictions, true, target)
    assert result.micro_average_precision == pytest.approx(average, abs=1e-12)
    assert result.recall_at_precision == recall
    if result.threshold is not None:  # what accepting from there on gives, ties and all
        accepted = [pair in true for pair, score in predictions.items() if score >= result.threshold]
        assert sum(accepted) / len(true) == recall
        assert sum(accepted) / len(accepted) >= target
    backwards = measure(dict(reversed(predictions.items())), sorted(true), precision_target=target)
    assert backwards == result


def test_image_similarity_is_that_of_scikit_learn():
    rng = np.random.default_rng(3)
    pairs = [(q, r) for q in range(40) for r in range(10)]
    right = rng.random(400) < 0.3
    scores = rng.permutation(400) + 150.0 * right  # no wrong row ties with a right one
    scores[~right] += 0.5
    true = [pair for pair, y in zip(pairs, right, strict=True) if y]
    result = measure(dict(zip(pairs, scores.tolist(), strict=True)), true)
    assert len(set(scores)) == 400
    assert result.micro_average_precision == pytest.approx(average_precision_score(right, scores), abs=1e-12)
    precision, recall, _ = precision_recall_curve(right, scores)
    assert result.recall_at_precision > 0
    assert result.recall_at_precision == pytest.approx(recall[precision >= 0.9].max(), abs=1e-12)
    # Matches that nobody predicted take their share.
    more = measure(
        dict(zip(pairs, scores.tolist(), strict=True)), [*true, *((q, 99) for q in range(len(true)))]
    )
    assert more.micro_average_precision == pytest.approx(result.micro_average_precision / 2, abs=1e-12)


def test_nothing_predicted():
    result = measure({}, [("q", "r")])
    assert (result.micro_average_precision, result.recall_at_precision, result.threshold) == (0, 0, None)


def test_image_similarity_that_cannot_be():
    with pytest.raises(UserError, match="there are none"):
        measure({("q", "r"): 1.0}, [])
    with pytest.raises(UserError, match="q, r is predicted more than once"):
        image_similarity(["a", "q", "q"], ["r", "r", "r"], [3, 2, 1], ["q"], ["r"])
    with pytest.raises(UserError, match="q, r is a true match more than once"):
        image_similarity(["q"], ["r"], [1], ["q", "q"], ["r", "r"])
    for arguments, words in (
        ((["q"], ["r"], [np.nan], ["q"], ["r"]), "numbers"),
        ((["q"], ["r", "s"], [1], ["q"], ["r"]), "one length"),
        ((["q"], ["r"], [1], ["q"], ["r", "s"]), "one length"),
    ):
        with pytest.raises(ValueError, match=words):
            image_similarity(*arguments)
    with pytest.raises(ValueError, match="precision_target"):
        image_similarity(["q"], ["r"], [1], ["q"], ["r"], precision_target=0)
