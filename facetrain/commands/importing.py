"""From packed datasets to photographs: ft import."""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote

import click

from facetrain.commands.common import FOLDER, count, file_threads_option
from facetrain.datasets.importers.recognise import FORMATS


@click.command("import")
@click.argument("source", nargs=-1, required=True, type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option(
    "--format",
    "source_format",
    type=click.Choice(["auto", *FORMATS]),
    default="auto",
    show_default=True,
    help="Of SOURCE. auto: by its name and its first bytes.",
)
@click.option(
    "--label",
    metavar="NAME",
    help="Where it says who it is: a column of Parquet; of WebDataset a member of the samples (cls, txt) or a key in "
    "their .json. Default: found where it is plain.",
)
@click.option(
    "--image",
    metavar="NAME",
    help="Where the image is: a column of Parquet; of WebDataset the suffix of the member, where samples have several.",
)
@file_threads_option("write")
def import_(
    source: tuple[Path, ...], out: Path, source_format: str, label: str | None, image: str | None, jobs: int
) -> None:
    """Unpack a dataset into OUT/<identity>/, its encoded images untouched.

    SOURCE is insightface's RecordIO (.rec with its .idx, or the folder of both), one of its verification sets (.bin),
    WebDataset tars (files, a folder, or a pattern such as 'train-{0000..0012}.tar') or Parquet files with a column of
    images. Interrupted and run again, it goes on where it was. Records that are no photographs are listed in
    OUT/import-rejected.csv.
    """
    from facetrain.pipeline.importing import import_dataset
    from facetrain.progress import human_duration

    done = import_dataset(list(source), out, format=source_format, image=image, label=label, jobs=jobs)
    tree = done.tree
    if done.pairs is not None:
        click.echo(
            f"{tree.photographs:,} photographs in {count(done.pairs.pairs, 'pair')} ({count(done.pairs.folds, 'fold')}) "
            f"in {out}, {tree.bytes / 1e6:,.0f} MB"
        )
    else:
        people = "1 person" if tree.people == 1 else f"{tree.people:,} people"
        click.echo(
            f"{tree.photographs:,} photographs of {people} in {out}, {tree.bytes / 1e6:,.0f} MB ({tree.format})"
        )
    there = tree.photographs - tree.written
    rate = (tree.photographs - tree.skipped) / max(tree.seconds, 1e-9)
    click.echo(
        f"{tree.written:,} written now, {there:,} there already; {human_duration(tree.seconds)} ({rate:,.0f}/s)"
    )
    if tree.rejected_list is not None:
        listed = os.path.relpath(tree.rejected_list)
        click.echo(f"no photographs, and why: {count(tree.rejected, 'record')} in {listed}")
    for note in done.pairs.notes if done.pairs is not None else []:
        click.echo(f"note: {note}")
    here = quote(str(out))
    if done.pairs is not None:
        click.echo(
            f"next: `ft evaluate --pairs {quote(str(done.pairs.path))} --images {here}`; "
            f"when they are aligned crops, first `ft index {here} --size 112`"
        )
    else:
        aligned = quote(f"{str(out).rstrip('/')}-aligned")
        click.echo(
            f"next: `ft align {here} {aligned}`; when they are aligned crops, `ft index {here} --size 112`"
        )
