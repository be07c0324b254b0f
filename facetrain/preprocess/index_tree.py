"""Indexing a tree of crops that were made elsewhere, where it lies: the crops are the photographs of the index."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from blake3 import blake3
from PIL import Image

from facetrain.errors import UserError
from facetrain.file_table import FileTable, find_photographs, walk
from facetrain.image_spec import SPEC_FILE, ImageSpec
from facetrain.index import ALIGNED
from facetrain.preprocess.align_tree import (
    AlignReport,
    alike_names,
    check_photographs,
    without_identity,
)
from facetrain.preprocess.aligner import Outcome, Task, read_whole
from facetrain.preprocess.photograph import FORMATS
from facetrain.preprocess.row_update import RowUpdate, Work


def index_tree(
    root: Path, store: Path, spec: ImageSpec, work: Work, *, redo: bool = False, verify: bool = False
) -> AlignReport:
    """Bring the index in ``store`` up to date with the crops under ``root``, which is only read.

    A crop of another size than the spec's is a row with a reason; whether its pixels are sound is seen when it is
    decoded for the cache. ``verify`` reads and hashes every crop, whatever its times say. Raises UserError for a folder that cannot serve, SpecMismatch when the index is of another
    spec and ``redo`` is not given.
    """
    started = time.monotonic()
    check_photographs(root)
    listing = walk(root)
    settings = {"spec": asdict(spec), "made": "elsewhere"}
    update = RowUpdate(store, spec, settings, str(root), "was indexed", redo=redo, verify=verify)
    refused = list(without_identity(listing))
    update.begin(listing)
    look = partial(index_block, root, spec.size_px)
    looked_at = update.look_at(listing, None, [row.path for row in refused], look, work)
    report = update.finish(listing, refused, looked_at)
    crop_files = FileTable(store / "crops.files.arrow")  # for the cache, which looks at the same files
    crop_files.table = update.raw_files.table
    crop_files.save()
    return AlignReport(report, dict(listing.others), alike_names(update.rows), time.monotonic() - started)


def index_block(root: Path, size_px: int, tasks: Sequence[Task]) -> list[Outcome]:
    """Hash some crops and look at their headers. One `Outcome` each, in the same order."""
    outcomes = []
    for task in tasks:
        outcome = Outcome(task.path)
        outcomes.append(outcome)
        try:
            data, outcome.stat = read_whole(root / task.path)
        except OSError as error:
            outcome.status, outcome.reason = "unreadable", error.strerror or str(error)
            continue
        outcome.content, outcome.size_bytes = blake3(data).digest(), len(data)
        if outcome.content == task.known:
            outcome.unchanged = True
            continue
        found = header_size(data)
        if found is None:
            outcome.status, outcome.reason = (
                "unreadable",
                "no image format that we know" if data else "the file is empty",
            )
            continue
        outcome.width_px, outcome.height_px = found
        if found != (size_px, size_px):
            outcome.status = "other-size"
            outcome.reason = f"it is {found[0]}×{found[1]} pixels, not {size_px}×{size_px} as was declared"
            continue
        outcome.status, outcome.aligned, outcome.aligned_content = ALIGNED, task.path, outcome.content
    return outcomes


def header_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) that an encoded photograph claims; None when it is none. Pixels are not decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except Exception:  # Pillow's parsers raise whatever they stumble over
        return None


@dataclass(frozen=True)
class Declared:
    """What a person says of crops that were made elsewhere; None: not said."""

    size_px: int | None = None
    landmarks: str | None = None
    detector: str | None = None


def spec_of(root: Path, declared: Declared) -> ImageSpec:
    """The ImageSpec of a tree of crops: what its imagespec.json says, else what is declared.

    Raises UserError when neither says the size, or the two disagree.
    """
    check_photographs(root)
    said = {name: value for name, value in vars(declared).items() if value is not None}
    file = root / SPEC_FILE
    if file.is_file():
        spec = ImageSpec.from_json(file.read_text())
        for name, value in said.items():
            if getattr(spec, name) != value:
                raise UserError(
                    f"{file} says {name} {getattr(spec, name)}, not {value}: leave the option out"
                )
        return spec
    if declared.size_px is None:
        first = next(find_photographs(root))
        try:
            found = header_size(read_whole(root / first)[0])
        except OSError:
            found = None
        hint = f" (the first one, {first}, has {found[0]}×{found[1]})" if found else ""
        raise UserError(f"how many pixels have the crops in {root}{hint}? `ft index {root} --size PIXELS`")
    elsewhere = {"landmarks": "five-point", "detector": "unknown"} | said
    return ImageSpec(**elsewhere, predictor=0, quality=0)
