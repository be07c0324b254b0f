"""Exact search among embeddings, a block at a time: who is most like this one, and how many are as like as that?

Every score here is the inner product of two float32 vectors (of unit vectors: the cosine), reached so that it
depends on those two vectors and on nothing else: not on block sizes, device, threads, library, or on what
else is searched. A plain float32 product does not have that: its last bits change with the shape of the
matrices, and with them the order of rows that are nearly or exactly alike. So scores are defined thus:

1. A vector is divided by the power of two near its norm (1 for unit vectors) and rounded to 26 binary places,
   which moves a component of a unit vector by at most 7.5e-9.
2. Products of such numbers have 52 binary places and their sums stay below 2, so float64 holds each partial
   sum without error, whatever the order of summation.
3. The sum, scaled back, is rounded to float32.

Float32 products only propose: whatever lies within their error bound of a decision is decided by the exact
score. Memory is bounded by a block, not by Q × G.

Shapes: Q queries, G gallery rows, D dimensions, P pairs of a query and a gallery row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from facetrain.errors import UserError
from facetrain.kernels.launch import products_in

BLOCK_BYTES = 64 << 20  # of one block of similarities; what else is needed for it is about twice that
FAISS_FROM = 10**9  # pairs: a quarter faster on two cores; below, importing it takes longer than the search
QUERY_ROWS = 2048  # of a block, at most: enough for matrix products to be fast

Backend = Literal["torch", "faiss"]
Embeddings = NDArray[Any] | Tensor
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_PLACES = 2.0**26
_LOW_WORD = 0xFFFFFFFF
_NO_KEY = -(2**63)
_CHUNK = 64  # columns, see _largest


def top_k(
    queries: Embeddings,
    gallery: Embeddings,
    k: int,
    *,
    exclude_self: bool = False,
    backend: Backend | None = None,
    device: torch.device | str | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[Floats, Ints]:
    """(scores float32 [Q, k], gallery rows int64 [Q, k]) of the gallery rows most like each query, best
    first; of equal scores the lower row first.

    ``queries`` [Q, D] and ``gallery`` [G, D] are NumPy arrays (memory-mapped ones too) or tensors, taken as
    float32. Where there are fewer than k rows to give, the rest is score -inf, row -1. ``exclude_self``: the
    two are the same set, and row i is no result of query i. ``device`` None: that of ``queries`` if a tensor,
    else the processor. ``backend``: what proposes candidates, from which the results are chosen, the same bit for
    bit; None: on the processor faiss where it is installed and the search is large, else torch.

    Raises ValueError for NaN, infinite values or arrays that do not fit together, UserError when faiss is
    asked for and not installed.
    """
    device = _check(queries, gallery, device, block_bytes)
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if exclude_self and len(queries) != len(gallery):
        raise ValueError(f"exclude_self needs one set, not {len(queries)} queries in {len(gallery)} rows")
    if backend is None:
        large = len(queries) * len(gallery) >= FAISS_FROM
        backend = "faiss" if large and device.type == "cpu" and find_spec("faiss") else "torch"
    faiss = _faiss() if backend == "faiss" else None
    if faiss and device.type != "cpu":
        raise ValueError("faiss searches on the processor: leave device out")

    available = max(0, len(gallery) - exclude_self)
    found = min(k, available)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    query_norm, gallery_norm = _largest_norm(queries, block_bytes), _largest_norm(gallery, block_bytes)
    _check_range(query_norm, gallery_norm)
    if found == 0 or len(queries) == 0:
        return scores, rows

    # A few more than k are proposed, so that nearly always the k-th is clearly above all that were not.
    proposed = min(available, k + max(8, k // 4))
    unsure = []
    with _plain_float32(device):
        for ids in _query_blocks(len(queries), len(gallery), block_bytes, kept=proposed):
            q = _take(queries, ids, device)
            own = torch.as_tensor(ids, device=device) if exclude_self else None
            if faiss:
                guess, guessed_rows = _propose_by_faiss(faiss, q, gallery, proposed, own)
            else:
                guess, guessed_rows = _propose(q, gallery, proposed, own, block_bytes)
            keys = _keys(_scores_of(q, gallery, guessed_rows, block_bytes), guessed_rows)
            best, best_rows = _unkey(keys.topk(found, dim=1).values)
            scores[ids, :found], rows[ids, :found] = best.cpu().numpy(), best_rows.cpu().numpy()
            if proposed < available:
                sure = best[:, -1].double() > guess[:, -1].double() + _error_bound(q, gallery_norm)
                unsure.append(ids[~sure.cpu().numpy()])
        left = np.concatenate(unsure) if unsure else np.empty(0, dtype=np.int64)
        if len(left):
            scores[left, :found], rows[left, :found] = _top_k_of_all(
                queries, left, gallery, found, exclude_self, device, block_bytes
            )
    return scores, rows


def scores_of_pairs(
    queries: Embeddings,
    gallery: Embeddings,
    query_rows: ArrayLike,
    gallery_rows: ArrayLike,
    *,
    device: torch.device | str | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Floats:
    """Scores float32 [P] of the pairs (``query_rows[p]``, ``gallery_rows[p]``), int64 [P] each: what
    :func:`top_k` would say of them. Raises as it does, and IndexError for rows that are not there."""
    device = _check(queries, gallery, device, block_bytes)
    first, second = np.asarray(query_rows, dtype=np.int64), np.asarray(gallery_rows, dtype=np.int64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"pairs must be two lists of one length, not {first.shape} and {second.shape}")
    scores = np.empty(len(first), dtype=np.float32)
    step = _pairs_at_once(queries.shape[1], block_bytes)
    for start in range(0, len(first), step):
        part = slice(start, start + step)
        a, b = _take(queries, first[part], device), _take(gallery, second[part], device)
        if not bool(a.isfinite().all() and b.isfinite().all()):
            raise ValueError("embeddings must be finite numbers")
        scores[part] = _pair_scores(a, b).cpu().numpy()
    if not np.isfinite(scores).all():
        raise ValueError("embeddings are so long that their inner products leave float32")
    return scores


def count_at_or_above(
    queries: Embeddings,
    gallery: Embeddings,
    query_rows: ArrayLike,
    thresholds: ArrayLike,
    *,
    ends: Sequence[int] | None = None,
    device: torch.device | str | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Ints:
    """How many gallery rows score at or above each threshold, int64 [P, number of ends].

    Threshold p (``thresholds`` float32 [P]) is for query ``query_rows[p]`` (int64 [P]); a query may have
    any number of them. ``ends`` asks for the counts among the first ``ends[e]`` gallery rows, for each e;
    None: among all. Equal counts as above, exactly. Raises ValueError as :func:`top_k`, and for NaN.
    """
    device = _check(queries, gallery, device, block_bytes)
    query_of_pair = np.asarray(query_rows, dtype=np.int64)
    limits = np.asarray(thresholds, dtype=np.float32)
    if query_of_pair.ndim != 1 or query_of_pair.shape != limits.shape:
        raise ValueError(
            f"query_rows and thresholds must be two lists of one length, not {query_of_pair.shape} and "
            f"{limits.shape}"
        )
    if np.isnan(limits).any():
        raise ValueError("thresholds must be numbers")
    asked = [len(gallery)] if ends is None else [int(end) for end in ends]
    if any(end < 0 or end > len(gallery) for end in asked):
        raise ValueError(f"ends must lie between 0 and the gallery's {len(gallery)} rows, not {asked}")
    query_norm, gallery_norm = _largest_norm(queries, block_bytes), _largest_norm(gallery, block_bytes)
    _check_range(query_norm, gallery_norm)

    borders = sorted({0, *asked})
    counts = np.zeros((len(limits), len(borders)), dtype=np.int64)  # between a border and the one before it
    # Queries with as many thresholds stand together, so that few blocks have to be looked at many times.
    used, pair_counts = np.unique(query_of_pair, return_counts=True)
    order = np.argsort(pair_counts, kind="stable")
    used, pair_counts = used[order], pair_counts[order]
    place = np.empty(int(used.max()) + 1 if len(used) else 0, dtype=np.int64)
    place[used] = np.arange(len(used))
    pairs = np.argsort(place[query_of_pair], kind="stable")
    first_pair = np.cumsum(pair_counts) - pair_counts

    with _plain_float32(device):
        for block in _query_blocks(len(used), len(gallery), block_bytes):
            mine = pairs[first_pair[block[0]] : first_pair[block[-1]] + pair_counts[block[-1]]]
            row = place[query_of_pair[mine]] - block[0]
            column = np.arange(len(mine)) - (first_pair[block] - first_pair[block[0]])[row]
            limits_QM = torch.full((len(block), int(pair_counts[block[-1]])), math.inf)
            limits_QM[torch.as_tensor(row), torch.as_tensor(column)] = torch.as_tensor(limits[mine])
            q = _take(queries, used[block], device)
            error = _error_bound(q, gallery_norm)
            step = min(max(1, block_bytes // 4 // len(block)), 2**24)
            for border in range(1, len(borders)):
                counts_QM = torch.zeros(limits_QM.shape, dtype=torch.int64, device=device)
                for start in range(borders[border - 1], borders[border], step):
                    g = _slice(gallery, start, min(start + step, borders[border]), device)
                    counts_QM += _count_in_block(q, g, limits_QM.to(device), error, block_bytes)
                counts[mine, border] = counts_QM.cpu().numpy()[row, column]
    return np.cumsum(counts, axis=1)[:, np.searchsorted(borders, asked)]


# The exact score.


def _fixed_point(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """(float64 [N, D] of 26 binary places and norm 0.5 to 1.12, float64 [N] powers of two): x is about their
    product."""
    x_ND = x_ND.double()
    # 0.9 keeps the norms of unit vectors, 1 ± 1e-6, away from where the power changes.
    size = 0.9 * x_ND.square().sum(1).sqrt()
    mantissa = torch.frexp(size).mantissa
    scale = torch.where(size > 0, size / mantissa, 1.0)  # a quotient that is a power of two is exact
    return (x_ND / scale[:, None] * _PLACES).round() / _PLACES, scale


def _pair_scores(a_PD: Tensor, b_PD: Tensor) -> Tensor:
    a, a_scale = _fixed_point(a_PD)
    b, b_scale = _fixed_point(b_PD)
    return ((a * b).sum(1) * (a_scale * b_scale)).float()


def _block_scores(q_QD: Tensor, g_GD: Tensor) -> Tensor:
    """The same for all pairs, float32 [Q, G]."""
    q, q_scale = _fixed_point(q_QD)
    g, g_scale = _fixed_point(g_GD)
    return (q @ g.T).mul_(q_scale[:, None]).mul_(g_scale).float()


def _error_bound(q_QD: Tensor, gallery_norm: float) -> Tensor:
    """How far a float32 product can be from the exact score, float64 [Q]: D roundings of the sum, in any
    order; the fixed-point rounding of both vectors (below √D/2 such); a few of the score and of what it is
    compared with; and underflow."""
    dim = q_QD.shape[1]
    relative = (dim + math.sqrt(dim) + 6) * 2.0**-24 * 1.01
    return q_QD.double().square().sum(1).sqrt() * (gallery_norm * relative) + dim * 2.0**-120


def _scores_of(q_QD: Tensor, gallery: Embeddings, rows_QM: Tensor, block_bytes: int) -> Tensor:
    """Exact scores float32 [Q, M] of each query with gallery rows of its own."""
    (queries, width), device = rows_QM.shape, q_QD.device
    scores = torch.empty((queries, width), dtype=torch.float32, device=device)
    step = max(1, _pairs_at_once(q_QD.shape[1], block_bytes) // width)
    for start in range(0, queries, step):
        rows = rows_QM[start : start + step]
        g = _take(gallery, rows.flatten().cpu().numpy(), device)
        q = q_QD[start : start + step].repeat_interleave(width, dim=0)
        scores[start : start + step] = _pair_scores(q, g).view(rows.shape)
    return scores


def _pairs_at_once(dim: int, block_bytes: int) -> int:
    return max(1, block_bytes // (48 * max(1, dim)))  # float32 and float64 of both, and intermediate ones


# Order: by score, then by row. One integer holds both, so that no two are equal.


def _keys(scores: Tensor, rows: Tensor) -> Tensor:
    """int64: score in the high word, row in the low one, turned so that larger keys come first."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (order << 32) | (_LOW_WORD - rows)


def _unkey(keys: Tensor) -> tuple[Tensor, Tensor]:
    order = keys >> 32
    bits = torch.where(order < 0, order ^ 0x7FFFFFFF, order).int()
    return bits.view(torch.float32), _LOW_WORD - (keys & _LOW_WORD)


# Blocks.


def _propose(
    q_QD: Tensor, gallery: Embeddings, count: int, own: Tensor | None, block_bytes: int
) -> tuple[Tensor, Tensor]:
    """(float32 products, gallery rows) [Q, count] of the largest products, largest first, in any order where
    they are equal. ``own`` int64 [Q]: gallery row to leave out."""
    queries, device = len(q_QD), q_QD.device
    step = max(1, block_bytes // 4 // queries)
    buffer = torch.empty(queries * min(step, len(gallery)), device=device)
    best = torch.empty((queries, 0), device=device)
    rows = torch.empty((queries, 0), dtype=torch.int64, device=device)
    for start in range(0, len(gallery), step):
        g = _slice(gallery, start, start + step, device)
        products = torch.mm(q_QD, g.T, out=buffer[: queries * len(g)].view(queries, len(g)))
        if own is not None:
            here = ((own >= start) & (own < start + len(g))).nonzero()[:, 0]
            products[here, own[here] - start] = -math.inf
        floor = best[:, -1:] if best.shape[1] == count else None
        values, columns = _largest(products, min(count, len(g)), floor)
        best, rows = torch.cat([best, values], dim=1), torch.cat([rows, columns + start], dim=1)
        best, picked = best.topk(min(count, best.shape[1]), dim=1)
        rows = rows.gather(1, picked)
    return best, rows


def _largest(products_QG: Tensor, count: int, floor_Q1: Tensor | None) -> tuple[Tensor, Tensor]:
    """(values, columns) of the ``count`` largest in each row, or of fewer where no row has so many above its
    floor.

    The largest ones are in the chunks of 64 columns with the largest maxima. Late in a long gallery few
    chunks have anything above the floor, and this takes much less time than a plain top-k.
    """
    queries, columns = products_QG.shape
    width = count
    if columns % _CHUNK == 0:
        chunks = products_QG.view(queries, -1, _CHUNK)
        maxima = chunks.amax(2)
        if floor_Q1 is not None:
            width = min(width, int((maxima > floor_Q1).sum(1).max()))
        if 2 * width <= maxima.shape[1]:
            chosen = maxima.topk(width, dim=1).indices
            kept = chunks.gather(1, chosen[:, :, None].expand(-1, -1, _CHUNK)).flatten(1)
            values, picked = kept.topk(min(count, kept.shape[1]), dim=1)
            return values, chosen.gather(1, picked // _CHUNK) * _CHUNK + picked % _CHUNK
    values, picked = products_QG.topk(count, dim=1)
    return values, picked


def _propose_by_faiss(
    faiss: ModuleType, q_QD: Tensor, gallery: Embeddings, count: int, own: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same from faiss: its flat inner-product search, without the index's copy of the gallery."""
    flat = gallery.numpy() if isinstance(gallery, Tensor) else gallery
    flat = np.ascontiguousarray(flat, dtype=np.float32)
    extra = int(own is not None)
    found = faiss.knn(q_QD.numpy(), flat, count + extra, metric=faiss.METRIC_INNER_PRODUCT)
    values, rows = torch.as_tensor(found[0]), torch.as_tensor(found[1])
    if own is not None:
        values = values.masked_fill(rows == own[:, None], -math.inf)
        values, order = values.sort(dim=1, descending=True)
        values, rows = values[:, :count], rows.gather(1, order)[:, :count]
    return values, rows


def _top_k_of_all(
    queries: Embeddings,
    ids: Ints,
    gallery: Embeddings,
    count: int,
    exclude_self: bool,
    device: torch.device,
    block_bytes: int,
) -> tuple[Floats, Ints]:
    """:func:`top_k` of some queries by exact scores of all pairs: slow, for crowds that float32 cannot tell
    apart (a network that gives nearly the same embedding to all)."""
    scores = np.empty((len(ids), count), dtype=np.float32)
    rows = np.empty((len(ids), count), dtype=np.int64)
    block_bytes //= 6  # float64 products and integer keys are twice as large, and there are two of the latter
    for block in _query_blocks(len(ids), len(gallery), block_bytes, kept=count):
        q = _take(queries, ids[block], device)
        own = torch.as_tensor(ids[block], device=device)
        best = torch.empty((len(block), 0), dtype=torch.int64, device=device)
        step = max(1, block_bytes // 4 // len(block))
        for start in range(0, len(gallery), step):
            g = _slice(gallery, start, start + step, device)
            g_rows = torch.arange(start, start + len(g), device=device)
            keys = _keys(_block_scores(q, g), g_rows)
            if exclude_self:
                keys.masked_fill_(g_rows == own[:, None], _NO_KEY)
            best = torch.cat([best, keys], dim=1)
            best = best.topk(min(count, best.shape[1]), dim=1).values
        found = _unkey(best)
        scores[block], rows[block] = found[0].cpu().numpy(), found[1].cpu().numpy()
    return scores, rows


def _count_in_block(
    q_QD: Tensor, g_GD: Tensor, limits_QM: Tensor, error_Q: Tensor, block_bytes: int
) -> Tensor:
    """How many exact scores of a block are at or above each of M limits a query, int64 [Q, M]."""
    products = q_QD @ g_GD.T
    counts = torch.zeros(limits_QM.shape, dtype=torch.int64, device=q_QD.device)
    # Most queries have nothing to count in most blocks.
    lowest = (limits_QM.amin(1).double() - error_Q).float()
    active = (products.amax(1) >= lowest).nonzero()[:, 0]
    if len(active) == 0:
        return counts
    if len(active) < len(q_QD):
        products, q_QD = products[active], q_QD[active]
    limits_QM, error_Q = limits_QM[active], error_Q[active]
    flags = torch.empty_like(products)  # 0 and 1 as float32: exact to 2**24, much faster to sum than bool

    for column in range(limits_QM.shape[1]):
        limit = limits_QM[:, column : column + 1]
        upper = (limit.double() + error_Q[:, None]).float()
        lower = (limit.double() - error_Q[:, None]).float()
        sure = torch.ge(products, upper, out=flags).sum(1).long()
        possible = torch.ge(products, lower, out=flags).sum(1).long()
        doubts = int((possible - sure).sum())
        if doubts * 16 > products.numel():  # a crowd: cheaper to have all scores of the block exactly
            part = max(1, len(q_QD) // 4)
            for start in range(0, len(q_QD), part):
                products[start : start + part] = _block_scores(q_QD[start : start + part], g_GD)
            error_Q = torch.zeros_like(error_Q)
            sure = torch.ge(products, limit, out=flags).sum(1).long()
        elif doubts:
            rows = (possible > sure).nonzero()[:, 0]
            near = (products[rows] >= lower[rows]) & (products[rows] < upper[rows])
            row, other = near.nonzero().unbind(1)
            row = rows[row]
            step = _pairs_at_once(q_QD.shape[1], block_bytes)
            for i, j in zip(row.split(step), other.split(step), strict=True):
                above = _pair_scores(q_QD[i], g_GD[j]) >= limit[i, 0]
                sure.index_add_(0, i, above.long())
        counts[active, column] = sure
    return counts


def _query_blocks(queries: int, gallery: int, block_bytes: int, *, kept: int = 1) -> Iterator[Ints]:
    """Row numbers 0 to ``queries`` - 1 in runs; a block of similarities is a run by as many gallery rows as
    ``block_bytes`` allow. ``kept``: results held for each query meanwhile."""
    floats = max(1, block_bytes // 4)
    rows = max(1, min(QUERY_ROWS, math.isqrt(floats)))
    if gallery < floats // rows:  # a small gallery: more queries at a time
        rows = max(rows, min(QUERY_ROWS * 8, floats // max(1, gallery)))
    rows = max(1, min(rows, floats // (8 * kept)))  # some 32 bytes of scores, rows and keys for each
    for start in range(0, queries, rows):
        yield np.arange(start, min(start + rows, queries))


def _slice(x: Embeddings, start: int, stop: int, device: torch.device) -> Tensor:
    if isinstance(x, Tensor):
        return x[start:stop].detach().to(device=device, dtype=torch.float32)
    return torch.from_numpy(np.array(x[start:stop], dtype=np.float32)).to(device)  # a copy: may be read-only


def _take(x: Embeddings, rows: Ints, device: torch.device) -> Tensor:
    if isinstance(x, Tensor):
        picked = x.detach()[torch.as_tensor(rows, device=x.device)]
        return picked.to(device=device, dtype=torch.float32)
    return torch.from_numpy(np.ascontiguousarray(x[rows], dtype=np.float32)).to(device)


def _largest_norm(x: Embeddings, block_bytes: int) -> float:
    """Of all rows; raises ValueError unless all values are finite."""
    largest = 0.0
    step = max(1, block_bytes // (16 * max(1, x.shape[1])))
    device = x.device if isinstance(x, Tensor) else torch.device("cpu")
    for start in range(0, len(x), step):
        norms = _slice(x, start, start + step, device).double().square().sum(1).sqrt()
        if not bool(norms.isfinite().all()):
            row = start + int((~norms.isfinite()).nonzero()[0])
            raise ValueError(f"embeddings must be finite numbers in float32; row {row} is not")
        largest = max(largest, float(norms.max()))
    return largest


def _check_range(query_norm: float, gallery_norm: float) -> None:
    if query_norm * gallery_norm > 2.0**120:
        raise ValueError("embeddings are so long that their inner products leave float32")


def _check(
    queries: Embeddings, gallery: Embeddings, device: torch.device | str | None, block_bytes: int
) -> torch.device:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"queries and gallery must be [Q, D] and [G, D], not {tuple(queries.shape)} and "
            f"{tuple(gallery.shape)}"
        )
    if len(gallery) > _LOW_WORD:
        raise ValueError(f"a gallery may have up to {_LOW_WORD:,} rows, not {len(gallery):,}")
    if block_bytes < 1:
        raise ValueError(f"block_bytes must be positive, not {block_bytes}")
    if device is not None:
        return torch.device(device)
    return queries.device if isinstance(queries, Tensor) else torch.device("cpu")


@contextmanager
def _plain_float32(device: torch.device) -> Iterator[None]:
    """Products in whole float32, whatever a training has set (TF32, autocast): the error bound needs it."""
    with products_in("ieee"), torch.autocast(device.type, enabled=False), torch.no_grad():
        yield


def _faiss() -> ModuleType:
    try:
        return import_module("faiss")
    except ImportError as error:
        raise UserError(
            'backend "faiss" needs faiss: pip install faiss-cpu, or leave the backend at "torch"'
        ) from error
