"""Triplet loss over mined triplets.

Source: Schroff et al., "FaceNet", CVPR 2015; Amos et al., "OpenFace", 2016.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from facetrain.kernels.mining import Triplets


@dataclass(frozen=True)
class TripletLoss:
    """What one batch gave: every field a scalar tensor on the embeddings' device, all but ``loss`` detached.

    ``active_fraction``: triplets per anchor–positive pair; near 0 the batch has little left to teach.
    ``distance_positive``, ``distance_negative``: mean d² of the triplets' two sides; 0 when there are none.
    ``embedding_std``: mean over dimensions of the standard deviation over the batch. Unit vectors spread
    evenly have 1/√D; near 0 all photographs are embedded alike: training has collapsed.
    """

    loss: Tensor
    active_fraction: Tensor
    distance_positive: Tensor
    distance_negative: Tensor
    embedding_std: Tensor


def triplet_loss(embeddings: Tensor, triplets: Triplets, *, margin: float) -> TripletLoss:
    """Mean over triplets of max(0, d²(a,p) − d²(a,n) + margin), d² the squared L2 distance.

    ``embeddings``: [N, D] float, L2-normalised by the caller, float32 or wider for the sake of small
    distances. ``margin``: in units of d². Without triplets the loss is 0 and its gradient zeros. Nothing here
    waits for the device.
    """
    anchor_TD = embeddings[triplets.anchor]
    positive_T = (anchor_TD - embeddings[triplets.positive]).square().sum(1)
    negative_T = (anchor_TD - embeddings[triplets.negative]).square().sum(1)
    count = max(len(triplets), 1)
    loss = (positive_T - negative_T + margin).clamp_min(0).sum() / count
    with torch.no_grad():
        return TripletLoss(
            loss=loss,
            active_fraction=loss.new_tensor(len(triplets) / max(triplets.num_pairs, 1)),
            distance_positive=positive_T.sum() / count,
            distance_negative=negative_T.sum() / count,
            embedding_std=embeddings.std(dim=0, correction=0).mean(),
        )
