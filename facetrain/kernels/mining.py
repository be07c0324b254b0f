"""Choosing triplets within a batch, on the batch's own distances.

Legend of shapes: N rows of the batch, D embedding dimensions, A anchors of one chunk, P anchor–positive
pairs, T triplets.

Source: Amos et al., "OpenFace", 2016 (all pairs, a random violator each); Schroff et al., "FaceNet", CVPR
2015 (semi-hard).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Strategy = Literal["all-violating-random", "semihard", "hardest"]
STRATEGIES: tuple[Strategy, ...] = ("all-violating-random", "semihard", "hardest")
CHUNK_ELEMENTS = 1 << 24  # distances held at once: 64 MiB of float32, and about four times that in all


@dataclass(frozen=True)
class Triplets:
    """Row numbers into the batch, int64 [T] each, on its device.

    ``num_pairs``: how many anchor–positive pairs were looked at; T of them had a negative to go with.
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
    chunk_rows: int | None = None,
) -> Triplets:
    """One negative for every ordered anchor–positive pair that has one which violates the margin.

    ``embeddings``: [N, D] float, L2-normalised by the caller; distances d² are squared L2. ``labels``: int64
    [N]. ``margin``: in units of d². ``generator``: on the embeddings' device; the same state gives the same
    triplets. ``num_anchors``: only the first so many rows are anchors and positives, those behind serve as
    negatives alone. ``chunk_rows``: anchors worked on at once, a matter of memory only.

    The negative of a pair is taken from the rows of other labels,

    - ``all-violating-random``: uniformly from those with d²(a,n) − d²(a,p) < margin, which includes those
      closer than the positive;
    - ``semihard``: uniformly from those with 0 < d²(a,n) − d²(a,p) < margin;
    - ``hardest``: the closest, if it violates the margin.

    Pairs without such a row are dropped. Memory is N·chunk_rows and a few numbers for each pair: with the
    negatives of an anchor in order of distance, the violators of each of its pairs are one run of that order,
    found by bisection.

    Raises ValueError for an unknown strategy, labels of another length, or num_anchors out of range.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown mining strategy {strategy!r}: one of {', '.join(STRATEGIES)}")
    num_rows = embeddings.shape[0]
    if labels.shape != (num_rows,):
        raise ValueError(f"labels are {tuple(labels.shape)}, not ({num_rows},)")
    num_anchors = num_rows if num_anchors is None else num_anchors
    if not 0 <= num_anchors <= num_rows:
        raise ValueError(f"num_anchors is {num_anchors}, with {num_rows} rows in the batch")
    chunk_rows = max(1, CHUNK_ELEMENTS // max(num_rows, 1)) if chunk_rows is None else chunk_rows

    parts = [torch.empty((3, 0), dtype=torch.int64, device=embeddings.device)]
    num_pairs = 0
    for start in range(0, num_anchors, chunk_rows):
        stop = min(start + chunk_rows, num_anchors)
        distances_AN = squared_distances(embeddings[start:stop], embeddings)
        same_AN = labels[start:stop, None] == labels[None, :]

        # 1. The anchors' pairs: rows of the same label, the anchor itself and the extra negatives left out.
        pairs_AN = same_AN.clone()
        pairs_AN[:, num_anchors:] = False
        pairs_AN[:, start:stop].fill_diagonal_(False)
        anchor_P, positive_P = pairs_AN.nonzero(as_tuple=True)
        num_pairs += anchor_P.shape[0]

        # 2. Each anchor's negatives in order of distance; rows of its own label go to the end.
        sorted_AN, order_AN = distances_AN.masked_fill(same_AN, torch.inf).sort(dim=1)

        # 3. The violators of a pair are the positions [low, high) of that order; draw one.
        high_AN = torch.searchsorted(sorted_AN, distances_AN + margin, out_int32=True)
        high_P = high_AN[anchor_P, positive_P]
        low_P = torch.zeros_like(high_P)
        if strategy == "semihard":
            low_AN = torch.searchsorted(sorted_AN, distances_AN, right=True, out_int32=True)
            low_P = low_AN[anchor_P, positive_P]
        count_P = high_P - low_P
        if strategy == "hardest":
            offset_P = torch.zeros_like(count_P)
        else:
            draws_P = torch.rand(
                len(count_P), generator=generator, device=count_P.device, dtype=torch.float64
            )
            offset_P = (draws_P * count_P).to(torch.int32)
        has_one_P = count_P > 0
        anchor_T, positive_T = anchor_P[has_one_P], positive_P[has_one_P]
        negative_T = order_AN[anchor_T, (low_P + offset_P)[has_one_P]]
        parts.append(torch.stack([anchor_T + start, positive_T, negative_T]))
    anchor, positive, negative = torch.cat(parts, dim=1)
    return Triplets(anchor, positive, negative, num_pairs)


def squared_distances(a_AD: Tensor, b_BD: Tensor) -> Tensor:
    """Squared L2 distances [A, B] of each row of ``a`` to each row of ``b``, at least float32, never below 0.

    Under autocast too: half precision cannot tell small distances apart.
    """
    dtype = torch.promote_types(torch.promote_types(a_AD.dtype, b_BD.dtype), torch.float32)
    a_AD, b_BD = a_AD.to(dtype), b_BD.to(dtype)
    with torch.autocast(a_AD.device.type, enabled=False):
        squares_AB = a_AD.square().sum(1)[:, None] + b_BD.square().sum(1)[None, :]
        return torch.addmm(squares_AB, a_AD, b_BD.T, alpha=-2).clamp_min(0)
