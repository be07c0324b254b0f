"""What a run's folder says: its settings, its metrics, its evaluations. Whatever is damaged is said in its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from facetrain.config import Validation
from facetrain.errors import UserError
from facetrain.evaluate.metrics import Metrics, read_metrics
from facetrain.evaluate.report.content import Evaluation, Missing, Run
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
    return Run(name, folder, settings, facts, metrics, _validators(facts), evaluations, notes)


def _validators(facts: Mapping[str, Any]) -> list[str]:
    """What the columns of each validator begin with: that of the validation split unless others were asked for."""
    config = facts.get("config")
    asked = config.get("validate") if isinstance(config, dict) else None
    try:
        found = [Validation(**entry).prefix for entry in asked or ()]
    except (TypeError, ValueError):
        found = []
    return list(dict.fromkeys(["val", *found]))


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
