"""Training by any loss over the pairs of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from facetrain.batch import Batch
from facetrain.errors import UserError
from facetrain.kernels.gather import gather
from facetrain.train.losses.base import is_head, make_loss
from facetrain.train.trainers.base import Trainer
from facetrain.train.trainers.collapse import collapse_line
from facetrain.train.trainers.cross_batch_memory import CrossBatchMemory


class MetricTrainer(Trainer):
    """Batches of P people × K photographs, and a loss over their embeddings.

    loss: a name of the family "losses": multi-similarity, contrastive, n-pair, infonce, supcon, circle, triplet, or a
    head. loss_args: what it takes. people, images: P and K. extra_negatives: random photographs of others added to each
    batch. memory: embeddings of earlier batches that are negatives too (`CrossBatchMemory`). In a process group of
    torch.distributed the loss is over the batches of all ranks.
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
        memory: int = 0,
    ) -> None:
        super().__init__()
        if memory < 0:
            raise UserError(f"a memory of {memory} embeddings: choose 0 or more")
        if extra_negatives < 0:
            raise UserError(f"{extra_negatives} extra negatives: choose 0 or more")
        self.loss = make_loss(loss, loss_args, num_classes=num_classes, embedding_dim=embedding_dim)
        if memory and is_head(loss):
            raise UserError(f"'{loss}' is a head, which compares photographs with weights: leave out memory")
        self.memory = CrossBatchMemory(memory, embedding_dim) if memory else None
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
        embeddings, labels, num_anchors = gather(embeddings), gather(batch.labels), batch.num_anchors
        if len(labels) > len(batch.labels):
            embeddings, labels, num_anchors = _anchors_first(
                embeddings, labels, num_anchors, len(batch.labels)
            )
            self.loss.most_alike = None
        else:
            self.loss.most_alike = batch.most_alike
        if self.memory is None:
            return self.loss(embeddings, labels, generator, num_anchors)
        result = self.loss(*self.memory.behind(embeddings, labels), generator, num_anchors)
        self.memory.add(embeddings, labels)
        return result

    def trouble(self, stats: dict[str, float]) -> str | None:
        return collapse_line(stats, self.embedding_dim, "more --people per batch")


def _anchors_first(
    embeddings: Tensor, labels: Tensor, num_anchors: int, rows_a_rank: int
) -> tuple[Tensor, Tensor, int]:
    """Gathered batches, each with extra negatives behind its anchors, as one batch of that form."""
    place = torch.arange(len(labels), device=labels.device) % rows_a_rank
    order = torch.cat([(place < num_anchors).nonzero()[:, 0], (place >= num_anchors).nonzero()[:, 0]])
    return embeddings[order], labels[order], num_anchors * (len(labels) // rows_a_rank)
