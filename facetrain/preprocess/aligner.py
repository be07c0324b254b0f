"""Aligning one block of photographs. This is what runs in a worker process, here or on a cluster."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from blake3 import blake3

from facetrain.errors import UserError
from facetrain.file_table import Stat, open_file
from facetrain.files import PHOTOGRAPHS, write_bytes
from facetrain.image_spec import ImageSpec
from facetrain.index import ALIGNED
from facetrain.preprocess.crop import crop, encode, is_degenerate
from facetrain.preprocess.detectors import (
    Box,
    Detector,
    LandmarkPredictor,
    choose,
    detect_faces,
    detector_factory,
)
from facetrain.preprocess.photograph import MAX_PIXELS, OutOfMemory, TooLarge, Unreadable, read_photograph

FACE_RULES = ("largest", "centre", "skip")
MAX_BYTES = 2_000_000_000  # of a file; a larger one is not read
INT16, INT32 = 2**15 - 1, 2**31 - 1  # the largest that the index holds
GROUP_PIXELS = 64_000_000  # photographs held decoded at a time, in pixels: bounds a worker's memory


@dataclass(frozen=True)
class AlignSettings:
    """Everything that decides what `ft align` makes of a photograph.

    multi: of several faces take the ``largest``, the one nearest the ``centre``, or ``skip`` the photograph.
    max_pixels: photographs beyond it are taken for decompression bombs. It may change between runs: only those that
    were beyond it are looked at again.
    Raises UserError for a spec that no photograph can be aligned to: crops made elsewhere, an unknown detector.
    """

    spec: ImageSpec = field(default_factory=ImageSpec)
    multi: str = "largest"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.multi not in FACE_RULES:
            raise UserError(
                f"unknown rule '{self.multi}' for several faces: choose one of {', '.join(FACE_RULES)}"
            )
        if not self.spec.made_here:
            raise UserError(
                f"crops of this kind were made elsewhere (detector {self.spec.detector}): ft cannot make such crops "
                f"from photographs; name crops instead of photographs"
            )
        detector_factory(self.spec.detector)

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

    Each step is taken for a whole group of photographs before the next begins: the models, and the code, evict each
    other from the processor's cache otherwise.
    """
    outcomes = [Outcome(task.path) for task in tasks]
    group: list[tuple[Outcome, np.ndarray]] = []
    pixels = 0
    for outcome, image in _decoded(raw, settings, tasks, outcomes):
        group.append((outcome, image))
        pixels += image.shape[0] * image.shape[1]
        if pixels >= GROUP_PIXELS:
            _align_group(aligned, settings, group)
            group, pixels = [], 0
    _align_group(aligned, settings, group)
    for outcome in outcomes:
        if outcome.status != ALIGNED and not outcome.unchanged:  # an older content's crop must not outlive it
            with suppress(OSError):  # it was never there, or something else is called so
                (aligned / crop_path(outcome.path, settings.spec.format)).unlink()
    return outcomes


def _decoded(
    raw: Path, settings: AlignSettings, tasks: Sequence[Task], outcomes: Sequence[Outcome]
) -> Iterator[tuple[Outcome, np.ndarray]]:
    for task, outcome in zip(tasks, outcomes, strict=True):
        try:
            data, outcome.stat = read_whole(raw / task.path)
            outcome.content, outcome.size_bytes = blake3(data).digest(), len(data)
            if outcome.content == task.known:
                outcome.unchanged = True
                continue
            image = read_photograph(data, max_pixels=settings.max_pixels)
        except OSError as error:
            outcome.status, outcome.reason = "unreadable", error.strerror or str(error)
        except Unreadable as error:
            outcome.status, outcome.reason = "unreadable", str(error)
            if isinstance(error, TooLarge):
                outcome.height_px, outcome.width_px = (
                    min(n, INT32) for n in (error.height_px, error.width_px)
                )
            if isinstance(error, OutOfMemory):
                outcome.content = None  # to be looked at again: next time there may be more
        else:
            outcome.height_px, outcome.width_px = image.shape[:2]
            yield outcome, image


def read_whole(path: Path, attempts: int = 3) -> tuple[bytes, Stat]:
    """The file's bytes and its state; read again when it changed meanwhile."""
    for _ in range(attempts):
        with open(path, "rb", buffering=0, opener=open_file) as handle:
            before = Stat.of(os.fstat(handle.fileno()))
            if before.size_bytes > MAX_BYTES:
                raise OSError(errno.EFBIG, f"a file of {before.size_bytes / 1e9:,.1f} GB is no photograph")
            data = handle.read() or b""
            if Stat.of(os.fstat(handle.fileno())) == before and len(data) == before.size_bytes:
                return data, before
    raise OSError(0, "it kept changing while being read")


def _align_group(aligned: Path, settings: AlignSettings, group: Sequence[tuple[Outcome, np.ndarray]]) -> None:
    if not group:
        return
    name = settings.spec.detector
    detector, predict = models(name, settings.spec.predictor)
    found = detect_faces(detector, name, [image for _, image in group])
    with_face: list[tuple[Outcome, np.ndarray, Box]] = []
    for (outcome, image), faces in zip(group, found, strict=True):
        outcome.faces = min(len(faces), INT16)
        if not faces:
            outcome.status, outcome.reason = "no-face", "no face found"
            continue
        if len(faces) > 1 and settings.multi == "skip":
            outcome.status, outcome.reason = "several-faces", f"{len(faces)} faces found"
            continue
        face = choose(faces, settings.multi, image.shape[1], image.shape[0])
        outcome.box, outcome.detector_score = face.box, face.score
        with_face.append((outcome, image, face.box))
    landmarks = [predict(image, box) for _, image, box in with_face]
    for (outcome, image, _), points in zip(with_face, landmarks, strict=True):
        outcome.landmarks = points.ravel().tolist()
        if is_degenerate(points, settings.spec):
            outcome.status, outcome.reason = "no-face", "its landmarks fall on a line"
            continue
        data = encode(crop(image, points, settings.spec), settings.spec)
        target = crop_path(outcome.path, settings.spec.format)
        try:
            _write_crop(aligned / target, data)
        except OSError as error:
            if error.errno not in _NO_PLACE:
                raise
            outcome.status, outcome.reason = "name-clash", f"no place for ALIGNED/{target}: {error.strerror}"
            continue
        outcome.status, outcome.aligned = ALIGNED, target
        outcome.aligned_content = blake3(data).digest()


# Something else has the crop's name (or one of its folders'), or its path is longer than the system takes.
_NO_PLACE = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)


def _write_crop(path: Path, data: bytes) -> None:
    """Without fsync: the row carries the crop's hash, and a crop that does not match is made again."""
    try:
        write_bytes(path, data, sync=False)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data, sync=False)


# A worker may have several threads, and dlib's objects are not to be shared.
_of_this_thread = threading.local()


def models(detector: str, predictor: int) -> tuple[Detector, LandmarkPredictor]:
    """The models of this thread, made once; OpenCV runs on one thread, since the work is spread over workers.

    Raises UserError when the detector cannot be made here.
    """
    wanted = detector, predictor
    if getattr(_of_this_thread, "made_for", None) != wanted:
        cv2.setNumThreads(1)
        _of_this_thread.models = _make_detector(detector), LandmarkPredictor(predictor)
        _of_this_thread.made_for = wanted
    return _of_this_thread.models


def _make_detector(name: str) -> Detector:
    try:
        return detector_factory(name)()
    except (ImportError, OSError, RuntimeError, TypeError) as error:
        raise UserError(f"detector '{name}' cannot be made: {error}") from error
