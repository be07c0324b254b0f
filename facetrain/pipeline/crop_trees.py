"""Trees that a command is pointed at: of crops already, or of photographs that are aligned for it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from facetrain.image_spec import SPEC_FILE, ImageSpec
from facetrain.index import ALIGNED, read_index
from facetrain.pipeline.data import align_some
from facetrain.preprocess.aligner import AlignSettings
from facetrain.workspace import Workspace


def spec_of_crops(workspace: Workspace, tree: Path) -> ImageSpec | None:
    """What a tree of crops holds: as it says itself, or as it was declared to `ft index`; None: photographs."""
    if (tree / SPEC_FILE).is_file():
        return ImageSpec.from_json((tree / SPEC_FILE).read_text())
    known = workspace.known_dataset(tree)
    return read_index(known.folder).spec if known is not None and known.first_stage == "index" else None


def aligned_crops(
    workspace: Workspace, tree: Path, wanted: Collection[str], spec: ImageSpec, multi: str, jobs: int
) -> tuple[Path, dict[str, str]]:
    """The folder of crops, and the crop of each photograph in which a face was found. Kept in the workspace, so that the
    next time they are there."""
    workspace.create()
    index = align_some(workspace, tree, AlignSettings(spec, multi), wanted, jobs=jobs)
    asked = pc.is_in(index.rows["path"], pa.array(sorted(wanted), index.rows["path"].type))
    rows = index.rows.filter(pc.and_(pc.equal(index.rows["status"], ALIGNED), asked))
    return index.folder / "crops", dict(
        zip(rows["path"].to_pylist(), rows["aligned"].to_pylist(), strict=True)
    )
