"""What is wrong with the photographs, and who must not be trained on? ft clean."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from facetrain.commands.common import (
    FOLDER,
    count,
    device_option,
    dry_run_option,
    jobs_option,
    open_workspace,
    printable,
)
from facetrain.commands.measuring import embedder_args_option, embedder_option, multi_option, subject_of
from facetrain.errors import UserError

if TYPE_CHECKING:
    from facetrain.pipeline.cleaning import Cleaned
    from facetrain.preprocess.clean import Proposal
    from facetrain.workspace import Workspace

SHOWN = 10  # new people who are named


@click.command()
@click.argument("checkpoint", required=False)
@embedder_option
@embedder_args_option
@click.option("--dataset", "aligned", type=FOLDER, help="The aligned tree of another dataset.")
@click.option(
    "--exclude-people", "people", type=FOLDER, metavar="FILE", help="Leave out those named there, one a line."
)
@click.option(
    "--exclude-overlap", "tree", type=FOLDER, metavar="TREE", help="Leave out people who are in TREE too."
)
@click.option(
    "--by",
    metavar="WAYS",
    help="Who is in TREE: by name, content, embedding, with commas between them.  [default: name,content]",
)
@click.option(
    "--threshold",
    type=click.FloatRange(-1, 1),
    help="By embedding: the cosine of two people's centres from which they are one. Default: as the photographs say.",
)
@multi_option
@click.option(
    "--out", type=FOLDER, metavar="FILE", help="Where the proposals are written.  [default: clean.csv]"
)
@click.option("--yes", is_flag=True, help="With --exclude-…: write the proposals, and apply them at once.")
@click.option("--apply", "file", type=FOLDER, metavar="FILE", help="Apply what is proposed in FILE.")
@dry_run_option
@click.option("--undo", is_flag=True, help="Take back all that was ever applied.")
@device_option
@jobs_option("Worker processes and threads.")
@click.pass_context
def clean(
    ctx: click.Context,
    checkpoint: str | None,
    embedder: str | None,
    embedder_args: tuple[str, ...],
    aligned: Path | None,
    people: Path | None,
    tree: Path | None,
    by: str | None,
    threshold: float | None,
    multi: str,
    out: Path | None,
    yes: bool,
    file: Path | None,
    dry_run: bool,
    undo: bool,
    device: str,
    jobs: int,
) -> None:
    """Propose what to leave out or to rename, in a file to look through; then apply that file.

    \b
        ft clean                         writes clean.csv
        ft clean --apply clean.csv       once you have deleted the lines that are wrong

    Embeds all usable photographs (with CHECKPOINT, a run's name or a .safetensors file, by default the latest run's best;
    or with --embedder) and proposes photographs that are probably of another person, people who are probably two, and
    people who are probably one. --exclude-people and --exclude-overlap propose to leave out test people instead.

    Applying only marks rows of the index; nothing is moved or deleted, photographs that come later bear no mark, and
    `--undo` takes all of it back. A second file is applied in addition to the first.
    """
    proposing = any((checkpoint, embedder, people, tree, by, threshold is not None, out, yes))
    if file is not None or undo:
        if proposing or (undo and (file is not None or dry_run)):
            raise UserError(
                f"{'--undo' if undo else '--apply'} goes alone: leave out what is about proposing"
            )
        workspace = open_workspace(ctx)
        take_back(workspace, aligned) if undo else apply(workspace, aligned, file or Path(), dry_run)
        return
    if dry_run:
        raise UserError("--dry-run goes with --apply: without that nothing is changed")
    if yes and people is None and tree is None:
        raise UserError(
            "--yes goes with --exclude-people or --exclude-overlap: look through the rest yourself"
        )
    ways = _ways(by, tree, threshold)
    out = out or Path("clean.csv")
    if out.exists():
        raise UserError(f"{out} is there already: apply it or remove it, or name another file with --out")
    by_embedding = "embedding" in ways or (people is None and tree is None)
    if (checkpoint or embedder) and not by_embedding:
        raise UserError("nothing is embedded for that: leave out the network, or add --by embedding")

    from facetrain.pipeline import cleaning, exclusion
    from facetrain.pipeline.training import device_of
    from facetrain.preprocess.clean import write_proposals

    workspace, on = open_workspace(ctx), device_of(device)
    subject = subject_of(workspace, checkpoint, embedder, embedder_args, on) if by_embedding else None
    found = []
    if people is not None:
        found.append(exclusion.propose_people(workspace, aligned, people))
    if tree is not None:
        how: dict[str, Any] = {"threshold": threshold, "multi": multi, "device": on, "jobs": jobs}
        found.append(exclusion.propose_overlap(workspace, aligned, tree, ways, subject, **how))
    if not found:
        assert subject is not None
        found.append(cleaning.propose_label_errors(workspace, aligned, subject, device=on, jobs=jobs))
    for note in (note for part in found for note in part.notes):
        click.echo(f"note: {printable(note)}")
    proposals = _once([proposal for part in found for proposal in part.proposals])
    if not proposals:
        click.echo("nothing to propose")
        return
    write_proposals(out, proposals)
    show_proposals(proposals, out)
    if yes:
        apply(workspace, aligned, out, dry_run=False)
    else:
        click.echo(f"look through it, delete what is wrong, then: ft clean --apply {os.path.relpath(out)}")


def _ways(by: str | None, tree: Path | None, threshold: float | None) -> list[str]:
    from facetrain.pipeline.exclusion import WAYS

    if tree is None:
        if by is not None or threshold is not None:
            raise UserError("--by and --threshold go with --exclude-overlap")
        return []
    ways = [way.strip() for way in (by or "name,content").split(",")]
    for way in ways:
        if way not in WAYS:
            raise UserError(f"--by {by}: choose {', '.join(WAYS)}, with commas between them")
    if threshold is not None and "embedding" not in ways:
        raise UserError("--threshold goes with --by embedding")
    return ways


def _once(proposals: list[Proposal]) -> list[Proposal]:
    """Without people who are proposed again, by another option."""
    return list({(p.path, p.identity): p for p in reversed(proposals)}.values())[::-1]


def show_proposals(proposals: list[Proposal], out: Path) -> None:
    from facetrain.pipeline.exclusion import people

    kinds = Counter((p.action, bool(p.path)) for p in proposals)
    for (action, single), number in kinds.items():
        photographs = count(number, "photograph")
        if action == "leave-out":
            click.echo(f"  {photographs if single else people(number)} to leave out")
        elif single:
            divided = len({p.identity for p in proposals if p.action == action and p.path})
            look = "looks" if divided == 1 else "look"
            click.echo(f"  {people(divided)} who {look} like two ({photographs})")
        else:
            click.echo(f"  {count(number, 'pair')} who look like one")
    click.echo(f"wrote {os.path.relpath(out)}")


def apply(workspace: Workspace, aligned: Path | None, file: Path, dry_run: bool) -> None:
    from facetrain.pipeline import cleaning

    done = cleaning.apply(workspace, aligned, file, dry_run=dry_run)
    show_cleaned(done, dry_run)


def show_cleaned(done: Cleaned, dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    click.echo(
        f"{would}marked in all: {count(done.left_out, 'photograph')} left out, {done.renamed:,} given to another person"
    )
    if done.new_people:
        names = printable(", ".join(done.new_people[:SHOWN]))
        more = f" and {len(done.new_people) - SHOWN:,} more" if len(done.new_people) > SHOWN else ""
        click.echo(f"names that are new: {names}{more}")
    if not dry_run:
        _say_again(done.again)


def take_back(workspace: Workspace, aligned: Path | None) -> None:
    from facetrain.pipeline import cleaning

    there, again = cleaning.undo(workspace, aligned)
    click.echo("all photographs are used again, under their own names" if there else "nothing was marked")
    _say_again(again)


def _say_again(stages: list[str]) -> None:
    if stages:
        click.echo(f"who is who has changed: run {' and '.join(f'`ft {stage}`' for stage in stages)} again")
