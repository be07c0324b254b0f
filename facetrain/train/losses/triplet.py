"""Triplet loss over mined triplets.

Source: Schroff et al., "FaceNet", CVPR 2015; Amos et al., "OpenFace", 2016.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from facetrain.errors import UserError
from facetrain.kernels.distances import pair_distances
from facetrain.kernels.mining import Triplets
from facetrain.kernels.unit import unit
from facetrain.plugins import make
from facetrain.train.losses.base import Loss
from facetrain.train.losses.pairs import connected_zero, embedding_std
from facetrain.train.miners.base import Miner

Distance = Literal["squared-euclidean", "cosine"]
Average = Literal["all", "active"]
# Distances as shares of d²: for unit vectors, 1 − cos is d²/2.
SHARE_OF_D2: dict[str, float] = {"squared-euclidean": 1.0, "cosine": 0.5}


@dataclass(frozen=True)
class TripletLoss:
    """What one batch gave: every field a scalar tensor on the embeddings' device, all but ``loss`` detached.

    ``active_fraction``: of the pairs that were looked at, those with a triplet that violates the margin; near 0 the
    batch has little left to teach. (Where all triplets are taken: of the triplets.)
    ``distance_positive``, ``distance_negative``: mean distance of the triplets' two sides; 0 when there are none.
    ``embedding_std``: mean over dimensions of the standard deviation over the batch. Unit vectors spread
    evenly have 1/√D; near 0 all photographs are embedded alike: training has collapsed.
    """

    loss: Tensor
    active_fraction: Tensor
    distance_positive: Tensor
    distance_negative: Tensor
    embedding_std: Tensor


class Triplet(Loss):
    """Mean over mined triplets of max(0, d(a,p) − d(a,n) + margin), between embeddings scaled to length 1.

    margin: in units of the distance. miner, miner_args: which triplets; see the family "miners".
    distance: ``squared-euclidean``, d² from 0 to 4, or ``cosine``, 1 − cos from 0 to 2, which is half of it.
    soft_margin: ln(1 + exp(x)) instead of max(0, x), which goes on pulling where the margin is kept (Hermans et al.
    2017, with batch-hard mining and margin 0).
    swap: the negative's distance is the smaller of those to the anchor and to the positive (Balntas et al., "Learning
    local feature descriptors with triplets and shallow CNNs", BMVC 2016).
    average: ``all``, over all mined triplets; ``active``, over those whose loss is above 0.

    Statistics: those of `TripletLoss`, and ``margin``, as it is at this step.
    """

    def __init__(
        self,
        *,
        margin: float = 0.2,
        miner: str = "all-violating-random",
        miner_args: dict[str, Any] | None = None,
        distance: str = "squared-euclidean",
        soft_margin: bool = False,
        swap: bool = False,
        average: str = "all",
    ) -> None:
        super().__init__()
        if distance not in SHARE_OF_D2:
            raise UserError(f"distance = '{distance}': choose one of {', '.join(SHARE_OF_D2)}")
        if average not in get_args(Average):
            raise UserError(f"average = '{average}': choose one of {', '.join(get_args(Average))}")
        largest = 4 * SHARE_OF_D2[distance]
        if not (0 < margin < largest or (soft_margin and margin == 0)):
            raise UserError(
                f"a margin of {margin:g}: {distance.replace('-e', ' E')} distances of unit vectors reach {largest:g}, "
                f"choose one such as 0.2"
            )
        self.miner: Miner = make("miners", miner, miner_args)
        if not isinstance(self.miner, Miner):
            raise UserError(
                f"'{miner}' cannot be used as a miner: it makes a {type(self.miner).__name__}, no Miner"
            )
        self.margin, self.distance, self.soft_margin = margin, distance, soft_margin
        self.swap, self.average = swap, average

    @property
    def collapsed_loss(self) -> float:
        """The loss where all embeddings are alike."""
        margin = self.margin * self.margin_share
        return math.log1p(math.exp(margin)) if self.soft_margin else margin

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
        num_anchors: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        zero = connected_zero(embeddings)
        embeddings = unit(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)))
        margin = self.margin * self.margin_share
        self.miner.most_alike = self.most_alike
        triplets = self.miner(
            embeddings,
            labels,
            margin=margin / SHARE_OF_D2[self.distance],
            generator=generator,
            num_anchors=num_anchors,
        )
        result = triplet_loss(
            embeddings,
            triplets,
            margin=margin,
            distance=self.distance,
            soft_margin=self.soft_margin,
            swap=self.swap,
            average=self.average,
            known=triplets.distances,
        )
        stats = {name: value for name, value in vars(result).items() if name != "loss"}
        return result.loss + zero, stats | {"margin": embeddings.new_full((), margin)}


def triplet_loss(
    embeddings: Tensor,
    triplets: Triplets,
    *,
    margin: float,
    distance: str = "squared-euclidean",
    soft_margin: bool = False,
    swap: bool = False,
    average: str = "all",
    known: tuple[Tensor, Tensor] | None = None,
) -> TripletLoss:
    """Mean over triplets of max(0, d(a,p) − d(a,n) + margin); see `Triplet` for the variants.

    ``embeddings``: [N, D] float, L2-normalised by the caller, float32 or wider for the sake of small
    distances. ``margin``: in units of the distance. ``known``: d² to the positives and to the negatives, [T] each, of
    just these embeddings (`Triplets.distances`, fresh from the miner); without it they are computed. Without triplets
    the loss is 0 and its gradient zeros. Memory is O(T + N·D), and nothing waits for the device.
    """
    if distance not in SHARE_OF_D2 or average not in get_args(Average):
        raise ValueError(f"unknown distance {distance!r} or average {average!r}")
    rows = embeddings if triplets.bank is None else torch.cat([embeddings, triplets.bank.detach()])
    sides = [(triplets.anchor, triplets.positive), (triplets.anchor, triplets.negative)]
    if swap:
        sides.append((triplets.positive, triplets.negative))
    first, second = (torch.cat(numbers) for numbers in zip(*sides, strict=True))
    d2 = pair_distances(rows, first, second, None if swap or known is None else torch.cat(known))
    positive_T, *negatives_T = (d2 * SHARE_OF_D2[distance]).view(len(sides), len(triplets))
    negative_T = torch.minimum(*negatives_T) if swap else negatives_T[0]
    violation_T = positive_T - negative_T + margin
    loss_T = F.softplus(violation_T) if soft_margin else violation_T.clamp_min(0)
    count: int | Tensor = len(triplets)
    if triplets.padded:
        is_one_T = triplets.anchor >= 0
        loss_T, violation_T, positive_T, negative_T = (
            torch.where(is_one_T, values_T, 0) for values_T in (loss_T, violation_T, positive_T, negative_T)
        )
        count = is_one_T.sum()
    count = at_least_1(count)
    counted = at_least_1((loss_T.detach() > 0).sum()) if average == "active" else count
    loss = loss_T.sum() / counted
    with torch.no_grad():
        return TripletLoss(
            loss=loss,
            active_fraction=(violation_T > 0).sum().to(loss.dtype) / at_least_1(triplets.num_pairs),
            distance_positive=positive_T.sum() / count,
            distance_negative=negative_T.sum() / count,
            embedding_std=embedding_std(embeddings),
        )


def at_least_1(count: int | Tensor) -> int | Tensor:
    """The count, to divide by: on the device too without waiting for it."""
    return count.clamp_min(1) if isinstance(count, Tensor) else max(count, 1)
