"""What `ft evaluate` has left: NAME.json, and beside it every trial and pictures of the hardest (`trial_files`)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    damaged = {}
    scores = same = None
    try:
        scores, same = _trials(file, said)
    except UserError as error:
        damaged["trials"] = str(error)
    hardest: Sequence[HardPair] = ()
    try:
        hardest = _hardest(file)
    except UserError as error:
        damaged["hardest"] = str(error)
    chosen = said.get("thresholds") or ()
    thresholds = [float(t) for t in chosen if t is not None]  # None: one that accepts nothing
    threshold = median(thresholds) if thresholds else None
    if not chosen and scores is not None and same is not None and same.any() and not same.all():
        threshold = _equal_error_threshold(scores, same)
    options = dict(said.get("protocol_args") or {})
    if said.get("multi", "centre") != "centre":
        options["multi"] = said["multi"]
    return Evaluation(
        file=file,
        name=str(said["name"]),
        protocol=str(said["protocol"]),
        test=(
            *(said.get(key) for key in ("protocol", "photographs", "flip", "no_face_rule")),
            json.dumps(options, sort_keys=True),
        ),
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
        hardest=hardest,
        options=options,
        damaged=damaged,
    )


def _beside(file: Path, ending: str) -> Path:
    return file.with_name(f"{file.name.removesuffix('.json')}.{ending}")


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """UserError for a file that is there and cannot be read."""
    try:
        yield
    except PermissionError as error:
        raise UserError(f"cannot read {file.name}: {error.strerror}") from None
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        raise UserError(f"{file.name} is damaged: run `ft evaluate` again") from None


def _trials(file: Path, said: dict[str, Any]) -> tuple[Any, Any]:
    """(scores float64, same bool); (None, None) where they were not written. UserError where they are damaged, or are not
    those that the JSON file counts."""
    beside = _beside(file, "trials.parquet")
    if not beside.exists():
        return None, None
    with _readable(beside):
        table = pq.read_table(beside, columns=["score", "same"])
        scores = table["score"].cast(pa.float64()).to_numpy()
        same = table["same"].cast(pa.bool_()).to_numpy()
        if table["score"].null_count or table["same"].null_count or np.isnan(scores).any():
            raise ValueError
    pairs = {"same_pairs": int(same.sum()), "different_pairs": int((~same).sum())}
    if any(said.get(name, count) != count for name, count in pairs.items()):
        raise UserError(f"{beside.name} does not belong to {file.name}: run `ft evaluate` again")
    return scores, same


def _hardest(file: Path) -> list[HardPair]:
    """The same-person pairs first; of either kind the hardest first. Nothing where they were not written; UserError where
    they are damaged."""
    beside = _beside(file, "hardest.parquet")
    if not beside.exists():
        return []
    pairs = []
    with _readable(beside):
        for row in pq.read_table(beside, filters=[("rank", "<", PAIRS_SHOWN)]).to_pylist():
            first, second = (png_as_jpeg_uri(row[f"{end}_image"] or b"") for end in ("first", "second"))
            if first is None or second is None or None in row.values():
                raise ValueError
            pictures = Picture(first, str(row["first"])), Picture(second, str(row["second"]))
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
