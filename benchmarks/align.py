"""`ft align` against OpenFace's procedure and against a bare loop, on the same cores in one run.

    python benchmarks/align.py                                 1,200 synthetic photographs
    python benchmarks/align.py --raw PHOTOGRAPHS --limit 3000  as many, evenly chosen, of a tree of your own

Every round measures them one after the other, the next round in the reverse order; ratios are taken within a round,
so that what else the machine does spoils a round and not the comparison. OpenFace's procedure and the bare loop are
timed from the moment that all models are loaded, `ft align` from the command's start to its end, index and all; what
it takes on a photograph a process is taken off for the rate without start-up and end.

Prints Markdown tables for docs/performance.md: median and range over the rounds.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import dlib
import numpy as np
from _common import ft, hardware

from facetrain.file_table import find_photographs
from facetrain.image_spec import ImageSpec
from facetrain.preprocess.detectors import model_path

SIZE_PX = 96
OUTER_EYES_AND_NOSE = ImageSpec(size_px=SIZE_PX, landmarks="outer-eyes-nose")
HANDED_OUT = 4  # photographs that a process takes at a time
Align = Callable[[Path, Path], bool]  # (photograph, crop without suffix) → a face was found


def openface() -> Align:
    """OpenFace's alignment: upsampled once, always; the largest face; 68 landmarks; affine; PNG."""
    detect = dlib.get_frontal_face_detector()
    predict = dlib.shape_predictor(str(model_path("shape_predictor_68_face_landmarks.dat")))
    template = np.array(OUTER_EYES_AND_NOSE.template_px, np.float32)

    def align(photograph: Path, crop: Path) -> bool:
        bgr = cv2.imread(str(photograph))
        if bgr is None:
            return False
        rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        faces = detect(rgb, 1)
        if not faces:
            return False
        shape = predict(rgb, max(faces, key=lambda face: face.width() * face.height()))
        points = [(point.x, point.y) for point in shape.parts()]
        matrix = cv2.getAffineTransform(np.array([points[i] for i in (36, 45, 33)], np.float32), template)
        image = cv2.warpAffine(rgb, matrix, (SIZE_PX, SIZE_PX))
        cv2.imwrite(f"{crop}.png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        return True

    return align


def bare() -> Align:
    """The least that gives a crop with dlib and OpenCV: read, detect, 5 landmarks, warp, write."""
    detect = dlib.get_frontal_face_detector()
    predict = dlib.shape_predictor(str(model_path("shape_predictor_5_face_landmarks.dat")))
    template = np.array(OUTER_EYES_AND_NOSE.template_px, np.float32)

    def align(photograph: Path, crop: Path) -> bool:
        rgb = cv2.cvtColor(cv2.imread(str(photograph)), cv2.COLOR_BGR2RGB)
        faces = detect(rgb, 0)
        if not faces:
            return False
        shape = predict(rgb, max(faces, key=lambda face: face.area()))
        points = np.array([(shape.part(i).x, shape.part(i).y) for i in (2, 0, 4)], np.float32)
        image = cv2.warpAffine(rgb, cv2.getAffineTransform(points, template), (SIZE_PX, SIZE_PX))
        cv2.imwrite(f"{crop}.jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        return True

    return align


LOOPS = {"openface": openface, "bare": bare}


# -- loops in processes ----------------------------------------------------------------------------------------------


def loop(name: str, raw: Path, out: Path, paths: list[str], shared: Any, results: Any) -> None:
    """One process: load, wait for the others, then align what is left of ``paths`` with them."""
    try:
        cv2.setNumThreads(1)
        align = LOOPS[name]()
        for path in paths[:2]:
            align(raw / path, out / "warm-up")
        barrier, position = shared
        barrier.wait(timeout=120)
        started, cpu, found = (
            time.monotonic(),
            time.process_time(),
            [],
        )  # the first is one clock for all processes
        while True:
            with position.get_lock():
                first = position.value
                position.value += HANDED_OUT
            if first >= len(paths):
                break
            for i in range(first, min(first + HANDED_OUT, len(paths))):
                if align(raw / paths[i], out / str(i)):
                    found.append(paths[i])
        results.put((started, time.monotonic(), time.process_time() - cpu, found))
    except BaseException as error:
        results.put(error)
        raise


@dataclass
class Run:
    """What one procedure took, and in which photographs it found a face."""

    seconds: float
    cpu_seconds: float  # of all processes together
    found: set[str]


def run_loops(name: str, raw: Path, paths: list[str], jobs: int) -> Run:
    """So many processes of a loop together, from the moment that all are ready."""
    context = multiprocessing.get_context("spawn")
    shared, results = (context.Barrier(jobs), context.Value("q", 0)), context.Queue()
    with tempfile.TemporaryDirectory() as out:
        arguments = (name, raw, Path(out), paths, shared, results)
        processes = [context.Process(target=loop, args=arguments, daemon=True) for _ in range(jobs)]
        for process in processes:
            process.start()
        ends = [results.get() for _ in processes]
        for process in processes:
            process.join()
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    starts, stops, cpu_seconds, found = zip(*ends, strict=True)
    return Run(max(stops) - min(starts), sum(cpu_seconds), {path for some in found for path in some})


def run_ft(raw: Path, paths: list[str], jobs: int, work: Path) -> Run:
    """`ft align` as a whole, into a new folder."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = ft(work, "align", str(raw), "aligned", "--size", str(SIZE_PX), "-j", str(jobs))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    (rejected,) = work.glob(".ft/**/rejected.csv")
    with open(rejected, newline="") as file:
        found = set(paths) - {row["path"] for row in csv.DictReader(file)}
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(seconds, cpu_seconds, found)


# -- rounds ----------------------------------------------------------------------------------------------------------


@dataclass
class Round:
    """One run of each, and photographs a second."""

    openface: Run
    bare_alone: Run
    bare_together: Run
    ft: Run
    ft_few: Run  # a photograph for each process: start-up and end
    photographs: int
    jobs: int

    @property
    def rates(self) -> dict[str, float]:
        steady_s = max(self.ft.seconds - self.ft_few.seconds, 1e-9)
        return {
            "openface": self.photographs / self.openface.seconds,
            "bare_alone": len(alone(range(self.photographs), self.jobs)) / self.bare_alone.seconds,
            "bare_together": self.photographs / self.bare_together.seconds,
            "ft": self.photographs / self.ft.seconds,
            "ft_steady": (self.photographs - self.jobs) / steady_s,
        }


def alone(photographs: Sequence[Any], jobs: int) -> Sequence[Any]:
    """As many as each of several processes gets."""
    return photographs[::jobs]


def measure(number: int, raw: Path, few: Path, paths: list[str], jobs: int, work: Path) -> Round:
    """One round; odd ones run backwards."""
    steps: dict[str, Callable[[], Run]] = {
        "openface": lambda: run_loops("openface", raw, paths, jobs),
        "bare_alone": lambda: run_loops("bare", raw, list(alone(paths, jobs)), 1),
        "bare_together": lambda: run_loops("bare", raw, paths, jobs),
        "ft_few": lambda: run_ft(few, [], jobs, work),
        "ft": lambda: run_ft(raw, paths, jobs, work),
    }
    order = list(steps) if number % 2 == 0 else list(reversed(steps))
    return Round(**{name: steps[name]() for name in order}, photographs=len(paths), jobs=jobs)


def median_and_range(values: list[float], digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def link_some(raw: Path, limit: int, to: Path) -> list[str]:
    """Links under ``to`` to ``limit`` photographs of the tree, evenly chosen; their paths."""
    paths = sorted(path for path in find_photographs(raw) if "/" in path)
    count = min(limit or len(paths), len(paths))
    chosen = [paths[i * len(paths) // count] for i in range(count)]
    for path in chosen:
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        (to / path).symlink_to(raw / path)
        (to / path).read_bytes()  # into the system's cache, for all alike
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", type=Path, help="a folder of photographs, one folder a person")
    parser.add_argument("--limit", type=int, default=0, help="photographs, evenly chosen; default: all")
    parser.add_argument("-j", "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--people", type=int, default=60, help="synthetic people, without --raw")
    parser.add_argument("--images", type=int, default=20, help="photographs of each")
    arguments = parser.parse_args()
    jobs = arguments.jobs
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started from here, for all alike

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = arguments.raw.resolve() if arguments.raw else work / "synthetic"
        if not arguments.raw:
            people, images = str(arguments.people), str(arguments.images)
            ft(work, "synth", str(source), "--identities", people, "--images", images)
        paths = link_some(source, arguments.limit, work / "raw")
        link_some(work / "raw", jobs, work / "few")
        rounds = [
            measure(number, work / "raw", work / "few", paths, jobs, work / "ft")
            for number in range(arguments.rounds)
        ]
    print_tables(rounds)


def print_tables(rounds: list[Round]) -> None:
    last, photographs, jobs = rounds[-1], rounds[0].photographs, rounds[0].jobs
    rates = [this.rates for this in rounds]
    print(f"{photographs:,} photographs, {jobs} processes, {len(rounds)} rounds; {hardware()}\n")
    print("| | photographs/s | processor time each, ms | faces found |\n|---|---:|---:|---:|")
    for title, name, count, found in (
        (f"OpenFace's procedure, {jobs} processes", "openface", photographs, last.openface.found),
        ("bare loop, one process alone", "bare_alone", len(alone(range(photographs), jobs)), None),
        (f"bare loop, {jobs} processes", "bare_together", photographs, last.bare_together.found),
        (f"`ft align -j {jobs}`, whole command", "ft", photographs, last.ft.found),
    ):
        cpu_ms = [1e3 * getattr(this, name).cpu_seconds / count for this in rounds]
        faces = "" if found is None else f"{len(found):,}"
        rate = median_and_range([r[name] for r in rates], 0)
        print(f"| {title} | {rate} | {median_and_range(cpu_ms, 2)} | {faces} |")
    print(f"| without start-up and end | {median_and_range([r['ft_steady'] for r in rates], 0)} | | |\n")

    print("| `ft align` within a round | whole command | without start-up and end |\n|---|---:|---:|")
    for title, name, times in (
        ("÷ OpenFace's procedure", "openface", 1),
        (f"÷ {jobs} × bare loop alone", "bare_alone", jobs),
        (f"÷ bare loop in {jobs} processes", "bare_together", 1),
    ):
        ratios = [[r[ours] / (times * r[name]) for r in rates] for ours in ("ft", "ft_steady")]
        print(f"| {title} | {' | '.join(median_and_range(values, 2) for values in ratios)} |")
    theirs, ours = last.openface.found, last.ft.found
    start_s = median_and_range([this.ft_few.seconds for this in rounds], 1)
    print(
        f"\nMedian and range. `ft align` on a photograph for each process: {start_s} s. Faces found by OpenFace's "
        f"procedure alone: {len(theirs - ours)}; by `ft align` alone: {len(ours - theirs)}."
    )


if __name__ == "__main__":
    main()
