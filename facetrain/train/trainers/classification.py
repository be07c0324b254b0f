"""Training by classification of the training people: softmax, and softmax with a margin."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from facetrain.batch import Batch
from facetrain.errors import UserError
from facetrain.train.losses.base import is_head, make_loss
from facetrain.train.losses.dense_head import DenseHead
from facetrain.train.losses.head import Head
from facetrain.train.trainers.base import Trainer
from facetrain.train.trainers.collapse import collapse_line


class ClassificationTrainer(Trainer):
    """A head with one weight vector for each person of the training split; perhaps a loss over pairs beside it.

    Batches are drawn from a shuffled order of all photographs. With ``people``, so many people × ``images`` are drawn
    for each batch, and random photographs of others, single ones included, fill it up to ``batch_size``: then a batch
    has pairs, which a pair loss can compare. A head learns from each photograph who it is, a pair loss from each pair
    what may differ between photographs of one person: on few photographs of many people, together they learn more than
    either alone.

    loss: the head, a name of the family "losses". loss_args: what it takes. batch_size: photographs in a batch.
    margin_ramp: share of the training in which the margin rises from 0 to its full size. pair_loss, pair_loss_args: of
    the same family; what it gives is added ``pair_weight`` times. sampled_classes: share of the people whose weights take
    part in a step, those in the batch and random others; below 1 a step costs as much less, of memory for gradients too
    ("Partial FC", An et al. 2021). For hundreds of thousands of people.

    Statistics: those of both losses; with a pair loss, ``loss_head`` and ``loss_pairs`` too, the latter not weighted.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        loss: str = "softmax",
        loss_args: dict[str, Any] | None = None,
        batch_size: int = 128,
        margin_ramp: float = 0.0,
        people: int = 0,
        images: int = 4,
        pair_loss: str | None = None,
        pair_loss_args: dict[str, Any] | None = None,
        pair_weight: float = 1.0,
        sampled_classes: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= margin_ramp <= 1:
            raise UserError(f"margin_ramp = {margin_ramp:g}: choose a share of the training, from 0 to 1")
        if batch_size < 2:
            raise UserError(f"{batch_size} photographs in a batch: choose 2 or more, which batch-norm needs")
        if people < 0 or people * images > batch_size:
            raise UserError(
                f"{people} people × {images} photographs in a batch of {batch_size}: choose fewer, or a larger "
                f"batch_size"
            )
        if pair_loss is not None and not people:
            raise UserError("a pair_loss needs pairs: set people and images, such as people = 16, images = 4")
        if pair_loss is None and (pair_loss_args or pair_weight != 1):
            raise UserError(
                'pair_loss_args and pair_weight are of a pair_loss: set one, such as pair_loss = "supcon"'
            )
        if not pair_weight > 0:
            raise UserError(f"pair_weight = {pair_weight:g}: choose a number above 0")
        given = {"num_classes": num_classes, "embedding_dim": embedding_dim}
        self.embedding_dim = embedding_dim
        self.loss = make_loss(loss, loss_args, **given)
        self.pair_loss = make_loss(pair_loss, pair_loss_args, **given) if pair_loss is not None else None
        if not is_head(loss):
            raise UserError(
                f"'{loss}' compares photographs and knows no people, which a head has to: take a head (cosface, say), or "
                f"trainer metric for this loss"
            )
        if pair_loss is not None and is_head(pair_loss):
            raise UserError(
                f"'{pair_loss}' is a head: a pair_loss compares photographs with one another, such as supcon"
            )
        if not 0 < sampled_classes <= 1:
            raise UserError(
                f"sampled_classes = {sampled_classes:g}: choose a share of the people above 0, 1 at most"
            )
        if sampled_classes < 1:
            if not isinstance(self.loss, Head) or isinstance(self.loss, DenseHead):
                raise UserError(
                    f"'{loss}' has to see all people: leave out sampled_classes, or take another head"
                )
            self.loss.sampled_classes = sampled_classes
        self.batch_size, self.people, self.images = batch_size, people, images
        self.margin_ramp, self.pair_weight = margin_ramp, pair_weight
        self.sampler = "people" if people else "shuffled"

    def sampler_args(self) -> dict[str, Any]:
        if self.people:
            return {
                "people_per_batch": self.people,
                "images_per_person": self.images,
                "extra_negatives": self.batch_size - self.people * self.images,
            }
        # A last batch of a few would leave batch-norm little to go by.
        return {"batch_size": self.batch_size, "drop_last": True}

    def before_step(self, progress: float) -> None:
        share = min(1.0, progress / self.margin_ramp) if self.margin_ramp else 1.0
        for loss in (self.loss, self.pair_loss):
            if loss is not None:
                loss.margin_share = share

    def forward(
        self, embeddings: Tensor, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, stats = self.loss(embeddings, batch.labels, generator)
        if self.pair_loss is None:
            return loss, stats
        self.pair_loss.most_alike = batch.most_alike
        of_pairs, pair_stats = self.pair_loss(embeddings, batch.labels, generator, batch.num_anchors)
        parts = {"loss_head": loss.detach(), "loss_pairs": of_pairs.detach()}
        return loss + self.pair_weight * of_pairs, {**pair_stats, **stats, **parts}

    def trouble(self, stats: dict[str, float]) -> str | None:
        return collapse_line(stats, self.embedding_dim, "a smaller pair_weight")  # without a pair loss, None


arcface_trainer = functools.partial(ClassificationTrainer, loss="arcface", margin_ramp=0.3)
arcface_trainer.__doc__ = (
    """`ClassificationTrainer` with ArcFace's head (Deng et al., CVPR 2019), its margin ramped up."""
)
