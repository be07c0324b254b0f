"""The journal of an align that has not ended: what it found, block by block, so that a kill costs one block.

A sequence of frames, each with the hash of what is in it: a torn or damaged one ends the reading, and what it held is
found again by looking at the photographs. A header frame (JSON) begins each run's part, the others hold rows (Arrow).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from blake3 import blake3

from facetrain.index import ROWS
from facetrain.preprocess.aligner import Outcome
from facetrain.tables import CHUNK_ROWS

JOURNAL = "journal.bin"

# The columns of the index as plain values; the file's state when it was read; and whether its row stands as it was.
FOUND = pa.schema(
    [
        *(pa.field(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in ROWS),
        ("seen_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("ctime_ns", pa.int64()),
        ("inode", pa.uint64()),
        ("hashed_ns", pa.int64()),
        ("unchanged", pa.bool_()),
    ]
)
_FRAME = struct.Struct("<cQ16s")  # kind, length, BLAKE3 of kind and payload


def found_batch(outcomes: Sequence[Outcome], hashed_ns: int = 0) -> pa.RecordBatch:
    """Outcomes as FOUND. ``hashed_ns``: the file system's time just before the first of them was read."""
    columns: dict[str, list[Any]] = {name: [getattr(o, name) for o in outcomes] for name in ROWS.names}
    for name, of in (("seen_bytes", "size_bytes"), *((n, n) for n in ("mtime_ns", "ctime_ns", "inode"))):
        columns[name] = [None if o.stat is None else getattr(o.stat, of) for o in outcomes]
    columns["hashed_ns"] = [hashed_ns] * len(outcomes)
    columns["unchanged"] = [o.unchanged for o in outcomes]
    return pa.record_batch([pa.array(columns[f.name], f.type) for f in FOUND], schema=FOUND)


class Journal:
    """Append-only; `parts` reads it back. ``redo`` marks the part of a run that makes all crops again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: BinaryIO | None = None

    def headers(self) -> list[dict[str, Any]]:
        """Of the runs that it holds: their settings, and whether they were redos."""
        return [header for kind, payload in self._frames() if kind == b"H" and (header := _header(payload))]

    def parts(self) -> Iterator[tuple[dict[str, Any], pa.Table]]:
        """(header, rows as FOUND) of each run; of runs of other versions, which had other columns, nothing."""
        header: dict[str, Any] | None = None
        rows = Rows()
        for kind, payload in self._frames():
            if kind == b"H":
                if header is not None:
                    yield header, rows.table()
                header, rows = _header(payload), Rows()
            elif header is not None:
                rows.add(pa.ipc.read_record_batch(pa.py_buffer(payload), FOUND))
        if header is not None:
            yield header, rows.table()

    def _frames(self) -> Iterator[tuple[bytes, bytes]]:
        """(kind, payload) up to the first that is torn or damaged; `_end` is then where that begins."""
        self._end = 0
        if not self.path.is_file():
            return
        size = self.path.stat().st_size
        with open(self.path, "rb") as handle:
            while len(head := handle.read(_FRAME.size)) == _FRAME.size:
                kind, length, digest = _FRAME.unpack(head)
                if length > size:
                    return
                payload = handle.read(length)
                if blake3(kind + payload).digest(16) != digest:
                    return
                self._end = handle.tell()
                yield kind, payload

    def begin(self, settings: dict[str, Any], redo: bool) -> None:
        """Begin this run's part, behind the whole frames that `parts` has read."""
        self._handle = open(self.path, "ab")  # noqa: SIM115  (closed by `close`)
        self._handle.truncate(self._end)
        header = {"settings": settings, "redo": redo, "columns": _columns()}
        self._write(b"H", json.dumps(header).encode())

    def append(self, rows: pa.RecordBatch) -> None:
        """Write rows (as FOUND), to be read back whatever becomes of this process."""
        self._write(b"R", rows.serialize().to_pybytes())

    def _write(self, kind: bytes, payload: bytes) -> None:
        assert self._handle is not None
        self._handle.write(_FRAME.pack(kind, len(payload), blake3(kind + payload).digest(16)) + payload)
        self._handle.flush()

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()

    def remove(self) -> None:
        """The work is done, and in the index."""
        self.close()
        self.path.unlink(missing_ok=True)


class Rows:
    """Gathers batches of FOUND; in large chunks, since a table of a hundred thousand small ones is slow to work with."""

    def __init__(self) -> None:
        self._chunks = [FOUND.empty_table()]
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        self._rows += len(batch)
        if self._rows >= CHUNK_ROWS:
            self._close_chunk()

    def table(self) -> pa.Table:
        """All of them, in the order in which they came."""
        self._close_chunk()
        return pa.concat_tables(self._chunks)

    def _close_chunk(self) -> None:
        if self._batches:
            self._chunks.append(pa.Table.from_batches(self._batches).combine_chunks())
            self._batches, self._rows = [], 0


def _header(payload: bytes) -> dict[str, Any] | None:
    header: dict[str, Any] = json.loads(payload)
    return header if header["columns"] == _columns() else None


def _columns() -> str:
    return FOUND.to_string(show_field_metadata=False, show_schema_metadata=False)
