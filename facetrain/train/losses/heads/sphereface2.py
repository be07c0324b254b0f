"""SphereFace2."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from facetrain.train.losses.checks import positive, within
from facetrain.train.losses.dense_head import DenseHead
from facetrain.train.losses.head import Targets
from facetrain.train.losses.heads.binary import binary_losses


class SphereFace2(DenseHead):
    """For each class a question of its own, yes or no, in place of a softmax over all of them (variant C).

    own class: (balance / scale) · ln(1 + exp(−(scale · (g(cos θ) − margin) + b))); every other one:
    ((1 − balance) / scale) · ln(1 + exp(scale · (g(cos θ_j) + margin) + b)); their sum times loss_factor.
    g(c) = 2 ((c + 1) / 2)^t − 1 spreads the cosines; b is learned, and begins where, with the whole margin,
    its gradient is 0 while all cosines are 0.

    Source: Wen et al., "SphereFace2", ICLR 2022; defaults and loss_factor: the authors' code's. That code takes ∂g/∂c
    to be 1; here it is exact.

    margin_cos: subtracted from g(cos θ) at the own class, added at others. balance: the paper's λ. scale: its r.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin_cos: float = 0.4,
        balance: float = 0.7,
        t: float = 3.0,
        scale: float = 40.0,
        loss_factor: float = 50.0,
    ) -> None:
        super().__init__(num_classes, embedding_dim, scale)
        self.margin_cos = within("margin_cos", margin_cos, 0, 1)
        self.balance = within("balance", balance, 0.001, 0.999)
        self.t, self.loss_factor = within("t", t, 1, 100), positive("loss_factor", loss_factor)
        self.bias = nn.Parameter(torch.tensor([self._first_bias(num_classes)]))

    def _first_bias(self, num_classes: int) -> float:
        # With v = exp(b + scale · (g(0) + margin)), z = λ / ((1 − λ)(C − 1)) and q = exp(−2 · scale · margin), the
        # gradient's root is that of q v² + (1 − z) v − z = 0; of its two forms the one without cancellation.
        z = self.balance / ((1 - self.balance) * max(num_classes - 1, 1))
        log_q = -2 * float(self.scale) * self.margin_cos
        root = math.sqrt((1 - z) ** 2 + 4 * z * math.exp(log_q))
        log_v = math.log(2 * z / (1 - z + root)) if z < 1 else math.log((z - 1 + root) / 2) - log_q
        return log_v - float(self.scale) * (2 * 0.5**self.t - 1 + self.margin_cos)

    def target(self, targets: Targets) -> Tensor:
        return self._spread(targets.cos_B) - self.margin_share * self.margin_cos

    def others(self, cos_BC: Tensor, targets: Targets, target_B: Tensor) -> Tensor:
        return self._spread(cos_BC) + self.margin_share * self.margin_cos

    def row_losses(self, logits_BC: Tensor, targets: Targets) -> Tensor:
        own_B, others_B = binary_losses(logits_BC + self.bias.to(logits_BC.dtype), targets.labels_B)
        return self.loss_factor / self.scale * (self.balance * own_B + (1 - self.balance) * others_B)

    def stats(self, targets: Targets) -> dict[str, Tensor]:
        return {"bias": self.bias[0].clone()}

    def _spread(self, cos: Tensor) -> Tensor:
        return 2 * ((cos + 1) / 2) ** self.t - 1
