"""What the pair losses share: each looks at the cosines between the photographs of a batch.

Shapes: N rows of the batch, A anchors among them (the first ``num_anchors``), D embedding_dim.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from facetrain.kernels.unit import unit
from facetrain.train.losses.base import Loss


class PairLoss(Loss):
    """A loss of the cosines between anchors and all rows; a subclass does the maths, `of_pairs`.

    Positives are other anchors of the same label, negatives all rows of another, the extra ones included. A batch
    without any positive pair, or without any negative one, has a loss of 0: to pull together what nothing pushes
    apart would only make all embeddings alike.

    Computed in float32, or float64 if the embeddings are. Statistics: ``similarity_positive``,
    ``similarity_negative``, mean cosines of the pairs, and ``embedding_std`` (see `embedding_std`).
    """

    @abstractmethod
    def of_pairs(self, cos_AN: Tensor, positive_AN: Tensor, negative_AN: Tensor) -> Tensor:
        """The loss, a scalar, of cosines and of who is whose positive and negative (bool). Rows of either may be
        without any; its value and gradient must be finite."""

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
        num_anchors: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(embeddings.device.type, enabled=False):
            zero = connected_zero(embeddings)
            embeddings = unit(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)))
            positive_AN, negative_AN = positives_and_negatives(labels, num_anchors)
            cos_AN = embeddings[: len(positive_AN)] @ embeddings.T
            comparable = positive_AN.any() & negative_AN.any()
            loss = torch.where(comparable, self.of_pairs(cos_AN, positive_AN, negative_AN), 0)
        with torch.no_grad():
            stats = {
                "similarity_positive": mean_where(cos_AN, positive_AN),
                "similarity_negative": mean_where(cos_AN, negative_AN),
                "embedding_std": embedding_std(embeddings),
            }
        return loss + zero, stats


def connected_zero(embeddings: Tensor) -> Tensor:
    """0 as a function of the embeddings: a gradient of zeros reaches them. NaN where one of them is not finite, which
    scaling to length 1 and looking for pairs could hide."""
    return (0 * embeddings).sum()


def positives_and_negatives(labels: Tensor, num_anchors: int | None) -> tuple[Tensor, Tensor]:
    """Who is whose positive, and whose negative: bool [A, N] twice. ``labels``: int64 [N]."""
    num_anchors = len(labels) if num_anchors is None else num_anchors
    same_AN = labels[:num_anchors, None] == labels[None, :]
    positive_AN = same_AN.clone()
    positive_AN[:, num_anchors:] = False
    positive_AN.fill_diagonal_(False)
    return positive_AN, ~same_AN


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of the values at which ``mask`` (bool, like them) is true; 0 where it nowhere is. Waits for nothing."""
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp_min(1)


def logsumexp_where(values_AN: Tensor, mask_AN: Tensor) -> Tensor:
    """ln Σ exp over the values of each row at which ``mask_AN`` (bool) is true: [A].

    For a row without any: a number so low that its exp is 0, with a gradient of zeros, where ln 0 would have NaN.
    """
    lowest = torch.finfo(values_AN.dtype).min / 4
    if not values_AN.shape[1]:
        return values_AN.new_full((len(values_AN),), lowest)
    return values_AN.masked_fill(~mask_AN, lowest).logsumexp(dim=1)


def embedding_std(embeddings: Tensor) -> Tensor:
    """Mean over the dimensions of the standard deviation over the rows; 0 for no rows.

    Unit vectors spread evenly have 1/√D; near 0 all photographs are embedded alike: training has collapsed.
    """
    if not len(embeddings):
        return embeddings.new_zeros(())
    return embeddings.std(dim=0, correction=0).mean()
