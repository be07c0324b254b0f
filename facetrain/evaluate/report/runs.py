"""What a run's folder says: its settings, its metrics, its evaluations. Whatever is damaged is said in its place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from facetrain.config import Validation
from facetrain.errors import UserError
from facetrain.evaluate.metrics import Metrics, read_metrics
from facetrain.evaluate.protocols.pairwise import FIGURES
from facetrain.evaluate.report.content import Evaluation, Kept, Missing, Run
from facetrain.evaluate.report.evaluations import read_evaluation
from facetrain.workspace import DIVERGED

SHOWN_FACTS = ("image_spec", "versions")  # of config.json, beside the configuration


def read_run(folder: Path, name: str) -> Run:
    """The run without what needs its dataset."""
    settings: dict[str, str] | Missing
    facts: dict[str, Any] = {}
    try:
        facts = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        shown = facts["config"] | {key: facts[key] for key in SHOWN_FACTS if key in facts}
        settings = dict(flattened(shown))
    except (OSError, ValueError, KeyError, TypeError) as error:
        settings = Missing(f"Its config.json cannot be read ({error}): `ft train` writes one with every run.")
    metrics: Metrics | Missing
    try:
        metrics = read_metrics(folder)
    except UserError as error:
        metrics = Missing(f"{error}.")
    evaluations, notes = _evaluations(folder)
    if (folder / DIVERGED).is_file():
        why = (folder / DIVERGED).read_text(encoding="utf-8", errors="replace").strip()
        notes.insert(0, f"It diverged: {why}. Start again with a lower `--lr`.")
    validators = _validators(
        facts, [] if isinstance(metrics, Missing) else [*metrics.epochs, *metrics.within]
    )
    return Run(name, folder, settings, facts, metrics, validators, evaluations, _kept(folder), notes)


def _kept(folder: Path) -> Kept | None:
    """What the best checkpoint says of itself; None where there is none, or none that can be read."""
    try:
        with safe_open(folder / "checkpoints" / "best.safetensors", "np") as file:
            said = json.loads((file.metadata() or {})["facetrain"])
        metrics = {str(name): float(value) for name, value in said["metrics"].items()}
        return Kept(int(said["epoch"]), int(said["step"]), metrics)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _validators(facts: Mapping[str, Any], logged: Iterable[str]) -> list[dict[str, bool]]:
    """The columns of each validator, as config.json has them. Older ones do not: then those that were logged under the
    names of what was asked for, in the order of the file."""
    said = facts.get("validators")
    if isinstance(said, list) and all(isinstance(columns, dict) for columns in said):
        return [{name: bool(lower) for name, lower in columns.items()} for columns in said if columns]
    config = facts.get("config")
    asked = config.get("validate") if isinstance(config, dict) else None
    try:
        prefixes = [Validation(**entry).prefix for entry in asked or ()]
    except (TypeError, ValueError):
        prefixes = []
    names = list(dict.fromkeys(logged))
    found = [
        {
            name: _lower_is_better(name.removeprefix(f"{prefix}_"))
            for name in names
            if name.startswith(f"{prefix}_")
        }
        for prefix in dict.fromkeys(["val", *prefixes])
    ]
    return [columns for columns in found if columns]


def _lower_is_better(figure: str) -> bool:
    known = FIGURES.get(figure)
    return known is not None and known.lower_is_better


def _evaluations(folder: Path) -> tuple[list[Evaluation], list[str]]:
    """Those that can be read, and what there is to say of the others."""
    found, notes = [], []
    for file in sorted((folder / "evaluation").glob("*.json")):
        try:
            found.append(read_evaluation(file))
        except UserError as error:
            notes.append(f"{error}.")
    return found, notes


def flattened(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(dotted name, value as text) of each setting; an empty table is left out."""
    rows = []
    for name, value in settings.items():
        if isinstance(value, dict):
            rows += flattened(value, f"{prefix}{name}.")
        elif isinstance(value, str):
            rows.append((prefix + name, value))
        elif value is None:
            rows.append((prefix + name, "–"))
        elif isinstance(value, bool):
            rows.append((prefix + name, "yes" if value else "no"))
        elif isinstance(value, float):
            rows.append((prefix + name, f"{value:g}"))
        else:
            rows.append((prefix + name, json.dumps(value, ensure_ascii=False)))
    return rows
