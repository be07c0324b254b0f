"""A step of training of a CosFace head: in blocks of classes, with all logits at once, and over sampled classes.

    python benchmarks/head.py                                      B 512, D 512, 100,000 and a million people
    python benchmarks/head.py --batch 16 --dim 8 --classes 500     at these sizes

A step is forward, backward and SGD with momentum and weight decay; the gradient of the embeddings is made too. Each kind
runs in a process of its own, three steps, the fastest counts. Memory is the most that the process had over what it
had before the weights were made; beside it that of weights, gradient and momentum, which nothing can do without (where
classes are sampled: of weights and momentum). With all logits only while B × C numbers stay below --dense-elements.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import torch
from _common import hardware, peak_memory_mb, reset_peak_memory
from torch import Tensor

from facetrain.train.losses.dense_head import DenseHead
from facetrain.train.losses.head import Head, Targets
from facetrain.train.losses.heads.cosface import CosFace
from facetrain.train.row_optimisers import RowSGD

SAMPLED = 0.1
KINDS = {
    "blocks": "in blocks",
    "dense": "all logits at once",
    "sampled": f"{SAMPLED:.0%} of the classes, in blocks",
}


class DenseCosFace(DenseHead):
    """CosFace that holds all its logits."""

    def target(self, targets: Targets) -> Tensor:
        return targets.cos_B - 0.35


def measured(kind: str, batch: int, dim: int, classes: int) -> dict[str, float]:
    step(make(kind, 64, dim), batch, 64)  # what a first step loads is not counted
    reset_peak_memory()
    before = peak_memory_mb()
    parts = make(kind, classes, dim)
    seconds = min(step(parts, batch, classes) for _ in range(3))
    of_weights = classes * dim * 4 / 1e6
    return {
        "seconds": seconds,
        "mb": peak_memory_mb() - before,
        "needed_mb": of_weights * (2 if kind == "sampled" else 3),
    }


def make(kind: str, classes: int, dim: int) -> tuple[Head, torch.optim.Optimizer]:
    torch.manual_seed(0)
    head: Head = DenseCosFace(classes, dim, 64.0) if kind == "dense" else CosFace(classes, dim, scale=64.0)
    if kind == "sampled":
        head.sampled_classes = SAMPLED
    return head, RowSGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)


def step(parts: tuple[Head, torch.optim.Optimizer], batch: int, classes: int) -> float:
    head, optimiser = parts
    embeddings = torch.randn(batch, head.weight.shape[1], requires_grad=True)
    labels = torch.randint(classes, (batch,))
    started = time.perf_counter()
    optimiser.zero_grad()
    head(embeddings, labels)[0].backward()
    optimiser.step()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--dense-elements", type=int, default=100_000_000)
    parser.add_argument("--kind", choices=list(KINDS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kind:
        print(json.dumps(measured(arguments.kind, arguments.batch, arguments.dim, arguments.classes[0])))
        return
    print(f"{hardware()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(f"B {arguments.batch}, D {arguments.dim}\n")
    print("| classes | how | step, s | memory, MB | weights, gradient, momentum, MB | more than these, MB |")
    print("|---:|---|---:|---:|---:|---:|")
    for classes in arguments.classes:
        for kind, name in KINDS.items():
            if kind == "dense" and arguments.batch * classes > arguments.dense_elements:
                continue
            sizes = ["--batch", str(arguments.batch), "--dim", str(arguments.dim), "--classes", str(classes)]
            command = [sys.executable, __file__, "--kind", kind, *sizes]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"| {classes:,} | {name} | {found['seconds']:.2f} | {found['mb']:,.0f} | {found['needed_mb']:,.0f} | "
                f"{found['mb'] - found['needed_mb']:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
