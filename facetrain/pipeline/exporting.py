"""ft export: the kept crops in a format that others read."""

from __future__ import annotations

from pathlib import Path

from facetrain.datasets.export_parquet import ParquetReport, export_parquet
from facetrain.errors import MissingStage, UserError
from facetrain.index import read_index
from facetrain.preprocess.journal import JOURNAL
from facetrain.progress import Progress
from facetrain.workspace import Workspace


def parquet(workspace: Workspace, aligned: Path | None, out: Path, *, jobs: int) -> ParquetReport:
    """Write the kept crops of a dataset as Parquet files below ``out``, a new or empty folder.

    Raises UserError for a folder that will not do, MissingStage where the crops are not as the index knows them.
    """
    dataset = workspace.dataset(aligned)
    stage = dataset.first_stage
    if (dataset.folder / JOURNAL).is_file():
        raise MissingStage(
            f"an {stage} of {dataset.aligned} was interrupted: run `ft {stage}` again to finish it"
        )
    for folder, what in (
        (workspace.folder, "the workspace's own folder"),
        (dataset.aligned, "the folder of the crops"),
        (dataset.raw, "the folder of the photographs"),
    ):
        if out.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{out} lies in {what}: name a folder outside of it")
    with Progress("exporting", "crops") as bar:
        return export_parquet(
            read_index(dataset.folder),
            dataset.aligned,
            out,
            made_by=stage,
            jobs=jobs,
            on_start=bar.begin,
            on_progress=lambda crops, size: bar.advance(crops, f"{size / 1e6:,.0f} MB"),
        )
