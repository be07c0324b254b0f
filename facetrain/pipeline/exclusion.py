"""ft clean --exclude-people, --exclude-overlap: people of test sets, who must not be trained on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.evaluate.label_errors import people_in_both
from facetrain.evaluate.protocols.files import read_lines
from facetrain.file_table import walk
from facetrain.files import file_fingerprint
from facetrain.index import Index, read_index
from facetrain.pipeline.cleaning import Proposals, embed_crops, embedded_candidates
from facetrain.pipeline.embedding import source_of
from facetrain.pipeline.subject import Subject
from facetrain.preprocess.aligner import identity_of
from facetrain.preprocess.clean import (
    LEAVE_OUT,
    Proposal,
    alike,
)
from facetrain.progress import Progress
from facetrain.workspace import Workspace

WAYS = ("name", "content", "embedding")
SHOWN = 5  # names that were not found


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
        rows, embeddings, said = embedded_candidates(workspace, dataset, index, subject, jobs)
        notes += said
        how = {"aligned": None, "part": None}
        source = source_of(workspace, tree, subject, **how, multi=multi, jobs=jobs)
        others = embed_crops(source.root, source.crops, subject, jobs)
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
    photograph, crop = (
        pc.is_in(index.rows[name], contents).to_numpy() for name in ("content", "aligned_content")
    )
    rows = np.flatnonzero(index.candidates & (photograph | crop))
    counts: dict[str, int] = {}
    first: dict[str, int] = {}
    for row, name in zip(rows.tolist(), index.identities(rows), strict=True):
        assert name is not None
        counts[name] = counts.get(name, 0) + 1
        first.setdefault(name, row)
    for name, row in first.items():
        values = (index.rows[column][row].as_py() for column in ("content", "aligned_content"))
        other = next(path_of[value] for value in values if value in path_of)
        reason = (
            f"{index.rows['path'][row].as_py()} is {other} in {tree} (such photographs: {counts[name]:,})"
        )
        yield Proposal(LEAVE_OUT, "", name, reason=reason)
