"""Worker processes that leave no trace: deaf to Ctrl-C, which is the parent's to handle, and gone when it is."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from facetrain.errors import FacetrainError

T = TypeVar("T")
R = TypeVar("R")


class WorkerDied(FacetrainError):
    """A worker process was killed from outside, or by a crash in a library."""


def process_pool(jobs: int) -> concurrent.futures.ProcessPoolExecutor:
    """Fresh processes (not forks, which would inherit threads and locks), one thread each in BLAS and OpenMP."""
    multiprocessing.resource_tracker.ensure_running()  # which lets go of SIGINT: now, not in the middle of a submit
    return _Pool(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_settle_in)


class _Pool(concurrent.futures.ProcessPoolExecutor):
    def submit(self, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        # Processes are started here. They inherit the blocked signal, so that Ctrl-C, which a terminal sends to all
        # of them, cannot end one that is still importing; ours is delivered on the way out.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _settle_in() -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # read when NumPy is first imported, which the first task does
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # returns at once when the parent ends, killed or not: the kernel closes its end of a pipe
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
        raise WorkerDied(
            "a worker process died (out of memory?): run again to go on, with fewer -j"
        ) from None
    finally:
        for future in waiting:
            future.cancel()
