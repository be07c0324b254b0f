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


def ft(workspace: Path, *arguments: str) -> float:
    """Run a command in the workspace; seconds."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "facetrain.cli", "-C", str(workspace), *arguments]
    subprocess.run(command, check=True, cwd=workspace, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started
