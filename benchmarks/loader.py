"""The loader: batches a second out of the cache, beside the floor (np.take on a memory map) and beside other loaders.

    python benchmarks/loader.py                           20,000 made-up crops of 96 px, without other loaders
    python benchmarks/loader.py --crops ALIGNED           crops of your own, one folder a person
    python benchmarks/loader.py --peers [--python OTHER/bin/python …]    and the other loaders that are installed

Prints Markdown tables: warm, on one thread and on two, with the ratio to the floor in the same round; cold, with the
ratio to reading the files from beginning to end; what augmentation costs; what an epoch's order costs at ten million
photographs; and the other loaders (see loader_peers.py).
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import loader_peers
import numpy as np
import torch
from _common import ft, hardware

from facetrain.datasets.augment import Augment
from facetrain.datasets.cache.manifest import read_manifest
from facetrain.datasets.loader import TrainingBatches, gathered
from facetrain.datasets.photo_set import PhotoSet, select_rows
from facetrain.datasets.samplers import Draw, PeopleSampler, ShuffledSampler
from facetrain.index import read_index
from facetrain.workspace import Workspace

BATCH, PEOPLE, IMAGES = 256, 64, 4
STRENGTHS = (0, 1, 3, 5)


def make_cache(work: Path, crops: Path, size_px: int) -> Callable[[], PhotoSet]:
    """Index and cache a tree of crops; what opens the cache anew."""
    ft(work, "index", str(crops), "--size", str(size_px))
    ft(work, "cache", "--device", "cpu")
    workspace = Workspace.find(work)
    store = workspace.dataset().folder

    def open_() -> PhotoSet:
        index, manifest = read_index(store), read_manifest(store)
        assert manifest is not None
        return PhotoSet(index, manifest, workspace.folder / "cache", select_rows(index, None))

    return open_


def images_per_second(batches: Iterable[Any], size: Callable[[Any], int]) -> float:
    started = time.perf_counter()
    images = sum(size(batch) for batch in batches)
    return images / (time.perf_counter() - started)


def floor(pixels: np.ndarray, threads: int, epochs: int) -> float:
    """np.take from a memory map into a batch's memory, each thread its own."""
    rows = pixels.reshape(len(pixels), -1)

    def gather(thread: int) -> int:
        out = np.empty((BATCH, rows.shape[1]), np.uint8)
        images = 0
        for order in orders:
            for start in range(thread * BATCH, len(order), threads * BATCH):
                part = order[start : start + BATCH]
                np.take(rows, part, axis=0, out=out[: len(part)], mode="clip")
                images += len(part)
        return images

    orders = [np.random.default_rng(epoch).permutation(len(rows)) for epoch in range(epochs)]
    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        return sum(pool.map(gather, range(threads))) / (time.perf_counter() - started)


def ours(photos: PhotoSet, draws: Callable[[int], Iterator[Draw]], threads: int, epochs: int) -> float:
    batches = itertools.chain.from_iterable(gathered(photos, draws(e), threads) for e in range(epochs))
    return images_per_second(batches, lambda batch: len(batch[1]))


def warm_table(photos: PhotoSet, pixels: np.ndarray, rounds: int) -> list[str]:
    shuffled = ShuffledSampler(photos.labels, seed=0, batch_size=BATCH)
    people = PeopleSampler(photos.labels, seed=0, people_per_batch=PEOPLE, images_per_person=IMAGES)
    epochs = -(-100_000 // len(photos))
    rates: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds + 1):  # the first warms up
        for threads in (1, 2):
            found = {
                "floor: np.take on a memory map": floor(pixels, threads, epochs),
                "facetrain, shuffled": ours(photos, shuffled.epoch, threads, epochs),
                f"facetrain, {PEOPLE} people × {IMAGES}": ours(photos, people.epoch, threads, epochs),
            }
            for name, rate in found.items():
                rates.setdefault((name, threads), []).extend([rate] * bool(number))
    names = list(dict.fromkeys(name for name, _ in rates))
    lines = [
        f"| warm, median of {rounds} | 1 thread | of the floor | 2 threads | of the floor |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in names:
        cells = []
        for threads in (1, 2):
            mine, least = rates[name, threads], rates[names[0], threads]
            ratios = [a / b for a, b in zip(mine, least, strict=True)]
            cells += [f"{statistics.median(mine):,.0f}", spread(ratios)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def cold_table(open_: Callable[[], PhotoSet], shards: list[Path], rounds: int) -> list[str]:
    """Images a second with nothing in the page cache, beside reading the shards' files from beginning to end."""

    def reading() -> float:
        photos = open_()
        started = cold_start(shards)
        read_all(shards)
        return len(photos) / (time.perf_counter() - started)

    def shuffled(threads: int, fits: bool) -> float:
        photos = open_()
        sampler = ShuffledSampler(photos.labels, seed=0, batch_size=BATCH)
        started = cold_start(shards)
        photos.shards.read_ahead(fits=fits)
        images = sum(len(batch) for _, batch in gathered(photos, sampler.epoch(0), threads))
        return images / (time.perf_counter() - started)

    rows = {"reading the files in order": reading}
    for threads in (1, 2):
        title = f"facetrain, shuffled, {threads} thread{'s' * (threads > 1)}"
        rows[title] = partial(shuffled, threads, True)
        rows[f"{title}, as with more than fits into memory"] = partial(shuffled, threads, False)
    rates: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, rate in rows.items():
            rates[name].append(rate())
    lines = [f"| cold, median of {rounds} | images/s | of reading in order |", "|---|---:|---:|"]
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(found, rates["reading the files in order"], strict=True)]
        lines.append(f"| {name} | {statistics.median(found):,.0f} | {spread(ratios)} |")
    return lines


def cold_start(paths: list[Path]) -> float:
    """Drop the files from the page cache, in which nothing may be mapped; the time when that is done."""
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
    return time.perf_counter()


def read_all(paths: list[Path]) -> None:
    block = bytearray(8 << 20)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(block):
                pass


def augmentation_table(photos: PhotoSet, rounds: int) -> list[str]:
    """The same batches, augmented; and as the trainers get them, scaled to float32."""
    sampler = ShuffledSampler(photos.labels, seed=0, batch_size=BATCH, batches_per_epoch=40)
    size_px, cpu = photos.image_shape[0], torch.device("cpu")

    def bare(threads: int) -> float:
        return ours(photos, sampler.epoch, threads, 4)

    def augmented(strength: float) -> Callable[[int], float]:
        def rate(threads: int) -> float:
            augment = Augment(size_px, strength, max_batch=BATCH, threads=threads)
            rng = np.random.default_rng(0)
            batches = gathered(photos, sampler.epoch(0), threads)
            return images_per_second((augment(torch.from_numpy(x), rng) for _, x in batches), len)

        return rate

    def trained(threads: int) -> float:
        torch.set_num_threads(threads)
        batches = TrainingBatches(photos, sampler, seed=0, augment=1, threads=threads, device=cpu)
        return images_per_second(batches.epoch(0), lambda batch: len(batch.rows))

    rows = {"the bare loader": bare}
    rows |= {f"augmented, strength {strength}": augmented(strength) for strength in STRENGTHS}
    rows["as trainers get them (strength 1, float32)"] = trained
    rates: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds + 1):
        for name, rate in rows.items():
            for threads in (1, 2):
                rates.setdefault((name, threads), []).extend([rate(threads)] * bool(number))
    lines = [f"| median of {rounds} | 1 thread | 2 threads |", "|---|---:|---:|"]
    for name in rows:
        cells = " | ".join(f"{statistics.median(rates[name, threads]):,.0f}" for threads in (1, 2))
        lines.append(f"| {name} | {cells} |")
    return lines


def order_table(count: int) -> list[str]:
    """Seconds until the first batch of an epoch is known, and for each batch from then on."""
    labels = np.sort(np.random.default_rng(0).integers(0, count // 20, count))
    labels = np.unique(labels, return_inverse=True)[1]
    lines = [
        f"| order of {count:,} photographs | s to the first batch | s a million | µs a batch |",
        "|---|---:|---:|---:|",
    ]
    for name, sampler in {
        "shuffled": ShuffledSampler(labels, seed=0, batch_size=BATCH),
        f"{PEOPLE} people × {IMAGES}": PeopleSampler(
            labels, seed=0, people_per_batch=PEOPLE, images_per_person=IMAGES
        ),
    }.items():
        started = time.perf_counter()
        draws = sampler.epoch(0)
        next(draws)
        first = time.perf_counter() - started
        started = time.perf_counter()
        batches = sum(1 for _ in itertools.islice(draws, 1000))
        each = (time.perf_counter() - started) / max(batches, 1)
        lines.append(f"| {name} | {first:.2f} | {first / count * 1e6:.3f} | {each * 1e6:.0f} |")
    return lines


def peers_table(source: loader_peers.Source, work: Path, pythons: list[str], epochs: int) -> list[str]:
    lines = ["| other loaders | from | 1 | 2 | |", "|---|---|---:|---:|---|"]
    for name, peer in loader_peers.PEERS.items():
        cells = []
        for workers in (1, 2):
            found = loader_peers.run(
                name, source, work / "peers", workers=workers, epochs=epochs, pythons=pythons
            )
            cells.append(found.get("skipped") or f"{found['images_per_s']:,.0f}")
        lines.append(f"| {peer.title} | {peer.start} | {cells[0]} | {cells[1]} | {peer.unit} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--crops", type=Path, help="a tree of JPEG crops of one size, one folder a person")
    parser.add_argument("--images", type=int, default=20_000, help="so many crops at most")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=10_000_000, help="photographs whose order is made")
    parser.add_argument("--peers", action="store_true", help="measure other loaders too")
    parser.add_argument("--python", action="append", default=[], help="an interpreter that has other loaders")
    parser.add_argument("--work", type=Path, help="a folder for the data, on the disk to be measured")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        work = Path(folder)
        source = loader_peers.write_source(work / "source", arguments.images, arguments.crops)
        size_px = source.pixels.shape[1]
        open_ = make_cache(work, source.folder / "crops", size_px)
        print(f"{len(source):,} crops of {size_px} px, batches of {BATCH}; {hardware()}\n")
        cold = cold_table(open_, sorted((work / ".ft" / "cache").glob("*.arrow")), arguments.rounds)
        photos = open_()
        show(warm_table(photos, source.pixels.view(np.ndarray), arguments.rounds))
        show(cold)
        show(augmentation_table(photos, arguments.rounds))
        show(order_table(arguments.rows))
        if arguments.peers:
            show(peers_table(source, work, [sys.executable, *arguments.python], 3))


def show(lines: list[str]) -> None:
    print("\n".join(lines), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
