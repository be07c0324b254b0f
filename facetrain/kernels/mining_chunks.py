"""Mining with torch: the distances of some anchors at a time, so that they fit a processor's cache.

Legend of shapes: A anchors of one chunk, C columns, D embedding dimensions, K columns of one person, P anchor–positive
pairs, T triplets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from facetrain.errors import UserError
from facetrain.kernels.distances import squared_distances
from facetrain.kernels.order import first_smallest, row_order

CHUNK_ELEMENTS = 1 << 19  # distances held at once: 2 MiB of float32
CHUNK_ROWS = 32  # at least: a product of fewer rows takes many times as long for each


class Found(NamedTuple):
    """Triplets: columns, int64 [T], and d² to positive and negative, [T]."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor
    to_positive: Tensor
    to_negative: Tensor


class Pairs(NamedTuple):
    """The anchor–positive pairs of a chunk: which columns are of the anchor's label, and which of these make a pair;
    d² to them, and to all columns of other labels (infinite to those of the own)."""

    same_AK: Tensor
    is_pair_AK: Tensor
    to_same_AK: Tensor
    to_others_AC: Tensor


def mine_in_chunks(
    columns_CD: Tensor,
    labels_C: Tensor,
    *,
    num_rows: int,
    num_anchors: int,
    margin: float,
    strategy: str,
    positives: str,
    generator: torch.Generator | None,
    max_triplets: int,
    chunk_rows: int | None,
) -> tuple[Found, int]:
    """The triplets, and how many pairs were looked at; see `facetrain.kernels.mining.mine_triplets`.

    columns_CD: ``num_rows`` of the batch, the first ``num_anchors`` of them anchors, and the bank's.
    """
    num_pairs = num_triplets = 0
    people = _People(labels_C)
    most = int(people.size_C[:num_anchors].sum()) if positives == "all" and strategy != "all" else num_anchors
    gathered = _Gathered(columns_CD, most)
    for start, pairs in _chunks(columns_CD, people, num_rows, num_anchors, positives, chunk_rows):
        if strategy == "hardest":
            found, seen = _hardest(pairs, margin)
        elif strategy == "all":
            # With more than there may be, the rest is only counted.
            found, seen, count = _all(pairs, margin, max_triplets - num_triplets)
            num_triplets += count
        else:
            found, seen = _one_in_the_window(pairs, margin, strategy, generator)
        num_pairs += seen
        gathered.add(found._replace(anchor=found.anchor + start))
    if num_triplets > max_triplets:
        raise UserError(
            f"{num_triplets:,} triplets of a batch violate the margin, more than max_triplets = {max_triplets:,}: "
            f"take smaller batches, a smaller margin, or a miner that takes one negative for each pair"
        )
    return gathered.found(), num_pairs


class _Gathered:
    """The triplets of chunk after chunk, in memory taken at once for as many as are expected, or twice as many again.

    Small pieces that stay, among large ones that come and go, would leave malloc's heap full of holes: at N = 32,768 these
    were up to 0.6 GB.
    """

    def __init__(self, columns_CD: Tensor, expected: int) -> None:
        number = columns_CD.new_empty(expected, dtype=torch.int64)
        distance = columns_CD.new_empty(expected, dtype=torch.promote_types(columns_CD.dtype, torch.float32))
        places = number, torch.empty_like(number), torch.empty_like(number)
        self.places = Found(*places, distance, torch.empty_like(distance))
        self.count = 0

    def add(self, found: Found) -> None:
        first, self.count = self.count, self.count + len(found.anchor)
        if self.count > len(self.places.anchor):
            longer = max(self.count, 2 * first)
            self.places = Found(
                *(torch.cat([place[:first], place.new_empty(longer - first)]) for place in self.places)
            )
        for place, part in zip(self.places, found, strict=True):
            place[first : self.count] = part

    def found(self) -> Found:
        return Found(*(place[: self.count] for place in self.places))


def _chunks(
    columns_CD: Tensor,
    people: _People,
    num_rows: int,
    num_anchors: int,
    positives: str,
    chunk_rows: int | None,
) -> Iterator[tuple[int, Pairs]]:
    """The pairs of some anchors at a time, with the number of the first of these."""
    squares_C = columns_CD.to(torch.promote_types(columns_CD.dtype, torch.float32)).square().sum(1)
    if chunk_rows is None:
        chunk_rows = max(CHUNK_ROWS, CHUNK_ELEMENTS // max(len(columns_CD), 1))
    for start in range(0, num_anchors, chunk_rows):
        stop = min(start + chunk_rows, num_anchors)
        rows_A = torch.arange(start, stop, device=columns_CD.device)
        distances_AC = squared_distances(columns_CD[start:stop], columns_CD, squares_C)
        same_AK, is_pair_AK = people.columns_like(rows_A)
        # Neither the anchor itself nor an extra negative is a positive.
        is_pair_AK &= (same_AK != rows_A[:, None]) & ((same_AK < num_anchors) | (same_AK >= num_rows))
        to_same_AK = distances_AC.gather(1, same_AK)
        if positives != "all":
            _keep_one(is_pair_AK, to_same_AK, furthest=positives == "furthest")
        yield start, Pairs(same_AK, is_pair_AK, to_same_AK, distances_AC.scatter_(1, same_AK, torch.inf))


def _hardest(pairs: Pairs, margin: float) -> tuple[Found, int]:
    """The closest of the others, for each pair whose margin it violates."""
    closest_A, column_A = first_smallest(pairs.to_others_AC)
    violates_AK = pairs.is_pair_AK & (closest_A[:, None] < pairs.to_same_AK + margin)
    a, k = violates_AK.nonzero(as_tuple=True)
    found = Found(a, pairs.same_AK[a, k], column_A[a], pairs.to_same_AK[a, k], closest_A[a])
    return found, int(pairs.is_pair_AK.sum())


def _one_in_the_window(
    pairs: Pairs, margin: float, strategy: str, generator: torch.Generator | None
) -> tuple[Found, int]:
    """One of each pair's violators, at random or the closest. With an anchor's others in order of distance these are
    the places [low, high) of it."""
    others = row_order(pairs.to_others_AC)
    anchor_P, k_P = pairs.is_pair_AK.nonzero(as_tuple=True)
    high_P = others.count_below(pairs.to_same_AK + margin)[anchor_P, k_P]
    low_P = torch.zeros_like(high_P)
    if strategy in ("semihard", "closest-semihard"):
        low_P = others.count_up_to(pairs.to_same_AK)[anchor_P, k_P]
    count_P = (high_P - low_P).clamp_min(0)
    place_P = low_P
    if strategy != "closest-semihard":
        draw_P = torch.rand(len(count_P), generator=generator, device=count_P.device, dtype=torch.float64)
        place_P = low_P + (draw_P * count_P).to(torch.int64)
    kept = count_P.nonzero()[:, 0]
    a, k = anchor_P[kept], k_P[kept]
    column_T, distance_T = others.at(a, place_P[kept])
    return Found(a, pairs.same_AK[a, k], column_T, pairs.to_same_AK[a, k], distance_T), len(count_P)


def _all(pairs: Pairs, margin: float, at_most: int) -> tuple[Found, int, int]:
    """All violators of each pair (none, if there are more than ``at_most``); how many were looked at, and their number."""
    others = row_order(pairs.to_others_AC)
    anchor_P, k_P = pairs.is_pair_AK.nonzero(as_tuple=True)
    count_P = others.count_below(pairs.to_same_AK + margin)[anchor_P, k_P]
    looked_at = int(torch.isfinite(pairs.to_others_AC).sum(1)[anchor_P].sum())
    total = int(count_P.sum())
    if total > at_most:
        count_P = torch.zeros_like(count_P)
    pair_T = torch.repeat_interleave(count_P)
    place_T = torch.arange(len(pair_T), device=pair_T.device) - (count_P.cumsum(0) - count_P)[pair_T]
    a, k = anchor_P[pair_T], k_P[pair_T]
    column_T, distance_T = others.at(a, place_T)
    return Found(a, pairs.same_AK[a, k], column_T, pairs.to_same_AK[a, k], distance_T), looked_at, total


class _People:
    """Which columns have the same label."""

    def __init__(self, labels_C: Tensor) -> None:
        self.order_C = labels_C.argsort(stable=True)
        _, number_C, size = torch.unique(labels_C, return_inverse=True, return_counts=True)
        self.size_C = size[number_C]
        self.start_C = (size.cumsum(0) - size)[number_C]

    def columns_like(self, rows_A: Tensor) -> tuple[Tensor, Tensor]:
        """Columns of the row's label in ascending order, [A, K], and where there is one; elsewhere stands the first again."""
        size_A1 = self.size_C[rows_A][:, None]
        k_K = torch.arange(int(size_A1.max()), device=rows_A.device)
        is_one_AK = k_K < size_A1
        return self.order_C[self.start_C[rows_A][:, None] + k_K * is_one_AK], is_one_AK


def _keep_one(is_pair_AK: Tensor, distances_AK: Tensor, *, furthest: bool) -> None:
    """Leave each row of ``is_pair_AK`` its closest or furthest pair only, the first of several."""
    if furthest:
        k_A = distances_AK.masked_fill(~is_pair_AK, -torch.inf).argmax(dim=1)
    else:
        k_A = distances_AK.masked_fill(~is_pair_AK, torch.inf).argmin(dim=1)
    is_pair_AK &= torch.zeros_like(is_pair_AK).scatter_(1, k_A[:, None], True)
