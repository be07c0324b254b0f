"""The workers of a Dask cluster behind the interface of concurrent.futures, for work on folders that all of them see.

A task runs in a worker only after that worker has shown that it can do it: the same versions, the same folders. Those
that are there at the start are asked first, all at once; one that comes later is asked by its first task.
Dask hands the tasks of a worker that dies to others.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import json
import logging
import pickle
import socket
import sys
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facetrain.errors import FacetrainError, UserError
from facetrain.files import temp_path

if TYPE_CHECKING:
    from distributed import Client, Worker

CONNECT_TIMEOUT_S = 10.0
POLL_S = 2.0  # how often the cluster's size is looked at
WAIT_S = 60.0  # for the tasks in hand, when the work is broken off
# Tasks handed out at a time. An adaptive cluster grows while its tasks would take it more than five seconds, so few
# tasks would keep it small; with none at all it would not even start.
AHEAD_PER_THREAD, MIN_AHEAD = 32, 256
THREADS_TO_COME = 16  # what to reckon with while there are none
MODULES = (
    "facetrain",
    "dlib",
    "cv2",
    "PIL",
    "simplejpeg",
    "numpy",
)  # whose versions decide on the bytes of a crop
NAMED = 5  # workers in an error, at most


class ClusterFailed(FacetrainError):
    """The scheduler was lost, or workers died again and again at the same task."""


class UnfitWorker(UserError):
    """A worker has other versions, or does not see the folders."""


@dataclass(frozen=True)
class Run:
    """What a worker must have and see: versions by module, a file of RAW by its hash, our probe in ALIGNED."""

    id: str
    versions: dict[str, str]
    raw: Path
    sample: tuple[str, str] | None  # path under RAW, hash of its content
    probe: Path  # a file in ALIGNED that holds the id


# -- in the command --------------------------------------------------------------------------------------------------


def count_threads(address: str) -> int:
    """The threads of all workers there are now; 0 before the first has come. UserError when no scheduler answers."""
    with _connected(address) as client:
        return sum(client.nthreads().values())


@contextmanager
def dask_pool(address: str, raw: Path, aligned: Path, jobs: int = 0) -> Iterator[DaskExecutor]:
    """An executor over the workers of the scheduler at ``address``, for work from ``raw`` to ``aligned``.

    ``address``: ``tcp://HOST:PORT`` or a scheduler file. Both folders must exist, by absolute paths. ``jobs`` is what
    other pools take and counts for nothing here: the cluster has the workers it has. Raises UserError when the
    scheduler cannot be reached or a worker cannot do the work.
    """
    assert raw.is_absolute() and aligned.is_absolute()
    with _connected(address) as client, _probe(raw, aligned) as run:
        _check_scheduler(client, address)
        _check_workers(client, run)
        executor = DaskExecutor(client, address, run)
        try:
            yield executor
        finally:
            executor.shutdown(cancel_futures=True)


class DaskExecutor(concurrent.futures.Executor):
    """Functions and arguments must be picklable by name. ``threads`` is the number that the cluster has at present."""

    def __init__(self, client: Client, address: str, run: Run) -> None:
        self.address, self.run = address, run
        self.threads = sum(client.nthreads().values())
        self._client = client
        self._inner = client.get_executor(pure=False)
        self._handed_out = 0
        self._open: set[concurrent.futures.Future[Any]] = set()  # those that Dask has
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def ahead(self) -> int:
        """How many tasks to hand out at a time; grows and shrinks with the cluster."""
        return max(MIN_AHEAD, AHEAD_PER_THREAD * self.threads)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        outer: concurrent.futures.Future[Any] = concurrent.futures.Future()
        # As bytes, so that the scheduler, which looks into arguments, need not import what is in them. Keys of one
        # group, so that it deals tasks out one by one and no innocent task waits in a worker that dies.
        call = pickle.dumps((fn, args, kwargs))
        self._handed_out += 1
        inner = self._inner.submit(work, self.run, call, key=(f"facetrain-{self.run.id}", self._handed_out))
        self._open.add(inner)
        inner.add_done_callback(partial(self._hand_on, outer, args))
        return outer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Safe to call more than once. With ``cancel_futures`` only the tasks in hand are waited for."""
        if cancel_futures and self._open:
            with suppress(OSError):  # the scheduler is gone, and its tasks with it
                if self._client.status == "running":
                    self._inner.shutdown(wait=False)
                    if wait:
                        self._wait_for_tasks_in_hand()
            self._open.clear()
        if wait:
            concurrent.futures.wait(list(self._open))
        self._over.set()
        self._watcher.join(CONNECT_TIMEOUT_S)

    def _hand_on(
        self,
        outer: concurrent.futures.Future[Any],
        args: tuple[Any, ...],
        inner: concurrent.futures.Future[Any],
    ) -> None:
        self._open.discard(inner)
        if not outer.set_running_or_notify_cancel():
            return
        if inner.cancelled():
            outer.set_exception(
                ClusterFailed(
                    f"lost the scheduler at {self.address}: run again to go on, once it is there again"
                )
            )
            return
        result, error = None, inner.exception()
        if error is None:
            try:
                result, error = pickle.loads(inner.result())
            except Exception as unreadable:  # raised here, nobody would hear of it
                error = unreadable
        if error is None:
            outer.set_result(result)
        else:
            outer.set_exception(self._in_our_words(error, args))

    def _in_our_words(self, error: BaseException, args: tuple[Any, ...]) -> BaseException:
        from distributed import KilledWorker

        if isinstance(error, KilledWorker):
            return ClusterFailed(
                f"{error.allowed_failures + 1} times a worker died at {_in_words(args)} (out of memory? its log may say):"
                f" give workers more memory, or move these photographs away, and run again to go on"
            )
        if isinstance(error, ImportError):
            return UnfitWorker(
                f"a worker of {self.address} cannot run facetrain ({error}): it needs this environment"
            )
        return error

    def _wait_for_tasks_in_hand(self) -> None:
        """So that none writes over what the next run has written."""
        end, said = time.monotonic() + WAIT_S, False
        while in_hand := sum(self._client.run(end_run, self.run.id, on_error="ignore").values()):
            if not said:
                _say(f"waiting for {in_hand} task{'s' * (in_hand != 1)} in hand")
                said = True
            if time.monotonic() > end:
                return
            time.sleep(0.1)

    def _watch(self) -> None:
        """Keep `threads` up to date, and say when there is nobody to do the work."""
        alone = False
        while True:
            if (self.threads == 0) != alone:
                alone = not alone
                if alone:
                    _say(f"no workers at {self.address}: waiting for some (Ctrl-C stops, nothing is lost)")
                else:
                    _say(f"{self.threads} threads of workers at {self.address}")
            if self._over.wait(POLL_S):
                return
            try:
                self.threads = sum(self._client.nthreads().values())
            except Exception:  # the scheduler is lost, as every future says
                return


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _in_words(args: tuple[Any, ...]) -> str:
    """Which photographs a task was about."""
    items = args[0] if args and isinstance(args[0], list) and args[0] else list(args)
    names = [str(getattr(item, "path", item)) for item in items]
    return names[0] if len(names) == 1 else f"the {len(names)} photographs from {names[0]} to {names[-1]}"


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    try:
        from distributed import Client
        from distributed.comm.addressing import get_address_host_port
    except ImportError:
        raise UserError("--scheduler needs Dask: pip install 'facetrain[cluster]'") from None
    contact = _contact(address)
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is said in a line of ours
    try:
        host, port = get_address_host_port(contact)  # a client with a bad address takes long to go again
        if contact.startswith("tcp://"):
            _greeted(host, port)
        client = Client(contact, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"no Dask scheduler can be reached at {address} ({str(error) or type(error).__name__}): "
            f"start one with `dask scheduler`, or name another"
        ) from None
    with client:
        yield client


def _greeted(host: str, port: int) -> None:
    """A scheduler speaks first; a client would wait for anything else that listens there for ever."""
    with socket.create_connection((host, port), CONNECT_TIMEOUT_S) as connection:
        if not connection.recv(1):
            raise OSError("what listens there is no Dask scheduler")


def _contact(address: str) -> str:
    """The address itself, or the one that a scheduler file holds."""
    if not address.endswith(".json") and not Path(address).is_file():
        return address if "://" in address else f"tcp://{address}"
    try:
        return str(json.loads(Path(address).read_text())["address"])
    except FileNotFoundError:
        raise UserError(
            f"no scheduler file {address}: `dask scheduler --scheduler-file {address}` writes it when it starts"
        ) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{address} is no scheduler file ({error}): name the one of your scheduler") from None


def _check_scheduler(client: Client, address: str) -> None:
    try:
        client.run_on_scheduler(own_version)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"the scheduler at {address} cannot import this facetrain ({error}): start it in this environment"
        ) from None


def _check_workers(client: Client, run: Run) -> None:
    """Ask all workers that there are, in one call."""
    problems = {}
    answers = client.run(unfitness, run, on_error="return")
    for worker, answer in answers.items():
        if isinstance(answer, Exception):
            problems[worker] = f"{worker} cannot run facetrain ({answer})"
        elif answer is not None:
            problems[worker] = answer
    if problems:
        more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise UnfitWorker(
            f"{len(problems)} of {len(answers)} workers cannot take part: "
            f"{'; '.join(sorted(problems.values())[:NAMED])}{more}: put that right, or stop them, and run again"
        )


@contextmanager
def _probe(raw: Path, aligned: Path) -> Iterator[Run]:
    """The run, with its probe in ``aligned`` as long as it lasts; a walk passes the probe over."""
    run_id = uuid.uuid4().hex
    probe = temp_path(aligned, f"probe-{run_id}")
    probe.write_text(run_id)
    versions = {name: importlib.import_module(name).__version__ for name in MODULES}
    try:
        yield Run(run_id, versions, raw, _sample(raw), probe)
    finally:
        probe.unlink(missing_ok=True)


def _sample(raw: Path) -> tuple[str, str] | None:
    from facetrain.file_table import find_photographs

    for path in find_photographs(raw):
        with suppress(OSError):
            return path, _content_hash(raw / path)
    return None


def _content_hash(path: Path) -> str:
    with open(path, "rb") as handle:
        return blake2b(handle.read(1 << 20)).hexdigest()


# -- in the workers --------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_in_hand: Counter[str] = Counter()  # tasks by run
_fit: set[str] = set()  # runs that this worker has been found fit for
_ended: set[str] = set()


def work(run: Run, call: bytes) -> bytes:
    """Do a task of a run, in a worker that is fit for it: (result, None) or (None, error), pickled.

    Pickled here, since Dask never hands on what it cannot pickle, be it a result or an error.
    """
    try:
        return pickle.dumps((_work(run, call), None))
    except Exception as error:
        where = "".join(traceback.format_exception(error))
        error.add_note(f"\nin a worker:\n{where}")
        try:
            packed = pickle.dumps((None, error))
            pickle.loads(packed)  # not every exception can be made again
            return packed
        except Exception:
            return pickle.dumps((None, RuntimeError(where)))


def _work(run: Run, call: bytes) -> Any:
    from distributed import get_worker

    if run.id not in _fit:
        if problem := unfitness(run, get_worker()):
            raise UnfitWorker(
                f"a worker that came later cannot take part: {problem}: put that right, or stop it"
            )
        _fit.add(run.id)
    with _lock:
        if run.id in _ended:
            raise concurrent.futures.CancelledError
        _in_hand[run.id] += 1
    try:
        function, args, kwargs = pickle.loads(call)
        return function(*args, **kwargs)
    finally:
        with _lock:
            _in_hand[run.id] -= 1


def end_run(run_id: str) -> int:
    """Begin no more tasks of a run; how many are in hand in this worker."""
    with _lock:
        _ended.add(run_id)
        return _in_hand[run_id]


def own_version() -> str:
    """The version of facetrain in this process."""
    return str(importlib.import_module("facetrain").__version__)


def unfitness(run: Run, dask_worker: Worker) -> str | None:
    """Why this worker cannot take part in a run; None when it can. `Client.run` fills in ``dask_worker``."""
    who = f"{socket.gethostname()} ({dask_worker.address})"
    for name, version in run.versions.items():
        try:
            there = importlib.import_module(name).__version__
        except ImportError as error:
            return f"{who} cannot import {name} ({error})"
        if there != version:
            return f"{who} has {name} {there}, not {version}"
    if run.sample is not None:
        path = run.raw / run.sample[0]
        try:
            if _content_hash(path) != run.sample[1]:
                return f"{who} sees other photographs in {run.raw}"
        except OSError as error:
            return f"{who} cannot read {path} ({error.strerror})"
    aligned = run.probe.parent
    try:
        if run.probe.read_text() != run.id:
            return f"{who} sees another folder {aligned}"
    except OSError as error:
        if aligned.is_dir():
            return f"{who} sees another folder {aligned}"
        return f"{who} does not see {aligned} ({error.strerror})"
    written = temp_path(aligned, f"probe-{uuid.uuid4().hex}")
    try:
        written.write_text(run.id)
        written.unlink()
    except OSError as error:
        return f"{who} cannot write in {aligned} ({error.strerror})"
    return None
