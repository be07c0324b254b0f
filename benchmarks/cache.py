"""Building the cache: beside a bare DALI pipeline over the same files, and what a change of one photograph costs.

    python benchmarks/cache.py                        20,000 made-up crops of 96 pixels
    python benchmarks/cache.py --aligned ALIGNED      crops of your own, in a folder per person
    python benchmarks/cache.py --changes --aligned ALIGNED

The bare pipeline is `fn.readers.file` → `fn.decoders.image` and nothing else: its pixels are dropped. Its better batch
size of 256 and 1024 counts. `build_cache` reads, hashes and decodes the same files, writes and syncs the shards, with
their fingerprints, and the manifest. Both find the files themselves, have as many decoding threads, and are timed in
turn in one process, with the files in memory and DALI loaded; a share is that of a pair of neighbours in time.

With --changes the tree is copied, and a photograph in it changed, added, removed, renamed, all touched, people pruned
and split; after each, `ft index` and `ft cache` are run, as a user does. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from _common import hardware

from facetrain.datasets.cache.build import build_cache
from facetrain.image_spec import ImageSpec
from facetrain.index import read_index
from facetrain.pipeline.data import index as index_crops
from facetrain.preprocess.index_tree import Declared
from facetrain.workspace import Workspace

SIZE_PX = 96
PER_PERSON = 20


def make_crops(folder: Path, count: int) -> None:
    """Smooth random pictures, about as large as JPEGs of faces are, in folders of `PER_PERSON`."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (12, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        image = np.clip(coarse * 0.6 + rng.normal(50, 8, coarse.shape), 0, 255).astype(np.uint8)
        path = folder / f"p{number // PER_PERSON:05d}" / f"{number:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(simplejpeg.encode_jpeg(image, quality=90))
    (folder / "imagespec.json").write_text(ImageSpec(size_px=SIZE_PX).to_json())


def bare(crops: Path, count: int, threads: int, batch: int) -> float:
    """Seconds that a bare pipeline takes to decode all crops once."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=batch, num_threads=threads, device_id=None)
    def pipeline() -> object:
        encoded, _ = fn.readers.file(file_root=str(crops), pad_last_batch=False)
        return fn.decoders.image(encoded, device="cpu", output_type=types.RGB)

    started = time.perf_counter()
    built = pipeline()
    built.build()
    for _ in range(-(-count // batch)):
        built.run()
    return time.perf_counter() - started


def ours(store: Path, crops: Path, shards: Path, threads: int) -> tuple[float, int]:
    """(seconds, bytes) of a cache made from nothing."""
    for name in ("cache.arrow", "crops.files.arrow"):
        (store / name).unlink(missing_ok=True)
    shutil.rmtree(shards, ignore_errors=True)
    started = time.perf_counter()
    report = build_cache(read_index(store), crops, shards, threads=threads)
    return time.perf_counter() - started, report.bytes


def compare(crops: Path, work: Path, rounds: int, threads: list[int]) -> None:
    workspace = Workspace(work / ".ft")
    index_crops(workspace, crops, Declared(None, None, None), jobs=1)
    store = workspace.dataset().folder
    count = int(read_index(store).kept.sum())
    print(f"{count:,} crops; {hardware()}\n")
    print("| threads | bare DALI, crops/s | `build_cache`, crops/s | MB/s written | share of bare |")
    print("|---:|---:|---:|---:|---:|")
    bare(crops, count, threads[0], 256)
    ours(store, crops, work / "shards", threads[0])
    for num_threads in threads:
        rates, shares, written = [], [], []
        for _ in range(rounds):
            floor = min(bare(crops, count, num_threads, batch) for batch in (256, 1024))
            seconds, size = ours(store, crops, work / "shards", num_threads)
            again = min(bare(crops, count, num_threads, batch) for batch in (256, 1024))
            shares.append((floor + again) / 2 / seconds)
            rates.append((2 * count / (floor + again), count / seconds))
            written.append(size / 1e6 / seconds)
        them, us = zip(*rates, strict=True)
        print(
            f"| {num_threads} | {_range(them, ',.0f')} | {_range(us, ',.0f')} | {statistics.median(written):,.0f} "
            f"| {_range(shares, '.2f')} |",
            flush=True,
        )


def _range(values: list[float] | tuple[float, ...], how: str) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):{how}} ({low:{how}}–{high:{how}})"


def changes(crops: Path, work: Path) -> None:
    """What each change makes `ft cache` do."""
    shutil.copytree(crops, work / "crops")
    photographs = sorted((work / "crops").rglob("*.jpg"))
    first, second = photographs[0], photographs[len(photographs) // 2]
    image = simplejpeg.decode_jpeg(first.read_bytes())

    def change() -> None:
        first.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image[:, ::-1]), quality=90))

    def add() -> None:
        added = np.ascontiguousarray(image[::-1])
        (first.parent / "added.jpg").write_bytes(simplejpeg.encode_jpeg(added, quality=90))

    def touch() -> None:
        for path in photographs:
            if path.exists():
                path.touch()

    steps: list[tuple[str, Callable[[], object] | tuple[str, ...]]] = [
        ("first time", lambda: None),
        ("nothing", lambda: None),
        ("one photograph changed", change),
        ("one added", add),
        ("one removed", second.unlink),
        ("one renamed", lambda: photographs[1].rename(photographs[1].with_name("renamed.jpg"))),
        ("all touched", touch),
        ("`ft prune --min 2`", ("prune", "--min", "2")),
        ("`ft split 0.1`", ("split", "0.1")),
        ("`ft prune --undo`", ("prune", "--undo")),
    ]
    print(f"{len(photographs):,} photographs; {hardware()}\n")
    print("| what happened | images decoded | copied | shards written | of | seconds |")
    print("|---|---:|---:|---:|---:|---:|")
    for what, how in steps:
        if isinstance(how, tuple):
            _ft(work, *how)
        else:
            how()
            _ft(work, "index", str(work / "crops"))
        started = time.perf_counter()
        said = _ft(work, "cache").replace(",", "")
        seconds = time.perf_counter() - started
        shards, decoded, copied, written = (
            re.search(rf"(\d+) {word}", said).group(1)  # type: ignore[union-attr]
            for word in ("shards? ?[^w]", "decoded", "copied", "shards? written")
        )
        print(f"| {what} | {decoded} | {copied} | {written} | {shards} | {seconds:.1f} |", flush=True)


def _ft(work: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "facetrain.cli", "-C", str(work), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--aligned", type=Path, help="a tree of crops that `ft align` made")
    parser.add_argument("--crops", type=int, default=20_000, help="how many to make up without --aligned")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--changes", action="store_true", help="what a change costs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        crops = options.aligned
        if crops is None:
            crops = work / "made"
            make_crops(crops, options.crops)
        if options.changes:
            changes(crops, work)
        else:
            compare(crops, work, options.rounds, options.threads)


if __name__ == "__main__":
    main()
