"""Multi-class N-pair loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from facetrain.kernels.unit import unit
from facetrain.train.losses.base import Loss
from facetrain.train.losses.checks import within
from facetrain.train.losses.pairs import connected_zero, embedding_std, mean_where


class NPair(Loss):
    """A pair of photographs of each person, drawn from the batch: mean over persons i of ln(1 + Σ_{j≠i} exp(f_i·f⁺_j −
    f_i·f⁺_i)), f_i the embedding of the one photograph and f⁺_i that of the other: which of all f⁺ is its partner?

    The embeddings are not scaled to length 1: made for networks without a batch-norm at the end. Behind one (iresnet, the
    zoo), |f|² is the number of dimensions for all and l2_weight idles. l2_weight: of a quarter of the mean of |f|² + |f⁺|²,
    which keeps them short. Extra negatives are further f⁺. Two photographs of each person are enough; of more, two at
    random.

    Source: Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NIPS 2016. l2_weight is
    TensorFlow's, 0.002.

    Statistics: ``similarity_positive``, ``similarity_negative``, mean dot products, and ``embedding_std``, which is of
    the embeddings scaled to length 1, as everywhere.
    """

    def __init__(self, *, l2_weight: float = 0.002) -> None:
        super().__init__()
        self.l2_weight = within("l2_weight", l2_weight, 0, 1e6)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
        num_anchors: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        num_anchors = len(labels) if num_anchors is None else num_anchors
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
            anchor_P, positive_P = draw_pairs(labels[:num_anchors], generator)
            extra = torch.arange(num_anchors, len(labels), device=labels.device)
            columns_Q = torch.cat([positive_P, extra])
            dots_PQ = embeddings[anchor_P] @ embeddings[columns_Q].T
            partner_P = torch.arange(len(anchor_P), device=labels.device)
            own_PQ = torch.zeros_like(dots_PQ, dtype=torch.bool)
            own_PQ[partner_P, partner_P] = True
            # An extra photograph of the same person is no negative.
            negative_PQ = labels[anchor_P, None] != labels[columns_Q]
            loss = connected_zero(embeddings)
            if len(anchor_P) and len(columns_Q) > 1:
                logits_PQ = dots_PQ.masked_fill(~(own_PQ | negative_PQ), -torch.inf)
                squares_N = embeddings.square().sum(dim=1)
                length = (squares_N[anchor_P] + squares_N[positive_P]).mean() / 4
                loss = loss + F.cross_entropy(logits_PQ, partner_P) + self.l2_weight * length
        with torch.no_grad():
            stats = {
                "similarity_positive": mean_where(dots_PQ, own_PQ),
                "similarity_negative": mean_where(dots_PQ, negative_PQ),
                "embedding_std": embedding_std(unit(embeddings)),
            }
        return loss, stats


def draw_pairs(labels: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Two rows of each label that has two or more, at random: int64 [P] twice, in order of the labels."""
    shuffled = torch.rand(len(labels), generator=generator, device=labels.device).argsort()
    rows = shuffled[labels[shuffled].argsort(stable=True)]
    of_rows = labels[rows]
    first = torch.ones_like(of_rows, dtype=torch.bool)
    first[1:] = of_rows[1:] != of_rows[:-1]
    pair = first[:-1] & ~first[1:]
    return rows[:-1][pair], rows[1:][pair]
