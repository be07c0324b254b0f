"""The command `ft`: parse, call one function of the pipeline, show the result. Nothing heavy is imported at start."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from facetrain import __version__
from facetrain.errors import FacetrainError, UserError
from facetrain.image_spec import LANDMARK_SETS

if TYPE_CHECKING:
    from facetrain.pipeline.data import People
    from facetrain.workspace import Workspace

FOLDER = click.Path(path_type=Path)


class Group(click.Group):
    """Lists commands in the order of the pipeline, and turns known errors into one line and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "ft"
            fail(f"{error.format_message().rstrip('.')}: `{command} --help` says how", 2)
        except KeyboardInterrupt:
            fail("interrupted: nothing is lost, run the same command again to go on", 130)
        except UserError as error:
            fail(str(error), 2)
        except FacetrainError as error:
            fail(str(error), 1)
        except BrokenPipeError:
            os._exit(141)  # the reader of our output has gone
        except OSError as error:
            if error.errno is None or error.filename is None:
                raise
            fail(f"{error.filename}: {error.strerror}", 1)


def fail(message: str, code: int) -> None:
    """One line on stderr, then the end."""
    line = " ".join(message.split())
    click.echo(click.style("Error: ", fg="red", bold=True) + line, err=True)
    raise click.exceptions.Exit(code)


def count(number: int, noun: str) -> str:
    """``1 shard``, ``2 shards``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


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


dataset_argument = click.argument("aligned", required=False, type=FOLDER)
dry_run_option = click.option("--dry-run", is_flag=True, help="Only say what would change.")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="facetrain")
@click.option(
    "-C",
    "workspace",
    type=FOLDER,
    metavar="DIR",
    help="The workspace's folder (where .ft/ lies). Default: FT_WORKSPACE, else found upwards from here.",
)
@click.pass_context
def main(ctx: click.Context, workspace: Path | None) -> None:
    """From a folder of photographs of people to a trained, measured face-embedding network.

    \b
        ft align raw/ aligned/ --size 96 -j 8
        ft prune --min 10
        ft split 0.1
        ft train
        ft plot-loss

    RAW holds one folder of photographs per person. Nothing in it is ever changed.
    """
    ctx.obj = workspace


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


# -- data --------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("out", type=FOLDER)
@click.option("--identities", type=int, default=100, show_default=True, help="People.")
@click.option("--images", type=int, default=20, show_default=True, help="Photographs of each person.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, other people.")
@click.option(
    "--size", "size_px", type=int, default=250, show_default=True, help="Side of a photograph in pixels."
)
@jobs_option("Worker processes.")
def synth(out: Path, identities: int, images: int, seed: int, size_px: int, jobs: int) -> None:
    """Draw synthetic photographs of people into OUT, for trying things out.

    Pose, light, expression, background, blur and JPEG quality vary within a person. The same numbers give the same
    bytes; more people or more photographs leave those that are there as they are.
    """
    from facetrain.datasets.synth import synthesise
    from facetrain.progress import Progress

    with Progress("drawing", "photographs") as bar:
        bar.begin(max(identities, 0) * max(images, 0))
        report = synthesise(
            out,
            identities=identities,
            images=images,
            seed=seed,
            size_px=size_px,
            jobs=jobs,
            on_progress=bar.advance,
        )
    click.echo(
        f"{report.photographs:,} photographs of {report.people:,} people in {out} "
        f"({report.drawn:,} drawn now, {report.seconds:.1f} s)"
    )


@main.command()
@click.argument("raw", type=FOLDER)
@click.argument("aligned", type=FOLDER)
@click.option("--size", "size_px", type=int, default=96, show_default=True, help="Side of a crop in pixels.")
@click.option(
    "--landmarks",
    default="five-point",
    show_default=True,
    metavar="SET",
    help=f"Which landmarks are put in place: {' | '.join(LANDMARK_SETS)}. The last two are OpenFace's (exact affine), "
    "the first is a similarity transform onto insightface's 112-pixel template, scaled (with --predictor 5, which finds "
    "no mouth, onto the same framing by eye corners and nose).",
)
@click.option(
    "--predictor",
    type=click.Choice(["5", "68"]),
    help="dlib's landmark model. Default: 5 where the landmark set allows it, else 68, whose training data "
    "exclude commercial use (the 5-point model's do not).",
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
    "--redo", is_flag=True, help="Align every photograph again; needed to change the settings of ALIGNED."
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
    multi: str,
    image_format: str,
    quality: int,
    redo: bool,
    jobs: int,
) -> None:
    """Find the face in every photograph under RAW and write an aligned crop of it under ALIGNED.

    A person's identity is the folder right under RAW. Run again, only what is new or changed is looked at. Every
    photograph, rejected ones with the reason, becomes a row of the workspace's index.
    """
    from facetrain.image_spec import ImageSpec
    from facetrain.index import ALIGNED, STATUSES
    from facetrain.pipeline import data
    from facetrain.preprocess.aligner import AlignSettings
    from facetrain.progress import human_duration

    spec = ImageSpec(
        size_px=size_px,
        landmarks=landmarks,
        predictor=int(predictor) if predictor else 68 if landmarks == "inner-eyes-bottom-lip" else 5,
        format=image_format,
        quality=quality if image_format == "jpg" else 0,
    )
    settings = AlignSettings(spec, multi)
    report = data.align(open_workspace(ctx, create=True), raw, aligned, settings, jobs=jobs, redo=redo)
    total = sum(report.counts.values())
    rows = [
        (STATUSES[status], f"{count:,}", f"{count / total:.2%}")
        for status, count in report.counts.items()
        if count or status in (ALIGNED, "no-face", "several-faces", "unreadable")
    ]
    table(rows)
    rate = report.looked_at / report.seconds
    done = f"{report.looked_at:,} looked at ({rate:,.0f}/s), " if report.looked_at else "nothing to do, "
    click.echo(
        f"{total:,} photographs: {done}{report.unchanged:,} as before; {human_duration(report.seconds)}"
    )
    if report.ignored:
        kinds = ", ".join(
            f"{n:,} {suffix or 'without a suffix'}" for suffix, n in sorted(report.ignored.items())
        )
        click.echo(f"files that are no photographs, passed over: {kinds}")
    if report.disappeared:
        click.echo(
            f"no longer in {raw}: {count(report.disappeared, 'photograph')}, marked missing and not used any more"
        )
    if total > report.counts[ALIGNED]:
        click.echo(f"those not aligned, and why: {os.path.relpath(report.rejected_list)}")


def people_table(rows: dict[str, People]) -> None:
    table(
        [
            ("", "people", "photographs"),
            *((name, f"{p.people:,}", f"{p.photographs:,}") for name, p in rows.items()),
        ]
    )


@main.command()
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


@main.command()
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


@main.command()
@dataset_argument
@click.option("--verify", is_flag=True, help="Hash every crop and every shard; make damaged shards again.")
@jobs_option("Threads.")
@click.pass_context
def cache(ctx: click.Context, aligned: Path | None, verify: bool, jobs: int) -> None:
    """Decode the kept crops into Arrow shards (`ft train` does it when needed).

    Only what is new or changed is decoded. Any Arrow reader opens the shards in .ft/cache/.
    """
    from facetrain.pipeline import data

    report = data.cache(open_workspace(ctx), aligned, threads=jobs, verify=verify)
    if report.shards_damaged:
        click.echo(f"damaged, and made again: {count(report.shards_damaged, 'shard')}")
    click.echo(
        f"{count(report.images, 'crop')} in {count(report.shards_written + report.shards_kept, 'shard')}, "
        f"{report.bytes / 1e6:,.0f} MB: {report.decoded:,} decoded, {report.copied:,} copied, "
        f"{count(report.shards_written, 'shard')} written; "
        f"{report.seconds:.1f} s"
    )
    if report.undecodable:
        click.echo(
            f"{report.undecodable:,} crops cannot be decoded and are left out: {os.path.relpath(report.undecodable_list)}"
        )
    if report.absent:
        click.echo(f"{report.absent:,} crops are gone from the aligned tree: `ft align` makes them again")


@main.command("export-tree")
@click.argument("out", type=FOLDER)
@dataset_argument
@click.pass_context
def export_tree(ctx: click.Context, out: Path, aligned: Path | None) -> None:
    """Lay out OUT/train/<person>/ and OUT/val/<person>/ as links to the crops, for other tools."""
    from facetrain.pipeline import data

    counts = data.export_tree(open_workspace(ctx), aligned, out)
    click.echo(f"{counts['train']:,} training and {counts['val']:,} validation crops linked in {out}")


# -- training ----------------------------------------------------------------------------------------------------


@main.command()
@dataset_argument
@click.option("--name", help="The run's name. Default: the trainer's and a number.")
@click.option(
    "--config", "config_file", type=FOLDER, help="Settings from a TOML or JSON file; options win over it."
)
@click.option("--trainer", help="What is trained: a name or module:attribute.  [default: triplet]")
@click.option("--backbone", help="The network: a name or module:attribute.  [default: iresnet.small]")
@click.option("--embedding-dim", type=int, help="[default: 128]")
@click.option("--epochs", type=int, help="Passes over the training photographs.  [default: 60]")
@click.option("--batches-per-epoch", type=int, help="Default: as many as show about every photograph.")
@click.option("--people", type=int, help="P: people in a batch.  [default: 32]")
@click.option(
    "--images",
    type=int,
    help="K: photographs of each of them; people with fewer make room for more people.  [default: 8]",
)
@click.option("--margin", type=float, help="Of squared distances between unit embeddings.  [default: 0.2]")
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
    """The configuration of a file, with the options laid over it."""
    from facetrain.config import load_config, train_config

    values = load_config(options["config_file"]) if options["config_file"] else {}
    for setting in options["settings"]:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write NAME=VALUE")
        target = values
        *folders, last = name.split(".")
        for folder in folders:
            target = target.setdefault(folder, {})
            if not isinstance(target, dict):
                raise UserError(f"--set {setting}: '{folder}' is a value, and holds no settings")
        try:
            target[last] = json.loads(value)
        except ValueError:
            target[last] = value
    names = ("trainer", "backbone", "embedding_dim", "epochs", "batches_per_epoch", "lr", "augment", "seed")
    values |= {name: options[name] for name in names if options[name] is not None}
    trainer_names = ("people", "images", "margin", "extra_negatives")
    trainer_args = {name: options[name] for name in trainer_names if options[name] is not None}
    if trainer_args:
        given = values.get("trainer_args", {})
        if not isinstance(given, dict):
            raise UserError(f"trainer_args = {given!r}: it holds settings, name and value of each")
        values["trainer_args"] = given | trainer_args
    return train_config(values)


# -- measuring ---------------------------------------------------------------------------------------------------


@main.command()
@click.argument("checkpoint", required=False)
@click.option("--pairs", type=FOLDER, help="A pairs file in LFW's format. Without it: the validation split.")
@click.option("--images", type=FOLDER, help="The photographs that the pairs name, raw or aligned.")
@click.option(
    "--multi",
    default="centre",
    show_default=True,
    metavar="RULE",
    help="Of several faces in a raw photograph: the largest, or the one nearest the centre.",
)
@click.option(
    "--no-face",
    type=click.Choice(["different", "drop"]),
    default="different",
    show_default=True,
    help="A pair with a photograph without a face counts as told apart, or is left out.",
)
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
    pairs: Path | None,
    images: Path | None,
    multi: str,
    no_face: str,
    aligned: Path | None,
    num_pairs: int,
    seed: int,
    out: Path | None,
    device: str,
    as_json: bool,
    jobs: int,
) -> None:
    """Measure verification: are two photographs of the same person?

    CHECKPOINT is a run's name or a .safetensors file; by default the latest run's best. With --pairs and --images:
    LFW's protocol, the threshold of each fold chosen on the others; raw photographs are aligned as the checkpoint's
    were.
    """
    if (pairs is None) != (images is None):
        raise UserError(
            "--pairs and --images go together: the list of pairs, and the folder of its photographs"
        )
    from facetrain.pipeline import evaluation
    from facetrain.pipeline.training import device_of

    workspace = open_workspace(ctx, create=pairs is not None)
    how: dict[str, Any] = {"out": out, "device": device_of(device), "jobs": jobs}
    which = evaluation.find_checkpoint(workspace, checkpoint)
    if pairs is not None and images is not None:
        done = evaluation.evaluate_pairs(workspace, which, pairs, images, multi=multi, no_face=no_face, **how)
    else:
        done = evaluation.evaluate_split(workspace, aligned, which, num_pairs=num_pairs, seed=seed, **how)
    if as_json:
        click.echo(done.files[0].read_text(), nl=False)
        return
    show_evaluation(done)


def show_evaluation(done: Any) -> None:
    result = done.result
    rows = [("accuracy, mean of folds", f"{result.accuracy_mean:.4f}")]
    if result.accuracy_standard_error is not None:
        rows.append(("  standard error", f"{result.accuracy_standard_error:.4f}"))
        rows.append(("  population deviation", f"{result.accuracy_population_deviation:.4f}"))
    rows += [("AUC", f"{result.auc:.4f}"), ("EER", f"{result.eer:.4f}")]
    for far, tar in result.tar_at_far.items():
        rows.append((f"TAR at FAR {far:g}", f"{tar:.4f}" if tar is not None else "too few pairs"))
    folds = len(result.accuracies)
    rows.append(
        (
            f"pairs, same / different ({folds} fold{'s' * (folds > 1)})",
            f"{result.same_pairs:,} / {result.different_pairs:,}",
        )
    )
    table(rows)
    for note in done.notes:
        click.echo(f"note: {note}")
    for file in done.files:
        click.echo(f"wrote {os.path.relpath(file)}")


@main.command("plot-loss")
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


@main.command()
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
        "finished": "green",
        "stale": "yellow",
        "unfinished": "yellow",
        "missing": "red",
    }
    lines = [*found.lines, *found.runs]
    width = max(len(line.stage) for line in lines)
    for line in lines:
        if found.runs and line is found.runs[0]:
            click.echo("runs")
        state = click.style(f"{line.state:10}", fg=colours[line.state])
        click.echo(f"  {line.stage:{width}}  {state}  {line.detail}")


if __name__ == "__main__":
    sys.exit(main())
