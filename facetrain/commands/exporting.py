"""From facetrain to others: ft export."""

from __future__ import annotations

import os
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
@click.option("--onnx", "form", flag_value="onnx", help="The network, for ONNX Runtime and others: OUT.onnx.")
@click.option("--torchscript", "form", flag_value="torchscript", help="The network, for libtorch: OUT.pt.")
@click.option(
    "--safetensors", "form", flag_value="safetensors", help="The network's weights: OUT.safetensors."
)
@click.option("--checkpoint", metavar="RUN", help="Of a network: which. Default: the latest run's best.")
@click.option("--int8", is_flag=True, help="With --onnx: in 8 bits; what that costs is measured and printed.")
@file_threads_option("read")
@click.pass_context
def export(
    ctx: click.Context,
    out: Path,
    aligned: Path | None,
    form: str | None,
    checkpoint: str | None,
    int8: bool,
    jobs: int,
) -> None:
    """Write the dataset, or a network, into OUT in a format that others read; which one must be said.

    With --parquet: OUT must be new or empty, and appears when all of it is written. Crops that have changed since they
    were aligned are an error, not exported.

    A network is tried before OUT appears: it must give the same embeddings there as here on photographs of the validation
    split. The file says which crops it takes (ImageSpec, as JSON under "facetrain" in its metadata).
    """
    from facetrain.pipeline import exporting
    from facetrain.progress import human_duration

    if form is None:
        raise UserError(
            f"in which format? `ft export --parquet {out}`, --onnx, --torchscript or --safetensors"
        )
    if form != "parquet":
        if aligned is not None:
            raise UserError(f"a network is not of a dataset: leave out {aligned}")
        export_one(ctx, checkpoint, out, form, int8, jobs)
        return
    if checkpoint is not None or int8:
        raise UserError("--checkpoint and --int8 are of networks: leave them out, or --parquet")
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


def export_one(
    ctx: click.Context, checkpoint: str | None, out: Path, form: str, int8: bool, jobs: int
) -> None:
    """A network, and what it was tried on."""
    from facetrain.pipeline.network_export import export_network

    done = export_network(open_workspace(ctx), checkpoint, out, form, int8=int8, jobs=jobs)
    on = count(done.photographs, "photograph") if done.before else f"{done.photographs} pictures"
    click.echo(f"tried on {on}: the least cosine to the checkpoint's embeddings is {done.least_cosine:.6f}")
    if done.before is not None and done.after is not None:
        click.echo(
            f"verification on pairs of them: accuracy {done.after.accuracy_mean:.4f}, AUC {done.after.auc:.4f} "
            f"(checkpoint: {done.before.accuracy_mean:.4f}, {done.before.auc:.4f})"
        )
    click.echo(f"wrote {os.path.relpath(done.file)}, {done.file.stat().st_size / 1e6:,.1f} MB")
