"""Photographs with pixels at hand: a part of the index joined with the shards that hold its crops."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facetrain.datasets.cache import decode_spec
from facetrain.datasets.manifest import Manifest
from facetrain.datasets.shards import map_shard
from facetrain.errors import MissingStage, UserError
from facetrain.image_spec import ImageSpec
from facetrain.index import Index


class PhotoSet:
    """Images by position 0…n−1, gathered from memory-mapped shards.

    labels: int64 [n], dense from 0 in the order of the sorted ``identities``; rows: int64 [n], the index's rows.
    """

    def __init__(self, index: Index, manifest: Manifest, shard_folder: Path, rows: np.ndarray) -> None:
        self.spec: ImageSpec = index.spec
        if manifest.spec != decode_spec(self.spec):
            raise MissingStage("the cache was made from other crops than the index names: run `ft cache`")
        paths = index.rows["path"].take(pa.array(rows))
        where = pc.index_in(paths, manifest.table["path"])
        there = pc.is_valid(where).to_numpy()
        self.rows = rows[there]
        self.absent = int((~there).sum())  # kept rows without a crop in the cache
        where = where.drop_null().to_numpy()
        self._shard = manifest.table["shard"].to_numpy()[where]
        self._row = manifest.table["row"].to_numpy()[where].astype(np.int64)
        self._files = [shard_folder / name for name in manifest.shards]
        self._views: dict[int, list[np.ndarray]] = {}

        person, names = index.people
        present = np.unique(person[self.rows])
        order = sorted(present.tolist(), key=lambda code: names[code].as_py())
        self.identities: list[str] = [names[code].as_py() for code in order]
        rank = np.full(len(names), -1, np.int64)
        rank[order] = np.arange(len(order))
        self.labels: np.ndarray = rank[person[self.rows]]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return self.spec.size_px, self.spec.size_px, 3

    def gather(self, positions: np.ndarray) -> np.ndarray:
        """Copy images into one array: uint8 [len(positions), H, W, C]."""
        out = np.empty((len(positions), *self.image_shape), np.uint8)
        shards, rows = self._shard[positions], self._row[positions]
        for number in np.unique(shards):
            here = np.flatnonzero(shards == number)
            first = 0
            for view in self._view(int(number)):
                inside = here[(rows[here] >= first) & (rows[here] < first + len(view))]
                out[inside] = view[rows[inside] - first]
                first += len(view)
        return out

    def _view(self, number: int) -> list[np.ndarray]:
        if number not in self._views:
            self._views[number] = map_shard(self._files[number])
        return self._views[number]


def select_rows(index: Index, part: str | None) -> np.ndarray:
    """Row numbers, int64, of the kept photographs of ``train`` or ``val`` (None: of both).

    Raises MissingStage when a part is asked for and nothing was split, UserError when nothing is left.
    """
    if part is None:
        mask = index.kept
    else:
        mask = index.part(part)
    rows = np.flatnonzero(mask)
    if not len(rows):
        raise UserError(
            f"no photographs are left for {part or 'use'}: `ft prune --min` with a smaller number keeps more"
        )
    return rows
