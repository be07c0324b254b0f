"""A yes-or-no question for each class, in place of a softmax over all of them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def binary_losses(logits_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """[B], [B]: ln(1 + exp(−logit)) of the own class, and the sum of ln(1 + exp(logit)) over the others."""
    own_B1 = labels_B[:, None]
    others_BC = -F.logsigmoid(-logits_BC).scatter(1, own_B1, 0.0)
    return -F.logsigmoid(logits_BC.gather(1, own_B1))[:, 0], others_BC.sum(1)
