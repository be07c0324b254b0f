"""Squared L2 distances, all at once or between listed pairs of rows.

Legend of shapes: A, B, N rows, D dimensions, T pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

GATHERED_ELEMENTS = 1 << 20  # of rows gathered at once: 4 MiB of float32


def squared_distances(a_AD: Tensor, b_BD: Tensor, b_squares_B: Tensor | None = None) -> Tensor:
    """Squared L2 distances [A, B] of each row of ``a`` to each row of ``b``, at least float32, never below 0.

    ``b_squares_B``: the squared lengths of ``b``'s rows, where they are known. Under autocast too in full precision:
    half cannot tell small distances apart.
    """
    dtype = torch.promote_types(torch.promote_types(a_AD.dtype, b_BD.dtype), torch.float32)
    a_AD, b_BD = a_AD.to(dtype), b_BD.to(dtype)
    if b_squares_B is None:
        b_squares_B = b_BD.square().sum(1)
    with torch.autocast(a_AD.device.type, enabled=False):
        squares_AB = a_AD.square().sum(1)[:, None] + b_squares_B[None, :]
        return squares_AB.addmm_(a_AD, b_BD.T, alpha=-2).clamp_min_(0)


def pair_distances(
    rows_ND: Tensor, first_T: Tensor, second_T: Tensor, known_T: Tensor | None = None
) -> Tensor:
    """Squared L2 distances [T] between rows of one matrix, given by their numbers, int64 [T] each.

    ``known_T``: the distances, where something has computed them already; what is left is their gradient. Where
    ``first_T`` is −1 there is no pair: the distance is of no meaning, and nobody's gradient. Memory is O(T): no T × D
    numbers are held, neither for the backward pass. First derivatives only.
    """
    distances_T: Tensor = _PairDistances.apply(rows_ND, first_T, second_T, known_T)
    return distances_T


class _PairDistances(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows_ND: Tensor, first_T: Tensor, second_T: Tensor, known_T: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(rows_ND, first_T, second_T)
        if known_T is not None:
            return known_T.detach().clone()
        step = max(1, GATHERED_ELEMENTS // max(rows_ND.shape[1], 1))
        parts = [rows_ND.new_empty(0)]
        for first, second in zip(first_T.split(step), second_T.split(step), strict=True):
            parts.append((rows_ND[first] - rows_ND[second]).square_().sum(1))
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor, None, None, None]:
        # d|x_i − x_j|² / dx_i = 2 (x_i − x_j): with the symmetric N × N matrix W of the pairs' gradients, which is as
        # sparse as there are few pairs, this is 2 (diag(W·1) − W) X.
        rows_ND, first_T, second_T = ctx.saved_tensors
        if rows_ND.is_cuda and rows_ND.dtype == torch.float32:
            from facetrain.kernels.mining_triton import pair_gradient

            return pair_gradient(rows_ND, first_T, second_T, grad_T), None, None, None
        num_rows, is_pair_T = len(rows_ND), first_T >= 0
        if not is_pair_T.all():
            first_T, second_T, grad_T = first_T[is_pair_T], second_T[is_pair_T], grad_T[is_pair_T]
        either_T, other_T, grad_T = (
            torch.cat([first_T, second_T]),
            torch.cat([second_T, first_T]),
            torch.cat([grad_T, grad_T]),
        )
        pairs_NN = torch.sparse_coo_tensor(
            torch.stack([either_T, other_T]), grad_T, (num_rows, num_rows), check_invariants=False
        )
        sums_N = rows_ND.new_zeros(num_rows).index_add_(0, either_T, grad_T)
        return 2 * torch.addcmul(-(pairs_NN @ rows_ND), sums_N[:, None], rows_ND), None, None, None
