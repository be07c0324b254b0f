"""dlib's face recognition network."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from facetrain.dlib_models import model_path
from facetrain.evaluate.embedders.base import Embedder
from facetrain.image_spec import ImageSpec


class DlibNetwork(Embedder):
    """King's ResNet-29 of 128 dimensions, on dlib's own chips of 150 pixels; its authors publish 0.9938 on LFW.

    Source: King, "High Quality Face Recognition with Deep Metric Learning", dlib.net, 2017. The model file is that of
    the package face_recognition_models. Euclidean distances are what it was trained for; scaling to length 1 changes
    little, its embeddings being nearly of one length.

    jitters: embeddings of so many randomly moved, turned and mirrored copies of the chip are averaged, 0 for the chip
    itself. jobs: threads, each with a network of its own.
    """

    spec = ImageSpec(size_px=150, landmarks="dlib-chip", predictor=5, format="png", quality=0)

    def __init__(self, *, jitters: int = 0, jobs: int = 1) -> None:
        import dlib

        path = str(model_path("dlib_face_recognition_resnet_model_v1.dat"))
        self._networks = [dlib.face_recognition_model_v1(path) for _ in range(max(1, jobs))]
        self._threads = ThreadPoolExecutor(len(self._networks))
        self._jitters = jitters

    def of(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = np.array_split(crops, len(self._networks))
        found = self._threads.map(self._some, self._networks, parts)
        return np.concatenate([part for part in found if len(part)])

    def _some(self, network: object, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not len(crops):
            return np.empty((0, 128), np.float32)
        found = network.compute_face_descriptor(list(crops), self._jitters)  # type: ignore[attr-defined]
        return np.array(found, np.float32)
