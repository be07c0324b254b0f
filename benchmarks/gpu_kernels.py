"""Mining and heads on a GPU: time, memory, and what of the card's limit it is. Part of benchmarks/gpu.py.

    python benchmarks/gpu_kernels.py                                    at full size, on the GPU
    python benchmarks/gpu_kernels.py --device cpu --rows 100 --classes 300 --dim 32    to see that it runs

Mining: tables of triplets for N rows, 8 of each person, by the kernels alone; then miner, loss and backward pass, beside
plain PyTorch with an N × N matrix (or, for a negative of each pair, chunks of anchors × pairs × N), with --compile also
through torch.compile, and beside pytorch-metric-learning where it is installed and N is at most 8,192. The limit is
2 N² D at the card's peak for the precision.

Heads: CosFace, forward, backward and SGD with momentum: ours, ours over sampled classes, and with all logits at once,
with --compile also through torch.compile; beside cut cross-entropy's approach and the arithmetic of insightface's
Partial FC, both in plain form (benchmarks/_gpu_peers.py). The limit is 8 B C D in bfloat16, also where classes are
sampled. Embeddings point anywhere, as early in a training; cut cross-entropy, whose filter gains by it, is measured
also where each has a cosine of .7 to its own class's weight. Up to 2 million classes the gradients of embeddings and
weights are compared with those in float64: the norm of the difference as a share of the norm; and how many tiles
cut cross-entropy's filter kept.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the package may not be installed

from _common import milliseconds
from _gpu_peers import CopyingPartialFC, CutCrossEntropy, PartialFC, a_negative_for_each_pair, batch_hard
from head import SAMPLED, DenseCosFace

if TYPE_CHECKING:
    from facetrain.kernels.launch import Precision

PEAK_FLOPS = {  # dense, of an H100 or H200
    "fp32": 67e12,
    "tf32": 494e12,
    "bf16": 989e12,
}
IMAGES = 8
MARGIN = 0.2
BATCH, SCALE, MARGIN_COS = 512, 64.0, 0.35  # of the heads

Step = Callable[[], object]
LossOf = Callable[[Tensor, Tensor], Tensor]
Gradients = tuple[list[Tensor], str]


def peak_mb(step: Step, device: torch.device) -> float:
    """The most memory that a step takes over what is held before it; 0 on a processor, where nothing counts it."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def measured(make: Callable[[], Step], device: torch.device, repeats: int, limit_ms: float) -> str:
    """Cells of a table: ms, peak MB, times the limit; or why there are none."""
    reason = ""
    try:
        step = make()
        ms = milliseconds(step, device, repeats)
        return f"{ms:.3f} | {peak_mb(step, device):,.0f} | {ms / limit_ms:.1f}"
    except torch.OutOfMemoryError:
        reason = "does not fit"
    except RuntimeError as error:
        if not any("torch._dynamo" in kind.__module__ for kind in type(error).__mro__):
            raise
        reason = f"torch.compile fails: {type(error).__name__}"
    finally:
        step = None  # type: ignore[assignment]  # and its weights with it
        free(device)
    return f"{reason} | | "


def free(device: torch.device) -> None:
    """Give back what nobody holds any more: in the next row it may not fit beside it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def mining_step(batch: Tensor, labels: Tensor, strategy: str, positives: str, precision: Precision) -> Step:
    """The table of triplets of one batch [N, D], by the kernels."""
    from facetrain.kernels.mining_table import mine_table

    rows, seed = len(batch), torch.zeros((), dtype=torch.int32, device=batch.device)
    return lambda: mine_table(
        batch[None],
        labels[None],
        num_anchors=rows,
        num_rows=rows,
        most_alike=IMAGES,
        margin=MARGIN,
        strategy=strategy,
        positives=positives,
        seed=seed,
        precision=precision,
    )


def loss_step(loss_of: Callable[[], LossOf], embeddings: Tensor, labels: Tensor) -> Step:
    """Miner, loss and backward pass."""
    embeddings, loss = embeddings.clone().requires_grad_(), loss_of()

    def step() -> None:
        loss(embeddings, labels).backward()
        embeddings.grad = None

    return step


def mining_lines(
    device: torch.device, sizes: list[int], dim: int, repeats: int, compile: bool
) -> Iterator[str]:
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
        torch.manual_seed(0)
        labels = torch.arange(rows, device=device) // IMAGES
        embeddings = F.normalize(torch.randn(rows, dim, device=device), dim=1)
        for kind, (dtype, precision) in kinds.items():
            limit = 1e3 * 2 * rows**2 * dim / PEAK_FLOPS[kind]
            for strategy, positives in strategies:
                make = partial(mining_step, embeddings.to(dtype), labels, strategy, positives, precision)
                cells = measured(make, device, repeats, limit)
                yield f"| {rows:,} | {strategy}, {positives} positives | {kind} | {cells} |"
        for kind in ("fp32", "tf32"):
            limit = 1e3 * 2 * rows**2 * dim / PEAK_FLOPS[kind]
            for name, loss_of in losses(compile, theirs_too=rows <= 8192).items():
                with float32_products(kind):
                    cells = measured(partial(loss_step, loss_of, embeddings, labels), device, repeats, limit)
                yield f"| {rows:,} | {name} | {kind} | {cells} |"


def float32_products(kind: str) -> AbstractContextManager[None]:
    """Of what PyTorch's products of float32 are made, "fp32" or "tf32"; others are untouched."""
    from facetrain.kernels.launch import products_in

    return products_in("tf32" if kind == "tf32" else "ieee")


def losses(compile: bool, theirs_too: bool) -> dict[str, Callable[[], LossOf]]:
    """Miner and triplet loss, by name, to be made: ours and others'."""
    made: dict[str, Callable[[], LossOf]] = {}
    for miner in ("batch-hard", "all-violating-random", "closest-semihard"):
        name = f"{miner}, loss and backward"
        made[name] = partial(ours, miner)
        made[f"{name}: plain PyTorch"] = partial(plain, miner, False)
        if compile:
            made[f"{name}: plain PyTorch, torch.compile"] = partial(plain, miner, True)
    if theirs_too and importlib.util.find_spec("pytorch_metric_learning"):
        made["batch-hard, loss and backward: pytorch-metric-learning"] = theirs
    return made


def ours(miner: str) -> LossOf:
    from facetrain.train.losses.triplet import Triplet
    from facetrain.train.miners.mined import Mined

    loss = Triplet(miner="batch-hard", margin=MARGIN)
    if miner != "batch-hard":
        loss.miner = Mined(strategy=miner)
    loss.most_alike = IMAGES
    return lambda embeddings, labels: loss(embeddings, labels)[0]


def plain(miner: str, compile: bool) -> LossOf:
    if compile:
        torch.compiler.reset()  # of each size on its own, however many there were
    if miner == "batch-hard":
        loss = torch.compile(batch_hard, dynamic=False) if compile else batch_hard
        return lambda embeddings, labels: loss(embeddings, labels, MARGIN)
    return a_negative_for_each_pair(IMAGES, MARGIN, closest=miner == "closest-semihard", compile=compile)


def theirs() -> LossOf:
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import BatchHardMiner

    miner, loss = BatchHardMiner(), TripletMarginLoss(MARGIN)
    return lambda embeddings, labels: loss(embeddings, labels, miner(embeddings, labels))


@dataclass(frozen=True)
class Way:
    """A head to measure. ``near``: cosine of the embeddings to the weights of their own classes, about."""

    name: str
    precision: str
    make: Callable[[int, int], nn.Module]  # of classes and dimensions
    most_classes: int = sys.maxsize
    near: float = 0.0
    is_compiled: bool = False
    is_sampled: bool = False


def ways(compile: bool) -> Iterator[Way]:
    for kind in ("fp32", "tf32"):
        yield Way("ours", kind, cosface)
        yield Way(
            f"ours, {SAMPLED:.0%} of the classes", kind, partial(cosface, share=SAMPLED), is_sampled=True
        )
        yield Way("all logits", kind, all_logits, 2_000_000)
        if compile:
            yield Way("all logits, torch.compile", kind, all_logits, 2_000_000, is_compiled=True)
    how = (SCALE, MARGIN_COS, torch.bfloat16)
    for eps, name in ((2**-12, "cut cross-entropy"), (0.0, "cut cross-entropy, no filter")):
        make = peer(CutCrossEntropy, *how, filter_eps=eps)
        yield Way(name, "bf16", make)
        yield Way(f"{name}, near own weights", "bf16", make, near=0.7)
    yield Way("Partial FC, all classes", "bf16", peer(PartialFC, *how))
    make = peer(PartialFC, *how, rate=SAMPLED)
    yield Way(f"Partial FC, {SAMPLED:.0%}, gradient of all weights", "bf16", make, is_sampled=True)
    make = peer(CopyingPartialFC, *how, rate=SAMPLED)
    yield Way(f"Partial FC, {SAMPLED:.0%}, rows copied back", "bf16", make, is_sampled=True)


def cosface(classes: int, dim: int, share: float = 1.0) -> nn.Module:
    from facetrain.train.losses.heads.cosface import CosFace

    head = CosFace(classes, dim, margin_cos=MARGIN_COS, scale=SCALE)
    head.sampled_classes = share
    return head


def all_logits(classes: int, dim: int) -> nn.Module:
    return DenseCosFace(classes, dim, SCALE)


def peer(kind: Callable[..., nn.Module], *how: object, **options: object) -> Callable[[int, int], nn.Module]:
    return lambda classes, dim: kind(classes, dim, *how, **options)


def built(way: Way, classes: int, dim: int, device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    """The head, embeddings [BATCH, D] and labels: the same for each way that is as near."""
    torch.manual_seed(0)
    with device:
        head = way.make(classes, dim)
        labels = torch.randint(classes, (BATCH,))
        anywhere = F.normalize(torch.randn(BATCH, dim))
    if way.is_compiled:
        torch.compiler.reset()
        head.compile(dynamic=False)
    with torch.no_grad():
        own = F.normalize(head.weight[labels])  # type: ignore[index]
        embeddings = way.near * own + (1 - way.near**2) ** 0.5 * anywhere
    return head, embeddings.requires_grad_(), labels


def loss_of_head(head: nn.Module, embeddings: Tensor, labels: Tensor) -> Tensor:
    loss = head(embeddings, labels)
    return loss[0] if isinstance(loss, tuple) else loss


class Optimiser(Protocol):
    def step(self) -> object: ...


def head_step(way: Way, classes: int, dim: int, device: torch.device) -> Step:
    from facetrain.train.row_optimisers import RowSGD

    head, embeddings, labels = built(way, classes, dim, device)
    optimiser: Optimiser = (
        head
        if isinstance(head, CopyingPartialFC)
        else RowSGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
    )

    def step() -> None:
        loss_of_head(head, embeddings, labels).backward()
        optimiser.step()
        head.zero_grad()  # here, so that no gradient is held before the next step
        embeddings.grad = None

    return step


def gradients(way: Way, classes: int, dim: int, device: torch.device, dtype: torch.dtype) -> Gradients:
    """Of the embeddings and of the weights, as float32, and what is to be said of them."""
    head, embeddings, labels = built(way, classes, dim, device)
    head, embeddings = head.to(dtype), embeddings.detach().to(dtype).requires_grad_()
    loss_of_head(head, embeddings, labels).backward()
    found = [
        parameter.grad.float() for parameter in (embeddings, *head.parameters()) if parameter.grad is not None
    ]
    kept = head.kept if isinstance(head, CutCrossEntropy) else []
    return found, f", {torch.stack(kept).mean():.1%} of the tiles" if kept else ""


def distance(way: Way, classes: int, dim: int, device: torch.device) -> str:
    """A cell of a table: how far the gradients are from those in float64."""
    if way.is_sampled or way.is_compiled or classes > 2_000_000:
        return ""
    try:
        exact, _ = gradients(Way("", "fp64", cosface, near=way.near), classes, dim, device, torch.float64)
        found, said = gradients(way, classes, dim, device, torch.float32)
        shares = [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
        return " / ".join(f"{share:.0e}" for share in shares) + said
    except torch.OutOfMemoryError:
        return "does not fit"
    finally:
        exact = found = None  # type: ignore[assignment]
        free(device)


def head_lines(
    device: torch.device, sizes: list[int], dim: int, repeats: int, compile: bool
) -> Iterator[str]:
    yield (
        f"| classes | how, B {BATCH} | precision | ms/step | peak MB over weights and momentum | "
        "times the bf16 limit | gradients off by: embeddings / weights |"
    )
    yield "|---:|---|---|---:|---:|---:|---|"
    for classes in sizes:
        limit = 1e3 * 8 * BATCH * classes * dim / PEAK_FLOPS["bf16"]
        for way in ways(compile):
            if classes > way.most_classes:
                continue
            with float32_products(way.precision):
                cells = measured(partial(head_step, way, classes, dim, device), device, repeats, limit)
                off = distance(way, classes, dim, device)
            yield f"| {classes:,} | {way.name} | {way.precision} | {cells} | {off} |"


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
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("No NVIDIA GPU here: --device cpu, with small sizes, shows that it runs.")
    if device.type == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton
    for line in mining_lines(device, arguments.rows, arguments.dim, arguments.repeats, arguments.compile):
        print(line, flush=True)
    print()
    for line in head_lines(device, arguments.classes, arguments.dim, arguments.repeats, arguments.compile):
        print(line, flush=True)


if __name__ == "__main__":
    main()
