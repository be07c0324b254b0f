"""From photographs to shards: ft synth, align, prune, split, cache, export-tree."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from facetrain.commands.common import (
    FOLDER,
    count,
    dataset_argument,
    device_option,
    dry_run_option,
    jobs_option,
    open_workspace,
    printable,
    table,
    verify_option,
)
from facetrain.errors import UserError
from facetrain.image_spec import LANDMARK_SETS

if TYPE_CHECKING:
    from facetrain.datasets.cache.collect import Garbage
    from facetrain.pipeline.data import People
    from facetrain.preprocess.align_tree import AlignReport

SHOWN = 10  # damaged files that are named


@click.command()
@click.argument("out", type=FOLDER)
@click.option("--identities", type=int, default=100, show_default=True, help="People.")
@click.option("--images", type=int, default=20, show_default=True, help="Photographs of each person.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, other people.")
@click.option(
    "--size", "size_px", type=int, default=250, show_default=True, help="Side of a photograph in pixels."
)
@click.option(
    "--layout",
    metavar="NAME",
    help="Files and lists as a set of the field has them (lfw, ijb, tinyface, …), to try its protocol on.",
)
@jobs_option("Worker processes.")
def synth(
    out: Path, identities: int, images: int, seed: int, size_px: int, layout: str | None, jobs: int
) -> None:
    """Draw synthetic photographs of people into OUT, for trying things out.

    Pose, light, expression, background, blur and JPEG quality vary within a person. The same numbers give the same
    bytes; more people or more photographs leave those that are there as they are.
    """
    from facetrain.datasets.synth import synthesise, synthesise_layout
    from facetrain.progress import Progress

    with Progress("drawing", "photographs") as bar:
        numbers: dict[str, Any] = {"identities": identities, "images": images, "seed": seed}
        how: dict[str, Any] = {**numbers, "size_px": size_px, "jobs": jobs, "on_progress": bar.advance}
        if layout is not None:
            report = synthesise_layout(out, layout, **how, on_start=bar.begin)
        else:
            bar.begin(max(identities, 0) * max(images, 0))
            report = synthesise(out, **how)
    click.echo(
        f"{report.photographs:,} photographs of {report.people:,} people in {out} "
        f"({report.drawn:,} drawn now, {report.seconds:.1f} s)"
    )


@click.command()
@click.argument("raw", type=FOLDER)
@click.argument("aligned", type=FOLDER)
@click.option("--size", "size_px", type=int, default=96, show_default=True, help="Side of a crop in pixels.")
@click.option(
    "--landmarks",
    default="five-point",
    show_default=True,
    metavar="SET",
    help=f"Which landmarks are put in place: {' | '.join(LANDMARK_SETS)}. The first two are OpenFace's (exact "
    "affine); five-point is a similarity transform onto insightface's 112-pixel template, scaled (with --predictor 5, which "
    "finds no mouth, onto the same framing by eye corners and nose); dlib-chip is what dlib's own network takes.",
)
@click.option(
    "--predictor",
    type=click.Choice(["5", "68"]),
    help="dlib's landmark model. Default: 5 where the landmark set allows it, else 68, whose training data "
    "exclude commercial use (the 5-point model's do not).",
)
@click.option(
    "--detector",
    default="hog",
    show_default=True,
    metavar="NAME",
    help="What finds the faces: hog, cnn (finds more of the turned and half-hidden ones; slow without a GPU), "
    "module:attribute, or one that an installed package brings.",
)
@click.option(
    "--multi",
    default="largest",
    show_default=True,
    metavar="RULE",
    help="Of several faces take the largest, the one nearest the centre, or skip the photograph.",
)
@click.option(
    "--format", "image_format", default="jpg", show_default=True, metavar="jpg|png", help="Of the crops."
)
@click.option("--quality", type=int, default=95, show_default=True, help="JPEG quality.")
@click.option(
    "--max-megapixels",
    type=click.IntRange(1, 100_000),
    default=200,
    show_default=True,
    help="Larger photographs are not decoded: a small file can claim to be a picture that fills the memory. "
    "A worker needs up to 13 MB for each megapixel of the largest.",
)
@verify_option("Read and hash every photograph and crop, whatever their size and times say.")
@click.option(
    "--redo", is_flag=True, help="Align every photograph again; needed to change the settings of ALIGNED."
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Use the workers of this Dask cluster, not this machine's: tcp://HOST:8786, or its scheduler file.",
)
@jobs_option("Worker processes.")
@click.pass_context
def align(
    ctx: click.Context,
    raw: Path,
    aligned: Path,
    size_px: int,
    landmarks: str,
    predictor: str | None,
    detector: str,
    multi: str,
    image_format: str,
    quality: int,
    max_megapixels: int,
    verify: bool,
    redo: bool,
    scheduler: str | None,
    jobs: int,
) -> None:
    """Find the face in every photograph under RAW and write an aligned crop of it under ALIGNED.

    A person's identity is the folder right under RAW. Run again, only what is new or changed is looked at. Every
    photograph, rejected ones with the reason, becomes a row of the workspace's index.
    """
    from facetrain.image_spec import ImageSpec
    from facetrain.pipeline import data
    from facetrain.preprocess.aligner import AlignSettings

    spec = ImageSpec(
        size_px=size_px,
        landmarks=landmarks,
        predictor=int(predictor) if predictor else 68 if landmarks == "inner-eyes-bottom-lip" else 5,
        detector=detector,
        format=image_format,
        quality=quality if image_format == "jpg" else 0,
    )
    settings = AlignSettings(spec, multi, max_pixels=max_megapixels * 1_000_000)
    if scheduler is not None and ctx.get_parameter_source("jobs") is not ParameterSource.DEFAULT:
        raise UserError("-j is for this machine's processes; a cluster has the workers it has: leave -j out")
    workspace = open_workspace(ctx, create=True)
    report = data.align(
        workspace, raw, aligned, settings, jobs=jobs, redo=redo, verify=verify, scheduler=scheduler
    )
    show_rows(report, raw, ("aligned", "no-face", "several-faces", "unreadable"))


@click.command()
@click.argument("crops", type=FOLDER)
@click.option("--size", "size_px", type=int, help="Side of a crop in pixels.")
@click.option(
    "--landmarks",
    metavar="SET",
    help=f"The template that they are on: {' | '.join(LANDMARK_SETS)} | other.  [default: five-point]",
)
@click.option("--detector", metavar="TEXT", help="What found the faces, for the record.  [default: unknown]")
@click.option(
    "--keep-current", is_flag=True, help="Leave the current dataset as it is: for crops to evaluate on alone."
)
@verify_option("Read and hash every crop, whatever its size and times say.")
@click.option("--redo", is_flag=True, help="Look at every crop again; needed to declare something else.")
@jobs_option("Worker processes.")
@click.pass_context
def index(
    ctx: click.Context,
    crops: Path,
    size_px: int | None,
    landmarks: str | None,
    detector: str | None,
    keep_current: bool,
    verify: bool,
    redo: bool,
    jobs: int,
) -> None:
    """Use aligned CROPS that were made elsewhere, where they lie: one folder of them per person.

    What they are must be declared, so that they are never mixed with others; a tree that `ft align` made says it
    itself. Nothing in CROPS is changed. Run again, only what is new or changed is looked at.
    """
    from facetrain.pipeline import data
    from facetrain.preprocess.index_tree import Declared

    declared = Declared(size_px, landmarks, detector)
    workspace = open_workspace(ctx, create=True)
    report = data.index(
        workspace, crops, declared, jobs=jobs, redo=redo, verify=verify, keep_current=keep_current
    )
    show_rows(report, crops, ("aligned", "unreadable"))


def show_rows(report: AlignReport, raw: Path, always: Sequence[str]) -> None:
    """What became of the photographs; the statuses ``always`` even where there are none of them."""
    from facetrain.index import ALIGNED, STATUSES
    from facetrain.progress import human_duration

    done, total = report.rows, sum(report.rows.counts.values())
    rows = [
        (STATUSES[status], f"{number:,}", f"{number / total:.2%}")
        for status, number in done.counts.items()
        if number or status in always
    ]
    table(rows)
    rate = done.looked_at / report.seconds
    said = f"{done.looked_at:,} looked at ({rate:,.0f}/s), " if done.looked_at else "nothing to do, "
    click.echo(f"{total:,} photographs: {said}{done.unchanged:,} as before; {human_duration(report.seconds)}")
    if report.ignored:
        kinds = ", ".join(
            f"{n:,} {printable(suffix) or 'without a suffix'}" for suffix, n in sorted(report.ignored.items())
        )
        click.echo(f"files that are no photographs, passed over: {kinds}")
    if done.disappeared:
        click.echo(
            f"no longer in {raw}: {count(done.disappeared, 'photograph')}, marked missing and not used any more"
        )
    if report.alike:
        names = printable("; ".join(" and ".join(group) for group in report.alike[:3]))
        more = f" (and {len(report.alike) - 3:,} more)" if len(report.alike) > 3 else ""
        click.echo(
            f"kept apart, though their names differ only in case or Unicode form: {names}{more}; "
            "if they are one person, put the photographs into one folder"
        )
    if total > done.counts[ALIGNED]:
        click.echo(f"those not aligned, and why: {os.path.relpath(done.rejected_list)}")


def people_table(rows: dict[str, People]) -> None:
    table(
        [
            ("", "people", "photographs"),
            *((name, f"{p.people:,}", f"{p.photographs:,}") for name, p in rows.items()),
        ]
    )


@click.command()
@dataset_argument
@click.option(
    "--min", "min_photographs", type=int, help="Keep people with at least so many aligned photographs."
)
@click.option("--undo", is_flag=True, help="Keep everyone again.")
@dry_run_option
@click.pass_context
def prune(
    ctx: click.Context, aligned: Path | None, min_photographs: int | None, undo: bool, dry_run: bool
) -> None:
    """Leave out people with too few photographs.

    It only marks rows of the index; no photograph is moved or deleted, and `--undo` takes it back.
    """
    from facetrain.pipeline import data

    workspace = open_workspace(ctx)
    if undo:
        there = data.undo(workspace, aligned, "prune")
        click.echo("everyone is kept again" if there else "nobody was left out")
        return
    if min_photographs is None:
        raise UserError("how many photographs must a person have? `ft prune --min 10`")
    before, after = data.prune(workspace, aligned, min_photographs, dry_run=dry_run)
    people_table({"before": before, "would be kept" if dry_run else "kept": after})


@click.command()
@click.argument("ratio", required=False, type=float)
@dataset_argument
@click.option(
    "--by",
    default="identity",
    show_default=True,
    metavar="identity|image",
    help="Set people apart, so that validation people are new people (what verification measures), or photographs.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, another split.")
@click.option("--undo", is_flag=True, help="Take the split away.")
@dry_run_option
@click.pass_context
def split(
    ctx: click.Context,
    ratio: float | None,
    aligned: Path | None,
    by: str,
    seed: int,
    undo: bool,
    dry_run: bool,
) -> None:
    """Set the share RATIO of the people (or photographs) apart for validation.

    The choice follows from the seed and each person's name alone: adding people moves nobody from one side to the
    other. It only marks rows of the index; `--undo` takes it back.
    """
    from facetrain.pipeline import data

    workspace = open_workspace(ctx)
    if undo:
        there = data.undo(workspace, aligned, "split")
        click.echo("the split is taken away" if there else "nothing was split")
        return
    if ratio is None:
        raise UserError("which share is for validation? `ft split 0.1`")
    train, val = data.split(workspace, aligned, ratio, by=by, seed=seed, dry_run=dry_run)
    people_table({"training": train, "validation": val})


@click.command()
@dataset_argument
@verify_option("Read every file of the dataset; make again what is damaged, or say how.")
@click.option("--gc", is_flag=True, help="Only drop shards that nothing refers to; of all datasets.")
@click.option("--dry-run", is_flag=True, help="With --gc: only say what would go.")
@device_option
@jobs_option("Threads.")
@click.pass_context
def cache(
    ctx: click.Context, aligned: Path | None, verify: bool, gc: bool, dry_run: bool, device: str, jobs: int
) -> None:
    """Decode the kept crops into Arrow shards (`ft train` does it when needed).

    Only what is new or changed is decoded. Any Arrow reader opens the shards in .ft/cache/.
    """
    from facetrain.pipeline import caching

    if gc:
        if verify or aligned is not None:
            raise UserError("--gc is for the whole workspace, and runs alone: `ft cache --gc`")
        show_garbage(caching.collect_garbage(open_workspace(ctx), dry_run=dry_run), dry_run)
        return
    if dry_run:
        raise UserError("--dry-run goes with --gc: `ft cache --gc --dry-run`")
    workspace = open_workspace(ctx)
    report = caching.cache(workspace, aligned, threads=jobs, device=device, verify=verify)
    aligned_here = workspace.dataset(aligned).first_stage == "align"
    for name in report.damaged[:SHOWN]:
        by = "by the next `ft align`" if name == "raw.files.arrow" else "now"
        click.echo(f"damaged, and made again {by}: {name}")
    if len(report.damaged) > SHOWN:
        click.echo(f"damaged, and made again now: {count(len(report.damaged) - SHOWN, 'more file')}")
    click.echo(
        f"{count(report.images, 'crop')} in {count(report.shards_written + report.shards_kept, 'shard')}, "
        f"{report.bytes / 1e6:,.0f} MB: {report.decoded:,} decoded, {report.copied:,} copied, "
        f"{count(report.shards_written, 'shard')} written; "
        f"{report.seconds:.1f} s"
    )
    if report.changed:
        then = "`ft align` makes them again" if aligned_here else "`ft index` takes note of it"
        click.echo(f"{count(report.changed, 'crop')} changed since they were aligned or indexed: {then}")
    if report.undecodable:
        click.echo(
            f"crops that cannot be decoded, left out: {report.undecodable:,}, see "
            f"{os.path.relpath(report.undecodable_list)} (`ft align` makes again what has changed since)"
        )
    if report.absent:
        then = "`ft align` makes them again" if aligned_here else "`ft index` takes note of it"
        click.echo(f"crops that are gone from the aligned tree: {report.absent:,}; {then}")
    if not os.access(workspace.folder, os.W_OK):
        click.echo(
            "the workspace cannot be written to: the cache is as the index has it, no crop was looked at"
        )
    elif verify and not (report.damaged or report.changed):
        click.echo("everything was read, and is as it was written")


def show_garbage(garbage: Garbage, dry_run: bool) -> None:
    if garbage.files:
        would = "would be " if dry_run else ""
        click.echo(f"{would}dropped: {count(garbage.files, 'file')}, {garbage.bytes / 1e6:,.0f} MB")
    else:
        click.echo("nothing to drop")
    if garbage.held_files:
        click.echo(
            f"kept, since running commands read them: {count(garbage.held_files, 'shard')}, "
            f"{garbage.held_bytes / 1e6:,.0f} MB ({', '.join(garbage.holders[:3])}"
            f"{f' and {len(garbage.holders) - 3:,} more' if len(garbage.holders) > 3 else ''})"
        )


@click.command("export-tree")
@click.argument("out", type=FOLDER)
@dataset_argument
@click.pass_context
def export_tree(ctx: click.Context, out: Path, aligned: Path | None) -> None:
    """Lay out OUT/train/<person>/ and OUT/val/<person>/ as links to the crops, for other tools."""
    from facetrain.pipeline import data

    counts = data.export_tree(open_workspace(ctx), aligned, out)
    click.echo(f"{counts['train']:,} training and {counts['val']:,} validation crops linked in {out}")
