"""Is there a GPU? Asked of the driver itself: importing PyTorch or starting DALI takes seconds."""

from __future__ import annotations

import ctypes

from facetrain.errors import UserError


def count_gpus() -> int:
    """The CUDA devices that this process may use (CUDA_VISIBLE_DEVICES counts); 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int()
        failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    except (OSError, AttributeError):
        return 0
    return 0 if failed else count.value


def decoding_device(asked: str) -> str:
    """``cpu``, ``cuda`` or ``cuda:N`` for ``auto`` or one of these; UserError for a GPU that is not there."""
    if asked == "cpu":
        return asked
    gpus = count_gpus()
    if asked == "auto":
        return "cuda" if gpus else "cpu"
    kind, _, number = asked.partition(":")
    if kind != "cuda" or not (asked == kind or number.isdecimal()):
        raise UserError(f"--device {asked}: choose auto, cpu, cuda or cuda:N")
    if int(number or 0) >= gpus:
        raise UserError(f"--device {asked}: there are {gpus} GPUs here: use --device cpu, or auto")
    return asked
