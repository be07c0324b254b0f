"""What the cache is to hold: the index's rows whose crops are there, dealt to the shards' leaves.

Which leaf a row belongs to follows from the people and their numbers of photographs, so it is known before the crops
are read. What the leaf's shard is called follows from their contents, and may be known only when its turn has come.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facetrain.datasets.cache.cached_pixels import CachedPixels, beginning
from facetrain.datasets.cache.crop_reader import content_bytes
from facetrain.datasets.cache.shards import DecodeSpec, assign_leaves, identity_hash, shard_name
from facetrain.errors import UserError
from facetrain.index import Index
from facetrain.tables import positions


@dataclass
class Plan:
    """Columns, one value per row that may be cached, those of a leaf one behind the other."""

    row: np.ndarray  # int64: in the index
    file: np.ndarray  # int64: of the crop, in the listing of the aligned tree
    person: np.ndarray  # int64: in `people`
    kept: np.ndarray  # bool: to be cached; the others only if they were cached before
    content: np.ndarray  # uint8 [n, 32]: of the crop, where `known`
    known: np.ndarray  # bool
    people: list[str]  # sorted
    hashes: np.ndarray  # uint64: of the people
    starts: np.ndarray  # int64 [leaves + 1]: where each leaf begins
    absent: int  # kept rows without a crop

    def leaf(self, number: int) -> np.ndarray:
        """The rows of a leaf, int64, as they stand here."""
        return np.arange(self.starts[number], self.starts[number + 1])

    @property
    def num_leaves(self) -> int:
        return len(self.starts) - 1


@dataclass
class Leaf:
    """What a shard is to hold. ``rows``: of the plan, in the shard's order, copies of a photograph behind each other."""

    number: int
    rows: np.ndarray  # int64
    shard_row: np.ndarray  # int64, per row: copies share one
    first: np.ndarray  # int64: of each row of the shard, the first of the plan's
    name: str  # "" when there is nothing to hold
    encoded: dict[int, bytes] = field(default_factory=dict)  # the files' bytes, by row of the plan
    is_there: bool = False

    def __len__(self) -> int:
        return len(self.first)


def make_plan(
    index: Index, files: pa.Table, contents: pa.ChunkedArray, cached: CachedPixels, spec: DecodeSpec
) -> Plan:
    """Plan for an index. files, contents: the listing of its crops, and what is known of their contents, or null."""
    where = positions(index.rows["aligned"], files["path"])
    there = index.usable & (where >= 0)
    if not there.any():
        raise UserError("none of the crops that the index names is there: run `ft align` again")
    absent = int(np.count_nonzero(index.kept & ~there))
    row = np.flatnonzero(there)
    codes, names = index.people
    order = pc.array_sort_indices(names).to_numpy()
    rank = np.argsort(order)
    person = rank[codes[row]]
    people = names.take(pa.array(order)).to_pylist()
    counts = np.bincount(person, minlength=len(people))
    present = counts > 0
    hashes = identity_hash(people)
    leaf_of_person = np.full(len(people), -1)
    leaf_of_person[present] = assign_leaves(hashes[present], counts[present], spec.rows_per_shard)

    leaf = leaf_of_person[person]
    by_leaf = np.argsort(leaf, kind="stable")
    row, person, leaf = row[by_leaf], person[by_leaf], leaf[by_leaf]
    file = where[row]
    content, known = content_bytes(contents)
    content, known, kept = content[file], known[file], index.kept[row]

    wanted = kept.copy()
    other = np.flatnonzero(~kept)
    if len(other):
        wanted[other] = np.where(
            known[other],
            cached.held(hashes[person[other]], content[other]),
            cached.held_people(hashes[person[other]]),
        )
    if not wanted.all():
        row, file, person, leaf = row[wanted], file[wanted], person[wanted], leaf[wanted]
        content, known, kept = content[wanted], known[wanted], kept[wanted]
    starts = np.concatenate([np.flatnonzero(np.diff(leaf, prepend=-1)), [len(leaf)]])
    return Plan(row, file, person, kept, content, known, people, hashes, starts, absent)


def in_order(plan: Plan, spec: DecodeSpec, number: int, rows: np.ndarray) -> Leaf:
    """The leaf that holds these rows of the plan, whose contents are known: by person, then by content."""
    person, content = plan.person[rows], plan.content[rows]
    order = np.lexsort((beginning(content), person))
    rows, person, content = rows[order], person[order], content[order]
    is_new = np.ones(len(rows), bool)
    is_new[1:] = (person[1:] != person[:-1]) | (content[1:] != content[:-1]).any(axis=1)
    first = rows[is_new]
    if not len(first):
        return Leaf(number, rows, rows, first, "")
    people, counts = np.unique(plan.person[first], return_counts=True)
    names = [plan.people[code] for code in people.tolist()]
    name = shard_name(spec, names, counts.tolist(), content[is_new].tobytes())
    return Leaf(number, rows, np.cumsum(is_new) - 1, first, name)
