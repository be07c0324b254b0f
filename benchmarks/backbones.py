"""What each backbone costs: parameters, multiply-adds, images a second on one core; memory with checkpointing.

    python benchmarks/backbones.py                          every built-in one, at 112 pixels
    python benchmarks/backbones.py --names iresnet18,timm/convnext_atto --size 96
    python benchmarks/backbones.py --memory --names iresnet50

One thread, batches of 32 random images, in bfloat16 where training would use it, channels last, freed memory kept: as
`ft train` runs. Forward is what evaluation does, the other column the forward and backward pass of a training step.
Networks take turns within a round; the medians of the rounds are printed.

With --memory one training step is run in a process of its own, with and without activation checkpointing, and the most
memory that it had is printed, less what the process had before. Prints Markdown tables for
docs/explanation/backbones.md.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from _common import hardware
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from facetrain.plugins import BUILT_IN, resolve
from facetrain.train.activation_checkpointing import checkpoint_activations
from facetrain.train.loop import bf16_is_fast
from facetrain.train.memory import keep_freed_memory

CPU = torch.device("cpu")
EMBEDDING_DIM = 128


def build(name: str, size_px: int) -> nn.Module:
    net: nn.Module = resolve("backbones", name)(embedding_dim=EMBEDDING_DIM, size_px=size_px)
    return net


def count(name: str, size_px: int) -> tuple[int, int]:
    """Parameters, and multiply-adds for one image."""
    net, counter = build(name, size_px).eval(), FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net(torch.zeros(1, 3, size_px, size_px))
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2


def forward(net: nn.Module, images: torch.Tensor) -> None:
    net.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16_is_fast(CPU)):
        net(images)


def forward_and_backward(net: nn.Module, images: torch.Tensor) -> None:
    net.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16_is_fast(CPU)):
        embeddings = net(images)
    embeddings.float().square().mean().backward()
    net.zero_grad(set_to_none=True)


def seconds(run: Callable[[], None]) -> float:
    """Processor time, which on one thread is what an idle machine would take."""
    started = time.process_time()
    run()
    return time.process_time() - started


def speed(names: list[str], size_px: int, batch: int, rounds: int) -> None:
    keep_freed_memory()
    images = torch.randn(batch, 3, size_px, size_px).to(memory_format=torch.channels_last)
    nets = {name: build(name, size_px).to(memory_format=torch.channels_last) for name in names}
    taken: dict[tuple[str, str], list[float]] = {}
    for round_ in range(rounds + 1):  # the first warms up
        for name, net in nets.items():
            for step in (forward, forward_and_backward):
                elapsed = seconds(lambda net=net, step=step: step(net, images))
                if round_ > 0:
                    taken.setdefault((name, step.__name__), []).append(elapsed)
    print(
        f"| backbone, {size_px} px | parameters | multiply-adds, M | forward, images/s | and backward, images/s |"
    )
    print("|---|---:|---:|---:|---:|")
    for name in names:
        parameters, products = count(name, size_px)
        rates = [
            batch / statistics.median(taken[name, step.__name__]) for step in (forward, forward_and_backward)
        ]
        print(f"| `{name}` | {parameters:,} | {products / 1e6:,.0f} | {rates[0]:,.0f} | {rates[1]:,.0f} |")


def one_step(name: str, size_px: int, batch: int, checkpointing: bool) -> None:
    """Print the memory (MB) and the time (s) of a training step; run in a process of its own."""
    net = build(name, size_px).to(memory_format=torch.channels_last)
    if checkpointing:
        checkpoint_activations(net)
    images = torch.randn(batch, 3, size_px, size_px).to(memory_format=torch.channels_last)
    forward_and_backward(net, images[:2])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    elapsed = seconds(lambda: forward_and_backward(net, images))
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000, elapsed)


def memory(names: list[str], size_px: int, batch: int) -> None:
    print(f"| backbone, {size_px} px, batch {batch} | a step, MB | checkpointed, MB | ratio | time |")
    print("|---|---:|---:|---:|---:|")
    for name in names:
        figures = []
        for checkpointing in ("no", "yes"):
            command = [sys.executable, __file__, "--one-step", checkpointing, "--names", name]
            command += ["--size", str(size_px), "--batch", str(batch)]
            # A fixed threshold gives every large tensor back when it is freed.
            text = subprocess.run(
                command,
                check=True,
                capture_output=True,
                text=True,
                env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
            ).stdout
            figures.append([float(word) for word in text.split()])
        (plain, plain_s), (less, less_s) = figures
        print(f"| `{name}` | {plain:,.0f} | {less:,.0f} | {less / plain:.2f} | × {less_s / plain_s:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--names", default=",".join(BUILT_IN["backbones"]), help="separated by commas")
    parser.add_argument("--size", type=int, default=112, help="pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--one-step", choices=("no", "yes"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names = options.names.split(",")
    if options.one_step:
        one_step(names[0], options.size, options.batch, options.one_step == "yes")
        return
    print(
        f"{hardware()}, one thread; {'bfloat16' if bf16_is_fast(CPU) else 'float32'}; torch {torch.__version__}\n"
    )
    if options.memory:
        memory(names, options.size, options.batch)
    else:
        speed(names, options.size, options.batch, options.rounds)


if __name__ == "__main__":
    main()
