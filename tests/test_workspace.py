"""The .ft/ folder: found, made, moved, locked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from facetrain.errors import Locked, MissingStage, UserError
from facetrain.files import TEMP_PREFIX
from facetrain.workspace import Dataset, StageRecord, Workspace


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FT_WORKSPACE", raising=False)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.find(tmp_path, create=True)
    made.create()
    return made


class TestFind:
    def test_upwards_as_git_does(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        (workspace.root / "a" / "b").mkdir(parents=True)
        monkeypatch.chdir(workspace.root / "a" / "b")
        assert Workspace.find().root == workspace.root
        assert Workspace.find(create=True).root == workspace.root

    def test_a_named_one_is_not_searched_for(
        self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (workspace.root / "a").mkdir()
        with pytest.raises(MissingStage):
            Workspace.find(workspace.root / "a")
        monkeypatch.setenv("FT_WORKSPACE", str(workspace.root / "a"))
        with pytest.raises(MissingStage):
            Workspace.find()
        assert Workspace.find(workspace.root).root == workspace.root, "the option goes before the variable"

    def test_none(self, tmp_path: Path) -> None:
        with pytest.raises(MissingStage, match=r"run `ft align RAW ALIGNED` first"):
            Workspace.find(tmp_path)
        with pytest.raises(UserError, match="no folder"):
            Workspace.find(tmp_path / "a", create=True)

    def test_asking_for_one_writes_nothing(self, tmp_path: Path) -> None:
        Workspace.find(tmp_path, create=True)
        assert list(tmp_path.iterdir()) == []

    def test_create_does_no_harm_to_one_that_is_there(self, workspace: Workspace) -> None:
        workspace.make_current(workspace.add_dataset(workspace.root / "raw", workspace.root / "aligned"))
        Workspace.find(workspace.root, create=True).create()
        assert workspace.dataset().aligned == workspace.root / "aligned"

    def test_a_place_that_cannot_hold_one(self, tmp_path: Path) -> None:
        (tmp_path / ".ft").touch()
        with pytest.raises(UserError, match=r"cannot make a workspace in .*: use -C DIR"):
            Workspace.find(tmp_path, create=True).create()

    @pytest.mark.parametrize("text", ["", "{", "[1, 2]", "7"])
    def test_damage(self, workspace: Workspace, text: str) -> None:
        (workspace.folder / "workspace.json").write_text(text)
        with pytest.raises(UserError, match=r"workspace.json is damaged: remove it"):
            Workspace.find(workspace.root)

    def test_another_format(self, workspace: Workspace) -> None:
        (workspace.folder / "workspace.json").write_text('{"format": 99}')
        with pytest.raises(UserError, match="has format 99, this facetrain reads 2"):
            Workspace.find(workspace.root)


class TestDatasets:
    def test_the_current_one(self, workspace: Workspace) -> None:
        with pytest.raises(MissingStage, match="no dataset"):
            workspace.dataset()
        first = workspace.add_dataset(workspace.root / "raw", workspace.root / "one")
        with pytest.raises(MissingStage, match="no dataset"):
            workspace.dataset()
        workspace.make_current(first)
        second = workspace.add_dataset(workspace.root / "raw", workspace.root / "two")
        assert workspace.dataset().folder == first.folder
        workspace.make_current(second)
        assert workspace.dataset().folder == second.folder
        assert [dataset.folder for dataset in workspace.datasets()] == [first.folder, second.folder]

    def test_by_name(self, workspace: Workspace) -> None:
        dataset = workspace.add_dataset(workspace.root / "raw", workspace.root / "one")
        with pytest.raises(
            UserError, match="no folder one: name an aligned tree, or run `ft align RAW one` first"
        ):
            workspace.dataset(Path("one"))
        (workspace.root / "one").mkdir()
        assert workspace.dataset(Path("one")).folder == dataset.folder
        assert workspace.dataset(workspace.root / "one" / ".." / "one").folder == dataset.folder
        (workspace.root / "two").mkdir()
        with pytest.raises(MissingStage, match="two was not aligned in this workspace"):
            workspace.dataset(Path("two"))

    def test_over_a_link(self, workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> None:
        link = tmp_path_factory.mktemp("links") / "here"
        link.symlink_to(workspace.root)
        dataset = workspace.add_dataset(workspace.root / "raw", workspace.root / "one")
        over = Workspace.find(link).add_dataset(link / "raw", link / "one")
        assert (over.folder, over.raw) == (dataset.folder, dataset.raw)

    def test_names_that_look_alike_are_different(self, workspace: Workspace) -> None:
        names = ["a b", "a-b", "a/b", "b", "ä", "..b", "-", "x" * 200, "x" * 201]
        folders = {workspace.add_dataset(Path("raw"), workspace.root / name).folder for name in names}
        assert len(folders) == len(names)
        assert all(folder.parent == workspace.folder / "datasets" for folder in folders)

    def test_the_whole_folder_can_be_moved(self, workspace: Workspace, tmp_path: Path) -> None:
        outside = Path("/somewhere/else")
        inner = workspace.add_dataset(workspace.root / "raw", workspace.root / "aligned")
        outer = workspace.add_dataset(outside / "raw", outside / "aligned")
        workspace.make_current(inner)
        (tmp_path / "new").mkdir()
        workspace.folder.rename(tmp_path / "new" / ".ft")
        moved = Workspace.find(tmp_path / "new")
        assert moved.dataset().raw == tmp_path / "new" / "raw"
        assert moved.dataset().aligned == tmp_path / "new" / "aligned"
        assert Dataset(moved, moved.folder / "datasets" / outer.folder.name).raw == outside / "raw"

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"raw": "x"}'])
    def test_damage_is_mended_by_the_next_align(self, workspace: Workspace, text: str) -> None:
        dataset = workspace.add_dataset(workspace.root / "raw", workspace.root / "aligned")
        workspace.make_current(dataset)
        (dataset.folder / "dataset.json").write_text(text)
        with pytest.raises(UserError, match=r"is no dataset of this workspace .*: run `ft align` again"):
            workspace.dataset()
        workspace.add_dataset(workspace.root / "raw", workspace.root / "aligned")
        assert workspace.dataset().raw == workspace.root / "raw"


class TestRecords:
    RECORD = StageRecord("prune", {"min": 3}, {"rows": "ab"}, "cd", {"people": 2}, 0.5)

    def test_round_trip(self, workspace: Workspace) -> None:
        dataset = workspace.add_dataset(Path("raw"), Path("aligned"))
        assert dataset.record("prune") is None
        dataset.write_record(self.RECORD)
        assert dataset.record("prune") == self.RECORD
        dataset.forget("prune")
        dataset.forget("prune")
        assert dataset.record("prune") is None

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"stage": "prune"}'])
    def test_a_damaged_one_counts_as_none(self, workspace: Workspace, text: str) -> None:
        dataset = workspace.add_dataset(Path("raw"), Path("aligned"))
        dataset.write_record(self.RECORD)
        (dataset.folder / "stages" / "prune.json").write_text(text)
        assert dataset.record("prune") is None


class TestRuns:
    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", ".hidden", "a b", "ø", "x" * 101])
    def test_names_that_cannot_be(self, workspace: Workspace, name: str) -> None:
        with pytest.raises(UserError, match="cannot name a run"):
            workspace.run_folder(name)

    def test_oldest_first(self, workspace: Workspace) -> None:
        for age_s, name in ((10, "b"), (30, "c"), (20, "a")):
            folder = workspace.run_folder(name)
            folder.mkdir(parents=True)
            (folder / "config.json").touch()
            os.utime(folder / "config.json", (1e9 - age_s, 1e9 - age_s))
        (workspace.runs_folder / "no run").mkdir()
        assert [run.name for run in workspace.runs()] == ["c", "a", "b"]


class TestLock:
    def test_one_writer_at_a_time(self, workspace: Workspace) -> None:
        again = Workspace.find(workspace.root)
        message = rf"process {os.getpid()}\) is writing to this workspace"
        with workspace.lock(), pytest.raises(Locked, match=message), again.lock():
            pytest.fail("two writers")
        with workspace.lock():
            pass

    def test_a_killed_writer_lets_go(self, workspace: Workspace) -> None:
        code = (
            "import os, signal; from pathlib import Path; from facetrain.workspace import Workspace\n"
            f"with Workspace.find(Path({str(workspace.root)!r})).lock():\n"
            "    print(flush=True); os.kill(os.getpid(), signal.SIGKILL)"
        )
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
        with workspace.lock():
            pass

    def test_what_killed_commands_left_is_swept(self, workspace: Workspace) -> None:
        dataset = workspace.add_dataset(Path("raw"), Path("aligned"))
        folders = [
            workspace.folder,
            workspace.folder / "cache",
            dataset.folder,
            dataset.folder / "stages",
            workspace.folder / "evaluate" / "x",
        ]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{TEMP_PREFIX}{2**22 + 1}-abc").touch()  # no such process
        with workspace.lock():
            assert list(workspace.folder.rglob(f"{TEMP_PREFIX}*")) == []
        assert dataset.aligned == workspace.root / "aligned"
