"""ft clean: proposals of what is wrong with a dataset, and what was decided on proposals."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from facetrain.datasets.crop_files import read_crops
from facetrain.errors import MissingStage, UserError
from facetrain.evaluate.label_errors import LabelErrors, find_label_errors
from facetrain.image_spec import require_same
from facetrain.index import Index, MarkCounts, read_index
from facetrain.pipeline.crop_trees import aligned_crops
from facetrain.pipeline.subject import Subject
from facetrain.preprocess.clean import (
    KEEP,
    LEAVE_OUT,
    RENAME,
    Proposal,
    apply_proposals,
    read_proposals,
)
from facetrain.tables import write_table
from facetrain.workspace import Dataset, StageRecord, Workspace


@dataclass(frozen=True)
class Proposals:
    """What is proposed, and what to know of it."""

    proposals: list[Proposal]
    notes: list[str]


@dataclass(frozen=True)
class Cleaned:
    """Usable photographs that are left out, and others that were given to another person, in all; people who are new, by
    name; stages that must run again."""

    left_out: int
    renamed: int
    new_people: list[str]
    again: list[str]


# -- label errors ----------------------------------------------------------------------------------------------------


def propose_label_errors(
    workspace: Workspace, aligned: Path | None, subject: Subject, *, device: torch.device, jobs: int
) -> Proposals:
    """What is probably wrong among the usable photographs that are not left out, the worst first of each kind."""
    dataset = workspace.dataset(aligned)
    index = read_index(dataset.folder)
    rows, embeddings, notes = embedded_candidates(workspace, dataset, index, subject, jobs)
    codes, names = index.people
    errors = find_label_errors(embeddings, codes[rows].astype(np.int64), device=device)
    return Proposals(list(_of_label_errors(index, rows, names.to_pylist(), errors)), notes)


def embedded_candidates(
    workspace: Workspace, dataset: Dataset, index: Index, subject: Subject, jobs: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], list[str]]:
    """(rows of the index, their unit embeddings, notes), of the candidates. For an embedder of other crops than the
    dataset's the photographs are aligned as it wants them."""
    rows = np.flatnonzero(index.candidates)
    if not len(rows):
        raise UserError(f"no photographs of {dataset.aligned} are usable: see `ft status`")
    spec, notes = subject.embedder.spec, []
    if index.spec == spec or dataset.first_stage == "index":
        require_same(spec, subject.what, index.spec, f"dataset {dataset.aligned}")
        root, crops = dataset.aligned, index.rows["aligned"].take(pa.array(rows)).to_pylist()
    else:
        paths = index.rows["path"].take(pa.array(rows)).to_pylist()
        multi = json.loads(index.rows.schema.metadata[b"settings"])["multi"]
        root, crop_of = aligned_crops(workspace, dataset.raw, paths, spec, multi, jobs)
        there = np.array([path in crop_of for path in paths], bool)
        if not there.all():
            notes.append(
                f"in {np.count_nonzero(~there):,} of {len(paths):,} photographs {subject.name} finds no face: they "
                f"were not judged"
            )
        if not there.any():
            raise UserError(f"no face was found in any of the {len(paths):,} photographs in {dataset.raw}")
        crops = [crop_of[path] for path in paths if path in crop_of]
        rows = rows[there]
    return rows, embed_crops(root, crops, subject, jobs), notes


def embed_crops(root: Path, crops: list[str], subject: Subject, jobs: int) -> NDArray[np.float32]:
    """Unit embeddings of crops below ``root``, in their order."""
    return subject.embed(read_crops(root, crops, subject.embedder.spec, threads=jobs), len(crops))


def _of_label_errors(
    index: Index, rows: NDArray[np.int64], names: list[str], errors: LabelErrors
) -> Iterator[Proposal]:
    paths = index.rows["path"]

    def path_of(row: int) -> str:
        path: str = paths[int(rows[row])].as_py()
        return path

    for outlier in errors.outliers:
        own, other = names[outlier.label], names[outlier.nearest_label]
        if outlier.nearest_cosine > outlier.own_cosine:
            reason = (
                f"nearer to {other} ({outlier.nearest_cosine:.2f}) than to its own ({outlier.own_cosine:.2f})"
            )
        else:
            reason = f"far from the others of its person ({outlier.own_cosine:.2f}; {other} {outlier.nearest_cosine:.2f})"
        score = f"{outlier.own_cosine - outlier.nearest_cosine:.4f}"
        yield Proposal(LEAVE_OUT, path_of(outlier.row), own, other, reason, score)
    taken = set(names)
    for two in errors.two_in_one:
        name = names[two.label]
        new = next(free for n in range(2, len(taken) + 3) if (free := f"{name}~{n}") not in taken)
        taken.add(new)
        reason = f"{name} looks like two people: {len(two.other_rows)} and {len(two.rows)} photographs"
        for row in two.other_rows:
            yield Proposal(RENAME, path_of(row), name, new, reason, f"{two.cosine:.4f}")
    renamed: set[int] = set()
    targets: set[int] = set()
    for one in errors.one_in_two:
        first, second = one.first_label, one.second_label
        # No chains: that A is like B and B like C says little of A and C. The next `ft clean` sees what is left.
        if renamed & {first, second} or second in targets:
            continue
        renamed.add(second)
        targets.add(first)
        reason = f"{names[second]} and {names[first]} look like one person"
        yield Proposal(RENAME, "", names[second], names[first], reason, f"{one.cosine:.4f}")


# -- decisions -------------------------------------------------------------------------------------------------------


def apply(workspace: Workspace, aligned: Path | None, file: Path, *, dry_run: bool = False) -> Cleaned:
    """Mark the index as the file says, in addition to the marks that are there; nothing, when a line is wrong."""
    started = time.monotonic()
    proposals = read_proposals(file)
    if not proposals:
        raise UserError(f"{file} proposes nothing")
    with workspace.lock():
        dataset = workspace.dataset(aligned)
        index = read_index(dataset.folder)
        people_before = set(index.people[1].to_pylist())
        marks = apply_proposals(index, proposals, file)
        marked = index.count_marks(marks)
        becoming = set(marks["identity"].drop_null().to_pylist())
        if not dry_run:
            old = dataset.record("clean")
            before = old.parameters if old is not None else {}
            # Who was left out as a whole is remembered: marks are of photographs, and new ones bear none.
            whole = {p.identity for p in proposals if p.action == LEAVE_OUT and not p.path}
            kept = {p.identity for p in proposals if p.action == KEEP}
            parameters = {
                "files": [*before.get("files", []), str(file)],
                "people": sorted({*before.get("people", []), *whole} - kept),
            }
            _write(dataset, index, marks, marked, parameters, started)
        return Cleaned(
            marked.left_out, marked.renamed, sorted(becoming - people_before), _to_run_again(dataset)
        )


def _write(
    dataset: Dataset,
    index: Index,
    marks: pa.Table,
    marked: MarkCounts,
    parameters: dict[str, list[str]],
    started: float,
) -> None:
    path = dataset.folder / "clean.arrow"
    if not len(marks):
        dataset.forget("clean")
        path.unlink(missing_ok=True)
        return
    fingerprint = write_table(path, marks)
    seconds = round(time.monotonic() - started, 3)
    counts = {"left_out": marked.left_out, "renamed": marked.renamed}
    inputs = {"rows": index.fingerprint}
    dataset.write_record(StageRecord("clean", parameters, inputs, fingerprint, counts, seconds))


def undo(workspace: Workspace, aligned: Path | None) -> tuple[bool, list[str]]:
    """Take all marks away; (whether there were any, stages that must run again)."""
    with workspace.lock():
        dataset = workspace.dataset(aligned)
        path = dataset.folder / "clean.arrow"
        there = path.is_file() or dataset.record("clean") is not None
        dataset.forget("clean")
        path.unlink(missing_ok=True)
        return there, _to_run_again(dataset)


def _to_run_again(dataset: Dataset) -> list[str]:
    """Of prune and split, those that saw other marks than there are now."""
    index, again = read_index(dataset.folder), []
    for stage, column in (("prune", "kept"), ("split", "split")):
        try:
            getattr(index, column)
        except MissingStage:
            again.append(stage)
    return again
