"""Which files of a tree have changed since we last read them? Answered as git answers it, only stricter.

A file is taken for unchanged when its size, mtime_ns, ctime_ns and inode are those of the time its content was hashed,
and neither time lies within `RACY_NS` of that moment: a write in the same tick of the clock as the hash would show in
none of them. Everything else is hashed again (BLAKE3). st_dev is left out: it is unstable on network file systems.
"""

from __future__ import annotations

import errno
import os
import stat as stat_modes
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3

from facetrain.errors import UserError
from facetrain.files import PHOTOGRAPHS, TEMP_PREFIX, temp_path
from facetrain.tables import CHUNK_ROWS, CONTENT, positions, put_rows, read_table, take, write_table

RACY_NS = 2_000_000_000  # two seconds: FAT's tick, and room for a file server's clock to differ a little
NO_FILE = "not a file but a pipe, socket or device"
MAX_DEPTH = 100  # folders in folders

STATE = ("size_bytes", "mtime_ns", "ctime_ns", "inode")
LISTED = pa.schema(
    [
        ("path", pa.large_string()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("ctime_ns", pa.int64()),
        ("inode", pa.uint64()),
    ]
)
SCHEMA = pa.schema(
    [
        *LISTED,
        ("hashed_ns", pa.int64()),  # the file system's clock just before the content was read
        ("content", CONTENT),
    ]
)


@dataclass(slots=True, frozen=True)
class Stat:
    """What tells one state of a file from another without reading it."""

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stat:
        return cls(found.st_size, as_int64(found.st_mtime_ns), as_int64(found.st_ctime_ns), found.st_ino)


def as_int64(time_ns: int) -> int:
    """A time as far as it goes into the table: there are disks that hold dates beyond the year 2262."""
    return max(-(2**63), min(time_ns, 2**63 - 1))


@dataclass
class Listing:
    """A walk through a tree: photographs by path relative to the root, sorted; and what else was met."""

    files: pa.Table = field(default_factory=LISTED.empty_table)  # as LISTED
    problems: dict[str, str] = field(default_factory=dict)  # path → why it could not be entered or named
    others: Counter[str] = field(default_factory=Counter)  # other files, by lower-case suffix
    temporary: list[str] = field(default_factory=list)  # left by a command of ours that was killed

    def __len__(self) -> int:
        return self.files.num_rows


def walk(root: Path, suffixes: Collection[str] = PHOTOGRAPHS) -> Listing:
    """List a tree. Links are followed, loops are not; names that begin with a dot are passed over."""
    listing = Listing()
    rows = _Rows()
    for path, entry in _entries(root, listing.problems):
        name = entry.name
        if name.startswith("."):
            if name.startswith(TEMP_PREFIX):
                listing.temporary.append(path)
            continue
        suffix = name[name.rfind(".") :].lower() if "." in name else ""
        if suffix not in suffixes:
            listing.others[_shown(suffix)] += 1
            continue
        if not path.isascii() and _shown(path) != path:
            listing.problems[_shown(path)] = "its name is not UTF-8: rename it"
            continue
        try:
            found = entry.stat()
        except OSError as error:
            listing.problems[path] = error.strerror or str(error)
            continue
        if stat_modes.S_ISREG(found.st_mode):
            rows.add(path, found)
        else:
            listing.problems[path] = NO_FILE
    listing.files = rows.table()
    return listing


class _Rows:
    """Gathers the rows of LISTED in little memory."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.full: list[pa.Array] = []
        self.state = [array("q"), array("q"), array("q"), array("Q")]

    def add(self, path: str, found: os.stat_result) -> None:
        self.paths.append(path)
        size_bytes, mtime_ns, ctime_ns, inode = self.state
        size_bytes.append(found.st_size)
        mtime_ns.append(as_int64(found.st_mtime_ns))
        ctime_ns.append(as_int64(found.st_ctime_ns))
        inode.append(found.st_ino)
        if len(self.paths) == CHUNK_ROWS:
            self.full.append(pa.array(self.paths, pa.large_string()))
            self.paths = []

    def table(self) -> pa.Table:
        paths = pa.chunked_array([*self.full, pa.array(self.paths, pa.large_string())])
        return pa.table(
            [paths, *(np.frombuffer(column, column.typecode) for column in self.state)], schema=LISTED
        )


def find_photographs(root: Path) -> Iterator[str]:
    """The paths that `walk` would list, one by one: for a look at the first few of a large tree."""
    for path, entry in _entries(root, {}):
        if not entry.name.startswith(".") and os.path.splitext(entry.name)[1].lower() in PHOTOGRAPHS:
            yield path


def _entries(root: Path, problems: dict[str, str]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """All files beneath ``root`` with their paths, in the order of these; what cannot be entered is a problem."""

    def inside(
        folder: int, prefix: str, above: tuple[tuple[int, int], ...]
    ) -> Iterator[tuple[str, os.DirEntry[str]]]:
        here = os.fstat(folder)
        key = (here.st_dev, here.st_ino)
        if key in above or len(above) > MAX_DEPTH:
            problems[_shown(prefix[:-1])] = (
                "a link back to a folder above it" if key in above else f"more than {MAX_DEPTH} folders deep"
            )
            return
        with os.scandir(folder) as found:
            # A folder's slash takes part in the order: so all paths come out sorted, without sorting all.
            entries = sorted(((e.name + "/" * _is_folder(e), e) for e in found), key=itemgetter(0))
        for name, entry in entries:
            if not name.endswith("/"):
                yield prefix + name, entry
            elif not name.startswith("."):
                yield from enter(entry.name, folder, prefix + name, (*above, key))

    def enter(
        name: str, where: int | None, prefix: str, above: tuple[tuple[int, int], ...]
    ) -> Iterator[tuple[str, os.DirEntry[str]]]:
        try:
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=where)
        except OSError as error:
            problems[_shown(prefix[:-1])] = error.strerror or str(error)
            return
        try:
            yield from inside(folder, prefix, above)
        except OSError as error:
            problems[_shown(prefix[:-1])] = error.strerror or str(error)
        finally:
            os.close(folder)

    return enter(os.fspath(root), None, "", ())


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere; reading it will say so
        return False


def _shown(path: str) -> str:
    """The path as text that can be stored and printed: bytes that are not UTF-8 become \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class FileTable:
    """The content hashes of a tree's files, kept in an Arrow file between commands.

    One that is not ``trusted`` begins empty, so that every file is read again.
    """

    def __init__(self, path: Path, *, trusted: bool = True) -> None:
        self._path = path
        self._saved: pa.Table | None = None
        if trusted and path.is_file():
            with suppress(UserError):  # a damaged one costs reading the files again, and is replaced
                self._saved = read_table(path)
        self.table: pa.Table = SCHEMA.empty_table() if self._saved is None else self._saved

    def contents(self, files: pa.Table) -> pa.ChunkedArray:
        """The content hash of each of these files (as `Listing.files`); null where it must be read to know it."""
        where = positions(files["path"], self.table["path"])
        then = {name: take(self.table[name], where) for name in (*STATE, "hashed_ns", "content")}
        newest = pc.max_element_wise(files["mtime_ns"], files["ctime_ns"])
        still = pc.less(newest, pc.subtract(then["hashed_ns"], RACY_NS))
        for name in STATE:
            still = pc.and_(still, pc.equal(then[name], files[name]))
        return pc.if_else(still, then["content"], pa.scalar(None, CONTENT))

    def refresh(
        self,
        root: Path,
        files: pa.Table,
        on_start: Callable[[int], None] = lambda total: None,
        on_progress: Callable[[int], None] = lambda count: None,
    ) -> dict[str, str]:
        """Hash what may have changed, forget what is gone; return {path: error} of files that could not be read.

        ``on_start(files to be read)`` and ``on_progress(files)`` are called as the work goes on.
        """
        now_ns = file_system_now_ns(self._path.parent)
        settled = pc.is_valid(self.contents(files))
        errors: dict[str, str] = {}
        read = _Read(now_ns)
        todo = files["path"].filter(pc.invert(settled))
        on_start(len(todo))
        for start in range(0, len(todo), 1000):
            for path in (part := todo.slice(start, 1000)).to_pylist():
                try:
                    with open(root / path, "rb", opener=open_file) as handle:
                        read.add(path, Stat.of(os.fstat(handle.fileno())), blake3(handle.read()).digest())
                except OSError as error:
                    errors[path] = error.strerror or str(error)
            on_progress(len(part))
        self.keep(files["path"].filter(settled))
        self.put(read.table())
        return errors

    def put(self, fresh: pa.Table) -> None:
        """Take in what is known of some files: as SCHEMA, sorted by path."""
        self.table = put_rows(self.table, fresh)

    def keep(self, paths: pa.ChunkedArray) -> None:
        """Forget all files but these."""
        kept = positions(self.table["path"], paths) >= 0
        if not kept.all():
            self.table = self.table.filter(pa.array(kept))

    def save(self) -> None:
        """Write the table, sorted by path, if it has changed since it was read."""
        if self.table is not self._saved:
            write_table(self._path, self.table)
            self._saved = self.table


class _Read:
    """Gathers the rows of SCHEMA, a chunk at a time."""

    def __init__(self, hashed_ns: int) -> None:
        self.hashed_ns = hashed_ns
        self.parts = [SCHEMA.empty_table()]
        self.rows: list[tuple[str, int, int, int, int, bytes]] = []

    def add(self, path: str, stat: Stat, content: bytes) -> None:
        self.rows.append((path, stat.size_bytes, stat.mtime_ns, stat.ctime_ns, stat.inode, content))
        if len(self.rows) == CHUNK_ROWS:
            self._flush()

    def _flush(self) -> None:
        *state, contents = zip(*self.rows, strict=True)
        columns = [*state, [self.hashed_ns] * len(self.rows), contents]
        self.parts.append(
            pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], SCHEMA)
        )
        self.rows = []

    def table(self) -> pa.Table:
        if self.rows:
            self._flush()
        return pa.concat_tables(self.parts)


def open_file(path: str, flags: int) -> int:
    """For `open`: what has become a pipe or device since it was listed is an error, and never waited for."""
    handle = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(handle).st_mode
    if stat_modes.S_ISREG(mode):
        return handle
    os.close(handle)
    if stat_modes.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, NO_FILE, path)


def file_system_now_ns(folder: Path) -> int:
    """The time by the clock that stamps files in ``folder`` (a file server's may differ from ours)."""
    probe = temp_path(folder, "clock")
    probe.touch()
    try:
        return probe.stat().st_mtime_ns
    finally:
        probe.unlink()
