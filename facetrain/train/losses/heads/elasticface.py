"""ElasticFace."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from facetrain.train.losses.checks import within
from facetrain.train.losses.head import Head, Targets
from facetrain.train.losses.heads.angles import cos_of_sum


class ElasticArcFace(Head):
    """cos(θ + m) at the own class, with m drawn anew for each row: m ~ N(margin, std²), kept in [0, π/2].

    Source: Boutros et al., "ElasticFace", CVPR workshops 2022; defaults: the paper's.

    margin_rad, std_rad: of m, which is added to the angle. plus: give the larger draws to the rows further from their
    own class's weight (ElasticFace+; the authors' configuration then has std .0175).
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin_rad: float = 0.5,
        std_rad: float = 0.05,
        plus: bool = False,
        scale: float = 64.0,
    ) -> None:
        super().__init__(num_classes, embedding_dim, scale)
        self.margin_rad = within("margin_rad", margin_rad, 0, math.pi / 2)
        self.std_rad, self.plus = within("std_rad", std_rad, 0, 1), plus

    def target(self, targets: Targets) -> Tensor:
        margin_B = draw_margins(targets, self.margin_rad, self.std_rad, self.plus).clamp(0, math.pi / 2)
        return cos_of_sum(targets.cos_B, self.margin_share * margin_B)


class ElasticCosFace(Head):
    """cos θ − m at the own class, with m drawn anew for each row: m ~ N(margin, std²).

    Source and defaults: as of `ElasticArcFace` (with ``plus`` the authors have std .02).

    margin_cos, std_cos: of m, which is subtracted from the cosine. plus: as of `ElasticArcFace`.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin_cos: float = 0.35,
        std_cos: float = 0.05,
        plus: bool = False,
        scale: float = 64.0,
    ) -> None:
        super().__init__(num_classes, embedding_dim, scale)
        self.margin_cos = within("margin_cos", margin_cos, 0, 1)
        self.std_cos, self.plus = within("std_cos", std_cos, 0, 1), plus

    def target(self, targets: Targets) -> Tensor:
        margin_B = draw_margins(targets, self.margin_cos, self.std_cos, self.plus)
        return targets.cos_B - self.margin_share * margin_B


@torch.no_grad()
def draw_margins(targets: Targets, mean: float, std: float, largest_to_farthest: bool) -> Tensor:
    """[B]: independent normal draws, handed to the rows by rank of their cosine.

    Going by rank, not by place in the batch, keeps the loss free of the order of rows. It leaves the draws independent
    of the rows, unless they are sorted: then the row nearest to its class gets the smallest.
    """
    cos_B = targets.cos_B
    draws_B = torch.empty_like(cos_B).normal_(mean, std, generator=targets.generator)
    if largest_to_farthest:
        draws_B = draws_B.sort().values
    return torch.empty_like(draws_B).scatter_(0, cos_B.argsort(descending=True, stable=True), draws_B)
