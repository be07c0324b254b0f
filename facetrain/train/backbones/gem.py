"""Generalised-mean pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GeM(nn.Module):
    """(mean over places of max(x, 1e-6)^p)^(1/p) with p learned, [N, C, H, W] → float32 [N, C].

    p = 1 is average pooling, p → ∞ max pooling. In float32 also under autocast, and with the largest value taken out
    first, so that no power overflows or vanishes.

    Source: Radenović et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019.
    """

    def __init__(self, p: float = 3.0) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), p))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        with torch.autocast(x_NCHW.device.type, enabled=False):
            x_NCHW = x_NCHW.to(torch.promote_types(x_NCHW.dtype, torch.float32)).clamp_min(1e-6)
            largest_NC11 = x_NCHW.detach().amax((2, 3), keepdim=True)
            mean_NC = (x_NCHW / largest_NC11).pow(self.p).mean((2, 3))
            return mean_NC.pow(1 / self.p) * largest_NC11.flatten(1)
