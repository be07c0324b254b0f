"""Mining with the Triton kernels: for every anchor a table of its pairs, padded, made without waiting for the device.

Legend of shapes: B batches, C columns (N rows of a batch, then its bank), A anchors, D dimensions, K places in the table.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from facetrain.kernels.launch import Precision
from facetrain.kernels.mining_triton import (
    closest_others,
    listed_distances,
    one_in_each_window,
)


class Table(NamedTuple):
    """Triplets by anchor, [B, A, K] each: columns, −1 where there is none, and d², 0 where there is none.

    A pair without a negative that violates the margin has its positive, and −1 as its negative.
    """

    positive: Tensor
    negative: Tensor
    to_positive: Tensor
    to_negative: Tensor


def mine_table(
    rows_BCD: Tensor,
    labels_BC: Tensor,
    *,
    num_anchors: int,
    num_rows: int,
    most_alike: int,
    margin: float,
    strategy: str,
    positives: str,
    seed: Tensor,
    precision: Precision,
) -> Table:
    """What `facetrain.kernels.mining.mine_triplets` says, for several batches of the same size.

    ``most_alike``: no label is that of more columns. ``seed``: int32 scalar on the device. Strategies: all but "all".
    """
    positive = _positives(labels_BC, num_anchors, num_rows, most_alike)
    to_positive = listed_distances(rows_BCD, positive)
    if positives != "all":
        far = positives == "furthest"
        distance = to_positive.masked_fill(positive < 0, -torch.inf if far else torch.inf)
        k = (distance.argmax(2) if far else distance.argmin(2))[:, :, None]
        positive, to_positive = positive.gather(2, k), to_positive.gather(2, k)
    is_pair = positive >= 0

    further = strategy in ("semihard", "closest-semihard")
    if strategy == "hardest":
        column = closest_others(rows_BCD, labels_BC, num_anchors, precision)[1][:, :, None]
        negative = torch.where(is_pair, column, -1)
        to_negative = listed_distances(rows_BCD, column).expand_as(to_positive)
    else:
        low = to_positive if further else torch.full_like(to_positive, -1)
        high = torch.where(is_pair, to_positive + margin, -torch.inf)
        seed_or_none = None if strategy == "closest-semihard" else seed
        negative = one_in_each_window(rows_BCD, labels_BC, low, high, seed=seed_or_none, precision=precision)
        to_negative = listed_distances(rows_BCD, negative)
    # Tiles are inner products, lists are differences: by these a copy of the positive is exactly as far as it.
    is_other = (
        labels_BC.gather(1, negative.clamp_min(0).flatten(1)).view(negative.shape)
        != labels_BC[:, :num_anchors, None]
    )
    violates = (negative >= 0) & is_other & (to_negative < to_positive + margin)
    if further:
        violates &= to_negative > to_positive
    negative, to_negative = torch.where(violates, negative, -1), torch.where(violates, to_negative, 0)
    return Table(positive, negative, to_positive, to_negative)


def _positives(labels_BC: Tensor, num_anchors: int, num_rows: int, most_alike: int) -> Tensor:
    """Columns that can be positives of each anchor, ascending, [B, A, most_alike]; −1 elsewhere."""
    sorted_BC, order_BC = labels_BC.sort(dim=1, stable=True)
    begin_BA = torch.searchsorted(sorted_BC, labels_BC[:, :num_anchors].contiguous())
    place_BAK = begin_BA[:, :, None] + torch.arange(most_alike, device=labels_BC.device)
    is_column = place_BAK < labels_BC.shape[1]
    flat = place_BAK.clamp_max(labels_BC.shape[1] - 1).flatten(1)
    column = order_BC.gather(1, flat).view(place_BAK.shape)
    alike = sorted_BC.gather(1, flat).view(place_BAK.shape) == labels_BC[:, :num_anchors, None]
    anchor_A1 = torch.arange(num_anchors, device=labels_BC.device)[:, None]
    is_pair = is_column & alike & (column != anchor_A1) & ((column < num_anchors) | (column >= num_rows))
    return torch.where(is_pair, column, -1)
