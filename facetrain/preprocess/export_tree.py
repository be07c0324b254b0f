"""train/ and val/ as folders of links to the crops, for tools that want a tree."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa

from facetrain.errors import UserError


def export_tree(
    aligned: Path,
    crops: dict[str, pa.ChunkedArray],
    out: Path,
    on_progress: Callable[[int], None],
    people: dict[str, list[str | None]] | None = None,
) -> dict[str, int]:
    """Link OUT/<part>/<person>/… to the crops of each part; return the number of links of each.

    people: whose the crops of each part are; None: the person is the first folder of each crop's path. A crop from another
    person's folder is called by all of its path: ``ann/bob-1.jpg``, of ``bob/1.jpg``.
    OUT must be new or empty, so that no earlier export is mixed with this one.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already and not empty: name a new folder, or remove it first")
    made: set[Path] = set()
    root = aligned.resolve()
    for part, paths in crops.items():
        names: Iterable[str | None] = itertools.repeat(None) if people is None else people[part]
        links = zip((path for chunk in paths.chunks for path in chunk.to_pylist()), names, strict=False)
        from_elsewhere = []
        for path, person in links:
            if person is not None and not path.startswith(f"{person}/"):
                from_elsewhere.append((path, person))
                continue
            target = out / part / path
            if target.parent not in made:
                target.parent.mkdir(parents=True, exist_ok=True)
                made.add(target.parent)
            os.symlink(root / path, target)
            on_progress(1)
        for path, person in from_elsewhere:
            target = out / part / person / path.replace("/", "-")
            while target.is_symlink():
                target = target.with_name(f"_{target.name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(root / path, target)
            on_progress(1)
    return {part: len(paths) for part, paths in crops.items()}
