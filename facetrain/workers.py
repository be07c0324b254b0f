"""Worker processes that leave no trace: deaf to Ctrl-C, which is the parent's to handle, and gone when it is."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import functools
import itertools
import multiprocessing
import multiprocessing.resource_tracker
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from facetrain.errors import FacetrainError

T = TypeVar("T")
R = TypeVar("R")


class WorkerDied(FacetrainError):
    """A worker process was killed from outside, or by a crash in a library.

    unfinished: the items that were handed out and have no result.
    """

    def __init__(self, message: str, unfinished: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.unfinished = unfinished


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


def _shielded(function: Callable[[T], R], item: T) -> R:
    """An error that cannot be made again in the parent would break the pool as if the process had died."""
    try:
        return function(item)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            raise RuntimeError("".join(traceback.format_exception(error))) from None
        raise


def unordered(
    executor: concurrent.futures.Executor,
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    ahead: int | Callable[[], int],
) -> Iterator[R]:
    """Results as they come in, with at most ``ahead`` items handed out at a time, so that memory is bounded.

    ``ahead`` may be a function, where workers come and go. Works with any executor of the concurrent.futures interface.
    """
    waiting: dict[concurrent.futures.Future[Any], T] = {}
    done: queue.SimpleQueue[concurrent.futures.Future[Any]] = queue.SimpleQueue()
    shielded = functools.partial(_shielded, function)
    source = iter(items)
    in_hand: list[T] = []  # taken from the source, and not yet given to the executor
    try:
        while True:
            most = max(1, ahead() if callable(ahead) else ahead)
            for item in itertools.islice(source, max(0, most - len(waiting))):
                in_hand = [item]
                future = executor.submit(shielded, item)
                waiting[future] = item
                in_hand = []
                future.add_done_callback(done.put)
            if not waiting:
                return
            future = done.get()
            result = future.result()
            del waiting[future]
            yield result
    except concurrent.futures.process.BrokenProcessPool:
        raise WorkerDied(
            "a worker process died (out of memory?): run again to go on, with fewer -j",
            [*waiting.values(), *in_hand],
        ) from None
    finally:
        for future in waiting:
            future.cancel()
