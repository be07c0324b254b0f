"""`ft cache --gc` drops what nothing refers to, and never what a running process reads."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from facetrain.datasets.cache import gpus, leases
from facetrain.datasets.cache.collect import collect, unreferenced_shards
from facetrain.datasets.cache.leases import open_manifest, read_leases, shards_in_use
from facetrain.datasets.cache.manifest import read_manifest
from facetrain.errors import MissingStage, UserError
from facetrain.files import TEMP_PREFIX
from facetrain.workspace import Workspace

pytestmark = pytest.mark.usefixtures("in_process", "small_shards")


@pytest.fixture
def cached(root: Path, ft: Callable) -> Path:
    ft(root, "cache", "-j", 1)
    return root


def store_of(root: Path) -> Path:
    return Workspace.find(root).dataset().folder


def shard_names(root: Path) -> set[str]:
    return {path.name for path in (root / ".ft" / "cache").iterdir()}


def change(root: Path, ft: Callable) -> tuple[set[str], set[str]]:
    """Supersede a shard: (those that are new, those that nothing refers to any more)."""
    before = set(referred(root))
    for number in (1, 2):  # again when the first photograph has changed already
        if (root / "raw" / "ann" / f"{number}.jpg").exists():
            (root / "raw" / "ann" / f"{number}.jpg").unlink()
            break
    ft(root, "align", root / "raw", root / "aligned", "--size", 32)
    ft(root, "cache", "-j", 1)
    after = set(referred(root))
    assert before - after
    return after - before, before - after


def referred(root: Path) -> list[str]:
    manifest = read_manifest(store_of(root))
    assert manifest is not None
    return manifest.shards


READER = """
import sys, time
from pathlib import Path
from facetrain.datasets.cache.leases import open_manifest
from facetrain.datasets.cache.shards import map_shard

store, cache, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
with open_manifest(store, cache, "a test") as manifest:
    views = [view for name in manifest.shards for view in map_shard(cache / name)]
    if how == "fork":
        import os
        if os.fork():
            time.sleep(60)
    print("reading", flush=True)
    sys.stdin.readline()
    print(sum(int(view.sum()) for view in views), flush=True)
"""


READS_AGAIN_AND_AGAIN = """
import sys
from pathlib import Path
from facetrain.datasets.cache.leases import open_manifest
from facetrain.datasets.cache.shards import map_shard

store, cache, stop = (Path(argument) for argument in sys.argv[1:])
print("reading", flush=True)
seen = set()
while not stop.exists():
    with open_manifest(store, cache, "a test") as manifest:
        seen.add(tuple(manifest.shards))
        for name in manifest.shards:
            map_shard(cache / name)
print(len(seen), flush=True)
"""


@pytest.fixture
def start_reader() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a process that maps all shards, and waits for a line before it reads them."""
    started: list[subprocess.Popen] = []

    def start(root: Path, how: str = "") -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", READER, store_of(root), root / ".ft" / "cache", how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        return process

    yield start
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.communicate()


class TestCommand:
    def test_only_what_nothing_refers_to_goes(self, cached: Path, ft: Callable) -> None:
        assert ft(cached, "cache", "--gc").stdout == "nothing to drop\n"
        _, superseded = change(cached, ft)
        assert superseded < shard_names(cached), "`ft cache` drops nothing by itself"
        bytes_before = sum(path.stat().st_size for path in (cached / ".ft" / "cache").iterdir())
        size = sum((cached / ".ft" / "cache" / name).stat().st_size for name in superseded)
        said = f"dropped: {len(superseded)} file, {size / 1e6:,.0f} MB\n"
        assert ft(cached, "cache", "--gc", "--dry-run").stdout == f"would be {said}"
        assert superseded < shard_names(cached)
        assert ft(cached, "cache", "--gc").stdout == said
        assert shard_names(cached) == set(referred(cached))
        assert sum(p.stat().st_size for p in (cached / ".ft" / "cache").iterdir()) == bytes_before - size
        assert "0 decoded, 0 copied, 0 shards written" in ft(cached, "cache").stdout

    def test_shards_of_every_dataset_stay(self, cached: Path, ft: Callable) -> None:
        ft(cached, "align", cached / "raw", cached / "other", "--size", 48)
        ft(cached, "cache", "-j", 1)
        both = shard_names(cached)
        assert ft(cached, "cache", "--gc").stdout == "nothing to drop\n"
        assert shard_names(cached) == both
        shutil.rmtree(store_of(cached))  # how one gets rid of a dataset
        assert "dropped: " in ft(cached, "cache", "--gc").stdout
        ft(cached, "cache", cached / "aligned")
        assert 0 < len(shard_names(cached)) < len(both)

    def test_what_is_not_a_shard_stays(self, cached: Path, ft: Callable) -> None:
        cache = cached / ".ft" / "cache"
        others = [cache / "notes.txt", cache / "mine.arrow", cache / ("0" * 32 + ".arrow.bak")]
        for path in others:
            path.write_text("mine")
        (cache / ("f" * 32 + ".arrow")).mkdir()
        (cache / ("e" * 32 + ".arrow")).symlink_to(others[0])
        assert ft(cached, "cache", "--gc").stdout == "nothing to drop\n"
        assert all(path.exists() for path in others)

    def test_half_written_files_of_killed_trainings_go(self, cached: Path, ft: Callable) -> None:
        run = cached / ".ft" / "runs" / "r"
        (run / "checkpoints").mkdir(parents=True)
        left = run / "checkpoints" / f"{TEMP_PREFIX}{2**22 + 5}-abc"
        left.write_bytes(b"half a checkpoint")
        being_written = run / "checkpoints" / f"{TEMP_PREFIX}{os.getppid()}-abc"
        being_written.write_bytes(b"by a process that lives")
        (run / "checkpoints" / "epoch-0001.safetensors").write_bytes(b"a checkpoint")
        with open(run / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert ft(cached, "cache", "--gc").stdout == "nothing to drop\n", "the training goes on"
        assert left.exists()
        assert ft(cached, "cache", "--gc").stdout == "dropped: 1 file, 0 MB\n"
        assert not left.exists()
        assert {path.name for path in (run / "checkpoints").iterdir()} == {
            "epoch-0001.safetensors",
            being_written.name,
        }

    def test_it_runs_alone(self, cached: Path, wrong: Callable) -> None:
        assert "runs alone" in wrong(cached, "cache", "--gc", "--verify")
        assert "runs alone" in wrong(cached, "cache", cached / "aligned", "--gc")
        assert "goes with --gc" in wrong(cached, "cache", "--dry-run")

    @pytest.mark.parametrize("how", ["flipped", "gone", "dangling", "lease"])
    def test_nothing_goes_while_it_is_not_known_what_is_referred_to(
        self, cached: Path, ft: Callable, wrong: Callable, how: str
    ) -> None:
        change(cached, ft)
        before, store = shard_names(cached), store_of(cached)
        with ExitStack() as stack:
            says = self.damage(cached, store, how, stack)
            for options in (["--dry-run"], []):
                assert says in wrong(cached, "cache", "--gc", *options)
                assert shard_names(cached) == before

    def damage(self, cached: Path, store: Path, how: str, stack: ExitStack) -> str:
        """Returns what is said of it."""
        if how == "flipped":
            data = bytearray((store / "cache.arrow").read_bytes())
            data[len(data) // 2] ^= 1
            (store / "cache.arrow").write_bytes(data)
            return "cache.arrow is damaged: `ft cache` makes it again; nothing is dropped"
        if how == "gone":
            (store / "cache.arrow").unlink()
            return "cache.arrow is gone: `ft cache` makes it again; nothing is dropped"
        if how == "dangling":
            (cached / ".ft" / "datasets" / "moved").symlink_to(cached / "not mounted")
            return "is a link to what is not there"
        (cached / ".ft" / "readers").mkdir()
        held = os.open(cached / ".ft" / "readers" / "x.json", os.O_CREAT | os.O_RDWR)
        stack.callback(os.close, held)
        fcntl.flock(held, fcntl.LOCK_EX)
        return "says which shards a running command reads, and cannot be read"

    def test_status_hints_at_it(self, cached: Path, ft: Callable) -> None:
        assert "--gc" not in ft(cached, "status").stdout
        change(cached, ft)
        assert "`ft cache --gc` drops them" in " ".join(ft(cached, "status").stdout.split())
        ft(cached, "cache", "--gc")
        assert "--gc" not in ft(cached, "status").stdout


class TestReaders:
    def test_their_shards_stay_until_they_are_killed(
        self, cached: Path, ft: Callable, start_reader: Callable
    ) -> None:
        reader = start_reader(cached)
        _, superseded = change(cached, ft)
        said = ft(cached, "cache", "--gc").stdout.splitlines()
        assert said[0] == "nothing to drop"
        assert said[1].startswith("kept, since running commands read them: 1 shard, ")
        assert f"(a test (process {reader.pid}))" in said[1]
        assert superseded < shard_names(cached)
        reader.kill()
        reader.communicate()
        assert list((cached / ".ft" / "readers").iterdir()), "a killed reader leaves its lease"
        assert "dropped: 1 file" in ft(cached, "cache", "--gc").stdout
        assert shard_names(cached) == set(referred(cached))
        assert list((cached / ".ft" / "readers").iterdir()) == []

    def test_they_read_on(self, cached: Path, ft: Callable, start_reader: Callable) -> None:
        reader, other = start_reader(cached), start_reader(cached)
        change(cached, ft)
        ft(cached, "cache", "--gc")
        first, _ = reader.communicate("go on\n", timeout=30)
        assert int(first) > 0
        assert "1 shard" in ft(cached, "cache", "--gc").stdout, "the other one still reads"
        assert other.communicate("go on\n", timeout=30)[0] == first
        assert (reader.returncode, other.returncode) == (0, 0)
        assert list((cached / ".ft" / "readers").iterdir()) == []
        assert "dropped: 1 file" in ft(cached, "cache", "--gc").stdout

    def test_readers_come_and_go_while_shards_do(self, cached: Path, ft: Callable) -> None:
        """Two processes take leases as fast as they can, while shards are superseded and dropped."""
        stop = cached / "stop"
        words = [
            sys.executable,
            "-c",
            READS_AGAIN_AND_AGAIN,
            store_of(cached),
            cached / ".ft" / "cache",
            stop,
        ]
        readers = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        crop = cached / "aligned" / "ann" / "1.jpg"
        pictures = crop.read_bytes(), (cached / "aligned" / "ann" / "2.jpg").read_bytes()
        try:
            for reader in readers:
                assert reader.stdout is not None
                assert reader.stdout.readline() == "reading\n"
            dropped = 0
            for number in range(20):
                crop.write_bytes(pictures[number % 2])
                ft(cached, "cache", "-j", 1)
                dropped += "dropped: 1 file" in ft(cached, "cache", "--gc").stdout
        finally:
            stop.touch()
            ends = [(reader.communicate(timeout=60)[0], reader.returncode) for reader in readers]
        assert dropped > 0
        for seen, code in ends:
            assert code == 0
            assert int(seen) > 1, "it saw more than one state"
        assert ft(cached, "cache", "--gc").stdout.startswith(("nothing", "dropped"))
        assert shard_names(cached) == set(referred(cached))

    def test_a_child_keeps_what_its_killed_parent_held(
        self, cached: Path, ft: Callable, start_reader: Callable
    ) -> None:
        reader = start_reader(cached, "fork")
        change(cached, ft)
        reader.kill()
        reader.wait()
        assert ft(cached, "cache", "--gc").stdout.startswith("nothing to drop\nkept")
        os.killpg(reader.pid, signal.SIGKILL)  # the child
        reader.communicate()
        assert "dropped: 1 file" in ft(cached, "cache", "--gc").stdout

    def test_a_manifest_that_is_superseded_before_it_is_leased_is_read_again(
        self, cached: Path, ft: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, changes = leases.read_manifest, []

        def read_and_supersede(store: Path) -> object:
            manifest = real(store)
            if len(changes) < 2:
                changes.append(change(cached, ft))
                ft(cached, "cache", "--gc")
            return manifest

        monkeypatch.setattr(leases, "read_manifest", read_and_supersede)
        with open_manifest(store_of(cached), cached / ".ft" / "cache", "a test") as manifest:
            assert len(changes) == 2
            assert manifest.shards == referred(cached)
            assert set(manifest.shards) <= shard_names(cached)
            assert read_leases(cached / ".ft" / "cache", remove_dead=True).shards == set(manifest.shards)
        assert list((cached / ".ft" / "readers").iterdir()) == []

    def test_one_that_changes_all_the_time_is_given_up(
        self, cached: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(leases, "table_fingerprint", lambda path: "another")
        with (
            pytest.raises(UserError, match="is being changed all the time"),
            open_manifest(store_of(cached), cached / ".ft" / "cache", "a test"),
        ):
            pass
        assert list((cached / ".ft" / "readers").iterdir()) == []

    def test_there_must_be_a_cache(self, root: Path) -> None:
        with (
            pytest.raises(MissingStage, match="run `ft cache` first"),
            open_manifest(store_of(root), root / ".ft" / "cache", "a test"),
        ):
            pass

    @pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EROFS])
    def test_where_no_lease_can_be_had_one_reads_without(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        def refused(*arguments: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(leases.fcntl, "flock", refused)
        done = []
        with shards_in_use(tmp_path / "cache", ["a.arrow"], "a test"):
            assert list((tmp_path / "readers").iterdir()) == []
            done.append(1)
        assert done
        monkeypatch.undo()
        assert read_leases(tmp_path / "cache", remove_dead=True).holders == []

    def test_a_full_disk_is_an_error_and_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who reads without a lease while others drop shards for lack of room would lose them."""

        def refused(*arguments: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(leases.fcntl, "flock", refused)
        with pytest.raises(OSError, match="No space left"), shards_in_use(tmp_path / "cache", [], "a test"):
            pass
        assert list((tmp_path / "readers").iterdir()) == []

    def test_an_error_of_the_reader_passes_through_and_ends_the_lease(self, tmp_path: Path) -> None:
        def read() -> None:
            with shards_in_use(tmp_path / "cache", ["b.arrow", "a.arrow"], "a test"):
                (lease,) = (tmp_path / "readers").iterdir()
                assert json.loads(lease.read_text()) == {
                    "holder": f"a test (process {os.getpid()})",
                    "shards": ["a.arrow", "b.arrow"],
                }
                raise OSError(errno.EIO, "its own")

        with pytest.raises(OSError, match="its own") as caught:
            read()
        assert caught.value.filename is None
        assert list((tmp_path / "readers").iterdir()) == []

    def test_one_that_is_just_being_taken_is_left_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, found = leases.fcntl.flock, []

        def look_first(file: Any, how: int) -> None:
            if not found:  # between the making of the file and its lock, of another process's, as it were
                found.append(1)
                (temporary,) = (tmp_path / "readers").iterdir()
                monkeypatch.setattr(leases, "sweep", lambda folder: None)
                assert read_leases(tmp_path / "cache", remove_dead=True).holders == []
                assert temporary.exists()
            real(file, how)

        monkeypatch.setattr(leases.fcntl, "flock", look_first)
        with shards_in_use(tmp_path / "cache", ["a.arrow"], "a test"):
            assert found
            assert read_leases(tmp_path / "cache", remove_dead=True).shards == {"a.arrow"}

    def test_leases_that_cannot_be_locked_count(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "readers").mkdir()
        lease = tmp_path / "readers" / "1.json"
        lease.write_text('{"holder": "another machine", "shards": ["a.arrow"]}')

        def refused(*arguments: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        with monkeypatch.context() as patch:
            patch.setattr(leases.fcntl, "flock", refused)
            found = read_leases(tmp_path / "cache", remove_dead=True)
        assert (found.holders, found.shards) == (["another machine"], {"a.arrow"})
        assert read_leases(tmp_path / "cache", remove_dead=False).holders == []
        assert lease.exists()
        assert read_leases(tmp_path / "cache", remove_dead=True).holders == []
        assert not lease.exists()


def test_nothing_is_cached_yet(root: Path, ft: Callable) -> None:
    assert ft(root, "cache", "--gc").stdout == "nothing to drop\n"
    assert unreferenced_shards(root / ".ft") == {}
    assert collect(root / ".ft", dry_run=True).files == 0


class TestDevice:
    def test_auto(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for count, device in ((0, "cpu"), (2, "cuda")):
            monkeypatch.setattr(gpus, "count_gpus", lambda count=count: count)
            assert gpus.decoding_device("auto") == device
        assert gpus.decoding_device("cuda") == "cuda"
        assert gpus.decoding_device("cuda:1") == "cuda:1"
        with pytest.raises(UserError, match="there are 2 GPUs here"):
            gpus.decoding_device("cuda:2")

    @pytest.mark.parametrize("asked", ["gpu", "cuda:", "cuda:x", "cpu:0", "cudax", ""])
    def test_others(self, asked: str) -> None:
        with pytest.raises(UserError, match="choose auto, cpu, cuda or cuda:N"):
            gpus.decoding_device(asked)

    def test_no_driver_is_no_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> None:
            raise OSError(f"{name}: cannot open shared object file")

        monkeypatch.setattr(gpus.ctypes, "CDLL", missing)
        assert gpus.count_gpus() == 0
        assert gpus.decoding_device("cpu") == "cpu"

    def test_a_driver_that_fails_is_no_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Driver:
            def __init__(self, error: int) -> None:
                self.error = error

            def cuInit(self, flags: int) -> int:
                return self.error

            def cuDeviceGetCount(self, count: object) -> int:
                count._obj.value = 3  # type: ignore[attr-defined]
                return 0

        monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: Driver(100))
        assert gpus.count_gpus() == 0
        monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: Driver(0))
        assert gpus.count_gpus() == 3

    def test_of_the_command(self, root: Path, wrong: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpus, "count_gpus", lambda: 0)
        assert "there are 0 GPUs here" in wrong(root, "cache", "--device", "cuda")
