"""The crop itself, shrunk: what a network has to beat."""

import numpy as np

from facetrain.evaluate.embedders.base import Embedder
from facetrain.image_spec import ImageSpec


class Thumbnails(Embedder):
    """Grey values of a crop of `side_px` pixels, less their mean."""

    def __init__(self, *, side_px: int = 32) -> None:
        self.spec = ImageSpec(size_px=side_px)

    def of(self, crops: np.ndarray) -> np.ndarray:
        grey = crops.mean(axis=3, dtype=np.float32).reshape(len(crops), -1)
        return grey - grey.mean(axis=1, keepdims=True)
