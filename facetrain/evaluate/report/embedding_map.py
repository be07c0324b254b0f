"""A map of embeddings: like faces near one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.evaluate.report.content import EmbeddingMap, Floats, Missing

MOST_POINTS = 2000
FEWEST_POINTS = 10
COMPONENTS = 50  # that t-SNE starts from


def embedding_map(
    embeddings: NDArray[np.float32], labels: NDArray[np.int64], names: Sequence[str]
) -> EmbeddingMap | Missing:
    """Embeddings float32 [n, D] in two dimensions: PCA to 50, then t-SNE (van der Maaten & Hinton, 2008) by scikit-learn;
    without it, the first two principal components. Of more than MOST_POINTS photographs, those of some people."""
    rows = whole_people(labels, MOST_POINTS)
    if len(rows) < FEWEST_POINTS:
        return Missing(
            f"{len(rows)} photographs are too few for a map: `ft split` can set more people apart."
        )
    components = principal_components(embeddings[rows], COMPONENTS)
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        points, method = components[:, :2], "the first two principal components"
        method += "; `pip install 'facetrain[report]'` brings t-SNE, which shows more"
    else:
        perplexity = float(round(min(30.0, math.sqrt(len(rows)))))
        points = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(components)
        method = f"t-SNE (perplexity {perplexity:g}) of the first {components.shape[1]} principal components"
    if len(rows) < len(labels):
        method += f"; {len(rows):,} of {len(labels):,} photographs, of people drawn at random"
    placed = principal_components(points, 2)  # turned, so that it is wider than high
    present, person = np.unique(labels[rows], return_inverse=True)
    return EmbeddingMap(placed, person, [names[label] for label in present.tolist()], method)


def principal_components(embeddings: NDArray[np.floating[Any]], count: int) -> Floats:
    """The coordinates float64 [n, min(count, n, D)] of most variance first."""
    centred = embeddings.astype(np.float64) - embeddings.mean(axis=0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    coordinates: Floats = (u * s)[:, :count]
    if coordinates.shape[1] < 2:
        coordinates = np.pad(coordinates, [(0, 0), (0, 2 - coordinates.shape[1])])
    return coordinates


def whole_people(labels: NDArray[np.int64], most: int, seed: int = 0) -> NDArray[np.int64]:
    """Rows, ascending, of people drawn at random, each with all photographs, as long as these are ``most`` at most; of a
    first person with more, some."""
    people, count = np.unique(labels, return_counts=True)
    if len(labels) <= most:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(people))
    taken = order[np.cumsum(count[order]) <= most]
    if not len(taken):
        return np.flatnonzero(labels == people[order[0]])[:most]
    return np.flatnonzero(np.isin(labels, people[taken]))
