"""The metrics that a training run has written: `metrics.csv` in its folder, one row for each logged step or
epoch."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import UserError

FILE_NAME = "metrics.csv"
COLUMNS = (
    "epoch",  # 1.25 = a quarter into the second epoch; in epoch rows the number of epochs finished
    "step",
    "images",  # seen so far
    "seconds",
    "loss",
    "lr",
    "active_fraction",  # of anchor-positive pairs, those with a negative that violates the margin
    "distance_positive",  # mean squared distances
    "distance_negative",
    "embedding_std",
    "similarity_positive",  # of pair losses: mean cosines
    "similarity_negative",
    "train_accuracy",  # of heads: photographs whose own class has the largest cosine
    "cos_target",  # of heads: mean cosine to the own class
    "val_accuracy",
    "val_standard_error",
    "val_auc",
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Metrics:
    """Columns by name, float64, NaN where a field was empty: ``steps`` [logged steps], ``epochs`` [epochs] and
    ``within`` [validations within an epoch]."""

    steps: Mapping[str, Floats] = field(default_factory=dict)
    epochs: Mapping[str, Floats] = field(default_factory=dict)
    within: Mapping[str, Floats] = field(default_factory=dict)

    def of_steps(self, column: str, *beside: str) -> tuple[Floats, ...]:
        """(epoch, value, values of the columns ``beside``…) of the logged steps that have the value; beside
        it there may be NaN."""
        return _rows_with(self.steps, column, beside)

    def of_epochs(self, column: str, *beside: str) -> tuple[Floats, ...]:
        """The same of the epochs; the epoch is the number of epochs finished."""
        return _rows_with(self.epochs, column, beside)

    def of_validations(self, column: str, *beside: str) -> tuple[Floats, ...]:
        """The same of all that was validated, after epochs and within them, in order."""
        after, within = (_rows_with(rows, column, beside) for rows in (self.epochs, self.within))
        order = np.argsort(np.concatenate([after[0], within[0]]), kind="stable")
        return tuple(np.concatenate(both)[order] for both in zip(after, within, strict=True))

    @property
    def accuracies(self) -> list[str]:
        """The columns of accuracies that validators measured, in the order of the file."""
        columns = [*self.epochs, *self.within]
        return [
            name for name in dict.fromkeys(columns) if name.endswith("_accuracy") and name != "train_accuracy"
        ]

    def last(self, column: str) -> float | None:
        """The last value of a column, of epochs if they have it, else of steps."""
        for _, values in (self.of_epochs(column), self.of_steps(column)):
            if values.size:
                return float(values[-1])
        return None


def read_metrics(run_folder: Path) -> Metrics:
    """Read the metrics of a run, one still running included: a line not yet ended is left out.

    A run that was killed and resumed has logged some steps twice: of rows that the run went back before, the
    later ones count. Columns that are not numbers are left out. Raises UserError when the file is missing,
    has no rows, or is no such file.
    """
    from pyarrow import ArrowInvalid, csv, types

    path = Path(run_folder) / FILE_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: name the folder of a run that has started to train") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the metrics: {error.strerror}") from None
    data = data[: data.rfind(b"\n") + 1]
    if data.count(b"\n") < 2:
        raise UserError(f"{path}: no metrics yet: the run has not logged a step")
    try:
        table = csv.read_csv(
            io.BytesIO(data),
            convert_options=csv.ConvertOptions(
                column_types={"kind": "string"} | dict.fromkeys(COLUMNS, "float64")
            ),
        )
    except ArrowInvalid as error:
        raise UserError(f"{path}: not a metrics file: {str(error).splitlines()[0]}") from None
    absent = {"kind", "epoch", "step"} - set(table.column_names)
    if absent:
        raise UserError(f"{path}: not a metrics file: it has no column {min(absent)!r}")

    kind = np.asarray(table["kind"].to_numpy(zero_copy_only=False))
    columns = {
        name: table[name].cast("float64").to_numpy(zero_copy_only=False)
        for name in table.column_names
        if types.is_integer(table[name].type) or types.is_floating(table[name].type)
    }
    undone = columns["step"] > _lowest_later(columns["step"])  # the run has gone back to before this row
    current = ~undone
    steps = {name: values[current & (kind == "step")] for name, values in columns.items()}
    epochs = {name: values[current & (kind == "epoch")] for name, values in columns.items()}
    within = {name: values[current & (kind == "validation")] for name, values in columns.items()}
    return Metrics(
        _last_of_each(steps, by="step"), _last_of_each(epochs, by="epoch"), _last_of_each(within, by="step")
    )


def _lowest_later(counter: Floats) -> Floats:
    """The lowest number in the rows after each row."""
    lowest = np.fmin.accumulate(counter[::-1])[::-1]
    return np.append(lowest[1:], np.inf)


def _last_of_each(columns: dict[str, Floats], *, by: str) -> dict[str, Floats]:
    keep = ~(columns[by] >= _lowest_later(columns[by]))
    return {name: values[keep] for name, values in columns.items()}


def _rows_with(columns: Mapping[str, Floats], column: str, beside: tuple[str, ...]) -> tuple[Floats, ...]:
    if not {"epoch", column} <= columns.keys():
        return tuple(np.empty(0) for _ in range(2 + len(beside)))
    epoch, value = columns["epoch"], columns[column]
    keep = np.isfinite(epoch) & np.isfinite(value)
    others = (columns.get(name, np.full(len(epoch), np.nan)) for name in beside)
    return tuple(values[keep] for values in (epoch, value, *others))
