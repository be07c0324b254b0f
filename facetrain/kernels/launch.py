"""How the Triton kernels are launched: how exactly they multiply, and into how many programs the work is cut."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["ieee", "tf32"]


def matmul_precision() -> Precision:
    """``ieee``: float32 exactly; ``tf32``: with 10 bits of its mantissa, many times faster. As PyTorch is told
    (`torch.set_float32_matmul_precision`) for its own products."""
    try:
        return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    except RuntimeError:  # it was told so by the newer way of saying it, and answers to no other
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


@contextmanager
def products_in(precision: Precision) -> Iterator[None]:
    """Let float32 be multiplied so meanwhile, by PyTorch and by the kernels."""
    if matmul_precision() == precision:
        yield
        return
    matmul = torch.backends.cuda.matmul
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # as above
        before, matmul.fp32_precision = matmul.fp32_precision, precision
        try:
            yield
        finally:
            matmul.fp32_precision = before
        return
    torch.set_float32_matmul_precision("highest" if precision == "ieee" else "high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def on_device_of(rows: Tensor) -> AbstractContextManager[object]:
    """Where Triton launches: on the current GPU, whatever tensors it is given."""
    return torch.cuda.device(rows.device) if rows.is_cuda else nullcontext()


def has_kernels(rows: Tensor) -> bool:
    """Whether the Triton kernels can be launched on these rows. (Where not, torch does the work.)"""
    return rows.is_cuda and _triton_works()


@functools.cache
def _triton_works() -> bool:
    """Triton is installed, and a C compiler, with which it makes each kernel's launcher. Warns once where one is not."""
    if importlib.util.find_spec("triton") is None:
        missing = "Triton"
    elif os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang"))):
        return True
    else:
        missing = "a C compiler, which Triton needs"
    warnings.warn(
        f"without {missing} facetrain's GPU kernels are left out: slower, in more memory", stacklevel=2
    )
    return False


def parts(programs: int, columns: int, block: int, wanted: int) -> tuple[int, int]:
    """Into how many parts the columns are cut, for ``wanted`` programs in all where there would be so many; and how many
    columns there are in a part, a multiple of the block. At least one of each."""
    tiles = max(1, -(-columns // block))
    tiles_a_part = -(-tiles // min(-(-wanted // max(programs, 1)), tiles))
    return -(-tiles // tiles_a_part), tiles_a_part * block
