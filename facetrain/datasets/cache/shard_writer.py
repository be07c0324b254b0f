"""Writes shards in a thread of its own, while the next ones are decoded: at most two are in memory."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

import numpy as np

from facetrain.datasets.cache.shard_file import aligned_array
from facetrain.datasets.cache.shards import DecodeSpec, write_shard

BUFFERS = 2


class ShardWriter:
    """Context manager; leaving it waits until every shard is on the disk, and raises what went wrong."""

    def __init__(self, folder: Path, spec: DecodeSpec, most_rows: int) -> None:
        """``most_rows``: of any shard to come."""
        self._folder, self._spec = folder, spec
        self._free: SimpleQueue[np.ndarray] = SimpleQueue()
        for _ in range(BUFFERS):
            self._free.put(aligned_array((most_rows, spec.size_px, spec.size_px, 3)))
        self._pool = ThreadPoolExecutor(1, "write")
        self._writes: list[Future[None]] = []

    def take(self, rows: int) -> np.ndarray:
        """Room for a shard's pixels, uint8 [rows, H, W, 3]; waits until there is some."""
        buffer = self._free.get()
        self._raise()
        return buffer[:rows]

    def give_back(self, images: np.ndarray) -> None:
        """They are not written after all."""
        assert isinstance(images.base, np.ndarray)
        self._free.put(images.base.reshape(-1, *images.shape[1:]))

    def write(
        self, name: str, images: np.ndarray, contents: list[bytes], identities: list[str], *, decoder: str
    ) -> None:
        """Write a shard soon. images: from `take`, and not to be used any more."""
        self._writes.append(self._pool.submit(self._write, name, images, contents, identities, decoder))

    def _write(
        self, name: str, images: np.ndarray, contents: list[bytes], identities: list[str], decoder: str
    ) -> None:
        path, in_use = self._folder / name, [images]

        def give_back() -> None:
            while in_use:
                self.give_back(in_use.pop())

        try:
            write_shard(path, self._spec, images, contents, identities, decoder=decoder, on_written=give_back)
        finally:
            give_back()

    def _raise(self) -> None:
        """Raise what went wrong so far."""
        done = [write for write in self._writes if write.done()]
        self._writes = [write for write in self._writes if not write.done()]
        for write in done:
            write.result()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=exc is not None)
        if exc is None:
            self._raise()
