"""The file that a shard is written into: fingerprinted as it is written, its pixels past the page cache.

Pixels go to the disk by direct I/O where the system has it: a cache is written once and read later, much of it often
more than memory holds, and what else is in the page cache is worth more than the end of it. It also takes a third of
the processor time, or less: no page is allocated, and nothing copied.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from blake3 import blake3

from facetrain.tables import BLANK_FINGERPRINT

BLOCK = 4096  # bytes; what direct I/O wants addresses, offsets and lengths to be multiples of
PIXELS = 1 << 20  # bytes; what is larger than this is a column of pixels, and holds no metadata


def aligned_array(shape: tuple[int, ...]) -> np.ndarray:
    """uint8, at an address that direct I/O takes; pages are only there once they are written."""
    size = max(int(np.prod(shape)), 1)
    memory = mmap.mmap(-1, size)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, int(np.prod(shape))).reshape(shape)


class ShardFile:
    """What pyarrow writes an Arrow IPC file to, whose schema's metadata hold `BLANK_FINGERPRINT`."""

    closed = False  # for pyarrow

    def __init__(self, file: int, direct: int | None) -> None:
        self._file, self._direct = file, direct
        self._position = 0
        self._hasher = blake3()
        self._places: list[int] = []

    def write(self, data: bytes | memoryview) -> int:
        """Append, from a buffer of any kind."""
        view = memoryview(data).cast("B")
        self._hasher.update(view)
        if len(view) < PIXELS:
            found = bytes(view).find(BLANK_FINGERPRINT[b"fingerprint"])
            if found >= 0:
                self._places.append(self._position + found)
        written = self._write_direct(view) if self._direct is not None else 0
        _write_all(self._file, view[written:], self._position + written)
        self._position += len(view)
        return len(view)

    def _write_direct(self, view: memoryview) -> int:
        """Write the whole blocks of large, aligned data; how many bytes these were."""
        assert self._direct is not None
        if len(view) < PIXELS or self._position % BLOCK or np.frombuffer(view, np.uint8).ctypes.data % BLOCK:
            return 0
        size = len(view) // BLOCK * BLOCK
        try:
            _write_all(self._direct, view[:size], self._position)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return 0  # this file system wants other multiples, or none of it
        return size

    def fill_in_fingerprint(self) -> None:
        """Put the fingerprint (BLAKE3 of the file with its places blank) where it belongs; after the last write."""
        fingerprint = self._hasher.hexdigest().encode()
        assert len(self._places) == 2, "in the schema, and in its repetition at the end"
        for place in self._places:
            _write_all(self._file, memoryview(fingerprint), place)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


@contextmanager
def new_shard_file(path: Path) -> Iterator[ShardFile]:
    """Make a file; its fingerprint is filled in when the block ends well."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    direct = None
    try:
        direct = _open_direct(path)
        shard = ShardFile(file, direct)
        yield shard
        shard.fill_in_fingerprint()
    finally:
        os.close(file)
        if direct is not None:
            os.close(direct)


def _open_direct(path: Path) -> int | None:
    flag = getattr(os, "O_DIRECT", None)
    if flag is None:
        return None
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC | flag)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return None  # a file system without direct I/O


def _write_all(file: int, view: memoryview, at: int) -> None:
    while len(view):
        written = os.pwrite(file, view, at)
        view, at = view[written:], at + written
