"""Multi-similarity loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from facetrain.train.losses.checks import positive, within
from facetrain.train.losses.pairs import PairLoss, logsumexp_where


class MultiSimilarity(PairLoss):
    """Mean over anchors of ln(1 + Σₚ exp(−α (sₚ − λ))) / α + ln(1 + Σₙ exp(β (sₙ − λ))) / β, s the cosines to an
    anchor's positives and negatives: the more a pair stands out among the others, the more it weighs.

    alpha, beta: α and β. base: λ, a cosine. mining: only those pairs of an anchor that are informative: negatives with
    a cosine above the least positive one's − epsilon, positives below the greatest negative one's + epsilon.

    Source: Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", CVPR 2019 (α 2, β
    50, λ 1, ε 0.1). λ here is 0.5, as in the authors' code.
    """

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        mining: bool = True,
        epsilon: float = 0.1,
    ) -> None:
        super().__init__()
        self.alpha, self.beta = positive("alpha", alpha), positive("beta", beta)
        self.base, self.mining, self.epsilon = (
            within("base", base, -1, 1),
            mining,
            within("epsilon", epsilon, 0, 2),
        )

    def of_pairs(self, cos_AN: Tensor, positive_AN: Tensor, negative_AN: Tensor) -> Tensor:
        if self.mining:
            positive_AN, negative_AN = self._informative(cos_AN.detach(), positive_AN, negative_AN)
        # ln(1 + Σ exp) is softplus(ln Σ exp).
        pull_A = F.softplus(logsumexp_where(-self.alpha * (cos_AN - self.base), positive_AN)) / self.alpha
        push_A = F.softplus(logsumexp_where(self.beta * (cos_AN - self.base), negative_AN)) / self.beta
        return (pull_A + push_A).sum() / max(len(cos_AN), 1)

    def _informative(self, cos_AN: Tensor, positive_AN: Tensor, negative_AN: Tensor) -> tuple[Tensor, Tensor]:
        if not cos_AN.numel():
            return positive_AN, negative_AN
        least_A = cos_AN.masked_fill(~positive_AN, torch.inf).amin(dim=1, keepdim=True)
        greatest_A = cos_AN.masked_fill(~negative_AN, -torch.inf).amax(dim=1, keepdim=True)
        return (
            positive_AN & (cos_AN - self.epsilon < greatest_A),
            negative_AN & (cos_AN + self.epsilon > least_A),
        )
