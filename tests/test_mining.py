from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chisquare
from torch.nn import functional as F

from facetrain.errors import UserError
from facetrain.kernels.distances import pair_distances, squared_distances
from facetrain.kernels.mining import POSITIVES, STRATEGIES, mine_batches, mine_triplets
from facetrain.kernels.order import first_largest, first_smallest, row_order

ONE_EACH = [strategy for strategy in STRATEGIES if strategy != "all"]


def make_batch(num_people: int, per_person: int, dim: int = 4, extra: int = 0, seed: int = 0):
    """Unit vectors [N, D] with some order in them, labels [N]; ``extra`` rows of other people at the end."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat(
        [torch.arange(num_people).repeat_interleave(per_person), num_people + torch.arange(extra)]
    )
    centres = torch.randn(num_people + extra, dim, generator=generator)
    embeddings = centres[labels] + 0.7 * torch.randn(len(labels), dim, generator=generator)
    return F.normalize(embeddings), labels


def brute_force(
    embeddings, labels, margin: float, num_anchors: int, strategy: str, positives: str = "all"
) -> dict:
    """{(anchor, positive): set of admissible negatives}, in plain loops."""
    rows = embeddings.double().tolist()

    def d2(i: int, j: int) -> float:
        return sum((a - b) ** 2 for a, b in zip(rows[i], rows[j], strict=True))

    allowed = {}
    for a in range(num_anchors):
        for p in range(num_anchors):
            if a == p or labels[a] != labels[p]:
                continue
            mates = [q for q in range(num_anchors) if q != a and labels[q] == labels[a]]
            if positives == "closest" and p != min(mates, key=lambda q: d2(a, q)):
                continue
            if positives == "furthest" and p != max(mates, key=lambda q: d2(a, q)):
                continue
            others = [n for n in range(len(rows)) if labels[n] != labels[a]]
            violators = {n for n in others if d2(a, n) - d2(a, p) < margin}
            if strategy in ("semihard", "closest-semihard"):
                violators = {n for n in violators if d2(a, n) > d2(a, p)}
            if strategy in ("hardest", "closest-semihard") and violators:
                violators = {min(violators, key=lambda n: d2(a, n))}
            allowed[a, p] = violators
    return allowed


@pytest.mark.parametrize("positives", POSITIVES)
@pytest.mark.parametrize("strategy", ONE_EACH)
@pytest.mark.parametrize(
    ("num_people", "per_person", "extra", "margin"),
    [(7, 3, 0, 0.2), (5, 4, 6, 0.05), (3, 2, 1, 1.0), (3, 3, 0, math.inf)],
)
def test_equals_brute_force(
    strategy: str, positives: str, num_people: int, per_person: int, extra: int, margin: float
) -> None:
    embeddings, labels = make_batch(num_people, per_person, extra=extra)
    num_anchors = num_people * per_person
    allowed = brute_force(embeddings, labels, margin, num_anchors, strategy, positives)
    seen: dict = {pair: set() for pair in allowed}
    for seed in range(60):
        triplets = mine_triplets(
            embeddings,
            labels,
            margin=margin,
            generator=torch.Generator().manual_seed(seed),
            num_anchors=num_anchors,
            strategy=strategy,
            positives=positives,
        )
        assert triplets.num_pairs == len(allowed)
        found = list(zip(triplets.anchor.tolist(), triplets.positive.tolist(), strict=True))
        assert len(set(found)) == len(found)
        assert set(found) == {pair for pair, negatives in allowed.items() if negatives}
        for pair, negative in zip(found, triplets.negative.tolist(), strict=True):
            assert negative in allowed[pair]
            seen[pair].add(negative)
    few = [pair for pair, negatives in allowed.items() if 0 < len(negatives) <= 6]
    assert all(seen[pair] == allowed[pair] for pair in few)  # 60 draws find each of six with near certainty


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("extra", [0, 3])
def test_a_bank_serves_as_positives_and_negatives(strategy: str, extra: int) -> None:
    people, labels = make_batch(4, 5, extra=extra, seed=2)
    # Of each person three rows in the batch, and two in the bank; extra ones between.
    order = torch.tensor([5 * p + i for p in range(4) for i in range(3)])
    extras = torch.arange(20, 20 + extra)
    banked = torch.tensor([5 * p + i for i in (4, 3) for p in range(4)])
    rows = people[torch.cat([order, extras, banked])].double()
    names = labels[torch.cat([order, extras, banked])]
    num_rows, margin = 12 + extra, 0.4
    found = mine_triplets(
        rows[:num_rows], names[:num_rows], margin=margin, num_anchors=12, strategy=strategy,
        bank=(rows[num_rows:], names[num_rows:]), chunk_rows=5, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    d2 = torch.cdist(rows, rows).square()
    allowed: dict[tuple[int, int], set[int]] = {}
    for a in range(12):
        for p in [*range(12), *range(num_rows, len(rows))]:
            if p == a or names[p] != names[a]:
                continue
            negatives = [n for n in range(len(rows)) if names[n] != names[a] and d2[a, n] < d2[a, p] + margin]
            if "semihard" in strategy:
                negatives = [n for n in negatives if d2[a, n] > d2[a, p]]
            if strategy in ("hardest", "closest-semihard"):
                negatives = sorted(negatives, key=lambda n: float(d2[a, n]))[:1]
            allowed[a, p] = set(negatives)
    assert found.num_pairs == (len(allowed) * (len(rows) - 5) if strategy == "all" else len(allowed))
    mined: dict[tuple[int, int], set[int]] = {}
    for a, p, n in triples(found):
        mined.setdefault((a, p), set()).add(n)
    assert set(mined) == {pair for pair, negatives in allowed.items() if negatives}
    assert all(negatives <= allowed[pair] for pair, negatives in mined.items())
    if strategy in ("all", "hardest", "closest-semihard"):
        assert all(negatives == allowed[pair] for pair, negatives in mined.items())
    assert any(p >= num_rows for _, p in mined) and any(max(n) >= num_rows for n in mined.values())


@pytest.mark.parametrize("positives", POSITIVES)
@pytest.mark.parametrize(("extra", "margin"), [(0, 0.1), (5, 0.4), (2, math.inf)])
def test_all_triplets_equal_brute_force(positives: str, extra: int, margin: float) -> None:
    embeddings, labels = make_batch(5, 3, extra=extra)
    allowed = brute_force(embeddings, labels, margin, 15, "all", positives)
    triplets = mine_triplets(
        embeddings, labels, margin=margin, num_anchors=15, strategy="all", positives=positives, chunk_rows=4
    )
    found = list(
        zip(*(t.tolist() for t in (triplets.anchor, triplets.positive, triplets.negative)), strict=True)
    )
    assert sorted(found) == sorted((*pair, n) for pair, negatives in allowed.items() for n in negatives)
    assert triplets.num_pairs == len(allowed) * (12 + extra)
    whole = mine_triplets(
        embeddings, labels, margin=margin, num_anchors=15, strategy="all", positives=positives
    )
    assert torch.equal(whole.negative, triplets.negative)
    assert torch.equal(whole.positive, triplets.positive)


def test_too_many_triplets_are_counted_and_not_made() -> None:
    embeddings, labels = make_batch(6, 4)
    everything = 24 * 3 * 20
    for chunk_rows in (None, 5):
        with pytest.raises(UserError, match=f"{everything:,} triplets of a batch .* max_triplets = 1,000"):
            mine_triplets(
                embeddings, labels, margin=5.0, strategy="all", max_triplets=1000, chunk_rows=chunk_rows
            )
    most = mine_triplets(embeddings, labels, margin=5.0, strategy="all", max_triplets=everything)
    assert len(most) == most.num_pairs == everything


@pytest.mark.parametrize("positives", ["closest", "furthest"])
@pytest.mark.parametrize("strategy", ["hardest", "closest-semihard"])
def test_of_rows_at_one_distance_the_first_is_taken(strategy: str, positives: str) -> None:
    anchor, positive, negative = (
        torch.eye(3)[0],
        F.normalize(torch.tensor([1.0, 0.2, 0]), dim=0),
        torch.eye(3)[2],
    )
    embeddings = torch.stack([negative, anchor, positive, negative, positive, positive, negative])
    labels = torch.tensor([7, 3, 3, 8, 3, 3, 9])
    triplets = mine_triplets(
        embeddings, labels, margin=3.0, num_anchors=6, strategy=strategy, positives=positives
    )
    of_anchor = triplets.anchor == 1
    assert (triplets.positive[of_anchor].tolist(), triplets.negative[of_anchor].tolist()) == ([2], [0])


def triples(triplets) -> list[tuple[int, int, int]]:
    parts = (
        triplets if isinstance(triplets, tuple) else (triplets.anchor, triplets.positive, triplets.negative)
    )
    return sorted(zip(*(part.tolist() for part in parts), strict=True))


@pytest.mark.parametrize("seed", range(5))
class TestPytorchMetricLearning:
    """The same triplets as its miners', case by case."""

    @staticmethod
    def batch(seed: int):
        from pytorch_metric_learning.distances import LpDistance

        embeddings, labels = make_batch(4 + seed, 2 + seed % 3, dim=5, seed=seed)
        return embeddings.double(), labels, LpDistance(normalize_embeddings=False, power=2)

    def test_all_that_violate(self, seed: int) -> None:
        from pytorch_metric_learning.miners import TripletMarginMiner

        embeddings, labels, distance = self.batch(seed)
        for margin in (0.1, 0.7):
            theirs = TripletMarginMiner(margin=margin, distance=distance)(embeddings, labels)
            assert triples(mine_triplets(embeddings, labels, margin=margin, strategy="all")) == triples(
                theirs
            )

    def test_a_semihard_one(self, seed: int) -> None:
        from pytorch_metric_learning.miners import TripletMarginMiner

        embeddings, labels, distance = self.batch(seed)
        theirs = triples(
            TripletMarginMiner(margin=0.5, type_of_triplets="semihard", distance=distance)(embeddings, labels)
        )
        drawn = set()
        for draw in range(60):
            generator = torch.Generator().manual_seed(draw)
            ours = triples(
                mine_triplets(embeddings, labels, margin=0.5, strategy="semihard", generator=generator)
            )
            assert {(a, p) for a, p, _ in ours} == {(a, p) for a, p, _ in theirs}
            drawn |= set(ours)
        assert drawn <= set(theirs)
        assert len(drawn) > 0.9 * len(theirs)

    def test_one_for_each_anchor(self, seed: int) -> None:
        from pytorch_metric_learning.miners import BatchEasyHardMiner, BatchHardMiner

        embeddings, labels, distance = self.batch(seed)
        ours = mine_triplets(embeddings, labels, margin=math.inf, strategy="hardest", positives="furthest")
        assert triples(ours) == triples(BatchHardMiner(distance=distance)(embeddings, labels))
        for strategy, name in (("hardest", "hard"), ("closest-semihard", "semihard")):
            a, p, a2, n = BatchEasyHardMiner("easy", name, distance=distance)(embeddings, labels)
            assert torch.equal(a, a2)
            ours = mine_triplets(embeddings, labels, margin=math.inf, strategy=strategy, positives="closest")
            assert triples(ours) == triples((a, p, n))


def test_the_draw_is_uniform_over_violators() -> None:
    embeddings, labels = make_batch(6, 2, extra=3, seed=3)
    allowed = brute_force(embeddings, labels, 0.3, 12, "all-violating-random")
    pair, negatives = max(allowed.items(), key=lambda item: len(item[1]))
    assert len(negatives) >= 5
    generator = torch.Generator().manual_seed(0)
    counts = dict.fromkeys(negatives, 0)
    for _ in range(3000):
        triplets = mine_triplets(embeddings, labels, margin=0.3, generator=generator, num_anchors=12)
        mine = (triplets.anchor == pair[0]) & (triplets.positive == pair[1])
        counts[int(triplets.negative[mine])] += 1
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_same_seed_same_triplets_and_another_seed_others() -> None:
    embeddings, labels = make_batch(10, 4)
    first, again, other = (
        mine_triplets(embeddings, labels, margin=0.5, generator=torch.Generator().manual_seed(seed)).negative
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_chunks_do_not_show(strategy: str) -> None:
    embeddings, labels = make_batch(8, 3, extra=5)
    whole, rows = (
        mine_triplets(
            embeddings,
            labels,
            margin=0.4,
            num_anchors=24,
            strategy=strategy,
            chunk_rows=chunk_rows,
            generator=torch.Generator().manual_seed(0),
        )
        for chunk_rows in (None, 5)
    )
    assert torch.equal(whole.anchor, rows.anchor)
    assert torch.equal(whole.positive, rows.positive)
    assert whole.num_pairs == rows.num_pairs
    assert torch.equal(whole.negative, rows.negative)


def test_order_of_rows_does_not_matter() -> None:
    embeddings, labels = make_batch(8, 3)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(5))
    plain = mine_triplets(embeddings, labels, margin=0.3, strategy="hardest")
    permuted = mine_triplets(embeddings[order], labels[order], margin=0.3, strategy="hardest")

    def as_set(triplets, rows) -> set:
        return set(
            zip(
                *(rows[t].tolist() for t in (triplets.anchor, triplets.positive, triplets.negative)),
                strict=True,
            )
        )

    assert as_set(plain, torch.arange(len(labels))) == as_set(permuted, order)


@pytest.mark.parametrize(
    ("labels", "num_anchors"),
    [([0, 1, 2, 3], None), ([0, 0, 0, 0], None), ([0, 0, 1, 1], 0), ([0, 1, 0, 1], 2)],
    ids=["no positives", "no negatives", "no anchors", "positives among the extra rows only"],
)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("positives", POSITIVES)
def test_nothing_to_mine(labels: list[int], num_anchors: int | None, strategy: str, positives: str) -> None:
    embeddings = F.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    for margin in (4.1, math.inf):
        triplets = mine_triplets(
            embeddings,
            torch.tensor(labels),
            margin=margin,
            num_anchors=num_anchors,
            strategy=strategy,
            positives=positives,
        )
        assert len(triplets) == 0
        assert triplets.negative.dtype == torch.int64


def test_empty_batch() -> None:
    triplets = mine_triplets(torch.empty(0, 8), torch.empty(0, dtype=torch.int64), margin=0.2)
    assert (len(triplets), triplets.num_pairs) == (0, 0)


def test_separated_people_give_pairs_but_no_triplets() -> None:
    triplets = mine_triplets(
        torch.eye(3).repeat_interleave(2, 0), torch.tensor([0, 0, 1, 1, 2, 2]), margin=0.2
    )
    assert (len(triplets), triplets.num_pairs) == (0, 6)


def test_no_graph_and_float32_under_autocast() -> None:
    embeddings, labels = make_batch(4, 3, dim=64)
    with torch.autocast("cpu", torch.bfloat16):
        distances = squared_distances(embeddings, embeddings)
        triplets = mine_triplets(embeddings.requires_grad_(), labels, margin=0.3, strategy="hardest")
    assert distances.dtype == torch.float32
    assert torch.allclose(distances, torch.cdist(embeddings, embeddings).square(), atol=1e-5)
    assert torch.equal(
        triplets.negative, mine_triplets(embeddings, labels, margin=0.3, strategy="hardest").negative
    )


def test_wrong_arguments_are_named() -> None:
    embeddings, labels = make_batch(3, 2)
    with pytest.raises(ValueError, match="unknown mining strategy 'easy'"):
        mine_triplets(embeddings, labels, margin=0.2, strategy="easy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown choice of positives 'some'"):
        mine_triplets(embeddings, labels, margin=0.2, positives="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="labels"):
        mine_triplets(embeddings, labels[:-1], margin=0.2)
    with pytest.raises(ValueError, match="num_anchors"):
        mine_triplets(embeddings, labels, margin=0.2, num_anchors=7)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_several_batches_are_mined_each_for_itself(strategy: str) -> None:
    parts = [make_batch(4, 5, seed=seed) for seed in range(3)]
    embeddings, labels = (torch.stack(part) for part in zip(*parts, strict=True))
    found = mine_batches(
        embeddings, labels, margin=0.4, strategy=strategy, generator=torch.Generator().manual_seed(3)
    )
    generator, num_pairs = torch.Generator().manual_seed(3), 0
    for number, (own, own_labels) in enumerate(parts):
        alone = mine_triplets(own, own_labels, margin=0.4, strategy=strategy, generator=generator)
        here = found.anchor // 20 == number
        for name in ("anchor", "positive", "negative"):
            assert torch.equal(getattr(found, name)[here] - 20 * number, getattr(alone, name))
        num_pairs += alone.num_pairs
    assert found.num_pairs == num_pairs and found.distances is not None
    assert all(len(part) == len(found) for part in found.distances)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_negative_just_at_the_margin_or_as_far_as_the_positive(strategy: str, dtype: torch.dtype) -> None:
    # From the first: its positive at 1, others at 1, 2, 4 and 9. All exact.
    corners = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1], [0, -2], [0, 3]], dtype=dtype)
    labels = torch.tensor([0, 0, 1, 2, 3, 4])

    def mined(margin: float) -> list[int]:
        found = mine_triplets(corners, labels, margin=margin, strategy=strategy, num_anchors=2)
        return found.negative[found.anchor == 0].tolist()

    further = "semihard" in strategy
    assert mined(0.0) == []
    assert mined(1.0) == ([] if further else [2])
    assert mined(1.5) == [2, 3] if strategy == "all" else mined(1.5)[0] in ([3] if further else [2, 3])
    assert mined(-0.5) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_order_of_a_row_is_that_of_its_values_and_of_equal_ones_that_of_their_columns(
    dtype: torch.dtype,
) -> None:
    row = torch.tensor([[3.0, 0, 7, 3, math.inf, 0, 3, 7], [5, 5, 5, 5, 5, 5, 5, 5]], dtype=dtype)
    assert [part.tolist() for part in first_smallest(row)] == [[0, 5], [1, 0]]
    assert [part.tolist() for part in first_largest(row)] == [[math.inf, 5], [4, 0]]
    assert [part.tolist() for part in first_largest(row[:, :4])] == [[7, 5], [2, 0]]
    assert [part.tolist() for part in first_largest(-row[:, :4])] == [[0, -5], [1, 0]]
    order = row_order(row.clone())
    places = torch.arange(8)
    columns, values = order.at(torch.zeros(8, dtype=torch.int64), places)
    assert columns.tolist() == [1, 5, 0, 3, 6, 2, 7, 4]
    assert torch.equal(values, row[0, columns]) and values.dtype == dtype
    assert order.at(torch.ones(8, dtype=torch.int64), places)[0].tolist() == list(range(8))
    wanted = torch.tensor([[0.0, 1, 3, 7, 8, math.inf], [5, 4, 6, 0, math.inf, 5]], dtype=dtype)
    assert order.count_below(wanted).tolist() == [[0, 2, 2, 5, 7, 7], [0, 0, 8, 0, 8, 0]]
    assert order.count_up_to(wanted).tolist() == [[2, 2, 5, 7, 7, 8], [8, 0, 8, 0, 8, 8]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("strategy", ["all-violating-random", "semihard"])
def test_a_draw_next_to_one_is_of_the_last_violator(
    strategy: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings, labels = make_batch(6, 3, extra=4)

    def nearly_one(count: int, *, dtype: torch.dtype = torch.float32, **how: object) -> torch.Tensor:
        return torch.full((count,), 1 - torch.finfo(dtype).eps / 2, dtype=dtype)

    monkeypatch.setattr(torch, "rand", nearly_one)
    found = mine_triplets(embeddings.to(dtype), labels, margin=0.5, strategy=strategy)
    every = mine_triplets(embeddings.to(dtype), labels, margin=0.5, strategy="all")
    last, mined = (  # of every pair's negatives, in order of distance, the last
        dict(zip(zip(t.anchor.tolist(), t.positive.tolist(), strict=True), t.negative.tolist(), strict=True))
        for t in (every, found)
    )
    assert len(mined) > 20
    assert mined == {pair: last[pair] for pair in mined}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbouring_numbers_are_told_apart(dtype: torch.dtype) -> None:
    three = torch.tensor([3.0], dtype=dtype)
    above = torch.nextafter(three, 2 * three)
    order = row_order(torch.stack([above, three, three, torch.nextafter(above, 2 * three)], 1))
    wanted = torch.stack([three, above], 1)
    assert order.count_below(wanted).tolist() == [[0, 2]]
    assert order.count_up_to(wanted).tolist() == [[2, 3]]


def test_extremes_of_what_is_learned() -> None:
    row = torch.tensor([[1.0, 4, 2]], requires_grad=True)
    for value, column in (first_smallest(2 * row), first_largest(2 * row)):
        (gradient,) = torch.autograd.grad(value.sum(), row)
        assert gradient.tolist() == [[2.0 * (k == int(column)) for k in range(3)]]


@pytest.mark.parametrize("positives", POSITIVES)
@pytest.mark.parametrize("strategy", ["hardest", "closest-semihard", "all"])
def test_rows_of_any_length_and_chunks_of_one_row(
    strategy: str, positives: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings, labels = make_batch(6, 4, extra=3)
    how = {"num_anchors": 24, "strategy": strategy, "positives": positives}
    unit = mine_triplets(embeddings, labels, margin=0.3, **how)
    monkeypatch.setattr("facetrain.kernels.mining_chunks.CHUNK_ELEMENTS", 5)  # less than a row has
    longer = mine_triplets(16 * embeddings, labels, margin=0.3 * 256, **how)  # d² up to 1024
    assert len(unit) and triples(longer) == triples(unit)


def test_distances_are_never_below_zero() -> None:
    rows = 100 * torch.randn(40, 200, generator=torch.Generator().manual_seed(0))
    rows = rows + 1000  # so that rounding alone would make some of them negative
    distances = squared_distances(rows, rows)
    assert bool((distances >= 0).all())
    assert bool((distances.diag() == 0).any())


@pytest.mark.parametrize("gathered", [3, 12, 1 << 20], ids=["less than a row", "three rows", "all"])
def test_listed_distances_in_parts(gathered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facetrain.kernels.distances.GATHERED_ELEMENTS", gathered)
    rows = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, second = torch.tensor([[0, 1], [5, 2], [3, 3], [0, 5], [1, 0], [4, 2], [2, 1], [5, 4]]).T
    plain = (rows[first] - rows[second]).square().sum(1)
    torch.testing.assert_close(pair_distances(rows, first, second), plain)
    known = plain + 1  # believed
    again = pair_distances(rows.requires_grad_(), first, second, known)
    assert torch.equal(again, plain + 1)
    again.detach().zero_()  # what comes back is the caller's own
    assert torch.equal(known, plain + 1)


def test_shapes_and_types_that_do_not_fit_are_named() -> None:
    embeddings, labels = make_batch(3, 2)
    for wrong, says in (
        ({"embeddings": embeddings[0], "labels": labels[:4]}, "not floating-point"),
        ({"embeddings": embeddings.long()}, "not floating-point"),
        ({"labels": labels.int()}, "not torch.int64"),
        ({"margin": math.nan}, "margin"),
        ({"chunk_rows": 0}, "chunk_rows"),
        ({"bank": (embeddings, labels[:3])}, "labels are"),
        ({"bank": (embeddings[:, :2], labels)}, "2 dimensions"),
    ):
        with pytest.raises(ValueError, match=says):
            mine_triplets(**{"embeddings": embeddings, "labels": labels, "margin": 0.2} | wrong)
    with pytest.raises(ValueError, match="not floating-point"):
        mine_batches(embeddings, labels, margin=0.2)
    with pytest.raises(ValueError, match="unknown mining strategy"):
        mine_batches(embeddings[None][:0], labels[None][:0], margin=0.2, strategy="easy")  # type: ignore[arg-type]
