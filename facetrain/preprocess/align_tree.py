"""Aligning a tree: find what is new or changed, hand it to workers, keep a journal, write the index.

Killed at any moment and run again, it ends in the same bytes as if never killed: crops appear whole, a row is in the
journal once its crop is there, and the index is written from the rows sorted by path.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from facetrain.errors import SpecMismatch, UserError
from facetrain.file_table import FileTable, Known, Listing, Stat, file_system_now_ns, find_photographs, walk
from facetrain.files import write_csv, write_if_changed
from facetrain.image_spec import FORMATS, ImageSpec
from facetrain.index import ALIGNED, ROWS, STATUSES, read_table, write_table
from facetrain.preprocess.aligner import AlignSettings, Outcome, Task, align_block, crop_path, identity_of
from facetrain.workers import process_pool, unordered

BLOCK = 32  # photographs per task: enough to make the models' cache misses rare, few enough to spread evenly
MAX_WORKERS = max(8, 4 * (os.cpu_count() or 1))  # more only wait for each other
SPEC_FILE = "imagespec.json"  # in the aligned tree, so that it says itself what it holds
Pool = Callable[[int], AbstractContextManager[Executor]]
_ROW_FIELDS = [field.name for field in fields(Outcome) if field.name in ROWS.names]


@dataclass(frozen=True)
class AlignReport:
    """What an align did. Counts are of photographs."""

    counts: dict[str, int]  # by status, in all
    looked_at: int  # new or changed ones that went through the detector
    unchanged: int
    disappeared: int  # marked missing by this run
    ignored: dict[str, int]  # files that are no photographs, by suffix
    rejected_list: Path
    fingerprint: str
    seconds: float


def align_tree(
    raw: Path,
    aligned: Path,
    store: Path,
    settings: AlignSettings,
    *,
    jobs: int,
    pool: Pool | None = None,
    redo: bool = False,
    only: Collection[str] | None = None,
    on_start: Callable[[int], None] = lambda total: None,
    on_progress: Callable[[int], None] = lambda count: None,
) -> AlignReport:
    """Bring ``aligned`` and the index in ``store`` up to date with ``raw``.

    ``pool`` makes the executor for so many workers (default: processes of this machine). ``only`` restricts the work
    to these paths. ``redo`` allows settings other than those of the crops that are there,
    and makes them all again. Raises UserError for folders that cannot serve, SpecMismatch when the settings differ and
    ``redo`` is not given.
    """
    started = time.monotonic()
    listing = _list(raw, aligned, only)
    journal = Journal(store / "journal.jsonl", settings, redo)
    rows = _previous_rows(store)
    if redo:
        rows = {path: _without_face(row) for path, row in rows.items() if path not in listing.photographs}
    elif rows:
        _require_same_settings(_previous_settings(store), settings, str(aligned))
    raw_files, crop_files = FileTable(store / "raw.files.arrow"), FileTable(store / "crops.files.arrow")
    for outcome, hashed_ns in journal.replay():
        rows[outcome.path] = outcome
        if outcome.stat is not None and outcome.content is not None:
            raw_files.known[outcome.path] = Known(outcome.stat, hashed_ns, outcome.content)
    crops = _intact_crops(aligned, crop_files)

    tasks = []
    for path, stat in listing.photographs.items():
        row = rows.get(path)
        intact = row is not None and row.status != "missing" and crops.get(row.aligned) == row.aligned_content
        known = row.content if row is not None and intact else None
        if known is not None and raw_files.unchanged(path, stat) == known:
            continue
        if identity_of(path) is None:
            rows[path] = Outcome(
                path, "no-identity", "not in a person's folder under RAW", size_bytes=stat.size_bytes
            )
            continue
        tasks.append(Task(path, known))
    looked_at = 0
    on_start(len(tasks))
    if redo:
        (aligned / SPEC_FILE).unlink(missing_ok=True)  # until all crops are of one kind again
    with journal.open(file_system_now_ns(store)) as append:
        for block in _in_workers(raw, aligned, settings, tasks, jobs, pool or process_pool):
            for outcome in block:
                if outcome.unchanged:
                    known_row = rows[outcome.path]
                    known_row.stat = outcome.stat
                    outcome = known_row
                else:
                    looked_at += 1
                    if outcome.size_bytes is None:  # it could not be opened
                        outcome.size_bytes = listing.photographs[outcome.path].size_bytes
                rows[outcome.path] = outcome
                if outcome.stat is not None and outcome.content is not None:
                    raw_files.known[outcome.path] = Known(outcome.stat, journal.now_ns, outcome.content)
            append(block_rows := [rows[outcome.path] for outcome in block])
            on_progress(len(block_rows))

    for path, problem in listing.problems.items():
        before = rows.get(path)
        rows[path] = Outcome(path, "unreadable", problem, size_bytes=before.size_bytes if before else None)
        if before is not None and before.aligned is not None:
            (aligned / before.aligned).unlink(missing_ok=True)
    disappeared = _mark_missing(rows, listing, only)
    if redo:
        _remove_other_crops(aligned, rows)
    _write_spec(aligned, settings.spec)
    fingerprint = _write_rows(store, rows, settings)
    raw_files.known = {path: raw_files.known[path] for path in rows if path in raw_files.known}
    raw_files.save()
    crop_files.save()
    journal.remove()
    return AlignReport(
        counts=_counts(rows.values()),
        looked_at=looked_at,
        unchanged=len(listing.photographs) - looked_at,
        disappeared=disappeared,
        ignored=dict(listing.others),
        rejected_list=_write_rejected(store, rows),
        fingerprint=fingerprint,
        seconds=time.monotonic() - started,
    )


def check_folders(raw: Path, aligned: Path) -> None:
    """Raise UserError unless ``raw`` holds folders with photographs and ``aligned`` can be another folder; quick."""
    if not raw.exists():
        raise UserError(f"no folder {raw}: name the folder that holds one folder of photographs per person")
    if not raw.is_dir():
        raise UserError(f"{raw} is a file: name the folder that holds one folder of photographs per person")
    if aligned.exists() and not aligned.is_dir():
        raise UserError(f"{aligned} is a file: name a folder for the crops")
    inside = os.path.realpath(aligned), os.path.realpath(raw)
    if os.path.commonpath(inside) in inside and not _is_hidden(*inside):
        raise UserError(
            f"{aligned} and {raw} must not be the same or lie in each other: name another folder for the crops"
        )
    if not os.access(raw, os.R_OK | os.X_OK):
        raise UserError(f"the folder {raw} cannot be read: its permissions forbid it")
    loose = False
    for path in find_photographs(raw):
        if identity_of(path) is not None:
            return
        loose = True
    if loose:
        raise UserError(
            f"the photographs lie right in {raw}: put those of each person into a folder of their own"
        )
    raise UserError(
        f"no photographs in {raw}: it must hold a folder per person with .jpg, .png, .webp, .bmp or .tiff files"
    )


def _is_hidden(folder: str, root: str) -> bool:
    """True when a walk through ``root`` passes ``folder`` over, for a name that begins with a dot."""
    below = os.path.relpath(folder, root).split(os.sep)
    return below[0] != os.pardir and below != [os.curdir] and any(name.startswith(".") for name in below)


def _list(raw: Path, aligned: Path, only: Collection[str] | None) -> Listing:
    check_folders(raw, aligned)
    listing = walk(raw)
    if only is not None:
        listing.photographs = {path: stat for path, stat in listing.photographs.items() if path in only}
        listing.problems = {}
    try:
        aligned.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {aligned} ({error.strerror}): name another one") from None
    return listing


def _in_workers(
    raw: Path, aligned: Path, settings: AlignSettings, tasks: list[Task], jobs: int, pool: Pool
) -> Iterator[list[Outcome]]:
    if not tasks:
        return
    block = min(BLOCK, max(1, len(tasks) // (4 * jobs)))
    blocks = [tasks[i : i + block] for i in range(0, len(tasks), block)]
    with pool(min(jobs, len(blocks), MAX_WORKERS)) as executor:
        try:
            yield from unordered(
                executor, partial(align_block, raw, aligned, settings), blocks, ahead=3 * jobs
            )
        except BaseException:
            executor.shutdown(wait=True, cancel_futures=True)
            raise


# -- what was there before -------------------------------------------------------------------------------------------


def _previous_rows(store: Path) -> dict[str, Outcome]:
    path = store / "rows.arrow"
    if not path.is_file():
        return {}
    table = read_table(path)
    columns = [table[name].to_pylist() for name in _ROW_FIELDS]
    rows = (Outcome(**dict(zip(_ROW_FIELDS, values, strict=True))) for values in zip(*columns, strict=True))
    return {row.path: row for row in rows}


def _previous_settings(store: Path) -> dict[str, Any]:
    return json.loads(read_table(store / "rows.arrow").schema.metadata[b"settings"])


def _without_face(row: Outcome) -> Outcome:
    """The row of a photograph that is not there to be aligned with the new settings."""
    return Outcome(row.path, row.status, row.reason, row.content, row.size_bytes)


def _require_same_settings(there: dict[str, Any], settings: AlignSettings, where: str) -> None:
    wanted = settings.to_dict()
    if there == wanted:
        return
    flat_there, flat_wanted = {**there.pop("spec"), **there}, {**wanted.pop("spec"), **wanted}
    differing = [
        f"{key} {flat_there.get(key)}, asked for is {value}"
        for key, value in flat_wanted.items()
        if flat_there.get(key) != value
    ]
    raise SpecMismatch(
        f"{where} was aligned with {'; with '.join(differing)}: name another folder, "
        f"or add --redo to align every photograph again"
    )


def _intact_crops(aligned: Path, crop_files: FileTable) -> dict[str | None, bytes | None]:
    """Content by path of the crops that are there; None → None stands for rows that have no crop."""
    listing = walk(aligned)
    for leftover in listing.temporary:
        (aligned / leftover).unlink(missing_ok=True)
    crop_files.refresh(aligned, listing.photographs)
    return {None: None, **{path: known.content for path, known in crop_files.known.items()}}


def _mark_missing(rows: dict[str, Outcome], listing: Listing, only: Collection[str] | None) -> int:
    """Mark the rows of photographs that are gone; return how many were there before."""
    fresh = 0
    for path, row in list(rows.items()):
        if path in listing.photographs or path in listing.problems or (only is not None and path not in only):
            continue
        if (
            row.size_bytes is None
        ):  # no photograph, but a folder or link that could not be followed, and now is gone
            del rows[path]
            continue
        fresh += row.status != "missing"
        row.status, row.reason = "missing", "no longer in RAW"
        folder = next((above for above in _folders_above(path) if above in listing.problems), None)
        if folder is not None:
            row.reason = f"its folder could not be entered: {listing.problems[folder]}"
    return fresh


def _remove_other_crops(aligned: Path, rows: dict[str, Outcome]) -> None:
    """Remove the crops that these photographs may have with other settings."""
    current = {row.aligned for row in rows.values()}
    for crop in {crop_path(path, image_format) for path in rows for image_format in FORMATS} - current:
        (aligned / crop).unlink(missing_ok=True)


def _folders_above(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


# -- what is written -------------------------------------------------------------------------------------------------


def _write_rows(store: Path, rows: dict[str, Outcome], settings: AlignSettings) -> str:
    metadata = {
        "image_spec": settings.spec.to_json(),
        "settings": json.dumps(settings.to_dict(), sort_keys=True),
    }
    ordered = [rows[path] for path in sorted(rows)]
    arrays = [pa.array([getattr(row, f.name) for row in ordered], f.type) for f in ROWS]
    return write_table(store / "rows.arrow", pa.table(arrays, schema=ROWS.with_metadata(metadata)))


def _write_spec(aligned: Path, spec: ImageSpec) -> None:
    write_if_changed(aligned / SPEC_FILE, (spec.to_json() + "\n").encode())


def _write_rejected(store: Path, rows: dict[str, Outcome]) -> Path:
    """The list of the photographs that have no crop, and why."""
    rejected = [
        (row.path, row.status, row.reason) for _, row in sorted(rows.items()) if row.status != ALIGNED
    ]
    write_csv(store / "rejected.csv", ("path", "status", "reason"), rejected)
    return store / "rejected.csv"


def _counts(rows: Iterable[Outcome]) -> dict[str, int]:
    counts = dict.fromkeys(STATUSES, 0)
    for row in rows:
        counts[row.status] += 1
    return counts


# -- the journal -----------------------------------------------------------------------------------------------------


class Journal:
    """Rows of an align that has not ended, one JSON line each; a torn last line is what a kill leaves, and no harm."""

    def __init__(self, path: Path, settings: AlignSettings, redo: bool) -> None:
        self.path, self.settings, self.redo = path, settings, redo
        self.now_ns = 0

    def replay(self) -> Iterator[tuple[Outcome, int]]:
        """The rows of earlier, unfinished runs, with the time just before they were read from.

        A redo goes on with the rows of an earlier redo with the same settings, and with no others.
        """
        ours = False
        for entry in self._entries():
            if "settings" in entry:
                if self.redo:
                    ours = entry["redo"] and entry["settings"] == self.settings.to_dict()
                else:
                    _require_same_settings(entry["settings"], self.settings, "the interrupted run")
                    ours = True
                self.now_ns = entry["now_ns"]
            elif ours:
                yield _from_json(entry), self.now_ns

    def _entries(self) -> Iterator[dict[str, Any]]:
        if not self.path.is_file():
            return
        with open(self.path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if not line.endswith("\n"):
                    return
                try:
                    entry = json.loads(line)
                except ValueError:  # a disk's doing, not ours: what follows is simply done again
                    return
                yield entry

    def open(self, now_ns: int) -> _Appender:
        """Begin a new part; ``now_ns`` is the file system's time before the first photograph is read."""
        self.now_ns = now_ns
        return _Appender(self)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


class _Appender:
    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def __enter__(self) -> Callable[[Iterable[Outcome]], None]:
        self._drop_torn_line()
        self.handle = open(self.journal.path, "a", encoding="utf-8")
        header = {
            "settings": self.journal.settings.to_dict(),
            "redo": self.journal.redo,
            "now_ns": self.journal.now_ns,
        }
        self.handle.write(json.dumps(header) + "\n")
        return self._append

    def _append(self, rows: Iterable[Outcome]) -> None:
        self.handle.write("".join(json.dumps(_to_json(row)) + "\n" for row in rows))
        self.handle.flush()

    def _drop_torn_line(self) -> None:
        if self.journal.path.is_file():
            with open(self.journal.path, "rb+") as handle:
                handle.truncate(handle.read().rfind(b"\n") + 1)

    def __exit__(self, *exc: object) -> None:
        self.handle.close()


def _to_json(row: Outcome) -> dict[str, Any]:
    entry = {
        name: getattr(row, name)
        for name in _ROW_FIELDS
        if getattr(row, name) is not None and name != "identity"
    }
    for name in ("content", "aligned_content"):
        if name in entry:
            entry[name] = entry[name].hex()
    if row.stat is not None:
        entry["stat"] = [row.stat.size_bytes, row.stat.mtime_ns, row.stat.ctime_ns, row.stat.inode]
    return entry


def _from_json(entry: dict[str, Any]) -> Outcome:
    for name in ("content", "aligned_content"):
        if name in entry:
            entry[name] = bytes.fromhex(entry[name])
    if "stat" in entry:
        entry["stat"] = Stat(*entry["stat"])
    if "box" in entry:
        entry["box"] = tuple(entry["box"])
    return Outcome(**entry)
