"""Optimisers over sparse gradients: the rows' steps are PyTorch's own, the others stay."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from facetrain.kernels.over_classes import entries
from facetrain.plugins import make
from facetrain.train import row_optimisers
from facetrain.train.row_optimisers import RowAdamW, RowSGD, clip_gradients

MAKE: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda ours, p: (RowSGD if ours else torch.optim.SGD)(p, lr=0.3, momentum=0.9, weight_decay=0.1),
    "fused sgd": lambda ours, p: (RowSGD if ours else torch.optim.SGD)(p, lr=0.3, momentum=0.9, weight_decay=0.1, fused=True),
    "adamw": lambda ours, p: (RowAdamW if ours else torch.optim.AdamW)(p, lr=0.3, betas=(0.8, 0.9), weight_decay=0.1),
}  # fmt: skip


@pytest.mark.parametrize("rows_at_once", [2, 1 << 16])
@pytest.mark.parametrize("name", list(MAKE))
def test_touched_rows_go_as_with_pytorch_and_others_stay(
    name: str, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_optimisers, "ROWS_AT_ONCE", rows_at_once)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(9, 4, generator=generator, requires_grad=True)
    first = weight.detach().clone()
    rows = torch.tensor([1, 4, 7])
    alone = weight.detach()[rows].clone().requires_grad_()
    dense, dense_alone = (torch.ones(5, requires_grad=True) for _ in "ab")
    ours = MAKE[name](True, [weight, dense])
    theirs = MAKE[name](False, [alone, dense_alone])
    for _ in range(4):
        gradient = torch.randn(3, 4, generator=generator)
        weight.grad = torch.sparse_coo_tensor(rows[None], gradient, (9, 4), check_invariants=True)
        alone.grad = gradient.clone()
        dense.grad, dense_alone.grad = torch.full((5,), 0.3), torch.full((5,), 0.3)
        ours.step()
        theirs.step()
        assert weight.grad.is_sparse
    torch.testing.assert_close(weight.detach()[rows], alone.detach())
    torch.testing.assert_close(dense, dense_alone)
    others = torch.tensor([0, 2, 3, 5, 6, 8])
    assert torch.equal(weight.detach()[others], first[others])


@pytest.mark.parametrize("name", list(MAKE))
def test_state_goes_through_a_file(name: str) -> None:
    def gradient(weight: Tensor, seed: int) -> None:
        values = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
        weight.grad = torch.sparse_coo_tensor(torch.tensor([[0, 3]]), values, (4, 3), check_invariants=True)

    weight = torch.ones(4, 3, requires_grad=True)
    optimiser = MAKE[name](True, [weight])
    gradient(weight, 0)
    optimiser.step()
    again = weight.detach().clone().requires_grad_()
    resumed = MAKE[name](True, [again])
    resumed.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for tensor, stepped in ((weight, optimiser), (again, resumed)):
        gradient(tensor, 1)
        stepped.step()
    assert torch.equal(weight, again)


def test_clipping_counts_sparse_and_dense_together() -> None:
    one, other = torch.zeros(3, requires_grad=True), torch.zeros(5, 2, requires_grad=True)
    one.grad = torch.tensor([3.0, 0, 0])
    other.grad = torch.sparse_coo_tensor(
        torch.tensor([[1]]), torch.tensor([[0.0, 4.0]]), (5, 2), check_invariants=True
    ).coalesce()
    clip_gradients([one, other], 1.0)
    assert one.grad[0] == pytest.approx(0.6) and other.grad.to_dense()[1, 1] == pytest.approx(0.8)
    clip_gradients([one, other], 2.0)
    assert one.grad[0] == pytest.approx(0.6)


@pytest.mark.parametrize("name", ["cosface", "arcface", "subcenter-arcface", "softmax", "curricularface"])
def test_a_step_over_sampled_classes(name: str) -> None:
    torch.manual_seed(0)
    head = make("losses", name, {}, num_classes=200, embedding_dim=8)
    head.sampled_classes = 0.2
    embeddings = torch.randn(16, 8, requires_grad=True)
    labels = torch.randint(200, (16,), generator=torch.Generator().manual_seed(1))
    loss, stats = head(embeddings, labels, torch.Generator().manual_seed(2))
    loss.backward()
    rows = head.weight.grad.coalesce().indices()[0]
    assert len(rows) == 40 and set(labels.tolist()) <= set(rows.tolist())
    # The same loss as of a head of these classes alone.
    few = make("losses", name, {}, num_classes=40, embedding_dim=8)
    few.load_state_dict(
        {key: value[rows] if value.ndim else value for key, value in head.state_dict().items()}
    )
    few.load_state_dict({key: value for key, value in make("losses", name, {}, num_classes=40, embedding_dim=8).state_dict().items() if not value.ndim}, strict=False)  # fmt: skip
    again = embeddings.detach().clone().requires_grad_()
    expected, expected_stats = few(again, torch.searchsorted(rows, labels))
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(stats, expected_stats)
    torch.testing.assert_close(embeddings.grad, again.grad)
    torch.testing.assert_close(head.weight.grad.coalesce().values(), few.weight.grad)
    assert not head.eval()(embeddings, labels)[0].isnan()


def test_the_draw_of_classes_comes_from_the_generator_and_is_even() -> None:
    head = make("losses", "cosface", {}, num_classes=50, embedding_dim=4)
    head.sampled_classes = 0.5
    labels = torch.tensor([3, 3, 8])
    counts = torch.zeros(50)
    for seed in range(400):
        classes, own = head.taking_part(labels, torch.Generator().manual_seed(seed))
        assert torch.equal(classes[own], labels) and len(classes) == 25
        counts[classes] += 1
    assert counts[3] == counts[8] == 400
    others = counts[[c for c in range(50) if c not in (3, 8)]]
    expected = 400 * 23 / 48
    assert (others - expected).abs().max() < 5 * (400 * 23 / 48 * 25 / 48) ** 0.5
    again, _ = head.taking_part(labels, torch.Generator().manual_seed(399))
    assert torch.equal(again, classes)


def test_the_gradient_of_entries() -> None:
    weight = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([1, 2, 4])
    (entries(weight, classes) ** 2).sum().backward()
    expected = torch.zeros(6, 3, dtype=torch.float64).index_add_(0, classes, 2 * weight.detach()[classes])
    assert weight.grad is not None and weight.grad.is_sparse
    torch.testing.assert_close(weight.grad.to_dense(), expected)


def test_what_they_do_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="nesterov"):
        RowSGD([torch.ones(2, requires_grad=True)], lr=0.1, momentum=0.9, nesterov=True)
    with pytest.raises(ValueError, match="amsgrad"):
        RowAdamW([torch.ones(2, requires_grad=True)], lr=0.1, amsgrad=True)


@pytest.mark.parametrize("kind", [RowSGD, RowAdamW])
def test_a_closure_is_called(kind: type) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = kind([weight], lr=0.1)

    def closure() -> torch.Tensor:
        loss = weight.sum()
        loss.backward()
        return loss

    assert optimiser.step(closure) == 3
    assert bool((weight < 1).all())


def test_a_drawn_gradient_needs_no_sorting() -> None:
    """autograd drops the flag that says so; two of them added up are no longer in order."""
    weight = torch.nn.Parameter(torch.randn(9, 2))
    for step, coalesced in enumerate((True, False)):
        entries(weight, torch.tensor([1 + step, 4, 7])).sum().backward()
        assert weight.grad is not None and weight.grad.is_coalesced() == coalesced
    expected = torch.zeros(9, 2)
    expected[[1, 2]] = 1
    expected[[4, 7]] = 2
    assert torch.equal(weight.grad.to_dense(), expected)
