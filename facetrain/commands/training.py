"""ft train."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from facetrain.commands.common import (
    FOLDER,
    dataset_argument,
    device_option,
    fail,
    jobs_option,
    open_workspace,
    settings_of,
)
from facetrain.errors import UserError


@click.command()
@dataset_argument
@click.option("--name", help="The run's name. Default: the trainer's and a number.")
@click.option("--preset", help="Settings that were measured for a purpose, such as lfw-cpu.")
@click.option(
    "--config", "config_file", type=FOLDER, help="Settings from a TOML or JSON file; options win over it."
)
@click.option(
    "--trainer",
    help="What is trained: triplet, arcface, softmax, metric, simclr, semi-siamese, or module:attribute.  "
    "[default: triplet]",
)
@click.option("--loss", help="The head of arcface and softmax (cosface, say), or the loss of metric.")
@click.option("--backbone", help="The network: a name or module:attribute.  [default: iresnet.small]")
@click.option("--embedding-dim", type=int, help="[default: 128]")
@click.option("--epochs", type=int, help="Passes over the training photographs.  [default: 60]")
@click.option("--batches-per-epoch", type=int, help="Default: as many as show about every photograph.")
@click.option(
    "--batch-size", type=int, help="Photographs in a batch: of arcface, softmax, simclr.  [default: 128]"
)
@click.option(
    "--people",
    type=int,
    help="P: people in a batch (semi-siamese: 64; arcface, softmax: as they come).  [default: 32]",
)
@click.option(
    "--images",
    type=int,
    help="K: photographs of each of them; people with fewer make room for more people.  [default: 8]",
)
@click.option(
    "--margin", type=float, help="Of triplet: of squared distances between unit embeddings.  [default: 0.2]"
)
@click.option("--miner", help="Of triplet: which negatives are taken.  [default: all-violating-random]")
@click.option(
    "--extra-negatives", type=int, help="Random photographs of others added to each batch.  [default: 0]"
)
@click.option("--lr", type=float, help="Peak learning rate.  [default: 0.002]")
@click.option("--augment", type=float, help="Strength of the augmentation; 0: flips only.  [default: 1]")
@click.option("--seed", type=int, help="[default: 0]")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any other setting; may be repeated."
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="",
    metavar="[RUN]",
    help="Go on with an interrupted run (the latest one).",
)
@device_option
@jobs_option("Threads.")
@click.pass_context
def train(
    ctx: click.Context, /, aligned: Path | None, resume: str | None, device: str, jobs: int, **options: Any
) -> None:
    """Train a face-embedding network on the training split.

    After every epoch it is measured on pairs of validation people, and a checkpoint is written. Ctrl-C stops after
    the step in hand; `ft train --resume` goes on as if there had been no interruption.
    """
    workspace = open_workspace(ctx)
    config = None if resume is not None else train_settings(options)
    given = [name for name, value in options.items() if value not in (None, ())]
    if resume is not None and given:
        option = {"config_file": "config", "settings": "set"}.get(given[0], given[0].replace("_", "-"))
        raise UserError(
            f"a resumed run keeps its settings: leave out --{option}, or start a new run with `ft train`"
        )
    if resume is not None and aligned is not None:
        raise UserError(
            f"a resumed run keeps its dataset: leave out {aligned}, or start a new run with `ft train`"
        )

    from facetrain.pipeline import training
    from facetrain.progress import Progress
    from facetrain.terminal import TrainReporter

    with Progress("training", "steps") as bar, ends_for_good():
        how: dict[str, Any] = {
            "device": device,
            "threads": jobs,
            "reporter": TrainReporter(bar),
            "say": bar.say,
        }
        if config is None:
            summary = training.resume(workspace, resume or None, **how)
        else:
            summary = training.start(workspace, aligned, options["name"], config, **how)
    if not summary.finished:
        fail(f"stopped, and saved: `ft train --resume {summary.run}` goes on", 130)
    click.echo(f"best checkpoint: {os.path.relpath(summary.best)}" if summary.best else "no checkpoint")


@contextmanager
def ends_for_good() -> Iterator[None]:
    """A training that is interrupted twice cannot save what it was at: say what is left."""
    try:
        yield
    except KeyboardInterrupt:
        fail("interrupted: `ft train --resume` goes on from the last saved state", 130)


def train_settings(options: dict[str, Any]) -> Any:
    """The configuration: a preset, over it a file, over that the options."""
    from facetrain.config import lay_over, load_config, load_preset, merged, train_config

    values = load_preset(options["preset"]) if options["preset"] else {}
    if options["config_file"]:
        values = lay_over(values, load_config(options["config_file"]))
    values = lay_over(values, merged(settings_of("--set", options["settings"]), _options(options)))
    config = train_config(values)
    if config.trainer == "triplet" and "loss" in config.trainer_args:
        raise UserError(
            f"--loss {config.trainer_args['loss']} needs a trainer that takes one: --trainer arcface or softmax for a "
            f"head, --trainer metric for a loss over pairs"
        )
    return config


def _options(options: dict[str, Any]) -> dict[str, Any]:
    """What the other options say."""
    names = ("trainer", "backbone", "embedding_dim", "epochs", "batches_per_epoch", "lr", "augment", "seed")
    trainer_names = ("loss", "batch_size", "people", "images", "margin", "miner", "extra_negatives")
    values = {name: options[name] for name in names if options[name] is not None}
    trainer_args = {name: options[name] for name in trainer_names if options[name] is not None}
    return values | ({"trainer_args": trainer_args} if trainer_args else {})
