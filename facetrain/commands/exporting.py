"""From facetrain to others: ft export."""

from __future__ import annotations

from pathlib import Path

import click

from facetrain.commands.common import FOLDER, count, dataset_argument, file_threads_option, open_workspace
from facetrain.errors import UserError


@click.command("export")
@click.argument("out", type=FOLDER)
@dataset_argument
@click.option(
    "--parquet",
    "form",
    flag_value="parquet",
    help="The kept crops as Parquet files that Hugging Face's load_dataset(OUT) opens: image, label, identity, path; "
    "train and validation as `ft split` has set them apart.",
)
@file_threads_option("read")
@click.pass_context
def export(ctx: click.Context, out: Path, aligned: Path | None, form: str | None, jobs: int) -> None:
    """Write the dataset into OUT in a format that others read; which one must be said.

    OUT must be new or empty. It appears when all of it is written: an interrupted export leaves nothing. Crops that
    have changed since they were aligned are an error, not exported.
    """
    from facetrain.pipeline import exporting
    from facetrain.progress import human_duration

    if form is None:
        raise UserError(f"in which format? `ft export --parquet {out}`")
    done = exporting.parquet(open_workspace(ctx), aligned, out, jobs=jobs)
    for split, part in done.splits.items():
        click.echo(
            f"{split}: {count(part.crops, 'crop')} of {part.people:,} {'person' if part.people == 1 else 'people'} "
            f"in {count(part.files, 'file')}, {part.file_bytes / 1e6:,.1f} MB"
        )
    crops = sum(part.crops for part in done.splits.values())
    click.echo(
        f"{crops:,} crops in {out}; {human_duration(done.seconds)} ({crops / max(done.seconds, 1e-9):,.0f}/s)"
    )
