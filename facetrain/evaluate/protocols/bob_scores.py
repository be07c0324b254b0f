"""Scores of models and probes that are made of one photograph or several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from facetrain.evaluate.protocols.bob_lists import Group, Ints, Templates
from facetrain.evaluate.search import Embeddings
from facetrain.evaluate.templates import make_templates

BLOCK = 1024  # templates, compared at a time each with each
PAIRS = 8192  # of photographs, compared at a time one by one

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def scores_of(group: Group, embeddings: Embeddings, found: Bools, models: str) -> Floats:
    """Of each comparison of ``group``, in its order, the score, float64 [n]; -inf where one of the two has no face.

    models: ``mean``, the cosine of the means of both, scaled to length 1; ``max``, the highest of the cosines of a photograph
    of one with one of the other. Exact to float32, as `facetrain.evaluate.search` defines scores, whatever the blocks.
    """
    first = _faces(group.models, embeddings, found, models)
    second = _faces(group.probes, embeddings, found, models)
    if group.listed is not None:
        return _scores_of_listed(first, second, *group.listed)
    scores = np.empty((len(group.models), len(group.probes)))
    for i in _blocks(len(group.models)):
        here = slice(first.starts[i.start], first.starts[i.stop])
        a, at = first.fixed(here), first.starts[i] - first.starts[i.start]
        for j in _blocks(len(group.probes)):
            there = slice(second.starts[j.start], second.starts[j.stop])
            products = (a @ second.fixed(there).T).astype(np.float32).astype(np.float64)
            products[~first.usable[here]] = -np.inf
            products[:, ~second.usable[there]] = -np.inf
            highest = np.maximum.reduceat(products, at, axis=0)
            scores[i, j] = np.maximum.reduceat(highest, second.starts[j] - second.starts[j.start], axis=1)
    return scores.reshape(-1)


@dataclass(frozen=True, eq=False)
class Faces:
    """Embeddings of T templates' photographs, F of them, template by template: rows of ``embeddings``, int64 [F];
    usable bool [F]; starts int64 [T + 1], where each template's begin."""

    embeddings: Embeddings
    rows: Ints
    usable: Bools
    starts: Ints

    def fixed(self, part: slice | Ints) -> Floats:
        """Rounded to 26 binary places, as `facetrain.evaluate.search` defines scores: float64 holds the sums of products of
        such without error, so that they depend on nothing else."""
        values = np.asarray(self.embeddings[self.rows[part]], np.float64)
        rounded: Floats = np.round(values * 2.0**26) / 2.0**26
        return rounded


def _faces(side: Templates, embeddings: Embeddings, found: Bools, models: str) -> Faces:
    rows, templates = np.array(side.rows, np.int64), np.array(side.templates, np.int64)
    if models == "mean":
        every = np.arange(len(rows))  # each a medium of its own: the direction of their mean
        made = make_templates(embeddings, found, rows, templates, every, count=len(side))
        ones = np.arange(len(side) + 1)
        return Faces(made.embeddings, ones[:-1], made.valid, ones)
    order = np.argsort(templates, kind="stable")
    starts = np.searchsorted(templates[order], np.arange(len(side) + 1))
    return Faces(embeddings, rows[order], found[rows[order]], starts)


def _scores_of_listed(first: Faces, second: Faces, models: Ints, probes: Ints) -> Floats:
    sizes = np.diff(second.starts)[probes]
    numbers = np.diff(first.starts)[models] * sizes  # of pairs of photographs
    ends = np.cumsum(numbers)
    scores = np.empty(len(models))
    start = 0
    while start < len(models):
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + PAIRS, side="right")), start + 1)
        part = slice(start, stop)
        of = np.repeat(np.arange(start, stop), numbers[part])
        k = np.arange(len(of)) - (ends - numbers)[of] + before
        a, b = first.starts[models[of]] + k // sizes[of], second.starts[probes[of]] + k % sizes[of]
        products = np.einsum("ij,ij->i", first.fixed(a), second.fixed(b)).astype(np.float32)
        usable = first.usable[a] & second.usable[b]
        highest = np.where(usable, products.astype(np.float64), -np.inf)
        scores[part] = np.maximum.reduceat(highest, (ends - numbers)[part] - before)
        start = stop
    return scores


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))
