"""Worker processes that leave no trace: they ignore Ctrl-C, which is the parent's to handle, and end with it."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from facetrain.errors import FacetrainError

T = TypeVar("T")
R = TypeVar("R")


class WorkerDied(FacetrainError):
    """A worker process was killed from outside, or by a crash in a library."""


def default_jobs() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_pool(jobs: int) -> concurrent.futures.ProcessPoolExecutor:
    """Fresh processes (not forks, which would inherit threads and locks), one thread each in BLAS and OpenMP."""
    return concurrent.futures.ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_settle_in, initargs=(os.getpid(),)
    )


def _settle_in(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # read when NumPy is first imported, which the first task does
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def unordered(
    executor: concurrent.futures.Executor, function: Callable[[T], R], items: Iterable[T], *, ahead: int
) -> Iterator[R]:
    """Results as they come in, with at most ``ahead`` items handed out at a time, so that memory is bounded.

    Works with any executor of the concurrent.futures interface.
    """
    waiting: set[concurrent.futures.Future[Any]] = set()
    source = iter(items)
    try:
        while True:
            for item in source:
                waiting.add(executor.submit(function, item))
                if len(waiting) >= ahead:
                    break
            if not waiting:
                return
            done, waiting = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except concurrent.futures.process.BrokenProcessPool:
        raise WorkerDied("a worker process died (out of memory?): run again to go on, with fewer -j") from None
    finally:
        for future in waiting:
            future.cancel()
