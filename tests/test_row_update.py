"""Bringing rows up to date: columnar code against a plain model of what must come out."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from blake3 import blake3
from conftest import InProcess
from hypothesis import given, settings
from hypothesis import strategies as st

from facetrain.file_table import LISTED, RACY_NS, Listing, Stat, file_system_now_ns
from facetrain.image_spec import ImageSpec
from facetrain.preprocess import row_update
from facetrain.preprocess.aligner import Outcome, Task
from facetrain.preprocess.row_update import RowUpdate, Work
from facetrain.tables import read_table
from facetrain.workers import WorkerDied

SPEC = ImageSpec(size_px=32)
Tree = dict[str, int]  # path → version of what is in it


def digest(*words: object) -> bytes:
    return blake3(repr(words).encode()).digest()


def stat_of(path: str, version: int) -> Stat:
    """A state that stands for path and version, long ago."""
    return Stat(size_bytes=100 + version, mtime_ns=10**18 + version, ctime_ns=10**18, inode=len(path))


def listing_of(tree: Tree, problems: dict[str, str]) -> Listing:
    rows = [{"path": path} | vars_of(stat_of(path, tree[path])) for path in sorted(tree)]
    return Listing(pa.Table.from_pylist(rows, schema=LISTED), dict(problems))


def vars_of(stat: Stat) -> dict[str, int]:
    return {name: getattr(stat, name) for name in Stat.__dataclass_fields__}


def row_of(path: str, version: int) -> Outcome:
    """What a worker finds: every third version has no face."""
    content = digest(path, version)
    found = Outcome(path, content=content, size_bytes=100 + version, stat=stat_of(path, version))
    if version % 3 == 2:
        found.status, found.reason = "no-face", "no face found"
    else:
        found.status, found.aligned, found.aligned_content = "aligned", path, digest("crop", content)
    return found


def look_at(tree: Tree, seen: list[str], tasks: Sequence[Task]) -> list[Outcome]:
    outcomes = []
    for task in tasks:
        seen.append(task.path)
        found = row_of(task.path, tree[task.path])
        if found.content == task.known:
            found = Outcome(task.path, content=found.content, stat=found.stat, unchanged=True)
        outcomes.append(found)
    return outcomes


class Stop(Exception):
    pass


def update(
    store: Path, tree: Tree, problems: dict[str, str], crops: dict[str, bytes], stop_after: int | None = None
) -> tuple[list[str], int]:
    """One run; the crops that it makes are put into ``crops``. (paths looked at, photographs that disappeared)."""
    listing = listing_of(tree, problems)
    one = RowUpdate(store, SPEC, {"spec": {}}, "it", "was aligned")
    there = pa.table(
        {
            "path": pa.array(sorted(crops), pa.large_string()),
            "content": pa.array([crops[p] for p in sorted(crops)], pa.binary(32)),
        }
    )
    seen: list[str] = []
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        if stop_after is not None and done >= stop_after:
            raise Stop

    def look(tasks: Sequence[Task]) -> list[Outcome]:
        found = look_at(tree, seen, tasks)
        crops.update({o.path: o.aligned_content for o in found if o.aligned_content is not None})
        return found

    one.begin(listing)
    looked_at = one.look_at(listing, there, [], look, Work(1, lambda jobs: InProcess(), on_progress=progress))
    report = one.finish(listing, [], looked_at)
    return seen, report.disappeared


def rows(store: Path) -> dict[str, dict]:
    return {row["path"]: row for row in read_table(store / "rows.arrow").to_pylist()}


PATHS = [f"{person}/{number}.jpg" for person in ("ann", "ann b", "bob") for number in range(4)]
TREES = st.dictionaries(st.sampled_from(PATHS), st.integers(0, 5), max_size=len(PATHS))
STEPS = st.lists(
    st.tuples(TREES, st.sets(st.sampled_from(PATHS), max_size=2), st.one_of(st.none(), st.integers(1, 6))),
    min_size=1,
    max_size=5,
)


@given(STEPS)
@settings(max_examples=60)
def test_any_history_ends_as_a_plain_model_says(steps: list[tuple[Tree, set[str], int | None]]) -> None:
    """Trees that change, crops that are lost, runs that are interrupted: after each whole run the rows are right."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        store = Path(folder)
        later = file_system_now_ns(store) + 10 * RACY_NS
        patch.setattr(row_update, "file_system_now_ns", lambda where: later)
        patch.setattr(row_update, "BLOCK", 2)
        model: dict[str, tuple[str, int]] = {}  # path → (status, version)
        crops: dict[str, bytes] = {}
        for tree, lost, stop_after in steps:
            for path in lost:
                crops.pop(path, None)
            if stop_after is not None:
                try:
                    update(store, tree, {}, crops, stop_after)
                except Stop:
                    continue
            else:
                update(store, tree, {}, crops)
            for path in set(model) - set(tree):
                model[path] = ("missing", model[path][1])
            model |= {path: (row_of(path, version).status, version) for path, version in tree.items()}
            found = rows(store)
            # A run that was interrupted may have met photographs that were gone again before the next: rows, missing.
            extra = set(found) - set(model)
            assert all(found[path]["status"] == "missing" for path in extra)
            for path, (status, version) in model.items():
                row = found[path]
                assert row["status"] == status, path
                if status != "missing":
                    expected = row_of(path, version)
                    assert row["content"] == expected.content
                    assert (row["aligned"], row["aligned_content"]) == (
                        expected.aligned,
                        expected.aligned_content,
                    )
                    assert row["identity"] == path.split("/")[0]
                    if row["aligned"] is not None:
                        assert crops[path] == expected.aligned_content
            assert not (store / row_update.JOURNAL).exists()
            seen, disappeared = update(store, tree, {}, crops)
            assert (seen, disappeared) == ([], 0), "a second run looks at nothing"


def test_a_photograph_that_is_a_problem_for_a_while(tmp_path: Path) -> None:
    tree, crops = dict.fromkeys(PATHS, 0), {}
    update(tmp_path, tree, {}, crops)
    update(tmp_path, {p: 0 for p in PATHS if p != "bob/1.jpg"}, {"bob/1.jpg": "Permission denied"}, crops)
    row = rows(tmp_path)["bob/1.jpg"]
    assert (row["status"], row["reason"], row["size_bytes"]) == ("unreadable", "Permission denied", 100)
    update(tmp_path, {p: 0 for p in PATHS if not p.startswith("bob/")}, {"bob": "Permission denied"}, crops)
    found = rows(tmp_path)
    assert (found["bob"]["status"], found["bob"]["size_bytes"]) == ("unreadable", None)
    assert found["bob/1.jpg"]["reason"] == "its folder could not be entered: Permission denied"
    update(tmp_path, tree, {}, crops)
    assert {row["status"] for row in rows(tmp_path).values()} == {"aligned"}
    assert "bob" not in rows(tmp_path), "it was no photograph"


class TestWorkersThatDie:
    """A photograph that crashes the process that looks at it costs itself alone."""

    def run(self, store: Path, look: object, jobs: int = 2) -> dict[str, dict]:
        tree = dict.fromkeys(PATHS, 0)
        listing = listing_of(tree, {})
        one = RowUpdate(store, SPEC, {"spec": {}}, "it", "was aligned")
        counts: list[int] = []
        one.begin(listing)
        looked_at = one.look_at(listing, None, [], look, Work(jobs, on_progress=counts.append))  # type: ignore[arg-type]
        assert sum(counts) == looked_at == len(PATHS)
        one.finish(listing, [], looked_at)
        return rows(store)

    def test_the_culprit_is_found(self, tmp_path: Path) -> None:
        found = self.run(tmp_path, partial(deadly, ("bob/2.jpg",)))
        bad = found.pop("bob/2.jpg")
        assert (bad["status"], bad["reason"]) == ("unreadable", "it crashes the process that looks at it")
        assert {row["status"] for row in found.values()} == {"aligned"}

    def test_any_number_of_them(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Only deaths that nothing explains are counted, one after the other."""
        monkeypatch.setattr(row_update, "MAX_DEATHS", 1)
        monkeypatch.setattr(row_update, "BLOCK", 1)
        bad = ("ann/1.jpg", "ann b/2.jpg", "bob/3.jpg")
        found = self.run(tmp_path, partial(deadly, bad), jobs=1)
        assert {path for path, row in found.items() if row["status"] == "unreadable"} == set(bad)

    def test_a_machine_that_kills_every_process(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No photograph is to blame, so the run ends: with what it has in the journal."""
        monkeypatch.setattr(row_update, "MAX_DEATHS", 0)
        monkeypatch.setattr(row_update, "BLOCK", 1)
        with pytest.raises(WorkerDied, match="run again to go on"):
            self.run(tmp_path, partial(deadly_in_pools_of_two, os.getpid()), jobs=2)

    def test_a_worker_that_was_killed_once(self, tmp_path: Path) -> None:
        found = self.run(tmp_path, partial(deadly_once, tmp_path / "died", "ann/3.jpg"))
        assert {row["status"] for row in found.values()} == {"aligned"}


def deadly(which: Sequence[str], tasks: Sequence[Task]) -> list[Outcome]:
    for task in tasks:
        if task.path in which:
            os.kill(os.getpid(), signal.SIGKILL)
    return [row_of(task.path, 0) for task in tasks]


def deadly_in_pools_of_two(parent: int, tasks: Sequence[Task]) -> list[Outcome]:
    """Dies wherever another worker is at work beside it, as where memory is short."""
    workers = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    names = [Path(f"/proc/{pid}/cmdline").read_text() for pid in workers]
    if sum("spawn_main" in name for name in names) > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return [row_of(task.path, 0) for task in tasks]


def deadly_once(mark: Path, which: str, tasks: Sequence[Task]) -> list[Outcome]:
    if which in [task.path for task in tasks] and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [row_of(task.path, 0) for task in tasks]
