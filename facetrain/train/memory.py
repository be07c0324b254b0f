"""Keeping freed memory for the next step, on the processor."""

from __future__ import annotations

import ctypes
import platform

# glibc's <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep what is freed; False where there is no glibc.

    By default every large tensor is mapped afresh and given back when it is freed, so each training step pays for its
    page faults anew: about a quarter of the time of a small network (docs/performance.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 256 << 20)
    return True
