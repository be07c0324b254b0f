"""Plain softmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facetrain.train.losses.head import Head, mean
from facetrain.train.losses.unit import unit


class Softmax(Head):
    """Cross-entropy over W x + b, of raw embeddings and weights: no cosines, no scale, no margin.

    Initialised as a linear layer of PyTorch's, with b = 0.
    """

    def __init__(self, num_classes: int, embedding_dim: int) -> None:
        super().__init__(num_classes, embedding_dim, scale=1.0)
        nn.init.uniform_(self.weight, -(embedding_dim**-0.5), embedding_dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
        num_anchors: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Head.forward`; ``train_accuracy`` is of the largest logit."""
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings_BD, weight_CD = self.in_full_precision(embeddings)
            logits_BC = F.linear(embeddings_BD, weight_CD, self.bias.to(weight_CD.dtype))
            loss = mean(F.cross_entropy(logits_BC, labels, reduction="none"))
            with torch.no_grad():
                cos_B = (unit(embeddings_BD) * unit(weight_CD[labels])).sum(1)
                stats = {
                    "train_accuracy": mean((logits_BC.argmax(1) == labels).to(cos_B.dtype)),
                    "cos_target": mean(cos_B),
                }
        return loss, stats
