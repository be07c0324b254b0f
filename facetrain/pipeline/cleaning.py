"""ft clean: proposals of what is wrong with a dataset or must be kept out of training, and what was decided on them."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from facetrain.datasets.crop_files import read_crops
from facetrain.errors import MissingStage, UserError
from facetrain.evaluate.label_errors import LabelErrors, find_label_errors, people_in_both
from facetrain.evaluate.protocols.files import read_lines
from facetrain.file_table import walk
from facetrain.files import file_fingerprint
from facetrain.image_spec import require_same
from facetrain.index import Index, read_index
from facetrain.pipeline.crop_trees import aligned_crops
from facetrain.pipeline.embedding import source_of
from facetrain.pipeline.subject import Subject, counted
from facetrain.preprocess.aligner import identity_of
from facetrain.preprocess.clean import (
    KEEP,
    LEAVE_OUT,
    RENAME,
    Proposal,
    alike,
    apply_proposals,
    read_proposals,
)
from facetrain.progress import Progress
from facetrain.tables import write_table
from facetrain.workspace import Dataset, StageRecord, Workspace

WAYS = ("name", "content", "embedding")
SHOWN = 5  # people who are named in a list and were not found


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
    rows, embeddings, notes = _embedded(workspace, dataset, index, subject, jobs)
    codes, names = index.people
    errors = find_label_errors(embeddings, codes[rows].astype(np.int64), device=device)
    return Proposals(list(_of_label_errors(index, rows, names.to_pylist(), errors)), notes)


def _embedded(
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
    return rows, _embed(root, crops, subject, jobs), notes


def _embed(root: Path, crops: list[str], subject: Subject, jobs: int) -> NDArray[np.float32]:
    with Progress("embedding", "photographs") as bar:
        bar.begin(len(crops))
        batches = read_crops(root, crops, subject.embedder.spec, threads=jobs)
        return subject.embedder.embed(counted(batches, bar))


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


# -- people who must not be trained on -------------------------------------------------------------------------------


def propose_people(workspace: Workspace, aligned: Path | None, file: Path) -> Proposals:
    """Leave out the people who are named in a file, one a line. Case, Unicode form, the marks between words and a slash at
    the end, as of a listed folder, do not count."""
    wanted: dict[str, str] = {}
    for _, line in read_lines(file, "list of names"):
        if name := line.rstrip("/").rstrip():
            wanted.setdefault(alike(name), name)
    index = read_index(workspace.dataset(aligned).folder)
    found = _same_names(_names(index, index.candidates), wanted.values())
    proposals = [Proposal(LEAVE_OUT, "", name, reason=f"named in {file.name}") for name in found]
    known = len({alike(name) for name in found})
    notes = [f"{known:,} of the {len(wanted):,} people named in {file} are in the dataset"]
    there = {alike(name) for name in _names(index, np.ones(index.rows.num_rows, bool))}
    lacking = [name for key, name in wanted.items() if key not in there]
    unused = len(wanted) - known - len(lacking)
    if unused:
        notes.append(
            f"of another {unused:,} no photographs are used: they are left out already, or have no crops"
        )
    if lacking:
        more = f" and {len(lacking) - SHOWN:,} more" if len(lacking) > SHOWN else ""
        notes.append(f"not found: {', '.join(lacking[:SHOWN])}{more}")
    return Proposals(proposals, notes)


def propose_overlap(
    workspace: Workspace,
    aligned: Path | None,
    tree: Path,
    ways: Collection[str],
    subject: Subject | None,
    *,
    threshold: float | None,
    multi: str,
    device: torch.device,
    jobs: int,
) -> Proposals:
    """Leave out the people of the dataset who are in another tree too, of photographs or of crops.

    ways: "name", of the folders right under the tree; "content", the bytes of some photograph, or crop, are the same;
    "embedding", by ``subject`` (`facetrain.evaluate.label_errors.people_in_both`). Each person is proposed once.
    """
    if not tree.is_dir():
        raise UserError(f"{tree}: no such folder of photographs")
    dataset = workspace.dataset(aligned)
    index = read_index(dataset.folder)
    paths: list[str] = walk(tree).files["path"].to_pylist()
    if not paths:
        raise UserError(f"there are no photographs in {tree}")
    found: dict[str, Proposal] = {}
    notes = []

    def add(way: str, proposals: Iterable[Proposal]) -> None:
        proposed = {proposal.identity: proposal for proposal in proposals}
        scores = [float(proposal.score) for proposal in proposed.values() if proposal.score]
        notes.append(f"by {way}: {people(len(proposed))}{_range(scores)}")
        for name, proposal in proposed.items():
            found.setdefault(name, proposal)

    if "name" in ways:
        there = {name for path in paths if (name := identity_of(path)) is not None}
        names = _same_names(_names(index, index.candidates), there)
        add(
            "name",
            (Proposal(LEAVE_OUT, "", name, reason=f"a folder of that name is in {tree}") for name in names),
        )
    if "content" in ways:
        add("content", _same_content(index, tree, paths, jobs))
    if "embedding" in ways:
        assert subject is not None
        rows, embeddings, said = _embedded(workspace, dataset, index, subject, jobs)
        notes += said
        how = {"aligned": None, "part": None}
        source = source_of(workspace, tree, subject, **how, multi=multi, jobs=jobs)
        others = _embed(source.root, source.crops, subject, jobs)
        there_names, labels = np.unique(
            [name or path for name, path in zip(source.identities, source.paths, strict=True)],
            return_inverse=True,
        )
        codes, names_here = index.people
        pairs = people_in_both(
            embeddings, codes[rows].astype(np.int64), others, labels, threshold=threshold, device=device
        )
        add(
            "embedding",
            (
                Proposal(
                    LEAVE_OUT,
                    "",
                    names_here[pair.first_label].as_py(),
                    reason=f"looks like {there_names[pair.second_label]} in {tree}",
                    score=f"{pair.cosine:.4f}",
                )
                for pair in pairs
            ),
        )
    return Proposals(list(found.values()), notes)


def _range(cosines: list[float]) -> str:
    if len(cosines) < 2:
        return "".join(f", cosine {cosine:.2f}" for cosine in cosines)
    return f", cosines {min(cosines):.2f} to {max(cosines):.2f}: look at the lowest"


def people(number: int) -> str:
    """``1 person``, ``2 people``."""
    return "1 person" if number == 1 else f"{number:,} people"


def _names(index: Index, rows: NDArray[np.bool_]) -> list[str]:
    """The people of these rows, a mask, sorted."""
    codes, names = index.people
    present: list[str] = names.take(pa.array(np.unique(codes[rows & (codes >= 0)]))).to_pylist()
    return sorted(present)


def _same_names(here: Iterable[str], there: Iterable[str]) -> list[str]:
    wanted = {alike(name) for name in there}
    return [name for name in here if alike(name) in wanted]


def _same_content(index: Index, tree: Path, paths: list[str], jobs: int) -> Iterator[Proposal]:
    """Of everyone of whom a photograph, or its crop, is in the tree byte for byte."""
    with Progress("hashing", "photographs") as bar, ThreadPoolExecutor(jobs) as pool:
        bar.begin(len(paths))
        path_of: dict[bytes, str] = {}
        for path, digest in zip(
            paths, pool.map(lambda path: file_fingerprint(tree / path), paths), strict=True
        ):
            path_of.setdefault(bytes.fromhex(digest), path)
            bar.advance(1)
    contents = pa.array(list(path_of), index.rows.schema.field("content").type)
    same = index.candidates.copy()
    same &= np.logical_or(
        *(pc.is_in(index.rows[name], contents).to_numpy() for name in ("content", "aligned_content"))
    )
    rows = np.flatnonzero(same)
    counts: dict[str, int] = {}
    first: dict[str, tuple[int, str]] = {}
    for row, name in zip(rows.tolist(), index.identities(rows), strict=True):
        assert name is not None
        counts[name] = counts.get(name, 0) + 1
        first.setdefault(name, (row, name))
    for name, (row, _) in first.items():
        values = (index.rows[column][row].as_py() for column in ("content", "aligned_content"))
        other = next(path_of[value] for value in values if value in path_of)
        reason = (
            f"{index.rows['path'][row].as_py()} is {other} in {tree} (such photographs: {counts[name]:,})"
        )
        yield Proposal(LEAVE_OUT, "", name, reason=reason)


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
            _write(dataset, index, marks, parameters, started)
        return Cleaned(
            marked.left_out, marked.renamed, sorted(becoming - people_before), _to_run_again(dataset)
        )


def _write(
    dataset: Dataset, index: Index, marks: pa.Table, parameters: dict[str, list[str]], started: float
) -> None:
    path = dataset.folder / "clean.arrow"
    if not len(marks):
        dataset.forget("clean")
        path.unlink(missing_ok=True)
        return
    fingerprint = write_table(path, marks)
    seconds = round(time.monotonic() - started, 3)
    marked, inputs = index.count_marks(marks), {"rows": index.fingerprint}
    counts = {"left_out": marked.left_out, "renamed": marked.renamed}
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
