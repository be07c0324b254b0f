"""What `ft evaluate` has left: NAME.json, and beside it every trial and pictures of the hardest (`trial_files`)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from facetrain.errors import UserError
from facetrain.evaluate.report.content import Evaluation, HardPair, Picture
from facetrain.evaluate.report.pictures import png_as_jpeg_uri
from facetrain.evaluate.verification import roc

PAIRS_SHOWN = 12  # of either kind


def read_evaluation(file: Path) -> Evaluation:
    """UserError where the file cannot be read, or is none of those that `ft evaluate` writes."""
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{file} is no valid JSON ({error}): name a file that `ft evaluate` wrote") from None
    try:
        return _evaluation(file, said)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{file} is no evaluation as this version writes them: run `ft evaluate` again"
        ) from None


def _evaluation(file: Path, said: dict[str, Any]) -> Evaluation:
    labels = {name: str(label) for name, label in said["labels"].items()}
    values = {name: None if value is None else float(value) for name, value in said["values"].items()}
    scores, same = _trials(file)
    thresholds = [float(t) for t in said.get("thresholds") or () if t is not None]
    threshold = median(thresholds) if thresholds else None
    if threshold is None and scores is not None and same is not None and same.any() and not same.all():
        threshold = _equal_error_threshold(scores, same)
    return Evaluation(
        file=file,
        name=str(said["name"]),
        protocol=str(said["protocol"]),
        test=tuple(said.get(key) for key in ("protocol", "photographs", "flip", "no_face_rule")),
        values={name: values.get(name) for name in labels},
        labels=labels,
        lower_is_better=frozenset(said.get("lower_is_better", ())),
        counts={
            str(what): f"{number:,}" if isinstance(number, int) else str(number)
            for what, number in said["counts"].items()
        },
        notes=[str(note) for note in said["notes"]],
        flip=bool(said.get("flip")),
        epoch=said["network"]["epoch"] if "network" in said else None,
        threshold=threshold,
        scores=scores,
        same=same,
        hardest=_hardest(file),
    )


def _beside(file: Path, ending: str) -> Path:
    return file.with_name(f"{file.name.removesuffix('.json')}.{ending}")


def _trials(file: Path) -> tuple[Any, Any]:
    """(scores, same); (None, None) where they were not written, or cannot be read."""
    try:
        table = pq.read_table(_beside(file, "trials.parquet"), columns=["score", "same"])
        return table["score"].to_numpy(), table["same"].to_numpy()
    except (OSError, pa.ArrowException, KeyError):
        return None, None


def _hardest(file: Path) -> list[HardPair]:
    """The same-person pairs first; of either kind the hardest first."""
    try:
        rows = pq.read_table(_beside(file, "hardest.parquet"), filters=[("rank", "<", PAIRS_SHOWN)])
    except (OSError, pa.ArrowException):
        return []
    pairs = []
    for row in rows.to_pylist():
        first, second = (png_as_jpeg_uri(row[f"{end}_image"] or b"") for end in ("first", "second"))
        if first is not None and second is not None:
            pictures = Picture(first, row["first"]), Picture(second, row["second"])
            pairs.append(HardPair(*pictures, bool(row["same"]), float(row["score"])))
    return pairs


def _equal_error_threshold(scores: Any, same: Any) -> float | None:
    """The score at which the two rates of error come closest."""
    far, tar, thresholds = roc(scores, same)
    usable = np.isfinite(thresholds)
    if not usable.any():
        return None
    nearest = int(np.argmin(np.abs(far + tar - 1)[usable]))
    found = float(thresholds[usable][nearest])
    return found if math.isfinite(found) else None
