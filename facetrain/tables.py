"""Arrow tables in files: written whole or not at all, memory-mapped when read, each with its own fingerprint.

A file's fingerprint is the BLAKE3 of its bytes with the fingerprint's place blank. It stands in the file's metadata,
so that asking for it costs nothing however large the file is, and it can never belong to another file.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
from io import FileIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3

from facetrain.errors import UserError
from facetrain.files import file_fingerprint, replacing

CONTENT = pa.binary(32)  # BLAKE3
CHUNK_ROWS = 1 << 17
CHECKED_BYTES = 64 << 20
READ_BYTES = 8 << 20
FEW_ROWS, MANY_ROWS = 1000, 100_000

_BLANK = blake3(b"the place of a fingerprint").hexdigest().encode()
BLANK_FINGERPRINT = {b"fingerprint": _BLANK}  # metadata of a file that is being written
FINGERPRINT = re.compile(rb"[0-9a-f]{64}")


def write_table(path: Path, table: pa.Table) -> str:
    """Write an Arrow IPC file, whole or not at all; return its fingerprint (BLAKE3, hex).

    A file that holds the same already is left alone, and its time with it. An OSError names ``path``.
    """
    for number, column in enumerate(table.columns):
        if pa.types.is_dictionary(column.type):
            table = table.set_column(number, table.field(number), _with_one_dictionary(column))
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **BLANK_FINGERPRINT})
    with replacing(path) as temp:
        with pa.OSFile(str(temp), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            for start in range(0, table.num_rows, CHUNK_ROWS):
                writer.write_table(table.slice(start, CHUNK_ROWS).combine_chunks())
        fingerprint = fill_in_fingerprint(temp)
        if _carries(path, fingerprint):
            temp.unlink()
    return fingerprint


def fill_in_fingerprint(path: Path) -> str:
    """Put the fingerprint into its two places in an Arrow IPC file just written: the schema, and its repetition.

    The schema's metadata must hold BLANK_FINGERPRINT. Returns the fingerprint (BLAKE3, hex).
    """
    fingerprint = file_fingerprint(path)
    with open(path, "r+b", buffering=0) as file:
        for place in _places(file, _BLANK):
            os.pwrite(file.fileno(), fingerprint.encode(), place)
    return fingerprint


def _carries(path: Path, fingerprint: str) -> bool:
    try:
        return table_fingerprint(path) == fingerprint and is_intact(path)
    except UserError:
        return False  # damaged: it is replaced


def table_fingerprint(path: Path) -> str | None:
    """The fingerprint that the file carries; None when there is no such file. Raises UserError when it is damaged."""
    try:
        source = pa.OSFile(str(path))
    except FileNotFoundError:
        return None
    with source:
        return _carried(_open(path, source)).decode()


def is_intact(path: Path) -> bool:
    """True when the file's bytes are still those that its fingerprint was made of. Reads all of it.

    What the disk can no longer read is not intact. Any Arrow IPC file with a fingerprint will do.
    """
    with open(path, "rb", buffering=0) as file:
        return _is_intact(path, file)


def _is_intact(path: Path, file: FileIO) -> bool:
    try:
        carried = _carried(_open(path, _mapped(path, file)))
        # Read, not mapped: where the disk fails, a map kills the process.
        places = _places(file, carried)
        return places[0] != places[1] and _hash(file, places) == carried
    except UserError:
        return False
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False


def _places(file: FileIO, fingerprint: bytes) -> list[int]:
    """Where a fingerprint stands: first and last, -1 where it does not."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return [data.find(fingerprint), data.rfind(fingerprint)]


def _hash(file: FileIO, places: list[int]) -> bytes:
    """BLAKE3 of a file, hex, with the fingerprints at these places blank."""
    hasher = blake3(max_threads=blake3.AUTO)
    size = os.fstat(file.fileno()).st_size
    buffer = memoryview(bytearray(min(size, READ_BYTES)))
    at = file.seek(0)
    for place in (*places, size):
        while at < place:
            count = file.readinto(buffer[: place - at]) or 0
            if not count:
                break  # it is shorter by now
            hasher.update(buffer[:count])
            at += count
        if place < size:
            hasher.update(_BLANK)
            at = file.seek(place + len(_BLANK))
    return hasher.hexdigest().encode()


def read_table(path: Path, *, verify: bool = False) -> pa.Table:
    """Map an Arrow IPC file; only the columns that are used are read.

    One of up to 64 MB is checked against its fingerprint, a larger one with ``verify``.
    Raises UserError when it is damaged.
    """
    # Opened once: it may be replaced meanwhile, and what is checked must be what is read.
    with open(path, "rb", buffering=0) as file:
        data = _mapped(path, file)
        reader = _open(path, data)
        if (verify or data.size <= CHECKED_BYTES) and not _is_intact(path, file):
            raise _damaged(path, "it is other than when it was written")
    try:
        table = reader.read_all()
        table.validate()
        return table
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _mapped(path: Path, file: FileIO) -> pa.Buffer:
    try:
        return pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError:
        raise _damaged(path, "it is empty") from None


def _open(path: Path, source: pa.NativeFile | pa.Buffer) -> pa.ipc.RecordBatchFileReader:
    try:
        reader = pa.ipc.open_file(source)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None
    if not FINGERPRINT.fullmatch((reader.schema.metadata or {}).get(b"fingerprint", b"")):
        raise _damaged(path, "it carries no fingerprint")
    return reader


def _carried(reader: pa.ipc.RecordBatchFileReader) -> bytes:
    fingerprint: bytes = reader.schema.metadata[b"fingerprint"]
    return fingerprint


def _damaged(path: Path, why: object) -> UserError:
    return UserError(f"{path} is damaged ({' '.join(str(why).split())}): remove it and run the command again")


def positions(of: pa.ChunkedArray, within: pa.ChunkedArray) -> np.ndarray:
    """Where each value of one column stands in another without duplicates: int64, -1 where it does not (or is null)."""
    if of.null_count:
        found = np.full(len(of), -1, np.int64)
        found[pc.is_valid(of).to_numpy()] = positions(of.drop_null(), within)
        return found
    if of.equals(within):
        return np.arange(len(of))
    if min(len(of), len(within)) > MANY_ROWS and _is_sorted(of) and _is_sorted(within):
        alike = _positions_of_alike(of, within)
        if alike is not None:
            return alike
    return pc.index_in(of, value_set=within, skip_nulls=True).fill_null(-1).to_numpy().astype(np.int64)


def _is_sorted(column: pa.ChunkedArray) -> bool:
    return bool(pc.all(pc.less(column.slice(0, len(column) - 1), column.slice(1))).as_py())


def _positions_of_alike(of: pa.ChunkedArray, within: pa.ChunkedArray) -> np.ndarray | None:
    """`positions` of two sorted columns that are nearly equal, run by run; None when they are not.

    Comparing ten million paths takes a tenth of a second, hashing them ten.
    """
    found = np.full(len(of), -1, np.int64)
    i = j = differences = 0
    while i < len(of) and j < len(within):
        if run := _equal_run(of, i, within, j):
            found[i : i + run] = np.arange(j, j + run)
            i, j = i + run, j + run
            continue
        differences += 1
        if differences > FEW_ROWS:
            return None
        if of[i].as_py() < within[j].as_py():
            i += 1
        else:
            j += 1
    return found


def _equal_run(a: pa.ChunkedArray, i: int, b: pa.ChunkedArray, j: int) -> int:
    """How many values from a[i] and b[j] on are equal."""
    longest = min(len(a) - i, len(b) - j)
    run, step = 0, 1
    while run < longest and a.slice(i + run, step).equals(b.slice(j + run, step)):
        run += min(step, longest - run)
        step = min(2 * step, longest - run)
    while step > 1:  # the last step was too long: halve it
        step //= 2
        if a.slice(i + run, step).equals(b.slice(j + run, step)):
            run += step
    return run


def take(column: pa.ChunkedArray, where: np.ndarray) -> pa.ChunkedArray:
    """The values at these positions; null where the position is -1."""
    if len(where) == len(column) and np.array_equal(where, np.arange(len(column))):
        return column
    return column.take(pa.array(where, mask=where < 0))


def put_rows(old: pa.Table, new: pa.Table) -> pa.Table:
    """``old`` with the rows of ``new`` in place of its own, by path. Both are sorted by path, and so is what comes out."""
    if not old.num_rows or not new.num_rows:
        return old if old.num_rows else new
    if new.num_rows > FEW_ROWS or new.num_rows > old.num_rows // 100:
        others = positions(old["path"], new["path"]) < 0
        return pa.concat_tables([old.filter(pa.array(others)), new]).sort_by("path")
    # A few into many: cut the long one at their places, which copies nothing.
    parts, done = [], 0
    for number, path in enumerate(new["path"].to_pylist()):
        at = _lower_bound(old["path"], path)
        parts += [old.slice(done, at - done), new.slice(number, 1)]
        done = at + (at < old.num_rows and old["path"][at].as_py() == path)
    return pa.concat_tables([*parts, old.slice(done)])


def same_content(a: pa.ChunkedArray, b: pa.ChunkedArray) -> np.ndarray:
    """bool per row: the two hashes are there and equal."""
    return pc.fill_null(pc.equal(a, b), False).to_numpy()


def find_sorted(column: pa.ChunkedArray, values: list[str]) -> np.ndarray:
    """`positions` of a few strings in a long, sorted column, of which little is read."""
    if len(values) > len(column) // 100:
        return positions(pa.chunked_array([pa.array(values, column.type)]), column)
    found = np.full(len(values), -1, np.int64)
    for i, value in enumerate(values):
        at = _lower_bound(column, value)
        if at < len(column) and column[at].as_py() == value:
            found[i] = at
    return found


def _lower_bound(column: pa.ChunkedArray, value: str) -> int:
    """Where the first value that is not less stands."""
    low, high = 0, len(column)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if column[middle].as_py() < value else (low, middle)
    return low


def dictionary_codes(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """(codes, a signed integer type, -1 for null; the distinct values) of a column, dictionary-encoded or not."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = _with_one_dictionary(column)
    if column.num_chunks == 0:
        return np.zeros(0, np.int32), pa.array([], column.type.value_type)
    codes = [np.asarray(chunk.indices.fill_null(-1)) for chunk in column.chunks]
    return np.concatenate(codes), column.chunk(0).dictionary


def _with_one_dictionary(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Unified, unless all chunks share one already, as those of a file do: unifying hashes every chunk's."""
    places = {
        (len(d), d.offset, *(buffer.address if buffer else 0 for buffer in d.buffers()))
        for d in (chunk.dictionary for chunk in column.chunks)
    }
    return column if len(places) <= 1 else column.unify_dictionaries()
