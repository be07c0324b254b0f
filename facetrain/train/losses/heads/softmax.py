"""Plain softmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facetrain.kernels.over_classes import Block, Logits, entries, own_and_others
from facetrain.kernels.unit import unit
from facetrain.train.losses.head import Head, in_full_precision, mean


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
            classes_S, own_B = self.taking_part(labels, generator)
            parts: list[Tensor] = [self.weight, self.bias]
            if classes_S is not None:
                parts = [entries(part, classes_S) for part in parts]
            embeddings_BD, weight = in_full_precision(embeddings, parts[0])
            bias = parts[1].to(weight.dtype)

            def logits_of(rows_BD: Tensor, weight_cD: Tensor, bias_c: Tensor | None) -> tuple[Tensor, Tensor]:
                logits_Bc = F.linear(rows_BD, weight_cD, bias_c)
                return logits_Bc, logits_Bc

            block = Block(logits_of, Logits(normalised=False))
            own_BD, others_B, nearest_B = own_and_others(embeddings_BD, weight, bias, own_B, lambda _: block)
            loss = mean(F.softplus(others_B - (embeddings_BD * own_BD).sum(1) - bias[own_B]))
            with torch.no_grad():
                cos_B = (unit(embeddings_BD) * unit(own_BD)).sum(1)
                stats = {
                    "train_accuracy": mean((nearest_B == own_B).to(cos_B.dtype)),
                    "cos_target": mean(cos_B),
                }
        return loss, stats
