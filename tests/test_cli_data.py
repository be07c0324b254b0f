"""The commands up to `ft cache`, as a user types them, on real files; and every way to get them wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facetrain.index import read_index
from facetrain.workspace import Workspace


def ft_process(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "facetrain.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    lines = done.stderr.splitlines(keepends=True)
    # On a very slow machine there is progress to report.
    done.stderr = "".join(line for line in lines if not line.startswith(("aligning: ", "decoding: ")))
    return done


def stages(root: Path, ft: Callable, *options: str) -> dict[str, tuple[str, str]]:
    found = json.loads(ft(root, "status", "--json", *options).stdout)
    return {line["stage"]: (line["state"], line["detail"]) for line in found["stages"]}


def align(root: Path, ft: Callable) -> str:
    return ft(root, "align", root / "raw", root / "aligned", "--size", 32).stdout


class TestInProcesses:
    """The real thing: processes, relative paths, exit codes."""

    def test_from_photographs_to_shards(self, raw: Path) -> None:
        root = raw.parent
        (raw / "gus").mkdir()
        (raw / "gus" / "torn.jpg").write_bytes(b"torn")
        (raw / "gus" / "notes.txt").touch()
        done = ft_process("align", "raw", "aligned", "-j", 2, cwd=root)
        assert (done.returncode, done.stderr) == (0, "")
        lines = [line.split() for line in done.stdout.splitlines()]
        assert lines[0][0] == "aligned"
        found = int(lines[0][1])
        assert found >= 28
        assert lines[0][2] == f"{found / 31:.2%}"
        assert ["unreadable", "1", "3.23%"] in lines
        assert "31 photographs: 31 looked at" in done.stdout
        assert "files that are no photographs, passed over: 1 .txt" in done.stdout
        rejected = done.stdout.splitlines()[-1].removeprefix("those not aligned, and why: ")
        assert "gus/torn.jpg,unreadable," in (root / rejected).read_text()

        done = ft_process("align", "raw", "aligned", cwd=root)
        assert (done.returncode, done.stderr) == (0, "")
        assert "31 photographs: nothing to do, 31 as before" in done.stdout

        (root / "sub").mkdir()
        assert ft_process("prune", "--min", 2, cwd=root / "sub").returncode == 0, "found upwards, as git does"
        assert ft_process("split", "0.4", cwd=root / "sub").returncode == 0
        done = ft_process("cache", cwd=root / "sub")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"{found} decoded" in done.stdout
        done = ft_process("status", cwd=root / "sub")
        assert done.returncode == 0
        lines = done.stdout.splitlines()
        assert lines[0] == f"{root / 'raw'} → {root / 'aligned'}"
        assert [line.split()[:2] for line in lines[1:]] == [
            [s, "fresh"] for s in ("align", "prune", "split", "cache")
        ]

    def test_a_mistake_is_one_line_and_exit_code_2(self, tmp_path: Path) -> None:
        done = ft_process("align", "nowhere", "aligned", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            "Error: no folder nowhere: name the folder that holds one folder of photographs per person\n"
        )
        done = ft_process("prune", "--min", 2, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert (
            done.stderr == f"Error: no facetrain workspace in {tmp_path}: run `ft align RAW ALIGNED` first\n"
        )
        assert list(tmp_path.iterdir()) == []


pytestmark = pytest.mark.usefixtures("in_process")


class TestWrongUse:
    def test_align_what_cannot_be_aligned(self, one_person: Path, wrong: Callable, tmp_path: Path) -> None:
        out = tmp_path / "out"
        (tmp_path / "empty").mkdir()
        photograph = one_person / "ann" / "1.jpg"
        assert "no folder" in wrong(tmp_path, "align", tmp_path / "nowhere", out)
        assert "no photographs in" in wrong(tmp_path, "align", tmp_path / "empty", out)
        assert "1.jpg is a file: name the folder" in wrong(tmp_path, "align", photograph, out)
        assert "1.jpg is a file: name a folder for the crops" in wrong(
            tmp_path, "align", one_person, photograph
        )
        assert "must not be the same or lie in each other" in wrong(
            tmp_path, "align", one_person, one_person / "out"
        )
        assert "must not be the same or lie in each other" in wrong(tmp_path, "align", one_person, tmp_path)
        assert "lie right in" in wrong(tmp_path, "align", one_person / "ann", out)
        assert {path.name for path in tmp_path.iterdir()} == {"raw", "empty"}, "nothing was written"

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--landmarks", "ears"], "unknown landmark set 'ears': choose one of"),
            (["--size", "9"], "a crop of 9 pixels: choose a size from 16 to 1024"),
            (
                ["--multi", "best"],
                "unknown rule 'best' for several faces: choose one of largest, centre, skip",
            ),
            (["--format", "gif"], "unknown crop format 'gif': choose jpg or png"),
            (["--quality", "0"], "JPEG quality 0: choose 1 to 100"),
            (
                ["--landmarks", "inner-eyes-bottom-lip", "--predictor", "5"],
                "needs points that only --predictor 68 finds",
            ),
        ],
    )
    def test_align_with_wrong_options(
        self, one_person: Path, wrong: Callable, tmp_path: Path, options: list[str], says: str
    ) -> None:
        assert says in wrong(tmp_path, "align", one_person, tmp_path / "out", *options)
        assert {path.name for path in tmp_path.iterdir()} == {"raw"}

    def test_nothing_is_aligned_yet(self, tmp_path: Path, wrong: Callable) -> None:
        commands = (
            ["prune", "--min", 2],
            ["split", 0.1],
            ["cache"],
            ["train"],
            ["status"],
            ["export-tree", tmp_path / "x"],
        )
        for command in commands:
            assert "run `ft align RAW ALIGNED` first" in wrong(tmp_path, *command)

    def test_a_workspace_that_is_not_there(self, tmp_path: Path, wrong: Callable) -> None:
        assert "no folder" in wrong(tmp_path / "nowhere", "status")
        assert "no folder" in wrong(tmp_path / "nowhere", "align", tmp_path, tmp_path / "x")

    def test_prune(self, root: Path, wrong: Callable) -> None:
        assert "how many photographs must a person have? `ft prune --min 10`" in wrong(root, "prune")
        assert "--min 6 leaves nobody: choose a smaller number" in wrong(root, "prune", "--min", 6)
        assert "--min 0: ask for at least 1" in wrong(root, "prune", "--min", 0)
        assert "no folder nowhere" in wrong(root, "prune", "nowhere", "--min", 2)
        assert "was not aligned in this workspace" in wrong(root, "prune", root / "raw", "--min", 2)

    def test_split(self, root: Path, ft: Callable, wrong: Callable) -> None:
        assert "which share is for validation? `ft split 0.1`" in wrong(root, "split")
        assert "a validation share of 1.5: choose a number between 0 and 1" in wrong(root, "split", 1.5)
        assert "cannot split by 'colour': choose identity or image" in wrong(
            root, "split", 0.1, "--by", "colour"
        )
        for person in ("cat", "dan", "eve", "fay"):
            shutil.rmtree(root / "raw" / person)
        ft(root, "align", root / "raw", root / "aligned", "--size", 32)
        assert "2 people are too few to split" in wrong(root, "split", 0.5)
        ft(root, "split", 0.5, "--by", "image")

    def test_train(self, root: Path, ft: Callable, wrong: Callable) -> None:
        runs = root / ".ft" / "runs"
        assert "not split yet: run `ft split 0.1` first" in wrong(root, "train")
        ft(root, "split", 0.4)
        close = wrong(root, "train", "--backbone", "iresnet.smal")
        assert "no 'iresnet.smal' among the backbones: did you mean 'iresnet.small'?" in close
        assert "no setting 'epoch'" in wrong(root, "train", "--set", "epoch=3")
        assert "epochs" in wrong(root, "train", "--epochs", 0)
        assert "cannot name a run" in wrong(root, "train", "--name", "a/b")
        (runs / "mine").mkdir(parents=True)
        assert "there is a run 'mine' already: choose another --name" in wrong(
            root, "train", "--name", "mine"
        )
        assert "no run 'yours'" in wrong(root, "train", "--resume", "yours")
        assert {path.name for path in runs.iterdir()} == {"mine"}

    def test_train_with_one_identity_left(self, root: Path, ft: Callable, wrong: Callable) -> None:
        for person in ("bob", "cat", "dan", "eve", "fay"):
            shutil.rmtree(root / "raw" / person)
        ft(root, "align", root / "raw", root / "aligned", "--size", 32)
        ft(root, "split", 0.4, "--by", "image")
        ft(root, "cache")
        assert "at least 2 people are needed" in wrong(root, "train")
        assert not list((root / ".ft" / "runs").glob("*")), "no run remains of it"

    def test_a_workspace_that_is_being_written(self, root: Path, ft: Callable, wrong: Callable) -> None:
        align(root, ft)
        with Workspace.find(root).lock():
            for command in (
                ["prune", "--min", 2],
                ["split", 0.5],
                ["cache"],
                ["align", root / "raw", root / "aligned"],
            ):
                line = wrong(root, *command)
                assert f"(process {os.getpid()}) is writing to this workspace: wait for it to end" in line
            assert stages(root, ft)["align"][0] == "fresh", "readers do not wait"
        ft(root, "prune", "--min", 2)

    def test_other_settings(self, root: Path, ft: Callable, wrong: Callable) -> None:
        assert "size_px 32, asked for is 96: name another folder, or add --redo" in wrong(
            root, "align", root / "raw", root / "aligned"
        )
        ft(root, "align", root / "raw", root / "aligned", "--size", 48, "--redo")
        with Image.open(next((root / "aligned").rglob("*.jpg"))) as crop:
            assert crop.size == (48, 48)

    def test_the_crops_of_two_trees_are_not_mixed(self, root: Path, ft: Callable, wrong: Callable) -> None:
        shutil.copytree(root / "raw", root / "other")
        line = wrong(root, "align", root / "other", root / "aligned", "--size", 32)
        assert (
            f"{root / 'aligned'} holds the crops of {root / 'raw'}: name another folder for those of" in line
        )
        (root / "raw").rename(root / "moved")
        ft(root, "align", root / "moved", root / "aligned", "--size", 32)
        assert (
            "nothing to do, 30 as before"
            in ft(root, "align", root / "moved", root / "aligned", "--size", 32).stdout
        )

    def test_a_damaged_index(self, root: Path, wrong: Callable) -> None:
        path = Workspace.find(root).dataset().folder / "rows.arrow"
        path.write_bytes(path.read_bytes()[:100])
        for command in (
            ["prune", "--min", 2],
            ["status"],
            ["align", root / "raw", root / "aligned", "--size", 32],
        ):
            assert "rows.arrow is damaged" in wrong(root, *command)


class TestDatasets:
    def test_a_mistake_does_not_change_the_current_one(
        self, root: Path, wrong: Callable, ft: Callable
    ) -> None:
        (root / "empty").mkdir()
        wrong(root, "align", root / "empty", root / "other")
        wrong(root, "align", root / "raw", root / "other", "--size", 9)
        assert Workspace.find(root).dataset().aligned == root / "aligned"
        assert len(Workspace.find(root).datasets()) == 1
        ft(root, "align", root / "raw", root / "small", "--size", 16)
        wrong(root, "align", root / "raw", root / "aligned", "--size", 20)
        assert Workspace.find(root).dataset().aligned == root / "small"

    def test_two_of_them(self, root: Path, ft: Callable) -> None:
        ft(root, "align", root / "raw", root / "small", "--size", 16)
        ft(root, "prune", root / "aligned", "--min", 3)
        ft(root, "split", 0.5)
        first, second = (Workspace.find(root).dataset(root / name) for name in ("aligned", "small"))
        assert (first.record("prune") is None, first.record("split") is None) == (False, True)
        assert (second.record("prune") is None, second.record("split") is None) == (True, False)
        assert json.loads(ft(root, "status", "--json").stdout)["aligned"] == str(root / "small")
        assert json.loads(ft(root, "status", root / "aligned", "--json").stdout)["aligned"] == str(
            root / "aligned"
        )

    def test_the_folder_can_be_moved(self, root: Path, ft: Callable, tmp_path: Path) -> None:
        align(root, ft)
        ft(root, "split", 0.5)
        ft(root, "cache")
        moved = tmp_path / "moved"
        root.rename(moved)
        assert {state for state, _ in stages(moved, ft).values()} == {"fresh", "missing"}
        assert "30 as before" in ft(moved, "align", moved / "raw", moved / "aligned", "--size", 32).stdout
        assert "0 decoded, 0 copied, 0 shards written" in ft(moved, "cache").stdout

    def test_the_environment_names_it(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from click.testing import CliRunner

        from facetrain.cli import main

        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        monkeypatch.setenv("FT_WORKSPACE", str(root))
        result = CliRunner().invoke(main, ["prune", "--min", "2"])
        assert result.exit_code == 0, result.output
        assert list((tmp_path / "elsewhere").iterdir()) == []


class TestStatus:
    @pytest.fixture
    def root(self, root: Path, ft: Callable) -> Path:
        align(root, ft)  # files of a copied tree have other inodes and times
        return root

    def test_stages_one_after_another(self, root: Path, ft: Callable) -> None:
        found = stages(root, ft)
        assert {stage: state for stage, (state, _) in found.items()} == {
            "align": "fresh", "prune": "missing", "split": "missing", "cache": "missing"
        }  # fmt: skip
        assert found["align"][1] == "30 aligned"
        ft(root, "prune", "--min", 2)
        ft(root, "split", 0.4)
        ft(root, "cache")
        found = stages(root, ft)
        assert {state for state, _ in found.values()} == {"fresh"}
        assert found["prune"][1] == "--min 2 keeps 30 photographs of 6 of 6 people"
        ft(root, "prune", "--undo")
        found = stages(root, ft)
        assert found["prune"][0] == "missing"
        assert found["split"] == ("stale", "`ft prune` has changed since: run `ft split 0.4` again")

    def test_what_has_changed_in_raw(self, root: Path, ft: Callable, drawn: Path) -> None:
        ft(root, "prune", "--min", 2)
        ft(root, "split", 0.4, "--by", "image")
        (root / "raw" / "ann" / "1.jpg").unlink()
        shutil.copy(drawn / "ann" / "1.jpg", root / "raw" / "ann" / "6.jpg")
        shutil.copy(drawn / "ann" / "1.jpg", root / "raw" / "ann" / "7.jpg")
        (root / "raw" / "bob" / "1.jpg").touch()
        state, detail = stages(root, ft)["align"]
        assert state == "stale"
        assert detail == "2 new, 1 touched, 1 gone since: run `ft align` again; 30 aligned"
        ft(root, "align", root / "raw", root / "aligned", "--size", 32)
        found = stages(root, ft)
        assert found["align"] == ("fresh", "31 aligned, 1 no longer in RAW")
        assert found["prune"] == ("stale", "the photographs have changed: run `ft prune --min 2` again")
        assert found["split"] == (
            "stale",
            "the photographs have changed: run `ft split 0.4 --by image` again",
        )

    def test_raw_is_gone(self, root: Path, ft: Callable) -> None:
        shutil.rmtree(root / "raw")
        assert stages(root, ft)["align"] == ("stale", f"{root / 'raw'} is gone; 30 aligned")

    def test_a_large_tree_is_walked_on_request(
        self, root: Path, ft: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("facetrain.pipeline.status.WALK_UP_TO", 10)
        (root / "raw" / "ann" / "1.jpg").unlink()
        state, detail = stages(root, ft)["align"]
        assert state == "unchecked"
        assert "--scan looks for changed photographs" in detail
        assert stages(root, ft, "--scan")["align"][0] == "stale"

    def test_an_align_that_was_interrupted(
        self, root: Path, ft: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (root / "raw" / "ann" / "1.jpg").write_bytes((root / "raw" / "ann" / "2.jpg").read_bytes())
        with monkeypatch.context() as patch:
            patch.setattr(
                "facetrain.preprocess.row_update.RowUpdate._write", lambda *arguments: os.abort_here
            )  # type: ignore[attr-defined]
            with pytest.raises(AttributeError):
                ft(root, "align", root / "raw", root / "aligned", "--size", 32)
        assert stages(root, ft)["align"][0] == "stale"
        assert "an align was interrupted" in stages(root, ft)["align"][1]
        ft(root, "align", root / "raw", root / "aligned", "--size", 32)
        assert stages(root, ft)["align"][0] == "fresh"

    def test_text(self, root: Path, ft: Callable) -> None:
        ft(root, "split", 0.4)
        lines = ft(root, "status").stdout.splitlines()
        assert lines[0] == f"{root / 'raw'} → {root / 'aligned'}"
        assert [line.split()[:2] for line in lines[1:]] == [
            ["align", "fresh"], ["prune", "missing"], ["split", "fresh"], ["cache", "missing"]
        ]  # fmt: skip


class TestAlign:
    def test_a_damaged_record_is_written_anew(self, root: Path, ft: Callable) -> None:
        path = Workspace.find(root).dataset().folder / "stages" / "align.json"
        path.write_text("{")
        assert stages(root, ft)["align"][0] == "stale"
        ft(root, "align", root / "raw", root / "aligned", "--size", 32)
        assert stages(root, ft)["align"][0] == "fresh"

    def test_a_second_run_writes_nothing(self, root: Path, ft: Callable) -> None:
        def files() -> dict[str, tuple[int, bytes]]:
            # The tables of file times are written each time: they say when files were last hashed.
            return {
                str(path): (path.stat().st_mtime_ns, path.read_bytes())
                for path in root.rglob("*")
                if path.is_file()
                and not path.name.endswith((".files.arrow", "rejected.csv"))
                and path.name != "lock"
            }

        before = files()
        assert (
            "nothing to do, 30 as before"
            in ft(root, "align", root / "raw", root / "aligned", "--size", 32).stdout
        )
        assert files() == before

    def test_photographs_that_are_gone_are_reported(self, root: Path, ft: Callable) -> None:
        (root / "raw" / "ann" / "1.jpg").unlink()
        shown = ft(root, "align", root / "raw", root / "aligned", "--size", 32).stdout
        assert f"no longer in {root / 'raw'}: 1 photograph, marked missing and not used any more" in shown
        assert "those not aligned, and why: " in shown
        assert sum(read_index(Workspace.find(root).dataset().folder).kept.tolist()) == 29

    def test_no_face_at_all(self, tmp_path: Path, ft: Callable, wrong: Callable) -> None:
        for name in ("ann", "bob"):
            (tmp_path / "raw" / name).mkdir(parents=True)
            Image.fromarray(np.full((90, 90, 3), 99, np.uint8)).save(tmp_path / "raw" / name / "1.png")
        shown = ft(tmp_path, "align", tmp_path / "raw", tmp_path / "aligned").stdout
        assert [line.split() for line in shown.splitlines()][1] == ["no", "face", "found", "2", "100.00%"]
        assert "--min 1 leaves nobody" in wrong(tmp_path, "prune", "--min", 1)
        assert "0 people are too few to split" in wrong(tmp_path, "split", 0.5)
        assert "run `ft align` again" in wrong(tmp_path, "cache")
