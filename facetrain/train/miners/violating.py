"""A negative for every anchor–positive pair that has one which violates the margin."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from facetrain.kernels.mining import Strategy, Triplets, mine_triplets
from facetrain.train.miners.base import Miner


class _Violating(Miner):
    """Every ordered pair of an anchor and a positive; pairs without a violator are dropped."""

    strategy: ClassVar[Strategy]

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
            generator=generator,
            num_anchors=num_anchors,
            strategy=self.strategy,
        )


class AllViolatingRandom(_Violating):
    """A negative at random among all with d²(a,n) < d²(a,p) + margin, those closer than the positive included.

    Source: Amos et al., "OpenFace", 2016.
    """

    strategy = "all-violating-random"


class SemiHard(_Violating):
    """A negative at random among those with d²(a,p) < d²(a,n) < d²(a,p) + margin.

    Source: Schroff et al., "FaceNet", CVPR 2015, section 3.2.
    """

    strategy = "semihard"


class Hardest(_Violating):
    """The closest negative, where d²(a,n) < d²(a,p) + margin. Early on this can pull all embeddings together."""

    strategy = "hardest"
