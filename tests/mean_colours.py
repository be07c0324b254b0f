"""An embedder for tests of commands: quick, and better than chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from facetrain.evaluate.embedders.base import Embedder
from facetrain.image_spec import ImageSpec


class Means(Embedder):
    """The mean colour of each quarter of a crop, or of each cell of a finer grid."""

    def __init__(self, *, side_px: int = 32, cells: int = 2) -> None:
        self.spec = ImageSpec(size_px=side_px)
        self.cells = cells

    def of(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        cells, size_px = self.cells, self.spec.size_px // self.cells
        parts = crops.reshape(len(crops), cells, size_px, cells, size_px, 3)
        return parts.mean(axis=(2, 4), dtype=np.float32).reshape(len(crops), -1) - 127
