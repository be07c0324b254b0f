"""How training went: a chart of each thing that was logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from facetrain.evaluate.metrics import Floats, Metrics
from facetrain.evaluate.protocols.pairwise import FIGURES
from facetrain.evaluate.report import charts
from facetrain.evaluate.report.compared import Column
from facetrain.evaluate.report.content import Missing, Run
from facetrain.evaluate.report.drawing import plain

FEW_RUNS = 4  # of more, faint lines are a tangle
OFTEN = 1.5  # rows of steps in an epoch, from which on they tell more than its mean


@dataclass(frozen=True)
class Panel:
    """A chart of what was logged; ``text`` says in words what is most worth knowing. faint: there are faint lines in it."""

    title: str
    text: str
    chart: Markup
    faint: bool = False


def training_panels(runs: Sequence[Run], columns: Sequence[Column]) -> list[Panel]:
    """Loss, validation, learning rate and what losses have to say; ``columns``: those of the runs first."""
    logged = [
        (column, run.metrics)
        for column, run in zip(columns, runs, strict=False)
        if not isinstance(run.metrics, Missing)
    ]
    panels = [
        _panel("Training loss", "loss", "loss", logged),
        *(_validation_panel(name, lower, logged) for name, lower in _validation_columns(runs).items()),
        _panel("Learning rate", "lr", "lr", logged),
        _panel("Pairs that still teach", "active_fraction", "active fraction", logged),
        _panel("Training people recognised", "train_accuracy", "share", logged),
    ]
    return [panel for panel in panels if panel is not None]


def _validation_columns(runs: Sequence[Run]) -> dict[str, bool]:
    """The first figure of each validator, by which checkpoints are ranked, and beside an accuracy its AUC → whether lower
    is better."""
    found: dict[str, bool] = {}
    for run in runs:
        for columns in run.validators:
            first = next(iter(columns))
            prefix, figure = parted(first)
            beside = f"{prefix}_auc" if figure == "accuracy" else ""
            found |= {name: columns[name] for name in (first, beside) if name in columns}
    return found


def _panel(title: str, name: str, label: str, logged: Sequence[tuple[Column, Metrics]]) -> Panel | None:
    """What was logged with every step, from zero; None where no run has it."""
    lines, text = [], []
    for run, metrics in logged:
        (steps, values), (epochs, means) = metrics.of_steps(name), metrics.of_epochs(name)
        often = len(steps) > OFTEN * np.concatenate([steps, epochs]).max(initial=0)
        if name != "lr":  # a row has the mean since the row before, which stands at the middle
            steps, epochs = middles(steps), np.maximum(epochs - 0.5, 0)
        if not len(epochs) or (name == "lr" and len(steps)):  # of the rate, an epoch's end says little
            epochs, means, often = steps, values, False
        if not len(epochs):
            continue
        if often and len(logged) <= FEW_RUNS:
            lines.append(charts.Line(run.name, run.number, steps, values, faint=True))
        lines.append(charts.Line(run.name, run.number, epochs, means))
        most = (
            f"peak {plain(float(means.max()))}" if name == "lr" else f"{plain(float(means[-1]))} at the end"
        )
        text.append(f"{run.name}: {most}" if len(logged) > 1 else most)
    if not lines:
        return None
    log = name == "loss" and far_apart([line.y for line in lines if not line.faint])
    return _drawn(title, label, lines, text, from_zero=True, log=log)


def parted(column: str) -> tuple[str, str]:
    """(what it begins with, figure) of a validator's column; of a plug-in's the first may have an underscore."""
    if column.endswith("_accuracy"):
        return column.removesuffix("_accuracy"), "accuracy"
    prefix, _, figure = column.partition("_")
    return prefix, figure


def column_label(column: str) -> str:
    """What a column of a validator is of, in words."""
    figure = parted(column)[1]
    known = FIGURES.get(figure)
    return "accuracy" if figure == "accuracy" else known.label if known else figure.replace("_", " ")


def _validation_panel(name: str, lower: bool, logged: Sequence[tuple[Column, Metrics]]) -> Panel | None:
    """What a validator measured, with a band of one standard error where it says so, and a ring at the best."""
    prefix, figure = parted(name)
    label = column_label(name)
    lines, text = [], []
    for run, metrics in logged:
        epochs, values, error = metrics.of_validations(name, f"{prefix}_standard_error")
        if not len(epochs):
            continue
        best = int((np.argmin if lower else np.argmax)(values))
        band = figure == "accuracy" and len(logged) <= FEW_RUNS
        low, high = (values - error, values + error) if band else (None, None)
        lines.append(charts.Line(run.name, run.number, epochs, values, low, high, marked=best))
        said_best = f"best {values[best]:.4f}, epoch {plain(float(epochs[best]))}"
        text.append(f"{run.name}: {said_best}" if len(logged) > 1 else said_best)
    title = f"Validation {label}" if prefix == "val" else f"{prefix}, {label}"
    return _drawn(title, label, lines, text) if lines else None


def _drawn(
    title: str,
    label: str,
    lines: Sequence[charts.Line],
    text: Sequence[str],
    *,
    from_zero: bool = False,
    log: bool = False,
) -> Panel:
    words = "; ".join(text)
    alt = f"{title} by epoch. {words}"
    chart = charts.line_chart(lines, alt=alt, x_label="epoch", y_label=label, from_zero=from_zero, log=log)
    return Panel(title, words, chart, any(line.faint for line in lines))


def middles(ends: Floats) -> Floats:
    """The middles of intervals that follow one another, the first from 0."""
    return (np.concatenate([[0.0], ends[:-1]]) + ends) / 2 if len(ends) else ends


def far_apart(values: Sequence[Floats]) -> bool:
    """Losses of different kinds, of which one axis from zero would show one alone."""
    means = [float(value.mean()) for value in values]
    return min(float(value.min()) for value in values) > 0 and max(means) > 20 * min(means)
