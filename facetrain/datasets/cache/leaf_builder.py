"""Makes the shards that are not there yet: crops are read, decoded and written at the same time, leaf by leaf."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from facetrain.datasets.cache.cached_pixels import CachedPixels
from facetrain.datasets.cache.crop_reader import CropReader
from facetrain.datasets.cache.decode import DecodeBatch, Decoder, quiet_stderr
from facetrain.datasets.cache.plan import Leaf, Plan, in_order
from facetrain.datasets.cache.shard_writer import BUFFERS, ShardWriter
from facetrain.datasets.cache.shards import DecodeSpec
from facetrain.tables import is_intact

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class _Decoding:
    """A leaf whose pixels are being made: uint8 [rows of the shard, H, W, 3]."""

    leaf: Leaf
    images: np.ndarray
    decoders: set[str]  # what made those that were copied
    batches: list[DecodeBatch] = field(default_factory=list)
    all_begun: bool = False

    @property
    def done(self) -> bool:
        return self.all_begun and all(batch.done for batch in self.batches)


class LeafBuilder:
    """Builds what the plan holds.

    Then ``names`` are the shards, ``shard`` and ``shard_row`` say for each row of the plan where it lies (int32, -1:
    it has no pixels), and the counts say what was done.
    """

    def __init__(
        self,
        plan: Plan,
        reader: CropReader,
        cached: CachedPixels,
        shard_folder: Path,
        spec: DecodeSpec,
        *,
        on_undecodable: Callable[[list[tuple[int, bytes, str]]], None],
        on_progress: Callable[[int], None],
    ) -> None:
        self._plan, self._reader, self._cached = plan, reader, cached
        self._folder, self._spec = shard_folder, spec
        self._on_undecodable, self._on_progress = on_undecodable, on_progress
        self.decoded = self.copied = self.written = self.unreadable = 0
        self.damaged: list[str] = []
        self.names: list[str] = []
        self.shard = np.full(len(plan.row), -1, np.int32)
        self.shard_row = np.full(len(plan.row), -1, np.int32)
        self._name_of_leaf = [""] * plan.num_leaves
        self._decoding: list[_Decoding] = []

    def run(self, threads: int, device: str, on_start: Callable[[int], None]) -> None:
        """Build every leaf; ``on_start`` is told the number of crops in those that must be looked at."""
        plan, todo = self._plan, []
        for number in range(plan.num_leaves):
            rows = plan.leaf(number)
            leaf = in_order(plan, self._spec, number, rows) if plan.known[rows].all() else None
            if leaf is not None and leaf.name in self._cached.names:
                self._finish(leaf)
            else:
                todo.append(number)
        sizes = [len(plan.leaf(number)) for number in todo]
        on_start(sum(sizes))
        if todo:
            with (
                ThreadPoolExecutor(1, "read") as reading,
                ShardWriter(self._folder, self._spec, max(sizes)) as writer,
                quiet_stderr() as self._aloud,
            ):
                self._build(_ahead(reading, self._settle, todo), threads, device, writer)
        self._number_shards()

    def _build(self, leaves: Iterable[Leaf], threads: int, device: str, writer: ShardWriter) -> None:
        decoder = Decoder(self._spec.size_px, threads, device)
        for leaf in leaves:
            if leaf.is_there:
                self._finish(leaf)
                self._progress(len(self._plan.leaf(leaf.number)))
            else:
                self._decode(leaf, decoder, writer)
        decoder.finish()
        self._write_decoded(writer)
        assert not self._decoding

    def _finish(self, leaf: Leaf) -> None:
        self.shard[leaf.rows] = leaf.number
        self.shard_row[leaf.rows] = leaf.shard_row
        self._name_of_leaf[leaf.number] = leaf.name

    def _number_shards(self) -> None:
        """From numbers of leaves to numbers of shards: a leaf may have nothing to hold."""
        self.names = [name for name in self._name_of_leaf if name]
        number = np.cumsum([bool(name) for name in self._name_of_leaf], dtype=np.int32) - 1
        there = self.shard >= 0
        self.shard[there] = number[self.shard[there]]

    # In the reading thread.

    def _settle(self, number: int) -> Leaf:
        """Learn what a leaf holds, and read what is needed for its shard; each crop once."""
        encoded: dict[int, bytes] = {}
        rows = self._plan.leaf(number)
        leaf = self._in_order(number, self._read(rows, ~self._plan.known[rows], encoded))
        if leaf.is_there:
            return leaf
        without_pixels = self._cached.find(self._plan.content[leaf.rows])[0] < 0
        unread = without_pixels & ~np.isin(leaf.rows, list(encoded))
        if unread.any():
            leaf = self._in_order(number, self._read(leaf.rows, unread, encoded))
        leaf.encoded = encoded
        return leaf

    def _read(self, rows: np.ndarray, which: np.ndarray, encoded: dict[int, bytes]) -> np.ndarray:
        """Read some of the rows' crops, into ``encoded``; the rows without those that cannot be read."""
        plan, todo = self._plan, rows[which]
        for row, read in zip(todo.tolist(), self._reader.read(plan.file[todo]), strict=True):
            if read is None:
                plan.known[row] = False
                self.unreadable += int(plan.kept[row])
            else:
                encoded[row], content = read
                plan.content[row] = np.frombuffer(content, np.uint8)
                plan.known[row] = True
        return rows[plan.known[rows]]

    def _in_order(self, number: int, rows: np.ndarray) -> Leaf:
        """The leaf of those rows that are kept or were cached before."""
        plan = self._plan
        if not plan.kept[rows].all():
            held = self._cached.held(plan.hashes[plan.person[rows]], plan.content[rows])
            rows = rows[plan.kept[rows] | held]
        leaf = in_order(plan, self._spec, number, rows)
        leaf.is_there = not leaf.name or self._is_there(leaf.name)
        return leaf

    def _is_there(self, name: str) -> bool:
        """A shard that the manifest does not know, of an earlier run or another dataset, is checked first."""
        if name in self._cached.names:
            return True
        path = self._folder / name
        if not path.is_file():
            return False
        if not is_intact(path):
            path.unlink()
            self.damaged.append(name)
            return False
        return True

    # In the main thread.

    def _decode(self, leaf: Leaf, decoder: Decoder, writer: ShardWriter) -> None:
        """Copy the pixels that are known, and begin to decode the others."""
        if len(self._decoding) >= BUFFERS:  # small leaves: nothing else would make room
            decoder.finish()
            self._write_decoded(writer)
        current = _Decoding(leaf, writer.take(len(leaf)), set())
        shard, row = self._cached.find(self._plan.content[leaf.first])
        for number in np.unique(shard[shard >= 0]).tolist():
            here = np.flatnonzero(shard == number)
            pixels, decoders = self._cached.read(number)
            current.images[here] = pixels[row[here]]
            current.decoders |= decoders
        todo = np.flatnonzero(shard < 0)
        self.copied += len(leaf) - len(todo)
        self._progress(len(self._plan.leaf(leaf.number)) - len(todo))

        encoded = [leaf.encoded[row] for row in leaf.first[todo].tolist()]
        self._decoding.append(current)
        start = 0
        while start < len(todo):
            part = slice(start, start + decoder.batch_size)
            batch = DecodeBatch(encoded[part], current.images, todo[part])
            current.batches.append(batch)
            decoder.submit(batch)
            self._write_decoded(writer)
            self._progress(len(batch.encoded))
            start = part.stop
        current.all_begun = True
        leaf.encoded = {}
        self._write_decoded(writer)

    def _progress(self, crops: int) -> None:
        with self._aloud():
            self._on_progress(crops)

    def _write_decoded(self, writer: ShardWriter) -> None:
        """Hand over the shards whose pixels are complete."""
        done = [decoding for decoding in self._decoding if decoding.done]
        self._decoding = [decoding for decoding in self._decoding if not decoding.done]
        for decoding in done:
            leaf, images = self._without_failed(decoding)
            self._finish(leaf)
            if leaf.is_there:
                writer.give_back(images)
                continue
            plan = self._plan
            contents = plan.content[leaf.first].tobytes()
            writer.write(
                leaf.name,
                images,
                [contents[i : i + 32] for i in range(0, len(contents), 32)],
                [plan.people[person] for person in plan.person[leaf.first].tolist()],
                decoder="+".join(sorted(decoding.decoders)),
            )
            self.written += 1

    def _without_failed(self, decoding: _Decoding) -> tuple[Leaf, np.ndarray]:
        """The leaf and its pixels without what cannot be decoded, of which the list is told."""
        leaf, images = decoding.leaf, decoding.images
        why: dict[int, str] = {}
        for batch in decoding.batches:
            why |= {int(batch.rows[i]): reason for i, reason in batch.failed.items()}
            self.decoded += len(batch.encoded) - len(batch.failed)
            decoding.decoders |= batch.decoders
        if not why:
            return leaf, images
        good = np.ones(len(leaf), bool)
        good[list(why)] = False
        has_pixels = good[leaf.shard_row]
        bad = leaf.rows[~has_pixels], leaf.shard_row[~has_pixels]
        self._on_undecodable(
            [
                (int(self._plan.row[row]), self._plan.content[row].tobytes(), why[shard_row])
                for row, shard_row in zip(*(column.tolist() for column in bad), strict=True)
            ]
        )
        images[: np.count_nonzero(good)] = images[good]
        leaf = self._in_order(leaf.number, leaf.rows[has_pixels])
        return leaf, images[: len(leaf)]


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """The results for the items in order; the next is made in the pool while the caller works on one."""
    before = None
    for item in items:
        following = pool.submit(function, item)
        if before is not None:
            yield before.result()
        before = following
    if before is not None:
        yield before.result()
