"""Heads that go through the classes in blocks: the same loss and gradients as with all logits at once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from facetrain.kernels import over_classes
from facetrain.kernels.mining import mine_triplets
from facetrain.kernels.over_classes import Block, own_and_others
from facetrain.plugins import BUILT_IN, make, resolve
from facetrain.train.losses.dense_head import DenseHead
from facetrain.train.losses.head import Head, Targets
from facetrain.train.losses.triplet import Triplet

CLASSES, DIM, ROWS = 53, 24, 31
IN_BLOCKS = sorted(
    name
    for name, target in BUILT_IN["losses"].items()
    if ".heads." in target and not issubclass(resolve("losses", name), DenseHead)
)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for part in tree_leaves(out):
            if isinstance(part, Tensor) and not part.is_sparse:
                self.elements = max(self.elements, part.numel())
        return out


def batch(rows: int = ROWS, classes: int = CLASSES, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    return 3 * torch.randn(rows, DIM, generator=generator, dtype=torch.float64), labels


def result(head: Head, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
    torch.manual_seed(5)
    embeddings = embeddings.clone().requires_grad_()
    loss, stats = head(embeddings, labels, torch.Generator().manual_seed(3))
    loss.backward()
    grads = [embeddings.grad, *(parameter.grad for parameter in head.parameters())]
    assert all(grad is not None and not grad.is_sparse for grad in grads)
    return loss.detach(), stats, grads  # type: ignore[return-value]


def test_which_heads_hold_no_logits() -> None:
    asked = {
        "softmax",
        "normface",
        "cosface",
        "arcface",
        "magface",
        "adaface",
        "elastic-arcface",
        "elastic-cosface",
    }
    asked |= {"curricularface", "mv-am-softmax", "mv-arc-softmax", "subcenter-arcface"}
    assert asked <= set(IN_BLOCKS)


@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize("name", IN_BLOCKS)
def test_blocks_do_not_show(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head = make("losses", name, {}, num_classes=CLASSES, embedding_dim=DIM).double().eval()
    with torch.no_grad():  # so that some rows are near their classes, and some near others
        for parameter in head.parameters():
            if parameter.ndim > 1:
                parameter += 0.1 * torch.randn(parameter.shape, dtype=torch.float64)
    embeddings, labels = batch()
    whole = result(head, embeddings, labels)
    head.zero_grad()
    plain = own_and_others
    monkeypatch.setattr(
        inspect.getmodule(head.forward),
        "own_and_others",
        lambda *a, **how: plain(*a, classes_at_once=block, **how),
    )
    parts = result(head, embeddings, labels)
    torch.testing.assert_close(parts, whole, rtol=1e-11, atol=1e-13)


def test_as_cross_entropy_with_all_logits() -> None:
    generator = torch.Generator().manual_seed(2)
    rows, weight = (
        torch.randn(n, DIM, generator=generator, dtype=torch.float64, requires_grad=True)
        for n in (ROWS, CLASSES)
    )
    bias = torch.randn(CLASSES, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = batch()[1]

    def block(rows: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = F.linear(rows, weight, bias)
        return logits, logits

    own_rows, others, nearest = own_and_others(
        rows, weight, bias, labels, lambda own: Block(block), classes_at_once=8
    )
    own = (rows * own_rows).sum(1) + bias[labels]
    loss = F.softplus(others - own).sum()
    logits = F.linear(rows, weight, bias)
    expected = F.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(loss, expected)
    assert torch.equal(nearest, logits.argmax(1))
    inputs = (rows, weight, bias)
    for some in (
        inputs,
        inputs[:1],
        inputs[1:2],
        inputs[2:],
        inputs,
    ):  # one after another, from one forward pass
        torch.testing.assert_close(
            torch.autograd.grad(loss, some, retain_graph=True),
            torch.autograd.grad(expected, some, retain_graph=True),
        )


def test_one_class_and_no_rows() -> None:
    for classes, rows in ((1, 5), (3, 0), (1, 0)):
        head = make("losses", "cosface", {}, num_classes=classes, embedding_dim=DIM).double()
        loss, _, grads = result(head, torch.randn(rows, DIM, dtype=torch.float64), torch.zeros(rows).long())
        assert loss == 0 if rows == 0 or classes == 1 else loss > 0
        assert all(grad.isfinite().all() for grad in grads)
        assert all(not grad.any() for grad in grads)


def test_rows_of_one_person_add_up_in_its_weight() -> None:
    torch.manual_seed(0)
    head = make("losses", "arcface", {"scale": 4.0}, num_classes=4, embedding_dim=DIM).double()
    embeddings, _ = batch(6)
    assert torch.autograd.gradcheck(
        lambda weight: torch.func.functional_call(
            head, {"weight": weight}, (embeddings, torch.ones(6).long())
        )[0],
        head.weight.detach().clone().requires_grad_(),
    )


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_no_batch_times_classes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(over_classes.BLOCK_ELEMENTS, "cpu", 64 * 400)
    rows, classes = 400, 3000
    head = make("losses", name, {}, num_classes=classes, embedding_dim=4)
    embeddings = torch.randn(rows, 4, requires_grad=True)
    with Largest() as largest:
        head(embeddings, torch.arange(rows), torch.Generator().manual_seed(0))[0].backward()
    assert largest.elements <= max(parameter.numel() for parameter in head.parameters()) + 64 * 400 * 4


@pytest.mark.parametrize(
    "miner", ["all-violating-random", "semihard", "hardest", "batch-hard", "easy-positive"]
)
def test_no_batch_times_batch(miner: str) -> None:
    rows, images = 3000, 4
    embeddings = torch.randn(rows, 8, requires_grad=True)
    labels = torch.arange(rows) // images
    with Largest() as largest:
        Triplet(miner=miner)(embeddings, labels, torch.Generator().manual_seed(0))[0].backward()
    assert largest.elements < rows**2 / 4


def test_a_bank_serves_as_positives_and_negatives() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(40, 16, generator=generator, dtype=torch.float64), dim=1)
    labels = torch.randint(6, (40,), generator=generator)
    banked = mine_triplets(
        rows[:25], labels[:25], margin=math.inf, strategy="hardest", bank=(rows[25:], labels[25:])
    )
    assert banked.bank is not None and torch.equal(banked.bank, rows[25:])
    together = mine_triplets(rows, labels, margin=math.inf, strategy="hardest")
    own = together.anchor < 25
    assert torch.equal(banked.anchor, together.anchor[own])
    assert torch.equal(banked.positive, together.positive[own])
    assert torch.equal(banked.negative, together.negative[own])
    assert int(banked.negative.max()) >= 25 and int(banked.positive.max()) >= 25


def test_a_frozen_weight_and_a_target_without_a_gradient() -> None:
    class Plug(Head):
        def target(self, targets: Targets) -> Tensor:
            return targets.cos_B.detach()

    for frozen in (False, True):
        torch.manual_seed(0)
        head = Plug(CLASSES, DIM, 4.0).double()
        head.weight.requires_grad_(not frozen)
        embeddings, labels = batch()
        embeddings.requires_grad_()
        head(embeddings, labels)[0].backward()
        assert embeddings.grad is not None and bool(embeddings.grad.any())
        assert (head.weight.grad is None) == frozen


def test_two_forward_passes_before_a_backward_pass() -> None:
    """What a head follows of the training has moved on when the first one's blocks are made again."""
    embeddings, labels = batch()

    def gradient(together: bool) -> Tensor:
        torch.manual_seed(1)
        head = make("losses", "curricularface", {"ema": 0.5}, num_classes=CLASSES, embedding_dim=DIM).double()
        losses = []
        for part in (slice(0, 15), slice(15, None)):
            losses.append(head(embeddings[part] / 3, labels[part])[0])
            if not together:
                losses.pop().backward()
        if together:
            torch.stack(losses).sum().backward()
        return head.weight.grad

    torch.testing.assert_close(gradient(True), gradient(False))


def test_the_backward_pass_is_exact_under_autocast_too() -> None:
    head = make("losses", "cosface", {}, num_classes=CLASSES, embedding_dim=DIM)
    embeddings, labels = batch()
    grads = []
    for enabled in (False, True):
        head.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            head(embeddings.float(), labels)[0].backward()
        grads.append(head.weight.grad.clone())
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-6, atol=1e-8)
