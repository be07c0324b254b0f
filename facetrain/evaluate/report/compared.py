"""What was measured alike, side by side: the table of figures, ROC and DET, histograms of scores."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from markupsafe import Markup

from facetrain.evaluate.report import charts
from facetrain.evaluate.report.content import Evaluation, Report
from facetrain.evaluate.report.texts import figure_text
from facetrain.evaluate.verification import auc, eer, roc

OPTIONS = re.compile(r"(-\w+=.*|-flip)$")  # at the end of a file's name; they stand in the title in words
SPREAD = ("standard_error", "population_deviation")  # of a measurement, and no merit of a network


@dataclass(frozen=True)
class Column:
    """A run, or another embedder. number: decides on its colour and dashes."""

    name: str
    number: int
    evaluations: Sequence[Evaluation]


def columns_of(report: Report) -> list[Column]:
    """The runs, then the others."""
    every = [(run.name, run.evaluations) for run in report.runs] + list(report.others.items())
    return [Column(name, number, evaluations) for number, (name, evaluations) in enumerate(every)]


@dataclass(frozen=True)
class Row:
    """A figure of a test: a cell for each column, (text, whether it is the best)."""

    label: str
    lower_is_better: bool
    cells: Sequence[tuple[str, bool]]


@dataclass(frozen=True)
class Compared:
    """What was measured alike. found: None for a column of which it was not measured. untold: figures for which there is
    too little in any of them."""

    title: str
    found: Sequence[tuple[Column, Evaluation | None]]
    rows: Sequence[Row]
    untold: Sequence[str]
    counts: Sequence[Row]
    notes: Sequence[tuple[str, str]]
    curves: Sequence[tuple[Column, str]]
    roc: Markup | None
    det: Markup | None
    histograms: Sequence[tuple[Column, Markup, str]]


def compared(columns: Sequence[Column]) -> list[Compared]:
    """Side by side what was measured of the same protocol with the same options, of the same number of photographs, the
    same ones of several faces and of mirror images or not; where a network was measured twice so, only those of the same
    file name. What an older version wrote without options counts as measured with none."""
    every = [(column, evaluation) for column in columns for evaluation in column.evaluations]
    times = Counter((column.number, evaluation.test) for column, evaluation in every)
    twice = {test for (_, test), count in times.items() if count > 1}
    grouped: dict[Any, dict[int, Evaluation]] = {}
    for column, evaluation in every:
        stem = evaluation.file.stem if evaluation.test in twice else None
        grouped.setdefault((evaluation.test, stem), {})[column.number] = evaluation
    return [
        _compared(_title(list(group.values()), stem), columns, group) for (_, stem), group in grouped.items()
    ]


def _title(group: Sequence[Evaluation], stem: str | None) -> str:
    """``stem``: what alone tells it from another group."""
    evaluation = group[0]
    title = "Validation split" if evaluation.protocol == "split" else evaluation.protocol
    sets = {OPTIONS.sub("", e.file.stem) for e in group} if stem is None else {stem}
    (name,) = sets if len(sets) == 1 else (evaluation.protocol,)
    if name.lower() not in (evaluation.protocol.lower(), "validation"):
        title += f" · {name}"
    title += "".join(f" · {name}={_option(value)}" for name, value in evaluation.options.items())
    return title + (" · with mirror images" if evaluation.flip else "")


def _option(value: Any) -> str:
    """As it is written after `--protocol-arg`."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _compared(title: str, columns: Sequence[Column], group: Mapping[int, Evaluation]) -> Compared:
    found = [(column, group.get(column.number)) for column in columns]
    there = [(column, evaluation) for column, evaluation in found if evaluation is not None]
    names = list(dict.fromkeys(chain.from_iterable(evaluation.labels for _, evaluation in there)))
    counted = list(dict.fromkeys(chain.from_iterable(evaluation.counts for _, evaluation in there)))
    counts = [
        Row(what, False, [("–" if e is None else e.counts.get(what, "–"), False) for _, e in found])
        for what in counted
    ]
    if any(evaluation.epoch is not None for _, evaluation in there):
        epochs = ["–" if e is None or e.epoch is None else str(e.epoch) for _, e in found]
        counts.append(Row("epoch of the network", False, [(epoch, False) for epoch in epochs]))
    curves = [
        charts.Curve(column.name, column.number, *roc(e.scores, e.same)[:2])
        for column, e in there
        if e.scores is not None and e.same is not None and e.same.any() and not e.same.all()
    ]
    by_number = {
        curve.number: f"AUC {auc(curve.far, curve.tar):.4f}, EER {eer(curve.far, curve.tar):.2%}"
        for curve in curves
    }
    alt = f"of {title}: " + "; ".join(f"{curve.name}, {by_number[curve.number]}" for curve in curves)
    return Compared(
        title=title,
        found=found,
        rows=[_row(name, found) for name in names if not _untold(name, there)],
        untold=[
            next(e.labels[name] for _, e in there if name in e.labels)
            for name in names
            if _untold(name, there)
        ],
        counts=counts,
        notes=_notes(there),
        curves=[(column, by_number[column.number]) for column, _ in there if column.number in by_number],
        roc=charts.roc_chart(curves, alt=f"ROC curves {alt}") if curves else None,
        det=charts.det_chart(curves, alt=f"DET curves {alt}") if curves else None,
        histograms=[_histogram(column, e) for column, e in there if column.number in by_number],
    )


def _notes(there: Sequence[tuple[Column, Evaluation]]) -> list[tuple[str, str]]:
    """(whose, what), what is said of several once."""
    whose: dict[str, list[str]] = {}
    for column, evaluation in there:
        for note in evaluation.notes:
            whose.setdefault(note, []).append(column.name)
    return [(", ".join(names), note) for note, names in whose.items()]


def _untold(name: str, there: Sequence[tuple[Column, Evaluation]]) -> bool:
    return all(evaluation.values.get(name) is None for _, evaluation in there)


def _row(name: str, found: Sequence[tuple[Column, Evaluation | None]]) -> Row:
    first = next(e for _, e in found if e is not None and name in e.labels)
    lower = any(e is not None and name in e.lower_is_better for _, e in found)
    values = [None if e is None else e.values.get(name) for _, e in found]
    known = [value for value in values if value is not None]
    best = (min if lower else max)(known) if len(known) > 1 and name not in SPREAD else None
    label = first.labels[name]
    return Row(
        label[0].upper() + label[1:],
        lower and name not in SPREAD,
        [(figure_text(value), value is not None and value == best) for value in values],
    )


def _histogram(column: Column, evaluation: Evaluation) -> tuple[Column, Markup, str]:
    scores, same, threshold = evaluation.scores, evaluation.same, evaluation.threshold
    assert scores is not None and same is not None
    text = []
    if threshold is not None:
        wrong_same, wrong_different = (
            int((scores[same] < threshold).sum()),
            int((scores[~same] >= threshold).sum()),
        )
        text.append(
            f"At the threshold {threshold:.3f}, {wrong_same:,} of {int(same.sum()):,} pairs of one person are taken for two, "
            f"and {wrong_different:,} of {int((~same).sum()):,} pairs of two for one."
        )
    refused = int((~np.isfinite(scores)).sum())
    if refused:
        text.append(f"{refused:,} pairs were refused, and are not drawn.")
    alt = f"Score histograms of {column.name}. {' '.join(text)}"
    return column, charts.score_histogram(scores, same, threshold, alt=alt), " ".join(text)
