"""The batches of all ranks as one, so that mining sees the global batch; gradients find their way back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather(rows_ND: Tensor) -> Tensor:
    """The rows of all ranks, [ranks · N, D], in order of rank; the rows themselves where nothing is distributed.

    All ranks must have as many. Backward: each rank gets the sum over all ranks of the gradients of its own rows, so a
    loss of the global batch, computed on every rank alike, has on each ``ranks`` times the gradient that it has in a
    single process: the mean over ranks that data-parallel training takes of all gradients makes up for it.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows_ND
    if not rows_ND.is_floating_point():
        return _all(rows_ND)
    gathered: Tensor = _Gather.apply(rows_ND)
    return gathered


def _all(rows_ND: Tensor) -> Tensor:
    parts = [torch.empty_like(rows_ND) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows_ND.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor) -> Tensor:
        return _all(rows_ND)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)  # it is somebody else's too
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]
