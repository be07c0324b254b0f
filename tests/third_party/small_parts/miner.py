"""Distance-weighted sampling (Wu et al., "Sampling matters in deep embedding learning", ICCV 2017)."""

import torch

from facetrain.kernels.distances import squared_distances
from facetrain.kernels.mining import Triplets
from facetrain.train.miners.base import Miner


class DistanceWeighted(Miner):
    """For each pair a negative, drawn so that all distances are equally likely, from those that violate the margin.

    On the unit sphere in D dimensions most vectors are √2 apart, so a uniform draw hardly ever sees a close one. The
    weight of a negative at distance d is 1/q(d), q(d) ∝ d^(D−2)·(1 − d²/4)^((D−3)/2). Distances below ``nearest`` count
    as that (their weights would be noise); those from ``farthest`` on are left out.
    """

    def __init__(self, *, nearest: float = 0.5, farthest: float = 1.4) -> None:
        super().__init__()
        self.nearest, self.farthest = nearest, farthest

    @torch.no_grad()
    def forward(self, embeddings, labels, *, margin, generator=None, num_anchors=None):
        num_anchors = len(labels) if num_anchors is None else num_anchors
        distances = squared_distances(embeddings[:num_anchors], embeddings)  # [anchors, n]
        same = labels[:num_anchors, None] == labels
        pairs = same[:, :num_anchors].clone().fill_diagonal_(False)
        anchor, positive = pairs.nonzero(as_tuple=True)

        d = distances.sqrt().clamp(self.nearest, self.farthest)
        dim = embeddings.shape[1]
        log_q = (dim - 2) * d.log() + (dim - 3) / 2 * (1 - d.square() / 4).log()
        usable = ~same & (distances < self.farthest**2)
        log_weights = (-log_q).masked_fill(~usable, -torch.inf)[anchor]  # [pairs, n]
        violates = distances[anchor] - distances[anchor, positive][:, None] < margin
        log_weights = log_weights.masked_fill(~violates, -torch.inf)

        has_one = (log_weights > -torch.inf).any(1)
        weights = log_weights[has_one].softmax(1)
        negative = (
            labels[:0] if not len(weights) else torch.multinomial(weights, 1, generator=generator)[:, 0]
        )
        return Triplets(anchor[has_one], positive[has_one], negative, num_pairs=len(anchor))
