"""The contract of a trainer."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from facetrain.batch import Batch


class Trainer(nn.Module):
    """A loss over a batch of embeddings, and how batches are drawn for it.

    Parameters and buffers of a trainer (a head's class weights, say) are optimised and saved with the network's.
    Constructed as ``Trainer(num_classes=…, embedding_dim=…, **trainer_args)``, so that class counts come from the data.
    """

    sampler: str  # a name of the plug-in family "samplers"

    def sampler_args(self) -> dict[str, Any]:
        """Keyword arguments of the sampler."""
        return {}

    def attach(self, backbone: nn.Module) -> None:
        """Called once, before the optimiser is made: the place to copy the network, for one that follows it."""

    def before_step(self, progress: float) -> None:
        """Called before each step; ``progress`` is the share of the training's steps that is done, 0 to below 1."""

    def embed(self, backbone: nn.Module, batch: Batch) -> Tensor:
        """Raw embeddings [n, embedding_dim] of the batch; runs under autocast where the training does."""
        embeddings: Tensor = backbone(batch.images)
        return embeddings

    def after_step(self, backbone: nn.Module) -> None:
        """Called after each step of the optimiser: the place for moving averages."""

    @abstractmethod
    def forward(
        self, embeddings: Tensor, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (a scalar) and its statistics (detached scalars, by name).

        embeddings: float32 [n, embedding_dim], what `embed` returned, raw. ``generator`` (on the training device) is seeded for this step: all chance
        must come from it, so that a resumed run equals an uninterrupted one.
        """

    def trouble(self, stats: dict[str, float]) -> str | None:
        """One line when the statistics of a step show that the training is going wrong; else None."""
        return None
