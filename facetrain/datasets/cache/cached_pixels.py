"""What earlier runs left: where the pixels of a content lie, and which photographs of whom were cached."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from facetrain.datasets.cache.crop_reader import content_bytes
from facetrain.datasets.cache.manifest import Manifest
from facetrain.datasets.cache.shards import DecodeSpec, decoder_of, identity_hash, map_shard
from facetrain.tables import dictionary_codes, is_intact


class CachedPixels:
    """The manifest of the run before, as far as its shards are still there and of the same ``spec``."""

    def __init__(self, manifest: Manifest | None, shard_folder: Path, spec: DecodeSpec) -> None:
        self._folder = shard_folder
        self._manifest = manifest if manifest is not None and manifest.spec == spec else None
        names = self._manifest.shards if self._manifest is not None else []
        self.names = frozenset(name for name in names if (shard_folder / name).is_file())
        self.damaged: set[str] = set()  # of these, those that were found so when pixels were wanted of them
        self._intact: dict[int, bool] = {}

    @cached_property
    def _rows(self) -> np.ndarray:
        """The manifest's rows whose shard is there."""
        if self._manifest is None:
            return np.zeros(0, np.int64)
        there = np.array([name in self.names for name in self._manifest.shards], bool)
        return np.flatnonzero(there[self._manifest.table["shard"].to_numpy()])

    @cached_property
    def _contents(self) -> np.ndarray:
        """uint8 [rows, 32]."""
        if self._manifest is None:
            return np.zeros((0, 32), np.uint8)
        return content_bytes(self._manifest.table["content"])[0][self._rows]

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """The beginnings of the contents in their order, and whose they are."""
        keys = beginning(self._contents)
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    def find(self, contents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(shard, row) of the pixels of each content, uint8 [n, 32]; shard -1 where there are none, or damaged ones."""
        shard, row = np.full(len(contents), -1, np.int64), np.full(len(contents), -1, np.int64)
        if self._manifest is None or not len(contents) or not len(self._rows):
            return shard, row
        keys, order = self._sorted
        at = order[np.minimum(np.searchsorted(keys, beginning(contents)), len(keys) - 1)]
        # Two contents that begin alike are decoded again at worst.
        found = (self._contents[at] == contents).all(axis=1)
        rows = self._rows[at[found]]
        shard[found] = self._manifest.table["shard"].to_numpy()[rows]
        row[found] = self._manifest.table["row"].to_numpy()[rows]
        for number in np.unique(shard[found]).tolist():
            if not self._is_intact(number):
                shard[shard == number] = -1
        return shard, row

    def _is_intact(self, shard: int) -> bool:
        """Checked once, before anything is copied: a flipped bit would get the new shard's fingerprint."""
        assert self._manifest is not None
        if shard not in self._intact:
            name = self._manifest.shards[shard]
            self._intact[shard] = is_intact(self._folder / name)
            if not self._intact[shard]:
                self.damaged.add(name)
        return self._intact[shard]

    def read(self, shard: int) -> tuple[np.ndarray, set[str]]:
        """The pixels of a shard, uint8 [n, H, W, 3], and what decoded them."""
        assert self._manifest is not None
        path = self._folder / self._manifest.shards[shard]
        views = map_shard(path)
        return views[0] if len(views) == 1 else np.concatenate(views), set(decoder_of(path).split("+"))

    @cached_property
    def _people(self) -> tuple[np.ndarray, np.ndarray]:
        """(code of each of the rows, hash of each person)."""
        if self._manifest is None:
            return np.zeros(0, np.int32), np.zeros(0, np.uint64)
        codes, names = dictionary_codes(self._manifest.table["identity"])
        return codes[self._rows], identity_hash(names.to_pylist())

    @cached_property
    def _held(self) -> np.ndarray:
        codes, hashes = self._people
        return np.unique(_keys(hashes[codes], self._contents))

    @cached_property
    def _held_people(self) -> np.ndarray:
        codes, hashes = self._people
        return np.unique(hashes[np.unique(codes)])

    def held(self, people: np.ndarray, contents: np.ndarray) -> np.ndarray:
        """bool [n]: this person's photograph of this content was cached. people: uint64 [n], `identity_hash`."""
        return np.isin(_keys(people, contents), self._held)

    def held_people(self, people: np.ndarray) -> np.ndarray:
        """bool [n]: some photograph of this person was cached."""
        return np.isin(people, self._held_people)


def beginning(contents: np.ndarray) -> np.ndarray:
    """uint64 [n]: the first eight bytes of each content, uint8 [n, 32], in the order of the contents."""
    return np.ascontiguousarray(contents[:, :8]).view(">u8")[:, 0].astype(np.uint64)


def _keys(people: np.ndarray, contents: np.ndarray) -> np.ndarray:
    """A number for a person and a content. The odd factor keeps apart those whose bits would cancel each other."""
    return people * np.uint64(0x9E3779B97F4A7C15) ^ beginning(contents)
