"""metrics.csv and TensorBoard: the same numbers in both, and after a resume as if there had been no interruption."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from facetrain.files import replacing

BASE_COLUMNS = ["kind", "epoch", "step", "images", "seconds", "loss", "lr"]


class MetricsLog:
    """Rows of ``kind`` "step" (means since the last one), "epoch" (means of the epoch, and what was measured after it) and
    "validation" (what was measured within an epoch).

    ``resume_step``: rows of later steps, which a killed run had written before it was resumed, are taken out.
    """

    def __init__(self, folder: Path, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "metrics.csv"
        self.columns = list(BASE_COLUMNS)
        rows: list[dict[str, str]] = []
        if resume_step and self.path.is_file():
            with open(self.path, newline="") as file:
                reader = csv.DictReader(file)
                self.columns = list(reader.fieldnames or BASE_COLUMNS)
                rows = [row for row in reader if row["step"] and int(row["step"]) <= resume_step]
        self._rewrite(rows)
        self._board = SummaryWriter(folder / "tensorboard", purge_step=resume_step + 1)

    def write(self, kind: str, values: dict[str, float]) -> None:
        """Append a row; ``values`` holds epoch, step, images and seconds, and whatever was measured."""
        new = [name for name in values if name not in self.columns]
        if new:
            with open(self.path, newline="") as file:
                rows = list(csv.DictReader(file))
            self.columns += new
            self._rewrite(rows)
        with open(self.path, "a", newline="") as file:
            row = {"kind": kind} | {name: _text(value) for name, value in values.items()}
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)
        for name, value in values.items():
            if name not in ("epoch", "step", "images", "seconds"):
                self._board.add_scalar(f"{kind}/{name}", value, int(values["step"]))

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with replacing(self.path) as temp, open(temp, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def close(self) -> None:
        """Write what TensorBoard still holds."""
        self._board.close()


def _text(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return "" if math.isnan(value) else f"{value:.7g}"
