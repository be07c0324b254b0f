"""Crops straight from their files, for photographs that are looked at once and need no cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from facetrain.datasets.cache.decode import Decoder
from facetrain.errors import UserError
from facetrain.image_spec import ImageSpec


def read_crops(
    root: Path, paths: Sequence[str], spec: ImageSpec, *, threads: int, batch_size: int = 256
) -> Iterator[np.ndarray]:
    """Batches of uint8 [n, size_px, size_px, 3] in the order of ``paths``; UserError for one that cannot be decoded."""
    names = [str(root / path) for path in paths]
    return decoded(names, lambda i: np.fromfile(names[i], np.uint8), spec, threads, batch_size)


def decoded(
    names: Sequence[str],
    read: Callable[[int], bytes | np.ndarray],
    spec: ImageSpec,
    threads: int,
    batch_size: int = 256,
) -> Iterator[np.ndarray]:
    """The same of crops that ``read`` gives, encoded; ``names``: what messages call them."""
    decoder = Decoder(spec.size_px, threads)
    for start in range(0, len(names), batch_size):
        count = min(batch_size, len(names) - start)
        out = np.empty((count, spec.size_px, spec.size_px, 3), np.uint8)
        for i, reason in decoder.decode([read(start + i) for i in range(count)], out).items():
            raise UserError(f"{names[start + i]} cannot be used: {reason}")
        yield out
