"""A report as one HTML page: the template, filled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from facetrain import __version__
from facetrain.evaluate.metrics import Metrics
from facetrain.evaluate.report import charts
from facetrain.evaluate.report.compared import Column, columns_of, compared
from facetrain.evaluate.report.content import Data, Missing, Report, Run
from facetrain.evaluate.report.drawing import style_of
from facetrain.evaluate.report.panels import training_panels
from facetrain.evaluate.report.texts import breakable, said, signed
from facetrain.files import replacing
from facetrain.progress import human_duration

HERE = Path(__file__).parent


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
    if not isinstance(run.metrics, Missing):
        stats += _measured_stats(run.metrics, settings.get("epochs", ""))
    if isinstance(run.facts.get("photographs"), int) and isinstance(run.facts.get("people"), int):
        stats.append((f"photographs of {run.facts['people']:,} people", f"{run.facts['photographs']:,}", ""))
    notes = [run.metrics.why] if isinstance(run.metrics, Missing) else []
    notes += [run.settings.why] if isinstance(run.settings, Missing) else []
    return Card(column, " · ".join(part for part in line if part), stats, [*notes, *run.notes])


def _measured_stats(metrics: Metrics, epochs: str) -> list[tuple[str, str, str]]:
    stats = []
    for column in metrics.accuracies[:1]:
        prefix = column.removesuffix("_accuracy")
        epoch, value, error = metrics.of_validations(column, f"{prefix}_standard_error")
        if len(epoch):
            best = int(np.argmax(value))
            spread = f"± {error[best]:.4f}, " if np.isfinite(error[best]) else ""
            what = "best validation accuracy" if prefix == "val" else f"best accuracy, {prefix}"
            stats.append((what, f"{value[best]:.4f}", f"{spread}epoch {epoch[best]:.3g}"))
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
    text = (
        f"{len(counts):,} people with {int(counts.min()):,} to {int(counts.max()):,} photographs each, "
        f"half of them with {int(np.median(counts)):,} or fewer"
    )
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
