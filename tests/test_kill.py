"""Killed at any moment and run again, align and cache end in the same bytes as if they had never been killed.

FACETRAIN_KILLS sets how often each is killed at random: 5 by default.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from facetrain.files import TEMP_PREFIX
from facetrain.workspace import Workspace

KILLS = int(os.environ.get("FACETRAIN_KILLS", "5"))
ALIGN = ("align", "raw", "aligned", "--size", "48", "-j", "2")
CACHE = ("cache", "-j", "2")

# `ft`, with shards of about one person each, so that there is a middle to be killed in. With KILL_AFTER it kills
# itself once a file has taken its place for the so manieth time: after every single step, over the runs.
FT = """
import os, signal
import facetrain.datasets.cache.shards
from facetrain.cli import main

facetrain.datasets.cache.shards.SHARD_BYTES = 7 * 48 * 48 * 3
left = int(os.environ.get("KILL_AFTER", "0"))
replace = os.replace

def replace_and_die(*paths):
    global left
    replace(*paths)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = replace_and_die
main()
"""


def start(root: Path, command: tuple[str, ...], kill_after: int = 0) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", FT, *command],
        cwd=root,
        env=os.environ | {"KILL_AFTER": str(kill_after)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # its workers can be told by it
    )


def end(process: subprocess.Popen) -> tuple[int, str]:
    """The exit code and what was said but for progress; every process of the session must be gone soon."""
    _, said = process.communicate(timeout=120)
    deadline = time.monotonic() + 30
    while alive := processes_of(process.pid):
        assert time.monotonic() < deadline, f"left running: {alive}"
        time.sleep(0.01)
    lines = said.splitlines(keepends=True)
    return process.returncode, "".join(
        line for line in lines if not line.startswith(("aligning: ", "decoding: "))
    )


def processes_of(session: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of_session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(of_session) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def run(root: Path, command: tuple[str, ...]) -> None:
    assert end(start(root, command)) == (0, "")


def results(root: Path) -> dict[str, bytes]:
    """All that the two commands leave, but for the times of files and of the commands themselves."""
    store = Workspace.find(root).dataset().folder
    files = [*(root / "aligned").rglob("*"), *(root / ".ft" / "cache").glob("*")]
    files += [store / f"{name}.arrow" for name in ("rows", "cache", "undecodable")] + [
        store / "rejected.csv",
        store / "undecodable.csv",
    ]
    return {str(path.relative_to(root)): path.read_bytes() for path in files if path.is_file()}


def leftovers(root: Path) -> list[str]:
    named = [path.name for path in root.rglob("*") if path.name.startswith(TEMP_PREFIX)]
    return named + [path.name for path in root.rglob("*") if path.name == "journal.bin"]


@pytest.fixture(scope="module")
def undisturbed(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which nothing was killed: align, then cache, with a crop that cannot be decoded."""
    root = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(drawn, root / "raw")
    (root / "raw" / "ann" / "torn.jpg").write_bytes(b"torn")
    run(root, ALIGN)
    shutil.copytree(root, root.with_name("aligned only"))
    damage(root)
    run(root, CACHE)
    assert len(list((root / ".ft" / "cache").iterdir())) >= 4
    return root


def damage(root: Path) -> None:
    (root / "aligned" / "bob" / "2.jpg").write_bytes(b"no picture")


def before_align(undisturbed: Path, root: Path) -> Path:
    """A copy of the workspace as it was before `ft align`."""
    shutil.copytree(undisturbed / "raw", root / "raw")
    return root


def before_cache(undisturbed: Path, root: Path) -> Path:
    shutil.copytree(undisturbed.with_name("aligned only"), root)
    damage(root)
    return root


def kill_at_random(
    root: Path, command: tuple[str, ...], files: str, kills: int, rng: np.random.Generator
) -> None:
    """Start the command ``kills`` times; kill it when it has made some more ``files``, or after a while."""

    def made() -> int:
        return sum(1 for _ in root.glob(files))

    for _ in range(kills):
        process = start(root, command)
        more, patience = made() + int(rng.integers(0, 10)), time.monotonic() + float(rng.uniform(0.2, 6))
        while process.poll() is None and made() < more and time.monotonic() < patience:
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0, 0.1)))
        process.kill()
        code, said = end(process)
        assert code in (0, -signal.SIGKILL), said


def in_threes(kills: int) -> list[int]:
    """After three kills there may be nothing left to do: begin anew."""
    return [3] * (kills // 3) + [kills % 3] * bool(kills % 3)


def kill_after_every_step(root: Path, command: tuple[str, ...]) -> int:
    """Let the command die as soon as one file has taken its place, until it comes through; how often that was."""
    for deaths in range(100):
        code, said = end(start(root, command, kill_after=1))
        if code == 0:
            assert said == ""
            return deaths
        assert code == -signal.SIGKILL, said
    pytest.fail("it makes no headway")


def test_align_is_killed_at_random(undisturbed: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for number, kills in enumerate(in_threes(KILLS)):
        root = before_align(undisturbed, tmp_path / str(number))
        kill_at_random(root, ALIGN, "aligned/*/*.jpg", kills, rng)
        run(root, ALIGN)
        assert results(root) == results_of_align(undisturbed)
        assert leftovers(root) == []


def results_of_align(undisturbed: Path) -> dict[str, bytes]:
    return results(undisturbed.with_name("aligned only"))


def test_align_is_killed_after_every_step(undisturbed: Path, tmp_path: Path) -> None:
    root = before_align(undisturbed, tmp_path / "root")
    # workspace, dataset, spec, rows, two file tables, rejected list, record, workspace
    assert kill_after_every_step(root, ALIGN) >= 9
    run(root, ALIGN)
    assert results(root) == results_of_align(undisturbed)
    assert leftovers(root) == []


def test_cache_is_killed_at_random(undisturbed: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    expected = results(undisturbed)
    assert any(name.endswith("undecodable.arrow") for name in expected)
    for number, kills in enumerate(in_threes(KILLS)):
        root = before_cache(undisturbed, tmp_path / str(number))
        kill_at_random(root, CACHE, ".ft/cache/*.arrow", kills, rng)
        run(root, CACHE)
        assert results(root) == expected
        assert leftovers(root) == []


def test_cache_is_killed_after_every_step(undisturbed: Path, tmp_path: Path) -> None:
    root = before_cache(undisturbed, tmp_path / "root")
    num_shards = len(list((undisturbed / ".ft" / "cache").iterdir()))
    assert kill_after_every_step(root, CACHE) >= num_shards + 3  # list of the undecodable, manifest, record
    run(root, CACHE)
    assert results(root) == results(undisturbed)
    assert leftovers(root) == []


def test_ctrl_c_is_one_line(undisturbed: Path, tmp_path: Path) -> None:
    root = before_align(undisturbed, tmp_path / "root")
    process = start(root, ALIGN)
    while (
        process.poll() is None and not (root / "aligned").is_dir()
    ):  # it has begun; its workers are being started
        time.sleep(0.002)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    code, said = end(process)
    assert (code, said) in (
        (130, "Error: interrupted: nothing is lost, run the same command again to go on\n"),
        (0, ""),
    )
    run(root, ALIGN)
    assert results(root) == results_of_align(undisturbed)
