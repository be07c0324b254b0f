"""What the heads share. A head keeps one weight vector for each person of the training and classifies by cosine.

Shapes: B rows of the batch, C classes, D embedding_dim, K sub-centres of a class.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facetrain.errors import UserError
from facetrain.kernels.over_classes import Block, Hard, Logits, entries, own_and_others
from facetrain.kernels.unit import unit
from facetrain.train.losses.base import Loss
from facetrain.train.losses.checks import positive


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

    ``weight``: [C, D], or [C, K, D] with the nearest of K weights to count for a class. With nothing overridden this is NormFace. A subclass says

    - `target`: what takes the place of cos θ at the row's own class (elementwise, O(B));
    - `hard`, if it reweights the other classes where they are near; or `others`, if it does so in any other way;
    - `extra`, if it adds a term to the loss; `observe`, if it follows the training; `stats`, what it has to show.

    The log-sum-exp over the other classes goes through them a block at a time, so batch × classes numbers are never
    held (`facetrain.kernels.over_classes`). Heads that must see all classes at once are `DenseHead`s.

    ``sampled_classes``: share of the classes that take part in a step of training, those of its rows and random others
    (An et al., "Partial FC", 2021); the weights' gradient is sparse then. ``train_accuracy`` is among them.

    A learned ``scale`` needs a `DenseHead`: the blocks give it no gradient.

    Every margin is multiplied by ``margin_share``; at 0 there is none. All is computed in float32, or float64 if the
    embeddings or weights are; also under autocast.
    """

    scale: float | Tensor
    sampled_classes: float = 1.0

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
        if isinstance(self.scale, Tensor) and self.scale.requires_grad:
            raise UserError(
                f"{type(self).__name__} learns its scale, which a Head cannot: make it a DenseHead"
            )
        with torch.autocast(embeddings.device.type, enabled=False):
            classes_S, own_B = self.taking_part(labels, generator)
            weight = self.weight if classes_S is None else entries(self.weight, classes_S)
            embeddings_BD, weight = in_full_precision(embeddings, weight)
            unit_BD, norm_B = unit(embeddings_BD), torch.linalg.vector_norm(embeddings_BD, dim=1)

            def targets_of(own_BD: Tensor, generator: torch.Generator | None) -> Targets:
                cos_B = self.own_cosines(unit_BD, unit(own_BD)).clamp(-1, 1)
                return Targets(cos_B, norm_B, labels, generator)

            def block_of(own_BD: Tensor) -> Block:
                self.look(targets_of(own_BD, generator))
                # As they are now: the backward pass may come when they are others.
                head = copy.copy(self)
                head._buffers = {name: None if x is None else x.clone() for name, x in self._buffers.items()}
                seen, target_B = targets_of(own_BD, None), unit_BD.new_empty(0)
                seen = replace(seen, norm_B=norm_B.detach())
                if self.overrides("others") or self.overrides("hard"):
                    again = None if generator is None else generator.clone_state()  # the draw of below
                    target_B = head.target(targets_of(own_BD, again))

                def logits_of(unit_BD: Tensor, weight_cD: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
                    cos_Bc = head.cosines(unit_BD, unit(weight_cD))
                    return cos_Bc, head.scale * head.others(cos_Bc, seen, target_B)

                if self.overrides("others") or self.overrides("cosines"):
                    return Block(logits_of)
                return Block(logits_of, Logits(True, head.scale, head.hard(seen, target_B)))

            own_BD, others_B, nearest_B = own_and_others(unit_BD, weight, None, own_B, block_of)
            targets = targets_of(own_BD, generator)
            loss_B = F.softplus(others_B - self.scale * self.target(targets))
            loss = mean(loss_B + self.extra(targets))
        return loss, self.all_stats(targets, nearest_B == own_B)

    def taking_part(
        self, labels_B: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor | None, Tensor]:
        """The classes that this step is over, ascending, and where among them the rows' own are. None: all."""
        num_classes = len(self.weight)
        if not self.training or self.sampled_classes >= 1:
            return None, labels_B
        count = min(num_classes, max(1, len(labels_B), math.ceil(self.sampled_classes * num_classes)))
        chance_C = torch.rand(num_classes, generator=generator, device=labels_B.device)
        chance_C[labels_B] = 2.0  # certain
        classes_S = chance_C.topk(count).indices.sort().values
        return classes_S, torch.searchsorted(classes_S, labels_B)

    def target(self, targets: Targets) -> Tensor:
        """[B]: what takes the place of ``targets.cos_B`` at the rows' own classes."""
        return targets.cos_B

    def hard(self, targets: Targets, target_B: Tensor) -> Hard | None:
        """Above which cosine another class is hard for a row, and what takes the place of it then. ``targets`` and
        ``target_B`` are detached."""
        return None

    def others(self, cos_BC: Tensor, targets: Targets, target_B: Tensor) -> Tensor:
        """[B, C]: what takes the place of the other classes' cosines, for all classes or a block of them, within [-1, 1] up
        to rounding; the own column counts for nothing. ``targets`` and ``target_B`` are detached: the gradient is that of
        ``cos_BC``. Called again, for the same blocks, in the backward pass."""
        hard = self.hard(targets, target_B)
        if hard is None:
            return cos_BC
        c0, c1, c2 = hard.coefficients
        return torch.where(cos_BC > hard.bound_B[:, None], c0 + cos_BC * (c1 + cos_BC * c2), cos_BC)

    def extra(self, targets: Targets) -> Tensor | float:
        """A term to add to the rows' losses, [B] or a scalar."""
        return 0.0

    def observe(self, targets: Targets) -> None:
        """Called in training, without gradients, before the loss: the place to update buffers."""

    def stats(self, targets: Targets) -> dict[str, Tensor]:
        """Further statistics, scalars by name. Called without gradients."""
        return {}

    def cosines(self, unit_BD: Tensor, unit_weight: Tensor) -> Tensor:
        """[B, C]: one cosine for each class, of embeddings and weights of length 1."""
        if unit_weight.ndim == 2:
            return F.linear(unit_BD, unit_weight)
        return F.linear(unit_BD, unit_weight.flatten(0, 1)).unflatten(1, unit_weight.shape[:2]).amax(2)

    def own_cosines(self, unit_BD: Tensor, unit_weight: Tensor) -> Tensor:
        """[B]: the same for a weight for each row, its own class's."""
        if unit_weight.ndim == 2:
            return (unit_BD * unit_weight).sum(1)
        return (unit_BD[:, None] * unit_weight).sum(2).amax(1)

    def overrides(self, name: str) -> bool:
        """Whether a subclass has a method of its own of this name."""
        return getattr(type(self), name) is not getattr(Head, name)

    @torch.no_grad()
    def look(self, targets: Targets) -> None:
        """`observe`, where there is something to learn from."""
        if self.training and len(targets.labels_B):
            self.observe(targets)

    @torch.no_grad()
    def all_stats(self, targets: Targets, is_right_B: Tensor) -> dict[str, Tensor]:
        """The statistics that all heads have, and the head's own."""
        stats = {
            "train_accuracy": mean(is_right_B.to(targets.cos_B.dtype)),
            "cos_target": mean(targets.cos_B),
            **self.stats(targets),
        }
        return {name: value.detach() for name, value in stats.items()}


def in_full_precision(embeddings: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float32, or float64 if one of them is."""
    dtype = torch.promote_types(torch.promote_types(embeddings.dtype, weight.dtype), torch.float32)
    return embeddings.to(dtype), weight.to(dtype)


def mean(values_B: Tensor) -> Tensor:
    """The mean, 0 for no values."""
    return values_B.sum() / max(len(values_B), 1)
