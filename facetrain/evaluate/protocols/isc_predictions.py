"""Which pairs of a query and a reference are predicted: those with the least distances, exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.evaluate.search import Embeddings, top_k

BLOCK = 16384  # pairs whose distance is computed at a time

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Predictions:
    """P of them, the best first: rows of queries and references int64 [P]; scores float64 [P], minus the squared distance."""

    queries: Ints
    references: Ints
    scores: Floats


def predict(
    queries: Embeddings,
    query_rows: Ints,
    references: Embeddings,
    reference_rows: Ints,
    true_rows: Ints,
    *,
    number: int,
    per_query: int | None,
    device: Any = None,
) -> Predictions:
    """The ``number`` nearest pairs of ``queries`` [., D] and ``references`` [., D], of the rows that are named; with
    ``per_query`` only from among the nearest so many of each query.

    Squared Euclidean distance, in float64. Among equal distances those that are not in ``true_rows`` (int64 [T, 2], rows of
    query and reference) come first, the worst case, then those of lower rows; so it is decided too what is left out.
    """
    q = np.asarray(queries[query_rows], np.float32)
    r = np.asarray(references[reference_rows], np.float32)
    if not (len(q) and len(r)):
        none = np.zeros(0, np.int64)
        return Predictions(none, none, np.zeros(0))
    first, second = _candidates(q, r, number, per_query, device)
    scores = -_squared_distances(q, r, first, second)
    first, second = query_rows[first], reference_rows[second]
    columns = max(int(second.max()), int(true_rows[:, 1].max(initial=0))) + 1
    right = np.isin(first * columns + second, true_rows[:, 0] * columns + true_rows[:, 1])
    if per_query is not None:
        order = np.lexsort((second, right, -scores, first))
        starts = np.flatnonzero(np.diff(first[order], prepend=-1))
        place = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
        keep = order[place < per_query]
        first, second, scores, right = first[keep], second[keep], scores[keep], right[keep]
    order = np.lexsort((second, first, right, -scores))[:number]
    return Predictions(first[order], second[order], scores[order])


def _candidates(
    q: NDArray[np.float32], r: NDArray[np.float32], number: int, per_query: int | None, device: Any
) -> tuple[Ints, Ints]:
    """Rows of pairs among which are all that may be predicted.

    |q - r|² = |q|² - 2 (q·r - |r|²/2): of one query the nearest references are those with the largest inner product once
    |r|²/2 stands in two more columns. Each query gives its nearest ones; those that might have more to give are asked again for
    twice as many.
    """
    a, b, query_squares, slack = _as_products(q, r)
    asked = np.arange(len(q))
    # More than their share, for most queries to be asked once.
    width = 4 * math.ceil(number / len(q)) + 8 if per_query is None else per_query + 8
    first, second, scores = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    while True:
        width = min(width, len(r))
        products, found = top_k(a[asked], b, width, device=device)
        near = 2 * products.astype(np.float64) - query_squares[asked, None]
        others = ~np.isin(first, asked)
        first = np.concatenate([first[others], np.repeat(asked, width)])
        second = np.concatenate([second[others], found.reshape(-1)])
        scores = np.concatenate([scores[others], near.reshape(-1)])
        if per_query is None:
            worst = np.partition(scores, -number)[-number] if len(scores) >= number else -np.inf
            keep = scores >= worst - slack
            first, second, scores = first[keep], second[keep], scores[keep]
            unsure = near[:, -1] >= worst - slack
        else:
            unsure = near[:, -1] >= near[:, min(per_query, width) - 1] - slack
        if width == len(r) or not unsure.any():
            return first, second
        asked, width = asked[unsure], 2 * width


def _as_products(
    q: NDArray[np.float32], r: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], Floats, float]:
    """(queries and references with two more columns, |q|² of each query, what the search's rounding may make of a squared
    distance)."""
    halves = -_squares(r) / 2
    high = halves.astype(np.float32)
    low = (halves - high).astype(np.float32)
    a = np.concatenate([q, np.ones((len(q), 2), np.float32)], axis=1)
    b = np.concatenate([r, high[:, None], low[:, None]], axis=1)
    longest = math.sqrt(float(_squares(a).max()) * float(_squares(b).max()))
    slack = 8 * (2.0**-26 * math.sqrt(a.shape[1]) + 2.0**-24) * longest
    return a, b, _squares(q), slack


def _squares(x: NDArray[np.float32]) -> Floats:
    squares = np.empty(len(x))
    for start in range(0, len(x), BLOCK):
        squares[start : start + BLOCK] = (x[start : start + BLOCK].astype(np.float64) ** 2).sum(axis=1)
    return squares


def _squared_distances(q: NDArray[np.float32], r: NDArray[np.float32], first: Ints, second: Ints) -> Floats:
    distances = np.empty(len(first))
    for start in range(0, len(first), BLOCK):
        part = slice(start, start + BLOCK)
        distances[part] = ((q[first[part]].astype(np.float64) - r[second[part]]) ** 2).sum(axis=1)
    return distances
