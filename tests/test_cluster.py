"""ft align over the workers of a real Dask cluster, in processes of their own."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from facetrain import cluster
from facetrain.workspace import Workspace

distributed = pytest.importorskip("distributed")

SMALL = ("--size", 32)

# What a worker loads first. It leaves a file named after its process and thread while it is at a
# task, and is slow, or ends itself, where the test says so by a file.
PRELOAD = """
import os, signal, threading, time
from pathlib import Path
import facetrain.preprocess.aligner as aligner

here = Path(os.environ["TEST_FOLDER"])
if aligner.align_block.__name__ == "align_block":  # Dask loads this more than once
    align_block = aligner.align_block

def watched(raw, aligned, settings, tasks):
    mark = here / f"at-work-{os.getpid()}-{threading.get_ident()}"
    mark.touch()
    if (here / "slow").exists():
        time.sleep(0.2)
    if (here / "deadly").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    outcomes = align_block(raw, aligned, settings, tasks)
    mark.unlink()
    return outcomes

aligner.align_block = watched
"""


class Dask:
    """A scheduler and workers, as processes; ``folder`` is where they and `PRELOAD` leave their files."""

    def __init__(self, folder: Path, **config: str) -> None:
        self.folder, self.file = folder, folder / "scheduler.json"
        (folder / "preload.py").write_text(PRELOAD)
        self.environment = os.environ | {"TEST_FOLDER": str(folder)} | config
        self.processes: list[subprocess.Popen] = []
        self.scheduler = self._start(
            "dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0",
            "--scheduler-file", self.file,
        )  # fmt: skip
        until(self.file.exists)
        self.client = distributed.Client(scheduler_file=str(self.file), set_as_default=False)

    def _start(self, module: str, *arguments: object, cwd: Path | None = None) -> subprocess.Popen:
        with open(self.folder / "log", "a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{module}", *map(str, arguments)],
                cwd=cwd or self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def worker(self, *, nthreads: int = 1, cwd: Path | None = None) -> subprocess.Popen:
        return self._start(
            "dask_worker", "--scheduler-file", self.file, "--nthreads", nthreads, "--no-nanny", "--no-dashboard",
            "--host", "127.0.0.1", "--memory-limit", "0", "--local-directory", self.folder / "local",
            "--preload", self.folder / "preload.py", cwd=cwd,
        )  # fmt: skip

    def until_there_are(self, threads: int) -> None:
        until(lambda: sum(self.client.nthreads().values()) == threads)

    def marks(self, worker: subprocess.Popen | None = None) -> list[Path]:
        """One for each task that is at work, in any worker or in this one."""
        return list(self.folder.glob(f"at-work-{worker.pid if worker else ''}*"))

    @contextlib.contextmanager
    def told(self, word: str) -> Iterator[None]:
        """Let the workers be ``slow`` or ``deadly``."""
        (self.folder / word).touch()
        yield
        (self.folder / word).unlink()

    def close(self) -> None:
        self.client.close()
        for process in reversed(self.processes):
            process.kill()
            process.wait()


def until(condition: Callable[[], Any], within_s: float = 60) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    """Two workers, one with two threads."""
    running = Dask(tmp_path_factory.mktemp("dask"))
    try:
        running.worker()
        running.worker(nthreads=2)
        running.until_there_are(3)
        yield running
    finally:
        running.close()


@pytest.fixture
def no_workers(tmp_path: Path) -> Iterator[Dask]:
    """A scheduler without workers, and without patience for those that die."""
    (tmp_path / "dask").mkdir()
    running = Dask(tmp_path / "dask", DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0")
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def without(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What align leaves without a cluster."""
    from conftest import InProcess, run

    root = tmp_path_factory.mktemp("without")
    shutil.copytree(drawn, root / "raw")
    (root / "raw" / "ann" / "torn.jpg").write_bytes(b"torn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("facetrain.preprocess.row_update.process_pool", lambda jobs: InProcess())
        run(root, "align", root / "raw", root / "aligned", *SMALL)
    return results(root)


@pytest.fixture
def photographs(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that holds ``raw``, as working directory; every photograph is a task of its own."""
    (raw / "ann" / "torn.jpg").write_bytes(b"torn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("facetrain.preprocess.row_update.BLOCK", 1)
    return tmp_path


def results(root: Path) -> dict[str, bytes]:
    store = Workspace.find(root).dataset().folder
    files = [*(root / "aligned").rglob("*"), store / "rows.arrow", store / "rejected.csv"]
    found = {path.name if store in path.parents else str(path.relative_to(root)): path for path in files}
    return {name: path.read_bytes() for name, path in found.items() if path.is_file()}


# -- what must be the same -------------------------------------------------------------------------------------------


def test_the_same_bytes_as_without(
    dask: Dask, photographs: Path, without: dict[str, bytes], ft: Callable
) -> None:
    said = ft(photographs, "align", "raw", "aligned", *SMALL, "--scheduler", dask.file).output
    assert "31 photographs: 31 looked at" in said
    assert results(photographs) == without
    assert len(without) > 25
    address = dask.client.scheduler.address
    assert (
        "nothing to do" in ft(photographs, "align", "raw", "aligned", *SMALL, "--scheduler", address).output
    )


def test_a_worker_that_is_killed_loses_nothing(
    dask: Dask, photographs: Path, without: dict[str, bytes], ft: Callable
) -> None:
    with dask.told("slow"):
        victim = dask.worker()
        dask.until_there_are(4)

        def stopped_at_work(worker: subprocess.Popen) -> bool:
            worker.send_signal(signal.SIGSTOP)
            if not dask.marks(worker):
                worker.send_signal(signal.SIGCONT)
            return bool(dask.marks(worker))

        def kill() -> None:
            until(lambda: stopped_at_work(victim))
            victim.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        said = ft(photographs, "align", "raw", "aligned", *SMALL, "--scheduler", dask.file).output
        killer.join()
    (mark,) = dask.marks(victim)  # it was killed in the middle of a task
    mark.unlink()
    assert "31 photographs: 31 looked at" in said
    assert results(photographs) == without
    dask.until_there_are(3)


def test_ctrl_c_waits_for_the_tasks_in_hand_and_a_rerun_goes_on(
    dask: Dask, photographs: Path, without: dict[str, bytes], ft: Callable
) -> None:
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import facetrain.preprocess.row_update as module; module.BLOCK = 1\n"
        "from facetrain.cli import main; main()"
    )
    arguments = ["align", "raw", "aligned", *map(str, SMALL), "--scheduler", str(dask.file)]
    with dask.told("slow"):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        until(lambda: len(list((photographs / "aligned").rglob("*.jpg"))) >= 4)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert dask.marks() == [], "no worker writes any more"
    assert (process.returncode, out) == (130, ""), err
    *waiting, last = err.splitlines()
    expected = r"waiting for \d tasks? in hand|no workers at .*|\d threads of workers at .*"
    assert all(re.fullmatch(expected, line) for line in waiting), err
    assert last == "Error: interrupted: nothing is lost, run the same command again to go on"
    assert not list((photographs / "aligned").glob(".*")), "the probe is gone"
    done = len(list((photographs / "aligned").rglob("*.jpg")))
    assert 4 <= done < 30
    said = ft(photographs, "align", "raw", "aligned", *SMALL, "--scheduler", dask.file).output
    looked_at = re.search(r"(\d+) looked at", said)
    assert looked_at is not None
    assert int(looked_at[1]) < 31
    assert results(photographs) == without


# -- workers that cannot take part -----------------------------------------------------------------------------------

# One path that leads each process to a place of its own, as equal paths on the disks of several machines do.
HERE = Path("/proc/self/cwd")


def test_workers_that_do_not_see_the_folders_are_named(
    no_workers: Dask, photographs: Path, wrong: Callable, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    blind = no_workers.worker(cwd=elsewhere)
    no_workers.worker(cwd=photographs)
    no_workers.until_there_are(2)
    address = next(a for a, pid in no_workers.client.run(os.getpid).items() if pid == blind.pid)
    arguments = ("align", HERE / "raw", HERE / "aligned", "--scheduler", no_workers.file)

    def problem() -> str:
        said = wrong(photographs, *arguments)
        assert f"Error: 1 of 2 workers cannot take part: {socket.gethostname()} ({address}) " in said
        return said

    assert "cannot read /proc/self/cwd/raw/ann/1.jpg (No such file or directory)" in problem()
    shutil.copytree(photographs / "raw", elsewhere / "raw")
    assert "does not see /proc/self/cwd/aligned (No such file or directory)" in problem()
    (elsewhere / "aligned").mkdir()
    assert "sees another folder /proc/self/cwd/aligned" in problem()
    (elsewhere / "raw" / "ann" / "1.jpg").write_bytes(b"another")
    assert "sees other photographs in /proc/self/cwd/raw" in problem()
    assert not list((photographs / "aligned").iterdir()), "no crop, no probe"


def once_it_waits(root: Path, action: Callable[[], object]) -> threading.Thread:
    """Do something as soon as the command is past its checks and waits for workers."""

    def wait_and_act() -> None:
        until(lambda: list((root / "aligned").glob(".ft-tmp-*-probe-*")))
        time.sleep(0.2)
        action()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


def test_a_worker_that_comes_later_is_checked_too(
    no_workers: Dask, photographs: Path, ft: Callable, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    coming = once_it_waits(photographs, lambda: no_workers.worker(cwd=tmp_path / "elsewhere"))
    arguments = ("align", HERE / "raw", HERE / "aligned", "--scheduler", no_workers.file)
    said = ft(photographs, *arguments, code=2).stderr
    coming.join()
    assert said.startswith(
        f"no workers at {no_workers.file}: waiting for some (Ctrl-C stops, nothing is lost)\n"
    )
    assert "Error: a worker that came later cannot take part: " in said.splitlines()[-1]
    assert "cannot read /proc/self/cwd/raw/ann/1.jpg" in said.splitlines()[-1]
    assert list((photographs / "aligned").iterdir()) == []


@pytest.mark.parametrize(
    "module, found, said",
    [
        ("facetrain", "0.0", "has facetrain 0.0, not "),
        ("cv2", None, "cannot import cv2 ("),
    ],
)
def test_other_versions_are_named(
    module: str, found: str | None, said: str, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "aligned").mkdir()
    with cluster._probe(raw, tmp_path / "aligned") as run:
        here = SimpleNamespace(address="tcp://here:1")
        assert cluster.unfitness(run, here) is None
        monkeypatch.setitem(sys.modules, module, found and SimpleNamespace(__version__=found))
        assert said in (cluster.unfitness(run, here) or "")


# -- the executor ----------------------------------------------------------------------------------------------------


def test_more_threads_more_tasks_at_a_time(
    dask: Dask, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("POLL_S", 0.05), ("AHEAD_PER_THREAD", 100), ("MIN_AHEAD", 1)):
        monkeypatch.setattr(cluster, name, value)
    (photographs / "aligned").mkdir()
    address = dask.client.scheduler.address
    with cluster.dask_pool(address, photographs / "raw", photographs / "aligned") as executor:
        assert executor.ahead() == 300
        more = dask.worker()
        until(lambda: executor.ahead() == 400)
        more.kill()
        until(lambda: executor.ahead() == 300)
    assert cluster.count_threads(address) == 3


@pytest.mark.parametrize(
    "function, argument, error, said",
    [
        (open, "/no/such/file", FileNotFoundError, "No such file"),
        (threading.Thread, None, TypeError, "cannot pickle"),  # a result that does not travel
        (
            exec,
            "class Odd(Exception): ...\nraise Odd('so odd')",
            RuntimeError,
            "Odd: so odd",
        ),  # nor such an error
        (time.sleep, "long", TypeError, "integer"),
    ],
)
def test_errors_come_back(
    function: Callable, argument: object, error: type[Exception], said: str, dask: Dask, photographs: Path
) -> None:
    (photographs / "aligned").mkdir()
    folders = photographs / "raw", photographs / "aligned"
    with cluster.dask_pool(str(dask.file), *folders) as executor, pytest.raises(error, match=said):
        executor.submit(function, argument).result(timeout=30)


def test_after_the_end_of_a_run_no_task_of_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may take a task that was sent before the command ended; the next run's crops are not its to write."""
    for name, value in (("_fit", {"one", "two"}), ("_ended", set()), ("_in_hand", Counter())):
        monkeypatch.setattr(cluster, name, value)
    monkeypatch.setattr(distributed, "get_worker", lambda: None)
    one, two = (cluster.Run(name, {}, tmp_path, None, tmp_path / "probe") for name in ("one", "two"))

    def task(run: cluster.Run, name: str) -> object:
        result, error = pickle.loads(cluster.work(run, pickle.dumps((os.mkdir, (tmp_path / name,), {}))))
        return error or result

    assert task(one, "before") is None
    assert cluster.end_run("one") == 0
    assert isinstance(task(one, "after"), concurrent.futures.CancelledError)
    assert task(two, "of another run") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "of another run"]


def test_the_module_is_light() -> None:
    code = "import sys, facetrain.cluster; sys.exit(any(m in sys.modules for m in ('distributed', 'numpy', 'cv2')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -- what goes wrong on the way --------------------------------------------------------------------------------------


def test_photographs_that_kill_workers_are_named(no_workers: Dask, photographs: Path, ft: Callable) -> None:
    coming = once_it_waits(photographs, no_workers.worker)
    with no_workers.told("deadly"):
        said = ft(photographs, "align", "raw", "aligned", "--scheduler", no_workers.file, code=1).stderr
    coming.join()
    last = said.splitlines()[-1]
    assert re.match(r"Error: 1 times a worker died at \w+/\w+.jpg \(out of memory\?", last), said
    assert "give workers more memory, or move these photographs away, and run again to go on" in last


def test_a_scheduler_that_goes_is_a_clear_error(no_workers: Dask, photographs: Path, ft: Callable) -> None:
    going = once_it_waits(photographs, no_workers.scheduler.kill)
    said = ft(photographs, "align", "raw", "aligned", "--scheduler", no_workers.file, code=1).stderr
    going.join()
    assert said.splitlines()[1:] == [
        f"Error: lost the scheduler at {no_workers.file}: run again to go on, once it is there again"
    ]


@pytest.mark.parametrize(
    "address, said",
    [
        ("tcp://127.0.0.1:1", "no Dask scheduler can be reached at tcp://127.0.0.1:1 ("),
        ("node", "no Dask scheduler can be reached at node (missing port number"),
        ("127.0.0.1:1", "no Dask scheduler can be reached at 127.0.0.1:1 ([Errno 111] Connection refused"),
        (
            "xyz://127.0.0.1:1",
            "no Dask scheduler can be reached at xyz://127.0.0.1:1 (unknown address scheme",
        ),
        (
            "there.json",
            "no scheduler file there.json: `dask scheduler --scheduler-file there.json` writes it",
        ),
        ("raw/ann/torn.jpg", "raw/ann/torn.jpg is no scheduler file ("),
    ],
)
def test_no_scheduler(
    address: str, said: str, photographs: Path, wrong: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT_S", 0.3)
    assert said in wrong(photographs, "align", "raw", "aligned", "--scheduler", address)
    assert not (photographs / "aligned").exists()
    assert not (photographs / ".ft").exists()


def test_without_dask(photographs: Path, wrong: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    said = wrong(photographs, "align", "raw", "aligned", "--scheduler", "tcp://127.0.0.1:1")
    assert "pip install 'facetrain[cluster]'" in said


def test_jobs_and_scheduler_exclude_each_other(photographs: Path, wrong: Callable) -> None:
    said = wrong(photographs, "align", "raw", "aligned", "--scheduler", "tcp://127.0.0.1:1", "-j", 2)
    assert "leave -j out" in said


# -- the page about clusters -----------------------------------------------------------------------------------------

PAGE = Path(__file__).resolve().parent.parent / "docs" / "how-to" / "cluster.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "system, asked_for",
    [
        ("SGE", ["#$ -q all.q", "#$ -l h_vmem=4G", "#$ -l h_rt=04:00:00"]),
        ("SLURM", ["#SBATCH -p normal", "#SBATCH -A faces", "#SBATCH -t 04:00:00", "#SBATCH --mem=15G"]),
    ],
)
def test_the_scripts_of_the_page_make_jobs(
    system: str, asked_for: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dask_jobqueue")
    monkeypatch.chdir(tmp_path)
    (code,) = (block for block in blocks("python") if f"{system}Cluster" in block)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, PAGE.name, "exec"), names)
    with names["workers"]() as made:
        script = made.job_script().splitlines()
    assert set(asked_for) <= set(script)
    assert "-m distributed.cli.dask_worker tcp://" in script[-1]
    assert "--nthreads 1 " in script[-1]
    assert "--lifetime 225m --lifetime-stagger 10m" in script[-1]


def test_the_jobs_of_the_page_work_together(raw: Path, tmp_path: Path) -> None:
    """Those for SGE and those for Slurm, but for what is particular to a place; ``dask`` and ``ft`` are real."""
    align, workers = [], []
    for block in blocks("bash"):
        block = block.replace("/shared/venv/bin/", "/shared/").replace("/shared/", f"{tmp_path}/")
        block = re.sub(r"sleep \d", "sleep 0.2", block)
        if "ft align" in block:
            align.append(block)
        elif "dask worker" in block:
            workers.append(block)
    assert (
        [block.split()[1] for block in align] == [block.split()[1] for block in workers] == ["#$", "#SBATCH"]
    )
    body = [block.partition("source ")[2] for block in (*align, *workers)]
    assert body[0] == body[1]
    assert body[2] == body[3]
    (tmp_path / "activate").write_text(f'PATH="{Path(sys.executable).parent}:$PATH"\n')
    running = [
        subprocess.Popen(
            ["bash", "-c", script],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for script in (workers[0], align[0])
    ]
    try:
        outputs = [process.communicate(timeout=60)[0] for process in reversed(running)]
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert "30 photographs: 30 looked at" in outputs[0], outputs
    assert running[1].returncode == 0
    assert not (tmp_path / "scheduler.json").exists()
