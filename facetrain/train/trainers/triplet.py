"""Triplet training, as FaceNet has it and OpenFace's guide corrects it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from facetrain.batch import Batch
from facetrain.errors import UserError
from facetrain.kernels.mining import mine_triplets
from facetrain.train.losses.triplet import triplet_loss
from facetrain.train.trainers.base import Trainer


class TripletTrainer(Trainer):
    """Triplets mined in each batch (Schroff, Kalenichenko and Philbin 2015; Amos, Ludwiczuk and Satyanarayanan 2016).

    One forward pass of one network over P people × K photographs; every anchor–positive pair; for each a negative at
    random among those that violate the margin; pairs that have none are dropped, and the loss is the mean over the
    rest.

    margin: of squared Euclidean distances between unit vectors (0 to 4). people, images: P and K. extra_negatives:
    random photographs of others added to each batch.
    """

    sampler = "people"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin: float = 0.2,
        people: int = 32,
        images: int = 8,
        extra_negatives: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < margin < 4:
            raise UserError(
                f"a margin of {margin:g}: squared distances of unit vectors reach 4, choose one such as 0.2"
            )
        if extra_negatives < 0:
            raise UserError(f"{extra_negatives} extra negatives: choose 0 or more")
        self.embedding_dim, self.margin = embedding_dim, margin
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
        embeddings = F.normalize(embeddings)
        triplets = mine_triplets(
            embeddings, batch.labels, margin=self.margin, generator=generator, num_anchors=batch.num_anchors
        )
        result = vars(triplet_loss(embeddings, triplets, margin=self.margin))
        stats = {name: value for name, value in result.items() if name != "loss"}
        return result["loss"], stats | {"margin": embeddings.new_tensor(self.margin)}

    def trouble(self, stats: dict[str, float]) -> str | None:
        """Collapse: all embeddings alike, so that every distance is near 0 and the loss near the margin."""
        spread = (
            stats["embedding_std"] * self.embedding_dim**0.5
        )  # about 1 for unit vectors in all directions
        if spread < 0.05 and abs(stats["loss"] - self.margin) < 0.05 * self.margin:
            return (
                f"training has collapsed: every photograph gets the same embedding (loss {stats['loss']:.3f} at margin "
                f"{self.margin:g}): start again with a lower --lr, or more --people per batch"
            )
        return None
