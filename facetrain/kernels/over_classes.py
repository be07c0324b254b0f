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


def own_and_others(
    rows_BD: Tensor,
    weight_CD: Tensor,
    bias_C: Tensor | None,
    labels_B: Tensor,
    block_of: Callable[[Tensor], Block],
    *,
    classes_at_once: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The weights of the rows' own classes, [B, D]; log Σ exp(logit) [B] over the classes other than the row's own, −inf
    where there is none; and the nearest class [B], int64, of all of them, the first of equal ones.

    weight_CD: one entry for each class, [C, D] or [C, K, D]. ``block_of`` is given the own weights, without a gradient,
    and says how a block of classes becomes logits; what else that uses gets no gradient, and must still be the same when
    the backward pass makes the blocks again. First derivatives only. Memory is that of the weights' gradient and of one
    block. (One operation for both, since autograd would add their two gradients of the weights into a third.)
    """
    if classes_at_once is None:
        sub_centers = weight_CD[0].numel() // weight_CD.shape[-1]
        of_a_class = max(len(rows_BD) * sub_centers, weight_CD[0].numel(), 1)
        classes_at_once = max(64, BLOCK_ELEMENTS.get(rows_BD.device.type, 1 << 24) // of_a_class)
    own_BD, lse_B, nearest_B = _OwnAndOthers.apply(
        rows_BD, weight_CD, bias_C, labels_B, block_of, classes_at_once
    )
    return own_BD, lse_B, nearest_B


class _OwnAndOthers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_BD: Tensor,
        weight_CD: Tensor,
        bias_C: Tensor | None,
        labels_B: Tensor,
        block_of: Callable[[Tensor], Block],
        classes_at_once: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        own_BD = weight_CD[labels_B]
        block = block_of(own_BD)
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
        ctx.block, ctx.classes_at_once = block, classes_at_once
        ctx.mark_non_differentiable(nearest_B)
        return own_BD, lse_B, nearest_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_own_BD: Tensor, grad_B: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        rows_BD, weight_CD, bias_C, labels_B, lse_B = ctx.saved_tensors
        # Of rows, weight and bias: whose gradient is wanted.
        wanted = [
            tensor is not None and ctx.needs_input_grad[place]
            for place, tensor in enumerate((rows_BD, weight_CD, bias_C))
        ]
        grad_rows = torch.zeros_like(rows_BD) if wanted[0] else None
        grad_weight = torch.empty_like(weight_CD) if wanted[1] else None
        grad_bias = torch.empty_like(bias_C) if wanted[2] else None
        for start, weight, bias in _blocks(weight_CD, bias_C, ctx.classes_at_once):
            inputs = [
                None if tensor is None else tensor.detach().requires_grad_(is_wanted)
                for tensor, is_wanted in zip((rows_BD, weight, bias), wanted, strict=True)
            ]
            with torch.autocast(rows_BD.device.type, enabled=False):
                with torch.enable_grad():
                    _, logits_Bc = ctx.block(*inputs)
                shares_Bc = (logits_Bc.detach() - lse_B[:, None]).exp_().mul_(grad_B[:, None])
                shares_Bc = _own_filled(shares_Bc, labels_B - start, 0.0)
                leaves = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
                found = iter(torch.autograd.grad(logits_Bc, leaves, shares_Bc))
            if grad_rows is not None:
                grad_rows += next(found)
            if grad_weight is not None:
                grad_weight[start : start + len(weight)] = next(found)
            if grad_bias is not None:
                grad_bias[start : start + len(weight)] = next(found)
        if grad_weight is not None:
            grad_weight.index_add_(0, labels_B, grad_own_BD)
        return grad_rows, grad_weight, grad_bias, None, None, None


def entries(weight_CD: Tensor, classes_S: Tensor) -> Tensor:
    """``weight_CD[classes_S]``, for classes that ascend and are all different; its gradient is sparse: it costs what S
    classes cost, however many there are."""
    taken: Tensor = _Entries.apply(weight_CD, classes_S)
    return taken


class _Entries(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_CD: Tensor, classes_S: Tensor) -> Tensor:
        ctx.save_for_backward(classes_S)
        ctx.shape = weight_CD.shape
        return weight_CD[classes_S]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_SD: Tensor) -> tuple[Tensor, None]:
        (classes_S,) = ctx.saved_tensors
        gradient = torch.sparse_coo_tensor(
            classes_S[None], grad_SD, ctx.shape, is_coalesced=True, check_invariants=False
        )
        return gradient, None


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
