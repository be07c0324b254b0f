"""Training by classification of the training people: softmax, and softmax with a margin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from facetrain.batch import Batch
from facetrain.errors import UserError
from facetrain.plugins import make
from facetrain.train.losses.base import Loss
from facetrain.train.trainers.base import Trainer


class ClassificationTrainer(Trainer):
    """Every photograph once an epoch, a head with one weight vector for each person of the training split.

    loss: the head, a name of the family "losses". loss_args: what it takes. batch_size: photographs in a batch.
    margin_ramp: share of the training in which the head's margin rises from 0 to its full size.
    """

    sampler = "shuffled"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        loss: str = "softmax",
        loss_args: dict[str, Any] | None = None,
        batch_size: int = 128,
        margin_ramp: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= margin_ramp <= 1:
            raise UserError(f"margin_ramp = {margin_ramp:g}: choose a share of the training, from 0 to 1")
        self.loss: Loss = make(
            "losses", loss, loss_args or {}, num_classes=num_classes, embedding_dim=embedding_dim
        )
        self.batch_size, self.margin_ramp = batch_size, margin_ramp

    def sampler_args(self) -> dict[str, Any]:
        # A last batch of a few would leave batch-norm little to go by.
        return {"batch_size": self.batch_size, "drop_last": True}

    def before_step(self, progress: float) -> None:
        self.loss.margin_share = min(1.0, progress / self.margin_ramp) if self.margin_ramp else 1.0

    def forward(
        self, embeddings: Tensor, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(embeddings, batch.labels, generator)


class ArcFaceTrainer(ClassificationTrainer):
    """Margin softmax: `ClassificationTrainer` with ArcFace's head (Deng et al., CVPR 2019) and its margin ramped up."""

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        loss: str = "arcface",
        loss_args: dict[str, Any] | None = None,
        batch_size: int = 128,
        margin_ramp: float = 0.3,
    ) -> None:
        super().__init__(
            num_classes,
            embedding_dim,
            loss=loss,
            loss_args=loss_args,
            batch_size=batch_size,
            margin_ramp=margin_ramp,
        )
