"""The contract of a miner."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from facetrain.kernels.mining import Triplets


class Miner(nn.Module):
    """Chooses triplets (anchor, positive, negative) within a batch. Constructed as ``Miner(**miner_args)``.

    A module, so that what it may remember (buffers: a memory bank, say) is saved and resumed with the loss that has it.
    ``most_alike``: see `facetrain.train.losses.base.Loss`; the loss sets it.
    """

    most_alike: int | None = None

    def __init__(self) -> None:  # nn.Module's takes anything, and then fails on it
        super().__init__()

    @abstractmethod
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        margin: float,
        generator: torch.Generator | None = None,
        num_anchors: int | None = None,
    ) -> Triplets:
        """Row numbers of the triplets, and how many pairs were looked at; nothing of it carries a gradient.

        embeddings: float [n, embedding_dim], unit vectors. labels: int64 [n]. margin: of d², the squared L2 distance;
        infinite where every negative counts as a violator. ``generator``, on the embeddings' device: all chance comes
        from it. ``num_anchors``: only rows before it are anchors and positives; None stands for all.

        In every triplet the positive has the anchor's label and is another row, and the negative has another label.
        Without any, the three are empty.
        """
