"""Label errors: what is planted is found, what is right is left alone, and the arithmetic against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from facetrain.evaluate.label_errors import (
    LabelErrors,
    _divide,
    _limit,
    find_label_errors,
    people_in_both,
)

PEOPLE, EACH, DIM = 60, 8, 32


def faces(
    seed: int = 0, *, people: int = PEOPLE, each: int = EACH, noise: float = 0.7, bias: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """(unit embeddings float32, labels) of people who are clearly apart; bias: what all have in common."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(people, DIM))
    embeddings = np.repeat(centres, each, axis=0) + noise * rng.normal(size=(people * each, DIM)) + bias
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings.astype(np.float32), np.repeat(np.arange(people), each).astype(np.int64)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


@pytest.mark.parametrize("bias", [0.0, 3.0])
def test_photographs_under_a_wrong_name(bias: float) -> None:
    embeddings, labels = faces(noise=0.4, bias=bias)
    wrong = np.arange(0, PEOPLE, 5) * EACH + np.arange(12) % EACH
    truth, labels = labels, labels.copy()
    labels[wrong] = (labels[wrong] + 7) % PEOPLE
    found = find_label_errors(embeddings, labels)
    assert {outlier.row for outlier in found.outliers} == set(wrong.tolist())
    assert not found.two_in_one and not found.one_in_two
    for outlier in found.outliers:
        assert outlier.label == labels[outlier.row]
        assert outlier.nearest_label == truth[outlier.row]
        others = np.array([i != outlier.row and labels[i] == outlier.label for i in range(len(labels))])
        own = unit(embeddings[others].astype(float).sum(0)) @ embeddings[outlier.row]
        near = (
            unit(embeddings[labels == outlier.nearest_label].astype(float).sum(0)) @ embeddings[outlier.row]
        )
        np.testing.assert_allclose((outlier.own_cosine, outlier.nearest_cosine), (own, near), atol=1e-5)


def test_two_people_under_one_name_and_one_under_two() -> None:
    embeddings, labels = faces()
    labels[labels == 7] = 3
    labels[(labels == 9) & (np.arange(len(labels)) % 3 == 0)] = 1000
    found = find_label_errors(embeddings, labels)
    assert [two.label for two in found.two_in_one] == [3]
    groups = {tuple(sorted(found.two_in_one[0].rows)), tuple(sorted(found.two_in_one[0].other_rows))}
    assert groups == {tuple(range(24, 32)), tuple(range(56, 64))}
    first, second = (unit(embeddings[list(group)].astype(float).sum(0)) for group in groups)
    assert found.two_in_one[0].cosine == pytest.approx(first @ second, abs=1e-5)
    assert [(one.first_label, one.second_label) for one in found.one_in_two] == [(9, 1000)], (
        "more photographs first"
    )
    first, second = (unit(embeddings[labels == label].astype(float).sum(0)) for label in (9, 1000))
    assert found.one_in_two[0].cosine == pytest.approx(first @ second, abs=1e-5)
    assert not found.outliers


def test_what_is_right_is_left_alone() -> None:
    for seed in range(5):
        found = find_label_errors(*faces(seed, noise=0.5))
        assert found == LabelErrors([], [], [])


def test_each_photograph_is_named_once() -> None:
    embeddings, labels = faces(people=40)
    labels[labels == 7] = 3
    labels[::50] = (labels[::50] + 11) % 40
    found = find_label_errors(embeddings, labels)
    apart = {row for two in found.two_in_one for row in two.other_rows}
    assert apart and not apart & {outlier.row for outlier in found.outliers}


def test_the_worst_first_and_the_same_again() -> None:
    embeddings, labels = faces(noise=1.1)
    labels[::20] = (labels[::20] + 5) % PEOPLE
    labels[labels == 7] = 3
    found = find_label_errors(embeddings, labels)
    assert len(found.outliers) > 5
    cosines = [two.cosine for two in found.two_in_one]
    assert cosines == sorted(cosines)
    assert found == find_label_errors(embeddings, labels)
    names = np.random.default_rng(3).permutation(10 * PEOPLE)[labels]  # labels need not be dense
    other = find_label_errors(embeddings, names)
    assert [names[o.row] for o in other.outliers] == [o.label for o in other.outliers]


@pytest.mark.parametrize("precision", [0.5, 0.8, 0.95])
def test_the_limit_against_its_definition(precision: float) -> None:
    """Made of a known share of errors: in plain loops, with ties."""
    rng = np.random.default_rng(0)
    made = np.round(rng.normal(-1, 0.5, 400), 1)
    there = np.round(np.concatenate([rng.normal(1, 0.6, 950), rng.normal(-1, 0.5, 50)]), 1)
    shares = {}
    for value in sorted(set(there.tolist())):
        count = sum(x <= value for x in there.tolist())
        share = (sum(x <= value for x in made.tolist()) + 1) / (len(made) + 1)
        if share <= 0.99:
            shares[share] = value, count  # of each share the last
    errors = min((count + count**0.5 + 1) / share for share, (_, count) in shares.items())
    good = [value for share, (value, count) in shares.items() if errors * share >= precision * count]
    limit = _limit(there, made, precision=precision, reach=0.99)
    assert limit == max(good)
    assert 35 <= errors <= 75, "there are 50"
    right = (there[950:] <= limit).sum() / (there <= limit).sum()
    assert right >= precision - 0.1


def test_no_limit_where_nothing_is_like_an_error() -> None:
    made = np.array([-2.0, -1.0])
    assert _limit(np.array([1.0, 2.0]), made, precision=0.5, reach=0.99) == -np.inf
    assert _limit(np.array([]), made, precision=0.5, reach=0.99) == -np.inf
    assert _limit(np.array([-5.0, 1.0]), made, precision=0.5, reach=0.99) == -5, (
        "worse than all that was made"
    )


def test_dividing_in_two_is_best() -> None:
    """Of few photographs: no other division has groups that hold together better."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        centres = np.eye(6)[:2]
        e = np.concatenate(
            [centres[0] + 0.2 * rng.normal(size=(4, 6)), centres[1] + 0.2 * rng.normal(size=(3, 6))]
        )
        e = (e / np.linalg.norm(e, axis=1, keepdims=True)).astype(np.float32)

        def held(side: np.ndarray, e: np.ndarray = e) -> float:
            return float(np.linalg.norm(e[side].sum(0)) + np.linalg.norm(e[~side].sum(0)))

        sides = [np.array([bits >> i & 1 for i in range(7)], bool) for bits in range(1, 127)]
        assert held(_divide(e)) == pytest.approx(max(map(held, sides)), abs=1e-5)
    assert not _divide(np.ones((4, 3), np.float32) / np.sqrt(3).astype(np.float32)).any(), (
        "all alike: no groups"
    )


def test_people_in_both() -> None:
    embeddings, labels = faces()
    here = labels % 2 == 0
    others, other_labels = embeddings[~here | (labels < 10)], labels[~here | (labels < 10)] + 500
    rng = np.random.default_rng(5)
    others = others + 0.05 * rng.normal(size=others.shape).astype(np.float32)
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    found = people_in_both(embeddings[here], labels[here], others, other_labels)
    assert {(pair.first_label, pair.second_label) for pair in found} == {
        (n, n + 500) for n in range(0, 10, 2)
    }
    assert [pair.cosine for pair in found] == sorted((pair.cosine for pair in found), reverse=True)
    every = people_in_both(embeddings[here], labels[here], others, other_labels, threshold=-1.0)
    assert len(every) == PEOPLE // 2
    for pair in every:
        own = unit(embeddings[labels == pair.first_label].astype(float).sum(0))
        centres = {
            n: unit(others[other_labels == n].astype(float).sum(0)) for n in set(other_labels.tolist())
        }
        best = max(centres, key=lambda n: own @ centres[n])
        assert pair.second_label == best
        assert pair.cosine == pytest.approx(own @ centres[best], abs=1e-5)


def test_small_sets_and_wrong_arrays() -> None:
    embeddings, labels = faces(people=2, each=1)
    assert find_label_errors(embeddings, labels).outliers == []
    assert find_label_errors(embeddings[:1], labels[:1]) == LabelErrors([], [], [])
    assert find_label_errors(embeddings[:0], labels[:0]) == LabelErrors([], [], [])
    with pytest.raises(ValueError, match=r"must be \[n, D\] and \[n\]"):
        find_label_errors(embeddings, labels[:1])
    with pytest.raises(ValueError, match="precision and reach"):
        find_label_errors(embeddings, labels, precision=0)
    embeddings, labels = faces()
    embeddings[5, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        find_label_errors(embeddings, labels)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = faces(noise=1.0)
    labels[::20] = (labels[::20] + 5) % PEOPLE
    labels[labels == 7] = 3
    whole = find_label_errors(embeddings, labels)
    monkeypatch.setattr("facetrain.evaluate.label_errors.BLOCK_ROWS", 7)
    parts = find_label_errors(embeddings, labels)
    assert [x.row for x in parts.outliers] == [x.row for x in whole.outliers]
    assert [(x.label, x.rows) for x in parts.two_in_one] == [(x.label, x.rows) for x in whole.two_in_one]
    assert [x.first_label for x in parts.one_in_two] == [x.first_label for x in whole.one_in_two]
