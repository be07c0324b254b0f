"""What the heads share. A head keeps one weight vector for each person of the training and classifies by cosine.

Shapes: B rows of the batch, C classes, D embedding_dim, K sub-centres of a class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facetrain.train.losses.base import Loss
from facetrain.train.losses.checks import positive
from facetrain.train.losses.unit import unit


@dataclass(frozen=True)
class Targets:
    """The rows as seen from their own classes: all that most heads look at. O(B), whatever the number of classes.

    cos_B: cosine of the angle θ to the weight of the row's own class, in [-1, 1]. norm_B: length of the raw embedding.
    labels_B: int64. generator: where chance comes from.
    """

    cos_B: Tensor
    norm_B: Tensor
    labels_B: Tensor
    generator: torch.Generator | None


class Head(Loss):
    """Cross-entropy over ``scale`` · cosines, the own class's cosine replaced by a lesser one: softmax with a margin.

    ``weight``: [C, D]. With nothing overridden this is NormFace. A subclass says

    - `target`: what takes the place of cos θ at the row's own class (elementwise, O(B));
    - `others`, if it reweights the other classes: their cosines, given the own one's;
    - `extra`, if it adds a term to the loss; `observe`, if it follows the training; `stats`, what it has to show.

    A head that overrides no other method changes the own column alone, so that the log-sum-exp over the classes need
    not know the head. `observe_all`, `cosines`, `logits` and `row_losses` are for heads that differ in more.

    Every margin is multiplied by ``margin_share``; at 0 there is none. All is computed in float32, or float64 if the
    embeddings or weights are; also under autocast.
    """

    scale: float | Tensor

    def __init__(self, num_classes: int, embedding_dim: int, scale: float) -> None:
        super().__init__()
        self.scale = positive("scale", scale)
        # Short rows, as insightface has them: only their direction counts, and the shorter, the further a step turns it.
        self.weight = nn.Parameter(torch.empty(num_classes, embedding_dim))
        nn.init.normal_(self.weight, std=0.01)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
        num_anchors: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the rows, as `Loss` says.

        Statistics: ``train_accuracy``, share of rows whose nearest weight is their own class's, before the margin;
        ``cos_target``, mean cosine to it; and the head's own.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings_BD, weight = self.in_full_precision(embeddings)
            cos_BC = self.cosines(unit(embeddings_BD), unit(weight)).clamp(-1, 1)
            targets = Targets(
                cos_B=cos_BC.gather(1, labels[:, None])[:, 0],
                norm_B=torch.linalg.vector_norm(embeddings_BD, dim=1),
                labels_B=labels,
                generator=generator,
            )
            if self.training and len(labels):
                with torch.no_grad():
                    self.observe(targets)
                    self.observe_all(cos_BC, targets)
            loss_B = self.row_losses(self.logits(cos_BC, targets), targets)
            loss = mean(loss_B + self.extra(targets))
            with torch.no_grad():
                stats = {
                    "train_accuracy": mean((cos_BC.argmax(1) == labels).to(cos_BC.dtype)),
                    "cos_target": mean(targets.cos_B),
                    **self.stats(targets),
                }
        return loss, {name: value.detach() for name, value in stats.items()}

    def in_full_precision(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings and weight as float32, or float64 if one of them is."""
        dtype = torch.promote_types(torch.promote_types(embeddings.dtype, self.weight.dtype), torch.float32)
        return embeddings.to(dtype), self.weight.to(dtype)

    def target(self, targets: Targets) -> Tensor:
        """[B]: what takes the place of ``targets.cos_B`` at the rows' own classes."""
        return targets.cos_B

    def others(self, cos_BC: Tensor, targets: Targets, target_B: Tensor) -> Tensor:
        """[B, C]: what takes the place of the other classes' cosines; the own column is overwritten by ``target_B``."""
        return cos_BC

    def extra(self, targets: Targets) -> Tensor | float:
        """A term to add to the rows' losses, [B] or a scalar."""
        return 0.0

    def observe(self, targets: Targets) -> None:
        """Called in training, without gradients, before the loss: the place to update buffers."""

    def observe_all(self, cos_BC: Tensor, targets: Targets) -> None:
        """The same, for a head that has to see the cosines of all classes."""

    def stats(self, targets: Targets) -> dict[str, Tensor]:
        """Further statistics, scalars by name. Called without gradients."""
        return {}

    def cosines(self, unit_BD: Tensor, unit_weight: Tensor) -> Tensor:
        """[B, C]: one cosine for each class, of embeddings and weights of length 1."""
        return F.linear(unit_BD, unit_weight)

    def logits(self, cos_BC: Tensor, targets: Targets) -> Tensor:
        """[B, C]: `scaled` of `others` and `target`."""
        target_B = self.target(targets)
        return self.scaled(self.others(cos_BC, targets, target_B), targets, target_B)

    def scaled(self, others_BC: Tensor, targets: Targets, target_B: Tensor) -> Tensor:
        """[B, C]: ``others_BC`` with ``target_B`` in the own column, times ``scale``."""
        logits_BC = self.scale * others_BC
        return logits_BC.scatter_(1, targets.labels_B[:, None], (self.scale * target_B)[:, None])

    def row_losses(self, logits_BC: Tensor, targets: Targets) -> Tensor:
        """[B]: cross-entropy."""
        return F.cross_entropy(logits_BC, targets.labels_B, reduction="none")


def mean(values_B: Tensor) -> Tensor:
    """The mean, 0 for no values."""
    return values_B.sum() / max(len(values_B), 1)
