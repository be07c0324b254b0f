"""ft align, index, prune, split and export-tree: from photographs to an index, each stage with its record."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from facetrain.cluster import THREADS_TO_COME, count_threads, dask_pool
from facetrain.errors import UserError
from facetrain.image_spec import SPEC_FILE
from facetrain.index import Index, read_index
from facetrain.preprocess.align_tree import AlignReport, align_tree, check_folders
from facetrain.preprocess.aligner import AlignSettings
from facetrain.preprocess.export_tree import export_tree as write_tree
from facetrain.preprocess.index_tree import Declared, index_tree, spec_of
from facetrain.preprocess.prune import prune as enough_photographs
from facetrain.preprocess.row_update import Pool, Work
from facetrain.preprocess.split import split as assign
from facetrain.progress import Progress
from facetrain.workspace import Dataset, StageRecord, Workspace


def align(
    workspace: Workspace,
    raw: Path,
    aligned: Path,
    settings: AlignSettings,
    *,
    jobs: int,
    redo: bool,
    verify: bool = False,
    scheduler: str | None = None,
) -> AlignReport:
    """Align a tree and make it the workspace's current dataset; a mistake in the request writes nothing.

    ``scheduler``: the workers of this Dask cluster do it, instead of ``jobs`` processes.
    """
    check_folders(raw, aligned)
    _check_target(workspace, raw, aligned)
    pool = None
    if scheduler is not None:
        raw, aligned = raw.absolute(), aligned.absolute()  # as the workers must know them
        pool = partial(dask_pool, scheduler, raw, aligned)
        jobs = count_threads(scheduler) or THREADS_TO_COME
    workspace.create()
    with workspace.lock():
        dataset = _dataset_for(workspace, raw, aligned)
        with Progress("aligning", "photographs") as bar:
            work = _work(jobs, pool, bar)
            report = align_tree(raw, aligned, dataset.folder, settings, work, redo=redo, verify=verify)
        _record_rows(dataset, settings.to_dict(), report)
        workspace.make_current(dataset)
        return report


def index(
    workspace: Workspace,
    root: Path,
    declared: Declared,
    *,
    jobs: int,
    redo: bool = False,
    verify: bool = False,
    keep_current: bool = False,
) -> AlignReport:
    """Index crops that were made elsewhere; they become the workspace's current dataset unless ``keep_current``."""
    spec = spec_of(root, declared)
    workspace.create()
    with workspace.lock():
        dataset = workspace.known_dataset(root)
        if dataset is not None and dataset.first_stage == "align":
            raise UserError(
                f"{root} was aligned in this workspace: it is indexed, `ft align` keeps it up to date"
            )
        dataset = workspace.add_dataset(root, root)
        with Progress("indexing", "crops") as bar:
            work = _work(jobs, None, bar)
            report = index_tree(root, dataset.folder, spec, work, redo=redo, verify=verify)
        _record_rows(dataset, {"spec": asdict(spec)}, report)
        if not keep_current:
            workspace.make_current(dataset)
        return report


def _work(jobs: int, pool: Pool | None, bar: Progress) -> Work:
    """Work that shows on the bar, and before it the reading of crops that may have changed."""
    description, unit = bar.description, bar.unit
    return Work(
        jobs,
        pool,
        on_start=lambda total: bar.begin(total, description=description, unit=unit),
        on_progress=bar.advance,
        on_check_start=lambda total: bar.begin(total, description="checking", unit="crops"),
        on_check=bar.advance,
    )


def _record_rows(dataset: Dataset, parameters: dict[str, Any], report: AlignReport) -> None:
    rows, stage = report.rows, dataset.first_stage
    old = dataset.record(stage)
    if rows.looked_at or old is None or old.output != rows.fingerprint:
        seconds = round(report.seconds, 2)
        dataset.write_record(StageRecord(stage, parameters, {}, rows.fingerprint, rows.counts, seconds))


def _check_target(workspace: Workspace, raw: Path, aligned: Path) -> None:
    """Crops may only go where crops are, or nothing is: two folders named the wrong way round must harm nothing."""
    if (raw / SPEC_FILE).is_file():
        raise UserError(f"{raw} holds crops that `ft align` made: name the folder of the photographs first")
    if aligned.resolve().is_relative_to(workspace.folder):
        raise UserError(f"{aligned} lies in the workspace's own folder: name another folder for the crops")
    known = workspace.known_dataset(aligned)
    if known is not None and known.first_stage == "index":
        raise UserError(
            f"{aligned} holds crops that were made elsewhere: name another folder for those of {raw}"
        )
    index = workspace.dataset_folder(aligned) / "rows.arrow"  # there where only dataset.json is damaged
    if known is None and not index.is_file() and aligned.is_dir() and any(aligned.iterdir()):
        raise UserError(
            f"{aligned} is not empty, and this workspace knows nothing of what is in it: name a new or empty folder "
            f"for the crops (`ft index` uses crops that are there)"
        )


def _dataset_for(workspace: Workspace, raw: Path, aligned: Path) -> Dataset:
    """The dataset of these trees; refuses to mix the crops of two trees of photographs."""
    known = workspace.known_dataset(aligned)
    if known is not None and known.raw.is_dir() and not known.raw.samefile(raw):
        raise UserError(f"{aligned} holds the crops of {known.raw}: name another folder for those of {raw}")
    return workspace.add_dataset(raw, aligned)


@dataclass(frozen=True)
class People:
    """Numbers of people and of their photographs."""

    people: int
    photographs: int

    @classmethod
    def count(cls, index: Index, mask: np.ndarray) -> People:
        return cls(*index.count_people(mask))


def prune(
    workspace: Workspace, aligned: Path | None, min_photographs: int, *, dry_run: bool
) -> tuple[People, People]:
    """Leave out people with fewer photographs; (before, after)."""
    started = time.monotonic()
    with workspace.lock():
        dataset = workspace.dataset(aligned)
        index = read_index(dataset.folder)
        enough = enough_photographs(index.people[0], index.candidates, min_photographs)
        before = People.count(index, index.candidates)
        after = People.count(index, index.candidates & enough)
        if after.photographs == 0:
            raise UserError(f"--min {min_photographs} leaves nobody: choose a smaller number")
        if not dry_run:
            fingerprint = index.write_column("kept", pa.array(enough))
            dataset.write_record(
                StageRecord(
                    "prune",
                    {"min": min_photographs},
                    index.inputs,
                    fingerprint,
                    asdict(after),
                    round(time.monotonic() - started, 3),
                )
            )
        return before, after


def split(
    workspace: Workspace, aligned: Path | None, ratio: float, *, by: str, seed: int, dry_run: bool
) -> tuple[People, People]:
    """Mark photographs for training and validation; (train, val)."""
    started = time.monotonic()
    with workspace.lock():
        dataset = workspace.dataset(aligned)
        index = read_index(dataset.folder)
        person, names = index.people
        val = assign(person, names, index.rows["content"], index.kept, ratio, by=by, seed=seed)
        train, validation = (People.count(index, index.kept & part) for part in (~val, val))
        if not dry_run:
            column = pa.DictionaryArray.from_arrays(pa.array(val.astype(np.int8)), ["train", "val"])
            fingerprint = index.write_column("split", column)
            inputs = {**index.inputs, "kept": index.kept_fingerprint}
            counts = {"train": train.photographs, "val": validation.photographs}
            seconds = round(time.monotonic() - started, 3)
            parameters = {"ratio": ratio, "by": by, "seed": seed}
            dataset.write_record(StageRecord("split", parameters, inputs, fingerprint, counts, seconds))
        return train, validation


def undo(workspace: Workspace, aligned: Path | None, stage: str) -> bool:
    """Take a stage's column away; False when there was none."""
    with workspace.lock():
        dataset = workspace.dataset(aligned)
        path = dataset.folder / {"prune": "kept.arrow", "split": "split.arrow"}[stage]
        there = path.is_file()
        dataset.forget(stage)
        path.unlink(missing_ok=True)
        return there


def export_tree(workspace: Workspace, aligned: Path | None, out: Path) -> dict[str, int]:
    """Lay out train/ and val/ as links; {part: number of links}."""
    dataset = workspace.dataset(aligned)
    index = read_index(dataset.folder)
    parts = {part: index.part(part) for part in ("train", "val")}
    crops = {part: index.rows["aligned"].filter(pa.array(mask)) for part, mask in parts.items()}
    people = None if index.marks is None else {part: index.identities(mask) for part, mask in parts.items()}
    with Progress("linking", "crops") as bar:
        bar.begin(sum(map(len, crops.values())))
        return write_tree(dataset.aligned, crops, out, bar.advance, people)


def align_some(
    workspace: Workspace, raw: Path, settings: AlignSettings, only: Collection[str], *, jobs: int
) -> Index:
    """Align these photographs of a tree for an evaluation, apart from all datasets; an index that holds them.

    Kept in the workspace, so that the next evaluation finds them.
    """
    from blake3 import blake3

    key = f"{raw.resolve()}\0{settings.to_dict()}"
    folder = workspace.folder / "evaluate" / f"{raw.resolve().name[:40]}-{blake3(key.encode()).hexdigest(4)}"
    folder.mkdir(parents=True, exist_ok=True)
    with workspace.lock(), Progress("aligning", "photographs") as bar:
        work = _work(jobs, None, bar)
        align_tree(raw, folder / "crops", folder, settings, work, only=only)
    return read_index(folder)
