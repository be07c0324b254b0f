"""How good is it, and how does it stand? ft evaluate, plot-loss, status."""

from __future__ import annotations

import json
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
    jobs_option,
    json_option,
    open_workspace,
    settings_of,
    table,
)
from facetrain.errors import UserError

if TYPE_CHECKING:
    import torch

    from facetrain.pipeline.evaluation import Evaluation
    from facetrain.pipeline.subject import Subject
    from facetrain.workspace import Workspace


embedder_option = click.option(
    "--embedder", metavar="NAME", help="Instead of a checkpoint: dlib, FILE.onnx or module:attribute."
)
embedder_args_option = click.option(
    "--embedder-arg",
    "embedder_args",
    multiple=True,
    metavar="NAME=VALUE",
    help="What the embedder is told; may be repeated.",
)
multi_option = click.option(
    "--multi",
    default="centre",
    show_default=True,
    metavar="RULE",
    help="Of several faces in a raw photograph: the largest, or the one nearest the centre.",
)
flip_option = click.option(
    "--flip", is_flag=True, help="Embed each photograph and its mirror image: the sum counts."
)


@click.command()
@click.argument("checkpoint", required=False)
@embedder_option
@embedder_args_option
@click.option(
    "--protocol",
    metavar="NAME",
    help="What is measured: lfw, cfp-fp, agedb-30, calfw, cplfw, rfw, ijb, tinyface, survface, megaface, bob, isc, or "
    "module:attribute.  [default: split, which needs no files]",
)
@click.option("--data", type=FOLDER, help="The protocol's folder, or its .bin file.")
@click.option(
    "--protocol-arg",
    "protocol_args",
    multiple=True,
    metavar="NAME=VALUE",
    help="What the protocol is told; may be repeated.",
)
@click.option("--pairs", type=FOLDER, help="For lfw: a list of pairs in its format, or insightface's .bin.")
@click.option("--images", type=FOLDER, help="For lfw: the photographs that the pairs name, raw or aligned.")
@multi_option
@click.option(
    "--no-face",
    type=click.Choice(["different", "drop"]),
    help="For lists of pairs: a pair with a photograph without a face counts as told apart, or is left out.  [default: different]",
)
@flip_option
@click.option("--dataset", "aligned", type=FOLDER, help="For the validation split: its aligned tree.")
@click.option("--num-pairs", type=int, default=6000, show_default=True, help="Pairs of the validation split.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of these pairs.")
@click.option("--out", type=FOLDER, help="Name of the files without suffix. Default: in the run's folder.")
@device_option
@json_option
@jobs_option("Worker processes and threads.")
@click.pass_context
def evaluate(
    ctx: click.Context,
    checkpoint: str | None,
    embedder: str | None,
    embedder_args: tuple[str, ...],
    protocol: str | None,
    data: Path | None,
    protocol_args: tuple[str, ...],
    pairs: Path | None,
    images: Path | None,
    multi: str,
    no_face: str | None,
    flip: bool,
    aligned: Path | None,
    num_pairs: int,
    seed: int,
    out: Path | None,
    device: str,
    as_json: bool,
    jobs: int,
) -> None:
    """Measure a network by one of the field's protocols.

    CHECKPOINT is a run's name or a .safetensors file; by default the latest run's best. --embedder names another's network
    in its place. Photographs are aligned as the network wants them. Without a protocol: pairs of the validation split,
    and each of its photographs looked for among the others.
    """
    asked = _protocol_asked(protocol, data, protocol_args, pairs, images, no_face)
    from facetrain.pipeline import evaluation
    from facetrain.pipeline.training import device_of

    of_split = {"aligned": "--dataset", "num_pairs": "--num-pairs", "seed": "--seed"}
    given = [
        o for name, o in of_split.items() if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if asked is not None and given:
        raise UserError(f"{given[0]} is of the validation split: leave it out, or the protocol")
    workspace = open_workspace(ctx, create=asked is not None)
    on = device_of(device)
    how: dict[str, Any] = {"flip": flip, "out": out, "device": on, "jobs": jobs}
    if asked is not None:
        from facetrain.pipeline.protocols import open_protocol

        name, where, arguments = asked
        opened = open_protocol(workspace, name, where, arguments)
        if len(opened.photographs) == 0:
            if checkpoint is not None or embedder is not None or flip:
                raise UserError(
                    f"{where} is measured as it is: leave out the checkpoint, --embedder and --flip"
                )
            done = evaluation.evaluate_files(
                name, opened, out=out, device=on, data=where, arguments=arguments
            )
        else:
            subject = subject_of(workspace, checkpoint, embedder, embedder_args, on)
            how |= {"data": where, "arguments": arguments}
            done = evaluation.evaluate(workspace, subject, name, opened, multi=multi, **how)
    else:
        subject = subject_of(workspace, checkpoint, embedder, embedder_args, on)
        done = evaluation.evaluate_split(workspace, aligned, subject, num_pairs=num_pairs, seed=seed, **how)
    if as_json:
        click.echo(done.files[0].read_text(), nl=False)
        return
    show_evaluation(done)


def _protocol_asked(
    protocol: str | None,
    data: Path | None,
    protocol_args: tuple[str, ...],
    pairs: Path | None,
    images: Path | None,
    no_face: str | None,
) -> tuple[str, Path, dict[str, Any]] | None:
    """(name, data, arguments) of the protocol that the options name; None: the validation split."""
    arguments = settings_of("--protocol-arg", protocol_args, once=True)
    if no_face is not None and "no_face" in arguments:
        raise UserError("--no-face and --protocol-arg no_face say the same: leave one out")
    if no_face is not None:
        arguments["no_face"] = no_face
    if pairs is not None or images is not None:
        if data is not None or protocol not in (None, "lfw"):
            raise UserError(
                "--pairs and --images are of lfw: other protocols take --data, the folder with both"
            )
        if pairs is not None and pairs.suffix == ".bin":
            if images is not None:
                raise UserError(f"{pairs} holds its photographs: leave out --images")
            return "lfw", pairs, arguments
        if pairs is None or images is None:
            raise UserError(
                "--pairs and --images go together: the list of pairs, and the folder of its photographs"
            )
        return "lfw", images, {"pairs": str(pairs), "images": str(images), **arguments}
    if protocol in (None, "split"):
        if data is not None or arguments:
            raise UserError("--data and --protocol-arg need a --protocol other than split")
        return None
    assert protocol is not None
    if data is None:
        raise UserError(f"--protocol {protocol} needs --data, the folder with its lists and photographs")
    return protocol, data, arguments


def subject_of(
    workspace: Workspace,
    checkpoint: str | None,
    embedder: str | None,
    embedder_args: tuple[str, ...],
    device: torch.device,
) -> Subject:
    """What is measured, or embeds, as the options say."""
    if embedder is not None and checkpoint is not None:
        raise UserError(f"--embedder {embedder} takes the place of a checkpoint: leave out {checkpoint}")
    if embedder is None and embedder_args:
        raise UserError("--embedder-arg needs --embedder")
    from facetrain.pipeline.subject import open_subject

    arguments = settings_of("--embedder-arg", embedder_args, once=True)
    return open_subject(workspace, checkpoint, embedder, arguments, device)


@click.command()
@click.argument("tree", required=False, type=FOLDER)
@click.option("--out", required=True, type=FOLDER, help="The file: .parquet, .npz, .h5 or .csv.")
@click.option(
    "--checkpoint", metavar="RUN", help="A run or a .safetensors file. Default: the latest run's best."
)
@embedder_option
@embedder_args_option
@click.option("--query", type=FOLDER, help="A second tree, whose embeddings go into an .h5 file as queries.")
@click.option(
    "--part", type=click.Choice(["train", "val"]), help="Without TREE: a part of the dataset, not all of it."
)
@click.option("--dataset", "aligned", type=FOLDER, help="Without TREE: the aligned tree of another dataset.")
@multi_option
@flip_option
@device_option
@jobs_option("Worker processes and threads.")
@click.pass_context
def embed(
    ctx: click.Context,
    tree: Path | None,
    out: Path,
    checkpoint: str | None,
    embedder: str | None,
    embedder_args: tuple[str, ...],
    query: Path | None,
    part: str | None,
    aligned: Path | None,
    multi: str,
    flip: bool,
    device: str,
    jobs: int,
) -> None:
    """Write the embeddings of photographs into a file.

    TREE holds photographs, which are aligned as the network wants them, or crops; without it: the kept photographs of
    the dataset. Interrupted, the same command goes on where it was.
    """
    if tree is not None and (part is not None or aligned is not None):
        raise UserError("--part and --dataset are of a dataset: leave out the folder, or them")
    from facetrain.evaluate.embedding_files import writer_of
    from facetrain.pipeline.embedding import embed_to, source_of
    from facetrain.pipeline.training import device_of

    writer_of(out, queries=query is not None)
    workspace = open_workspace(ctx, create=tree is not None)
    subject = subject_of(workspace, checkpoint, embedder, embedder_args, device_of(device))
    how: dict[str, Any] = {"aligned": aligned, "part": part, "multi": multi, "jobs": jobs}
    sources = [source_of(workspace, tree, subject, **how)]
    if query is not None:
        sources.append(source_of(workspace, query, subject, **how))
    files = embed_to(
        out, subject, sources[0], sources[1] if query is not None else None, flip=flip, jobs=jobs
    )
    for source in sources:
        if source.without_face:
            click.echo(
                f"note: in {source.without_face:,} of {source.without_face + len(source.crops):,} photographs no face was "
                f"found: they have no embedding"
            )
    click.echo(f"embedded {count(sum(len(source.crops) for source in sources), 'photograph')}")
    for file in files:
        click.echo(f"wrote {os.path.relpath(file)}")


def show_evaluation(done: Evaluation) -> None:
    """The figures, then what was compared, then what to know of it, and the files."""
    values = done.measured.values
    rows = [
        (figure.label, format(value, figure.text))
        for name, figure in done.figures.items()
        if (value := values[name]) is not None
    ]
    rows += [
        (label, f"{number:,}" if isinstance(number, int) else number)
        for label, number in done.measured.counts.items()
    ]
    table(rows)
    untold = [figure.label.strip() for name, figure in done.figures.items() if values[name] is None]
    if untold:
        click.echo(f"note: the set is too small to tell {', '.join(untold)}")
    for note in done.notes:
        click.echo(f"note: {note}")
    for file in done.files:
        click.echo(f"wrote {os.path.relpath(file)}")


@click.command("plot-loss")
@click.argument("runs", nargs=-1)
@click.option("--out", type=FOLDER, help="The figure's name. Default: loss.png in the run's folder, or here.")
@click.pass_context
def plot_loss(ctx: click.Context, runs: tuple[str, ...], out: Path | None) -> None:
    """Draw how runs went: loss, validation accuracy, learning rate, triplet statistics. PNG and SVG.

    RUNS are names, or folders of runs, compared in one figure; by default the latest run.
    """
    from facetrain.evaluate.figures import loss_figure
    from facetrain.evaluate.metrics import read_metrics

    folders = list(dict.fromkeys(run_folders(ctx, runs)))
    names = [folder.name for folder in folders]
    labels = [
        name if names.count(name) == 1 else os.path.relpath(folder)
        for name, folder in zip(names, folders, strict=True)
    ]
    curves = {label: read_metrics(folder) for label, folder in zip(labels, folders, strict=True)}
    default = folders[0] / "loss.png" if len(folders) == 1 else Path("loss.png")
    for file in loss_figure(curves, out or default):
        click.echo(f"wrote {os.path.relpath(file)}")


def run_folders(ctx: click.Context, runs: Sequence[str]) -> list[Path]:
    """The folders of these runs; without any, the latest run's."""
    if runs and all(Path(run).is_dir() for run in runs):
        return [Path(run).resolve() for run in runs]
    workspace = open_workspace(ctx)
    there = workspace.runs()
    if not there:
        raise UserError("no run yet: start one with `ft train`")
    by_name = {folder.name: folder for folder in there}
    for run in runs:
        if run not in by_name:
            raise UserError(f"no run '{run}': there are {', '.join(by_name)}")
    return [by_name[run] for run in runs] or [there[-1]]


@click.command()
@dataset_argument
@click.option("--scan", is_flag=True, help="Look for changed photographs in RAW however many there are.")
@json_option
@click.pass_context
def status(ctx: click.Context, aligned: Path | None, scan: bool, as_json: bool) -> None:
    """Show every stage as fresh, stale (and why) or missing, and the runs."""
    from facetrain.pipeline.status import status as find_status

    found = find_status(open_workspace(ctx), aligned, scan=scan)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
        return
    click.echo(f"{found.dataset.raw} → {found.dataset.aligned}")
    colours = {
        "fresh": "green",
        "unchecked": "cyan",
        "finished": "green",
        "stale": "yellow",
        "unfinished": "yellow",
        "missing": "red",
        "diverged": "red",
    }
    lines = [*found.lines, *found.runs]
    width = max(len(line.stage) for line in lines)
    for line in lines:
        if found.runs and line is found.runs[0]:
            click.echo("runs")
        state = click.style(f"{line.state:10}", fg=colours[line.state])
        click.echo(f"  {line.stage:{width}}  {state}  {line.detail}")
