"""ft evaluate: what a protocol measures of an embedder, and the files that say it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from facetrain.datasets.cache.leases import open_manifest
from facetrain.datasets.loader import plain_crops
from facetrain.datasets.photo_set import PhotoSet, select_rows
from facetrain.evaluate.figures import roc_figure
from facetrain.evaluate.protocols.base import Figure, Measured, Protocol
from facetrain.evaluate.protocols.split import Split
from facetrain.evaluate.trial_files import Shown, write_hardest, write_texts, write_trials
from facetrain.evaluate.verification import roc
from facetrain.files import write_json
from facetrain.image_spec import require_same
from facetrain.index import read_index
from facetrain.pipeline.caching import cache
from facetrain.pipeline.protocol_crops import protocol_crops, with_rows_of_none
from facetrain.pipeline.subject import Subject
from facetrain.workspace import Workspace


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and where it was written: the JSON file first."""

    figures: dict[str, Figure]
    measured: Measured
    files: list[Path]
    notes: list[str]


def evaluate(
    workspace: Workspace,
    subject: Subject,
    name: str,
    protocol: Protocol,
    *,
    multi: str,
    flip: bool,
    out: Path | None,
    device: torch.device,
    jobs: int,
    data: Path,
    arguments: dict[str, Any],
) -> Evaluation:
    """Measure a protocol; ``name``, ``data`` and ``arguments`` are what it was asked for as. Photographs are aligned as the
    embedder wants them.

    flip: see `facetrain.evaluate.embedders.base.Embedder.embed`. out: name of the files without suffix; by default
    that of `file_stem` in the run's folder.
    """
    photographs = protocol.photographs
    crops = protocol_crops(workspace, photographs, subject.embedder.spec, subject.what, multi, jobs)
    rows = np.flatnonzero(crops.found)
    embeddings = with_rows_of_none(subject.embed(crops.batches(rows), len(rows), flip=flip), crops.found)
    measured = protocol.measure(embeddings, crops.found, device=device)
    facts = {"protocol": name, "protocol_args": options_of(arguments), "multi": multi, "flip": flip}
    notes = [*crops.notes, *measured.notes, *_overlap(subject, protocol.people)]
    where = out or _default(subject, file_stem(name, data, arguments, flip=flip))
    return _write(protocol, measured, crops.found, crops.batches, facts, subject, where, notes)


def options_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those that are no paths: what was measured, not where."""
    return {
        name: value
        for name, value in arguments.items()
        if not (isinstance(value, str) and Path(value).exists()) and name != "allow_missing"
    }


def file_stem(name: str, data: Path, arguments: dict[str, Any], *, flip: bool) -> str:
    """What the files of an evaluation are called, so that another set or another option overwrites none:
    ``lfw``, ``ijb-my-set-task=1:1``, ``bob-far=0.001-flip``."""
    pairs = arguments.get("pairs")
    of_set = Path(pairs).stem if isinstance(pairs, str) else data.resolve().stem
    says_it_all = isinstance(pairs, str) or data.suffix == ".bin" or of_set.lower().startswith(name.lower())
    stem = of_set if says_it_all else f"{name}-{of_set}"
    options = [f"{option}={value}" for option, value in options_of(arguments).items()]
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", "-".join([stem, *options, *(["flip"] if flip else [])]))[:120]


def evaluate_files(
    name: str,
    protocol: Protocol,
    *,
    out: Path | None,
    device: torch.device,
    data: Path,
    arguments: dict[str, Any],
) -> Evaluation:
    """Measure a protocol without photographs: its files hold embeddings or scores already, and no network is asked."""
    nothing = np.zeros(0, bool)
    measured = protocol.measure(np.zeros((0, 1), np.float32), nothing, device=device)

    def show(wanted: NDArray[np.int64]) -> Iterable[NDArray[np.uint8]]:
        raise AssertionError("there are no photographs to be seen")

    where = out or Path("evaluation", file_stem(name, data, arguments, flip=False))
    facts = {"protocol": name, "protocol_args": options_of(arguments)}
    return _write(protocol, measured, nothing, show, facts, None, where, list(measured.notes))


def evaluate_split(
    workspace: Workspace,
    aligned: Path | None,
    subject: Subject,
    *,
    num_pairs: int,
    seed: int,
    flip: bool,
    out: Path | None,
    device: torch.device,
    jobs: int,
) -> Evaluation:
    """The protocol `split` on the validation split of the current dataset, from its cache."""
    dataset = subject.dataset(workspace, aligned)
    index = read_index(dataset.folder)
    require_same(subject.embedder.spec, subject.what, index.spec, f"dataset {dataset.aligned}")
    rows = select_rows(index, "val")
    cache(workspace, dataset.aligned, threads=jobs, device=str(device))
    shards = workspace.folder / "cache"
    with open_manifest(dataset.folder, shards, "`ft evaluate`") as manifest:
        index = read_index(dataset.folder)
        photos = PhotoSet(index, manifest, shards, rows)
        paths = index.rows["path"].take(pa.array(photos.rows)).to_pylist()
        protocol = Split(
            dataset.aligned, paths, photos.labels, photos.identities, num_pairs=num_pairs, seed=seed
        )
        embeddings = subject.embed(plain_crops(photos, threads=jobs), len(photos), flip=flip)
        measured = protocol.measure(embeddings, np.ones(len(photos), bool), device=device)

        def show(wanted: NDArray[np.int64]) -> Iterable[NDArray[np.uint8]]:
            yield photos.gather(wanted)

        facts = {"protocol": "split", "flip": flip}
        notes = [*measured.notes, *_overlap(subject, protocol.people)]
        where = out or _default(subject, "validation-flip" if flip else "validation")
        return _write(protocol, measured, np.ones(len(photos), bool), show, facts, subject, where, notes)


def _overlap(subject: Subject, people: frozenset[str]) -> list[str]:
    """A note when some of these people were trained on, as far as that is known."""
    both = people & subject.trained_on()
    if not both:
        return []
    return [
        f"{len(both):,} of the {len(people):,} people were trained on ({min(both)}, …): this is no measure of new people"
    ]


def _default(subject: Subject, stem: str) -> Path:
    return Path("evaluation", stem) if subject.run is None else subject.run / "evaluation" / stem


def _write(
    protocol: Protocol,
    measured: Measured,
    found: NDArray[np.bool_],
    show: Shown,
    facts: dict[str, Any],
    subject: Subject | None,
    out: Path,
    notes: list[str],
) -> Evaluation:
    """OUT.json, and beside it whatever else there is to see: curves, every trial, the hardest pairs, score files."""
    out.parent.mkdir(parents=True, exist_ok=True)
    who = out.name if subject is None else subject.name
    files = [out.with_name(out.name + ".json")]
    figures = dict(protocol.figures)
    said = {
        **measured.details,
        **protocol.facts,
        **facts,
        "name": who,
        "photographs": len(found),
        "photographs_without_face": int((~found).sum()),
        "values": dict(measured.values),
        "labels": {name: figure.label.strip() for name, figure in figures.items()},
        "lower_is_better": [name for name, figure in figures.items() if figure.lower_is_better],
        "counts": dict(measured.counts),
        "notes": notes,
        **({} if subject is None else subject.facts),
    }
    files += write_texts(out, measured.files)
    trials = None if measured.trials is None else measured.trials.to_show()
    if trials is not None:
        files.append(write_trials(out, trials, protocol.photographs))
        if trials.first is not None:
            files.append(write_hardest(out, trials, protocol.photographs, show))
        if trials.same.any() and not trials.same.all():
            far, tar, _ = roc(trials.scores, trials.same)
            files += roc_figure({who: (far, tar)}, out.with_name(out.name + ".png"))
    write_json(files[0], said)
    return Evaluation(figures, measured, files, notes)
