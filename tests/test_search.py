"""Search against plain loops over exact fractions, on data full of ties and of near ties."""

from __future__ import annotations

import sys
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from facetrain.errors import UserError
from facetrain.evaluate import search
from facetrain.evaluate.mates import mate_pairs, rank_mates, ranks_of_mates
from facetrain.evaluate.search import count_at_or_above, scores_of_pairs, top_k

BLOCKS = (600, 5_000, 1 << 20)


# Slow and plain: the definition in exact fractions.


def plain_fixed_point(vector):
    norm = 0.9 * float(np.sqrt(np.sum(np.float64(vector) ** 2)))
    power = Fraction(1)
    while norm and norm >= power:
        power *= 2
    while norm and norm < power / 2:
        power /= 2
    return [round(Fraction(float(x)) / power * 2**26) * power / 2**26 for x in vector]


def plain_scores(queries, gallery):
    """float32 [Q, G], each sum made without any rounding, and rounded once."""
    q, g = [plain_fixed_point(x) for x in queries], [plain_fixed_point(x) for x in gallery]
    return np.array(
        [[np.float32(float(sum(x * y for x, y in zip(a, b, strict=True)))) for b in g] for a in q],
        dtype=np.float32,
    ).reshape(len(q), len(g))


def plain_top_k(scores, k, exclude_self=False):
    values = np.full((len(scores), k), -np.inf, dtype=np.float32)
    rows = np.full((len(scores), k), -1)
    for i, row in enumerate(scores.tolist()):
        order = sorted((-s, j) for j, s in enumerate(row) if not (exclude_self and i == j))[:k]
        for place, (s, j) in enumerate(order):
            values[i, place], rows[i, place] = -s, j
    return values, rows


def plain_rank(scores, labels, gallery_labels, i, exclude_self=False):
    """(score, rank) of the best mate: the place it gets when wrong rows come first among equals."""
    others = [j for j in range(len(gallery_labels)) if not (exclude_self and i == j)]
    order = sorted(others, key=lambda j: (-scores[i, j], gallery_labels[j] == labels[i]))
    for place, j in enumerate(order, start=1):
        if gallery_labels[j] == labels[i]:
            return scores[i, j], place
    return -np.inf, 0


def embeddings(rng, n, dim, kind):
    if kind == "ties":  # few distinct vectors, exact products
        return rng.integers(-1, 2, (n, dim)).astype(np.float32)
    x = rng.standard_normal((n, dim))
    if kind == "crowd":  # products that float32 cannot tell apart
        x = 1e-7 * x + 1
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["ties", "random", "crowd"])
@pytest.mark.parametrize("exclude_self", [False, True])
def test_top_k_is_that_of_a_plain_sort(kind, exclude_self):
    rng = np.random.default_rng(1)
    gallery = embeddings(rng, 61, 7, kind)
    queries = gallery if exclude_self else embeddings(rng, 23, 7, kind)
    scores = plain_scores(queries, gallery)
    for k in (1, 5, 59, 60, 61, 70):
        expected = plain_top_k(scores, k, exclude_self)
        for block_bytes in (40, *BLOCKS):
            found = top_k(queries, gallery, k, exclude_self=exclude_self, block_bytes=block_bytes)
            assert found[0].dtype == np.float32 and found[1].dtype == np.int64
            same(found, expected)


@pytest.mark.parametrize("kind", ["ties", "random", "crowd"])
def test_the_long_way_round_chunks_is_the_same(kind):
    """A gallery long enough that products are looked at by chunks, with ties across blocks."""
    rng = np.random.default_rng(2)
    gallery, queries = embeddings(rng, 1600, 4, kind), embeddings(rng, 6, 4, kind)
    expected = plain_top_k(plain_scores(queries, gallery), 3)
    for block_bytes in (4 * 6 * 128, 4 * 6 * 640, 4 * 6 * 1537, 1 << 20):
        same(top_k(queries, gallery, 3, block_bytes=block_bytes), expected)


def test_equal_rows_far_apart_come_in_their_order():
    rng = np.random.default_rng(3)
    gallery = embeddings(rng, 3000, 16, "random")
    twins = [7, 900, 1500, 1501, 2999]
    gallery[twins] = gallery[7]
    for block_bytes in (2_000, 10_000, 1 << 20):
        scores, rows = top_k(gallery[7:8], gallery, 5, block_bytes=block_bytes)
        assert rows[0].tolist() == twins
        assert len(set(scores[0].tolist())) == 1


def test_a_score_depends_on_its_two_vectors_alone():
    rng = np.random.default_rng(4)
    queries, gallery = embeddings(rng, 40, 33, "random"), embeddings(rng, 500, 33, "random")
    scores, rows = top_k(queries, gallery, 500)
    np.testing.assert_allclose(
        scores,
        np.take_along_axis(queries.astype(np.float64) @ gallery.T.astype(np.float64), rows, 1),
        atol=2e-7,
    )
    alone = [
        scores_of_pairs(queries[i : i + 1], gallery[j : j + 1], [0], [0])[0] for i, j in enumerate(rows[:, 3])
    ]
    assert alone == scores[:, 3].tolist()
    turned = rng.permutation(33)  # of the dimensions: another order of summation
    same(top_k(queries[:, turned], gallery[:, turned], 500), (scores, rows))
    same(top_k(torch.tensor(queries), torch.tensor(gallery), 500), (scores, rows))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            same(top_k(queries, gallery, 500), (scores, rows))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_long_and_short_vectors_keep_their_lengths():
    rng = np.random.default_rng(5)
    queries, gallery = rng.standard_normal((9, 5)), rng.standard_normal((80, 5))
    queries *= 10.0 ** rng.integers(-6, 7, (9, 1))
    gallery *= 10.0 ** rng.integers(-6, 7, (80, 1))
    gallery[3] = 0
    queries, gallery = queries.astype(np.float32), gallery.astype(np.float32)
    same(top_k(queries, gallery, 80, block_bytes=5_000), plain_top_k(plain_scores(queries, gallery), 80))


def test_permuting_the_gallery_permutes_the_rows():
    rng = np.random.default_rng(6)
    queries, gallery = embeddings(rng, 30, 8, "random"), embeddings(rng, 200, 8, "random")
    order = rng.permutation(200)
    scores, rows = top_k(queries, gallery, 12)
    turned_scores, turned_rows = top_k(queries, gallery[order], 12)
    same((turned_scores, order[turned_rows]), (scores, rows))


def test_memory_mapped_and_half_precision_embeddings(tmp_path):
    rng = np.random.default_rng(7)
    gallery = embeddings(rng, 50, 6, "random").astype(np.float16)
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    whole = gallery.astype(np.float32)
    same(top_k(mapped, mapped, 4, exclude_self=True), top_k(whole, whole, 4, exclude_self=True))
    half = torch.tensor(gallery)
    same(top_k(half, half, 4), top_k(whole, whole, 4))


def test_nothing_to_search_or_to_find():
    some, none = np.ones((3, 4), dtype=np.float32), np.empty((0, 4), dtype=np.float32)
    scores, rows = top_k(some, none, 2)
    assert np.isneginf(scores).all() and (rows == -1).all() and rows.shape == (3, 2)
    assert top_k(none, some, 2)[1].shape == (0, 2)
    same(top_k(some[:1], some[:1], 2, exclude_self=True), ([[-np.inf] * 2], [[-1] * 2]))
    assert count_at_or_above(some, none, [0, 2], [0, 0]).tolist() == [[0], [0]]
    assert count_at_or_above(some, some, [], []).shape == (0, 1)
    scores, ranks = ranks_of_mates(some, [1, 2, 3], none, [])
    assert np.isneginf(scores).all() and ranks.tolist() == [0, 0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_embeddings_must_be_numbers(bad):
    good = np.ones((3, 4), dtype=np.float32)
    wrong = good.copy()
    wrong[2, 1] = bad
    for queries, gallery in ((good, wrong), (wrong, good)):
        with pytest.raises(ValueError, match="row 2"):
            top_k(queries, gallery, 1)
        with pytest.raises(ValueError, match="row 2"):
            count_at_or_above(queries, gallery, [0], [0.5])
        with pytest.raises(ValueError, match="finite"):
            ranks_of_mates(queries, [1, 2, 3], gallery, [1, 2, 3])


def test_wrong_calls():
    x = np.ones((3, 4), dtype=np.float32)
    for call, words in (
        (lambda: top_k(x, x[:, :3], 1), "must be"),
        (lambda: top_k(x[0], x, 1), "must be"),
        (lambda: top_k(x, x, 0), "k must"),
        (lambda: top_k(x[:2], x, 1, exclude_self=True), "one set"),
        (lambda: top_k(x, x, 1, block_bytes=0), "block_bytes"),
        (lambda: top_k(x * 1e20, x * 1e20, 1), "leave float32"),
        (lambda: scores_of_pairs(x * 1e20, x * 1e20, [0], [0]), "leave float32"),
        (lambda: scores_of_pairs(x, x, [0, 1], [0]), "one length"),
        (lambda: count_at_or_above(x, x, [0, 1], [0.0]), "one length"),
        (lambda: count_at_or_above(x, x, [0], [np.nan]), "numbers"),
        (lambda: count_at_or_above(x, x, [0], [0.0], ends=[4]), "ends"),
        (lambda: rank_mates(x, [1, 2], x, [1, 2, 3]), "query labels"),
        (lambda: rank_mates(x, [1, 2, 3], x, [1, 2]), "gallery labels"),
        (lambda: rank_mates(x, [1, 2, 3], x, [1, 2, 3], num_distractors=[1]), "distractors"),
        (lambda: mate_pairs([[1]], [1]), "1-d"),
        (lambda: mate_pairs([1, 2], [1], exclude_self=True), "one set"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize("kind", ["ties", "random", "crowd"])
def test_counts_are_those_of_plain_comparison(kind):
    rng = np.random.default_rng(8)
    queries, gallery = embeddings(rng, 12, 6, kind), embeddings(rng, 150, 6, kind)
    scores = plain_scores(queries, gallery)
    query_rows = rng.integers(0, 12, 60)
    thresholds = scores[query_rows, rng.integers(0, 150, 60)]  # all of them ties
    thresholds[:2] = np.inf, -np.inf
    ends = [150, 0, 40, 97, 40]
    expected = [
        [sum(s >= t for s in scores[i, :end]) for end in ends]
        for i, t in zip(query_rows, thresholds, strict=True)
    ]
    for block_bytes in BLOCKS:
        found = count_at_or_above(
            queries, gallery, query_rows, thresholds, ends=ends, block_bytes=block_bytes
        )
        assert found.tolist() == expected


@pytest.mark.parametrize("kind", ["ties", "random", "crowd"])
@pytest.mark.parametrize("exclude_self", [False, True])
def test_ranks_of_mates_are_those_of_a_plain_sort(kind, exclude_self):
    rng = np.random.default_rng(9)
    gallery = embeddings(rng, 90, 6, kind)
    gallery_labels = rng.integers(0, 25, 90)
    queries, labels = (gallery, gallery_labels)
    if not exclude_self:
        queries, labels = embeddings(rng, 30, 6, kind), rng.integers(0, 35, 30)
    scores = plain_scores(queries, gallery)
    expected = [plain_rank(scores, labels, gallery_labels, i, exclude_self) for i in range(len(queries))]
    assert any(rank == 0 for _, rank in expected) and any(rank > 1 for _, rank in expected)
    for block_bytes in BLOCKS:
        found = ranks_of_mates(
            queries, labels, gallery, gallery_labels, exclude_self=exclude_self, block_bytes=block_bytes
        )
        same(found, zip(*expected, strict=True))


def test_every_mate_has_its_position_under_each_number_of_distractors():
    rng = np.random.default_rng(10)
    queries, gallery, distractors = (embeddings(rng, n, 4, "ties") for n in (15, 40, 70))
    labels, gallery_labels = rng.integers(0, 9, 15), rng.integers(0, 8, 40)
    numbers = [0, 33, 70]
    ranking = rank_mates(
        queries, labels, gallery, gallery_labels, distractors=distractors, num_distractors=numbers
    )
    expected = []
    for i, label in enumerate(labels):
        for n, number in enumerate(numbers):
            everyone = np.concatenate([gallery, distractors[:number]])
            mate = [*(gallery_labels == label), *[False] * number]
            scores = plain_scores(queries[i : i + 1], everyone)[0]
            order = sorted(range(len(mate)), key=lambda j: (-scores[j], mate[j], j))
            expected += [(i, n, j, place) for place, j in enumerate(order, start=1) if mate[j]]
    found = [
        (i, n, j, place[n])
        for i, j, place in zip(ranking.query_rows, ranking.gallery_rows, ranking.positions, strict=True)
        for n in range(len(numbers))
    ]
    assert sorted(found) == sorted(expected)


def test_all_scores_equal_finds_nobody():
    x = np.ones((6, 3), dtype=np.float32)
    _, ranks = ranks_of_mates(x, [0, 1, 2, 0, 1, 2], x, [0, 1, 2, 0, 1, 2], exclude_self=True)
    assert ranks.tolist() == [5] * 6  # four strangers first


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 8),
    st.integers(0, 40),
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(1, 3000),
    st.data(),
)
def test_any_search(queries, gallery, dim, k, block_bytes, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    q, g = embeddings(rng, queries, dim, "ties"), embeddings(rng, gallery, dim, "ties")
    scores = (q @ g.T).astype(np.float32)  # small integers: exact
    same(top_k(q, g, k, block_bytes=block_bytes), plain_top_k(scores, k))
    limits = rng.integers(-dim, dim + 1, queries)
    counts = count_at_or_above(q, g, np.arange(queries), limits, block_bytes=block_bytes)
    assert counts[:, 0].tolist() == [sum(row >= t) for row, t in zip(scores, limits, strict=True)]


def fake_faiss(seed):
    """faiss's flat search as far as it is used, with errors of float32's size and its freedom in ties."""

    def knn(queries, gallery, k, metric):
        assert metric == "ip" and queries.dtype == gallery.dtype == np.float32
        rng = np.random.default_rng(seed)
        products = queries.astype(np.float64) @ gallery.T.astype(np.float64)
        lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(gallery, axis=1)
        products += rng.uniform(-1, 1, products.shape) * queries.shape[1] * 2.0**-24 * lengths
        rows = np.argsort(-products, axis=1)[:, :k]
        return np.take_along_axis(products, rows, 1).astype(np.float32), rows

    return SimpleNamespace(knn=knn, METRIC_INNER_PRODUCT="ip")


@pytest.mark.parametrize("kind", ["ties", "random", "crowd"])
@pytest.mark.parametrize("exclude_self", [False, True])
def test_faiss_only_proposes(monkeypatch, kind, exclude_self):
    rng = np.random.default_rng(11)
    gallery = embeddings(rng, 300, 8, kind)
    queries = gallery if exclude_self else embeddings(rng, 20, 8, kind)
    expected = top_k(queries, gallery, 5, exclude_self=exclude_self)
    for seed in range(5):
        monkeypatch.setitem(sys.modules, "faiss", fake_faiss(seed))
        same(top_k(queries, gallery, 5, exclude_self=exclude_self, backend="faiss"), expected)


@pytest.mark.parametrize("kind", ["ties", "random", "crowd"])
def test_faiss_gives_the_same(kind):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(12)
    gallery, queries = embeddings(rng, 5000, 32, kind), embeddings(rng, 100, 32, kind)
    same(top_k(queries, gallery, 9, backend="faiss"), top_k(queries, gallery, 9))


def test_faiss_is_taken_where_it_pays(monkeypatch):
    asked = []

    def stand_in():
        asked.append(True)
        return fake_faiss(0)

    monkeypatch.setattr(search, "_faiss", stand_in)
    monkeypatch.setattr(search, "find_spec", lambda name: name == "faiss")
    x = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    expected = top_k(x, x, 3, backend="torch")
    same(top_k(x, x, 3), expected)
    assert not asked, "a small search"
    monkeypatch.setattr(search, "FAISS_FROM", 40 * 40)
    same(top_k(x, x, 3), expected)
    assert asked
    monkeypatch.setattr(search, "find_spec", lambda name: None)
    same(top_k(x, x, 3), expected)
    assert len(asked) == 1, "not installed"


def test_faiss_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    x = np.ones((3, 4), dtype=np.float32)
    with pytest.raises(UserError, match="pip install faiss-cpu"):
        top_k(x, x, 1, backend="faiss")


def test_what_is_proposed_are_the_largest_products():
    """Whatever the blocks: late ones have few chunks above what is held already."""
    rng = np.random.default_rng(14)
    gallery, queries = small_products(rng, 3000), torch.tensor(small_products(rng, 20))
    for q in (queries, *queries.split(1)):
        products = q @ torch.tensor(gallery).T
        for columns in (64, 256, 640, 1000, 4000):
            values, rows = search._propose(q, gallery, 30, None, 4 * len(q) * columns)
            assert torch.equal(values, products.topk(30, dim=1).values)
            assert torch.equal(products.gather(1, rows), values)
            assert all(len(set(row)) == 30 for row in rows.tolist())


def small_products(rng, n):
    return (rng.integers(-50, 51, (n, 3)) / 64).astype(np.float32)  # exact in float32


def test_the_two_zeros_are_equal_and_order_is_that_of_numbers():
    scores = torch.tensor([-0.0, 0.0, -1.5, 2.0, -1e-30, 1e-30])
    keys = search._keys(scores, torch.arange(6))
    assert keys.argsort(descending=True).tolist() == [3, 5, 0, 1, 4, 2]
    back, rows = search._unkey(keys)
    assert torch.equal(back, scores) and rows.tolist() == list(range(6))


def test_no_matrix_of_all_similarities(monkeypatch):
    """No block of products is larger than was allowed, in any of the ways."""
    sizes = []
    plain = search._block_scores

    def watched(q, g):
        sizes.append(len(q) * len(g))
        return plain(q, g)

    monkeypatch.setattr(search, "_block_scores", watched)
    crowd = embeddings(np.random.default_rng(13), 400, 5, "crowd")
    block_bytes = 4 * 5000
    top_k(crowd, crowd, 3, block_bytes=block_bytes)
    assert sizes and max(sizes) <= 5000 // 6
    ranks_of_mates(crowd, np.arange(400), crowd, np.arange(400), block_bytes=block_bytes)
    assert max(sizes) <= 5000
