"""ft cache: the decoded cache brought up to date, checked, and rid of what nothing refers to."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from facetrain.datasets.cache.build import CacheReport, build_cache
from facetrain.datasets.cache.collect import Garbage, collect
from facetrain.datasets.cache.gpus import decoding_device
from facetrain.datasets.cache.manifest import Manifest, read_manifest
from facetrain.errors import MissingStage, UserError
from facetrain.files import naming
from facetrain.index import Index, read_index
from facetrain.pipeline.checking import remove_damaged_lists, verify_dataset
from facetrain.preprocess.journal import JOURNAL
from facetrain.progress import Progress
from facetrain.tables import positions
from facetrain.workspace import Dataset, StageRecord, Workspace


def cache(
    workspace: Workspace, aligned: Path | None, *, threads: int, device: str = "auto", verify: bool = False
) -> CacheReport:
    """Bring the decoded cache up to date.

    ``verify`` reads every table, shard and crop on the way: what is damaged is made again where that is possible, and
    else a UserError. Where the workspace is read-only, a cache that is up to date is taken as it is.
    """
    device = decoding_device(device)
    shard_folder = workspace.folder / "cache"
    if not os.access(workspace.folder, os.W_OK):
        return _cache_as_it_is(workspace.dataset(aligned), shard_folder, verify)
    with naming(workspace.folder), workspace.lock():
        dataset = workspace.dataset(aligned)
        if (dataset.folder / JOURNAL).is_file():
            stage = dataset.first_stage
            raise MissingStage(
                f"an {stage} of {dataset.aligned} was interrupted: run `ft {stage}` again to finish it"
            )
        _check_is_folder(shard_folder)
        with naming(shard_folder), Progress("decoding", "crops") as bar:
            damaged = (
                remove_damaged_lists(dataset) if not verify else verify_dataset(dataset, shard_folder, bar)
            )
            if verify:
                (dataset.folder / "crops.files.arrow").unlink(missing_ok=True)  # all crops are read again
            index = read_index(dataset.folder)
            inputs = {**index.inputs, "kept": index.kept_fingerprint}
            report = build_cache(
                index,
                dataset.aligned,
                shard_folder,
                threads=threads,
                device=device,
                on_start=lambda total: bar.begin(total, description="decoding", unit="crops"),
                on_progress=lambda crops, size: bar.advance(crops, f"{size / 1e6:,.0f} MB"),
            )
        manifest = read_manifest(dataset.folder)
        assert manifest is not None
        cached = positions(index.rows["path"], manifest.table["path"]) >= 0
        index.write_column("cached", pa.array(cached))
        counts = {
            "images": report.images,
            "undecodable": report.undecodable,
            "absent": report.absent,
            "bytes": report.bytes,
        }
        record = StageRecord("cache", {}, inputs, report.fingerprint, counts, round(report.seconds, 2))
        old = dataset.record("cache")
        if old is None or (old.inputs, old.output, old.counts) != (inputs, report.fingerprint, counts):
            dataset.write_record(record)
        return replace(report, damaged=[*damaged, *report.damaged])


def _check_is_folder(path: Path) -> None:
    """Raise UserError when something else than a folder, or nothing, is where shards go."""
    if path.is_symlink() and not path.exists():
        raise UserError(
            f"{path} is a link to {path.readlink()}, which is not there: mount it, or remove the link"
        )
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, and should be the folder of the shards: remove it")


def _cache_as_it_is(dataset: Dataset, shard_folder: Path, verify: bool) -> CacheReport:
    """The cache of a workspace that cannot be written to; UserError when it is not up to date."""
    unwritable = f"{dataset.workspace.folder} cannot be written to"
    if verify:
        raise UserError(f"{unwritable}, so nothing could be made again: run `ft cache --verify` where it can")
    index, manifest, record = (
        read_index(dataset.folder),
        read_manifest(dataset.folder),
        dataset.record("cache"),
    )
    if manifest is None or record is None or not _is_up_to_date(index, manifest, record, shard_folder):
        raise UserError(f"{unwritable}, and its cache is not up to date: run `ft cache` where it can")
    return CacheReport(
        images=manifest.table.num_rows,
        decoded=0,
        copied=0,
        undecodable=record.counts["undecodable"],
        undecodable_list=dataset.folder / "undecodable.csv",
        absent=record.counts["absent"],
        changed=0,
        shards_written=0,
        shards_kept=len(manifest.shards),
        damaged=[],
        bytes=record.counts["bytes"],
        fingerprint=record.output,
        seconds=0.0,
    )


def _is_up_to_date(index: Index, manifest: Manifest, record: StageRecord, shard_folder: Path) -> bool:
    """As far as the index knows: the crops themselves are not looked at."""
    if record.inputs["rows"] != index.fingerprint or index.is_cleaned_since(record.inputs):
        return False
    if record.inputs["kept"] != index.kept_fingerprint and (index.kept & ~index.cached).any():
        return False
    return all((shard_folder / name).is_file() for name in manifest.shards)


def collect_garbage(workspace: Workspace, *, dry_run: bool) -> Garbage:
    """Drop what nothing in the workspace refers to and no running command reads."""
    if dry_run:
        return collect(workspace.folder, dry_run=True)
    with naming(workspace.folder), workspace.lock():
        return collect(workspace.folder, dry_run=False)
