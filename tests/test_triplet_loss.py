"""Triplet loss: its formula, its variants, and the same as pytorch-metric-learning's."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from facetrain.errors import UserError
from facetrain.kernels.mining import Triplets, mine_triplets
from facetrain.testing.loss import check_loss
from facetrain.train.losses.triplet import Triplet, triplet_loss


def make_triplets(rows: list[tuple[int, int, int]], num_pairs: int) -> Triplets:
    columns = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3).T
    return Triplets(columns[0], columns[1], columns[2], num_pairs)


def unit_rows(num_rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(
        torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )


def test_equals_plain_loops() -> None:
    embeddings = unit_rows(6, 3)
    rows = [(0, 1, 2), (0, 1, 3), (4, 5, 0), (3, 2, 5)]
    result = triplet_loss(embeddings, make_triplets(rows, num_pairs=8), margin=0.2)
    points = embeddings.tolist()

    def d2(i: int, j: int) -> float:
        return sum((a - b) ** 2 for a, b in zip(points[i], points[j], strict=True))

    terms = [max(0.0, d2(a, p) - d2(a, n) + 0.2) for a, p, n in rows]
    assert 0.0 in terms
    assert max(terms) > 0
    assert float(result.loss) == pytest.approx(sum(terms) / 4)
    assert float(result.distance_positive) == pytest.approx(sum(d2(a, p) for a, p, _ in rows) / 4)
    assert float(result.distance_negative) == pytest.approx(sum(d2(a, n) for a, _, n in rows) / 4)
    assert float(result.active_fraction) == sum(term > 0 for term in terms) / 8
    assert float(result.embedding_std) == pytest.approx(float(embeddings.std(0, correction=0).mean()))


def test_gradient() -> None:
    embeddings = unit_rows(5, 3, seed=1).requires_grad_()
    triplets = make_triplets([(0, 1, 2), (1, 0, 3), (4, 3, 0)], num_pairs=3)
    margin = 5.0  # every hinge open: no kink within reach
    assert torch.autograd.gradcheck(lambda e: triplet_loss(e, triplets, margin=margin).loss, embeddings)


def test_the_gradient_pulls_the_positive_and_pushes_the_negative() -> None:
    embeddings = unit_rows(3, 8, seed=2).requires_grad_()
    triplets = make_triplets([(0, 1, 2)], num_pairs=1)
    before = triplet_loss(embeddings, triplets, margin=4.0)
    (gradient,) = torch.autograd.grad(before.loss, embeddings)
    after = triplet_loss(embeddings.detach() - 0.01 * gradient, triplets, margin=4.0)
    assert after.loss < before.loss
    assert after.distance_positive < before.distance_positive
    assert after.distance_negative > before.distance_negative


def test_order_of_rows_does_not_matter() -> None:
    embeddings = unit_rows(12, 4)
    labels = torch.arange(4).repeat_interleave(3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    losses = [
        triplet_loss(e, mine_triplets(e, y, margin=0.4, strategy="hardest"), margin=0.4).loss
        for e, y in ((embeddings, labels), (embeddings[order], labels[order]))
    ]
    assert float(losses[0]) > 0
    assert torch.allclose(losses[0], losses[1])


def test_no_triplets_is_a_loss_of_zero_with_a_graph() -> None:
    embeddings = torch.eye(3).repeat_interleave(2, 0).requires_grad_()
    triplets = mine_triplets(embeddings, torch.tensor([0, 0, 1, 1, 2, 2]), margin=0.2)
    result = triplet_loss(embeddings, triplets, margin=0.2)
    result.loss.backward()
    assert float(result.loss.detach()) == 0
    assert float(result.active_fraction) == 0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))
    assert all(torch.isfinite(value) for value in vars(result).values())


def test_statistics_are_detached() -> None:
    embeddings = unit_rows(3, 4).requires_grad_()
    result = triplet_loss(embeddings, make_triplets([(0, 1, 2)], 1), margin=0.2)
    assert [name for name, value in vars(result).items() if value.requires_grad] == ["loss"]


VARIANTS = [
    dict(zip(("distance", "soft_margin", "swap", "average"), values, strict=True))
    for values in itertools.product(
        ("squared-euclidean", "cosine"), (False, True), (False, True), ("all", "active")
    )
]


def ids(variant: dict) -> str:
    return "-".join(name if value is True else str(value) for name, value in variant.items() if value)


@pytest.mark.parametrize("num_triplets", [5, 40], ids=["few", "more than distances"])
@pytest.mark.parametrize("variant", VARIANTS, ids=ids)
def test_variants_equal_plain_loops(variant: dict, num_triplets: int) -> None:
    embeddings = unit_rows(7, 3, seed=4)
    everything = list(itertools.permutations(range(7), 3))
    rows = everything[:: len(everything) // num_triplets][:num_triplets]
    result = triplet_loss(embeddings, make_triplets(rows, num_pairs=50), margin=0.3, **variant)
    points = embeddings.tolist()

    def d(i: int, j: int) -> float:
        if variant["distance"] == "cosine":
            return 1 - sum(a * b for a, b in zip(points[i], points[j], strict=True))
        return sum((a - b) ** 2 for a, b in zip(points[i], points[j], strict=True))

    def further(a: int, p: int, n: int) -> float:
        return min(d(a, n), d(p, n)) if variant["swap"] else d(a, n)

    violations = [d(a, p) - further(a, p, n) + 0.3 for a, p, n in rows]
    terms = [math.log1p(math.exp(v)) if variant["soft_margin"] else max(0.0, v) for v in violations]
    assert min(violations) < 0 < max(violations)
    count = sum(term > 0 for term in terms) if variant["average"] == "active" else len(terms)
    assert float(result.loss) == pytest.approx(sum(terms) / count)
    assert float(result.active_fraction) == pytest.approx(sum(v > 0 for v in violations) / 50)
    assert float(result.distance_positive) == pytest.approx(sum(d(a, p) for a, p, _ in rows) / len(rows))
    assert float(result.distance_negative) == pytest.approx(sum(further(*row) for row in rows) / len(rows))


@pytest.mark.parametrize("num_triplets", [5, 40], ids=["few", "more than distances"])
@pytest.mark.parametrize("variant", VARIANTS, ids=ids)
def test_gradient_of_variants(variant: dict, num_triplets: int) -> None:
    everything = list(itertools.permutations(range(7), 3))
    triplets = make_triplets(everything[:num_triplets], num_pairs=50)

    def loss(embeddings: torch.Tensor) -> torch.Tensor:
        return triplet_loss(embeddings, triplets, margin=0.3, **variant).loss

    embeddings = unit_rows(7, 3, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(loss, embeddings)


def batch(seed: int, extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(5).repeat_interleave(2 + seed % 3), 5 + torch.arange(extra)])
    centres = torch.randn(5 + extra, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(labels), 6, generator=generator, dtype=torch.float64)
    return centres[labels] + noise, labels


@pytest.mark.parametrize("seed", range(4))
class TestPytorchMetricLearning:
    @pytest.mark.parametrize("swap", [False, True])
    @pytest.mark.parametrize("soft_margin", [False, True])
    @pytest.mark.parametrize("distance", ["squared-euclidean", "cosine"])
    def test_all_triplets(self, seed: int, distance: str, soft_margin: bool, swap: bool) -> None:
        from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
        from pytorch_metric_learning.losses import TripletMarginLoss

        theirs = TripletMarginLoss(
            margin=0.4,
            swap=swap,
            smooth_loss=soft_margin,
            distance=CosineSimilarity() if distance == "cosine" else LpDistance(power=2),
        )
        # A hinge is 0 wherever the margin is kept, so that these triplets may be left out; softplus is not.
        margin = 20.0 if soft_margin else 0.4
        ours = functools.partial(triplet_loss, distance=distance, soft_margin=soft_margin, swap=swap)
        embeddings, labels = batch(seed)
        embeddings.requires_grad_()
        unit = F.normalize(embeddings)
        triplets = mine_triplets(unit, labels, margin=2 * margin + 4 * swap, strategy="all")
        self.same(
            embeddings,
            ours(unit, triplets, margin=0.4, average="active").loss,
            theirs(embeddings, labels),
        )

    @pytest.mark.parametrize("soft_margin", [False, True])
    def test_batch_hard(self, seed: int, soft_margin: bool) -> None:
        from pytorch_metric_learning.distances import LpDistance
        from pytorch_metric_learning.losses import TripletMarginLoss
        from pytorch_metric_learning.miners import BatchHardMiner

        distance = LpDistance(power=2)
        embeddings, labels = batch(seed)
        embeddings.requires_grad_()
        theirs = TripletMarginLoss(margin=0.4, smooth_loss=soft_margin, distance=distance)
        mined = BatchHardMiner(distance=distance)(embeddings, labels)
        ours = Triplet(margin=0.4, miner="batch-hard", soft_margin=soft_margin, average="active")
        self.same(embeddings, ours(embeddings, labels)[0], theirs(embeddings, labels, mined))

    @pytest.mark.parametrize("distance", ["squared-euclidean", "cosine"])
    def test_all_that_violate_with_extra_negatives(self, seed: int, distance: str) -> None:
        from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
        from pytorch_metric_learning.losses import TripletMarginLoss

        embeddings, labels = batch(seed, extra=4)
        embeddings.requires_grad_()
        num_anchors = len(labels) - 4
        rows = [
            (a, p, n)
            for a, p, n in itertools.product(range(num_anchors), range(num_anchors), range(len(labels)))
            if a != p and labels[a] == labels[p] and labels[a] != labels[n]
        ]
        theirs = TripletMarginLoss(
            margin=0.4, distance=CosineSimilarity() if distance == "cosine" else LpDistance(power=2)
        )
        ours = Triplet(margin=0.4, miner="all", distance=distance)
        self.same(
            embeddings,
            ours(embeddings, labels, None, num_anchors)[0],
            theirs(embeddings, labels, tuple(torch.tensor(rows).T)),
        )

    @staticmethod
    def same(embeddings: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        assert float(theirs.detach()) > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
        gradients = [torch.autograd.grad(loss, embeddings, retain_graph=True)[0] for loss in (ours, theirs)]
        torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"miner": "semihard"},
        {"miner": "hardest", "swap": True},
        {"miner": "batch-hard", "soft_margin": True, "margin": 0.0},
        {"miner": "easy-positive", "miner_args": {"negative": "hardest"}},
        {"miner": "all", "average": "active", "distance": "cosine"},
    ],
    ids=str,
)
def test_contract(settings: dict) -> None:
    check_loss(functools.partial(Triplet, **settings), gradcheck=True)


def test_the_loss_is_the_function_of_what_its_miner_takes() -> None:
    embeddings, labels = batch(1, extra=3)
    unit = F.normalize(embeddings)
    # In cosines the margin is half as large as in d².
    for distance, margin in (("squared-euclidean", 0.6), ("cosine", 0.3)):
        loss = Triplet(margin=margin, distance=distance)
        value, stats = loss(embeddings, labels, torch.Generator().manual_seed(4), 15)
        triplets = mine_triplets(
            unit, labels, margin=0.6, num_anchors=15, generator=torch.Generator().manual_seed(4)
        )
        expected = triplet_loss(unit, triplets, margin=margin, distance=distance)
        assert float(value) == pytest.approx(float(expected.loss))
        assert float(stats["active_fraction"]) == pytest.approx(len(triplets) / triplets.num_pairs)
        assert float(stats["distance_negative"]) == pytest.approx(float(expected.distance_negative))
        assert float(stats["margin"]) == margin
        loss.margin_share = 0.5
        halved = loss(embeddings, labels, torch.Generator().manual_seed(4), 15)[1]
        assert float(halved["margin"]) == margin / 2
        assert float(halved["active_fraction"]) < float(stats["active_fraction"])


def test_half_precision_is_widened() -> None:
    embeddings, labels = batch(2)
    half = embeddings.bfloat16().requires_grad_()
    loss, _ = Triplet(miner="hardest")(half, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, Triplet(miner="hardest")(half.detach().float(), labels)[0])
    loss.backward()
    assert half.grad.isfinite().all()


def test_a_nan_among_the_embeddings_is_seen() -> None:
    embeddings, labels = batch(0)
    embeddings[3] = torch.nan
    for miner in ("all-violating-random", "semihard", "hardest", "batch-hard", "all"):
        assert torch.isnan(Triplet(miner=miner)(embeddings, labels)[0])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"distance": "manhattan"}, "distance = 'manhattan': choose one of squared-euclidean, cosine"),
        ({"average": "some"}, "average = 'some': choose one of all, active"),
        ({"margin": 0.0}, "a margin of 0: squared Euclidean distances of unit vectors reach 4"),
        ({"margin": 4.0}, "a margin of 4"),
        ({"margin": 2.0, "distance": "cosine"}, "a margin of 2: cosine distances of unit vectors reach 2"),
        ({"miner": "hard"}, "no 'hard' among the miners"),
        ({"miner": "all", "miner_args": {"limit": 3}}, "miner 'all' takes no 'limit'"),
    ],
)
def test_wrong_arguments(settings: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Triplet(**settings)
