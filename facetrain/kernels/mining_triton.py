"""Triton kernels that mine on distance tiles: each tile is made, looked at and forgotten, so that no N × N is held.

What they find is what `facetrain.kernels.mining` finds with torch, up to the rounding of the distances; a random choice
is another draw. Everything is for several independent batches at once, and nothing waits for the device.

Legend of shapes: B batches, C columns (the rows of a batch, and its bank), A anchors, which are the first of them, D
dimensions, K positives of an anchor (a table, padded), S parts that the columns are cut into.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
# (the arguments of kernels are pointers and numbers of the device)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from facetrain.kernels.launch import Precision, on_device_of, parts

RANDOM: tl.constexpr = tl.constexpr(0)
CLOSEST: tl.constexpr = tl.constexpr(1)
PROGRAMS = 256  # wanted at least, so that a large GPU has work for all its multiprocessors


@triton.jit
def _distances_to_others(
    x_ptr, squares_ptr, labels_ptr, anchors, anchor_squares, anchor_labels, columns,
    num_anchors, num_columns, dim, stride_row,
    BLOCK_A: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """d² [BLOCK_A, BLOCK_C], float32; infinite to columns of the anchor's label, and where there is no column."""
    inner = tl.zeros((BLOCK_A, BLOCK_C), tl.float32)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        a = tl.load(
            x_ptr + anchors[:, None] * stride_row + d[None, :],
            mask=(anchors < num_anchors)[:, None] & (d < dim)[None, :],
            other=0.0,
        )
        c = tl.load(
            x_ptr + columns[None, :] * stride_row + d[:, None],
            mask=(columns < num_columns)[None, :] & (d < dim)[:, None],
            other=0.0,
        )
        inner = tl.dot(a, c, inner, input_precision=PRECISION)
    is_column = columns < num_columns
    squares = tl.load(squares_ptr + columns, mask=is_column, other=0.0)
    labels = tl.load(labels_ptr + columns, mask=is_column, other=0)
    tile = tl.maximum(
        inner * -2.0 + (anchor_squares[:, None] + squares[None, :]), 0.0, propagate_nan=tl.PropagateNan.ALL
    )
    is_other = (anchor_labels[:, None] != labels[None, :]) & is_column[None, :]
    return tl.where(is_other, tile, float("inf"))


@triton.jit
def _anchors(squares_ptr, labels_ptr, num_anchors, BLOCK_A: tl.constexpr):
    """The anchors of a program: their rows [BLOCK_A], int64, which of these there are, d² to the origin, and labels."""
    anchors = tl.program_id(0).to(tl.int64) * BLOCK_A + tl.arange(0, BLOCK_A)
    is_anchor = anchors < num_anchors
    squares = tl.load(squares_ptr + anchors, mask=is_anchor, other=0.0)
    labels = tl.load(labels_ptr + anchors, mask=is_anchor, other=0)
    return anchors, is_anchor, squares, labels


@triton.jit
def _closest_kernel(
    x_ptr, squares_ptr, labels_ptr, distance_ptr, column_ptr,
    num_anchors, num_columns, dim, columns_a_part, stride_batch, stride_row,
    BLOCK_A: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The closest column of another label to each anchor, within one part of the columns."""
    part, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    x_ptr += batch * stride_batch
    squares_ptr += batch * num_columns
    labels_ptr += batch * num_columns
    anchors, is_anchor, anchor_squares, anchor_labels = _anchors(
        squares_ptr, labels_ptr, num_anchors, BLOCK_A
    )

    best = tl.full((BLOCK_A,), float("inf"), tl.float32)
    best_column = tl.full((BLOCK_A,), -1, tl.int32)
    first = part * columns_a_part
    for start in range(first, tl.minimum(first + columns_a_part, num_columns), BLOCK_C):
        columns = (start + tl.arange(0, BLOCK_C)).to(tl.int64)
        tile = _distances_to_others(
            x_ptr, squares_ptr, labels_ptr, anchors, anchor_squares, anchor_labels, columns,
            num_anchors, num_columns, dim, stride_row, BLOCK_A, BLOCK_C, BLOCK_D, PRECISION,
        )  # fmt: skip
        nearest, place = tl.min(tile, axis=1, return_indices=True)
        closer = nearest < best  # of equal ones the first stays
        best = tl.where(closer, nearest, best)
        best_column = tl.where(closer, start + place, best_column)
    out = (batch * tl.num_programs(1) + part) * num_anchors + anchors
    tl.store(distance_ptr + out, best, mask=is_anchor)
    tl.store(column_ptr + out, best_column, mask=is_anchor)


@triton.jit
def _pair_distances_kernel(
    x_ptr, other_ptr, distance_ptr, num_anchors, dim, num_others, stride_batch, stride_row,
    BLOCK_A: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """d² of each anchor to one of its listed columns; 0 where none is listed (−1). Differences, not inner products."""
    k, batch = tl.program_id(0) % num_others, tl.program_id(1).to(tl.int64)
    anchors = (tl.program_id(0) // num_others).to(tl.int64) * BLOCK_A + tl.arange(0, BLOCK_A)
    x_ptr += batch * stride_batch
    is_anchor = anchors < num_anchors
    place = (batch * num_anchors + anchors) * num_others + k
    others = tl.load(other_ptr + place, mask=is_anchor, other=-1).to(tl.int64)
    is_pair = is_anchor & (others >= 0)
    total = tl.zeros((BLOCK_A,), tl.float32)
    for start in range(0, dim, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        mask = is_pair[:, None] & (d < dim)[None, :]
        a = tl.load(x_ptr + anchors[:, None] * stride_row + d[None, :], mask=mask, other=0.0).to(tl.float32)
        b = tl.load(x_ptr + others[:, None] * stride_row + d[None, :], mask=mask, other=0.0).to(tl.float32)
        total += tl.sum((a - b) * (a - b), axis=1)
    tl.store(distance_ptr + place, total, mask=is_anchor)


@triton.jit
def _mixed(x):
    """A hash of 32 bits: murmur3's last step."""
    x = x ^ (x >> 16)
    x = x * 0x85EBCA6B
    x = x ^ (x >> 13)
    x = x * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def _window_kernel(
    x_ptr, squares_ptr, labels_ptr, low_ptr, high_ptr, found_ptr, seed_ptr,
    num_anchors, num_columns, dim, num_positives, columns_a_part, stride_batch, stride_row,
    CHOICE: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """For each pair a column of another label whose d² to the anchor lies in the pair's window, low < d² < high.

    One key for each pair, int64, the column in its low half, in the high half what it is chosen by: the greatest is
    kept. RANDOM: 24 bits that random bits of (anchor, column) and of the pair are mixed to. Columns are alike, so each has
    the same chance; and the pairs of an anchor, whose greatest lie elsewhere, choose apart from each other.
    CLOSEST: the bits of −d², so to speak; of equal ones the first column.
    """
    part, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    x_ptr += batch * stride_batch
    squares_ptr += batch * num_columns
    labels_ptr += batch * num_columns
    anchors, is_anchor, anchor_squares, anchor_labels = _anchors(
        squares_ptr, labels_ptr, num_anchors, BLOCK_A
    )
    pairs = (batch * num_anchors + anchors) * num_positives
    found = ((batch * tl.num_programs(1) + part) * num_anchors + anchors) * num_positives
    seed = tl.load(seed_ptr).to(tl.uint32, bitcast=True)
    # Added, not XORed, to a hash of it: seeds near each other would only hand the same draws to other anchors.
    row_seed = _mixed((batch * num_anchors + anchors).to(tl.uint32) * 0x9E3779B1 + _mixed(seed))

    first = part * columns_a_part
    for start in range(first, tl.minimum(first + columns_a_part, num_columns), BLOCK_C):
        columns = (start + tl.arange(0, BLOCK_C)).to(tl.int64)
        tile = _distances_to_others(
            x_ptr, squares_ptr, labels_ptr, anchors, anchor_squares, anchor_labels, columns,
            num_anchors, num_columns, dim, stride_row, BLOCK_A, BLOCK_C, BLOCK_D, PRECISION,
        )  # fmt: skip
        if CHOICE == RANDOM:
            chance = _mixed(row_seed[:, None] ^ (columns.to(tl.uint32) * 0x9E3779B1)[None, :])
        for k in tl.range(0, num_positives, num_stages=1):
            low = tl.load(low_ptr + pairs + k, mask=is_anchor, other=float("inf"))
            high = tl.load(high_ptr + pairs + k, mask=is_anchor, other=0.0)
            inside = (tile > low[:, None]) & (tile < high[:, None])
            before = tl.load(found_ptr + found + k, mask=is_anchor, other=-1)
            if CHOICE == RANDOM:
                own = _mixed(row_seed ^ ((tl.zeros_like(row_seed) + (k + 1)) * 0x27D4EB2F))
                # Without the product, whose high bits depend on all, pairs would agree half as often again as by chance.
                drawn = (((chance ^ own[:, None]) * 0x9E3779B1) >> 8).to(tl.int32)
                drawn = tl.where(inside, drawn, -1)
                greatest, place = tl.max(drawn, axis=1, return_indices=True)
                key = (greatest.to(tl.int64) << 32) | (start + place).to(tl.int64)
                is_any = greatest >= 0
            else:
                nearest, place = tl.min(tl.where(inside, tile, float("inf")), axis=1, return_indices=True)
                is_any = nearest < float("inf")
                nearness = 0x7F800000 - nearest.to(tl.int32, bitcast=True)
                key = (nearness.to(tl.int64) << 32) | (0x7FFFFFFF - (start + place)).to(tl.int64)
            tl.store(found_ptr + found + k, tl.maximum(before, key), mask=is_anchor & is_any)
        tl.debug_barrier()  # what this tile's threads have stored is what the next one's load


@triton.jit
def _pair_gradient_kernel(
    x_ptr, other_ptr, weight_ptr, begin_ptr, out_ptr, dim, stride_row,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Row i of 2 (diag(W·1) − W) X, W sparse: the entries of row i are begin[i] to begin[i + 1], in a fixed order."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_dim = d < dim
    own = tl.load(x_ptr + row * stride_row + d, mask=is_dim, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for entry in range(tl.load(begin_ptr + row), tl.load(begin_ptr + row + 1)):
        other = tl.load(other_ptr + entry)
        weight = tl.load(weight_ptr + entry)
        total += weight * (
            own - tl.load(x_ptr + other * stride_row + d, mask=is_dim, other=0.0).to(tl.float32)
        )
    tl.store(out_ptr + row * dim + d, 2.0 * total, mask=is_dim)


def closest_others(
    rows_BCD: Tensor, labels_BC: Tensor, num_anchors: int, precision: Precision
) -> tuple[Tensor, Tensor]:
    """d² [B, A], float32, of each anchor to the closest column of another label, and that column [B, A], int64.

    Of equally close ones the first. Without any: infinity, and no column of meaning.
    """
    rows_BCD, labels_BC = rows_BCD.contiguous(), labels_BC.contiguous()
    batches, num_columns, dim = rows_BCD.shape
    blocks = _blocks(rows_BCD.dtype, precision, dim)
    of_anchors = triton.cdiv(num_anchors, blocks["BLOCK_A"])
    num_parts, columns_a_part = parts(batches * of_anchors, num_columns, blocks["BLOCK_C"], PROGRAMS)
    distance = torch.empty((batches, num_parts, num_anchors), dtype=torch.float32, device=rows_BCD.device)
    column = torch.empty((batches, num_parts, num_anchors), dtype=torch.int32, device=rows_BCD.device)
    with on_device_of(rows_BCD):
        _closest_kernel[(of_anchors, num_parts, batches)](
            rows_BCD, _squares(rows_BCD), labels_BC, distance, column,
            num_anchors, num_columns, dim, columns_a_part, rows_BCD.stride(0), rows_BCD.stride(1),
            PRECISION=precision, **blocks,
        )  # fmt: skip
    keys = (distance.view(torch.int32).to(torch.int64) << 32) | column.to(torch.int64).clamp_min(0)
    key = keys.amin(1)  # parts are in the order of columns: equal distances go to the first
    return (key >> 32).to(torch.int32).view(torch.float32), key & 0xFFFFFFFF


def listed_distances(rows_BCD: Tensor, listed_BAK: Tensor) -> Tensor:
    """d² [B, A, K], float32, of anchor a (row a) to each of its listed columns, int64; 0 where −1 is listed."""
    rows_BCD, listed_BAK = rows_BCD.contiguous(), listed_BAK.contiguous()
    batches, num_anchors, num_listed = listed_BAK.shape
    dim = rows_BCD.shape[2]
    distance = torch.empty(listed_BAK.shape, dtype=torch.float32, device=rows_BCD.device)
    block = 16
    with on_device_of(rows_BCD):
        _pair_distances_kernel[(triton.cdiv(num_anchors, block) * num_listed, batches)](
            rows_BCD, listed_BAK, distance, num_anchors, dim, num_listed, rows_BCD.stride(0), rows_BCD.stride(1),
            BLOCK_A=block, BLOCK_D=min(triton.next_power_of_2(dim), 128), enable_fp_fusion=True,
        )  # fmt: skip
    return distance


def one_in_each_window(
    rows_BCD: Tensor,
    labels_BC: Tensor,
    low_BAK: Tensor,
    high_BAK: Tensor,
    *,
    seed: Tensor | None,
    precision: Precision,
) -> Tensor:
    """For each pair, a column [B, A, K], int64, of another label than the anchor's with low < d² < high; −1 for none.

    seed: int32 scalar on the device, for one drawn uniformly; None: the closest, of equal ones the first.
    """
    rows_BCD, labels_BC = rows_BCD.contiguous(), labels_BC.contiguous()
    low_BAK, high_BAK = low_BAK.contiguous(), high_BAK.contiguous()
    batches, num_anchors, num_positives = low_BAK.shape
    num_columns, dim = rows_BCD.shape[1:]
    blocks = _blocks(rows_BCD.dtype, precision, dim, window=True)
    of_anchors = triton.cdiv(num_anchors, blocks["BLOCK_A"])
    num_parts, columns_a_part = parts(batches * of_anchors, num_columns, blocks["BLOCK_C"], PROGRAMS)
    found = torch.full((batches, num_parts, num_anchors, num_positives), -1, device=rows_BCD.device)
    zero = torch.zeros((), dtype=torch.int32, device=rows_BCD.device)
    with on_device_of(rows_BCD):
        _window_kernel[(of_anchors, num_parts, batches)](
            rows_BCD, _squares(rows_BCD), labels_BC, low_BAK, high_BAK, found, zero if seed is None else seed,
            num_anchors, num_columns, dim, num_positives, columns_a_part, rows_BCD.stride(0), rows_BCD.stride(1),
            CHOICE=CLOSEST if seed is None else RANDOM, PRECISION=precision, **blocks,
        )  # fmt: skip
    key = found.amax(1)
    column = key & 0xFFFFFFFF if seed is not None else 0x7FFFFFFF - (key & 0xFFFFFFFF)
    return torch.where(key >= 0, column, -1)


def pair_gradient(rows_ND: Tensor, first_T: Tensor, second_T: Tensor, grad_T: Tensor) -> Tensor:
    """Gradient [N, D], float32, of Σ grad · |x_first − x_second|². Pairs whose ``first`` is negative count for nothing.

    The pairs are sorted by row, so that each row's sum is over the same terms in the same order each time.
    """
    rows_ND = rows_ND.contiguous()
    num_rows, dim = rows_ND.shape
    either = torch.cat([first_T, torch.where(first_T < 0, first_T, second_T)])
    either = torch.where(either < 0, num_rows, either)  # behind all rows
    either, order = either.sort(stable=True)
    begin = torch.searchsorted(either, torch.arange(num_rows + 1, device=rows_ND.device))
    other = torch.cat([second_T, first_T])[order]
    weight = torch.cat([grad_T, grad_T])[order]
    gradient = torch.empty((num_rows, dim), dtype=torch.float32, device=rows_ND.device)
    block = min(triton.next_power_of_2(dim), 256)
    with on_device_of(rows_ND):
        _pair_gradient_kernel[(num_rows, triton.cdiv(dim, block))](
            rows_ND,
            other,
            weight,
            begin,
            gradient,
            dim,
            rows_ND.stride(0),
            BLOCK_D=block,
            enable_fp_fusion=True,
        )
    return gradient


def _squares(rows_BCD: Tensor) -> Tensor:
    return rows_BCD.float().square().sum(2)


def _blocks(dtype: torch.dtype, precision: Precision, dim: int, *, window: bool = False) -> dict[str, Any]:
    """Sizes of tiles. Exact float32 has no tensor cores; a window's comparisons need registers beside the tile: what is
    larger than this spills (benchmarks/compile_kernels.py)."""
    exact = dtype == torch.float32 and precision == "ieee"
    depth = 16 if exact else 32 if dtype == torch.float32 else 64
    return {
        "BLOCK_A": 64 if exact or window else 128,
        "BLOCK_C": 64 if exact else 128,
        "BLOCK_D": min(depth, max(16, triton.next_power_of_2(dim))),
        "num_warps": 8,
        "num_stages": 3,
        "enable_fp_fusion": True,
    }
