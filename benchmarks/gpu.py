"""Every GPU test and every GPU benchmark there is; the tables go to docs/gpu/<card>.md.

    python benchmarks/gpu.py [--quick]

Needs no dlib, and runs without DALI, so that it runs on a borrowed machine: what needs DALI is left out then, and said.
Where there is no GPU it says so and ends well.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

try:
    import torch
except ImportError:
    sys.exit("PyTorch is not installed here: run `make setup` first, or name an environment with PYTHON=…")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script, run where the package may not be installed

from _common import milliseconds  # noqa: E402


def training_step(name: str, size: int, dtype: torch.dtype) -> Callable[[], None]:
    """One step, forward to optimiser, of a backbone on ``size`` random pictures."""
    from facetrain.batch import Batch
    from facetrain.config import TrainConfig
    from facetrain.train.checkpoint import build_backbone
    from facetrain.train.optimiser import build_optimiser
    from facetrain.train.trainers.triplet import TripletTrainer

    device = torch.device("cuda")
    backbone = build_backbone(name, {}, 128, 96).to(device, memory_format=torch.channels_last)
    trainer = TripletTrainer(size // 4, 128)
    optimiser = build_optimiser(TrainConfig(), backbone)
    images = torch.randn(size, 3, 96, 96, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(size // 4, device=device).repeat_interleave(4)
    batch = Batch(images, labels, labels, size, most_alike=4)
    generator = torch.Generator(device).manual_seed(0)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype is torch.bfloat16):
            embeddings = backbone(batch.images)
        loss, _ = trainer(embeddings.float(), batch, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def training_table(repeats: int) -> list[str]:
    """The training step of every backbone, as lines of a table."""
    from facetrain.plugins import BUILT_IN

    lines = [
        "| backbone | batch | precision | ms/step | images/s | peak MB |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for name in BUILT_IN["backbones"]:
        for size in (180, 720):
            for dtype in (torch.float32, torch.bfloat16):
                torch.cuda.reset_peak_memory_stats()
                ms = milliseconds(training_step(name, size, dtype), torch.device("cuda"), repeats)
                peak = torch.cuda.max_memory_allocated() / 1e6
                precision = str(dtype).removeprefix("torch.")
                lines.append(
                    f"| {name} | {size} | {precision} | {ms:.2f} | {1000 * size / ms:,.0f} | {peak:,.0f} |"
                )
    return lines


def head_step(name: str, num_classes: int) -> Callable[[], None]:
    """Forward, backward and SGD of a head alone, on 512 embeddings of 512 dimensions."""
    from facetrain.plugins import make

    head = make("losses", name, {}, num_classes=num_classes, embedding_dim=512).to("cuda")
    optimiser = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    embeddings = torch.randn(512, 512, device="cuda", requires_grad=True)
    labels = torch.randint(num_classes, (512,), device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)

    def step() -> None:
        loss, _ = head(embeddings, labels, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def head_table(num_classes: int, repeats: int) -> list[str]:
    """The step of every head, as lines of a table."""
    from heads import heads

    lines = ["| head | classes | ms/step | peak MB |", "|---|---:|---:|---:|"]
    for name in heads():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        ms = milliseconds(head_step(name, num_classes), torch.device("cuda"), repeats)
        peak = torch.cuda.max_memory_allocated() / 1e6
        lines.append(f"| {name} | {num_classes:,} | {ms:.2f} | {peak:,.0f} |")
    return lines


def data_lines(quick: bool) -> list[str]:
    """The table of `gpu_data`, or why there is none."""
    try:
        from gpu_data import data_table
    except ImportError as error:
        return [f"Not measured: {error}."]
    return data_table(torch.device("cuda"), 2_000 if quick else 20_000, 2 if quick else 5)


def kernel_lines(quick: bool) -> list[str]:
    """The tables of `gpu_kernels`."""
    from gpu_kernels import head_lines, mining_lines

    device, repeats = torch.device("cuda"), 3 if quick else 20
    rows, classes = ([1024], [10_000]) if quick else ([4096, 16384, 65536], [100_000, 1_000_000, 10_000_000])
    return [
        *mining_lines(device, rows, 512, repeats, compile=not quick),
        "",
        *head_lines(device, classes, 512, repeats, compile=not quick),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few repeats, to see that it runs")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("No NVIDIA GPU here: GPU tests and benchmarks skipped.")
        return
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests"], cwd=ROOT
    )
    card = torch.cuda.get_device_name()
    out = ROOT / "docs" / "gpu" / f"{re.sub(r'[^A-Za-z0-9]+', '-', card).strip('-').lower()}.md"
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    steps, heads = (5, 10_000) if arguments.quick else (50, 100_000)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(f"# {card}\n\n`make gpu`; {versions}. Medians.\n")
    failed = tests.returncode != 0
    for title, lines in {
        "Training step": lambda: training_table(steps),
        "Heads, batch 512, 512 dimensions": lambda: head_table(heads, steps),
        "Mining, and heads of many people": lambda: kernel_lines(arguments.quick),
        "Decoding, loader, augmentation": lambda: data_lines(arguments.quick),
    }.items():
        try:
            found = lines()
        except (
            Exception
        ) as error:  # the GPU is borrowed: what was measured before is kept, and the rest is tried
            found, failed = [f"Failed: {type(error).__name__}: {error}"], True
            traceback.print_exc()
        section = "\n".join(["", f"## {title}", "", *found])
        print(section, flush=True)
        with open(out, "a") as file:
            file.write(section + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
