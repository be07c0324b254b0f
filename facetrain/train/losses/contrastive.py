"""Contrastive loss."""

from __future__ import annotations

import torch
from torch import Tensor

from facetrain.errors import UserError
from facetrain.train.losses.checks import within
from facetrain.train.losses.pairs import PairLoss, mean_where


class Contrastive(PairLoss):
    """Mean over positive pairs of max(0, d − pos_margin)^power, plus mean over negative ones of max(0, neg_margin −
    d)^power; d is the Euclidean distance between embeddings scaled to length 1, from 0 to 2.

    pos_margin: positives closer than this are left alone. neg_margin: negatives further than this are left alone; it
    is what ``margin_share`` ramps up. power: 2 or 1. average: ``active``, over pairs whose term is above 0; ``all``,
    over all pairs.

    Source: Hadsell, Chopra and LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006 (power 2,
    no pos_margin, sums instead of means, times ½). The means make it independent of the batch's size; over active
    pairs, because most negatives are soon further than the margin.
    """

    def __init__(
        self, *, pos_margin: float = 0.0, neg_margin: float = 1.0, power: int = 2, average: str = "active"
    ) -> None:
        super().__init__()
        self.pos_margin = within("pos_margin", pos_margin, 0, 2)
        self.neg_margin = within("neg_margin", neg_margin, 0, 2)
        if power not in (1, 2):
            raise UserError(f"power = {power}: choose 1 or 2")
        if average not in ("active", "all"):
            raise UserError(f"average = '{average}': choose one of active, all")
        self.power, self.average = power, average

    def of_pairs(self, cos_AN: Tensor, positive_AN: Tensor, negative_AN: Tensor) -> Tensor:
        distance_AN = _distance(cos_AN)
        pull_AN = (distance_AN - self.pos_margin).clamp_min(0) ** self.power
        push_AN = (self.margin_share * self.neg_margin - distance_AN).clamp_min(0) ** self.power
        if self.average == "active":
            positive_AN, negative_AN = positive_AN & (pull_AN > 0), negative_AN & (push_AN > 0)
        return mean_where(pull_AN, positive_AN) + mean_where(push_AN, negative_AN)


def _distance(cos: Tensor) -> Tensor:
    """√(2 − 2 cos), with a gradient of 0 where it is 0 and the root's slope infinite."""
    squared = (2 - 2 * cos).clamp_min(0)
    return torch.where(squared > 0, squared.clamp_min(torch.finfo(cos.dtype).tiny).sqrt(), 0)
