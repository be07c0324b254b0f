"""The crops of a protocol's photographs, as the network that is measured takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from facetrain.datasets.crop_files import decoded, read_crops
from facetrain.datasets.loader import in_order
from facetrain.errors import UserError
from facetrain.evaluate.protocols.base import Photographs
from facetrain.image_spec import ImageSpec, require_same
from facetrain.pipeline.crop_trees import aligned_crops, spec_of_crops
from facetrain.preprocess.crop import crop_on_five
from facetrain.preprocess.photograph import Unreadable, read_photograph
from facetrain.workspace import Workspace

BATCH = 256

Batches = Iterator[NDArray[np.uint8]]


@dataclass(frozen=True)
class ProtocolCrops:
    """found: bool [n], whether there is a crop of each photograph. ``batches(rows)`` gives uint8
    [b, size_px, size_px, 3] of rows that are found, in their order. notes: what a reader of the figures must know."""

    found: NDArray[np.bool_]
    batches: Callable[[NDArray[np.int64]], Batches]
    notes: tuple[str, ...] = ()


def protocol_crops(
    workspace: Workspace, photographs: Photographs, spec: ImageSpec, what: str, multi: str, jobs: int
) -> ProtocolCrops:
    """Crops with this spec, that of ``what``. Photographs in which faces must be looked for are aligned now, into the
    workspace, where the next evaluation finds them; others are cut out as they are asked for."""
    there = np.array([path != "" for path in photographs.paths], bool)
    root, paths = photographs.root, photographs.paths
    if photographs.read is not None:
        return ProtocolCrops(there, partial(_encoded, photographs, spec, jobs), _unknown_kind(root, spec))
    of_tree = spec_of_crops(workspace, root)
    if of_tree is not None or photographs.kind == "crops":
        require_same(spec, what, spec if of_tree is None else of_tree, str(root))
        notes = _unknown_kind(root, spec) if of_tree is None else ()
        return ProtocolCrops(there, partial(_files, root, paths, spec, jobs), notes)
    if photographs.kind == "faces":
        return ProtocolCrops(there, partial(_cut, photographs, partial(_scaled, spec), jobs))
    if photographs.landmarks is not None and spec.landmarks == "five-point":
        return ProtocolCrops(there, partial(_cut, photographs, partial(_on_landmarks, spec), jobs))
    folder, crop_of = aligned_crops(workspace, root, set(paths) - {""}, spec, multi, jobs)
    if not crop_of:
        raise UserError(f"no face was found in any of the {len(paths):,} photographs in {root}")
    crops = [crop_of.get(path, "") for path in paths]
    notes = ()
    if photographs.landmarks is not None:
        notes = (
            f"the landmarks that come with the photographs are not of the {spec.landmarks} crops that the network takes: "
            f"its detector has looked for the faces",
        )
    found = np.array([crop != "" for crop in crops], bool)
    return ProtocolCrops(found, partial(_files, folder, crops, spec, jobs), notes)


def _unknown_kind(root: Path, spec: ImageSpec) -> tuple[str, ...]:
    return (
        f"{root.name} does not say how its crops were made: the network takes {spec.landmarks} crops "
        f"({spec.detector}, {spec.predictor} points), and does worse on others",
    )


def _files(root: Path, crops: Sequence[str], spec: ImageSpec, jobs: int, rows: NDArray[np.int64]) -> Batches:
    return read_crops(root, [crops[row] for row in rows.tolist()], spec, threads=jobs)


def _encoded(photographs: Photographs, spec: ImageSpec, jobs: int, rows: NDArray[np.int64]) -> Batches:
    assert photographs.read is not None
    read, wanted = photographs.read, rows.tolist()
    names = [f"{photographs.root}: {photographs.paths[row]}" for row in wanted]
    return decoded(names, lambda i: read(wanted[i]), spec, jobs)


def _cut(
    photographs: Photographs,
    cut: Callable[[Photographs, int, np.ndarray], np.ndarray],
    jobs: int,
    rows: NDArray[np.int64],
) -> Batches:
    """Photographs read and cut by threads, in order."""

    def one(row: int) -> np.ndarray:
        file = photographs.root / photographs.paths[row]
        try:
            return cut(photographs, row, read_photograph(file.read_bytes()))
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from None
        except Unreadable as error:
            raise UserError(f"{file} cannot be used: {error}") from None

    made = in_order(one, rows.tolist(), jobs)
    while batch := list(islice(made, BATCH)):
        yield np.stack(batch)


def with_rows_of_none(embeddings: NDArray[np.float32], found: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Embeddings of the photographs that are found, as those of all: the others' are zeros. No copy where all are."""
    if found.all():
        return embeddings
    every = np.zeros((len(found), embeddings.shape[1]), np.float32)
    every[found] = embeddings
    return every


def _scaled(spec: ImageSpec, photographs: Photographs, row: int, image: np.ndarray) -> np.ndarray:
    """A face as it is, at the network's size."""
    larger = max(image.shape[:2]) > spec.size_px
    how = cv2.INTER_AREA if larger else cv2.INTER_LINEAR
    return cv2.resize(image, (spec.size_px, spec.size_px), interpolation=how)


def _on_landmarks(spec: ImageSpec, photographs: Photographs, row: int, image: np.ndarray) -> np.ndarray:
    assert photographs.landmarks is not None
    return crop_on_five(image, photographs.landmarks[row], spec)
