"""A folder of synthetic photographs in the layout of a set of the field, with its lists."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from facetrain.datasets.synth.landmarks import face_landmarks
from facetrain.datasets.synth.layouts import Drawing, layout_named
from facetrain.datasets.synth.person import make_person, stream
from facetrain.datasets.synth.photograph import draw_photograph
from facetrain.datasets.synth.tree import PHOTOGRAPHS_PER_TASK, SynthReport, check_numbers, claim
from facetrain.files import sweep, write_bytes
from facetrain.workers import process_pool, unordered

HEAD_MARGIN = 0.15  # of the head's size, around it, in photographs of a face only


def synthesise_layout(
    out: Path,
    layout: str,
    *,
    identities: int,
    images: int,
    seed: int = 0,
    size_px: int = 250,
    jobs: int = 1,
    on_start: Callable[[int], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> SynthReport:
    """Fill ``out`` with photographs laid out as `facetrain.datasets.synth.layouts` has it, and write the lists.

    As `synthesise`: photographs that are there already are left alone, the lists are written anew. on_start: called with
    the number of all photographs. Raises UserError for numbers that are too small for the set, an unknown layout, or a folder
    that holds anything else.
    """
    started = time.monotonic()
    check_numbers(identities, images, seed, size_px, jobs)
    plan = layout_named(layout)(identities, images, seed, size_px)
    claim(out, identities, images, seed, size_px, layout)
    missing = [drawing for drawing in plan.drawings if not (out / drawing.path).is_file()]
    if on_start is not None:
        on_start(len(plan.drawings))
    if on_progress is not None and len(missing) < len(plan.drawings):
        on_progress(len(plan.drawings) - len(missing))
    for folder in sorted({(out / drawing.path).parent for drawing in missing}):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
    blocks = [missing[i : i + PHOTOGRAPHS_PER_TASK] for i in range(0, len(missing), PHOTOGRAPHS_PER_TASK)]
    draw = partial(_draw_block, out, seed)
    jobs = min(jobs, len(blocks))
    with process_pool(jobs) if jobs > 1 else contextlib.nullcontext() as pool:
        for count in unordered(pool, draw, blocks, ahead=3 * jobs) if pool is not None else map(draw, blocks):
            if on_progress is not None:
                on_progress(count)
    plan.write_lists(out)
    people = len({drawing.identity for drawing in plan.drawings})
    return SynthReport(people, len(plan.drawings), len(missing), time.monotonic() - started)


def _draw_block(out: Path, seed: int, block: Sequence[Drawing]) -> int:
    """Draw and store these photographs; returns how many. Runs in a worker."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the processes share the processors out between them
    try:
        for drawing in block:
            _draw(out, seed, drawing)
    finally:
        cv2.setNumThreads(threads)
    return len(block)


def _draw(out: Path, seed: int, drawing: Drawing) -> None:
    person, rng = make_person(seed, drawing.identity), stream(seed, drawing.identity, drawing.image)
    size_px = drawing.size_px
    if drawing.face_only:
        size_px = max(250, 3 * size_px)  # the head takes about half of a photograph
    pixels, quality = draw_photograph(person, rng, size_px)
    if drawing.face_only:
        pixels = _head_of(pixels, seed, drawing, size_px)
    flags = [] if drawing.path.endswith(".png") else [cv2.IMWRITE_JPEG_QUALITY, quality]
    _, data = cv2.imencode(Path(drawing.path).suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), flags)
    write_bytes(out / drawing.path, data.tobytes(), sync=False)


def _head_of(pixels: np.ndarray, seed: int, drawing: Drawing, size_px: int) -> np.ndarray:
    _, (left, top, right, bottom) = face_landmarks(seed, drawing.identity, drawing.image, size_px)
    margin = HEAD_MARGIN * (bottom - top)
    x0, y0 = max(round(left - margin), 0), max(round(top - margin), 0)
    x1, y1 = min(round(right + margin), size_px), min(round(bottom + margin), size_px)
    return cv2.resize(pixels[y0:y1, x0:x1], (drawing.size_px, drawing.size_px), interpolation=cv2.INTER_AREA)
