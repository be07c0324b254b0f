"""ft status: every stage as fresh, stale (and why) or missing."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facetrain.errors import MissingStage, UserError
from facetrain.file_table import STATE, FileTable, walk
from facetrain.index import STATUSES, Index, read_index
from facetrain.preprocess.journal import JOURNAL
from facetrain.tables import find_sorted, positions, table_fingerprint, take
from facetrain.workspace import DIVERGED, Dataset, StageRecord, Workspace

WALK_UP_TO = 200_000  # photographs; beyond, RAW is compared with the index only on request
WORTH_DROPPING = 0.1  # of the cache: `ft cache --gc` is hinted at beyond


@dataclass(frozen=True)
class Line:
    """A stage (or run): its state, one of fresh, unchecked, stale, missing; and what there is to say."""

    stage: str
    state: str
    detail: str


@dataclass(frozen=True)
class Status:
    """The state of one dataset, and of the workspace's runs."""

    dataset: Dataset
    lines: list[Line]
    runs: list[Line]

    def to_dict(self) -> dict[str, Any]:
        return {
            "raw": str(self.dataset.raw),
            "aligned": str(self.dataset.aligned),
            "stages": [vars(line) for line in self.lines],
            "runs": [vars(line) for line in self.runs],
        }


def status(workspace: Workspace, aligned: Path | None, *, scan: bool) -> Status:
    """Compare records and files with what is there now; ``scan`` walks RAW however large it is."""
    dataset = workspace.dataset(aligned)
    index = read_index(dataset.folder)
    lines = [_rows(dataset, index, scan)]
    if index.has_marks or dataset.record("clean") is not None:
        lines.append(_or_damaged("clean", _clean, dataset, index))
    for stage, line in (("prune", _prune), ("split", _split), ("cache", _cache)):
        lines.append(_or_damaged(stage, line, dataset, index))
    return Status(dataset, lines, [_run_or_damaged(run) for run in workspace.runs()])


def _or_damaged(stage: str, line: Callable[[Dataset, Index], Line], dataset: Dataset, index: Index) -> Line:
    try:
        return line(dataset, index)
    except UserError as error:  # one damaged file must not hide the state of the others
        return Line(stage, "stale", str(error))


def _rows(dataset: Dataset, index: Index, scan: bool) -> Line:
    stage = dataset.first_stage
    state, detail = _state_of_rows(dataset, index, stage, scan)
    return Line(stage, state, detail)


def _state_of_rows(dataset: Dataset, index: Index, stage: str, scan: bool) -> tuple[str, str]:
    counts = index.status_counts()
    said = ", ".join(f"{count:,} {STATUSES[status]}" for status, count in counts.items())
    record = dataset.record(stage)
    again = f"run `ft {stage}` again"
    if record is None or record.output != index.fingerprint:
        return "stale", f"interrupted: {again}; {said}"
    if (dataset.folder / JOURNAL).is_file():
        return "stale", f"an {stage} was interrupted: run it again; {said}"
    for folder in dict.fromkeys((dataset.aligned, dataset.raw)):
        if not folder.is_dir():
            what = f": {again}" if folder == dataset.aligned != dataset.raw else ""
            return "stale", f"{folder} is gone{what}; {said}"
    if not scan and index.rows.num_rows > WALK_UP_TO:
        return "unchecked", f"{said} (as of {record.finished}; --scan looks for changed photographs)"
    changes = _raw_changes(dataset, index)
    return ("stale", f"{changes} since: {again}; {said}") if changes else ("fresh", said)


def _raw_changes(dataset: Dataset, index: Index) -> str:
    listing = walk(dataset.raw)
    paths, rows = listing.files["path"], index.rows["path"]
    new = int((positions(paths, rows) < 0).sum())
    gone = (positions(rows, paths) < 0) & pc.not_equal(index.rows["status"], "missing").to_numpy()
    problems = find_sorted(rows, list(listing.problems))
    gone[problems[problems >= 0]] = False
    known = FileTable(dataset.folder / "raw.files.arrow").table
    where = positions(paths, known["path"])
    moved = np.zeros(len(paths), bool)
    for name in STATE:
        moved |= pc.not_equal(take(known[name], where), listing.files[name]).fill_null(False).to_numpy()
    touched, gone = int(moved.sum()), int(gone.sum())
    parts = [(new, "new"), (touched, "touched"), (gone, "gone")]
    return ", ".join(f"{count:,} {what}" for count, what in parts if count > 0)


def _stale(record: StageRecord, index: Index) -> bool:
    return record.inputs["rows"] != index.fingerprint


def _interrupted(record: StageRecord | None, column: Path) -> bool:
    """True when a stage's column and its record do not belong together: it was killed between the two."""
    return table_fingerprint(column) != (record.output if record is not None else None)


def _clean(dataset: Dataset, index: Index) -> Line:
    marks, record = index.marks, dataset.record("clean")
    if marks is None or record is None or _interrupted(record, dataset.folder / "clean.arrow"):
        return Line("clean", "stale", "it was interrupted: apply the file again, or `ft clean --undo`")
    marked = index.count_marks(marks)
    counts = [
        (marked.left_out, "left out"),
        (marked.renamed, "given to another person"),
        (marked.changed, "marked, but changed since"),
    ]
    said = ", ".join(f"{count:,} {what}" for count, what in counts if count) or "nothing usable is marked"
    said = f"{said} (`ft clean --undo` takes it back)"
    back = _people_back(index, record.parameters.get("people", []))
    if back:
        who = "1 person who was left out has" if back == 1 else f"{back:,} people who were left out have"
        return Line("clean", "stale", f"{who} new photographs: apply it again; {said}")
    return Line("clean", "fresh", said)


def _people_back(index: Index, left_out: list[str]) -> int:
    """How many of these people, who were left out as a whole, have usable photographs without a mark."""
    unmarked = index.usable.copy()
    unmarked[index.marked[index.marked >= 0]] = False
    codes, names = index.people
    there = names.take(pa.array(np.unique(codes[unmarked & (codes >= 0)])))
    return len(set(left_out).intersection(there.to_pylist()))


def _prune(dataset: Dataset, index: Index) -> Line:
    record = dataset.record("prune")
    if _interrupted(record, dataset.folder / "kept.arrow"):
        return Line("prune", "stale", "it was interrupted: run `ft prune` again")
    if record is None:
        return Line("prune", "missing", "nobody is left out (`ft prune --min N`)")
    minimum = record.parameters["min"]
    if _stale(record, index):
        return Line("prune", "stale", f"the photographs have changed: run `ft prune --min {minimum}` again")
    if index.is_cleaned_since(record.inputs):
        return Line("prune", "stale", f"`ft clean` has changed since: run `ft prune --min {minimum}` again")
    people, photographs = index.count_people(index.kept)
    everyone = index.count_people(index.candidates)[0]
    return Line(
        "prune",
        "fresh",
        f"--min {minimum} keeps {photographs:,} photographs of {people:,} of {everyone:,} people",
    )


def _split(dataset: Dataset, index: Index) -> Line:
    record = dataset.record("split")
    if _interrupted(record, dataset.folder / "split.arrow"):
        return Line("split", "stale", "it was interrupted: run `ft split` again")
    if record is None:
        return Line("split", "missing", "`ft split 0.1` sets people apart for validation")
    p = record.parameters
    command = f"ft split {p['ratio']:g}" + ("" if p["by"] == "identity" else f" --by {p['by']}")
    if _stale(record, index):
        return Line("split", "stale", f"the photographs have changed: run `{command}` again")
    if index.is_cleaned_since(record.inputs):
        return Line("split", "stale", f"`ft clean` has changed since: run `{command}` again")
    if record.inputs["kept"] != index.kept_fingerprint:
        return Line("split", "stale", f"`ft prune` has changed since: run `{command}` again")
    parts = []
    for part in ("train", "val"):
        people, photographs = index.count_people(index.part(part))
        parts.append(f"{part} {photographs:,} photographs of {people:,} people")
    return Line("split", "fresh", ", ".join(parts))


def _cache(dataset: Dataset, index: Index) -> Line:
    line = _state_of_cache(dataset, index)
    superseded = _superseded_bytes(dataset.workspace.folder)
    if not superseded:
        return line
    hint = f"nothing refers to another {superseded / 1e6:,.0f} MB of shards: `ft cache --gc` drops them"
    return Line("cache", line.state, f"{line.detail}; {hint}")


def _superseded_bytes(folder: Path) -> int:
    """Bytes of the shards that nothing refers to, when they are more than a tenth of all; else 0."""
    from facetrain.datasets.cache.collect import shards_in, unreferenced_shards

    try:
        superseded = sum(unreferenced_shards(folder, verify=False).values())
    except (UserError, OSError):
        return 0  # another dataset's list is damaged; `ft cache --gc` will say so
    return superseded if superseded > WORTH_DROPPING * sum(shards_in(folder / "cache").values()) else 0


def _state_of_cache(dataset: Dataset, index: Index) -> Line:
    from facetrain.datasets.cache.manifest import read_manifest

    record, manifest = dataset.record("cache"), read_manifest(dataset.folder)
    if record is None or manifest is None:
        return Line("cache", "missing", "`ft cache` decodes the crops (`ft train` does it when needed)")
    size = f"{manifest.table.num_rows:,} crops in {len(manifest.shards)} shard{'s' * (len(manifest.shards) != 1)}, {record.counts['bytes'] / 1e6:,.0f} MB"
    if _stale(record, index):
        return Line(
            "cache", "stale", f"the photographs have changed: `ft cache` brings it up to date; {size}"
        )
    if index.is_cleaned_since(record.inputs):
        return Line("cache", "stale", f"`ft clean` has changed who is who: `ft cache` follows; {size}")
    try:
        lacking = _lacking(record, index)
    except MissingStage as error:
        return Line("cache", "stale", str(error))
    shard_folder = dataset.workspace.folder / "cache"
    lost = sum(not (shard_folder / name).is_file() for name in manifest.shards)
    if lost:
        return Line("cache", "stale", f"{lost} shards are gone: `ft cache` makes them again; {size}")
    if lacking and lacking == record.counts["absent"]:
        again = "makes them again" if dataset.first_stage == "align" else "takes note of it"
        gone = f"kept crops that are gone: {lacking:,} (`ft {dataset.first_stage}` {again})"
        return Line("cache", "stale", f"{gone}; {size}")
    if lacking:
        return Line("cache", "stale", f"{lacking:,} kept crops are not in it: `ft cache` adds them; {size}")
    return Line("cache", "fresh", size)


def _lacking(record: StageRecord, index: Index) -> int:
    """How many kept photographs are not in the cache."""
    if record.inputs["kept"] == index.kept_fingerprint:
        return record.counts["absent"]  # made from just these
    return int(np.count_nonzero(index.kept & ~index.cached))


def _run_or_damaged(folder: Path) -> Line:
    try:
        return _run(folder)
    except (ValueError, KeyError, TypeError) as error:
        return Line(folder.name, "stale", f"its config.json or metrics.csv is damaged ({error})")


def _run(folder: Path) -> Line:
    facts = json.loads((folder / "config.json").read_text())
    epochs = facts["config"]["epochs"]
    done, best = 0, ""
    if (folder / "metrics.csv").is_file():
        with open(folder / "metrics.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["kind"] != "step"]
        done = sum(row["kind"] == "epoch" for row in rows)
        scored = [float(row["val_accuracy"]) for row in rows if row.get("val_accuracy")]
        best = f", best validation accuracy {max(scored):.4f}" if scored else ""
    trained = f"{done} of {epochs} epochs on {facts['photographs']:,} photographs of {facts['people']:,} people{best}"
    if (folder / DIVERGED).is_file():
        why = (folder / DIVERGED).read_text().strip()
        return Line(folder.name, "diverged", f"{trained}; {why}: start again with a lower --lr")
    if done < epochs:
        return Line(folder.name, "unfinished", f"{trained} (`ft train --resume {folder.name}`)")
    return Line(folder.name, "finished", trained)
