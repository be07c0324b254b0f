"""Aligning one block of photographs. This is what runs in a worker process, here or on a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from blake3 import blake3

from facetrain.errors import UserError
from facetrain.file_table import Stat
from facetrain.files import PHOTOGRAPHS, write_bytes
from facetrain.image_spec import ImageSpec
from facetrain.index import ALIGNED
from facetrain.preprocess.crop import crop, encode, is_degenerate
from facetrain.preprocess.detectors import Box, HogDetector, LandmarkPredictor, choose
from facetrain.preprocess.photograph import MAX_PIXELS, Unreadable, read_photograph

FACE_RULES = ("largest", "centre", "skip")
GROUP_PIXELS = 64_000_000  # photographs held decoded at a time, in pixels: bounds a worker's memory


@dataclass(frozen=True)
class AlignSettings:
    """Everything that decides what `ft align` makes of a photograph.

    multi: of several faces take the ``largest``, the one nearest the ``centre``, or ``skip`` the photograph.
    max_pixels: photographs beyond it are taken for decompression bombs.
    """

    spec: ImageSpec = field(default_factory=ImageSpec)
    multi: str = "largest"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.multi not in FACE_RULES:
            raise UserError(
                f"unknown rule '{self.multi}' for several faces: choose one of {', '.join(FACE_RULES)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for records and messages."""
        return asdict(self)


@dataclass(slots=True, frozen=True)
class Task:
    """A photograph to look at; ``known`` is the content that it had when its row, which is intact, was made."""

    path: str
    known: bytes | None = None


@dataclass(slots=True)
class Outcome:
    """A photograph's row of the index (see `index.ROWS`), and the state of the file that it was made from."""

    path: str
    status: str = ""
    reason: str | None = None
    content: bytes | None = None
    size_bytes: int | None = None
    width_px: int | None = None
    height_px: int | None = None
    faces: int | None = None
    detector_score: float | None = None
    box: Box | None = None
    landmarks: list[float] | None = None
    aligned: str | None = None
    aligned_content: bytes | None = None
    stat: Stat | None = None
    unchanged: bool = False  # the content is the known one: the row stands as it is

    @property
    def identity(self) -> str | None:
        """The folder right under RAW."""
        return identity_of(self.path)


def identity_of(path: str) -> str | None:
    """The person that a photograph is filed under: the first folder of its path; None when there is none."""
    folder, slash, _ = path.partition("/")
    return folder if slash else None


def crop_path(path: str, image_format: str) -> str:
    """Where a photograph's crop lies under ALIGNED: ``ann/1.jpg`` → ``ann/1.jpg``, ``ann/1.PNG`` → ``ann/1.PNG.jpg``.

    One to one, so that photographs that differ only in the suffix keep apart; independent of what else is there.
    """
    stem, suffix = os.path.splitext(path)
    if suffix == f".{image_format}" and os.path.splitext(stem)[1].lower() not in PHOTOGRAPHS:
        return path
    folder, slash, name = path.rpartition("/")
    crop_name = f"{name}.{image_format}"
    if len(crop_name.encode()) > 255:  # what file systems allow
        digest = blake2b(name.encode(), digest_size=8).hexdigest()
        crop_name = f"{name.encode()[:200].decode(errors='ignore')}-{digest}.{image_format}"
    return f"{folder}{slash}{crop_name}"


def align_block(raw: Path, aligned: Path, settings: AlignSettings, tasks: Sequence[Task]) -> list[Outcome]:
    """Align some photographs: read, detect, find landmarks, warp, write. One `Outcome` each, in the same order.

    All faces of a group are detected before the first landmark is looked for: the models evict each other from the
    processor's cache otherwise.
    """
    outcomes = [Outcome(task.path) for task in tasks]
    group: list[tuple[Outcome, np.ndarray]] = []
    for outcome, image in _decoded(raw, settings, tasks, outcomes):
        group.append((outcome, image))
        if sum(i.shape[0] * i.shape[1] for _, i in group) >= GROUP_PIXELS:
            _align_group(aligned, settings, group)
            group = []
    _align_group(aligned, settings, group)
    for outcome in outcomes:
        if outcome.status != ALIGNED and not outcome.unchanged:  # an older content's crop must not outlive it
            (aligned / crop_path(outcome.path, settings.spec.format)).unlink(missing_ok=True)
    return outcomes


def _decoded(
    raw: Path, settings: AlignSettings, tasks: Sequence[Task], outcomes: Sequence[Outcome]
) -> Iterator[tuple[Outcome, np.ndarray]]:
    for task, outcome in zip(tasks, outcomes, strict=True):
        try:
            data, outcome.stat = _read_whole(raw / task.path)
            outcome.content, outcome.size_bytes = blake3(data).digest(), len(data)
            if outcome.content == task.known:
                outcome.unchanged = True
                continue
            image = read_photograph(data, max_pixels=settings.max_pixels)
        except OSError as error:
            outcome.status, outcome.reason = "unreadable", error.strerror or str(error)
        except Unreadable as error:
            outcome.status, outcome.reason = "unreadable", str(error)
        else:
            outcome.height_px, outcome.width_px = image.shape[:2]
            yield outcome, image


def _read_whole(path: Path, attempts: int = 3) -> tuple[bytes, Stat]:
    """The file's bytes and its state; read again when it changed meanwhile."""
    for _ in range(attempts):
        with open(path, "rb") as handle:
            before = Stat.of(os.fstat(handle.fileno()))
            data = handle.read()
            if Stat.of(os.fstat(handle.fileno())) == before and len(data) == before.size_bytes:
                return data, before
    raise OSError(0, "it kept changing while being read")


def _align_group(aligned: Path, settings: AlignSettings, group: Sequence[tuple[Outcome, np.ndarray]]) -> None:
    if not group:
        return
    detect, predict = models(settings.spec.detector, settings.spec.predictor)
    found = [detect(image) for _, image in group]
    for (outcome, image), boxes in zip(group, found, strict=True):
        outcome.faces = len(boxes)
        if not boxes:
            outcome.status, outcome.reason = "no-face", "no face found"
            continue
        if len(boxes) > 1 and settings.multi == "skip":
            outcome.status, outcome.reason = "several-faces", f"{len(boxes)} faces found"
            continue
        box = choose(boxes, settings.multi, image.shape[1], image.shape[0])
        points = predict(image, box)
        outcome.box, outcome.landmarks = box, points.ravel().tolist()
        if is_degenerate(points, settings.spec):
            outcome.status, outcome.reason = "no-face", "its landmarks fall on a line"
            continue
        data = encode(crop(image, points, settings.spec), settings.spec)
        outcome.aligned = crop_path(outcome.path, settings.spec.format)
        target = aligned / outcome.aligned
        target.parent.mkdir(parents=True, exist_ok=True)
        # Without fsync: the row carries the crop's hash, and a crop that does not match is made again.
        write_bytes(target, data, sync=False)
        outcome.status, outcome.aligned_content = ALIGNED, blake3(data).digest()


@lru_cache(maxsize=2)
def models(detector: str, predictor: int) -> tuple[HogDetector, LandmarkPredictor]:
    """The models of this process, loaded once; one thread each, since the work is spread over processes."""
    cv2.setNumThreads(1)
    if detector != "hog":
        raise UserError(f"no detector '{detector}': there is hog")
    return HogDetector(), LandmarkPredictor(predictor)
