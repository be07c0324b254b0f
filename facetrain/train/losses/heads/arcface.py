"""ArcFace."""

from __future__ import annotations

import math

from torch import Tensor

from facetrain.errors import UserError
from facetrain.train.losses.checks import within
from facetrain.train.losses.head import Head, Targets
from facetrain.train.losses.heads.angles import cos_of_sum

GRADIENTS = ("exact", "straight-through")


class ArcFace(Head):
    """cos(θ + margin) at the own class; where θ + margin > π, cos θ − margin · sin(margin).

    Source: Deng et al., "ArcFace", CVPR 2019. Defaults: the paper's.

    margin_rad: added to the angle. gradient: "exact", whose slope ∂logit/∂cos θ is scale · sin(θ + margin) / sin θ; or
    "straight-through", insightface's, which takes that slope to be scale: the margin then acts through the
    probabilities alone.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin_rad: float = 0.5,
        scale: float = 64.0,
        gradient: str = "exact",
    ) -> None:
        super().__init__(num_classes, embedding_dim, scale)
        self.margin_rad = within("margin_rad", margin_rad, 0, math.pi / 2)
        if gradient not in GRADIENTS:
            raise UserError(f"gradient = '{gradient}': choose {' or '.join(GRADIENTS)}")
        self.gradient = gradient

    def target(self, targets: Targets) -> Tensor:
        cos_B = targets.cos_B
        target_B = cos_of_sum(cos_B, self.margin_share * self.margin_rad)
        return target_B if self.gradient == "exact" else cos_B + (target_B - cos_B).detach()
