"""A moving average of a network's weights: one network more in memory, often better than any that it averages."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of all weights and running statistics, in ``network``.

    Step t (from 0) counts with 1 − min(decay, (1 + t)/(10 + t)), so that the first weights, which were random, are soon
    forgotten (Polyak and Juditsky 1992; the warm-up as TensorFlow has it).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay = copy.deepcopy(network).requires_grad_(False), decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights as step ``step`` left them."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        pairs = list(zip(_tensors(self.network), _tensors(network), strict=True))
        floats = [pair for pair in pairs if pair[1].is_floating_point()]
        torch._foreach_lerp_([average for average, _ in floats], [now for _, now in floats], share)
        for average, now in pairs:
            if not now.is_floating_point():  # counters
                average.copy_(now)


def _tensors(network: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once, however many names it has."""
    return [*network.parameters(), *network.buffers()]
