"""Any network in an ONNX file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.evaluate.embedders.base import Embedder
from facetrain.image_spec import ImageSpec


class OnnxFile(Embedder):
    """An ONNX file with one input, float32 [n, 3, S, S], and embeddings as its first output, run by ONNX Runtime.

    One that facetrain has exported says what crops it takes. Of any other: S is its input's; ``landmarks``, ``predictor``
    and the scaling (x − subtract) / divide are as given, by default insightface's. channels: "RGB" or "BGR", as the
    network was trained. threads: 0 for as many as there are processors.
    """

    def __init__(
        self,
        path: str,
        *,
        landmarks: str = "five-point",
        predictor: int = 5,
        subtract: float = 127.5,
        divide: float = 127.5,
        channels: str = "RGB",
        threads: int = 0,
    ) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UserError("an ONNX file needs onnxruntime: pip install 'facetrain[onnx]'") from None
        if channels not in ("RGB", "BGR"):
            raise UserError(f"channels = '{channels}': choose RGB or BGR")
        if not Path(path).is_file():
            raise UserError(f"no ONNX file {path}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=onnxruntime.get_available_providers()
            )
        except Exception as error:  # whatever it may raise, of classes that are its own
            raise UserError(f"{path} is no ONNX file that can be run ({error})") from None
        inputs = self._session.get_inputs()
        shape = inputs[0].shape
        if (
            len(inputs) != 1
            or len(shape) != 4
            or shape[1] != 3
            or not isinstance(shape[2], int)
            or shape[2] != shape[3]
        ):
            shapes = ", ".join(f"{item.name} {item.shape}" for item in inputs)
            raise UserError(f"{path} does not take pictures [n, 3, S, S] with S fixed, but {shapes}")
        self._input, self._reverse = inputs[0].name, channels == "BGR"
        self._batch = shape[0] if isinstance(shape[0], int) else None  # the only size that it takes
        self.spec = _declared(self._session.get_modelmeta().custom_metadata_map) or ImageSpec(
            size_px=shape[2], landmarks=landmarks, predictor=predictor, subtract=subtract, divide=divide
        )
        if self.spec.size_px != shape[2]:
            raise UserError(
                f"{path} takes {shape[2]} pixels, and says that it takes {self.spec.size_px}: export it again"
            )

    def of(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        if self._reverse:
            crops = crops[..., ::-1]
        scaled = (crops.astype(np.float32) - np.float32(self.spec.subtract)) / np.float32(self.spec.divide)
        images = np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
        size = self._batch or max(len(images), 1)
        found = [self._run(images[start : start + size], size) for start in range(0, len(images), size)]
        return np.concatenate(found) if found else np.empty((0, 1), np.float32)

    def _run(self, images: NDArray[np.float32], size: int) -> NDArray[np.float32]:
        count = len(images)
        if self._batch is not None and count < size:
            images = np.concatenate([images, np.zeros((size - count, *images.shape[1:]), np.float32)])
        embeddings: NDArray[np.float32] = self._session.run(None, {self._input: images})[0]
        return embeddings[:count].reshape(count, -1)


def _declared(metadata: dict[str, str]) -> ImageSpec | None:
    """The ImageSpec that facetrain writes into the files that it exports."""
    if "facetrain" not in metadata:
        return None
    return ImageSpec.from_dict(json.loads(metadata["facetrain"])["image_spec"])
