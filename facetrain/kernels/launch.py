"""How the Triton kernels are launched: how exactly they multiply, and into how many programs the work is cut."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["ieee", "tf32"]


def matmul_precision() -> Precision:
    """``ieee``: float32 exactly; ``tf32``: with 10 bits of its mantissa, many times faster. As PyTorch is told
    (`torch.set_float32_matmul_precision`) for its own products."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def parts(programs: int, columns: int, block: int, wanted: int) -> tuple[int, int]:
    """Into how many parts the columns are cut, for ``wanted`` programs in all where there would be so many; and how many
    columns there are in a part, a multiple of the block. At least one of each."""
    tiles = max(1, -(-columns // block))
    tiles_a_part = -(-tiles // min(-(-wanted // max(programs, 1)), tiles))
    return -(-tiles // tiles_a_part), tiles_a_part * block
