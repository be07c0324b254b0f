"""Mining and heads on a GPU: time, memory, and what of the card's limit it is. Part of benchmarks/gpu.py.

    python benchmarks/gpu_kernels.py                                    at full size, on the GPU
    python benchmarks/gpu_kernels.py --device cpu --rows 100 --classes 300 --dim 32    to see that it runs

Mining: tables of triplets for N rows, 8 of each person, by the kernels alone; then miner, loss and backward pass, beside
pytorch-metric-learning where it is installed and N is at most 8,192. The limit is 2 N² D at the card's peak. Heads: CosFace,
forward, backward and SGD with momentum: in blocks, over sampled classes as Partial FC does, and with all logits at once,
with --compile also through torch.compile. The limit is 8 B C D.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the package may not be installed

from head import SAMPLED, DenseCosFace

if TYPE_CHECKING:
    from facetrain.kernels.mining_triton import Precision

PEAK_FLOPS = {  # dense, of an H100 or H200
    "fp32": 67e12,
    "tf32": 494e12,
    "bf16": 989e12,
}
IMAGES = 8
MARGIN = 0.2


def milliseconds(step: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a step, after three to warm up."""
    times = []
    for i in range(repeats + 3):
        synchronise(device)
        started = time.perf_counter()
        step()
        synchronise(device)
        if i >= 3:
            times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mb(step: Callable[[], object], device: torch.device) -> float:
    """The most memory that a step takes over what is held before it; 0 on a processor, where nothing counts it."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    synchronise(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


Step = Callable[[], object]
LossOf = Callable[[Tensor, Tensor], Tensor]


def mining_step(batch: Tensor, labels: Tensor, strategy: str, positives: str, precision: Precision) -> Step:
    """The table of triplets of one batch [N, D], by the kernels."""
    from facetrain.kernels.mining_table import mine_table

    seed = torch.zeros((), dtype=torch.int32, device=batch.device)
    sizes = {"num_anchors": len(batch), "num_rows": len(batch), "most_alike": IMAGES}
    how = {"strategy": strategy, "positives": positives, "precision": precision}
    return lambda: mine_table(batch[None], labels[None], **sizes, margin=MARGIN, seed=seed, **how)


def loss_step(loss: LossOf, embeddings: Tensor, labels: Tensor) -> Step:
    """Miner, loss and backward pass."""
    embeddings = embeddings.clone().requires_grad_()

    def step() -> None:
        embeddings.grad = None
        loss(embeddings, labels).backward()  # type: ignore[no-untyped-call]

    return step


def mining_lines(device: torch.device, sizes: list[int], dim: int, repeats: int) -> Iterator[str]:
    yield "| N | what | precision | ms | peak MB | times the limit |"
    yield "|---:|---|---|---:|---:|---:|"
    kinds: dict[str, tuple[torch.dtype, Precision]] = {
        "fp32": (torch.float32, "ieee"),
        "tf32": (torch.float32, "tf32"),
        "bf16": (torch.bfloat16, "tf32"),
    }
    if device.type == "cpu":
        del kinds["bf16"]  # Triton's interpreter multiplies the bits
    strategies = (("hardest", "furthest"), ("semihard", "all"), ("all-violating-random", "all"))
    for rows in sizes:
        labels = torch.arange(rows, device=device) // IMAGES
        embeddings = F.normalize(torch.randn(rows, dim, device=device), dim=1)
        for kind, (dtype, precision) in kinds.items():
            for strategy, positives in strategies:
                step = mining_step(embeddings.to(dtype), labels, strategy, positives, precision)
                ms = milliseconds(step, device, repeats)
                limit = 1e3 * 2 * rows**2 * dim / PEAK_FLOPS[kind]
                name = f"{strategy}, {positives} positives"
                yield f"| {rows:,} | {name} | {kind} | {ms:.3f} | {peak_mb(step, device):,.0f} | {ms / limit:.1f} |"
        losses = {
            f"{miner}, loss and backward": ours(miner) for miner in ("batch-hard", "all-violating-random")
        }
        for name, loss in (losses | (theirs() if rows <= 8192 else {})).items():
            step = loss_step(loss, embeddings, labels)
            ms = milliseconds(step, device, repeats)
            yield f"| {rows:,} | {name} | fp32 | {ms:.3f} | {peak_mb(step, device):,.0f} | – |"


def ours(miner: str) -> LossOf:
    from facetrain.train.losses.triplet import Triplet

    loss = Triplet(miner=miner, margin=MARGIN)
    return lambda embeddings, labels: loss(embeddings, labels)[0]


def theirs() -> dict[str, LossOf]:
    try:
        from pytorch_metric_learning.losses import TripletMarginLoss
        from pytorch_metric_learning.miners import BatchHardMiner
    except ImportError:
        return {}
    miner, loss = BatchHardMiner(), TripletMarginLoss(MARGIN)
    return {"batch-hard, loss and backward: pytorch-metric-learning": lambda e, y: loss(e, y, miner(e, y))}


HEADS = ("in blocks", f"{SAMPLED:.0%} of the classes", "all logits", "all logits, torch.compile")


def head_step(how: str, embeddings: Tensor, classes: int) -> Step:
    from facetrain.train.losses.heads.cosface import CosFace
    from facetrain.train.row_optimisers import RowSGD

    dim, device = embeddings.shape[1], embeddings.device
    labels = torch.randint(classes, (len(embeddings),), device=device)
    with device:
        head = DenseCosFace(classes, dim, 64.0) if "logits" in how else CosFace(classes, dim, scale=64.0)
    if how == HEADS[1]:
        head.sampled_classes = SAMPLED
    if "compile" in how:
        head.compile()
    optimiser = RowSGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        head(embeddings, labels)[0].backward()
        optimiser.step()

    return step


def head_lines(
    device: torch.device, sizes: list[int], dim: int, repeats: int, compile: bool
) -> Iterator[str]:
    embeddings = torch.randn(512, dim, device=device, requires_grad=True)
    yield f"| classes | how, B {len(embeddings)} | ms/step | peak MB over weights and momentum | times the bf16 limit |"
    yield "|---:|---|---:|---:|---:|"
    for classes in sizes:
        limit = 1e3 * 8 * len(embeddings) * classes * dim / PEAK_FLOPS["bf16"]
        for how in HEADS:
            if ("compile" in how and not compile) or ("logits" in how and classes > 2_000_000):
                continue
            try:
                step = head_step(how, embeddings, classes)
                ms, mb = milliseconds(step, device, repeats), peak_mb(step, device)
                yield f"| {classes:,} | {how} | {ms:.2f} | {mb:,.0f} | {ms / limit:.1f} |"
            except torch.OutOfMemoryError:
                yield f"| {classes:,} | {how} | does not fit | | |"
            step = None  # type: ignore[assignment]  # and its weights with it


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, nargs="*", default=[4096, 16384, 65536])
    parser.add_argument("--classes", type=int, nargs="*", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile too: takes minutes, needs a compiler"
    )
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    for line in mining_lines(device, arguments.rows, arguments.dim, arguments.repeats):
        print(line, flush=True)
    print()
    for line in head_lines(device, arguments.classes, arguments.dim, arguments.repeats, arguments.compile):
        print(line, flush=True)


if __name__ == "__main__":
    main()
