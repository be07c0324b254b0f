"""Miners that say how `mine_triplets` is to choose."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from facetrain.kernels.mining import Triplets, mine_triplets
from facetrain.train.miners.base import Miner


class Mined(Miner):
    """``how``: what `mine_triplets` is told beside the batch; a margin among it takes the loss's place."""

    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.how = how

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        margin: float,
        generator: torch.Generator | None = None,
        num_anchors: int | None = None,
    ) -> Triplets:
        how = {"margin": margin, "most_alike": self.most_alike, **self.how}
        return mine_triplets(embeddings, labels, generator=generator, num_anchors=num_anchors, **how)
