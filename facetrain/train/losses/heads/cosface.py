"""CosFace, also known as AM-Softmax."""

from __future__ import annotations

from torch import Tensor

from facetrain.train.losses.checks import within
from facetrain.train.losses.head import Head, Targets


class CosFace(Head):
    """cos θ − margin at the own class.

    Source: Wang et al., "CosFace", CVPR 2018 (margin .35, scale 64); Wang et al., "Additive Margin Softmax for Face
    Verification", 2018 (margin .35, scale 30). Default here: .35 and 32, FaceX-Zoo's; insightface has .4 and 64.

    margin_cos: subtracted from the cosine.
    """

    def __init__(
        self, num_classes: int, embedding_dim: int, *, margin_cos: float = 0.35, scale: float = 32.0
    ) -> None:
        super().__init__(num_classes, embedding_dim, scale)
        self.margin_cos = within("margin_cos", margin_cos, 0, 1)

    def target(self, targets: Targets) -> Tensor:
        return targets.cos_B - self.margin_share * self.margin_cos
