"""dlib's face recognition network."""

from __future__ import annotations

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
    itself. One core, whatever there are: dlib holds Python's lock meanwhile.
    """

    spec = ImageSpec(size_px=150, landmarks="dlib-chip", predictor=5, format="png", quality=0)

    def __init__(self, *, jitters: int = 0) -> None:
        import dlib

        path = model_path("dlib_face_recognition_resnet_model_v1.dat")
        self._network = dlib.face_recognition_model_v1(str(path))
        self._jitters = jitters

    def of(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        found = self._network.compute_face_descriptor(list(crops), self._jitters)
        return np.array(found, np.float32).reshape(len(crops), 128)
