"""UniFace."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from facetrain.train.losses.checks import within
from facetrain.train.losses.dense_head import DenseHead
from facetrain.train.losses.head import Targets
from facetrain.train.losses.heads.binary import binary_losses


class UniFace(DenseHead):
    """For each class a question of its own, yes or no, with one learned threshold b for all of them.

    own class: ln(1 + exp(−(scale · (cos θ − margin) − b))); every other one: ln(1 + exp(scale · cos θ_j − b)); their
    sum. b begins at ln(10 C). A softmax wants the own cosine above the others of the same photograph; this wants all
    own cosines above all others, as verification with one threshold does.

    Source: Zhou et al., "UniFace: Unified Cross-Entropy Loss for Deep Face Recognition", ICCV 2023; defaults: the
    authors' code's, without its clipping of the logits to ± scale.

    margin_cos: subtracted from the cosine.
    """

    def __init__(
        self, num_classes: int, embedding_dim: int, *, margin_cos: float = 0.4, scale: float = 64.0
    ) -> None:
        super().__init__(num_classes, embedding_dim, scale)
        self.margin_cos = within("margin_cos", margin_cos, 0, 1)
        self.bias = nn.Parameter(torch.tensor([math.log(10 * num_classes)]))

    def target(self, targets: Targets) -> Tensor:
        return targets.cos_B - self.margin_share * self.margin_cos

    def row_losses(self, logits_BC: Tensor, targets: Targets) -> Tensor:
        own_B, others_B = binary_losses(logits_BC - self.bias.to(logits_BC.dtype), targets.labels_B)
        return own_B + others_B

    def stats(self, targets: Targets) -> dict[str, Tensor]:
        return {"bias": self.bias[0].clone()}
