"""Garbage: shards that no dataset of the workspace refers to, and what killed commands have left half-written.

Nothing else in .ft/ is ever dropped. What a running process reads stays (see `leases`), and where it cannot be known
what a dataset refers to, nothing is dropped at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from facetrain.datasets.cache.check import SHARD_NAME
from facetrain.datasets.cache.leases import read_leases
from facetrain.datasets.cache.manifest import read_manifest
from facetrain.errors import Locked, UserError
from facetrain.files import TEMP_PREFIX, sweep
from facetrain.tables import is_intact
from facetrain.workspace import locked


@dataclass(frozen=True)
class Garbage:
    """What was dropped, or would be; and what nothing refers to but running processes read: files and bytes."""

    files: int
    bytes: int
    held_files: int
    held_bytes: int
    holders: list[str]


def collect(folder: Path, *, dry_run: bool) -> Garbage:
    """Drop what nothing in this .ft/ folder refers to. Whoever drops must hold the workspace's lock.

    What killed trainings left half-written counts when it is dropped, not in a dry run; other commands' leftovers go
    whenever the lock is taken. Raises UserError, and drops nothing, when a manifest or a running process's lease
    cannot be read.
    """
    cache = folder / "cache"
    unreferenced = unreferenced_shards(folder)
    leases = read_leases(cache, remove_dead=not dry_run)
    held = {path: size for path, size in unreferenced.items() if path.name in leases.shards}
    dropped = {path: size for path, size in unreferenced.items() if path not in held}
    if not dry_run:
        for path in dropped:
            path.unlink(missing_ok=True)
        dropped |= _sweep_runs(folder / "runs")
    return Garbage(
        files=len(dropped),
        bytes=sum(dropped.values()),
        held_files=len(held),
        held_bytes=sum(held.values()),
        holders=leases.holders if held else [],
    )


def unreferenced_shards(folder: Path, *, verify: bool = True) -> dict[Path, int]:
    """The shards that no manifest in this .ft/ folder names, and their sizes in bytes.

    Without ``verify`` large manifests are believed unread.
    """
    referred: set[str] = set()
    for store in _stores(folder / "datasets"):
        referred |= _shards_of(store, verify)
    return {path: size for path, size in shards_in(folder / "cache").items() if path.name not in referred}


def shards_in(cache: Path) -> dict[Path, int]:
    """All shards that lie in a folder, and their sizes in bytes."""
    try:
        with os.scandir(cache) as entries:
            files = [entry for entry in entries if entry.is_file(follow_symlinks=False)]
            shards = [entry for entry in files if SHARD_NAME.fullmatch(entry.name)]
            return {Path(entry.path): entry.stat(follow_symlinks=False).st_size for entry in shards}
    except FileNotFoundError:
        return {}


def _stores(datasets: Path) -> Iterator[Path]:
    """The folders of all datasets. Raises, rather than passing over one that cannot be entered."""
    for entry in sorted(os.scandir(datasets), key=lambda entry: entry.name):
        if entry.is_symlink() and not os.path.exists(entry.path):
            raise UserError(f"{entry.path} is a link to what is not there: mount it, or remove the link")
        if entry.is_dir():
            os.scandir(entry.path).close()
            yield Path(entry.path)


def _shards_of(store: Path, verify: bool) -> set[str]:
    path = store / "cache.arrow"
    if not path.exists():
        if (store / "stages" / "cache.json").exists():
            raise UserError(f"{path} is gone: `ft cache` makes it again; nothing is dropped before")
        return set()
    manifest = read_manifest(store) if not verify or is_intact(path) else None
    if manifest is None:
        raise UserError(f"{path} is damaged: `ft cache` makes it again; nothing is dropped before")
    return set(manifest.shards)


def _sweep_runs(runs: Path) -> dict[Path, int]:
    """Remove what killed trainings have left half-written; the files and their sizes."""
    found = {}
    for path in runs.glob(f"*/**/{TEMP_PREFIX}*"):
        with suppress(FileNotFoundError):  # a training's that goes on
            found[path] = path.stat().st_size
    for run in {runs / path.relative_to(runs).parts[0] for path in found}:
        with suppress(Locked), locked(run / "lock", f"run '{run.name}'"):
            for folder in {path.parent for path in found if path.is_relative_to(run)}:
                sweep(folder)
    return {path: size for path, size in found.items() if not path.exists()}
