from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from facetrain.kernels.mining import Triplets, mine_triplets
from facetrain.train.losses.triplet import triplet_loss


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
    assert float(result.active_fraction) == 0.5
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
