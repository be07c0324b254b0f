"""How exactly float32 is multiplied: as PyTorch is told, in either of its two ways of being told."""

from __future__ import annotations

import subprocess
import sys

import pytest

OLD = "torch.set_float32_matmul_precision('high')"
NEW = "torch.backends.cuda.matmul.fp32_precision = 'tf32'"  # after which PyTorch answers to the old way with an error
SCRIPT = """
import torch
from facetrain.kernels.launch import matmul_precision, products_in
said = [matmul_precision()]
{tell}
said.append(matmul_precision())
with products_in("ieee"):
    said.append(matmul_precision())
    with products_in("ieee"):
        said.append(matmul_precision())
with products_in("tf32"):
    said.append(matmul_precision())
said.append(matmul_precision())
print(*said)
"""


@pytest.mark.parametrize("tell", [OLD, NEW])
def test_float32_is_multiplied_as_pytorch_is_told(tell: str) -> None:
    """In a process of its own: PyTorch does not go back to the old way."""
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(tell=tell)], capture_output=True, text=True)
    assert done.stdout.split() == ["ieee", "tf32", "ieee", "ieee", "tf32", "tf32"], done.stderr
