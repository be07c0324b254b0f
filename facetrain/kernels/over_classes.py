"""Log-sum-exp over the classes of a head, a block of them at a time: batch × classes numbers are never held.

The margin touches the logit of a row's own class alone, so what is left for all classes is the same for every head:
log Σ exp(logit) over the others. Forward keeps B numbers of it, backward computes each block again (as attention and
cut cross-entropy do: Dao et al., "FlashAttention", 2022; Wijmans et al., "Cut Your Losses", 2024). Nothing is skipped.

Legend of shapes: B rows, C classes, c classes of a block, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from facetrain.kernels.launch import has_kernels
from facetrain.kernels.order import first_largest

if TYPE_CHECKING:
    from facetrain.kernels.over_classes_triton import Tiles

# Of a block's logits, or of its weights: 4 MiB of float32, which a processor's cache holds; on a GPU enough to fill it.
BLOCK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 24}
LEAST_CLASSES = 64  # of a block, however many rows there are


# Of rows, weight and bias; None where it is not wanted.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Hard(NamedTuple):
    """Where a class's cosine is above ``bound_B``, c0 + c1 · cos + c2 · cos² takes its place.

    bound_B: [B], one for each row. coefficients: (c0, c1, c2), numbers or scalar tensors, the same for all rows. None of
    them gets a gradient.
    """

    bound_B: Tensor
    coefficients: tuple[float | Tensor, float | Tensor, float | Tensor]


class Logits(NamedTuple):
    """A product of rows and weights as a logit, for the kernels: ``scale`` times a cosine, or what stands for a hard one.

    normalised: the weights are scaled to length 1 (the rows are so already). With several weights for a class, the
    nearest counts.
    """

    normalised: bool
    scale: float | Tensor = 1.0
    hard: Hard | None = None


class Block(NamedTuple):
    """How a block of classes becomes logits.

    of: (rows_BD, weight_cD, bias_c or None) → what is compared to say which class is nearest, and the logits, [B, c]
    both. logits: the same for the kernels; None where they cannot.
    """

    of: Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
    logits: Logits | None = None


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
        classes_at_once = max(LEAST_CLASSES, BLOCK_ELEMENTS.get(rows_BD.device.type, 1 << 24) // of_a_class)
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
        ctx.how = block_of(own_BD), classes_at_once
        work = _work(rows_BD, weight_CD, bias_C, labels_B, *ctx.how)
        lse_B, nearest_B = work.others()
        ctx.save_for_backward(rows_BD, weight_CD, bias_C, labels_B, lse_B)
        ctx.mark_non_differentiable(nearest_B)
        return own_BD, lse_B, nearest_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_own_BD: Tensor, grad_B: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        *inputs, lse_B = ctx.saved_tensors
        work = _work(*inputs, *ctx.how)
        with torch.autocast(lse_B.device.type, enabled=False):
            grad_rows, grad_weight, grad_bias = work.gradients(lse_B, grad_B, ctx.needs_input_grad[:3])
        if grad_weight is not None:
            labels_B = inputs[3]
            # Sorted where rows share a class, not added atomically as index_add_ does on a GPU.
            grad_weight.index_put_((labels_B,), grad_own_BD, accumulate=True)
        return grad_rows, grad_weight, grad_bias, None, None, None


def _work(
    rows_BD: Tensor,
    weight_CD: Tensor,
    bias_C: Tensor | None,
    labels_B: Tensor,
    block: Block,
    classes_at_once: int,
) -> Blocks | Tiles:
    """With the Triton kernels where they can do it: on a GPU, in float32."""
    in_float32 = rows_BD.dtype == weight_CD.dtype == torch.float32
    few_sub_centers = weight_CD[0].numel() <= 16 * weight_CD.shape[-1]  # a tile holds all those of a class
    has_a_form = bias_C is None or weight_CD.ndim == 2
    able = has_kernels(rows_BD) and in_float32 and few_sub_centers and has_a_form and len(rows_BD) > 0
    if block.logits is None or not able:
        return Blocks(rows_BD, weight_CD, bias_C, labels_B, block, classes_at_once)
    from facetrain.kernels.over_classes_triton import Tiles

    return Tiles(rows_BD, weight_CD, bias_C, labels_B, block.logits)


class Blocks:
    """What `own_and_others` does on one batch, but for the own classes' weights, with torch: a block after another."""

    def __init__(
        self,
        rows_BD: Tensor,
        weight_CD: Tensor,
        bias_C: Tensor | None,
        labels_B: Tensor,
        block: Block,
        classes_at_once: int,
    ) -> None:
        self.rows_BD, self.weight_CD, self.bias_C, self.labels_B = rows_BD, weight_CD, bias_C, labels_B
        self.logits_of, self.classes_at_once = block.of, classes_at_once

    def others(self) -> tuple[Tensor, Tensor]:
        """log Σ exp(logit) over the other classes [B], and the nearest of all classes [B]."""
        lse_B = self.rows_BD.new_full((len(self.rows_BD),), -torch.inf)
        best_B, nearest_B = lse_B.clone(), torch.zeros_like(self.labels_B)
        for here in self._slices():
            bias_c = None if self.bias_C is None else self.bias_C[here]
            seen_Bc, logits_Bc = self.logits_of(self.rows_BD, self.weight_CD[here], bias_c)
            value_B, column_B = first_largest(seen_Bc)
            nearer_B = value_B > best_B
            best_B = torch.where(nearer_B, value_B, best_B)
            nearest_B = torch.where(nearer_B, column_B + here.start, nearest_B)
            logits_Bc = _own_filled(logits_Bc, self.labels_B - here.start, -torch.inf)
            lse_B = torch.logaddexp(lse_B, logits_Bc.logsumexp(1))
        return lse_B, nearest_B

    def gradients(self, lse_B: Tensor, grad_B: Tensor, wanted: Sequence[bool]) -> Gradients:
        """Of rows, weight and bias, those that are wanted, None for others. grad_B: of ``lse_B``, which `others` found."""
        of_rows, of_weight, of_bias = wanted
        grad_rows = torch.zeros_like(self.rows_BD) if of_rows else None
        grad_weight = torch.empty_like(self.weight_CD) if of_weight else None
        grad_bias = torch.empty_like(self.bias_C) if self.bias_C is not None and of_bias else None
        for here in self._slices():
            rows_BD = self.rows_BD.detach().requires_grad_(of_rows)
            weight_cD = self.weight_CD[here].detach().requires_grad_(of_weight)
            bias_c = None if self.bias_C is None else self.bias_C[here].detach().requires_grad_(of_bias)
            with torch.enable_grad():
                _, logits_Bc = self.logits_of(rows_BD, weight_cD, bias_c)
            shares_Bc = (logits_Bc.detach() - lse_B[:, None]).exp_().mul_(grad_B[:, None])
            shares_Bc = _own_filled(shares_Bc, self.labels_B - here.start, 0.0)
            leaves = [
                leaf for leaf in (rows_BD, weight_cD, bias_c) if leaf is not None and leaf.requires_grad
            ]
            found = iter(torch.autograd.grad(logits_Bc, leaves, shares_Bc))
            if grad_rows is not None:
                grad_rows += next(found)
            if grad_weight is not None:
                grad_weight[here] = next(found)
            if grad_bias is not None:
                grad_bias[here] = next(found)
        return grad_rows, grad_weight, grad_bias

    def _slices(self) -> list[slice]:
        """The blocks of classes."""
        starts = range(0, len(self.weight_CD), self.classes_at_once)
        return [slice(start, start + self.classes_at_once) for start in starts]


def entries(weight_CD: Tensor, classes_S: Tensor) -> Tensor:
    """``weight_CD[classes_S]``, for classes that ascend and are all different; its gradient is sparse: it costs what S
    classes cost, however many there are."""
    taken: Tensor = _Entries.apply(weight_CD, classes_S)
    if isinstance(weight_CD, torch.nn.Parameter):
        if not hasattr(weight_CD, "_drawn"):
            weight_CD.register_post_accumulate_grad_hook(_say_coalesced)
        weight_CD._drawn = len(classes_S)  # type: ignore[attr-defined]
    return taken


def _say_coalesced(weight_CD: Tensor) -> None:
    """A sparse gradient loses the flag that says so on its way to the parameter: its classes are sorted and all different
    still, unless a second one was added to it. Optimisers would sort it again, wait for a GPU, and copy it."""
    gradient = weight_CD.grad
    if gradient is not None and gradient.is_sparse and gradient._nnz() == weight_CD._drawn:  # type: ignore[attr-defined]
        gradient._coalesced_(True)


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


def _own_filled(values_Bc: Tensor, own_B: Tensor, value: float) -> Tensor:
    """``value`` at each row's own column, where it is one of these."""
    is_here_B = (own_B >= 0) & (own_B < values_Bc.shape[1])
    column_B1 = torch.where(is_here_B, own_B, 0)[:, None]
    before_B1 = values_Bc.gather(1, column_B1)
    return values_Bc.scatter_(1, column_B1, torch.where(is_here_B[:, None], value, before_B1))
