"""ft embed: the embeddings of a tree of photographs or crops, or of a part of a dataset, in a file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from blake3 import blake3

from facetrain.datasets.crop_files import read_crops
from facetrain.datasets.photo_set import select_rows
from facetrain.errors import UserError
from facetrain.evaluate.embedding_files import Embedded, write_embeddings, writer_of
from facetrain.file_table import walk
from facetrain.files import replacing, write_bytes
from facetrain.image_spec import require_same
from facetrain.index import read_index
from facetrain.pipeline.crop_trees import aligned_crops, spec_of_crops
from facetrain.pipeline.subject import Subject, counted
from facetrain.preprocess.aligner import identity_of
from facetrain.progress import Progress
from facetrain.workspace import Workspace

PART = 8192  # photographs embedded between two times that what is done is kept


@dataclass(frozen=True)
class Source:
    """Crops to be embedded: their files below ``root``, and of which photographs they are.

    stamp: another one where the crops may be others. without_face: photographs of which there is no crop.
    """

    root: Path
    crops: list[str]
    paths: list[str]
    identities: list[str | None]
    stamp: str
    without_face: int = 0


def source_of(
    workspace: Workspace,
    tree: Path | None,
    subject: Subject,
    *,
    aligned: Path | None,
    part: str | None,
    multi: str,
    jobs: int,
) -> Source:
    """The photographs of a tree, which are aligned first unless they are crops; or, without a tree, those of a dataset:
    all that are kept, or the ``part`` "train" or "val"."""
    if tree is None:
        return _of_dataset(workspace, aligned, part, subject)
    if not tree.is_dir():
        raise UserError(f"{tree}: no such folder of photographs")
    listing = walk(tree)
    if not len(listing):
        raise UserError(f"there are no photographs in {tree}")
    paths: list[str] = listing.files["path"].to_pylist()
    spec, there = subject.embedder.spec, spec_of_crops(workspace, tree)
    if there is not None:
        require_same(spec, subject.what, there, str(tree))
        root, crop_of = tree, {path: path for path in paths}
    else:
        root, crop_of = aligned_crops(workspace, tree, paths, spec, multi, jobs)
        if not crop_of:
            raise UserError(f"no face was found in any of the {len(paths):,} photographs in {tree}")
    found = [path for path in paths if path in crop_of]
    states = zip(
        *(listing.files[name].to_pylist() for name in ("path", "size_bytes", "mtime_ns")), strict=True
    )
    return Source(
        root=root,
        crops=[crop_of[path] for path in found],
        paths=found,
        identities=[identity_of(path) for path in found],
        stamp=_digest([str(tree.resolve()), multi, *(f"{state}" for state in states)]),
        without_face=len(paths) - len(found),
    )


def _of_dataset(workspace: Workspace, aligned: Path | None, part: str | None, subject: Subject) -> Source:
    dataset = subject.dataset(workspace, aligned)
    index = read_index(dataset.folder)
    require_same(subject.embedder.spec, subject.what, index.spec, f"dataset {dataset.aligned}")
    selected = select_rows(index, part)
    rows = index.rows.take(selected)
    contents = rows["aligned_content"].to_pylist()
    return Source(
        root=dataset.aligned,
        crops=rows["aligned"].to_pylist(),
        paths=rows["path"].to_pylist(),
        identities=index.identities(selected),
        stamp=_digest(
            [str(dataset.aligned), *index.inputs.values(), *(content.hex() for content in contents)]
        ),
    )


def embed_to(
    out: Path, subject: Subject, reference: Source, query: Source | None, *, flip: bool, jobs: int
) -> list[Path]:
    """Write the embeddings of all crops to ``out``; the files that were written.

    What is done lies in ``OUT.parts`` meanwhile: an interrupted command goes on from there, if neither the photographs
    nor the network have changed.
    """
    writer_of(out, queries=query is not None)
    folder = out.with_name(out.name + ".parts")
    sources = {"reference": reference} | ({} if query is None else {"query": query})
    facts = {**subject.facts, "flip": flip, "image_spec": json.loads(subject.embedder.spec.to_json())}
    _begin(
        folder,
        _digest([json.dumps(facts), *(f"{name} {s.stamp} {len(s.crops)}" for name, s in sources.items())]),
    )
    embedded = {}
    with Progress("embedding", "photographs") as bar:
        bar.begin(sum(len(source.crops) for source in sources.values()))
        for name, source in sources.items():
            files = list(_parts(folder / name, subject, source, flip, jobs, bar))
            embedded[name] = Embedded(
                source.paths,
                source.identities,
                np.load(files[0], mmap_mode="r").shape[1],
                partial(map, np.load, files),
            )
    written = write_embeddings(out, embedded["reference"], embedded.get("query"), facts)
    shutil.rmtree(folder)
    return written


def _begin(folder: Path, key: str) -> None:
    """A folder for the parts of just this work: those of another one are removed."""
    file = folder / "key.txt"
    if file.is_file() and file.read_text() == key:
        return
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_bytes(file, key.encode())


def _parts(
    folder: Path, subject: Subject, source: Source, flip: bool, jobs: int, bar: Progress
) -> Iterator[Path]:
    """The files of the parts, made where they are not there yet."""
    folder.mkdir(exist_ok=True)
    for start in range(0, len(source.crops), PART):
        crops = source.crops[start : start + PART]
        file = folder / f"{start:010d}.npy"
        if not file.is_file():
            batches = read_crops(source.root, crops, subject.embedder.spec, threads=jobs)
            embeddings = subject.embedder.embed(counted(batches, bar), flip=flip)
            with replacing(file) as temp, open(temp, "wb") as handle:
                np.save(handle, embeddings)
        else:
            bar.advance(len(crops))
        yield file


def _digest(texts: list[str]) -> str:
    return blake3("\0".join(texts).encode(errors="surrogateescape")).hexdigest()
