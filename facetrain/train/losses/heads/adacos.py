"""AdaCos."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from facetrain.train.losses.dense_head import DenseHead
from facetrain.train.losses.head import Targets

SCALE_MIN = 1.0  # with two classes the formulas give 0


class AdaCos(DenseHead):
    """Softmax over scale · cos θ with a scale that follows the training; no margin, nothing to tune.

    It begins at √2 · ln(C − 1). In each step scale ← ln(B) / cos(min(π/4, median θ)), where B is the mean over rows of
    Σ exp(scale · cos θ_j) over the other classes: the wanted slope at the median angle. Never below 1.

    Source: Zhang et al., "AdaCos", CVPR 2019.

    fixed: keep the scale at √2 · ln(C − 1), the paper's "fixed AdaCos".
    """

    scale: Tensor

    def __init__(self, num_classes: int, embedding_dim: int, *, fixed: bool = False) -> None:
        super().__init__(num_classes, embedding_dim, scale=1.0)
        del self.scale  # a buffer takes its place
        first = math.sqrt(2) * math.log(max(num_classes - 1, 2))
        self.register_buffer("scale", torch.tensor(max(first, SCALE_MIN)))
        self.fixed = fixed

    def observe_all(self, cos_BC: Tensor, targets: Targets) -> None:
        if self.fixed:
            return
        others_BC = (self.scale * cos_BC).scatter(1, targets.labels_B[:, None], -math.inf)
        log_b = others_BC.flatten().logsumexp(0) - math.log(len(cos_BC))
        # cos(min(π/4, median θ)); the cosine falls in θ, so the median of the one is that of the other
        slope = targets.cos_B.median().clamp_min(math.cos(math.pi / 4))
        self.scale.copy_((log_b / slope).clamp_min(SCALE_MIN))

    def stats(self, targets: Targets) -> dict[str, Tensor]:
        return {"scale": self.scale.clone()}
