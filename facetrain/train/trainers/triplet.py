"""Triplet training, as FaceNet has it and OpenFace's guide corrects it."""

from __future__ import annotations

from typing import Any

from facetrain.train.losses.triplet import Triplet
from facetrain.train.trainers.collapse import collapse_line
from facetrain.train.trainers.metric import MetricTrainer


class TripletTrainer(MetricTrainer):
    """Triplets mined in each batch (Schroff, Kalenichenko and Philbin 2015; Amos, Ludwiczuk and Satyanarayanan 2016).

    One forward pass of one network over P people × K photographs; every anchor–positive pair; for each a negative at
    random among those that violate the margin; pairs that have none are dropped, and the loss is the mean over the
    rest. That is the default: ``miner`` names others.

    people, images: P and K. extra_negatives: random photographs of others added to each batch. memory: embeddings of
    earlier batches that are negatives too (`facetrain.train.trainers.cross_batch_memory`). margin: of squared
    Euclidean distances between unit vectors (0 to 4). miner, miner_args, distance, soft_margin, swap, average: see
    `facetrain.train.losses.triplet.Triplet`.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin: float = 0.2,
        people: int = 32,
        images: int = 8,
        extra_negatives: int = 0,
        memory: int = 0,
        miner: str = "all-violating-random",
        miner_args: dict[str, Any] | None = None,
        distance: str = "squared-euclidean",
        soft_margin: bool = False,
        swap: bool = False,
        average: str = "all",
    ) -> None:
        variant = {
            "margin": margin,
            "miner": miner,
            "miner_args": miner_args,
            "distance": distance,
            "soft_margin": soft_margin,
            "swap": swap,
            "average": average,
        }
        super().__init__(
            num_classes,
            embedding_dim,
            loss="triplet",
            loss_args=variant,
            people=people,
            images=images,
            extra_negatives=extra_negatives,
            memory=memory,
        )

    def trouble(self, stats: dict[str, float]) -> str | None:
        """Collapse: all embeddings alike, so that every distance is near 0 and the loss near the margin."""
        assert isinstance(self.loss, Triplet)
        near = abs(stats["loss"] - self.loss.collapsed_loss) < 0.05 * self.loss.collapsed_loss
        at = f" at margin {self.loss.margin:g}"
        return collapse_line(stats, self.embedding_dim, "more --people per batch", at) if near else None
