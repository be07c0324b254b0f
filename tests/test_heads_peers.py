"""Heads beside pytorch-metric-learning's, where it has them: loss and gradients on random batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from facetrain.plugins import resolve

# NumPy 2 and theirs
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")

CLASSES, DIM, ROWS = 11, 16, 24


def both(name: str, ours: dict[str, Any], peer: str, theirs: dict[str, Any], unit: bool = False) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    for seed in range(4):
        torch.manual_seed(seed)
        head = resolve("losses", name)(CLASSES, DIM, **ours).double()
        other = getattr(losses, peer)(num_classes=CLASSES, embedding_size=DIM, **theirs).double()
        other.W.data = head.weight.detach().reshape(-1, DIM).T.clone()
        labels = torch.randint(CLASSES, (ROWS,))
        x = torch.randn(ROWS, DIM, dtype=torch.float64) * 3
        x[: ROWS // 3] += 3 * head.weight.detach()[labels].reshape(ROWS, -1, DIM)[: ROWS // 3, 0]
        x[ROWS // 3] = -head.weight.detach()[labels[ROWS // 3]].reshape(-1, DIM)[0] + 0.01 * x[ROWS // 3]
        if unit:
            x /= x.norm(dim=1, keepdim=True)
        loss, by_x, by_weight = gradients(lambda x: head(x, labels)[0], x, head.weight)  # noqa: B023
        their_loss, their_by_x, their_by_weight = gradients(lambda x: other(x, labels), x, other.W)  # noqa: B023
        torch.testing.assert_close(loss, their_loss, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(by_weight.reshape(-1, DIM).T, their_by_weight, rtol=1e-6, atol=1e-8)
        if not unit:
            torch.testing.assert_close(by_x, their_by_x, rtol=1e-6, atol=1e-8)


def gradients(
    loss_of: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    x = x.clone().requires_grad_()
    loss = loss_of(x)
    return (loss.detach(), *torch.autograd.grad(loss, [x, weight]))


def test_arcface() -> None:
    both("arcface", {"margin_rad": 0.5}, "ArcFaceLoss", {"margin": math.degrees(0.5), "scale": 64})


def test_cosface() -> None:
    both("cosface", {"margin_cos": 0.3, "scale": 40.0}, "CosFaceLoss", {"margin": 0.3, "scale": 40})


def test_sub_centre_arcface() -> None:
    theirs = {"margin": math.degrees(0.4), "scale": 30, "sub_centers": 3}
    both("subcenter-arcface", {"margin_rad": 0.4, "scale": 30.0}, "SubCenterArcFaceLoss", theirs)


def test_normface() -> None:
    """Theirs leaves embeddings their length."""
    both("normface", {"scale": 20.0}, "NormalizedSoftmaxLoss", {"temperature": 0.05}, unit=True)


@pytest.mark.parametrize("margin", [2, 3, 4])
def test_sphereface(margin: int) -> None:
    """Theirs takes whole margins and multiplies by the embedding's length."""
    ours = {"margin": float(margin), "scale": 12.0}
    both("sphereface", ours, "SphereFaceLoss", {"margin": margin, "scale": 12}, unit=True)
