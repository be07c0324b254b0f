"""Heads that have to see the cosines of all classes at once, batch × classes of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from facetrain.kernels.unit import unit
from facetrain.train.losses.head import Head, Targets, in_full_precision, mean


class DenseHead(Head):
    """A `Head` that holds all logits. A subclass may also override

    - `observe_all`: to follow the cosines of all classes;
    - `logits`, if the own one depends on all others;
    - `row_losses`, if it is no cross-entropy.
    """

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
        num_anchors: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Head.forward`."""
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings_BD, weight = in_full_precision(embeddings, self.weight)
            cos_BC = self.cosines(unit(embeddings_BD), unit(weight)).clamp(-1, 1)
            targets = Targets(
                cos_B=cos_BC.gather(1, labels[:, None])[:, 0],
                norm_B=torch.linalg.vector_norm(embeddings_BD, dim=1),
                labels_B=labels,
                generator=generator,
            )
            self.look(targets)
            if self.training and len(labels):
                with torch.no_grad():
                    self.observe_all(cos_BC, targets)
            loss_B = self.row_losses(self.logits(cos_BC, targets), targets)
            loss = mean(loss_B + self.extra(targets))
        return loss, self.all_stats(targets, cos_BC.argmax(1) == labels)

    def observe_all(self, cos_BC: Tensor, targets: Targets) -> None:
        """Called in training, without gradients, before the loss."""

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
