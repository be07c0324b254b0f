"""Triton kernels for a head of many classes: each tile of logits is made, looked at and forgotten.

They do what `facetrain.kernels.over_classes` does with torch, up to rounding, for the heads that `Logits` describes. The
forward pass is one kernel. The backward pass takes classes a block at a time: a kernel makes the block's logits again and
turns them into their gradient at once; what is left are two matrix products, cuBLAS's. Nothing is added atomically. (Of a NaN among a class's sub-centres nothing is seen here.)

Legend of shapes: B rows, C classes, K weights of a class (sub-centres), n weights of a block, D dimensions, S parts that
the classes are cut into.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# (the arguments of kernels are pointers and numbers of the device)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from facetrain.kernels.launch import Precision, matmul_precision, on_device_of, parts
from facetrain.kernels.order import first_largest
from facetrain.kernels.over_classes import BLOCK_ELEMENTS, Gradients, Logits
from facetrain.kernels.unit import SHORTEST

PROGRAMS = 512  # wanted at least, so that a large GPU has work for all its multiprocessors
LEAST_PROGRAMS = 128  # of a block of the backward pass, however many rows there are


@triton.jit
def _products(
    rows_ptr, weight_ptr, inverse_ptr, bias_ptr, first_weight, rows, weights, is_row, is_weight, dim,
    NORMALISED: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows · weights [BLOCK_B, BLOCK_N], float32; −inf where there is no weight.

    Weights are counted from the first of the tile, int64: pointers of 32 bits take half the registers.
    """
    weight_ptr += first_weight * dim
    inner = tl.zeros((BLOCK_B, BLOCK_N), tl.float32)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = tl.load(
            rows_ptr + rows[:, None] * dim + d[None, :], mask=is_row[:, None] & (d < dim)[None, :], other=0.0
        )
        w = tl.load(
            weight_ptr + weights[None, :] * dim + d[:, None],
            mask=is_weight[None, :] & (d < dim)[:, None],
            other=0.0,
        )
        inner = tl.dot(x, w, inner, input_precision=PRECISION)
    if NORMALISED:
        inner *= tl.load(inverse_ptr + first_weight + weights, mask=is_weight, other=0.0)[None, :]
    if BIAS:
        inner += tl.load(bias_ptr + first_weight + weights, mask=is_weight, other=0.0)[None, :]
    return tl.where(is_weight[None, :], inner, float("-inf"))


@triton.jit
def _nearest(
    products, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, PADDED_K: tl.constexpr,
):  # fmt: skip
    """[BLOCK_B, BLOCK_C]: of the products with the weights of a class the largest."""
    if PADDED_K == 1:
        return products
    return tl.max(tl.reshape(products, (BLOCK_B, BLOCK_C, PADDED_K)), axis=2)


@triton.jit
def _others_kernel(
    rows_ptr, weight_ptr, inverse_ptr, bias_ptr, labels_ptr, bound_ptr, numbers_ptr,
    lse_ptr, best_ptr, nearest_ptr,
    num_rows, num_classes, dim, classes_a_part,
    NORMALISED: tl.constexpr, BIAS: tl.constexpr, HARD: tl.constexpr, K: tl.constexpr, PADDED_K: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """log Σ exp(logit) over the other classes, and the nearest class of all, within one part of the classes."""
    part = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    is_row = rows < num_rows
    own = tl.load(labels_ptr + rows, mask=is_row, other=-1)
    scale = tl.load(numbers_ptr)
    if HARD:
        bound = tl.load(bound_ptr + rows, mask=is_row, other=0.0)

    column = tl.arange(0, BLOCK_C * PADDED_K)
    in_tile, k = column // PADDED_K, column % PADDED_K
    largest = tl.full((BLOCK_B,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_B,), tl.float32)
    best = tl.full((BLOCK_B,), float("-inf"), tl.float32)
    nearest = tl.zeros((BLOCK_B,), tl.int64)
    first = part * classes_a_part
    for start in range(first, tl.minimum(first + classes_a_part, num_classes), BLOCK_C):
        products = _products(
            rows_ptr, weight_ptr, inverse_ptr, bias_ptr, start * K,
            rows, in_tile * K + k, is_row, (start + in_tile < num_classes) & (k < K), dim,
            NORMALISED, BIAS, BLOCK_B, BLOCK_C * PADDED_K, BLOCK_D, PRECISION,
        )  # fmt: skip
        seen = _nearest(products, BLOCK_B, BLOCK_C, PADDED_K)
        value, place = tl.max(seen, axis=1, return_indices=True)
        nearer = value > best  # of equal ones the first stays
        best = tl.where(nearer, value, best)
        nearest = tl.where(nearer, start + place, nearest)
        classes = start + tl.arange(0, BLOCK_C)
        is_class = (classes < num_classes)[None, :]
        seen = tl.where(is_class, seen, 0.0)
        if HARD:
            c0, c1, c2 = tl.load(numbers_ptr + 1), tl.load(numbers_ptr + 2), tl.load(numbers_ptr + 3)
            seen = tl.where(seen > bound[:, None], c0 + seen * (c1 + seen * c2), seen)
        logits = tl.where(is_class & (own[:, None] != classes[None, :]), scale * seen, float("-inf"))
        now = tl.maximum(largest, tl.max(logits, axis=1))
        finite = tl.where(now == float("-inf"), 0.0, now)
        total = total * tl.exp(largest - finite) + tl.sum(tl.exp(logits - finite[:, None]), axis=1)
        largest = now
    out = part * num_rows + rows
    tl.store(lse_ptr + out, largest + tl.log(tl.where(total == 0.0, 1.0, total)), mask=is_row)  # none: −inf
    tl.store(best_ptr + out, best, mask=is_row)
    tl.store(nearest_ptr + out, nearest, mask=is_row)


@triton.jit(do_not_specialize=["first_class", "end_class"])
def _shares_kernel(
    rows_ptr, weight_ptr, inverse_ptr, bias_ptr, labels_ptr, bound_ptr, numbers_ptr, lse_ptr, grad_ptr,
    shares_ptr, sums_ptr,
    num_rows, first_class, end_class, dim,
    NORMALISED: tl.constexpr, BIAS: tl.constexpr, HARD: tl.constexpr, K: tl.constexpr, PADDED_K: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of the inner products of all rows with the weights of classes from first to end.

    Shares: what it is of. Sums: over the rows, of shares times cosines where weights are normalised, which is what
    scaling to length 1 takes off their gradient; else of the shares, which is the gradient of the bias.
    """
    column = tl.arange(0, BLOCK_C * PADDED_K)
    in_tile, k = column // PADDED_K, column % PADDED_K
    in_block = tl.program_id(0) * BLOCK_C
    start = first_class + in_block
    first_weight, weights = start.to(tl.int64) * K, in_tile * K + k
    is_weight = (start + in_tile < end_class) & (k < K)
    out = in_block * K + weights
    width = (end_class - first_class) * K
    scale = tl.load(numbers_ptr)

    sums = tl.zeros((BLOCK_C * PADDED_K,), tl.float32)
    for row in range(0, num_rows, BLOCK_B):
        rows = row + tl.arange(0, BLOCK_B)
        is_row = rows < num_rows
        products = _products(
            rows_ptr, weight_ptr, inverse_ptr, bias_ptr, first_weight, rows, weights, is_row, is_weight, dim,
            NORMALISED, BIAS, BLOCK_B, BLOCK_C * PADDED_K, BLOCK_D, PRECISION,
        )  # fmt: skip
        nearest = _nearest(products, BLOCK_B, BLOCK_C, PADDED_K)
        classes = start + tl.arange(0, BLOCK_C)
        is_class = (classes < end_class)[None, :]
        seen = tl.where(is_class, nearest, 0.0)
        own = tl.load(labels_ptr + rows, mask=is_row, other=-1)
        lse = tl.load(lse_ptr + rows, mask=is_row, other=0.0)
        grad = tl.load(grad_ptr + rows, mask=is_row, other=0.0)
        if HARD:
            c0, c1, c2 = tl.load(numbers_ptr + 1), tl.load(numbers_ptr + 2), tl.load(numbers_ptr + 3)
            hard = seen > tl.load(bound_ptr + rows, mask=is_row, other=0.0)[:, None]
            logits = scale * tl.where(hard, c0 + seen * (c1 + seen * c2), seen)
            slope = scale * tl.where(hard, c1 + 2.0 * c2 * seen, 1.0)
        else:
            logits = scale * seen
            slope = scale
        is_other = is_row[:, None] & is_class & (own[:, None] != classes[None, :])
        shares = tl.exp(tl.where(is_other, logits - lse[:, None], float("-inf"))) * slope * grad[:, None]
        if PADDED_K > 1:  # to the nearest weight of the class, or in equal parts to the nearest ones
            by_class = tl.reshape(products, (BLOCK_B, BLOCK_C, PADDED_K))
            is_nearest = (by_class == nearest[:, :, None]).to(tl.float32)
            parted = is_nearest * (shares / tl.sum(is_nearest, axis=2))[:, :, None]
            shares = tl.reshape(parted, (BLOCK_B, BLOCK_C * PADDED_K))
        if NORMALISED:
            sums += tl.sum(shares * tl.where(is_weight[None, :], products, 0.0), axis=0)
            shares *= tl.load(inverse_ptr + first_weight + weights, mask=is_weight, other=0.0)[None, :]
        else:
            sums += tl.sum(shares, axis=0)
        tl.store(
            shares_ptr + rows[:, None] * width + out[None, :],
            shares,
            mask=is_row[:, None] & is_weight[None, :],
        )
    tl.store(sums_ptr + out, sums, mask=is_weight)


class Tiles:
    """The work of `facetrain.kernels.over_classes.own_and_others` on one batch, but for the own classes' weights.

    rows_BD, weight [C, D] or [C, K, D], bias_C, and what is in ``logits``: float32. labels_B: int64.
    """

    def __init__(
        self, rows_BD: Tensor, weight: Tensor, bias_C: Tensor | None, labels_B: Tensor, logits: Logits
    ) -> None:
        rows_BD, weight = rows_BD.contiguous(), weight.contiguous()
        self.rows_BD, self.weight, self.bias_C, self.normalised = rows_BD, weight, bias_C, logits.normalised
        sub_centers = 1 if weight.ndim == 2 else weight.shape[1]
        inverse = weight  # of no meaning
        if logits.normalised:
            norm = torch.linalg.vector_norm(weight, dim=-1)
            inverse = torch.where(norm > SHORTEST, 1 / norm, 0)
        self.inverse = inverse
        hard = logits.hard
        numbers = [logits.scale] if hard is None else [logits.scale, *hard.coefficients]
        self.pointers = (
            rows_BD, weight, inverse, weight if bias_C is None else bias_C.contiguous(), labels_B.contiguous(),
            rows_BD if hard is None else hard.bound_B.contiguous(),
            torch.stack([_on_device(number, rows_BD) for number in numbers]),
        )  # fmt: skip
        self.constants = {
            "NORMALISED": logits.normalised,
            "BIAS": bias_C is not None,
            "HARD": hard is not None,
        }
        self.sizes = matmul_precision(), rows_BD.shape[1], sub_centers

    def others(self) -> tuple[Tensor, Tensor]:
        """log Σ exp(logit) over the other classes, float32 [B], and the nearest of all classes, int64 [B]."""
        num_rows, dim = self.rows_BD.shape
        blocks = _blocks(*self.sizes)
        of_rows = triton.cdiv(num_rows, blocks["BLOCK_B"])
        num_parts, classes_a_part = parts(of_rows, len(self.weight), blocks["BLOCK_C"], PROGRAMS)
        lse_SB, best_SB = self.rows_BD.new_empty((2, num_parts, num_rows))
        nearest_SB = torch.empty((num_parts, num_rows), dtype=torch.int64, device=lse_SB.device)
        with on_device_of(self.rows_BD):
            _others_kernel[(of_rows, num_parts)](
                *self.pointers, lse_SB, best_SB, nearest_SB,
                num_rows, len(self.weight), dim, classes_a_part, **self.constants, **blocks,
            )  # fmt: skip
        part_B1 = first_largest(best_SB.T)[1][:, None]
        return lse_SB.logsumexp(0), nearest_SB.T.gather(1, part_B1)[:, 0]

    def gradients(self, lse_B: Tensor, grad_B: Tensor, wanted: Sequence[bool]) -> Gradients:
        """Of rows, weight and bias, those that are wanted, None for others. grad_B: of ``lse_B``, which `others` found."""
        num_rows, dim = self.rows_BD.shape
        flat_ND, inverse_N = self.weight.flatten(0, -2), self.inverse.flatten()
        blocks = _blocks(*self.sizes, gradient=True)
        sub_centers = blocks["K"]
        grad_rows = torch.zeros_like(self.rows_BD) if wanted[0] else None
        grad_weight = torch.empty_like(flat_ND) if wanted[1] else None
        grad_bias = torch.empty_like(self.bias_C) if self.bias_C is not None and wanted[2] else None
        size = max(LEAST_PROGRAMS * blocks["BLOCK_C"], BLOCK_ELEMENTS["cuda"] // (num_rows * sub_centers))
        for first in range(0, len(self.weight), size):
            end = min(first + size, len(self.weight))
            here = slice(first * sub_centers, end * sub_centers)
            weight_nD = flat_ND[here]
            shares_Bn = self.rows_BD.new_empty((num_rows, len(weight_nD)))
            sums_n = self.rows_BD.new_empty(len(weight_nD))
            with on_device_of(self.rows_BD):
                _shares_kernel[(triton.cdiv(end - first, blocks["BLOCK_C"]),)](
                    *self.pointers, lse_B, grad_B.contiguous(), shares_Bn, sums_n,
                    num_rows, first, end, dim, **self.constants, **blocks,
                )  # fmt: skip
            if grad_weight is not None:
                taken_off_n = (
                    sums_n * inverse_N[here].square() if self.normalised else torch.zeros_like(sums_n)
                )
                torch.mul(weight_nD, -taken_off_n[:, None], out=grad_weight[here])
                grad_weight[here].addmm_(shares_Bn.T, self.rows_BD)
            if grad_rows is not None:
                grad_rows.addmm_(shares_Bn, weight_nD)
            if grad_bias is not None:
                grad_bias[here] = sums_n
        return grad_rows, None if grad_weight is None else grad_weight.view_as(self.weight), grad_bias


def _on_device(number: float | Tensor, like: Tensor) -> Tensor:
    """A scalar, float32, without waiting for the device."""
    if isinstance(number, Tensor):
        return number.to(torch.float32).reshape(())
    return torch.full((), number, dtype=torch.float32, device=like.device)


def _blocks(precision: Precision, dim: int, sub_centers: int, *, gradient: bool = False) -> dict[str, Any]:
    """Sizes of tiles, and all else that a launch is told: what is larger spills (benchmarks/compile_kernels.py)."""
    exact = precision == "ieee"
    padded = triton.next_power_of_2(sub_centers)
    columns = 64 if exact or gradient else 128
    return {
        "PRECISION": precision,
        "K": sub_centers,
        "PADDED_K": padded,
        "BLOCK_B": 64,
        "BLOCK_C": max(1, columns // padded),
        "BLOCK_D": min(16 if exact else 32, max(16, triton.next_power_of_2(dim))),
        "num_warps": 8,
        "num_stages": 1 if exact else 3,
        "enable_fp_fusion": True,
    }
