"""What several benchmarks need."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path


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


def ft(workspace: Path, *arguments: str) -> float:
    """Run a command in the workspace; seconds."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "facetrain.cli", "-C", str(workspace), *arguments]
    subprocess.run(command, check=True, cwd=workspace, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started
