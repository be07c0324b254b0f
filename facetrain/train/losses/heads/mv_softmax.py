"""MV-Softmax: margins, and more weight on the classes that a row is mistaken for."""

from __future__ import annotations

import math

from torch import Tensor

from facetrain.kernels.over_classes import Hard
from facetrain.train.losses.checks import within
from facetrain.train.losses.head import Head, Targets
from facetrain.train.losses.heads.angles import cos_of_sum


class _MVSoftmax(Head):
    """What the two have in common: how the other classes are reweighted."""

    def __init__(self, num_classes: int, embedding_dim: int, scale: float, t: float) -> None:
        super().__init__(num_classes, embedding_dim, scale)
        self.t = within("t", t, 1, 10)

    def hard(self, targets: Targets, target_B: Tensor) -> Hard:
        t = 1 + self.margin_share * (self.t - 1)
        return Hard(target_B, (t - 1, t, 0.0))


class MVAMSoftmax(_MVSoftmax):
    """cos θ − margin at the own class; other classes that exceed it become t · cos θ_j + t − 1.

    Source: Wang et al., "Mis-classified Vector Guided Softmax Loss for Face Recognition", AAAI 2020; defaults:
    FaceX-Zoo's. Their code drops the margin where it would make the cosine negative; here it stays.

    margin_cos: subtracted from the cosine. t: 1 for no reweighting (the paper's t plus 1); ``margin_share`` acts on what
    it is above 1.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin_cos: float = 0.35,
        t: float = 1.12,
        scale: float = 32.0,
    ) -> None:
        super().__init__(num_classes, embedding_dim, scale, t)
        self.margin_cos = within("margin_cos", margin_cos, 0, 1)

    def target(self, targets: Targets) -> Tensor:
        return targets.cos_B - self.margin_share * self.margin_cos


class MVArcSoftmax(_MVSoftmax):
    """cos(θ + margin) at the own class, as ArcFace's; other classes as in `MVAMSoftmax`, and its source.

    Defaults: FaceX-Zoo's. Their code drops the margin where cos θ < 0; here it stays.

    margin_rad: added to the angle. t: as of `MVAMSoftmax`.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin_rad: float = 0.35,
        t: float = 1.12,
        scale: float = 32.0,
    ) -> None:
        super().__init__(num_classes, embedding_dim, scale, t)
        self.margin_rad = within("margin_rad", margin_rad, 0, math.pi / 2)

    def target(self, targets: Targets) -> Tensor:
        return cos_of_sum(targets.cos_B, self.margin_share * self.margin_rad)
