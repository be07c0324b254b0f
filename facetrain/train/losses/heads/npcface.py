"""NPCFace."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from facetrain.train.losses.checks import positive, within
from facetrain.train.losses.dense_head import DenseHead
from facetrain.train.losses.head import Targets
from facetrain.train.losses.heads.angles import cos_of_sum


class NPCFace(DenseHead):
    """cos(θ + m) at the own class, m larger where other classes are near; those become t · cos θ_j + a.

    Other classes are hard where cos θ_j > cos(θ + margin). m = m0 + m1 · mean cos θ_j over a row's hard classes (m0 if
    it has none), without a gradient.

    Source: Zeng et al., "NPCFace", 2020; defaults: FaceX-Zoo's, by authors of the paper. Their code drops m where
    cos θ < 0; here it stays.

    margin_rad: says which classes are hard. m0_rad, m1_rad: of m. ``margin_share`` acts on all three, and blends the
    hard classes from cos θ_j.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin_rad: float = 0.35,
        scale: float = 32.0,
        m0_rad: float = 0.4,
        m1_rad: float = 0.2,
        t: float = 1.1,
        a: float = 0.2,
    ) -> None:
        super().__init__(num_classes, embedding_dim, scale)
        self.margin_rad = within("margin_rad", margin_rad, 0, math.pi / 2)
        self.m0_rad = within("m0_rad", m0_rad, 0, math.pi / 4)
        self.m1_rad = within("m1_rad", m1_rad, 0, self.m0_rad)  # so that m is never below 0
        self.t, self.a = positive("t", t), within("a", a, 0, 10)

    def logits(self, cos_BC: Tensor, targets: Targets) -> Tensor:
        with torch.no_grad():
            bound_B = cos_of_sum(targets.cos_B, self.margin_share * self.margin_rad)
            hard_BC = (cos_BC > bound_B[:, None]).scatter(1, targets.labels_B[:, None], False)
            count_B = hard_BC.sum(1).clamp_min(1)
            m_B = self.m0_rad + self.m1_rad * (cos_BC * hard_BC).sum(1) / count_B
        target_B = cos_of_sum(targets.cos_B, self.margin_share * m_B)
        harder_BC = torch.lerp(cos_BC, self.t * cos_BC + self.a, self.margin_share)
        others_BC = torch.where(hard_BC, harder_BC, cos_BC)
        return self.scaled(others_BC, targets, target_B)
