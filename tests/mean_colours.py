"""An embedder for tests of commands: quick, and better than chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from facetrain.evaluate.embedders.base import Embedder
from facetrain.image_spec import ImageSpec


class Means(Embedder):
    """The mean colour of each quarter of a crop."""

    def __init__(self) -> None:
        self.spec = ImageSpec(size_px=32)

    def of(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        quarters = crops.reshape(len(crops), 2, 16, 2, 16, 3).mean(axis=(2, 4), dtype=np.float32)
        return quarters.reshape(len(crops), 12) - 127
