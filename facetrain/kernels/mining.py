"""Choosing triplets within a batch, on the batch's own distances.

Legend of shapes: N rows of the batch, D embedding dimensions, A anchors of one chunk, P anchor–positive
pairs, K those of one anchor, T triplets.

Source: Amos et al., "OpenFace", 2016 (all pairs, a random violator each); Schroff et al., "FaceNet", CVPR
2015 (semi-hard); Hermans et al., "In Defense of the Triplet Loss", 2017 (furthest positive, closest negative);
Xuan et al., "Improved Embeddings with Easy Positive Triplet Mining", WACV 2020 (closest positive).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from facetrain.errors import UserError

Strategy = Literal["all-violating-random", "semihard", "closest-semihard", "hardest", "all"]
STRATEGIES: tuple[Strategy, ...] = ("all-violating-random", "semihard", "closest-semihard", "hardest", "all")
Positives = Literal["all", "closest", "furthest"]
POSITIVES: tuple[Positives, ...] = ("all", "closest", "furthest")
MAX_TRIPLETS = 10_000_000  # of strategy "all": 240 MB of row numbers
CHUNK_ELEMENTS = 1 << 24  # distances held at once: 64 MiB of float32, and about four times that in all


@dataclass(frozen=True)
class Triplets:
    """Row numbers into the batch, int64 [T] each, on its device.

    ``num_pairs``: how many anchor–positive pairs were looked at; T of them had a negative to go with. Where all
    negatives of a pair are taken: how many triplets were looked at.
    """

    anchor: Tensor
    positive: Tensor
    negative: Tensor
    num_pairs: int

    def __len__(self) -> int:
        return self.anchor.shape[0]


@torch.no_grad()
def mine_triplets(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float,
    generator: torch.Generator | None = None,
    num_anchors: int | None = None,
    strategy: Strategy = "all-violating-random",
    positives: Positives = "all",
    max_triplets: int = MAX_TRIPLETS,
    chunk_rows: int | None = None,
) -> Triplets:
    """One negative for every ordered anchor–positive pair that has one which violates the margin.

    ``embeddings``: [N, D] float, L2-normalised by the caller; distances d² are squared L2. ``labels``: int64
    [N]. ``margin``: in units of d²; infinite: every negative violates it. ``generator``: on the embeddings'
    device; the same state gives the same triplets. ``num_anchors``: only the first so many rows are anchors and positives, those behind serve as
    negatives alone. ``positives``: of each anchor all of them, or only the closest or the furthest.
    ``max_triplets``: of strategy ``all``. ``chunk_rows``: anchors worked on at once, a matter of memory only.

    The negative of a pair is taken from the rows of other labels,

    - ``all-violating-random``: uniformly from those with d²(a,n) − d²(a,p) < margin, which includes those
      closer than the positive;
    - ``semihard``: uniformly from those with 0 < d²(a,n) − d²(a,p) < margin;
    - ``closest-semihard``: the closest of those;
    - ``hardest``: the closest, if it violates the margin;
    - ``all``: not one, but every row with d²(a,n) − d²(a,p) < margin.

    Pairs without such a row are dropped. Of rows at the same distance the first counts as closest, or as furthest.
    Triplets come in order of their anchors, of their positives, then of distance. Memory is N·chunk_rows and a
    few numbers for each pair: with the negatives of an anchor in order of distance, the violators of each of its
    pairs are one run of that order, found by bisection.

    Raises ValueError for an unknown strategy, labels of another length, or num_anchors out of range; UserError for
    more than ``max_triplets`` triplets, before there is memory taken for them.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown mining strategy {strategy!r}: one of {', '.join(STRATEGIES)}")
    if positives not in POSITIVES:
        raise ValueError(f"unknown choice of positives {positives!r}: one of {', '.join(POSITIVES)}")
    num_rows = embeddings.shape[0]
    if labels.shape != (num_rows,):
        raise ValueError(f"labels are {tuple(labels.shape)}, not ({num_rows},)")
    num_anchors = num_rows if num_anchors is None else num_anchors
    if not 0 <= num_anchors <= num_rows:
        raise ValueError(f"num_anchors is {num_anchors}, with {num_rows} rows in the batch")
    chunk_rows = max(1, CHUNK_ELEMENTS // max(num_rows, 1)) if chunk_rows is None else chunk_rows

    parts = [torch.empty((3, 0), dtype=torch.int64, device=embeddings.device)]
    num_pairs = num_triplets = 0
    for start in range(0, num_anchors, chunk_rows):
        stop = min(start + chunk_rows, num_anchors)
        distances_AN = squared_distances(embeddings[start:stop], embeddings)
        same_AN = labels[start:stop, None] == labels[None, :]

        # 1. The anchors' pairs: rows of the same label, the anchor itself and the extra negatives left out.
        pairs_AN = same_AN.clone()
        pairs_AN[:, num_anchors:] = False
        pairs_AN[:, start:stop].fill_diagonal_(False)
        if positives != "all":
            _keep_one(pairs_AN, distances_AN, furthest=positives == "furthest")
        anchor_P, positive_P = pairs_AN.nonzero(as_tuple=True)
        to_others_AN = distances_AN.masked_fill(same_AN, torch.inf)

        if strategy == "hardest":
            closest_A, row_A = to_others_AN.min(dim=1)
            has_one_P = closest_A[anchor_P] < distances_AN[anchor_P, positive_P] + margin
            anchor_T, positive_T = anchor_P[has_one_P], positive_P[has_one_P]
            parts.append(torch.stack([anchor_T + start, positive_T, row_A[anchor_T]]))
            num_pairs += len(anchor_P)
            continue

        # 2. Each anchor's negatives in order of distance; rows of its own label go to the end.
        sorted_AN, order_AN = to_others_AN.sort(dim=1, stable=True)

        # 3. The violators of a pair are the positions [low, high) of that order; draw one, or take all.
        pairs_A = pairs_AN.sum(dim=1)
        column_P = (
            torch.arange(len(anchor_P), device=anchor_P.device) - (pairs_A.cumsum(0) - pairs_A)[anchor_P]
        )
        distances_AK = distances_AN.new_zeros(len(pairs_A), int(pairs_A.max()))  # those of an anchor's pairs
        distances_AK[anchor_P, column_P] = distances_AN[anchor_P, positive_P]
        high_P = torch.searchsorted(sorted_AN, distances_AK + margin)[anchor_P, column_P]
        low_P = torch.zeros_like(high_P)
        if strategy in ("semihard", "closest-semihard"):
            low_P = torch.searchsorted(sorted_AN, distances_AK, right=True)[anchor_P, column_P]
        count_P = (high_P - low_P).clamp_min(0)
        if strategy == "all":
            num_triplets += int(count_P.sum())
            num_pairs += int((~same_AN).sum(1)[anchor_P].sum())
            if num_triplets > max_triplets:
                continue  # only count
            pair_T = torch.repeat_interleave(count_P)
            offset_T = torch.arange(len(pair_T), device=pair_T.device) - (count_P.cumsum(0) - count_P)[pair_T]
        else:
            num_pairs += len(count_P)
            pair_T = count_P.nonzero()[:, 0]
            offset_T = torch.zeros_like(pair_T)
            if strategy != "closest-semihard":
                draws_P = torch.rand(
                    len(count_P), generator=generator, device=count_P.device, dtype=torch.float64
                )
                offset_T = (draws_P * count_P).to(torch.int64)[pair_T]
        anchor_T, positive_T = anchor_P[pair_T], positive_P[pair_T]
        negative_T = order_AN[anchor_T, low_P[pair_T] + offset_T]
        parts.append(torch.stack([anchor_T + start, positive_T, negative_T]))
    if strategy == "all" and num_triplets > max_triplets:
        raise UserError(
            f"{num_triplets:,} triplets of a batch violate the margin, more than max_triplets = {max_triplets:,}: "
            f"take smaller batches, a smaller margin, or a miner that takes one negative for each pair"
        )
    anchor, positive, negative = torch.cat(parts, dim=1)
    return Triplets(anchor, positive, negative, num_pairs)


def _keep_one(pairs_AN: Tensor, distances_AN: Tensor, *, furthest: bool) -> None:
    """Leave each row of ``pairs_AN`` (bool) its closest or furthest pair only, the first of several."""
    if furthest:
        column_A = distances_AN.masked_fill(~pairs_AN, -torch.inf).argmax(dim=1)
    else:
        column_A = distances_AN.masked_fill(~pairs_AN, torch.inf).argmin(dim=1)
    pairs_AN &= torch.zeros_like(pairs_AN).scatter_(1, column_A[:, None], True)


def squared_distances(a_AD: Tensor, b_BD: Tensor) -> Tensor:
    """Squared L2 distances [A, B] of each row of ``a`` to each row of ``b``, at least float32, never below 0.

    Under autocast too: half precision cannot tell small distances apart.
    """
    dtype = torch.promote_types(torch.promote_types(a_AD.dtype, b_BD.dtype), torch.float32)
    a_AD, b_BD = a_AD.to(dtype), b_BD.to(dtype)
    with torch.autocast(a_AD.device.type, enabled=False):
        squares_AB = a_AD.square().sum(1)[:, None] + b_BD.square().sum(1)[None, :]
        return torch.addmm(squares_AB, a_AD, b_BD.T, alpha=-2).clamp_min(0)
