"""CurricularFace."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from facetrain.kernels.over_classes import Hard
from facetrain.train.losses.checks import within
from facetrain.train.losses.head import Head, Targets
from facetrain.train.losses.heads.angles import cos_of_sum


class CurricularFace(Head):
    """ArcFace's cos(θ + margin) at the own class; other classes that exceed it become cos θ_j · (t + cos θ_j).

    t, a buffer, follows the mean own cosine: t ← (1 − ema) · t + ema · mean cos θ. Early on it is small and hard
    classes count for less, later for more.

    Source: Huang et al., "CurricularFace", CVPR 2020. Defaults: the paper's.

    margin_rad: added to the angle. ema: share of the batch in t. ``margin_share`` also blends the other classes, from
    cos θ_j to the above.
    """

    t: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin_rad: float = 0.5,
        scale: float = 64.0,
        ema: float = 0.01,
    ) -> None:
        super().__init__(num_classes, embedding_dim, scale)
        self.margin_rad = within("margin_rad", margin_rad, 0, math.pi / 2)
        self.ema = within("ema", ema, 0, 1)
        self.register_buffer("t", torch.zeros(()))

    def target(self, targets: Targets) -> Tensor:
        return cos_of_sum(targets.cos_B, self.margin_share * self.margin_rad)

    def hard(self, targets: Targets, target_B: Tensor) -> Hard:
        share = self.margin_share
        return Hard(target_B, (0.0, 1 - share + share * self.t, share))

    def observe(self, targets: Targets) -> None:
        self.t.lerp_(targets.cos_B.mean().to(self.t.dtype), self.ema)

    def stats(self, targets: Targets) -> dict[str, Tensor]:
        return {"curriculum_t": self.t.clone()}
