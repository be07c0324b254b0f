"""Choosing triplets within a batch, on the batch's own distances.

Legend of shapes: B batches, N rows of a batch, M rows of the bank, C = N + M columns, D embedding dimensions, T triplets.

Source: Amos et al., "OpenFace", 2016 (all pairs, a random violator each); Schroff et al., "FaceNet", CVPR
2015 (semi-hard); Hermans et al., "In Defense of the Triplet Loss", 2017 (furthest positive, closest negative);
Xuan et al., "Improved Embeddings with Easy Positive Triplet Mining", WACV 2020 (closest positive).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from facetrain.kernels.launch import has_kernels, matmul_precision
from facetrain.kernels.mining_chunks import Found, mine_in_chunks

if TYPE_CHECKING:
    from facetrain.kernels.mining_table import Table

Strategy = Literal["all-violating-random", "semihard", "closest-semihard", "hardest", "all"]
STRATEGIES: tuple[Strategy, ...] = ("all-violating-random", "semihard", "closest-semihard", "hardest", "all")
Positives = Literal["all", "closest", "furthest"]
POSITIVES: tuple[Positives, ...] = ("all", "closest", "furthest")
MAX_BATCHES = 65_535  # of one launch: the limit of a grid's second and third dimension
MAX_TRIPLETS = 10_000_000  # of strategy "all": 240 MB of row numbers


@dataclass(frozen=True)
class Triplets:
    """Row numbers into the batch, int64 [T] each, on its device.

    ``num_pairs``: how many anchor–positive pairs were looked at; T of them had a negative to go with. Where all
    negatives of a pair are taken: how many triplets were looked at. A scalar of the device where ``padded``.
    ``bank``: further rows [M, D], which positives and negatives from N on are numbers of; nothing is learned by them.
    ``distances``: d² to the positives and to the negatives, [T] each, where they were found on the way.
    ``padded``: only some of the T places hold a triplet, the others −1 three times; how many do, the device knows.
    """

    anchor: Tensor
    positive: Tensor
    negative: Tensor
    num_pairs: int | Tensor
    bank: Tensor | None = None
    distances: tuple[Tensor, Tensor] | None = None
    padded: bool = False

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
    most_alike: int | None = None,
) -> Triplets:
    """One negative for every ordered anchor–positive pair that has one which violates the margin.

    ``embeddings``: [N, D] float, finite, L2-normalised by the caller; distances d² are squared L2. ``labels``: int64
    [N]. ``margin``: in units of d²; infinite: every negative violates it. ``generator``: on the embeddings'
    device; the same state gives the same triplets. ``num_anchors``: only the first so many rows are anchors and
    positives, those behind serve as negatives alone. ``positives``: of each anchor all of them, or only the closest or the furthest.
    ``max_triplets``: of strategy ``all``. ``bank``: rows [M, D] of earlier batches (cross-batch memory: Wang et al.,
    CVPR 2020) and their labels [M], which serve as positives and negatives too, numbered from N on. ``chunk_rows``:
    anchors worked on at once, a matter of memory, and of how distances round. ``most_alike``: no label is on more
    anchors (with a bank: on more columns); then a GPU need not be asked, nothing waits for it, and the triplets come
    ``padded``.

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
    pairs are one run of that order, found by bisection. (On a GPU: N × the most rows of one label.)

    Raises ValueError for an unknown strategy, a margin that is no number, shapes or types that do not fit, and
    num_anchors or chunk_rows out of range; UserError for more than ``max_triplets`` triplets, before there is memory
    taken for them.
    """
    _check_choice(strategy, positives, margin)
    _check_rows(embeddings, labels, dimensions=2)
    num_rows = embeddings.shape[0]
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}: 1 or more")
    num_anchors = num_rows if num_anchors is None else num_anchors
    if not 0 <= num_anchors <= num_rows:
        raise ValueError(f"num_anchors is {num_anchors}, with {num_rows} rows in the batch")
    columns, column_labels = embeddings, labels
    if bank is not None:
        _check_rows(*bank, dimensions=2)
        if bank[0].shape[1] != embeddings.shape[1]:
            raise ValueError(
                f"the bank has {bank[0].shape[1]} dimensions, the embeddings {embeddings.shape[1]}"
            )
        columns, column_labels = torch.cat([embeddings, bank[0]]), torch.cat([labels, bank[1]])
    how: dict[str, Any] = {
        "num_rows": num_rows,
        "num_anchors": num_anchors,
        "margin": margin,
        "strategy": strategy,
        "positives": positives,
        "generator": generator,
    }
    bank_rows = None if bank is None else bank[0]
    if _in_kernels(columns, strategy) and num_anchors:
        return _mine_in_kernels(columns[None], column_labels[None], bank_rows, most_alike=most_alike, **how)
    found, num_pairs = mine_in_chunks(
        columns, column_labels, **how, max_triplets=max_triplets, chunk_rows=chunk_rows
    )
    return _triplets(found, num_pairs, bank_rows)


@torch.no_grad()
def mine_batches(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float,
    generator: torch.Generator | None = None,
    strategy: Strategy = "all-violating-random",
    positives: Positives = "all",
) -> Triplets:
    """`mine_triplets` within each of several independent batches, embeddings [B, N, D] and labels [B, N].

    Row numbers are those of all batches one behind the other, ``embeddings.flatten(0, 1)``. On a GPU one launch of each
    kernel does for all (for at most 65,535 batches). Raises ValueError as it does.
    """
    _check_choice(strategy, positives, margin)
    _check_rows(embeddings, labels, dimensions=3)
    num_rows = labels.shape[1]
    how: dict[str, Any] = {
        "margin": margin,
        "generator": generator,
        "strategy": strategy,
        "positives": positives,
    }
    if _in_kernels(embeddings, strategy) and labels.numel():
        return _mine_in_kernels(embeddings, labels, None, num_rows=num_rows, num_anchors=num_rows, **how)
    none, numbers = labels.new_empty(0), embeddings.new_empty(0)
    parts = [Found(none, none, none, numbers, numbers)]
    num_pairs = 0
    for number, batch in enumerate(zip(embeddings, labels, strict=True)):
        alone, first = mine_triplets(*batch, **how), number * num_rows
        assert alone.distances is not None and isinstance(alone.num_pairs, int)
        parts.append(
            Found(alone.anchor + first, alone.positive + first, alone.negative + first, *alone.distances)
        )
        num_pairs += alone.num_pairs
    found = Found(*(torch.cat(part) for part in zip(*parts, strict=True)))
    return _triplets(found, num_pairs, None)


def _check_choice(strategy: str, positives: str, margin: float) -> None:
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown mining strategy {strategy!r}: one of {', '.join(STRATEGIES)}")
    if positives not in POSITIVES:
        raise ValueError(f"unknown choice of positives {positives!r}: one of {', '.join(POSITIVES)}")
    if math.isnan(margin):
        raise ValueError("the margin is no number")


def _check_rows(embeddings: Tensor, labels: Tensor, *, dimensions: int) -> None:
    if embeddings.ndim != dimensions or not embeddings.is_floating_point():
        shape = "[N, D]" if dimensions == 2 else "[B, N, D]"
        raise ValueError(
            f"embeddings are {embeddings.dtype} {tuple(embeddings.shape)}, not floating-point {shape}"
        )
    if labels.shape != embeddings.shape[:-1]:
        raise ValueError(f"labels are {tuple(labels.shape)}, not {tuple(embeddings.shape[:-1])}")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels are {labels.dtype}, not torch.int64")


def _triplets(found: Found, num_pairs: int, bank: Tensor | None) -> Triplets:
    distances = found.to_positive, found.to_negative
    return Triplets(found.anchor, found.positive, found.negative, num_pairs, bank, distances)


def _in_kernels(rows: Tensor, strategy: Strategy) -> bool:
    """Whether the Triton kernels can do it. Double precision and all triplets are left to torch."""
    kinds = (torch.float32, torch.bfloat16, torch.float16)
    return has_kernels(rows) and strategy != "all" and rows.dtype in kinds


def _mine_in_kernels(
    columns_BCD: Tensor,
    labels_BC: Tensor,
    bank: Tensor | None,
    *,
    generator: torch.Generator | None,
    most_alike: int | None = None,
    **how: Any,
) -> Triplets:
    """The triplets of a table, which the kernels make. Without ``most_alike`` the device is asked for it, and how many
    triplets there are."""
    from facetrain.kernels.mining_table import mine_table  # with Triton, which not every machine has

    batches, num_columns = labels_BC.shape
    if batches > MAX_BATCHES:
        raise ValueError(f"{batches:,} batches at once: a GPU takes {MAX_BATCHES:,} at most")
    counted = most_alike
    if counted is None:
        of_batch = torch.arange(batches, device=labels_BC.device)[:, None] * (labels_BC.max() + 1)
        counted = int(torch.unique(labels_BC + of_batch, return_counts=True)[1].max())
    table = mine_table(
        columns_BCD.contiguous(),
        labels_BC.contiguous(),
        most_alike=counted,
        seed=torch.randint(
            -(2**31), 2**31, (), dtype=torch.int32, generator=generator, device=columns_BCD.device
        ),
        precision=matmul_precision(),
        **how,
    )
    if most_alike is not None:
        return _padded(table, num_columns, bank)
    found = (table.negative >= 0).nonzero(as_tuple=True)
    first_row = found[0] * num_columns
    return Triplets(
        found[1] + first_row,
        table.positive[found] + first_row,
        table.negative[found] + first_row,
        int((table.positive >= 0).sum()),
        bank,
        (table.to_positive[found], table.to_negative[found]),
    )


def _padded(table: Table, num_columns: int, bank: Tensor | None) -> Triplets:
    """The whole table as triplets, −1 where there is none."""
    batches, num_anchors, _ = table.negative.shape
    is_one = table.negative >= 0
    first_row_B11 = num_columns * torch.arange(batches, device=is_one.device)[:, None, None]
    anchor = torch.arange(num_anchors, device=is_one.device)[None, :, None].expand_as(is_one)
    anchor, positive, negative = (
        torch.where(is_one, columns + first_row_B11, -1).flatten()
        for columns in (anchor, table.positive, table.negative)
    )
    distances = table.to_positive.flatten(), table.to_negative.flatten()
    return Triplets(anchor, positive, negative, (table.positive >= 0).sum(), bank, distances, padded=True)
