"""Miner, triplet loss and backward pass beside pytorch-metric-learning's: time, ratio and memory.

    python benchmarks/mining.py                         the cases of docs/performance.md
    python benchmarks/mining.py --rows 200 --alone 400  at these sizes

Unit embeddings of 128 dimensions, 40 photographs of each person. Both take turns within a round, in one process; the
medians of the rounds are printed, and the ratio of theirs to ours. Memory is the most that one step takes over what the
process had before it, each in a process of its own. Sizes behind --alone are ours only: theirs would need too much.

Of a batch-hard miner both give one triplet for each photograph. Of semi-hard ones theirs gives every triplet in the
margin, ours one negative, drawn from them, for each anchor–positive pair.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from _common import hardware, peak_memory_mb, reset_peak_memory
from torch import Tensor
from torch.nn import functional as F

from facetrain.train.losses.triplet import Triplet

DIM, IMAGES, MARGIN = 128, 40, 0.2
Step = Callable[[Tensor, Tensor], Tensor]


def ours(miner: str) -> Step:
    loss, generator = Triplet(miner=miner, margin=MARGIN), torch.Generator().manual_seed(0)
    return lambda embeddings, labels: loss(embeddings, labels, generator)[0]


def theirs(miner: str) -> Step:
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import BatchHardMiner, TripletMarginMiner

    mine = BatchHardMiner() if miner == "batch-hard" else TripletMarginMiner(MARGIN, miner)
    loss = TripletMarginLoss(MARGIN)
    return lambda embeddings, labels: loss(embeddings, labels, mine(embeddings, labels))


def batch(rows: int) -> tuple[Tensor, Tensor]:
    """Embeddings as in the midst of a training: photographs of a person lie closer than others, not always."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) // IMAGES
    centres = F.normalize(torch.randn(int(labels[-1]) + 1, DIM, generator=generator), dim=1)
    noise = F.normalize(torch.randn(rows, DIM, generator=generator), dim=1)
    return F.normalize(0.6 * centres[labels] + 0.8 * noise, dim=1), labels


def seconds(step: Step, rows: int) -> float:
    embeddings, labels = batch(rows)
    embeddings.requires_grad_()
    started = time.perf_counter()
    step(embeddings, labels).backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - started


def peak_mb(whose: str, miner: str, rows: int) -> float:
    command = [sys.executable, __file__, "--step", whose, miner, "--rows", str(rows)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def one_step(whose: str, miner: str, rows: int) -> float:
    step = {"ours": ours, "theirs": theirs}[whose](miner)
    seconds(step, 2 * IMAGES)  # what a first call loads is not the step's
    reset_peak_memory()
    before = peak_memory_mb()
    seconds(step, rows)
    return peak_memory_mb() - before


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[1800, 8192])
    parser.add_argument("--alone", type=int, nargs="*", default=[32768])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step", nargs=2, metavar=("WHOSE", "MINER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(one_step(*arguments.step, arguments.rows[0]))
        return
    print(f"{hardware()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| miner | N | ours, s | theirs, s | ratio | ours, MB | theirs, MB | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for rows in arguments.rows:
        for miner in ("batch-hard", "semihard"):
            if miner == "semihard" and rows > 2000:
                alone(miner, rows)  # theirs holds all N³ triplets
            else:
                beside(miner, rows, arguments.rounds)
    for rows in arguments.alone:
        for miner in ("batch-hard", "semihard", "all-violating-random"):
            alone(miner, rows)


def beside(miner: str, rows: int, rounds: int) -> None:
    steps = ours(miner), theirs(miner)
    times = [[seconds(step, rows) for step in steps] for _ in range(rounds + 1)][1:]
    mine, other = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(theirs / ours for ours, theirs in times)
    mb, other_mb = peak_mb("ours", miner, rows), peak_mb("theirs", miner, rows)
    print(
        f"| {miner} | {rows:,} | {mine:.3f} | {other:.3f} | **{ratio:.1f}** | {mb:,.0f} | {other_mb:,.0f} | "
        f"**{other_mb / max(mb, 1):.0f}** |",
        flush=True,
    )


def alone(miner: str, rows: int) -> None:
    step = ours(miner)
    taken = min(seconds(step, rows) for _ in range(2))
    print(
        f"| {miner} | {rows:,} | {taken:.3f} | – | – | {peak_mb('ours', miner, rows):,.0f} | – | – |",
        flush=True,
    )


if __name__ == "__main__":
    main()
