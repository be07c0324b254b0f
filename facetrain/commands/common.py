"""What the commands share: options, tables, the workspace, the one line that an error is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from facetrain.errors import UserError

if TYPE_CHECKING:
    from facetrain.workspace import Workspace

FOLDER = click.Path(path_type=Path)


def fail(message: str, code: int) -> None:
    """One line on stderr, then the end."""
    line = " ".join(message.split())
    click.echo(click.style("Error: ", fg="red", bold=True) + line, err=True)
    raise click.exceptions.Exit(code)


def count(number: int, noun: str) -> str:
    """``1 shard``, ``2 shards``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def printable(name: str) -> str:
    """A name from a disk, fit for a terminal: control characters are written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def processors() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jobs_option(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "-j",
        "--jobs",
        type=click.IntRange(1, 1024),
        default=processors,
        show_default="the processors there are",
        help=what,
    )


def file_threads_option(verb: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """For commands that wait for files, not for the processor."""
    return click.option(
        "-j",
        "--jobs",
        type=click.IntRange(1, 1024),
        default=1,
        show_default=True,
        help=f"Threads that {verb}: more where each file takes long, as on a network file system; 1 is best on a local "
        f"disk.",
    )


def verify_option(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--verify", is_flag=True, help=what)


dataset_argument = click.argument("aligned", required=False, type=FOLDER)
dry_run_option = click.option("--dry-run", is_flag=True, help="Only say what would change.")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def open_workspace(ctx: click.Context, *, create: bool = False) -> Workspace:
    from facetrain.workspace import Workspace

    return Workspace.find(ctx.obj, create=create)


def table(rows: Sequence[Sequence[str]]) -> None:
    """Print columns, the first left-aligned, numbers right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if i and cell[:1].isdigit() else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  " + "  ".join(cells).rstrip())


def settings_of(option: str, settings: tuple[str, ...], *, once: bool = False) -> dict[str, Any]:
    """What ``NAME=VALUE`` of a repeated option says; a dot in a name reaches into a table.

    once: a name that is given twice is an error; else the last one counts.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not (name and equals):
            raise UserError(f"{option} {setting}: write NAME=VALUE")
        target = values
        *folders, last = name.split(".")
        for folder in folders:
            target = target.setdefault(folder, {})
            if not isinstance(target, dict):
                raise UserError(f"{option} {setting}: '{folder}' is a value, and holds no settings")
        if once and last in target:
            raise UserError(f"{option} {setting}: '{name}' is given twice: leave one out")
        try:
            target[last] = json.loads(value)
        except ValueError:
            target[last] = value
    return values
