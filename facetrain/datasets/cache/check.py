"""Are the shards, and the tables of a dataset, still as they were written? Each carries a hash that tells."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from facetrain.datasets.cache.manifest import Manifest
from facetrain.tables import is_intact

SHARD_NAME = re.compile(r"[0-9a-f]{32}\.arrow")  # as `shards.shard_name` makes them


def damaged_tables(store: Path, names: Iterable[str] | None = None) -> list[Path]:
    """The tables in a dataset's folder, all or these, that are other than when they were written. Reads all of each."""
    paths = sorted(store.glob("*.arrow")) if names is None else [store / name for name in names]
    return [path for path in paths if path.is_file() and not is_intact(path)]


def remove_damaged(
    manifest: Manifest | None,
    shard_folder: Path,
    verify: bool,
    on_start: Callable[[int], None] = lambda total: None,
    on_progress: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Remove shards that are no longer as they were written, so that they are made again; return their names.

    Without ``verify`` only their sizes are looked at; with it all of their bytes are read, and where no ``manifest``
    says which shards are the dataset's, all that lie in the folder are checked.
    ``on_start(shards)`` and ``on_progress(shards)`` are called as the work goes on.
    """
    if manifest is not None:
        names = manifest.shards
    else:
        names = [path.name for path in shard_folder.glob("*") if SHARD_NAME.fullmatch(path.name)]
    there = [path for name in sorted(names) if (path := shard_folder / name).is_file()]
    on_start(len(there))
    damaged = []
    for path in there:
        whole = manifest is None or path.stat().st_size == manifest.sizes[path.name]
        if not whole or (verify and not is_intact(path)):
            path.unlink()
            damaged.append(path.name)
        on_progress(1)
    return damaged
