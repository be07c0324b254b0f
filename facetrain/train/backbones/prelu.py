"""PReLU with a backward pass that is fast on a processor too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PReLU(nn.PReLU):
    """x where x > 0, else weight · x, one weight a channel: as `torch.nn.PReLU`.

    On a processor torch's backward pass branches at every value. Made of operators that do not, the same takes about
    half the time in bfloat16 (torch 2.13), which saves a fifth of a training step of iresnet18.
    """

    def forward(self, x: Tensor) -> Tensor:
        training = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if not training or x.device.type != "cpu" or self.num_parameters != x.shape[1]:
            return F.prelu(x, self.weight.to(x.dtype))
        out: Tensor = _PReLU.apply(x, self.weight.to(x.dtype))
        return out


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, weight_C: Tensor) -> Tensor:
        ctx.save_for_backward(x_NCHW, weight_C)
        return torch.prelu(x_NCHW, weight_C)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad_NCHW,) = grads
        x_NCHW, weight_C = ctx.saved_tensors
        above_NCHW = torch.ops.aten.threshold_backward(
            grad_NCHW, x_NCHW, 0
        )  # the gradient where x > 0, else 0
        below_NCHW = grad_NCHW - above_NCHW
        others = [dim for dim in range(x_NCHW.ndim) if dim != 1]
        grad_C = (below_NCHW * x_NCHW).sum(others)
        weight = weight_C.view(-1, *[1] * (x_NCHW.ndim - 2))
        return torch.addcmul(above_NCHW, below_NCHW, weight), grad_C
