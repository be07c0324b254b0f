"""All shards as one array of images, mapped into one range of addresses: so a batch is one `np.take`.

A shard's pixels begin at a page of its file (`shards.PIXEL_ALIGNMENT`). They are mapped to addresses that are multiples
both of a page and, counted from the range's beginning, of an image's size: so image i of the range lies at i times its
size, whichever shard it is of, and gathering a batch is one call that copies and lets other threads run meanwhile.
Nothing is read until it is used, and a file may be removed while it is mapped.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import math
import mmap
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from facetrain.errors import UserError

# Of Linux; Python's mmap has not all of them.
PROT_NONE, MAP_FIXED, MAP_NORESERVE, MADV_POPULATE_READ = 0, 0x10, 0x4000, 22
MEMORY_SHARE = 0.7  # of the memory that is there: what images may fill before they count as too many for it


@dataclass(frozen=True)
class _Part:
    """The pixels of one record batch: ``rows`` images at ``offset`` of a file, mapped at ``slot`` of the range."""

    path: Path
    offset: int
    rows: int
    slot: int


class ShardMap:
    """``images``: read-only uint8 [slots, bytes of an image]. Not every slot holds an image: `slots` says where which is.

    Raises UserError for a shard that is gone or damaged.
    """

    def __init__(self, paths: Sequence[Path], row_bytes: int) -> None:
        self.row_bytes = row_bytes
        step = (
            math.lcm(row_bytes, mmap.PAGESIZE) // row_bytes
        )  # slots from one possible beginning to the next
        self._parts: list[_Part] = []
        first_part, slot = [], 0
        for path in paths:
            first_part.append(len(self._parts))
            for offset, rows in _pixels_of(path, row_bytes):
                self._parts.append(_Part(path, offset, rows, slot))
                slot += -(-rows // step) * step
        memory = _reserve(max(slot, 1) * row_bytes)
        self._address = ctypes.addressof(memory)
        for part in self._parts:
            # Up to the next, beyond the end of the file: a gap would count as one more mapping.
            room = -(-part.rows // step) * step * row_bytes
            _map(part, self._address + part.slot * row_bytes, part.rows * row_bytes, room)
        self.images: np.ndarray = np.frombuffer(memoryview(memory), np.uint8).reshape(-1, row_bytes)
        self.images.flags.writeable = False
        rows_of = np.array([part.rows for part in self._parts], np.int64)
        self._part_slot = np.array([part.slot for part in self._parts], np.int64)
        self._shard_row = np.cumsum(rows_of) - rows_of  # of each part's first image, counted over all shards
        self._first_row = self._shard_row[first_part] if paths else np.zeros(0, np.int64)
        self.fits = True
        self._reader: threading.Thread | None = None

    def slots(self, shard: np.ndarray, row: np.ndarray) -> np.ndarray:
        """int64 [n]: where image ``row`` of path number ``shard`` lies, for each of n."""
        row = self._first_row[shard] + row
        part = np.searchsorted(self._shard_row, row, side="right") - 1
        return self._part_slot[part] + row - self._shard_row[part]

    @property
    def nbytes(self) -> int:
        """What is mapped, in bytes."""
        return sum(part.rows for part in self._parts) * self.row_bytes

    def read_ahead(self, *, fits: bool | None = None) -> None:
        """Get ready for gathering all of it in a random order; it is done once.

        What fits into memory is read from beginning to end by a thread in the background, into the page cache and into
        this process's pages. For more than that, the kernel is told not to read what lies around a page, and
        `will_need` asks for each image. ``fits``: whether it does; None: find out.
        """
        if self._reader is not None:
            return
        self.fits = self.nbytes <= MEMORY_SHARE * _available_bytes() if fits is None else fits
        self._reader = threading.Thread(target=self._populate if self.fits else self._scatter, daemon=True)
        self._reader.start()

    def will_need(self, slots: np.ndarray) -> None:
        """Let the disk begin to read these images, all at once: for a set that does not fit into memory."""
        for address in (self._address + slots * self.row_bytes).tolist():
            inside = address % mmap.PAGESIZE
            _libc().madvise(address - inside, self.row_bytes + inside, mmap.MADV_WILLNEED)

    def _populate(self) -> None:
        for part in self._parts:
            if self._advise(part, MADV_POPULATE_READ):
                return  # a kernel before 5.14: pages come when they are used

    def _scatter(self) -> None:
        for part in self._parts:
            self._advise(part, mmap.MADV_RANDOM)

    def _advise(self, part: _Part, advice: int) -> int:
        address = self._address + part.slot * self.row_bytes
        return int(_libc().madvise(address, part.rows * self.row_bytes, advice))


def _pixels_of(path: Path, row_bytes: int) -> Iterator[tuple[int, int]]:
    """(offset in the file, images) of each record batch."""
    try:
        with open(path, "rb") as file:
            whole = pa.py_buffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        reader = pa.ipc.open_file(whole)
        for number in range(reader.num_record_batches):
            image = reader.get_batch(number).column("image").storage
            offset = image.values.buffers()[1].address - whole.address
            if offset % mmap.PAGESIZE or image.type.list_size != row_bytes:
                raise UserError(f"{path} is no shard of this version: remove it and run `ft cache`")
            yield offset, len(image)
    except FileNotFoundError:
        raise UserError(f"{path} is gone: `ft cache` makes it again") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise _too_few_addresses(str(path)) from None
        raise UserError(f"{path} is damaged ({error}): remove it and run `ft cache`") from None


def _too_few_addresses(what: str) -> UserError:
    return UserError(
        f"{what} cannot be mapped: this process may have too few addresses (not memory): raise the limit "
        f"(`ulimit -v unlimited`; h_vmem on SGE)"
    )


def _reserve(length: int) -> ctypes.Array[ctypes.c_uint8]:
    """Addresses without memory behind them; given back when no array refers to them any more."""
    try:
        address = _mmap(None, length, PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    except OSError:
        raise _too_few_addresses(f"the {length / 1e9:.1f} GB of shards") from None
    memory = (ctypes.c_uint8 * length).from_address(address)
    # Not at the interpreter's end: threads that are left may be gathering still.
    weakref.finalize(memory, _libc().munmap, address, length).atexit = False
    return memory


def _map(part: _Part, address: int, length: int, room: int) -> None:
    file = os.open(part.path, os.O_RDONLY)
    try:
        if os.fstat(file).st_size < part.offset + length:  # reading beyond the end would end the process
            raise UserError(f"{part.path} is damaged (cut short): remove it and run `ft cache`")
        _mmap(address, room, mmap.PROT_READ, mmap.MAP_SHARED | MAP_FIXED, file, part.offset)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise UserError(
                "there are more shards than this process may map: raise the limit (`sysctl vm.max_map_count`)"
            ) from None
        raise
    finally:
        os.close(file)


def _mmap(address: int | None, length: int, protection: int, flags: int, file: int, offset: int) -> int:
    found = _libc().mmap(address, length, protection, flags, file, offset)
    if found == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(found)


def _available_bytes() -> int:
    """Memory that can be used, what the page cache would give up included; at most the control groups' limits."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return min([available, *_group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def _group_limits(own: Path, mounted: Path) -> Iterator[int]:
    """The memory limits of this process's control groups and of all above them, version 2 and 1."""
    for line in own.read_text().splitlines() if own.is_file() else []:
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (mounted / "memory", "memory.limit_in_bytes") if controllers else (mounted, "memory.max")
        folder = root / group.lstrip("/")
        for place in (folder, *folder.parents):
            with suppress(OSError, ValueError):  # no limit is the word "max"
                yield int((place / name).read_text())
            if place == root:
                break


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc
