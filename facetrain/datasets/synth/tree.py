"""A folder of synthetic photographs, laid out as LFW is: ``OUT/person_00001/person_00001_0001.jpg``."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import cv2

from facetrain.datasets.synth.person import make_person, stream
from facetrain.datasets.synth.photograph import draw_photograph
from facetrain.errors import UserError
from facetrain.files import TEMP_PREFIX, sweep, write_bytes, write_json
from facetrain.workers import process_pool, unordered

GENERATOR_VERSION = 1  # raise it with every change that draws other pixels
RECORD = ".synth.json"
MIN_SIZE_PX = 64
PHOTOGRAPHS_PER_TASK = 32

Number = tuple[int, int]  # of the person and of the photograph, both from 1


@dataclass(frozen=True)
class SynthReport:
    """What `synthesise` did: ``photographs`` were asked for, ``drawn`` of them had not been there yet."""

    people: int
    photographs: int
    drawn: int
    seconds: float


def synthesise(
    out: Path,
    *,
    identities: int,
    images: int,
    seed: int = 0,
    size_px: int = 250,
    jobs: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> SynthReport:
    """Fill ``out`` with ``images`` photographs of each of ``identities`` people.

    A photograph depends on ``seed``, ``size_px`` and its own two numbers only (and on the versions of NumPy
    and OpenCV): neither ``jobs`` nor the number of people or photographs changes a byte of it. Photographs
    that are there already are left alone, so an interrupted run is run again to finish it, and a larger one
    extends a smaller one.

    :param out: a new or empty folder, or one that was filled with the same ``seed`` and ``size_px``.
    :param seed: 0 to 2³² − 1.
    :param size_px: side of the square photographs, 64 or more.
    :param jobs: worker processes; 1 draws in this one.
    :param on_progress: called with the number of photographs completed since the last call; those that were
        there already are counted in the first.
    :raises UserError: numbers out of range, or a folder that holds anything else.
    """
    started = time.monotonic()
    check_numbers(identities, images, seed, size_px, jobs)
    claim(out, identities, images, seed, size_px)
    total = identities * images
    missing = sum(1 for _ in _missing(out, identities, images))
    if on_progress is not None and missing < total:
        on_progress(total - missing)
    draw = partial(_draw_block, out, seed, size_px)
    blocks = _blocks(_missing(out, identities, images))
    jobs = min(jobs, -(-missing // PHOTOGRAPHS_PER_TASK))
    with process_pool(jobs) if jobs > 1 else contextlib.nullcontext() as pool:
        for count in unordered(pool, draw, blocks, ahead=3 * jobs) if pool is not None else map(draw, blocks):
            if on_progress is not None:
                on_progress(count)
    return SynthReport(identities, total, missing, time.monotonic() - started)


def check_numbers(identities: int, images: int, seed: int, size_px: int, jobs: int) -> None:
    """UserError for numbers that are out of range."""
    for name, value, least in (("identities", identities, 1), ("images", images, 1), ("jobs", jobs, 1)):
        if value < least:
            raise UserError(f"{name} must be {least} or more, not {value}")
    if size_px < MIN_SIZE_PX:
        raise UserError(f"the size must be {MIN_SIZE_PX} pixels or more, not {size_px}")
    if not 0 <= seed < 2**32:
        raise UserError(f"the seed must be from 0 to {2**32 - 1}, not {seed}")


def claim(
    out: Path, identities: int, images: int, seed: int, size_px: int, layout: str | None = None
) -> None:
    """Write down in ``out`` what it is filled with, or check that this is the same."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a new folder")
    record: dict[str, Any] = {"generator_version": GENERATOR_VERSION, "seed": seed, "size_px": size_px}
    if layout is not None:
        record["layout"] = layout
    largest = {"identities": identities, "images": images}  # asked for so far, for whoever reads it
    path = out / RECORD
    if path.exists():
        found = _read_record(path)
        if found.get("layout") != layout:
            raise UserError(f"{out} was drawn in another layout: name another folder")
        for key, value in record.items():
            if found.get(key) != value:
                name = key.removesuffix("_px").replace("_", " ")
                raise UserError(
                    f"{out} was drawn with {name} {found.get(key)}, not {value}: name another folder"
                )
        for key in largest:
            if isinstance(found.get(key), int):
                largest[key] = max(largest[key], found[key])
        if found == record | largest:
            return
    elif out.is_dir() and any(not entry.name.startswith(TEMP_PREFIX) for entry in out.iterdir()):
        raise UserError(f"{out} is not empty and was not made by ft synth: name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    sweep(out)
    write_json(path, record | largest)


def _read_record(path: Path) -> dict:
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a record of ft synth: name another folder")
    return found


def _photograph_path(out: Path, identity: int, image: int) -> Path:
    person = f"person_{identity:05d}"
    return out / person / f"{person}_{image:04d}.jpg"


def _missing(out: Path, identities: int, images: int) -> Iterator[Number]:
    """The photographs that are not there yet, a person at a time."""
    for identity in range(1, identities + 1):
        paths = [_photograph_path(out, identity, image) for image in range(1, images + 1)]
        try:
            there = set(os.listdir(paths[0].parent))
        except FileNotFoundError:
            there = set()
        for image, path in enumerate(paths, start=1):
            if path.name not in there:
                yield identity, image


def _blocks(numbers: Iterator[Number]) -> Iterator[list[Number]]:
    while block := list(islice(numbers, PHOTOGRAPHS_PER_TASK)):
        yield block


def _draw_block(out: Path, seed: int, size_px: int, block: list[Number]) -> int:
    """Draw and store the photographs of ``block``; returns how many. Runs in a worker."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the processes share the processors out between them
    try:
        person, last = None, 0
        for identity, image in block:
            path = _photograph_path(out, identity, image)
            if person is None or identity != last:
                person, last = make_person(seed, identity), identity
                path.parent.mkdir(exist_ok=True)
                sweep(path.parent)  # what a killed run has left
            pixels, quality = draw_photograph(person, stream(seed, identity, image), size_px)
            flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
            _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), flags)
            write_bytes(path, data.tobytes(), sync=False)
    finally:
        cv2.setNumThreads(threads)
    return len(block)
