"""Every triplet that violates the margin."""

from __future__ import annotations

import torch
from torch import Tensor

from facetrain.errors import UserError
from facetrain.kernels.mining import MAX_TRIPLETS, Triplets, mine_triplets
from facetrain.train.miners.base import Miner


class AllTriplets(Miner):
    """Every (anchor, positive, negative) with d²(a,n) < d²(a,p) + margin.

    There can be N·(K − 1)·(N − K) of them, 10 million at N = 640 photographs, K = 25 of each person.

    max_triplets: with more than so many, 24 bytes each, the training ends with a line that says how many there are.
    """

    def __init__(self, *, max_triplets: int = MAX_TRIPLETS) -> None:
        super().__init__()
        if max_triplets < 1:
            raise UserError(f"max_triplets = {max_triplets}: choose 1 or more")
        self.max_triplets = max_triplets

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
            margin=margin,
            num_anchors=num_anchors,
            strategy="all",
            max_triplets=self.max_triplets,
        )
