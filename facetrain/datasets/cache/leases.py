"""Leases: which shards running processes read, so that `ft cache --gc` leaves them alone.

    .ft/readers/<random>.json    holder and shards of one reader, under a lock that the kernel drops when it ends

A reader locks its file before it gives it its name, so one that is there and not locked is a dead reader's. The manifest
may change between being read and being leased: `open_manifest` takes the lease and then looks whether it still stands.
Where no lease can be taken, on a read-only disk or one without locks, reading goes on without one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from facetrain.datasets.cache.manifest import Manifest, read_manifest
from facetrain.errors import MissingStage, UserError
from facetrain.files import naming, sweep, temp_path
from facetrain.tables import table_fingerprint

READERS = "readers"
NO_LEASE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
ATTEMPTS = 20


@contextmanager
def open_manifest(store: Path, cache_folder: Path, holder: str) -> Iterator[Manifest]:
    """The manifest of a dataset's folder; its shards stay until the block ends, whatever `ft cache` does meanwhile.

    holder: who reads, for people: "`ft train` (run arcface-1)". Raises MissingStage when there is no cache.
    """
    for _ in range(ATTEMPTS):
        manifest = read_manifest(store)
        if manifest is None:
            raise MissingStage(f"nothing is cached in {store}, or its list is damaged: run `ft cache` first")
        with shards_in_use(cache_folder, manifest.shards, holder):
            read = manifest.table.schema.metadata[b"fingerprint"].decode()
            if table_fingerprint(store / "cache.arrow") == read:
                yield manifest
                return
    raise UserError(f"the cache of {store} is being changed all the time: run this again when that has ended")


@contextmanager
def shards_in_use(cache_folder: Path, names: Iterable[str], holder: str) -> Iterator[None]:
    """Keep these shards from `ft cache --gc` while the block runs.

    Should the process be killed, they stay as long as a process lives that it forked meanwhile.
    """
    text = json.dumps({"holder": f"{holder} (process {os.getpid()})", "shards": sorted(names)})
    try:
        file, path = _take(readers_folder(cache_folder), text)
    except OSError as error:
        if error.errno not in NO_LEASE:
            raise
        yield
        return
    pid = os.getpid()
    with file:
        try:
            yield
        finally:
            if os.getpid() == pid:  # not a child that was forked meanwhile
                with suppress(OSError):
                    path.unlink(missing_ok=True)


def readers_folder(cache_folder: Path) -> Path:
    """Beside the cache's folder, which may be a link to one on another disk."""
    return cache_folder.parent / READERS


def _take(folder: Path, text: str) -> tuple[IO[str], Path]:
    """A new lease: its file, open and locked, and where it lies."""
    folder.mkdir(exist_ok=True)
    name = os.urandom(8).hex() + ".json"
    path, temp = folder / name, temp_path(folder, name)
    with naming(path), ExitStack() as undo:
        undo.callback(temp.unlink, missing_ok=True)
        file = undo.enter_context(open(temp, "w"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.write(text)
        file.flush()
        os.rename(temp, path)
        undo.pop_all()
    return file, path


@dataclass(frozen=True)
class Leases:
    """What running processes hold: their names, and the shards."""

    holders: list[str] = field(default_factory=list)
    shards: frozenset[str] = frozenset()


def read_leases(cache_folder: Path, *, remove_dead: bool) -> Leases:
    """The leases of running processes; those of dead ones are passed over, or removed.

    Raises UserError when a running process's lease cannot be read: nobody knows then what it holds.
    """
    folder = readers_folder(cache_folder)
    if remove_dead:
        sweep(folder)
    holders: list[str] = []
    shards: set[str] = set()
    # Not those with a dot, which are being written and may not be locked yet.
    for path in sorted(folder.glob("[!.]*.json")):
        try:
            with open(path) as file:
                if _is_dead(file):
                    if remove_dead:
                        path.unlink(missing_ok=True)
                    continue
                lease = json.load(file)
                holders.append(str(lease["holder"]))
                shards |= set(lease["shards"])
        except FileNotFoundError:
            continue  # the reader has ended just now
        except (OSError, ValueError, TypeError, KeyError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise UserError(
                f"{path} says which shards a running command reads, and cannot be read ({why}): nothing is dropped; "
                f"wait for that command to end"
            ) from None
    return Leases(holders, frozenset(shards))


def _is_dead(file: IO[str]) -> bool:
    """True when nobody holds the lock on this lease: its process has ended, and all that it forked."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False  # held; or nobody can tell
    return True
