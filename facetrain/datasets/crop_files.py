"""Crops straight from their files, for photographs that are looked at once and need no cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from facetrain.datasets.cache.decode import Decoder
from facetrain.errors import UserError
from facetrain.image_spec import ImageSpec


def read_crops(
    root: Path, paths: Sequence[str], spec: ImageSpec, *, threads: int, batch_size: int = 256
) -> Iterator[np.ndarray]:
    """Batches of uint8 [n, size_px, size_px, 3] in the order of ``paths``; UserError for one that cannot be decoded."""
    decoder = Decoder(spec.size_px, threads)
    for start in range(0, len(paths), batch_size):
        part = paths[start : start + batch_size]
        out = np.empty((len(part), spec.size_px, spec.size_px, 3), np.uint8)
        encoded = [np.fromfile(root / path, np.uint8) for path in part]
        for i, reason in decoder.decode(encoded, out).items():
            raise UserError(f"{root / part[i]} cannot be used: {reason}")
        yield out
