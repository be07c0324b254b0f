"""benchmarks/backbones.py runs, at tiny sizes. Nothing here looks at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "backbones.py"


def rows(*options: str) -> list[list[str]]:
    command = [sys.executable, str(SCRIPT), "--size", "32", "--batch", "2", *options]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line] for line in lines]


def test_the_speed_of_backbones() -> None:
    table = rows("--names", "iresnet.small,mobilefacenet", "--rounds", "1")
    assert [row[0] for row in table] == ["`iresnet.small`", "`mobilefacenet`"]
    assert int(table[1][1].replace(",", "")) == 1_003_136 - (7**2 - 2**2) * 512  # fewer places than at 112
    assert all(len(row) == 5 and float(row[4].replace(",", "")) >= 0 for row in table)


@pytest.mark.slow
def test_the_memory_of_backbones() -> None:
    ((name, plain, less, _, _),) = rows("--names", "iresnet.small", "--memory")
    assert name == "`iresnet.small`"
    assert float(plain) >= 0 and float(less) >= 0
