"""ft align, prune, split, cache and export-tree: from photographs to shards, each stage with its record."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.compute as pc

from facetrain.datasets.cache import CacheReport, build_cache
from facetrain.errors import MissingStage, UserError
from facetrain.index import Index, count_people, file_fingerprint, read_index
from facetrain.preprocess.align_tree import SPEC_FILE, AlignReport, align_tree, check_folders
from facetrain.preprocess.aligner import AlignSettings
from facetrain.preprocess.export_tree import export_tree as write_tree
from facetrain.preprocess.prune import prune as enough_photographs
from facetrain.preprocess.split import split as assign
from facetrain.progress import Progress
from facetrain.workspace import Dataset, StageRecord, Workspace


def align(
    workspace: Workspace, raw: Path, aligned: Path, settings: AlignSettings, *, jobs: int, redo: bool
) -> AlignReport:
    """Align a tree and make it the workspace's current dataset; a mistake in the request writes nothing."""
    check_folders(raw, aligned)
    _check_target(workspace, raw, aligned)
    workspace.create()
    with workspace.lock():
        dataset = _dataset_for(workspace, raw, aligned)
        with Progress("aligning", "photographs") as bar:
            report = align_tree(
                raw,
                aligned,
                dataset.folder,
                settings,
                jobs=jobs,
                redo=redo,
                on_start=bar.begin,
                on_progress=bar.advance,
            )
        record = StageRecord(
            "align", settings.to_dict(), {}, report.fingerprint, report.counts, round(report.seconds, 2)
        )
        if report.looked_at or (old := dataset.record("align")) is None or old.output != report.fingerprint:
            dataset.write_record(record)
        workspace.make_current(dataset)
        return report


def _check_target(workspace: Workspace, raw: Path, aligned: Path) -> None:
    """Crops may only go where crops are, or nothing is: two folders named the wrong way round must harm nothing."""
    if (raw / SPEC_FILE).is_file():
        raise UserError(f"{raw} holds crops that `ft align` made: name the folder of the photographs first")
    if aligned.resolve().is_relative_to(workspace.folder):
        raise UserError(f"{aligned} lies in the workspace's own folder: name another folder for the crops")
    try:
        workspace.dataset(aligned)
    except UserError:
        if aligned.is_dir() and any(aligned.iterdir()) and not (aligned / SPEC_FILE).is_file():
            raise UserError(
                f"{aligned} holds files that `ft align` did not make: name a new or empty folder for the crops"
            ) from None


def _dataset_for(workspace: Workspace, raw: Path, aligned: Path) -> Dataset:
    """The dataset of these trees; refuses to mix the crops of two trees of photographs."""
    try:
        known = workspace.dataset(aligned).raw
    except UserError:
        known = None
    if known is not None and known.is_dir() and not known.samefile(raw):
        raise UserError(f"{aligned} holds the crops of {known}: name another folder for those of {raw}")
    return workspace.add_dataset(raw, aligned)


@dataclass(frozen=True)
class People:
    """Numbers of people and of their photographs."""

    people: int
    photographs: int

    @classmethod
    def count(cls, index: Index, mask: object) -> People:
        return cls(*count_people(index.rows, mask))


def prune(
    workspace: Workspace, aligned: Path | None, min_photographs: int, *, dry_run: bool
) -> tuple[People, People]:
    """Leave out people with fewer photographs; (before, after)."""
    started = time.monotonic()
    with workspace.lock():
        dataset = workspace.dataset(aligned)
        index = read_index(dataset.folder)
        enough = enough_photographs(index.rows["identity"], index.usable, min_photographs)
        before = People.count(index, index.usable)
        after = People.count(index, pc.and_(index.usable, enough))
        if after.photographs == 0:
            raise UserError(f"--min {min_photographs} leaves nobody: choose a smaller number")
        if not dry_run:
            fingerprint = index.write_column("kept", enough)
            dataset.write_record(
                StageRecord(
                    "prune",
                    {"min": min_photographs},
                    {"rows": index.fingerprint},
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
        column = assign(index.rows["identity"], index.rows["content"], index.kept, ratio, by=by, seed=seed)
        train, val = (
            People.count(index, pc.and_(index.kept, pc.equal(column, part))) for part in ("train", "val")
        )
        if not dry_run:
            fingerprint = index.write_column("split", column)
            inputs = {
                "rows": index.fingerprint,
                "kept": file_fingerprint(dataset.folder / "kept.arrow") or "",
            }
            counts = {"train": train.photographs, "val": val.photographs}
            seconds = round(time.monotonic() - started, 3)
            parameters = {"ratio": ratio, "by": by, "seed": seed}
            dataset.write_record(StageRecord("split", parameters, inputs, fingerprint, counts, seconds))
        return train, val


def undo(workspace: Workspace, aligned: Path | None, stage: str) -> bool:
    """Take a stage's column away; False when there was none."""
    with workspace.lock():
        dataset = workspace.dataset(aligned)
        path = dataset.folder / {"prune": "kept.arrow", "split": "split.arrow"}[stage]
        there = path.is_file()
        dataset.forget(stage)
        path.unlink(missing_ok=True)
        return there


def cache(workspace: Workspace, aligned: Path | None, *, threads: int, verify: bool = False) -> CacheReport:
    """Bring the decoded cache up to date; ``verify`` hashes every crop and every shard on the way."""
    with workspace.lock():
        dataset = workspace.dataset(aligned)
        if (dataset.folder / "journal.jsonl").is_file():
            raise MissingStage(
                f"an align of {dataset.aligned} was interrupted: run `ft align` again to finish it"
            )
        index = read_index(dataset.folder)
        inputs = {"rows": index.fingerprint, "kept": file_fingerprint(dataset.folder / "kept.arrow") or ""}
        with Progress("decoding", "crops") as bar:
            report = build_cache(
                index,
                dataset.aligned,
                workspace.folder / "cache",
                threads=threads,
                verify=verify,
                on_start=bar.begin,
                on_progress=lambda crops, size: bar.advance(crops, f"{size / 1e6:,.0f} MB"),
            )
        counts = {"images": report.images, "undecodable": report.undecodable, "bytes": report.bytes}
        record = StageRecord("cache", {}, inputs, report.fingerprint, counts, round(report.seconds, 2))
        old = dataset.record("cache")
        if old is None or (old.inputs, old.output) != (inputs, report.fingerprint):
            dataset.write_record(record)
        return report


def export_tree(workspace: Workspace, aligned: Path | None, out: Path) -> dict[str, int]:
    """Lay out train/ and val/ as links; {part: number of links}."""
    dataset = workspace.dataset(aligned)
    index = read_index(dataset.folder)
    if index.split is None:
        raise MissingStage("the photographs are not split yet: run `ft split 0.1` first")
    rows = index.rows.select(["aligned"]).append_column("split", index.split).filter(index.kept)
    with Progress("linking", "crops") as bar:
        bar.begin(rows.num_rows)
        return write_tree(dataset.aligned, rows["aligned"], rows["split"], out, bar.advance)


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
        align_tree(
            raw,
            folder / "crops",
            folder,
            settings,
            jobs=jobs,
            only=only,
            on_start=bar.begin,
            on_progress=bar.advance,
        )
    return read_index(folder)
