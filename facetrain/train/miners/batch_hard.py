"""Batch-hard mining."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from facetrain.kernels.mining import Triplets, mine_triplets
from facetrain.train.miners.base import Miner


class BatchHard(Miner):
    """One triplet for each anchor: its furthest positive and its closest negative.

    Whether they violate the margin or not, as in the paper, whose loss is a mean over all anchors; ``average =
    "active"`` of the triplet loss leaves out those that do not. Of rows at the same distance the first is taken.

    Source: Hermans, Beyer and Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017.
    """

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        margin: float,
        generator: torch.Generator | None = None,
        num_anchors: int | None = None,
    ) -> Triplets:
        return mine_triplets(
            embeddings,
            labels,
            margin=math.inf,
            num_anchors=num_anchors,
            strategy="hardest",
            positives="furthest",
        )
