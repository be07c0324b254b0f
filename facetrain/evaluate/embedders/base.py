"""The contract of an embedder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.image_spec import ImageSpec


class Embedder(ABC):
    """Turns crops into embeddings. Constructed as ``Embedder(**embedder_args)``.

    ``spec``: the crops that it takes; photographs are aligned to it.
    """

    spec: ImageSpec

    @abstractmethod
    def of(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embeddings [n, D], of any length, of crops uint8 [n, size_px, size_px, 3], RGB."""

    def embed(self, batches: Iterable[NDArray[np.uint8]], *, flip: bool = False) -> NDArray[np.float32]:
        """Embeddings of length 1, [n, D], of all crops, in their order. One of all zeros stays so.

        flip: of each crop and its mirror image the sum, before it is scaled (test-time augmentation).
        """
        parts = [
            _unit(self.of(crops) + self.of(mirrored(crops)) if flip else self.of(crops)) for crops in batches
        ]
        together = np.empty((sum(map(len, parts)), parts[0].shape[1]), np.float32)
        at = 0
        while parts:  # each goes when it is copied, so that there are never two of all
            part = parts.pop(0)
            together[at : at + len(part)] = part
            at += len(part)
        return together


def _unit(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(embeddings).all():
        raise UserError(
            "the network gives embeddings that are not finite: its weights are damaged, or its training diverged"
        )
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return (embeddings / np.where(lengths > 0, lengths, 1)).astype(np.float32, copy=False)


def mirrored(crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Left and right exchanged, in memory of its own."""
    return np.ascontiguousarray(crops[:, :, ::-1])
