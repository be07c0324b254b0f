"""Decoding, the loader and augmentation on the way to a device: images a second. A part of `make gpu`.

    python benchmarks/gpu_data.py                     made-up crops, the GPU
    python benchmarks/gpu_data.py --device cpu        the same on the processor alone

Needs DALI. Prints a Markdown table; times are of the clock, until the last image is there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import loader_peers
import numpy as np
import torch
from loader import make_cache

from facetrain.datasets.augment import Augment
from facetrain.datasets.cache.decode import Decoder
from facetrain.datasets.loader import TrainingBatches, plain_batches
from facetrain.datasets.photo_set import PhotoSet
from facetrain.datasets.samplers import ShuffledSampler

BATCH = 256


def data_table(device: torch.device, images: int, rounds: int) -> list[str]:
    """The table's lines."""
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        source = loader_peers.write_source(Path(folder) / "source", images)
        size_px = source.pixels.shape[1]
        photos = make_cache(Path(folder), source.folder / "crops", size_px)()
        encoded = [path.read_bytes() for path in source.files]
        rows: list[tuple[str, Callable[[], int]]] = []
        for name in dict.fromkeys(("cpu", device.type)):
            rows.append((f"decoding, {name}", decoding(name, encoded, size_px, threads)))
        for count in sorted({1, threads}):
            rows.append((f"loader, {count} threads", lambda count=count: plain(photos, device, count)))
        for strength in (1, 3):
            title = f"loader and augmentation, strength {strength}, {threads} threads"
            rows.append((title, augmented(photos, device, strength, threads)))
        rows.append(("augmentation alone, strength 1", augmentation_alone(photos, device, size_px, threads)))
        lines = ["| | images/s |", "|---|---:|"]
        for title, run in rows:
            run()
            rates = []
            for _ in range(rounds):
                started = time.perf_counter()
                count = run()
                rates.append(count / (time.perf_counter() - started))
            lines.append(f"| {title} | {statistics.median(rates):,.0f} |")
    return lines


def decoding(device: str, encoded: list[bytes], size_px: int, threads: int) -> Callable[[], int]:
    decoder = Decoder(size_px, threads, device)
    out = np.empty((len(encoded), size_px, size_px, 3), np.uint8)

    def run() -> int:
        assert not decoder.decode(encoded, out)
        return len(encoded)

    return run


def plain(photos: PhotoSet, device: torch.device, threads: int) -> int:
    count = sum(len(batch) for batch in plain_batches(photos, device, batch_size=BATCH, threads=threads))
    wait(device)
    return count


def augmented(photos: PhotoSet, device: torch.device, strength: float, threads: int) -> Callable[[], int]:
    sampler = ShuffledSampler(photos.labels, seed=0, batch_size=BATCH)
    batches = TrainingBatches(photos, sampler, seed=0, augment=strength, threads=threads, device=device)

    def run() -> int:
        count = sum(len(batch.rows) for batch in batches.epoch(0))
        wait(device)
        return count

    return run


def augmentation_alone(
    photos: PhotoSet, device: torch.device, size_px: int, threads: int
) -> Callable[[], int]:
    augment = Augment(size_px, 1, max_batch=BATCH, threads=threads, device=device)
    images = torch.from_numpy(photos.gather(np.arange(min(BATCH, len(photos))))).to(device)

    def run() -> int:
        rng = np.random.default_rng(0)
        for _ in range(20):
            augment(images, rng)
        wait(device)
        return 20 * len(images)

    return run


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print("\n".join(data_table(torch.device(arguments.device), arguments.images, arguments.rounds)))


if __name__ == "__main__":
    main()
