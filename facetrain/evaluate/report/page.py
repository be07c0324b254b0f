"""A report as one HTML page: the template, filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from facetrain import __version__
from facetrain.errors import UserError
from facetrain.evaluate.metrics import Metrics
from facetrain.evaluate.report import charts
from facetrain.evaluate.report.compared import Column, columns_of, compared
from facetrain.evaluate.report.content import Data, Kept, Missing, Report, Run
from facetrain.evaluate.report.drawing import plain, style_of
from facetrain.evaluate.report.panels import column_label, parted, training_panels
from facetrain.evaluate.report.texts import breakable, said, signed
from facetrain.files import replacing
from facetrain.progress import human_duration

HERE = Path(__file__).parent
MADE_BY = b'<meta name="generator" content="facetrain '  # as in page.html.j2


def check_place(out: Path) -> None:
    """UserError where a page cannot be written, or would take the place of something else."""
    if out.is_dir():
        raise UserError(f"{out} is a folder: name a file, such as {out / 'report.html'}")
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{out} does not end in .html or .htm, as the page it would be: name another file")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"{out} cannot be written, since {above} is no folder: name another file")
    if out.exists():
        with open(out, "rb") as file:
            if MADE_BY not in file.read(4096):
                raise UserError(f"{out} is there already and is no report of facetrain: name another file")


def write_page(report: Report, out: Path) -> None:
    """Write the page to ``out``, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    html = page(report)
    with replacing(out) as temp:
        temp.write_text(html, encoding="utf-8", errors="replace")


def page(report: Report) -> str:
    """The page's HTML."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"said": said, "count": "{:,}".format, "breakable": breakable, "signed": signed}
    columns = columns_of(report)
    return environment.get_template("page.html.j2").render(
        report=report,
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        version=__version__,
        columns=columns,
        cards=[_card(column, run) for column, run in zip(columns, report.runs, strict=False)],
        tests=compared(columns),
        curves=training_panels(report.runs, columns),
        settings=_settings(report.runs),
        datasets=[_dataset(key, data, report.runs) for key, data in report.data.items()],
        is_missing=lambda value: isinstance(value, Missing),
        damaged=lambda part: [
            f"{column.name}: {e.damaged[part]}."
            for column in columns
            for e in column.evaluations
            if part in e.damaged
        ],
        map_chart=charts.map_chart,
        style_of=style_of,
    )


@dataclass(frozen=True)
class Card:
    """The first that is said of a run."""

    column: Column
    line: str
    stats: Sequence[tuple[str, str, str]]
    notes: Sequence[str]


def _card(column: Column, run: Run) -> Card:
    settings = {} if isinstance(run.settings, Missing) else run.settings
    line = [settings.get(name, "") for name in ("trainer", "trainer_args.loss", "backbone")]
    line += [f"{settings['embedding_dim']} dimensions"] if "embedding_dim" in settings else []
    stats = []
    metrics = Metrics() if isinstance(run.metrics, Missing) else run.metrics
    stats += _headline(run.kept, metrics, run.validators)
    if not isinstance(run.metrics, Missing):
        stats += _effort(metrics, settings.get("epochs", ""))
    if isinstance(run.facts.get("photographs"), int) and isinstance(run.facts.get("people"), int):
        stats.append((f"photographs of {run.facts['people']:,} people", f"{run.facts['photographs']:,}", ""))
    notes = [run.metrics.why] if isinstance(run.metrics, Missing) else []
    notes += [run.settings.why] if isinstance(run.settings, Missing) else []
    return Card(column, " · ".join(part for part in line if part), stats, [*notes, *run.notes])


def _headline(
    kept: Kept | None, metrics: Metrics, validators: Sequence[Mapping[str, bool]]
) -> list[tuple[str, str, str]]:
    """The figure of the network that is kept, and beside it the best seen where that was of another epoch; by itself where
    nothing is known of the one that is kept."""
    lower = dict(next(iter(columns.items())) for columns in validators)
    lower = (lower or dict.fromkeys(metrics.accuracies[:1], False)) | {"loss": True}
    of_kept = {} if kept is None else kept.metrics
    column = next((name for name in lower if np.isfinite(of_kept.get(name, np.nan))), next(iter(lower)))
    error_column = f"{parted(column)[0]}_standard_error"
    epochs, values, steps, errors = metrics.of_validations(column, "step", error_column)
    best = int((np.argmin if lower[column] else np.argmax)(values)) if len(values) else None
    if kept is None or column not in of_kept:
        if best is None or column == "loss":
            return []
        at = f"epoch {plain(float(epochs[best]))}"
        return [(f"best {_of_what(column)}", f"{values[best]:.4f}", ", ".join([*_spread(errors[best]), at]))]
    value = of_kept[column]
    notes = _spread(of_kept.get(error_column, np.nan))
    epoch = next(iter(epochs[steps == kept.step].tolist()), kept.epoch)
    if best is not None and epochs[best] != epoch and not np.isclose(values[best], value, rtol=1e-6, atol=0):
        notes.append(f"best seen {values[best]:.4f}, epoch {plain(float(epochs[best]))}")
    return [(f"kept: epoch {plain(float(epoch))}, {_of_what(column)}", f"{value:.4f}", "; ".join(notes))]


def _spread(error: float) -> list[str]:
    return [f"± {error:.4f}"] if np.isfinite(error) else []


def _of_what(column: str) -> str:
    """What is ranked by, in words."""
    if column == "loss":
        return "training loss"
    prefix, label = parted(column)[0], column_label(column)
    return f"{'validation' if prefix == 'val' else prefix} {label}"


def _effort(metrics: Metrics, epochs: str) -> list[tuple[str, str, str]]:
    stats = []
    of_epochs = metrics.of_epochs("epoch")[1]
    done = f"{of_epochs.max():g}" if len(of_epochs) else "0"
    stats.append(("epochs" if epochs in ("", done) else f"of {epochs} epochs", done, ""))
    seconds = [
        part
        for columns in (metrics.steps, metrics.epochs)
        for part in [columns.get("seconds")]
        if part is not None
    ]
    known = np.concatenate([np.empty(0), *seconds])
    if np.isfinite(known).any():
        stats.append(("time of training", human_duration(float(np.nanmax(known))), ""))
    return stats


@dataclass(frozen=True)
class Dataset:
    """A dataset with its chart, and the runs that were trained on it."""

    data: Data | Missing
    runs: Sequence[str]
    chart: Markup | None
    text: str


def _dataset(key: str, data: Data | Missing, runs: Sequence[Run]) -> Dataset:
    names = [run.name for run in runs if run.data == key]
    if isinstance(data, Missing) or not len(data.per_person):
        return Dataset(data, names, None, "")
    counts = data.per_person
    least, most = int(counts.min()), int(counts.max())
    text = f"{len(counts):,} people with {least:,} to {most:,} photographs each, median {plain(float(np.median(counts)))}"
    return Dataset(data, names, charts.count_chart(counts, alt=f"Photographs per person. {text}"), text)


@dataclass(frozen=True)
class Setting:
    """A setting of each run; None where a run has it not."""

    name: str
    values: Sequence[str | None]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


def _settings(runs: Sequence[Run]) -> list[Setting]:
    """Those in which the runs differ first."""
    tables = [{} if isinstance(run.settings, Missing) else run.settings for run in runs]
    names = list(dict.fromkeys(chain.from_iterable(tables)))
    settings = [Setting(name, [table.get(name) for table in tables]) for name in names]
    return sorted(settings, key=lambda setting: not setting.differs)
