"""All heads, and the pair losses, at one equal, small budget on the same split: accuracy over seeds.

    python benchmarks/heads.py LFW WORK [--seeds 3] [--epochs 8] [--heads cosface,arcface]

LFW holds raw/<person>/<person>_NNNN.jpg, people.txt and pairs.txt in LFW's own format. The people of all sets but the
last are trained on, a small network from random weights; the last set's pairs, of people whom the training never saw,
are measured. Every training has the same number of steps of 128 photographs, one thread, the loss's own defaults and the
settings below; nothing is tuned for any. Heads see all photographs, pair losses 16 people × 8 of those with two or more.
What is done already stays in WORK/heads.csv, so it can be interrupted.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

from _common import hardware
from lfw import align, ft, prepare

from facetrain.plugins import BUILT_IN

BACKBONE = {  # a network that a core trains at a thousand photographs a second
    "backbone": "facetrain.train.backbones.iresnet:IResNet",
    "backbone_args": {
        "depths": [1, 1, 1],
        "widths": [24, 48, 96, 192],
        "stem_stride": 4,
        "stem_kernel_px": 7,
        "activation": "leaky_relu",
    },
}
SETTINGS = {
    **BACKBONE,
    "embedding_dim": 128,
    "optimizer": "sgd",
    "lr": 0.1,
    "weight_decay": 5e-4,
    "best": "last",
    "batches_per_epoch": 75,
    "validation_pairs": 20,
}
PAIR_LOSSES = ("triplet", "contrastive", "multi-similarity", "n-pair", "infonce", "supcon", "circle")


def heads() -> list[str]:
    """Built-in heads, each by its first name."""
    by_target: dict[str, str] = {}
    for name, target in BUILT_IN["losses"].items():
        if ".heads." in target:
            by_target.setdefault(target, name)
    return list(by_target.values())


def one(lfw: Path, work: Path, loss: str, seed: int, epochs: int) -> dict[str, object]:
    """Train and measure one; the row of the table."""
    name = f"{loss}-{seed}-{epochs}"
    shutil.rmtree(work / ".ft" / "runs" / name, ignore_errors=True)  # one that was interrupted
    trainer, batch = ("metric", {"people": 16, "images": 8}) if loss in PAIR_LOSSES else ("arcface", {})
    part = {"trainer": trainer, "trainer_args": {"loss": loss, **batch}}
    config = work / f"{name}.json"
    config.write_text(json.dumps({**SETTINGS, **part, "epochs": epochs}))
    started = time.perf_counter()
    facetrain(work, "train", "--config", config.name, "--name", name, "--seed", str(seed), "-j", "1")
    seconds = time.perf_counter() - started
    pairs = ["--pairs", "last-set.txt", "--images", str(lfw / "raw"), "-j", "1", "--json"]
    result = json.loads(facetrain(work, "evaluate", name, *pairs))
    return {
        "loss": loss,
        "seed": seed,
        "epochs": epochs,
        "accuracy": result["accuracy_mean"],
        "auc": result["auc"],
        "eer": result["eer"],
        "seconds": round(seconds, 1),
    }


def facetrain(work: Path, *arguments: str) -> str:
    """What a command prints. Of two that start together, one waits."""
    command = [sys.executable, "-m", "facetrain.cli", "-C", str(work), *arguments]
    while (done := subprocess.run(command, cwd=work, capture_output=True, text=True)).returncode:
        if "is writing to this workspace" not in done.stderr:
            raise SystemExit(f"ft {' '.join(arguments)}\n{done.stderr}")
        time.sleep(1)
    return done.stdout


def table(rows: Iterable[dict[str, str]]) -> str:
    by_loss: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_loss.setdefault(row["loss"], []).append(row)
    lines = [
        "| head or loss | accuracy, mean ± deviation over seeds | AUC | EER | seeds |",
        "|---|---|---|---|---:|",
    ]

    def of(group: list[dict[str, str]], column: str) -> str:
        values = [float(row[column]) for row in group]
        return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")

    for loss, group in sorted(by_loss.items(), key=lambda item: -mean(float(r["auc"]) for r in item[1])):
        cells = [f"`{loss}`", *(of(group, column) for column in ("accuracy", "auc", "eer"))]
        lines.append(f"| {' | '.join(cells)} | {len(group)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lfw", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--heads", help="default: all heads and pair losses")
    parser.add_argument("--processes", type=int, default=1, help="trainings at a time, one thread each")
    arguments = parser.parse_args()
    lfw, work = arguments.lfw.resolve(), arguments.work.resolve()
    if not (work / ".ft").is_dir():
        prepare(lfw, work)
        align(work)
        ft(work, "split", "0.02")
    wanted = arguments.heads.split(",") if arguments.heads else [*heads(), *PAIR_LOSSES]
    results = work / "heads.csv"
    rows = list(csv.DictReader(results.open())) if results.is_file() else []
    done = {(row["loss"], int(row["seed"]), int(row["epochs"])) for row in rows}
    todo = [(loss, seed) for seed in range(arguments.seeds) for loss in wanted]
    todo = [(loss, seed) for loss, seed in todo if (loss, seed, arguments.epochs) not in done]
    with ThreadPoolExecutor(arguments.processes) as pool:
        made = pool.map(lambda job: one(lfw, work, *job, arguments.epochs), todo)
        for row in made:
            with results.open("a", newline="") as file:
                writer = csv.DictWriter(file, row)
                if not file.tell():
                    writer.writeheader()
                writer.writerow(row)
            print(row, flush=True)
    rows = [r for r in csv.DictReader(results.open()) if int(r["epochs"]) == arguments.epochs]
    print(f"\n{arguments.epochs} epochs; {hardware()}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
