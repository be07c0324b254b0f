"""Choosing triplets within a batch, on the batch's own distances.

Legend of shapes: N rows of the batch, D embedding dimensions, A anchors of one chunk, C columns: the batch and what is
in the bank, K columns of one person, P anchor–positive pairs, T triplets.

Source: Amos et al., "OpenFace", 2016 (all pairs, a random violator each); Schroff et al., "FaceNet", CVPR
2015 (semi-hard); Hermans et al., "In Defense of the Triplet Loss", 2017 (furthest positive, closest negative);
Xuan et al., "Improved Embeddings with Easy Positive Triplet Mining", WACV 2020 (closest positive).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from facetrain.errors import UserError
from facetrain.kernels.distances import squared_distances
from facetrain.kernels.order import first_smallest, row_order

Strategy = Literal["all-violating-random", "semihard", "closest-semihard", "hardest", "all"]
STRATEGIES: tuple[Strategy, ...] = ("all-violating-random", "semihard", "closest-semihard", "hardest", "all")
Positives = Literal["all", "closest", "furthest"]
POSITIVES: tuple[Positives, ...] = ("all", "closest", "furthest")
MAX_TRIPLETS = 10_000_000  # of strategy "all": 240 MB of row numbers
CHUNK_ELEMENTS = 1 << 19  # distances held at once: 2 MiB of float32, so that a processor's cache holds them


@dataclass(frozen=True)
class Triplets:
    """Row numbers into the batch, int64 [T] each, on its device.

    ``num_pairs``: how many anchor–positive pairs were looked at; T of them had a negative to go with. Where all
    negatives of a pair are taken: how many triplets were looked at.
    ``bank``: further rows [M, D], which positives and negatives from N on are numbers of; nothing is learned by them.
    ``distances``: d² to the positives and to the negatives, [T] each, where they were found on the way.
    """

    anchor: Tensor
    positive: Tensor
    negative: Tensor
    num_pairs: int
    bank: Tensor | None = None
    distances: tuple[Tensor, Tensor] | None = None

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
    bank: tuple[Tensor, Tensor] | None = None,
    chunk_rows: int | None = None,
) -> Triplets:
    """One negative for every ordered anchor–positive pair that has one which violates the margin.

    ``embeddings``: [N, D] float, L2-normalised by the caller; distances d² are squared L2. ``labels``: int64
    [N]. ``margin``: in units of d²; infinite: every negative violates it. ``generator``: on the embeddings'
    device; the same state gives the same triplets. ``num_anchors``: only the first so many rows are anchors and positives, those behind serve as
    negatives alone. ``positives``: of each anchor all of them, or only the closest or the furthest.
    ``max_triplets``: of strategy ``all``. ``bank``: rows [M, D] of earlier batches (cross-batch memory: Wang et al.,
    CVPR 2020) and their labels [M], which serve as positives and negatives too, numbered from N on. ``chunk_rows``:
    anchors worked on at once, a matter of memory only.

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
    columns, column_labels = embeddings, labels
    if bank is not None:
        columns, column_labels = torch.cat([embeddings, bank[0]]), torch.cat([labels, bank[1]])
    if num_anchors and _in_kernels(columns, strategy):
        return _mine_in_kernels(
            columns,
            column_labels,
            num_rows=num_rows,
            num_anchors=num_anchors,
            margin=margin,
            strategy=strategy,
            positives=positives,
            generator=generator,
        )
    squares_C = columns.to(torch.promote_types(columns.dtype, torch.float32)).square().sum(1)
    chunk_rows = max(1, CHUNK_ELEMENTS // max(len(columns), 1)) if chunk_rows is None else chunk_rows
    people = _People(column_labels)

    parts: list[_Part] = []
    num_pairs = num_triplets = 0
    for start in range(0, num_anchors, chunk_rows):
        rows_A = torch.arange(start, min(start + chunk_rows, num_anchors), device=labels.device)
        distances_AC = squared_distances(embeddings[start : start + len(rows_A)], columns, squares_C)

        # 1. The anchors' pairs: columns of the same label, the anchor itself and the extra negatives left out.
        same_AK, is_pair_AK = people.columns_like(rows_A)
        is_pair_AK &= (same_AK != rows_A[:, None]) & ((same_AK < num_anchors) | (same_AK >= num_rows))
        distances_AK = distances_AC.gather(1, same_AK)
        if positives != "all":
            _keep_one(is_pair_AK, distances_AK, furthest=positives == "furthest")
        distances_AC.scatter_(1, same_AK, torch.inf)  # now of others only

        if strategy == "hardest":
            closest_A, column_A = first_smallest(distances_AC)
            anchor_T, k_T = (is_pair_AK & (closest_A[:, None] < distances_AK + margin)).nonzero(as_tuple=True)
            num_pairs += int(is_pair_AK.sum())
            parts.append(
                _Part(
                    anchor_T + start,
                    same_AK[anchor_T, k_T],
                    column_A[anchor_T],
                    distances_AK[anchor_T, k_T],
                    closest_A[anchor_T],
                )
            )
            continue

        # 2. Each anchor's others in order of distance: the violators of a pair are the places [low, high) of it.
        others = row_order(distances_AC)
        anchor_P, k_P = is_pair_AK.nonzero(as_tuple=True)
        high_P = others.count_below(distances_AK + margin)[anchor_P, k_P]
        low_P = torch.zeros_like(high_P)
        if strategy in ("semihard", "closest-semihard"):
            low_P = others.count_up_to(distances_AK)[anchor_P, k_P]
        count_P = (high_P - low_P).clamp_min(0)

        # 3. Draw one, or take all.
        if strategy == "all":
            num_triplets += int(count_P.sum())
            num_pairs += int((len(columns) - people.size(rows_A))[anchor_P].sum())
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
        anchor_T, k_T = anchor_P[pair_T], k_P[pair_T]
        negative_T, distance_T = others.at(anchor_T, low_P[pair_T] + offset_T)
        parts.append(
            _Part(
                anchor_T + start, same_AK[anchor_T, k_T], negative_T, distances_AK[anchor_T, k_T], distance_T
            )
        )
    if strategy == "all" and num_triplets > max_triplets:
        raise UserError(
            f"{num_triplets:,} triplets of a batch violate the margin, more than max_triplets = {max_triplets:,}: "
            f"take smaller batches, a smaller margin, or a miner that takes one negative for each pair"
        )
    if not parts:
        rows, numbers = labels.new_empty(0), columns.new_empty(0)
        parts = [_Part(rows, rows, rows, numbers, numbers)]
    anchor, positive, negative, to_positive, to_negative = (
        torch.cat(part) for part in zip(*parts, strict=True)
    )
    return Triplets(
        anchor, positive, negative, num_pairs, bank[0] if bank else None, (to_positive, to_negative)
    )


def _in_kernels(rows: Tensor, strategy: Strategy) -> bool:
    """Whether the Triton kernels can do it. Double precision and all triplets are left to torch."""
    return rows.is_cuda and strategy != "all" and rows.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _mine_in_kernels(
    columns: Tensor,
    labels: Tensor,
    *,
    num_rows: int,
    num_anchors: int,
    margin: float,
    strategy: Strategy,
    positives: Positives,
    generator: torch.Generator | None,
) -> Triplets:
    from facetrain.kernels.mining_table import mine_table  # with Triton, which not every machine has

    device = columns.device
    seed = torch.randint(-(2**31), 2**31, (), dtype=torch.int32, generator=generator, device=device)
    table = mine_table(
        columns[None].contiguous(),
        labels[None],
        num_anchors=num_anchors,
        num_rows=num_rows,
        most_alike=int(torch.unique(labels, return_counts=True)[1].max()),
        margin=margin,
        strategy=strategy,
        positives=positives,
        seed=seed,
        precision="ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
    )
    found = (table.negative >= 0).nonzero(as_tuple=True)
    bank = columns[num_rows:] if len(columns) > num_rows else None
    return Triplets(
        found[1],
        table.positive[found],
        table.negative[found],
        int((table.positive >= 0).sum()),
        bank,
        (table.to_positive[found], table.to_negative[found]),
    )


class _Part(NamedTuple):
    """The triplets of a chunk, [T] each: rows, and d² of the pairs."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor
    to_positive: Tensor
    to_negative: Tensor


class _People:
    """Which columns have the same label."""

    def __init__(self, labels_C: Tensor) -> None:
        self.order_C = labels_C.argsort(stable=True)
        _, number_C, size = torch.unique(labels_C, return_inverse=True, return_counts=True)
        self.size_C = size[number_C]
        self.start_C = (size.cumsum(0) - size)[number_C]

    def size(self, rows_A: Tensor) -> Tensor:
        """[A]: how many columns have the row's label, itself among them."""
        return self.size_C[rows_A]

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
