"""Log-sum-exp over the classes of a head, a block of them at a time: batch × classes numbers are never held.

The margin touches the logit of a row's own class alone, so what is left for all classes is the same for every head:
log Σ exp(logit) over the others. Forward keeps B numbers of it, backward computes each block again (as attention and
cut cross-entropy do: Dao et al., "FlashAttention", 2022; Wijmans et al., "Cut Your Losses", 2024). Nothing is skipped.

Legend of shapes: B rows, C classes, c classes of a block, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from facetrain.kernels.order import first_largest

# Of a block's logits, or of its weights: 4 MiB of float32, which a processor's cache holds; on a GPU enough to fill it.
BLOCK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 24}

# (rows_BD, weight_cD, bias_c or None) → what is compared to say which class is nearest, and the logits, [B, c] both
Block = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


class OneGradient:
    """Lets `entries` and `others_log_sum_exp` of the same weights give one gradient between them.

    Autograd would add the two, and hold a third tensor of that size while it does. Whichever comes first in the
    backward pass leaves its part here, the other returns the sum.
    """

    def __init__(self) -> None:
        self.left: Tensor | None = None

    def dense(self, gradient: Tensor) -> Tensor | None:
        """The part that is as large as the weights."""
        if self.left is None:
            self.left = gradient
            return None
        gradient, self.left = gradient.add_(self.left), None
        return gradient

    def sparse(self, gradient: Tensor) -> Tensor | None:
        """The part of some entries."""
        if self.left is None:
            self.left = gradient
            return None
        gradient, self.left = self.left.add_(gradient), None
        return gradient


def others_log_sum_exp(
    rows_BD: Tensor,
    weight_CD: Tensor,
    bias_C: Tensor | None,
    labels_B: Tensor,
    block: Block,
    *,
    one_gradient: OneGradient | None = None,
    classes_at_once: int | None = None,
) -> tuple[Tensor, Tensor]:
    """log Σ exp(logit) [B] over the classes other than the row's own, −inf where there is none; and the nearest class
    [B], int64, of all of them, the first of equal ones.

    weight_CD: one entry for each class, [C, D] or [C, K, D]. ``block`` makes the logits of a block of classes; what
    else it uses gets no gradient. First derivatives only. Memory is that of the weights' gradient and of one block.
    """
    if classes_at_once is None:
        of_a_class = max(len(rows_BD), weight_CD[0].numel())
        classes_at_once = max(64, BLOCK_ELEMENTS.get(rows_BD.device.type, 1 << 24) // max(of_a_class, 1))
    lse_B, nearest_B = _Others.apply(
        rows_BD, weight_CD, bias_C, labels_B, block, one_gradient, classes_at_once
    )
    return lse_B, nearest_B


class _Others(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_BD: Tensor,
        weight_CD: Tensor,
        bias_C: Tensor | None,
        labels_B: Tensor,
        block: Block,
        one_gradient: OneGradient | None,
        classes_at_once: int,
    ) -> tuple[Tensor, Tensor]:
        lse_B = rows_BD.new_full((len(rows_BD),), -torch.inf)
        best_B, nearest_B = lse_B.clone(), torch.zeros_like(labels_B)
        for start, weight, bias in _blocks(weight_CD, bias_C, classes_at_once):
            seen_Bc, logits_Bc = block(rows_BD, weight, bias)
            value_B, column_B = first_largest(seen_Bc)
            nearer_B = value_B > best_B
            best_B = torch.where(nearer_B, value_B, best_B)
            nearest_B = torch.where(nearer_B, column_B + start, nearest_B)
            logits_Bc = _own_filled(logits_Bc, labels_B - start, -torch.inf)
            lse_B = torch.logaddexp(lse_B, logits_Bc.logsumexp(1))
        ctx.save_for_backward(rows_BD, weight_CD, bias_C, labels_B, lse_B)
        ctx.block, ctx.one_gradient, ctx.classes_at_once = block, one_gradient, classes_at_once
        ctx.mark_non_differentiable(nearest_B)
        return lse_B, nearest_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        rows_BD, weight_CD, bias_C, labels_B, lse_B = ctx.saved_tensors
        grad_rows, grad_weight = torch.zeros_like(rows_BD), torch.empty_like(weight_CD)
        grad_bias = None if bias_C is None else torch.empty_like(bias_C)
        for start, weight, bias in _blocks(weight_CD, bias_C, ctx.classes_at_once):
            inputs = [part.detach().requires_grad_() for part in (rows_BD, weight, bias) if part is not None]
            with torch.enable_grad(), torch.autocast(rows_BD.device.type, enabled=False):
                _, logits_Bc = ctx.block(*inputs, *[None] * (3 - len(inputs)))
            shares_Bc = (logits_Bc.detach() - lse_B[:, None]).exp_().mul_(grad_B[:, None])
            shares_Bc = _own_filled(shares_Bc, labels_B - start, 0.0)
            grads = torch.autograd.grad(logits_Bc, inputs, shares_Bc)
            grad_rows += grads[0]
            grad_weight[start : start + len(weight)] = grads[1]
            if grad_bias is not None:
                grad_bias[start : start + len(weight)] = grads[2]
        of_weight = grad_weight if ctx.one_gradient is None else ctx.one_gradient.dense(grad_weight)
        return grad_rows, of_weight, grad_bias, None, None, None, None


def entries(
    weight_CD: Tensor, classes_S: Tensor, *, distinct: bool = False, one_gradient: OneGradient | None = None
) -> Tensor:
    """``weight_CD[classes_S]``, whose gradient is sparse: it costs what S classes cost, however many there are.

    distinct: no class occurs twice, and they ascend. ``one_gradient``: what `others_log_sum_exp` of these weights is given too.
    """
    taken: Tensor = _Entries.apply(weight_CD, classes_S, distinct, one_gradient)
    return taken


class _Entries(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight_CD: Tensor, classes_S: Tensor, distinct: bool, one_gradient: OneGradient | None
    ) -> Tensor:
        ctx.save_for_backward(classes_S)
        ctx.shape, ctx.distinct, ctx.one_gradient = weight_CD.shape, distinct, one_gradient
        return weight_CD[classes_S]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_SD: Tensor) -> tuple[Tensor | None, None, None, None]:
        (classes_S,) = ctx.saved_tensors
        gradient = torch.sparse_coo_tensor(
            classes_S[None], grad_SD, ctx.shape, is_coalesced=ctx.distinct, check_invariants=False
        )
        of_weight = gradient if ctx.one_gradient is None else ctx.one_gradient.sparse(gradient)
        return of_weight, None, None, None


def _blocks(weight_CD: Tensor, bias_C: Tensor | None, size: int) -> list[tuple[int, Tensor, Tensor | None]]:
    """Blocks of classes: the number of the first, and views of their weights."""
    starts = range(0, len(weight_CD), size)
    return [
        (start, weight_CD[start : start + size], None if bias_C is None else bias_C[start : start + size])
        for start in starts
    ]


def _own_filled(values_Bc: Tensor, own_B: Tensor, value: float) -> Tensor:
    """``value`` at each row's own column, where it is one of these."""
    is_here_B = (own_B >= 0) & (own_B < values_Bc.shape[1])
    column_B1 = torch.where(is_here_B, own_B, 0)[:, None]
    before_B1 = values_Bc.gather(1, column_B1)
    return values_Bc.scatter_(1, column_B1, torch.where(is_here_B[:, None], value, before_B1))
