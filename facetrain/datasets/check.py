"""Are the shards still as they were written?"""

from __future__ import annotations

from pathlib import Path

from facetrain.datasets.manifest import Manifest
from facetrain.files import file_fingerprint


def remove_damaged(manifest: Manifest | None, shard_folder: Path, verify: bool) -> int:
    """Remove shards that are no longer as they were written; return how many."""
    damaged = 0
    for name in [] if manifest is None else manifest.shards:
        path = shard_folder / name
        if not path.is_file():
            continue
        assert manifest is not None
        whole = path.stat().st_size == manifest.sizes[name]
        if not whole or (verify and file_fingerprint(path) != manifest.hashes[name]):
            path.unlink()
            damaged += 1
    return damaged
