"""Decoding crops with DALI: a pipeline for all, dynamic mode for a batch in which one cannot be decoded."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

BATCH = 256


class Decoder:
    """JPEG and PNG to uint8 RGB [size_px, size_px, 3], in batches."""

    def __init__(self, size_px: int, threads: int) -> None:
        self.size_px, self.threads = size_px, threads
        self._pipeline: Any = None

    def decode(self, encoded: Sequence[np.ndarray], out: np.ndarray) -> dict[int, str]:
        """Decode uint8 byte arrays into ``out``, uint8 [n, size_px, size_px, 3].

        Returns {position: reason} for those that cannot be decoded or have another size; their rows of ``out`` are
        left as they were.
        """
        failed: dict[int, str] = {}
        for start in range(0, len(encoded), BATCH):
            batch = encoded[start : start + BATCH]
            try:
                with _quiet_stderr():
                    images = self._run(batch)
            except RuntimeError:
                self._pipeline = None  # after an error a DALI pipeline is dead
                failed |= {start + i: reason for i, reason in self._one_by_one(batch, out[start:]).items()}
                continue
            for i, image in enumerate(images):
                if reason := self._store(image, out[start + i]):
                    failed[start + i] = reason
        return failed

    def _run(self, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
        if self._pipeline is None:
            self._pipeline = self._build()
        self._pipeline.feed_input("encoded", list(batch))
        (images,) = self._pipeline.run()
        return [np.asarray(images[i]) for i in range(len(images))]

    def _build(self) -> Any:  # DALI's types are not public
        from nvidia.dali import fn, pipeline_def, types

        @pipeline_def(batch_size=BATCH, num_threads=self.threads, device_id=None, prefetch_queue_depth=1)  # type: ignore[untyped-decorator]
        def pipeline() -> Any:
            encoded = fn.external_source(
                name="encoded", device="cpu", no_copy=True, dtype=types.UINT8, ndim=1
            )
            return fn.decoders.image(encoded, device="cpu", output_type=types.RGB)

        built = pipeline()
        built.build()
        return built

    def _one_by_one(self, batch: Sequence[np.ndarray], out: np.ndarray) -> dict[int, str]:
        import nvidia.dali.experimental.dynamic as ndd
        from nvidia.dali import types

        failed = {}
        for i, encoded in enumerate(batch):
            try:
                with _quiet_stderr():
                    image = np.asarray(
                        ndd.decoders.image(ndd.as_tensor(encoded), device="cpu", output_type=types.RGB)
                    )
            except RuntimeError as error:
                failed[i] = "DALI cannot decode it: " + " ".join(str(error).split()).rstrip(" :")
            else:
                if reason := self._store(image, out[i]):
                    failed[i] = reason
        return failed

    def _store(self, image: np.ndarray, out: np.ndarray) -> str | None:
        if image.shape != out.shape:
            return f"it is {image.shape[1]}×{image.shape[0]} pixels, not {self.size_px}×{self.size_px}"
        out[:] = image
        return None


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """The codecs write to the terminal what the caller reports better."""
    sys.stderr.flush()
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
