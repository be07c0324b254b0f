"""SimCLR: learning from photographs alone, without knowing who is on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from facetrain.batch import Batch
from facetrain.errors import UserError
from facetrain.train.losses.base import make_loss
from facetrain.train.trainers.base import Trainer
from facetrain.train.trainers.collapse import collapse_line


class SimclrTrainer(Trainer):
    """Several augmented views of each photograph, to be told from the views of all others.

    The labels play no part: two photographs of one person count as different. Between the embedding and the loss is a
    small network, the projection, which is left behind at the end: what only serves to tell photographs apart stays in
    it. A strong augmentation is what there is to learn from (``--augment 2``, say).

    loss, loss_args: of the family "losses", with photographs as labels; ``infonce`` is the paper's NT-Xent.
    batch_size: photographs in a batch. views: of each. projection_dim: what the projection leads to; 0: none.
    projection_hidden: width of its one hidden layer; None: the embedding's.

    Source: Chen, Kornblith, Norouzi and Hinton, "A Simple Framework for Contrastive Learning of Visual
    Representations", ICML 2020.
    """

    sampler = "views"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        loss: str = "infonce",
        loss_args: dict[str, Any] | None = None,
        batch_size: int = 128,
        views: int = 2,
        projection_dim: int = 128,
        projection_hidden: int | None = None,
    ) -> None:
        super().__init__()
        if views < 2:
            raise UserError(f"{views} views of each photograph: choose 2 or more, which are then compared")
        if batch_size < 2:
            raise UserError(
                f"{batch_size} photographs in a batch: choose 2 or more, which are then told apart"
            )
        if projection_dim < 0 or (projection_hidden is not None and projection_hidden < 1):
            raise UserError(
                "projection_dim, projection_hidden: choose widths above 0 (projection_dim 0: none)"
            )
        self.loss = make_loss(loss, loss_args)
        self.batch_size, self.views = batch_size, views
        self.projection_dim = projection_dim or embedding_dim
        hidden = projection_hidden or embedding_dim
        self.projection = (
            nn.Sequential(nn.Linear(embedding_dim, hidden), nn.ReLU(), nn.Linear(hidden, projection_dim))
            if projection_dim
            else nn.Identity()
        )

    def sampler_args(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, "views": self.views}

    def forward(
        self, embeddings: Tensor, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        photographs = batch.rows.to(embeddings.device, non_blocking=True)
        return self.loss(self.projection(embeddings), photographs, generator)

    def trouble(self, stats: dict[str, float]) -> str | None:
        return collapse_line(stats, self.projection_dim, "a larger batch_size")
