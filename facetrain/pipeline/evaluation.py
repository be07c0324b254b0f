"""ft evaluate: a checkpoint's verification figures, on a pairs file or on the validation split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facetrain.datasets.cache.leases import open_manifest
from facetrain.datasets.crop_files import decoded, read_crops
from facetrain.datasets.importers.verification_bin import read_bin
from facetrain.datasets.loader import plain_crops
from facetrain.datasets.photo_set import PhotoSet, select_rows
from facetrain.errors import UserError
from facetrain.evaluate.figures import roc_figure
from facetrain.evaluate.pairs import PairList, find_photographs, read_pairs
from facetrain.evaluate.retrieval import RetrievalResult, retrieve
from facetrain.evaluate.verification import NUM_FOLDS, VerificationResult, make_pairs, roc, verify
from facetrain.files import write_json
from facetrain.image_spec import ImageSpec, require_same
from facetrain.index import read_index
from facetrain.pipeline.caching import cache
from facetrain.pipeline.crop_trees import aligned_crops, spec_of_crops
from facetrain.pipeline.subject import Subject, counted
from facetrain.progress import Progress
from facetrain.workspace import Workspace

MOST_SEARCHED = 100_000  # photographs, each among all others: half a minute on two cores


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and where it was written."""

    result: VerificationResult
    facts: dict[str, Any]  # what goes into the JSON file beside the result
    files: list[Path]
    notes: list[str]
    retrieval: RetrievalResult | None = None


def evaluate_pairs(
    workspace: Workspace,
    subject: Subject,
    pairs_file: Path,
    images: Path,
    *,
    multi: str,
    no_face: str,
    flip: bool,
    out: Path | None,
    jobs: int,
) -> Evaluation:
    """LFW's protocol on a pairs file; ``images`` raw photographs, or crops with the embedder's ImageSpec.

    no_face: what becomes of a pair with a photograph in which no face was found: ``different``, it is refused and
    counts as told apart; ``drop``, it is left out. flip: see `facetrain.evaluate.embedders.base.Embedder.embed`.
    """
    spec = subject.embedder.spec
    pairs = read_pairs(pairs_file)
    root, crops = _crops_of(workspace, images, pairs, spec, multi, jobs)
    used = sorted(set(crops.values()))
    embeddings = _embedded(subject, read_crops(root, used, spec, threads=jobs), len(used), flip)
    position = {path: i for i, path in enumerate(used)}
    first, second = (
        np.array([position.get(crops.get(key, ""), -1) for key in keys])
        for keys in zip(*[((p.person1, p.number1), (p.person2, p.number2)) for p in pairs], strict=True)
    )
    refused = (first < 0) | (second < 0)
    scores = np.where(refused, -np.inf, (embeddings[first] * embeddings[second]).sum(axis=1))
    keep = ~refused if no_face == "drop" else np.ones(len(scores), bool)
    named = {(p.person1, p.number1) for p in pairs} | {(p.person2, p.number2) for p in pairs}
    facts = {
        "protocol": "lfw",
        "pairs": str(pairs_file),
        "images": str(images),
        "photographs": len(named),
        "photographs_without_face": len(named) - len(crops),
        "no_face_rule": no_face,
        "pairs_dropped": int((~keep).sum()),
        "multi": multi,
        "flip": flip,
    }
    notes = []
    if len(named) > len(crops):
        how = "counted as different people" if no_face == "different" else "left out"
        notes.append(
            f"{len(named) - len(crops)} of {len(named):,} photographs have no face that was found; "
            f"the {int(refused.sum())} pairs with one are {how}"
        )
    notes += _overlap(subject, {name for name, _ in named})
    result = verify(scores[keep], pairs.same[keep], pairs.folds[keep])
    return _write(result, scores[keep], pairs.same[keep], facts, subject, out, pairs_file.stem, notes)


def evaluate_bin(subject: Subject, file: Path, *, flip: bool, out: Path | None, jobs: int) -> Evaluation:
    """LFW's protocol on one of insightface's verification sets, a .bin file with the crops in it.

    Ten folds, cut from the pairs in the file's order, as insightface cuts them. Which crops the file holds it does not
    say: they are taken to be of the embedder's kind if they are of its size.
    """
    pairs = read_bin(file)
    images = [image for first, second, _ in pairs.pairs() for image in (first, second)]
    row_of: dict[bytes, int] = {}  # equal images are embedded once
    rows = np.array([row_of.setdefault(image, len(row_of)) for image in images])
    unique, first = list(row_of), np.unique(rows, return_index=True)[1]
    names = [f"{file}: image {i + 1} of {len(images):,}" for i in first]
    spec = subject.embedder.spec
    embeddings = _embedded(subject, decoded(names, unique.__getitem__, spec, jobs), len(unique), flip)
    scores = (embeddings[rows[::2]] * embeddings[rows[1::2]]).sum(axis=1)
    same = np.array(pairs.same)
    parts = np.array_split(same, min(NUM_FOLDS, len(same)))
    folds = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    facts = {"protocol": "lfw", "pairs": str(file), "photographs": len(unique), "flip": flip}
    notes = [
        f"{file.name} does not say how its crops were made: the network takes {spec.landmarks} crops "
        f"({spec.detector}, {spec.predictor} points), and does worse on others"
    ]
    return _write(verify(scores, same, folds), scores, same, facts, subject, out, file.stem, notes)


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
    """Verification on pairs of the validation split of the current dataset, and retrieval: each of its photographs is
    looked for among all others."""
    dataset = subject.dataset(workspace, aligned)
    index = read_index(dataset.folder)
    require_same(subject.embedder.spec, subject.what, index.spec, f"dataset {dataset.aligned}")
    rows = select_rows(index, "val")
    cache(workspace, dataset.aligned, threads=jobs, device=str(device))
    shards = workspace.folder / "cache"
    with open_manifest(dataset.folder, shards, "`ft evaluate`") as manifest:
        photos = PhotoSet(read_index(dataset.folder), manifest, shards, rows)
        pairs = make_pairs(photos.labels, num_pairs=num_pairs, seed=seed)
        embeddings = _embedded(subject, plain_crops(photos, threads=jobs), len(photos), flip)
    scores = (embeddings[pairs.first] * embeddings[pairs.second]).sum(axis=1)
    facts = {
        "protocol": "split",
        "dataset": str(dataset.aligned),
        "people": len(photos.identities),
        "photographs": len(photos),
        "seed": seed,
        "flip": flip,
    }
    notes = _overlap(subject, set(photos.identities))
    retrieval = None
    if len(photos) <= MOST_SEARCHED:
        retrieval = retrieve(embeddings, photos.labels, device=device)
        facts["retrieval"] = retrieval.to_dict()
    else:
        notes.append(f"retrieval is not measured among more than {MOST_SEARCHED:,} photographs")
    result = verify(scores, pairs.same, pairs.folds)
    done = _write(result, scores, pairs.same, facts, subject, out, "validation", notes)
    return replace(done, retrieval=retrieval)


def _embedded(subject: Subject, batches: Iterable[np.ndarray], count: int, flip: bool) -> np.ndarray:
    """Unit embeddings of crops, with their progress shown."""
    with Progress("embedding", "photographs") as bar:
        bar.begin(count)
        return subject.embedder.embed(counted(batches, bar), flip=flip)


def _crops_of(
    workspace: Workspace, images: Path, pairs: PairList, spec: ImageSpec, multi: str, jobs: int
) -> tuple[Path, dict[tuple[str, int], str]]:
    """The folder of crops, and the crop of each photograph that has one."""
    there = spec_of_crops(workspace, images)
    if there is not None:
        require_same(spec, "the embedder", there, str(images))
        found = find_photographs(images, pairs, allow_missing=True)
        if not found:
            raise UserError(f"none of the photographs that {pairs.path} names is in {images}")
        return images, {key: path.as_posix() for key, path in found.items()}
    photographs = find_photographs(images, pairs)
    wanted = {path.as_posix() for path in photographs.values()}
    root, crop_of = aligned_crops(workspace, images, wanted, spec, multi, jobs)
    crops = {key: crop_of[path.as_posix()] for key, path in photographs.items() if path.as_posix() in crop_of}
    if not crops:
        raise UserError(
            f"no face was found in any of the {len(wanted):,} photographs that {pairs.path} names"
        )
    return root, crops


def _overlap(subject: Subject, people: set[str]) -> list[str]:
    """A note when some of these people were trained on, as far as that is known."""
    both = people & subject.trained_on()
    if not both:
        return []
    return [
        f"{len(both):,} of the {len(people):,} people were trained on ({min(both)}, …): this is no measure of new people"
    ]


def _write(
    result: VerificationResult,
    scores: np.ndarray,
    same: np.ndarray,
    facts: dict[str, Any],
    subject: Subject,
    out: Path | None,
    stem: str,
    notes: list[str],
) -> Evaluation:
    if out is None:
        out = Path("evaluation", stem) if subject.run is None else subject.run / "evaluation" / stem
    out.parent.mkdir(parents=True, exist_ok=True)
    json_file = out.with_name(out.name + ".json")
    write_json(json_file, {**result.to_dict(), **facts, "notes": notes, **subject.facts})
    far, tar, _ = roc(scores, same)
    figures = roc_figure({subject.name: (far, tar)}, out.with_name(out.name + ".png"))
    return Evaluation(result, facts, [json_file, *figures], notes)
