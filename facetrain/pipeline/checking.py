"""ft cache --verify: which files of a dataset are other than when they were written, and what makes them again."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

from blake3 import blake3

from facetrain.datasets.cache.check import damaged_tables, remove_damaged
from facetrain.datasets.cache.manifest import read_manifest
from facetrain.errors import UserError
from facetrain.image_spec import ImageSpec
from facetrain.preprocess.photograph import MAX_PIXELS
from facetrain.progress import Progress
from facetrain.tables import read_table, table_fingerprint
from facetrain.workspace import Dataset, StageRecord

MADE_BY_CACHE = ("cache.arrow", "cached.arrow", "crops.files.arrow", "undecodable.arrow")
SHOWN = 5  # of the files that are made again, in an error


def remove_damaged_lists(dataset: Dataset) -> list[str]:
    """Remove those of `ft cache`'s own tables that are damaged, and return their names: it makes them again."""
    return _remove(damaged_tables(dataset.folder, MADE_BY_CACHE))


def verify_dataset(dataset: Dataset, shard_folder: Path, bar: Progress) -> list[str]:
    """Read every table, stage record and shard of a dataset; return the names of those that were damaged.

    What can be made again is removed, and the next cache makes it (raw.files.arrow: the next align). For the rest,
    UserError with one line that names all of it and the commands that make it again.
    """
    tables = damaged_tables(dataset.folder)
    commands = _Commands(dataset, tables)
    lost = {path: command for path in tables if (command := commands.of_table(path.name))}
    lost |= _damaged_records(dataset, commands, tables)
    names = _remove([path for path in tables if path not in lost])
    names += remove_damaged(
        read_manifest(dataset.folder),
        shard_folder,
        True,
        on_start=lambda total: bar.begin(total, description="verifying", unit="shards"),
        on_progress=bar.advance,
    )
    if lost:
        raise UserError(_told(lost, names))
    return names


def _remove(paths: list[Path]) -> list[str]:
    for path in paths:
        path.unlink()
    return [path.name for path in paths]


def _told(lost: dict[Path, str], names: list[str]) -> str:
    said = "; ".join(f"{path} is damaged: {command}" for path, command in lost.items())
    if names:
        more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
        said += f"; also damaged, and made again by the next `ft cache`: {', '.join(names[:SHOWN])}{more}"
    return said


def _damaged_records(dataset: Dataset, commands: _Commands, damaged: list[Path]) -> dict[Path, str]:
    """dataset.json and the stage records that do not fit what they are about, and what to do."""
    found: dict[Path, str] = {}
    path = dataset.folder / "dataset.json"
    aligned = json.loads(path.read_text())["aligned"]
    if not dataset.folder.name.endswith(blake3(os.fsencode(aligned)).hexdigest()[:8]):
        found[path] = commands.of_rows(remove=False)
    tables = {
        dataset.first_stage: "rows.arrow",
        "clean": "clean.arrow",
        "prune": "kept.arrow",
        "split": "split.arrow",
    }
    for stage, table in tables.items():
        path = dataset.folder / "stages" / f"{stage}.json"
        if not path.exists() or dataset.folder / table in damaged:
            continue
        record = dataset.record(stage)
        if record is None or record.output != table_fingerprint(dataset.folder / table):
            found[path] = commands.of_table(table, remove=False)
        elif table == "rows.arrow" and not _is_of_these_rows(record, commands.settings):
            found[path] = commands.of_rows(remove=True)
    return found


def _is_of_these_rows(record: StageRecord, settings: dict[str, Any]) -> bool:
    """The settings stand in the rows too."""
    return all(record.parameters.get(name) == settings.get(name) for name in ("spec", "multi"))


class _Commands:
    """The commands that make a dataset's tables again, as the stages' records have it."""

    def __init__(self, dataset: Dataset, damaged: list[Path]) -> None:
        self.dataset = dataset
        rows, record = dataset.folder / "rows.arrow", dataset.record(dataset.first_stage)
        if rows.is_file() and rows not in damaged:
            self.settings: dict[str, Any] = json.loads(read_table(rows).schema.metadata[b"settings"])
        else:
            self.settings = record.parameters if record is not None else {}

    def of_table(self, name: str, *, remove: bool = True) -> str:
        """What to do when this table is damaged; empty when the cache or the next align makes it again."""
        if name == "rows.arrow":
            return self.of_rows(remove=remove)
        makers = {"clean.arrow": self._clean, "kept.arrow": self._prune, "split.arrow": self._split}
        return makers.get(name, str)()

    def of_rows(self, *, remove: bool) -> str:
        stage = self.dataset.first_stage
        trees = [self.dataset.aligned] if stage == "index" else [self.dataset.raw, self.dataset.aligned]
        words = ["ft", stage, *map(str, trees), *_options(self.settings, stage)]
        unknown = "" if self.settings else " with the options that it had"
        return "remove it and " * remove + f"run `{shlex.join(words)}`{unknown}"

    def _clean(self) -> str:
        record = self.dataset.record("clean")
        files = record.parameters["files"] if record else ["FILE"]
        applied = ", ".join(f"`ft clean --apply {shlex.quote(file)}`" for file in files)
        return f"run `ft clean --undo`, then {applied}"

    def _prune(self) -> str:
        record = self.dataset.record("prune")
        return f"run `ft prune --min {record.parameters['min'] if record else 'N'}`"

    def _split(self) -> str:
        record = self.dataset.record("split")
        if record is None:
            return "run `ft split` with the share and seed that it had"
        p = record.parameters
        by = "" if p["by"] == "identity" else f" --by {p['by']}"
        return f"run `ft split {p['ratio']:g}{by}" + (f" --seed {p['seed']}" if p["seed"] else "") + "`"


def _options(settings: dict[str, Any], stage: str) -> list[str]:
    """The options of align, those that are not the default, or of index."""
    if not settings:
        return []
    spec = settings["spec"]
    usual: dict[str, Any] = {} if stage == "index" else vars(ImageSpec())
    if spec["landmarks"] == "inner-eyes-bottom-lip":
        usual = {**usual, "predictor": 68}
    options = {name: spec[name] for name in ("size_px", "landmarks", "detector")}
    if stage == "align":
        options |= {name: spec[name] for name in ("predictor", "format")}
        options |= {"quality": spec["quality"]} if spec["format"] == "jpg" else {}
        options["multi"] = settings["multi"]
        options["max-megapixels"] = settings["max_pixels"] // 1_000_000
        usual = {**usual, "multi": "largest", "max-megapixels": MAX_PIXELS // 1_000_000}
    changed = {name: value for name, value in options.items() if value != usual.get(name)}
    return [word for name, value in changed.items() for word in (f"--{name.removesuffix('_px')}", str(value))]
