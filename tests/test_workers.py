"""Worker processes: bounded, gone with their parent, deaf to Ctrl-C."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from facetrain.workers import WorkerDied, process_pool, unordered


def test_at_most_so_many_are_handed_out() -> None:
    handed_out, most = 0, 0

    class Slow(concurrent.futures.Executor):
        def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]
            nonlocal handed_out, most
            handed_out += 1
            most = max(most, handed_out)
            future: concurrent.futures.Future = concurrent.futures.Future()
            future.set_result(fn(*args))
            return future

    results = []
    for result in unordered(Slow(), str, range(20), ahead=3):
        handed_out -= 1
        results.append(result)
    assert sorted(results) == sorted(map(str, range(20)))
    assert most <= 3
    assert list(unordered(Slow(), str, [], ahead=3)) == []


def test_an_error_in_a_worker_is_the_callers() -> None:
    with process_pool(1) as pool, pytest.raises(ValueError, match="invalid literal"):
        list(unordered(pool, int, ["1", "x"], ahead=2))


def test_a_worker_that_dies_is_a_clear_error() -> None:
    with process_pool(1) as pool, pytest.raises(WorkerDied, match="run again to go on, with fewer -j"):
        list(unordered(pool, os._exit, [3], ahead=2))


LIBRARY_THREADS = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]


@pytest.mark.parametrize("in_parent", [None, "7"])
def test_libraries_have_one_thread_in_a_worker(
    monkeypatch: pytest.MonkeyPatch, in_parent: str | None
) -> None:
    for name in LIBRARY_THREADS:
        if in_parent is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, in_parent)
    with process_pool(1) as pool:
        assert list(pool.map(os.getenv, LIBRARY_THREADS)) == ["1", "1", "1"]
    assert [os.getenv(name) for name in LIBRARY_THREADS] == [in_parent] * 3, "the parent keeps its own"


PARENT = """
import os, signal, sys, time
from facetrain.workers import process_pool

if __name__ == "__main__":
    # A shell's background job, as tests may be, starts with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with process_pool(2) as pool:
        pids = {pool.submit(os.getpid).result() for _ in range(40)}
        futures = [pool.submit(time.sleep, 60) for _ in range(2)]
        while not all(future.running() for future in futures):
            time.sleep(0.01)
        try:
            print(*pids, flush=True)
            futures[0].result()
        except KeyboardInterrupt:
            time.sleep(0.5)  # time enough for a worker to die, if it heard it too
            print("interrupted", [future.running() for future in futures], flush=True)
            os._exit(5)
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen]:
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        yield process
        process.kill()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def all_gone(pids: list[int], within_s: float = 20) -> bool:
    end = time.monotonic() + within_s
    while any(is_running(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(is_running(pid) for pid in pids)


def test_workers_end_with_a_parent_that_is_killed(parent: subprocess.Popen) -> None:
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert pids
    assert all(is_running(pid) for pid in pids)
    parent.kill()
    parent.wait()
    assert all_gone(pids)


def test_ctrl_c_reaches_the_parent_alone(parent: subprocess.Popen) -> None:
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
    out, err = parent.communicate(timeout=60)
    assert parent.returncode == 5, err
    assert "interrupted [True, True]" in out, "the workers are still at it"
    assert "Traceback" not in err
    assert all_gone(pids)


class CannotBeMadeAgain(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def raise_odd_error(number: int) -> None:
    raise CannotBeMadeAgain("the reason", "more")


def test_an_error_that_cannot_be_unpickled_is_still_the_callers() -> None:
    """It would break the pool, as if the process had died."""
    with process_pool(1) as pool, pytest.raises(RuntimeError, match="CannotBeMadeAgain: the reason"):
        list(unordered(pool, raise_odd_error, [1], ahead=1))
