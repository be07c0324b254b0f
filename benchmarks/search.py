"""Exact search, 1:N: each of many probes looked for in a gallery; time and peak memory, beside NumPy and faiss.

    python benchmarks/search.py [--probes 10000] [--gallery 1000000] [--dim 128] [--threads 2] [--rounds 1]

Embeddings are drawn from a seed into files in --work (a temporary folder by default) and memory-mapped as float32, as
anyone would have them: unit vectors, each probe near one row of the gallery, its mate. Each step runs in a process of
its own, once for each round, in turns; the fastest round counts.

- top 20: `search.top_k`, exact scores, torch or (where it is installed) faiss proposing; NumPy's product and argpartition
  by blocks; faiss's flat search as it is. "same rows": the share of probes for which the 20 rows are those of the first.
- ranks of mates: `identification.closed_set`, which counts and keeps no list.

Memory is what a step takes at its peak over what it had with all embeddings in memory, before it began.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from _common import hardware, peak_memory_mb, reset_peak_memory
from numpy.typing import NDArray

K = 20
NOISE = (
    2.2  # of a probe, against its mate's length of 1: cosines of 0.41, as high as a million strangers reach
)
DRAWN_AT_ONCE = 1 << 16
PROBES_AT_ONCE, GALLERY_AT_ONCE = 1024, 1 << 16  # of the plain NumPy search: 256 MiB of products
STEPS = {
    "top": "top 20",
    "top-faiss": "top 20, faiss proposing",
    "numpy": "top 20: NumPy, argpartition by blocks",
    "faiss": "top 20: faiss, flat",
    "ranks": "ranks of mates",
}

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def draw(work: Path, probes: int, gallery: int, dim: int, seed: int) -> None:
    """Write gallery.npy, probes.npy and mates.npy, int64 [probes]: the gallery row of each probe."""
    rng = np.random.default_rng(seed)
    file = np.lib.format.open_memmap(work / "gallery.npy", "w+", np.float32, (gallery, dim))
    for start in range(0, gallery, DRAWN_AT_ONCE):
        part = rng.standard_normal((min(DRAWN_AT_ONCE, gallery - start), dim), np.float32)
        file[start : start + len(part)] = unit(part)
    mates = rng.permutation(gallery)[:probes]
    noise = unit(rng.standard_normal((len(mates), dim), np.float32))
    np.save(work / "probes.npy", unit(file[mates] + np.float32(NOISE) * noise))
    np.save(work / "mates.npy", mates)


def unit(x: Floats) -> Floats:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def numpy_top(probes: Floats, gallery: Floats) -> tuple[Floats, Ints]:
    """What one writes without a library."""
    scores, rows = [], []
    for start in range(0, len(probes), PROBES_AT_ONCE):
        q = probes[start : start + PROBES_AT_ONCE]
        best = np.empty((len(q), 0), np.float32)
        best_rows = np.empty((len(q), 0), np.int64)
        for first in range(0, len(gallery), GALLERY_AT_ONCE):
            products = q @ gallery[first : first + GALLERY_AT_ONCE].T
            k = min(K, products.shape[1])
            chosen = np.argpartition(products, -k, axis=1)[:, -k:]
            best = np.concatenate([best, np.take_along_axis(products, chosen, 1)], axis=1)
            best_rows = np.concatenate([best_rows, chosen + first], axis=1)
            order = np.argsort(-best, axis=1, kind="stable")[:, :K]
            best, best_rows = np.take_along_axis(best, order, 1), np.take_along_axis(best_rows, order, 1)
        scores.append(best)
        rows.append(best_rows)
    return np.concatenate(scores), np.concatenate(rows)


def step_named(name: str, probes: Floats, gallery: Floats, mates: Ints) -> Callable[[], NDArray]:
    """What gives the rows found, or for the ranks their rates; all it needs is imported."""
    from facetrain.evaluate.identification import closed_set
    from facetrain.evaluate.search import top_k

    if name == "top":
        return lambda: top_k(probes, gallery, K, backend="torch")[1]
    if name == "top-faiss":
        import_faiss()
        return lambda: top_k(probes, gallery, K, backend="faiss")[1]
    if name == "numpy":
        return lambda: numpy_top(probes, gallery)[1]
    if name == "faiss":
        faiss = import_faiss()
        return lambda: faiss.knn(probes, gallery, K, metric=faiss.METRIC_INNER_PRODUCT)[1]
    return lambda: np.array(
        list(closed_set(probes, mates, gallery, np.arange(len(gallery)))[0].rank_rates.values())
    )


def import_faiss():  # type: ignore[no-untyped-def]
    import faiss

    faiss.omp_set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return faiss


def run_step(work: Path, name: str) -> None:
    """In a process of its own: print seconds and megabytes, leave what was found in NAME.npy."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    probes, gallery = (np.load(work / f"{what}.npy", mmap_mode="r") for what in ("probes", "gallery"))
    step = step_named(name, probes, gallery, np.load(work / "mates.npy"))
    for part in (probes, gallery):  # all of it in memory, and counted in what was there before
        for start in range(0, len(part), DRAWN_AT_ONCE):
            part[start : start + DRAWN_AT_ONCE].max()
    reset_peak_memory()
    before = peak_memory_mb()
    started = time.perf_counter()
    found = step()
    seconds = time.perf_counter() - started
    np.save(work / f"{name}.npy", found)
    print(json.dumps({"seconds": seconds, "mb": peak_memory_mb() - before}))


def measured(work: Path, name: str, threads: int) -> tuple[float, float]:
    """(seconds, megabytes) of a step."""
    counts = {key: str(threads) for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, __file__, "--step", name, "--work", str(work)]
    text = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | counts).stdout
    found = json.loads(text.splitlines()[-1])
    return found["seconds"], found["mb"]


def table(work: Path, names: list[str], threads: int, rounds: int) -> Iterator[str]:
    best = dict.fromkeys(names, (float("inf"), 0.0))
    for _ in range(rounds):
        for name in names:
            seconds, mb = measured(work, name, threads)
            best[name] = (min(best[name][0], seconds), max(best[name][1], mb))
    yield "| step | s | of the first | peak MB over the embeddings | same rows |"
    yield "|---|---|---|---|---|"
    ours = np.sort(np.load(work / "top.npy"), axis=1)
    for name, (seconds, mb) in best.items():
        same = ""
        if name not in ("top", "ranks"):
            found = np.sort(np.load(work / f"{name}.npy"), axis=1)
            same = f"{(found == ours).all(axis=1).mean():.4%}"
        yield f"| {STEPS[name]} | {seconds:.2f} | {seconds / best['top'][0]:.2f} | {mb:,.0f} | {same} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--probes", type=int, default=10_000)
    parser.add_argument("--gallery", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="a folder for the files; they stay there")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run_step(options.work, options.step)
        return
    names = [name for name in STEPS if "faiss" not in name or find_spec("faiss")]
    with tempfile.TemporaryDirectory() as temp:
        work = options.work or Path(temp)
        work.mkdir(parents=True, exist_ok=True)
        draw(work, options.probes, options.gallery, options.dim, options.seed)
        megabytes = 4e-6 * options.dim * (options.probes + options.gallery)
        print(
            f"{options.probes:,} probes, {options.gallery:,} in the gallery, {options.dim} dimensions ({megabytes:,.0f} MB); "
            f"{hardware()}, {options.threads} threads\n"
        )
        for line in table(work, names, options.threads, options.rounds):
            print(line)
        rates = np.load(work / "ranks.npy")
        print(f"\nRank 1: {rates[0]:.4f}, rank 20: {rates[-1]:.4f}")


if __name__ == "__main__":
    main()
