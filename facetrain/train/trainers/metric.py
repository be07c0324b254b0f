"""Training by any loss over the pairs of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from facetrain.batch import Batch
from facetrain.errors import UserError
from facetrain.train.losses.base import make_loss
from facetrain.train.trainers.base import Trainer
from facetrain.train.trainers.collapse import collapse_line


class MetricTrainer(Trainer):
    """Batches of P people × K photographs, and a loss over their embeddings.

    loss: a name of the family "losses": multi-similarity, contrastive, n-pair, infonce, supcon, circle, triplet, or a
    head. loss_args: what it takes. people, images: P and K. extra_negatives: random photographs of others added to each
    batch.
    """

    sampler = "people"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        loss: str = "multi-similarity",
        loss_args: dict[str, Any] | None = None,
        people: int = 32,
        images: int = 8,
        extra_negatives: int = 0,
    ) -> None:
        super().__init__()
        if extra_negatives < 0:
            raise UserError(f"{extra_negatives} extra negatives: choose 0 or more")
        self.loss = make_loss(loss, loss_args, num_classes=num_classes, embedding_dim=embedding_dim)
        self.embedding_dim = embedding_dim
        self.people, self.images, self.extra_negatives = people, images, extra_negatives

    def sampler_args(self) -> dict[str, Any]:
        return {
            "people_per_batch": self.people,
            "images_per_person": self.images,
            "extra_negatives": self.extra_negatives,
        }

    def forward(
        self, embeddings: Tensor, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(embeddings, batch.labels, generator, batch.num_anchors)

    def trouble(self, stats: dict[str, float]) -> str | None:
        return collapse_line(stats, self.embedding_dim, "more --people per batch")
