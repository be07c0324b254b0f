"""train/ and val/ as folders of links to the crops, for tools that want a tree."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from facetrain.errors import UserError


def export_tree(
    aligned: Path, crops: dict[str, pa.ChunkedArray], out: Path, on_progress: Callable[[int], None]
) -> dict[str, int]:
    """Link OUT/<part>/<person>/… to the crops of each part; return the number of links of each.

    OUT must be new or empty, so that no earlier export is mixed with this one.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already and not empty: name a new folder, or remove it first")
    made: set[Path] = set()
    root = aligned.resolve()
    for part, paths in crops.items():
        for path in (path for chunk in paths.chunks for path in chunk.to_pylist()):
            target = out / part / path
            if target.parent not in made:
                target.parent.mkdir(parents=True, exist_ok=True)
                made.add(target.parent)
            os.symlink(root / path, target)
            on_progress(1)
    return {part: len(paths) for part, paths in crops.items()}
