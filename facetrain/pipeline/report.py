"""ft report: what is known of runs, their datasets and their embeddings, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from facetrain.datasets.cache.leases import open_manifest
from facetrain.datasets.loader import plain_crops
from facetrain.datasets.photo_set import PhotoSet, select_rows
from facetrain.errors import MissingStage, UserError
from facetrain.evaluate.report.content import Data, Evaluation, Missing, Report, Run, Validation
from facetrain.evaluate.report.embedding_map import whole_people
from facetrain.evaluate.report.evaluations import read_evaluation
from facetrain.evaluate.report.page import check_place, write_page
from facetrain.evaluate.report.runs import read_run
from facetrain.evaluate.report.validation import look_at
from facetrain.image_spec import require_same
from facetrain.index import ALIGNED, STATUSES, read_index
from facetrain.pipeline.subject import Subject, open_subject
from facetrain.tables import table_fingerprint
from facetrain.workspace import FOLDER, Dataset, Workspace

MOST_EMBEDDED = 10_000  # photographs of a validation split


def report(
    runs: dict[str, Path], others: Sequence[Path], out: Path, *, device: torch.device, jobs: int
) -> Report:
    """Write the page about ``runs``, folders by what they are called, to ``out``; return what is on it.

    others: JSON files of `ft evaluate`, of other embedders. UserError, before anything is embedded, where one is none, and
    where ``out`` is no place for a page. Nothing else is written: crops are taken from the cache as it is. What is missing
    is said on the page.
    """
    check_place(out)
    beside: dict[str, list[Evaluation]] = {}
    for file in others:
        found = read_evaluation(file)
        beside.setdefault(_free_name(found.name, runs), []).append(found)
    shown, data = [], dict[str, Data | Missing]()
    for name, folder in runs.items():
        run = read_run(folder, name)
        dataset = _dataset_of(run)
        if isinstance(dataset, Missing):
            shown.append(replace(run, data=dataset, validation=dataset))
            continue
        key = str(dataset.folder)
        if key not in data:
            data[key] = _data(dataset)
        notes = [*run.notes, *_changes(run, dataset)]
        shown.append(replace(run, notes=notes, data=key, validation=_validation(run, dataset, device, jobs)))
    written = datetime.now().astimezone().strftime("%d %B %Y, %H:%M").lstrip("0")
    made = Report(shown, beside, data, written)
    write_page(made, out)
    return made


def _free_name(name: str, runs: dict[str, Path]) -> str:
    """An evaluation that was named may be of a run of another workspace, called as one of these is."""
    return name if name not in runs else f"{name} (--with)"


# -- dataset ---------------------------------------------------------------------------------------------------------


def _dataset_of(run: Run) -> Dataset | Missing:
    """The dataset that a run was trained on."""
    folder = run.folder.parent.parent
    if run.folder.parent.name != "runs" or folder.name != FOLDER:
        return Missing(
            f"{run.folder} lies outside of a workspace, so that its photographs are not known here."
        )
    try:
        return Dataset(Workspace(folder.parent), folder / "datasets" / str(run.facts["dataset"]))
    except KeyError:
        return Missing("Its config.json does not say which photographs it was trained on.")
    except UserError as error:
        return Missing(f"Its dataset is gone: {error}.")


def _data(dataset: Dataset) -> Data | Missing:
    """The dataset as it stands."""
    try:
        index = read_index(dataset.folder)
        kept, counts = index.kept, index.status_counts()
    except UserError as error:
        return Missing(f"{dataset.aligned}: {error}.")
    notes = []
    parts = [("all photographs with a face", *index.count_people(index.usable))]
    for what, before, after in (
        ("not left out by `ft clean`", index.usable, index.candidates),
        ("kept by `ft prune`", index.candidates, kept),
    ):
        if (before & ~after).any():
            parts.append((what, *index.count_people(after)))
    try:
        parts += [(f"`{name}`", *index.count_people(index.part(name))) for name in ("train", "val")]
    except MissingStage as error:
        notes.append(f"{error}.")
    rejected = dataset.folder / "rejected.csv"
    codes = index.people[0][kept]
    per_person = np.bincount(codes[codes >= 0])
    labels = STATUSES | {ALIGNED: "with a face, aligned"}
    return Data(
        name=_relative(dataset.aligned, dataset),
        raw=_relative(dataset.raw, dataset),
        parts=parts,
        statuses=[(labels[status], count) for status, count in counts.items()],
        rejected_list=_relative(rejected, dataset) if rejected.is_file() else None,
        per_person=per_person[per_person > 0],
        notes=notes,
    )


def _relative(path: Path, dataset: Dataset) -> str:
    """As seen from the workspace, where it lies in it."""
    root = dataset.workspace.root
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _changes(run: Run, dataset: Dataset) -> list[str]:
    """A note when the photographs, or their parts, are others than those that the run was trained on."""
    trained_on = run.facts.get("inputs")
    if not isinstance(trained_on, dict):
        return []
    stages = {"rows": dataset.first_stage, "clean": "clean", "kept": "prune", "split": "split"}
    changed = [
        f"`ft {stage}`"
        for name, stage in stages.items()
        if (table_fingerprint(dataset.folder / f"{name}.arrow") or "") != (trained_on.get(name) or "")
    ]
    if not changed:
        return []
    return [
        f"The dataset is no longer what it was trained on: {' and '.join(changed)} changed it since. "
        "What is shown of the validation split is of the photographs as they stand."
    ]


# -- validation split ------------------------------------------------------------------------------------------------


def _validation(run: Run, dataset: Dataset, device: torch.device, jobs: int) -> Validation | Missing:
    """What the embeddings of the validation split by the run's best checkpoint show."""
    try:
        index = read_index(dataset.folder)
        rows = select_rows(index, "val")
        subject = open_subject(dataset.workspace, str(run.folder), None, {}, device)
        require_same(subject.embedder.spec, subject.what, index.spec, f"dataset {dataset.aligned}")
        chosen = rows[whole_people(index.people[0][rows], MOST_EMBEDDED)]
        shards = dataset.workspace.folder / "cache"
        with open_manifest(dataset.folder, shards, "`ft report`") as manifest:
            photos = PhotoSet(index, manifest, shards, chosen)
            notes = _limits(len(rows), len(chosen), photos, subject)
            if not len(photos):
                return Missing("The crops of the validation split are not in the cache: run `ft cache`.")
            embeddings = subject.embed(plain_crops(photos, threads=jobs), len(photos))
            paths = index.rows["path"].take(pa.array(photos.rows)).to_pylist()
            return look_at(embeddings, photos.labels, photos.identities, paths, photos.gather, notes)
    except (UserError, OSError) as error:
        return Missing(f"{error}.")


def _limits(in_split: int, chosen: int, photos: PhotoSet, subject: Subject) -> list[str]:
    """What is to be known of the photographs that are looked at."""
    notes = []
    if chosen < in_split:
        notes.append(f"{chosen:,} of its {in_split:,} photographs were looked at, of people drawn at random.")
    if photos.absent:
        notes.append(f"{photos.absent:,} of its photographs are not in the cache: run `ft cache`.")
    known = subject.trained_on() & set(photos.identities)
    if known:
        notes.append(
            f"{len(known):,} of its people were trained on: their photographs lie closer together than a stranger's would."
        )
    return notes
