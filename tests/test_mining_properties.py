"""What holds of mining and its loss for any batch: labels in any number and order, equal rows, a bank, any margin."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from facetrain.kernels.mining import POSITIVES, STRATEGIES, mine_triplets
from facetrain.train.losses.triplet import Triplet, triplet_loss

ONE_EACH = [strategy for strategy in STRATEGIES if strategy != "all"]


class Case(NamedTuple):
    embeddings: Tensor
    labels: Tensor
    margin: float
    num_anchors: int
    banked: int
    chunk_rows: int


@st.composite
def cases(draw: st.DrawFn, duplicates: bool = True) -> Case:
    rows = draw(st.integers(1, 24))
    labels = torch.tensor(draw(st.lists(st.integers(0, 6), min_size=rows, max_size=rows)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    dim = draw(st.sampled_from([2, 5, 17]))
    embeddings = F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=1)
    if duplicates and rows > 1:
        embeddings[draw(st.integers(0, rows - 1))] = embeddings[draw(st.integers(0, rows - 1))]
    banked = draw(st.integers(0, rows - 1))
    num_anchors = draw(st.integers(0, rows - banked))
    margin = draw(st.sampled_from([0.0, 0.2, 1.0, math.inf]))
    return Case(embeddings, labels, margin, num_anchors, banked, draw(st.integers(1, 8)))


def distance(case: Case, first: Tensor, second: Tensor) -> Tensor:
    return (case.embeddings[first] - case.embeddings[second]).square().sum(1)


def mine(case: Case, strategy: str, positives: str = "all", order: Tensor | None = None):  # type: ignore[no-untyped-def]
    embeddings, labels = case.embeddings, case.labels
    if order is not None:
        embeddings, labels = embeddings[order], labels[order]
    rows = len(labels) - case.banked
    return mine_triplets(
        embeddings[:rows], labels[:rows], margin=case.margin, generator=torch.Generator().manual_seed(1),
        num_anchors=case.num_anchors, strategy=strategy, positives=positives,  # type: ignore[arg-type]
        bank=(embeddings[rows:], labels[rows:]) if case.banked else None, chunk_rows=case.chunk_rows,
    )  # fmt: skip


@given(cases(), st.sampled_from(STRATEGIES), st.sampled_from(POSITIVES))
def test_triplets_are_what_they_say(case: Case, strategy: str, positives: str) -> None:
    found = mine(case, strategy, positives)
    rows = len(case.labels) - case.banked
    a, p, n = found.anchor, found.positive, found.negative
    assert bool((a < case.num_anchors).all()) and bool((a != p).all())
    assert bool(((p < case.num_anchors) | (p >= rows)).all())
    assert bool((case.labels[a] == case.labels[p]).all()) and bool((case.labels[a] != case.labels[n]).all())
    gap = distance(case, a, n) - distance(case, a, p)
    assert bool((gap < case.margin + 1e-12).all())
    if "semihard" in strategy:
        assert bool((gap > -1e-12).all())
    assert found.distances is not None
    for known, other in zip(found.distances, (p, n), strict=True):
        torch.testing.assert_close(known, distance(case, a, other), rtol=1e-9, atol=1e-12)
    pairs = torch.unique(torch.stack([a, p]), dim=1).shape[1]
    assert pairs <= found.num_pairs
    assert strategy == "all" or pairs == len(found)


@given(
    cases(duplicates=False), st.sampled_from(["hardest", "closest-semihard", "all"]), st.sampled_from(POSITIVES),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_rows_in_another_order_give_the_same_triplets(
    case: Case, strategy: str, positives: str, random
) -> None:  # type: ignore[no-untyped-def]
    rows = len(case.labels) - case.banked
    anchors, extra, bank = (
        random.sample(part, len(part))
        for part in (
            list(range(case.num_anchors)),
            list(range(case.num_anchors, rows)),
            list(range(rows, len(case.labels))),
        )
    )
    order = torch.tensor(anchors + extra + bank)
    one, other = mine(case, strategy, positives), mine(case, strategy, positives, order)

    def listed(triplets, names: Tensor) -> list[tuple[int, ...]]:  # type: ignore[no-untyped-def]
        table = torch.stack([triplets.anchor, triplets.positive, triplets.negative], 1)
        return sorted(map(tuple, names[table].tolist()))

    assert listed(one, torch.arange(len(order))) == listed(other, order)


@given(cases(), st.sampled_from(ONE_EACH), st.booleans(), st.booleans(), st.sampled_from(["all", "active"]))
def test_loss_and_gradient_are_those_of_all_pairs(
    case: Case, strategy: str, soft_margin: bool, swap: bool, average: str
) -> None:
    margin = min(case.margin, 1.0)
    triplets = mine(case._replace(margin=margin, banked=0), strategy)
    results = []
    for fused in (True, False):
        x = case.embeddings.clone().requires_grad_()
        if fused:
            how = {"soft_margin": soft_margin, "swap": swap, "average": average}
            known = None if triplets.distances is None else triplets.distances
            loss = triplet_loss(x, triplets, margin=margin, known=known, **how).loss  # type: ignore[arg-type]
        else:
            d2 = (x[:, None] - x[None, :]).square().sum(2)  # N × N × D, as nobody should
            a, p, n = triplets.anchor, triplets.positive, triplets.negative
            far = torch.minimum(d2[a, n], d2[p, n]) if swap else d2[a, n]
            violation = d2[a, p] - far + margin
            losses = F.softplus(violation) if soft_margin else violation.clamp_min(0)
            count = int((losses > 0).sum()) if average == "active" else len(losses)
            loss = losses.sum() / max(count, 1)
        (gradient,) = torch.autograd.grad(loss, x)
        results.append((loss.detach(), gradient))
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-10)


@given(
    cases(),
    st.sampled_from(["all-violating-random", "semihard", "hardest", "batch-hard", "easy-positive", "all"]),
)
def test_the_module_gives_what_its_parts_give(case: Case, miner: str) -> None:
    x = (3 * case.embeddings).requires_grad_()
    loss = Triplet(miner=miner, margin=0.3)
    value, stats = loss(x, case.labels, torch.Generator().manual_seed(5), case.num_anchors)
    unit = F.normalize(x.detach(), dim=1)
    mined = loss.miner(
        unit,
        case.labels,
        margin=0.3,
        generator=torch.Generator().manual_seed(5),
        num_anchors=case.num_anchors,
    )
    again = triplet_loss(unit, mined, margin=0.3)
    torch.testing.assert_close(value.detach(), again.loss, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(stats["active_fraction"], again.active_fraction)
    assert bool(torch.autograd.grad(value, x)[0].isfinite().all())
