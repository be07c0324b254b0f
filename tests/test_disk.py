"""Disks that are full, read-only, moved or gone; and two commands at once. One clear line, nothing lost, and it goes on.

The disks are real: small tmpfs mounts that only the test's own process sees, in a user and mount namespace of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from facetrain.files import TEMP_PREFIX
from facetrain.image_spec import ImageSpec
from facetrain.workspace import Workspace

PAGE = 4096

# Runs in the namespace. `ft` is run in this process, as starting one takes long; what it did goes out as JSON.
PRELUDE = f"""
import json, os, shutil, subprocess, sys
from pathlib import Path
from click.testing import CliRunner
import facetrain.datasets.cache.shards
from facetrain.cli import main

facetrain.datasets.cache.shards.SHARD_BYTES = 12 * 32 * 32 * 3
root = Path(sys.argv[1])

def mount(*options):
    subprocess.run(["mount", *map(str, options)], check=True)

def resize(folder, size):
    mount("-o", f"remount,size={{size}}", folder)

def ft(*words):
    result = CliRunner().invoke(main, ["-C", str(root), *map(str, words)])
    crash = result.exception
    return dict(
        code=result.exit_code,
        stdout=result.stdout,
        stderr=result.stderr,
        crash=None if crash is None or isinstance(crash, SystemExit) else repr(crash),
    )

def temporary():
    return [path.name for path in (root / ".ft").rglob("{TEMP_PREFIX}*")]

def say(**facts):
    print(json.dumps(facts), flush=True)
"""


def has_namespaces() -> bool:
    command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    return (
        shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0
    )


@pytest.fixture(scope="module")
def namespaces() -> None:
    if not has_namespaces():
        pytest.skip("this system gives no user and mount namespaces to mount a small disk in")


def run_inside(root: Path, script: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["unshare", "-Urm", sys.executable, "-c", PRELUDE + script, root],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def made(root: Path) -> dict[str, bytes]:
    """What `ft cache` leaves, but for the times of files."""
    store = Workspace.find(root).dataset().folder
    files = [*(root / ".ft" / "cache").iterdir(), store / "cache.arrow", store / "cached.arrow"]
    return {path.name: path.read_bytes() for path in files}


def one_line(run: dict[str, Any], code: int) -> str:
    """What is said by a command that failed as it should."""
    assert run["crash"] is None
    assert (run["code"], run["stdout"]) == (code, ""), run
    said = run["stderr"]
    assert said.startswith("Error: ")
    assert said.count("\n") == 1
    return str(said)


@pytest.mark.usefixtures("namespaces", "in_process", "small_shards")
class TestFull:
    # A little more room each time, from none to enough; at each size a fresh copy of the workspace. Then room is made.
    SCRIPT = f"""
before = root / "before"
(root / ".ft").rename(before)
(root / ".ft").mkdir()
mount("-t", "tmpfs", "-o", "size=32m", "tmpfs", root / ".ft")

def used():
    disk = os.statvfs(root / ".ft")
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize

def cache_in(pages):
    resize(root / ".ft", "32m")
    for path in (root / ".ft").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(before, root / ".ft", dirs_exist_ok=True)
    resize(root / ".ft", used() + pages * {PAGE})
    first = ft("cache", "-j", 1)
    left = temporary()
    resize(root / ".ft", "32m")
    again = ft("cache", "-j", 1)
    store = next((root / ".ft" / "datasets").iterdir())
    files = [*(root / ".ft" / "cache").iterdir(), store / "cache.arrow", store / "cached.arrow"]
    say(pages=pages, first=first, left=left, again=again, made={{p.name: p.read_bytes().hex() for p in files}})
    return first["code"] == 0

pages = 0
while not cache_in(pages):
    pages += 1 if pages < 6 else 4
for fewer in range(1, 9):
    cache_in(pages - fewer)
"""

    def test_at_every_size(self, root: Path, tmp_path: Path, ft: Callable) -> None:
        shutil.copytree(root, tmp_path / "undisturbed")
        ft(tmp_path / "undisturbed", "cache", "-j", 1)
        expected = made(tmp_path / "undisturbed")
        runs = run_inside(root, self.SCRIPT)
        failed_in: Counter[str] = Counter()
        for run in runs:
            if run["first"]["code"] == 0:
                continue
            said = one_line(run["first"], 1)
            path, _, rest = said.removeprefix("Error: ").partition(": ")
            assert rest == "No space left on device: make room, and run the same command again to go on\n"
            failed_in[str(Path(path).relative_to(root / ".ft"))] += 1
        for run in runs:
            assert run["left"] == []
            assert (run["again"]["code"], run["again"]["crash"]) == (0, None), run
            assert {name: bytes.fromhex(data) for name, data in run["made"].items()} == expected
        names = {Path(path).name for path in failed_in}
        assert failed_in.total() < len(runs), "there was room enough in one"
        assert names >= {"crops.files.arrow", "cache.arrow", "cached.arrow", "cache.json"}, failed_in
        assert any(path.startswith("cache") for path in failed_in), failed_in


@pytest.mark.usefixtures("namespaces", "in_process")
class TestReadOnly:
    SCRIPT = """
mount("--bind", root / ".ft", root / ".ft")
mount("-o", "remount,bind,ro", root / ".ft")
say(
    status=ft("status"),
    cache=ft("cache", "-j", 1),
    verify=ft("cache", "--verify", "-j", 1),
    gc=ft("cache", "--gc"),
    dry_run=ft("cache", "--gc", "--dry-run"),
    align=ft("align", root / "raw", root / "aligned", "--size", 32, "-j", 1),
    prune=ft("prune", "--min", 2),
    train=ft("train", "--name", "r", "-j", 1, "--epochs", 1),
    evaluate=ft("evaluate", root / "network.safetensors", "--out", root / "out", "-j", 1),
    temporary=temporary(),
)
"""

    def test_a_fresh_workspace_is_read(self, root: Path, ft: Callable) -> None:
        ft(root, "split", 0.4)
        ft(root, "cache", "-j", 1)
        ft(root, "prune", "--min", 2)  # takes nothing from the cache
        write_network(root / "network.safetensors")
        (runs,) = run_inside(root, self.SCRIPT)
        assert runs["status"]["code"] == runs["cache"]["code"] == runs["dry_run"]["code"] == 0
        assert "0 decoded, 0 copied, 0 shards written" in runs["cache"]["stdout"]
        assert runs["evaluate"]["code"] == 0, runs["evaluate"]
        assert json.loads((root / "out.json").read_text())["photographs"] > 0
        assert "cannot be written to" in one_line(runs["verify"], 2)
        for name in ("gc", "align", "prune", "train"):
            said = one_line(runs[name], 1)
            assert said.startswith(f"Error: {root}/.ft")
            assert said.endswith(": Read-only file system\n")
        assert runs["temporary"] == []

    def test_a_stale_one_says_so(self, root: Path) -> None:
        script = """
mount("--bind", root / ".ft", root / ".ft")
mount("-o", "remount,bind,ro", root / ".ft")
say(cache=ft("cache", "-j", 1), status=ft("status"), dry_run=ft("cache", "--gc", "--dry-run"))
"""
        (runs,) = run_inside(root, script)
        assert "its cache is not up to date: run `ft cache` where" in one_line(runs["cache"], 2)
        assert runs["status"]["code"] == runs["dry_run"]["code"] == 0

    def test_the_disk_of_the_shards_only(self, root: Path, ft: Callable) -> None:
        (root / "other disk").mkdir()
        (root / ".ft" / "cache").symlink_to(root / "other disk")
        script = """
mount("-t", "tmpfs", "-o", "ro", "tmpfs", root / "other disk")
say(cache=ft("cache", "-j", 1), temporary=temporary())
"""
        (runs,) = run_inside(root, script)
        said = one_line(runs["cache"], 1)
        assert said.startswith(f"Error: {root}/.ft/cache")
        assert said.endswith("Read-only file system\n")
        assert runs["temporary"] == []


def write_network(path: Path) -> None:
    from facetrain.train.checkpoint import NetworkInfo, build_backbone, save_network

    info = NetworkInfo("iresnet.small", {}, 16, ImageSpec(size_px=32), run="r", people=3)
    save_network(path, build_backbone("iresnet.small", {}, 16, 32), info)


@pytest.mark.usefixtures("in_process", "small_shards")
class TestMoved:
    def test_a_link_to_another_disk(self, root: Path, tmp_path: Path, ft: Callable) -> None:
        """The way to put the shards elsewhere."""
        ft(root, "cache", "-j", 1)
        before = made(root)
        shutil.move(root / ".ft" / "cache", tmp_path / "elsewhere")
        (root / ".ft" / "cache").symlink_to(tmp_path / "elsewhere")
        assert "0 shards written" in ft(root, "cache", "-j", 1).stdout
        (tmp_path / "elsewhere" / f"{TEMP_PREFIX}{2**22 + 5}-x").write_bytes(b"half a shard")
        next(path for path in (tmp_path / "elsewhere").iterdir() if path.suffix == ".arrow").unlink()
        assert "1 shard written" in ft(root, "cache", "-j", 1).stdout
        assert "damaged" not in ft(root, "cache", "--verify", "-j", 1).stdout
        assert made(root) == before
        (root / "raw" / "ann" / "1.jpg").unlink()
        ft(root, "align", root / "raw", root / "aligned", "--size", 32)
        ft(root, "cache", "-j", 1)
        assert "dropped: 1 file" in ft(root, "cache", "--gc").stdout
        assert (root / ".ft" / "cache").is_symlink()
        assert not (tmp_path / "readers").exists()

    def test_the_other_disk_is_not_there(self, root: Path, tmp_path: Path, wrong: Callable) -> None:
        (root / ".ft" / "cache").symlink_to(tmp_path / "not mounted")
        assert "is a link to" in (said := wrong(root, "cache"))
        assert "which is not there: mount it, or remove the link" in said
        assert not (tmp_path / "not mounted").exists()

    def test_a_file_in_the_way(self, root: Path, ft: Callable, wrong: Callable) -> None:
        (root / ".ft" / "cache").write_text("in the way")
        assert "is a file, and should be the folder of the shards: remove it" in wrong(root, "cache")
        (root / ".ft" / "cache").unlink()
        assert "30 decoded" in ft(root, "cache", "-j", 1).stdout

    def test_the_folder_is_removed(self, root: Path, ft: Callable) -> None:
        ft(root, "cache", "-j", 1)
        before = made(root)
        shutil.rmtree(root / ".ft" / "cache")
        assert "30 decoded" in ft(root, "cache", "-j", 1).stdout
        assert made(root) == before


# `ft cache` that stops itself once it has the lock and has written a shard.
STOPS = """
import os, signal
import facetrain.datasets.cache.shards
from facetrain.cli import main

facetrain.datasets.cache.shards.SHARD_BYTES = 12 * 32 * 32 * 3
replace = os.replace
stopped = False

def replace_and_stop(*paths):
    global stopped
    replace(*paths)
    if not stopped and os.fspath(paths[1]).endswith(".arrow"):
        stopped = True
        os.kill(os.getpid(), signal.{how})

os.replace = replace_and_stop
main()
"""


@pytest.mark.usefixtures("in_process", "small_shards")
class TestTwo:
    def start(self, root: Path, how: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", STOPS.replace("{how}", how), "-C", root, "cache", "-j", "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until_stopped(self, process: subprocess.Popen) -> None:
        deadline = time.monotonic() + 60
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    @pytest.mark.parametrize("then", ["goes on", "is killed"])
    def test_the_second_says_who_holds_the_lock(
        self, root: Path, tmp_path: Path, ft: Callable, wrong: Callable, then: str
    ) -> None:
        shutil.copytree(root, tmp_path / "undisturbed")
        ft(tmp_path / "undisturbed", "cache", "-j", 1)
        first = self.start(root, "SIGSTOP")
        try:
            self.wait_until_stopped(first)
            for command in (["cache"], ["cache", "--verify"], ["cache", "--gc"], ["prune", "--min", 2]):
                assert f"`ft cache` (process {first.pid}) is writing to this workspace" in wrong(
                    root, *command
                )
            ft(root, "status")
            first.send_signal(signal.SIGCONT if then == "goes on" else signal.SIGKILL)
            assert first.wait(60) == (0 if then == "goes on" else -signal.SIGKILL)
        finally:
            first.kill()
            first.communicate()
        assert "30 crops in" in ft(root, "cache", "-j", 1).stdout
        assert made(root) == made(tmp_path / "undisturbed")

    def test_ctrl_c_is_one_line(self, root: Path, tmp_path: Path, ft: Callable) -> None:
        process = self.start(root, "SIGINT")
        out, said = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, "")
        assert said == "Error: interrupted: nothing is lost, run the same command again to go on\n"
        assert not list((root / ".ft").rglob(f"{TEMP_PREFIX}*"))
        ft(root, "cache", "-j", 1)
        assert "damaged" not in ft(root, "cache", "--verify", "-j", 1).stdout
