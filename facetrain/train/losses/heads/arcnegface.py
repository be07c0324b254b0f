"""ArcNegFace."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from facetrain.train.losses.checks import positive, within
from facetrain.train.losses.head import Head, Targets
from facetrain.train.losses.heads.angles import cos_of_sum


class ArcNegFace(Head):
    """cos(θ + margin) at the own class, as ArcFace's; every other class becomes w_j · cos θ_j + w_j − 1.

    w_j = alpha · exp(−(cos θ_j − cos(θ + margin))² / sigma): classes as near as the own one weigh most, those far from
    it, and those so near that their labels may be wrong, weigh less. w_j carries no gradient.

    Source: Liu et al., "Towards Flops-constrained Face Recognition", ICCV workshops 2019. Defaults: FaceX-Zoo's.

    margin_rad: added to the angle. ``margin_share`` also blends w_j, from 1.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin_rad: float = 0.5,
        scale: float = 64.0,
        alpha: float = 1.2,
        sigma: float = 2.0,
    ) -> None:
        super().__init__(num_classes, embedding_dim, scale)
        self.margin_rad = within("margin_rad", margin_rad, 0, math.pi / 2)
        self.alpha, self.sigma = positive("alpha", alpha), positive("sigma", sigma)

    def target(self, targets: Targets) -> Tensor:
        return cos_of_sum(targets.cos_B, self.margin_share * self.margin_rad)

    def others(self, cos_BC: Tensor, targets: Targets, target_B: Tensor) -> Tensor:
        with torch.no_grad():
            weight_BC = self.alpha * torch.exp(-(cos_BC - target_B[:, None]).square() / self.sigma)
            weight_BC = 1 + self.margin_share * (weight_BC - 1)
        return weight_BC * cos_BC + (weight_BC - 1)
