"""Bringing the rows of an index up to date with a tree: what is new or changed goes to workers, the rest stays.

All of it is columnar: a tree of ten million photographs of which ten have changed costs the walk and a join. Killed at
any moment and run again, it ends in the same bytes as if never killed: what workers found is in the journal, and the
index is written from the rows sorted by path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facetrain.errors import SpecMismatch
from facetrain.file_table import SCHEMA as HASHED
from facetrain.file_table import FileTable, Listing, file_system_now_ns
from facetrain.files import write_csv
from facetrain.image_spec import ImageSpec
from facetrain.index import ALIGNED, ROWS, count_statuses
from facetrain.preprocess.aligner import Outcome, Task
from facetrain.preprocess.journal import JOURNAL, Journal, Rows, found_batch
from facetrain.tables import (
    find_sorted,
    positions,
    put_rows,
    read_table,
    same_content,
    table_fingerprint,
    take,
    write_table,
)
from facetrain.workers import WorkerDied, process_pool, unordered

BLOCK = 32  # photographs per task: enough to make the models' cache misses rare, few enough to spread evenly
MAX_DEATHS = (
    20  # of workers, one after the other, for which no photograph is to blame: then it is the machine
)
CRASHES = "it crashes the process that looks at it"
MAX_WORKERS = max(8, 4 * (os.cpu_count() or 1))  # more only wait for each other

Pool = Callable[[int], AbstractContextManager[Executor]]
Look = Callable[[Sequence[Task]], list[Outcome]]


@dataclass(frozen=True)
class Work:
    """How the work is done: ``pool`` makes the executor for so many workers (default: processes of this machine)."""

    jobs: int = 1
    pool: Pool | None = None
    on_start: Callable[[int], None] = lambda total: None
    on_progress: Callable[[int], None] = lambda count: None
    # Before that, crops are read whose state is new.
    on_check_start: Callable[[int], None] = lambda total: None
    on_check: Callable[[int], None] = lambda count: None


@dataclass(frozen=True)
class UpdateReport:
    """What became of the rows. Counts are of photographs."""

    counts: dict[str, int]  # by status, in all
    looked_at: int  # new or changed ones that a worker looked at
    unchanged: int
    disappeared: int  # marked missing by this run
    fingerprint: str
    rejected_list: Path


class RowUpdate:
    """One run over one index: `begin`, `look_at` what is new or changed, `finish`.

    ``settings`` decide what a row holds, so they must be those of the rows that are there (or ``redo`` drops these).
    ``verify``: every photograph is read and hashed, whatever its state says.
    """

    def __init__(
        self,
        store: Path,
        spec: ImageSpec,
        settings: dict[str, Any],
        what: str,
        done: str,  # "aligned/", "was aligned": for messages
        *,
        redo: bool = False,
        verify: bool = False,
        only: Collection[str] | None = None,
    ) -> None:
        self.store, self.spec, self.settings, self.redo, self.only = store, spec, settings, redo, only
        self.journal = Journal(store / JOURNAL)
        self.raw_files = FileTable(store / "raw.files.arrow", trusted=not verify)
        path = store / "rows.arrow"
        self.rows = self.rows_before = (
            read_table(path, verify=verify) if path.is_file() else ROWS.empty_table()
        )
        if path.is_file() and not redo:
            there = json.loads(self.rows.schema.metadata[b"settings"])
            _require_same_settings(there, settings, f"{what} {done}")
        for header in [] if redo else self.journal.headers():
            _require_same_settings(header["settings"], settings, f"the interrupted run {done}")

    def begin(self, listing: Listing) -> None:
        """Go on from the rows that are there, and from what earlier, unfinished runs found.

        A redo drops the rows, and goes on with an earlier redo of the same settings only.
        """
        if self.redo:
            there = positions(self.rows["path"], listing.files["path"]) >= 0
            self.rows = _without_faces(self.rows.filter(pa.array(~there)))
        for header, found in self.journal.parts():
            if not self.redo or (header["redo"] and _flat(header["settings"]) == _flat(self.settings)):
                self._take_in(found)

    def look_at(
        self, listing: Listing, crops: pa.Table | None, refused: Collection[str], look: Look, work: Work
    ) -> int:
        """Hand what is new or changed to workers; return how many photographs that were.

        crops: path and content of the crops that are there; None when the photographs themselves are the crops.
        refused: photographs that must not be looked at.
        """
        tasks = self._tasks(listing, crops, refused)
        work.on_start(tasks.num_rows)
        rows = Rows()
        now_ns = file_system_now_ns(self.store)
        self.journal.begin(self.settings, self.redo)
        try:
            for block in _in_workers(look, tasks, work):
                _fill_in_sizes(block, listing)
                batch = found_batch(block, now_ns)
                self.journal.append(batch)
                rows.add(batch)
                work.on_progress(len(block))
        finally:
            self.journal.close()
        found = rows.table()
        self._take_in(found)
        return found.num_rows - (pc.sum(found["unchanged"]).as_py() or 0)

    def finish(self, listing: Listing, refused: Sequence[Outcome], looked_at: int) -> UpdateReport:
        """Account for what was not looked at, and write the index."""
        problems = [Outcome(path, "unreadable", why) for path, why in listing.problems.items()]
        for outcome, row in zip(problems, self.rows_of(listing.problems), strict=True):
            outcome.size_bytes = None if row is None else row["size_bytes"]
        self.rows = _overlay(self.rows, _rows_of(found_batch([*problems, *refused])))
        disappeared = self._mark_missing(listing)
        fingerprint = self._write()
        self.raw_files.keep(self.rows["path"])
        self.raw_files.save()
        rejected_list = self._write_rejected()
        self.journal.remove()
        return UpdateReport(
            counts=count_statuses(self.rows["status"]),
            looked_at=looked_at,
            unchanged=len(listing) - looked_at,
            disappeared=disappeared,
            fingerprint=fingerprint,
            rejected_list=rejected_list,
        )

    def rows_of(self, paths: Collection[str]) -> list[dict[str, Any] | None]:
        """The rows of these few photographs; None for those that have none."""
        where = find_sorted(self.rows["path"], list(paths)).tolist()
        return [self.rows.slice(i, 1).to_pylist()[0] if i >= 0 else None for i in where]

    def _take_in(self, found: pa.Table) -> None:
        """Let what one run's workers found replace what was known."""
        self.rows = _overlay(self.rows, _rows_of(found.filter(pc.invert(found["unchanged"]))))
        seen = found.filter(pc.and_(pc.is_valid(found["inode"]), pc.is_valid(found["content"]))).sort_by(
            "path"
        )
        names = ["path", "seen_bytes", "mtime_ns", "ctime_ns", "inode", "hashed_ns", "content"]
        self.raw_files.put(seen.select(names).rename_columns(HASHED.names).cast(HASHED))

    def _tasks(self, listing: Listing, crops: pa.Table | None, refused: Collection[str]) -> pa.Table:
        """path, known (the content that the photograph had when its row, which is intact, was made)."""
        paths = listing.files["path"]
        again = pa.array(["missing", "name-clash"])  # what is not for the photograph alone to decide
        stands = ~pc.is_in(_plain(self.rows["status"]), again).to_numpy()
        stands &= ~self._was_too_large()
        if crops is not None:
            crop = take(crops["content"], positions(self.rows["aligned"], crops["path"]))
            stands &= pc.is_null(self.rows["aligned"]).to_numpy() | same_content(
                crop, self.rows["aligned_content"]
            )
        where = positions(paths, self.rows["path"])
        where[~np.append(stands, False)[where]] = -1
        known = take(self.rows["content"], where)
        todo = ~same_content(self.raw_files.contents(listing.files), known)
        todo[find_sorted(paths, list(refused))] = False
        return pa.table({"path": paths, "known": known}).filter(pa.array(todo))

    def _was_too_large(self) -> np.ndarray:
        """bool per row: rejected for its number of pixels under another limit, and within today's."""
        limit = self.settings.get("max_pixels", 0)
        pixels = pc.multiply(self.rows["width_px"].cast(pa.int64()), self.rows["height_px"])
        unread = pc.equal(self.rows["status"], "unreadable")
        return pc.fill_null(pc.and_(unread, pc.less_equal(pixels, limit)), False).to_numpy()

    def _mark_missing(self, listing: Listing) -> int:
        """Mark the rows of photographs that are gone; return how many were there before."""
        gone = positions(self.rows["path"], listing.files["path"]) < 0
        gone[find_sorted(self.rows["path"], list(listing.problems))] = False
        if self.only is not None:
            gone &= pc.is_in(self.rows["path"], pa.array(sorted(self.only), pa.large_string())).to_numpy()
        if not gone.any():
            return 0
        # Without a size it was no photograph, but a folder or link that could not be followed, and now is gone.
        never = gone & pc.is_null(self.rows["size_bytes"]).to_numpy()
        rows = self.rows.filter(pa.array(gone & ~never))
        fresh = pc.sum(pc.not_equal(rows["status"], "missing")).as_py() or 0
        reasons = [_why_missing(path, listing) for chunk in rows["path"].chunks for path in chunk.to_pylist()]
        rows = rows.set_column(2, ROWS.field("status"), _constant("missing", len(rows)))
        rows = rows.set_column(3, ROWS.field("reason"), pa.array(reasons, pa.string()))
        for name in ("aligned", "aligned_content"):
            number = ROWS.get_field_index(name)
            rows = rows.set_column(number, ROWS.field(name), pa.nulls(len(rows), ROWS.field(name).type))
        if never.any():
            self.rows = self.rows.filter(pa.array(~never))
        self.rows = _overlay(self.rows, rows)
        return fresh

    def _write(self) -> str:
        path = self.store / "rows.arrow"
        if self.rows is self.rows_before and (fingerprint := table_fingerprint(path)) is not None:
            return fingerprint
        metadata = {
            "image_spec": self.spec.to_json(),
            "settings": json.dumps(self.settings, sort_keys=True),
        }
        # People's codes are those of their order, whatever way the rows came in.
        for number, column in enumerate(ROWS):
            if pa.types.is_dictionary(column.type):
                values = self.rows[column.name].cast(pa.string()).dictionary_encode()
                self.rows = self.rows.set_column(number, column, values)
        self.rows = self.rows.cast(ROWS.with_metadata(metadata))
        return write_table(path, self.rows)

    def _write_rejected(self) -> Path:
        """The list of the photographs that have no crop, and why."""
        rejected = self.rows.filter(pc.not_equal(self.rows["status"], ALIGNED))
        columns = (rejected[name].to_pylist() for name in ("path", "status", "reason"))
        path = self.store / "rejected.csv"
        write_csv(path, ("path", "status", "reason"), zip(*columns, strict=True))
        return path


def _in_workers(look: Look, tasks: pa.Table, work: Work) -> Iterator[list[Outcome]]:
    if not tasks.num_rows:
        return
    block = min(BLOCK, max(1, tasks.num_rows // (4 * work.jobs)))
    blocks = (
        [Task(**row) for row in tasks.slice(start, block).to_pylist()]
        for start in range(0, tasks.num_rows, block)
    )
    workers = min(work.jobs, -(-tasks.num_rows // block), MAX_WORKERS)
    unexplained = 0
    while True:
        try:
            with (work.pool or process_pool)(workers) as executor:
                try:
                    ahead = getattr(executor, "ahead", 3 * work.jobs)  # a cluster's workers come and go
                    yield from unordered(executor, look, blocks, ahead=ahead)
                except BaseException:
                    executor.shutdown(wait=True, cancel_futures=True)
                    raise
            return
        except WorkerDied as death:
            unexplained += 1
            if not death.unfinished or unexplained > MAX_DEATHS:
                raise
            for unfinished in death.unfinished:
                for outcomes in _one_at_a_time(look, unfinished):
                    if any(outcome.reason == CRASHES for outcome in outcomes):
                        unexplained = 0
                    yield outcomes


def _one_at_a_time(look: Look, block: list[Task]) -> Iterator[list[Outcome]]:
    """A block in a process of its own, divided when that dies, until the photograph that kills it stands alone."""
    try:
        with process_pool(1) as executor:
            yield executor.submit(look, block).result()
    except BrokenProcessPool:
        if len(block) == 1:
            yield [Outcome(block[0].path, "unreadable", CRASHES)]
        else:
            half = len(block) // 2
            yield from _one_at_a_time(look, block[:half])
            yield from _one_at_a_time(look, block[half:])


def _fill_in_sizes(block: Sequence[Outcome], listing: Listing) -> None:
    """Of those that could not be opened the listing knows it."""
    lacking = [outcome for outcome in block if outcome.size_bytes is None]
    where = find_sorted(listing.files["path"], [outcome.path for outcome in lacking])
    for outcome, row in zip(lacking, where.tolist(), strict=True):
        outcome.size_bytes = listing.files["size_bytes"][row].as_py()


def _require_same_settings(there: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    flat_there, flat_wanted = _flat(there), _flat(wanted)
    if flat_there == flat_wanted:
        return
    differing = [
        f"{key} {flat_there.get(key)}, asked for is {value}"
        for key, value in flat_wanted.items()
        if flat_there.get(key) != value
    ]
    raise SpecMismatch(
        f"{where} with {'; with '.join(differing)}: name another folder, or add --redo to do it all again"
    )


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without their limit, which may change: it decides on no crop."""
    flat = {**settings.get("spec", {}), **settings}
    return {key: value for key, value in flat.items() if key not in ("spec", "max_pixels")}


# -- rows as columns -------------------------------------------------------------------------------------------------


def _rows_of(found: pa.Table | pa.RecordBatch) -> pa.Table:
    """What was found as rows of the index, sorted by path."""
    rows = pa.Table.from_batches([found]) if isinstance(found, pa.RecordBatch) else found
    rows = rows.select(ROWS.names).sort_by("path")
    for number, column in enumerate(ROWS):
        if pa.types.is_dictionary(column.type):
            rows = rows.set_column(number, column, rows[column.name].dictionary_encode())
    return rows


def _overlay(old: pa.Table, new: pa.Table) -> pa.Table:
    """``old`` with the rows of ``new`` in place of its own; itself when that changes nothing."""
    if not new.num_rows:
        return old
    where = positions(new["path"], old["path"])
    if (where >= 0).all():
        same = old.take(pa.array(where))
        if all(_plain(same[name]).equals(_plain(new[name])) for name in ROWS.names):
            return old
    return put_rows(old, new)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _without_faces(rows: pa.Table) -> pa.Table:
    """The rows of photographs that are not there to be aligned with the new settings."""
    for number, column in enumerate(ROWS):
        if column.name not in ("path", "identity", "status", "reason", "content", "size_bytes"):
            rows = rows.set_column(number, column, pa.nulls(rows.num_rows, column.type))
    return rows


def _constant(value: str, length: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(length, np.int32)), [value])


def _why_missing(path: str, listing: Listing) -> str:
    folder = path if listing.problems else ""
    while folder := folder.rpartition("/")[0]:
        if folder in listing.problems:
            return f"its folder could not be entered: {listing.problems[folder]}"
    return "no longer in RAW"
