"""Photographs with pixels at hand: a part of the index joined with the shards that hold its crops."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import pyarrow as pa
from blake3 import blake3

from facetrain.datasets.cache.build import decode_spec
from facetrain.datasets.cache.crop_reader import content_bytes
from facetrain.datasets.cache.manifest import Manifest
from facetrain.datasets.shard_map import ShardMap
from facetrain.errors import MissingStage, UserError
from facetrain.image_spec import ImageSpec
from facetrain.index import Index
from facetrain.tables import positions, take


class Memory:
    """Memory for batches, used again: fresh memory costs page faults, a third of the time of gathering."""

    def __init__(self, image_shape: tuple[int, ...]) -> None:
        self.image_shape = image_shape
        self._free: deque[np.ndarray] = deque()

    def take(self, count: int) -> np.ndarray:
        """uint8 [count, *image_shape], of any content."""
        try:
            while len(free := self._free.pop()) < count:
                pass  # too small: let it go
        except IndexError:
            free = np.empty((count, *self.image_shape), np.uint8)
        return free[:count]

    def give_back(self, images: np.ndarray) -> None:
        """Let the memory of what `take` gave be used again."""
        assert images.base is not None
        self._free.append(images.base)


class PhotoSet:
    """Images by position 0…n−1, gathered from memory-mapped shards.

    shards: those of the manifest, mapped by another PhotoSet of it; None: map them.
    labels: int64 [n], dense from 0 in the order of the sorted ``identities``; rows: int64 [n], the index's rows.
    """

    def __init__(
        self,
        index: Index,
        manifest: Manifest,
        shard_folder: Path,
        rows: np.ndarray,
        shards: ShardMap | None = None,
    ) -> None:
        self.spec: ImageSpec = index.spec
        if manifest.spec != decode_spec(self.spec):
            raise MissingStage("the cache was made from other crops than the index names: run `ft cache`")
        where = positions(take(index.rows["path"], rows), manifest.table["path"])
        there = where >= 0
        self.rows = rows[there]
        self.absent = int((~there).sum())  # kept rows without a crop in the cache
        if shards is None:
            shards = ShardMap([shard_folder / name for name in manifest.shards], manifest.spec.row_bytes)
        self.shards = shards
        shard, row = (manifest.table[name].to_numpy()[where[there]] for name in ("shard", "row"))
        self._contents = manifest.table["content"].take(pa.array(where[there]))
        self._slot = self.shards.slots(shard, row.astype(np.int64))
        self._images = self.shards.images.reshape(-1, *self.image_shape)
        self.memory = Memory(self.image_shape)

        person, names = index.people
        present = np.unique(person[self.rows])
        order = sorted(present.tolist(), key=lambda code: names[code].as_py())
        self.identities: list[str] = [names[code].as_py() for code in order]
        rank = np.full(len(names), -1, np.int64)
        rank[order] = np.arange(len(order))
        self.labels: np.ndarray = rank[person[self.rows]]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def fingerprint(self) -> str:
        """BLAKE3 of who is here with which pixels, in order: sets of equal fingerprints give equal batches."""
        hasher = blake3(self.rows.tobytes())
        hasher.update(self.labels.tobytes())
        hasher.update(content_bytes(self._contents)[0].tobytes())
        return hasher.hexdigest()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return self.spec.size_px, self.spec.size_px, 3

    def gather(self, positions: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Copy images into one array, uint8 [len(positions), H, W, C]: ``out`` (contiguous), or a new one.

        The one copy between the cache's files and the batch. Other threads run meanwhile.
        """
        slots = self._slot[positions]
        if not self.shards.fits:
            self.shards.will_need(slots)
        # The slots are ours, and right; with mode "raise" NumPy would copy everything once more.
        return self._images.take(slots, axis=0, out=out, mode="clip")


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
