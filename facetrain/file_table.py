"""Which files of a tree have changed since we last read them? Answered as git answers it, only stricter.

A file is taken for unchanged when its size, mtime_ns, ctime_ns and inode are those of the time its content was hashed,
and neither time lies within `RACY_NS` of that moment: a write in the same tick of the clock as the hash would show in
none of them. Everything else is hashed again (BLAKE3). st_dev is left out: it is unstable on network file systems.
"""

from __future__ import annotations

import os
import stat as stat_modes
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from blake3 import blake3

from facetrain.files import PHOTOGRAPHS, TEMP_PREFIX, temp_path
from facetrain.index import CONTENT, read_table, write_table

RACY_NS = 2_000_000_000  # two seconds: FAT's tick, and room for a file server's clock to differ a little

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("ctime_ns", pa.int64()),
        ("inode", pa.uint64()),
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
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@dataclass(slots=True, frozen=True)
class Known:
    """A file as it was when its content was hashed."""

    stat: Stat
    hashed_ns: int
    content: bytes

    def still(self, stat: Stat) -> bool:
        """True when a file that looks like ``stat`` must have the content that was hashed."""
        return self.stat == stat and max(stat.mtime_ns, stat.ctime_ns) < self.hashed_ns - RACY_NS


@dataclass
class Listing:
    """A walk through a tree: photographs by path relative to the root, sorted; and what else was met."""

    photographs: dict[str, Stat] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)  # path → why it could not be entered or named
    others: Counter[str] = field(default_factory=Counter)  # other files, by lower-case suffix
    temporary: list[str] = field(default_factory=list)  # left by a command of ours that was killed


def walk(root: Path, suffixes: Collection[str] = PHOTOGRAPHS) -> Listing:
    """List a tree. Links are followed, loops are not; names that begin with a dot are passed over."""
    listing = Listing()
    for folder, entry in _entries(root, "", (), listing):
        path = folder + entry.name
        if entry.name.startswith(TEMP_PREFIX):
            listing.temporary.append(path)
            continue
        if entry.name.startswith("."):
            continue
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix not in suffixes:
            listing.others[suffix] += 1
            continue
        if _shown(path) != path:
            listing.problems[_shown(path)] = "its name is not UTF-8: rename it"
            continue
        try:
            found = entry.stat()
        except OSError as error:
            listing.problems[path] = error.strerror or str(error)
            continue
        if stat_modes.S_ISREG(found.st_mode):
            listing.photographs[path] = Stat.of(found)
        else:
            listing.problems[path] = "not a file but a pipe, socket or device"
    listing.photographs = dict(sorted(listing.photographs.items()))
    return listing


def find_photographs(root: Path) -> Iterator[str]:
    """The paths that `walk` would list, one by one and in no order: for a look at the first few of a large tree."""
    for folder, entry in _entries(root, "", (), Listing()):
        if not entry.name.startswith(".") and os.path.splitext(entry.name)[1].lower() in PHOTOGRAPHS:
            yield folder + entry.name


def _entries(
    root: Path, folder: str, above: tuple[tuple[int, int], ...], listing: Listing
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """All files beneath ``folder``; ``above`` are the (device, inode) of the folders on the way down."""
    try:
        here = os.stat(root / folder)
        key = (here.st_dev, here.st_ino)
        if key in above:
            listing.problems[_shown(folder.rstrip("/"))] = "a link back to a folder above it"
            return
        with os.scandir(root / folder) as found:
            entries = list(found)
    except OSError as error:
        listing.problems[_shown(folder.rstrip("/"))] = error.strerror or str(error)
        return
    for entry in entries:
        if _is_folder(entry):
            if not entry.name.startswith("."):
                yield from _entries(root, f"{folder}{entry.name}/", (*above, key), listing)
        else:
            yield folder, entry


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere; reading it will say so
        return False


def _shown(path: str) -> str:
    """The path as text that can be stored and printed: bytes that are not UTF-8 become \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class FileTable:
    """The content hashes of a tree's files, kept in an Arrow file between commands."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known: dict[str, Known] = {}
        if path.is_file():
            columns = [column.to_pylist() for column in read_table(path).columns]
            for name, size, mtime, ctime, inode, hashed, content in zip(*columns, strict=True):
                self.known[name] = Known(Stat(size, mtime, ctime, inode), hashed, content)

    def unchanged(self, path: str, stat: Stat) -> bytes | None:
        """The content hash of a file that cannot have changed; None when it must be read."""
        known = self.known.get(path)
        return known.content if known is not None and known.still(stat) else None

    def refresh(self, root: Path, files: dict[str, Stat]) -> dict[str, str]:
        """Hash what may have changed, forget what is gone; return {path: error} of files that could not be read."""
        now_ns = file_system_now_ns(self._path.parent)
        errors = {}
        fresh = {}
        for path, stat in files.items():
            if self.unchanged(path, stat) is not None:
                fresh[path] = self.known[path]
                continue
            try:
                with open(root / path, "rb") as handle:
                    stat = Stat.of(os.fstat(handle.fileno()))
                    fresh[path] = Known(stat, now_ns, blake3(handle.read()).digest())
            except OSError as error:
                errors[path] = error.strerror or str(error)
        self.known = fresh
        return errors

    def save(self) -> None:
        """Write the table, sorted by path."""
        rows = [
            (path, k.stat.size_bytes, k.stat.mtime_ns, k.stat.ctime_ns, k.stat.inode, k.hashed_ns, k.content)
            for path, k in sorted(self.known.items())
        ]
        columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
        arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
        write_table(self._path, pa.table(arrays, schema=SCHEMA))


def file_system_now_ns(folder: Path) -> int:
    """The time by the clock that stamps files in ``folder`` (a file server's may differ from ours)."""
    probe = temp_path(folder, "clock")
    probe.touch()
    try:
        return probe.stat().st_mtime_ns
    finally:
        probe.unlink()
