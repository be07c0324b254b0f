"""Reading crops once: their bytes, the hash of these, and what the file table is to know of them."""

from __future__ import annotations

import os
import stat as stat_modes
from array import array
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3

from facetrain.file_table import LISTED, SCHEMA, FileTable, as_int64, file_system_now_ns, open_file
from facetrain.tables import CHUNK_ROWS


class CropReader:
    """``files``: the listing of the tree (`file_table.LISTED`); crops are named by their place in it."""

    def __init__(self, root: Path, files: pa.Table, table: FileTable, store: Path) -> None:
        self._root, self._files, self._table = f"{root}{os.sep}", files, table
        self._now_ns = file_system_now_ns(store)
        self._places, self._inodes = array("q"), array("Q")
        self._state = array("q"), array("q"), array("q")
        self._contents = bytearray()

    def read(self, places: np.ndarray) -> list[tuple[bytes, bytes] | None]:
        """(the file's bytes, their BLAKE3) of each crop; None for one that cannot be read."""
        paths = self._files["path"].take(pa.array(places)).to_pylist()
        return [self._read(place, path) for place, path in zip(places.tolist(), paths, strict=True)]

    def _read(self, place: int, path: str) -> tuple[bytes, bytes] | None:
        try:
            file = open_file(self._root + path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = os.fstat(file)
                data = _read_all(file, found.st_size)
            finally:
                os.close(file)
        except OSError:
            return None
        content = blake3(data).digest()
        size_bytes, mtime_ns, ctime_ns = self._state
        self._places.append(place)
        self._inodes.append(found.st_ino)
        size_bytes.append(found.st_size)
        mtime_ns.append(as_int64(found.st_mtime_ns))
        ctime_ns.append(as_int64(found.st_ctime_ns))
        self._contents += content
        return data, content

    def save(self, settled: np.ndarray) -> None:
        """Write the file table: what was read, and of the others those that are ``settled`` (bool per file)."""
        places, last = np.unique(np.frombuffer(self._places, np.int64)[::-1], return_index=True)
        last = len(self._places) - 1 - last
        keep = settled.copy()
        keep[places] = False
        self._table.keep(self._files["path"].filter(pa.array(keep)))
        if len(places):
            columns = [
                self._files["path"].take(pa.array(places)),
                *(np.frombuffer(column, np.int64)[last] for column in self._state),
                np.frombuffer(self._inodes, np.uint64)[last],
                np.full(len(places), self._now_ns),
                content_array(np.frombuffer(self._contents, np.uint8).reshape(-1, 32)[last]),
            ]
            self._table.put(pa.table(columns, schema=SCHEMA))
        self._table.save()


def list_crops(root: Path, paths: pa.ChunkedArray) -> pa.Table:
    """Those of some files that are there, as `file_table.LISTED`: for files whose paths are known, half of a walk."""
    if not pc.all(pc.less(paths.slice(0, len(paths) - 1), paths.slice(1))).as_py():
        paths = paths.take(pc.array_sort_indices(paths.combine_chunks()))
    there = np.zeros(len(paths), bool)
    inodes, state = array("Q"), (array("q"), array("q"), array("q"))
    size_bytes, mtime_ns, ctime_ns = state
    prefix = f"{root}{os.sep}"
    for start in range(0, len(paths), CHUNK_ROWS):
        for number, path in enumerate(paths.slice(start, CHUNK_ROWS).to_pylist(), start):
            try:
                found = os.stat(prefix + path)
            except (OSError, ValueError):
                continue
            if stat_modes.S_ISREG(found.st_mode):
                there[number] = True
                size_bytes.append(found.st_size)
                mtime_ns.append(as_int64(found.st_mtime_ns))
                ctime_ns.append(as_int64(found.st_ctime_ns))
                inodes.append(found.st_ino)
    listed = paths if there.all() else paths.filter(pa.array(there))
    columns = [np.frombuffer(column, np.int64) for column in state]
    return pa.table([listed, *columns, np.frombuffer(inodes, np.uint64)], schema=LISTED)


def _read_all(file: int, size: int) -> bytes:
    data = os.read(file, size + 1)
    if len(data) == size:
        return data
    parts = [data]  # it has grown or shrunk meanwhile, or the system gives less than was asked for
    while part := os.read(file, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def content_array(contents: np.ndarray) -> pa.Array:
    """uint8 [n, 32] as an Arrow array of hashes."""
    data = pa.py_buffer(np.ascontiguousarray(contents))
    return pa.Array.from_buffers(pa.binary(32), len(contents), [None, data])


def content_bytes(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """A column of hashes as uint8 [n, 32], and bool [n]: it is not null."""
    contents = np.zeros((len(column), 32), np.uint8)
    start = 0
    for chunk in column.chunks:
        data = chunk.buffers()[1]
        if len(chunk) and data is not None:
            values = np.frombuffer(data, np.uint8, len(chunk) * 32, chunk.offset * 32)
            contents[start : start + len(chunk)] = values.reshape(-1, 32)
        start += len(chunk)
    return contents, column.is_valid().to_numpy()
