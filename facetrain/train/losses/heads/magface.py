"""MagFace."""

from __future__ import annotations

import math

from torch import Tensor

from facetrain.errors import UserError
from facetrain.train.losses.checks import positive, within
from facetrain.train.losses.head import Head, Targets, mean
from facetrain.train.losses.heads.angles import cos_of_sum


class MagFace(Head):
    """cos(θ + m(a)) at the own class, a the length of the raw embedding, m rising with it; plus a pull to be long.

    a is clipped to [norm_low, norm_high], where m(a) goes evenly from margin_low_rad to margin_high_rad. The loss gains
    regulariser · mean(a / norm_high² + 1 / a), which falls in a. So clear photographs come to have long embeddings, and
    length tells quality. Where θ + m > π, ArcFace's continuation.

    Source: Meng et al., "MagFace", CVPR 2021; defaults: FaceX-Zoo's, but for its scale of
    32 (the authors have 64, and 35 for the regulariser).
    Embeddings shorter than norm_low get no gradient along their length: let the network start within the range.

    ``margin_share`` acts on m(a) and, as the two are balanced against each other, on the regulariser.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin_low_rad: float = 0.45,
        margin_high_rad: float = 0.8,
        norm_low: float = 10.0,
        norm_high: float = 110.0,
        regulariser: float = 20.0,
        scale: float = 64.0,
    ) -> None:
        super().__init__(num_classes, embedding_dim, scale)
        self.margin_low_rad = within("margin_low_rad", margin_low_rad, 0, math.pi / 2)
        self.margin_high_rad = within("margin_high_rad", margin_high_rad, self.margin_low_rad, math.pi / 2)
        self.norm_low, self.norm_high = positive("norm_low", norm_low), positive("norm_high", norm_high)
        if norm_high <= norm_low:
            raise UserError(f"norm_high = {norm_high:g}: choose more than norm_low = {norm_low:g}")
        self.regulariser = within("regulariser", regulariser, 0, 1e6)

    def target(self, targets: Targets) -> Tensor:
        return cos_of_sum(targets.cos_B, self.margin_rad(targets))

    def margin_rad(self, targets: Targets) -> Tensor:
        share_B = (self._norm(targets) - self.norm_low) / (self.norm_high - self.norm_low)
        margin_B = self.margin_low_rad + (self.margin_high_rad - self.margin_low_rad) * share_B
        return self.margin_share * margin_B

    def extra(self, targets: Targets) -> Tensor:
        norm_B = self._norm(targets)
        return self.margin_share * self.regulariser * (norm_B / self.norm_high**2 + 1 / norm_B)

    def stats(self, targets: Targets) -> dict[str, Tensor]:
        return {"embedding_norm": mean(targets.norm_B), "margin_rad": mean(self.margin_rad(targets))}

    def _norm(self, targets: Targets) -> Tensor:
        return targets.norm_B.clamp(self.norm_low, self.norm_high)
