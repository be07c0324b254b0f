"""Everything on one page: ft report."""

from __future__ import annotations

import os
from pathlib import Path

import click

from facetrain.commands.common import FOLDER, count, device_option, jobs_option
from facetrain.commands.measuring import run_folders


@click.command()
@click.argument("runs", nargs=-1)
@click.option(
    "--with",
    "others",
    type=FOLDER,
    multiple=True,
    metavar="FILE.json",
    help="What `ft evaluate` found of another embedder, to be put beside the runs; may be repeated.",
)
@click.option(
    "--out", type=FOLDER, metavar="FILE", help="The page. Default: report.html in the run's folder, or here."
)
@device_option
@jobs_option("Threads that gather photographs.")
@click.pass_context
def report(
    ctx: click.Context,
    runs: tuple[str, ...],
    others: tuple[Path, ...],
    out: Path | None,
    device: str,
    jobs: int,
) -> None:
    """Write one HTML page about runs: data, curves, figures, and the photographs that are worth a look.

    RUNS are names, or folders of runs, compared on one page; by default the latest run. The page needs no network and no
    other file. What `ft evaluate` has measured is on it; the validation split is embedded anew, for probable label errors
    and a map of its people. What is missing is said in its place.
    """
    folders = named(list(dict.fromkeys(run_folders(ctx, runs))))
    from facetrain.pipeline.report import report as write_report
    from facetrain.pipeline.training import device_of

    folder = next(iter(folders.values()))
    file = out or (folder if len(folders) == 1 else Path()) / "report.html"
    made = write_report(folders, others, file, device=device_of(device), jobs=jobs)
    evaluations = sum(len(run.evaluations) for run in made.runs) + sum(map(len, made.others.values()))
    size = file.stat().st_size / 1e6
    click.echo(f"{count(len(made.runs), 'run')}, {count(evaluations, 'evaluation')}: {size:.1f} MB")
    click.echo(f"wrote {os.path.relpath(file)}")


def named(folders: list[Path]) -> dict[str, Path]:
    """Runs by name; of several of one name, by where they lie."""
    names = [folder.name for folder in folders]
    return {
        folder.name if names.count(folder.name) == 1 else os.path.relpath(folder): folder
        for folder in folders
    }
