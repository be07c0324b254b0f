"""Circle loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from facetrain.train.losses.checks import positive, within
from facetrain.train.losses.pairs import PairLoss, logsumexp_where, mean_where


class Circle(PairLoss):
    """Mean over anchors of ln(1 + Σₙ exp(γ αₙ (sₙ − m)) · Σₚ exp(−γ αₚ (sₚ − 1 + m))), s the cosines to an anchor's
    positives and negatives. Each is weighed by how far it has to go, αₚ = max(0, 1 + m − sₚ), αₙ = max(0, sₙ + m), which
    the gradient takes as constants.

    margin_cos: m. scale: γ. Anchors without a positive or without a negative are left out.

    Source: Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", CVPR 2020 (for faces m
    0.25, γ 256).
    """

    def __init__(self, *, margin_cos: float = 0.25, scale: float = 256.0) -> None:
        super().__init__()
        self.margin_cos, self.scale = within("margin_cos", margin_cos, 0, 1), positive("scale", scale)

    def of_pairs(self, cos_AN: Tensor, positive_AN: Tensor, negative_AN: Tensor) -> Tensor:
        margin = self.margin_cos * self.margin_share
        alpha_p_AN = (1 + margin - cos_AN.detach()).clamp_min(0)
        alpha_n_AN = (cos_AN.detach() + margin).clamp_min(0)
        pull_A = logsumexp_where(-self.scale * alpha_p_AN * (cos_AN - (1 - margin)), positive_AN)
        push_A = logsumexp_where(self.scale * alpha_n_AN * (cos_AN - margin), negative_AN)
        return mean_where(F.softplus(pull_A + push_A), positive_AN.any(dim=1) & negative_AN.any(dim=1))
