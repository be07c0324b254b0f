"""SphereFace."""

from __future__ import annotations

import math

from torch import Tensor

from facetrain.train.losses.checks import within
from facetrain.train.losses.head import Head, Targets
from facetrain.train.losses.heads.angles import angle_rad


class SphereFace(Head):
    """ψ(θ) = (−1)^k cos(margin · θ) − 2k at the own class, k = ⌊margin · θ / π⌋: falling in θ throughout.

    Source: Liu et al., "SphereFace", CVPR 2017, in ArcFace's form: embeddings of length ``scale``, margin 1.35 (Deng et
    al., CVPR 2019, which is where the defaults are from). SphereFace itself leaves embeddings their length, and takes
    margin 4, mixed with plain softmax by a weight that falls in the training.

    margin: a factor on the angle, 1 for none. ``margin_share`` acts on what it is above 1.
    """

    def __init__(
        self, num_classes: int, embedding_dim: int, *, margin: float = 1.35, scale: float = 64.0
    ) -> None:
        super().__init__(num_classes, embedding_dim, scale)
        self.margin = within("margin", margin, 1, 10)

    def target(self, targets: Targets) -> Tensor:
        margin = 1 + self.margin_share * (self.margin - 1)
        if margin == 1:
            return targets.cos_B
        angle_B = margin * angle_rad(targets.cos_B)
        k_B = (angle_B.detach() / math.pi).floor()
        return (1 - 2 * k_B.remainder(2)) * angle_B.cos() - 2 * k_B
