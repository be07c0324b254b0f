"""What several benchmarks need."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def hardware() -> str:
    """Processor and cores, one line."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []:
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def reset_peak_memory() -> None:
    """Let `peak_memory_mb` count from here. A process begins with its parent's peak."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """The most memory that this process had since `reset_peak_memory`, now as the least."""
    status = Path("/proc/self/status").read_text()
    return float(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def milliseconds(step: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a step, after three to warm up: on a GPU by its own events, elsewhere by the clock."""
    import torch  # what does without it is not to wait for it

    times = []
    for i in range(repeats + 3):
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            step()
            end.record()
            end.synchronize()
            taken = start.elapsed_time(end)
        else:
            started = time.perf_counter()
            step()
            taken = 1e3 * (time.perf_counter() - started)
        if i >= 3:
            times.append(taken)
    return statistics.median(times)


def ft(workspace: Path, *arguments: str) -> float:
    """Run a command in the workspace; seconds."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "facetrain.cli", "-C", str(workspace), *arguments]
    subprocess.run(command, check=True, cwd=workspace, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started
