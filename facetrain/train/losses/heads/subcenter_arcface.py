"""Sub-centre ArcFace."""

from __future__ import annotations

from torch import nn

from facetrain.errors import UserError
from facetrain.train.losses.heads.arcface import ArcFace


class SubCenterArcFace(ArcFace):
    """`ArcFace` with several weights for each class, the nearest of which counts: cos θ = max over k of cos θ_k.

    For noisy labels: photographs that do not belong to a person gather at a sub-centre of their own.

    Source: Deng et al., "Sub-center ArcFace", ECCV 2020. Defaults: the paper's. ``weight``: [C, K, D].

    sub_centers: K. margin_rad, scale, gradient: as of `ArcFace`.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        sub_centers: int = 3,
        margin_rad: float = 0.5,
        scale: float = 64.0,
        gradient: str = "exact",
    ) -> None:
        if sub_centers < 1:
            raise UserError(f"sub_centers = {sub_centers}: choose 1 or more")
        super().__init__(
            num_classes * sub_centers, embedding_dim, margin_rad=margin_rad, scale=scale, gradient=gradient
        )
        self.weight = nn.Parameter(self.weight.detach().view(num_classes, sub_centers, embedding_dim))
