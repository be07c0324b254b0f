"""What was damaged, or left half-done, is noticed and put right; status tells it as it is."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from facetrain.cli import main
from facetrain.workspace import Workspace

pytestmark = pytest.mark.usefixtures("in_process")


def shards(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / ".ft" / "cache").glob("*.arrow")}


def stage(root: Path, ft: Callable, name: str) -> dict[str, str]:
    return {line["stage"]: line for line in json.loads(ft(root, "status", "--json").stdout)["stages"]}[name]


def store(root: Path) -> Path:
    return next((root / ".ft" / "datasets").iterdir())


def test_verify_finds_one_flipped_bit_and_makes_the_shard_again(root: Path, ft: Callable) -> None:
    ft(root, "cache")
    before = shards(root)
    assert "damaged" not in ft(root, "cache", "--verify").stdout
    name, data = next(iter(before.items()))
    (root / ".ft" / "cache" / name).write_bytes(
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    )
    assert "damaged" not in ft(root, "cache").stdout, "a quick look cannot see it"
    assert f"damaged, and made again now: {name}" in ft(root, "cache", "--verify").stdout
    assert shards(root) == before


def test_a_cut_shard_is_made_again_without_being_asked(root: Path, ft: Callable) -> None:
    ft(root, "cache")
    before = shards(root)
    name, data = next(iter(before.items()))
    (root / ".ft" / "cache" / name).write_bytes(data[:1000])
    assert f"damaged, and made again now: {name}" in ft(root, "cache").stdout
    assert shards(root) == before


def test_an_interrupted_align_is_finished_before_anything_uses_its_crops(
    root: Path, ft: Callable, wrong: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from facetrain.preprocess import align_tree

    real = align_tree.align_block
    calls = []

    def dies(*arguments: object) -> object:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("the power went")
        return real(*arguments)

    monkeypatch.setattr(align_tree, "align_block", dies)
    how = ["align", root / "raw", root / "aligned", "--size", 32, "--landmarks", "outer-eyes-nose", "--redo"]
    with pytest.raises(RuntimeError):
        ft(root, *how)
    assert not (root / "aligned" / "imagespec.json").exists(), "the crops are of two kinds now"
    assert "was interrupted: run `ft align` again" in wrong(root, "cache")
    assert stage(root, ft, "align")["state"] == "stale"
    monkeypatch.setattr(align_tree, "align_block", real)
    ft(root, *how)
    ft(root, "cache")
    assert json.loads((root / "aligned" / "imagespec.json").read_text())["landmarks"] == "outer-eyes-nose"


def test_a_column_and_its_record_must_belong_together(root: Path, ft: Callable) -> None:
    ft(root, "prune", "--min", 2)
    ft(root, "split", 0.3)
    for name, column in (("prune", "kept.arrow"), ("split", "split.arrow")):
        assert stage(root, ft, name)["state"] == "fresh"
        path = store(root) / column
        data = path.read_bytes()
        path.unlink()
        assert stage(root, ft, name)["state"] == "stale"
        path.write_bytes(data)
        assert stage(root, ft, name)["state"] == "fresh"
        record = store(root) / "stages" / f"{name}.json"
        text = record.read_text()
        record.unlink()
        assert stage(root, ft, name)["state"] == "stale"
        record.write_text(text)


def test_status_misses_the_aligned_tree(root: Path, ft: Callable) -> None:
    shutil.move(root / "aligned", root / "elsewhere")
    line = stage(root, ft, "align")
    assert line["state"] == "stale"
    assert "is gone" in line["detail"]


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1), (2, 5000), (1, 1)])
def test_a_photograph_that_is_a_line_is_one_without_a_face(
    root: Path, ft: Callable, shape: tuple[int, int]
) -> None:
    import cv2

    cv2.imwrite(str(root / "raw" / "ann" / "line.png"), np.zeros((*shape, 3), np.uint8))
    text = ft(root, "align", root / "raw", root / "aligned", "--size", 32).stdout
    assert "1 looked at" in text
    assert "ann/line.png,no-face,no face found" in (store(root) / "rejected.csv").read_text()


def test_folders_named_the_wrong_way_round_harm_nothing(root: Path, ft: Callable, wrong: Callable) -> None:
    before = {path: path.read_bytes() for path in (root / "raw").rglob("*.jpg")}
    assert "holds crops" in wrong(root, "align", root / "aligned", root / "raw")
    shutil.copytree(root / "raw", root / "other")
    assert "is not empty, and this workspace knows nothing" in wrong(
        root, "align", root / "raw", root / "other"
    )
    assert "workspace's own folder" in wrong(root, "align", root / "raw", root / ".ft" / "crops")
    (root / "aligned" / "imagespec.json").unlink()
    assert "is not empty, and this workspace knows nothing" in wrong(
        root, "align", root / "aligned", root / "raw"
    )
    assert before == {path: path.read_bytes() for path in (root / "raw").rglob("*.jpg")}
    assert before.keys() == {
        root / "raw" / p.relative_to(root / "other") for p in (root / "other").rglob("*.jpg")
    }


def test_crops_of_two_workspaces_are_never_mixed(
    root: Path, tmp_path: Path, ft: Callable, wrong: Callable
) -> None:
    """A folder that holds crops is a dataset's of this workspace, or refused; by whatever way it is named."""
    before = {path: path.read_bytes() for path in (root / "aligned").rglob("*") if path.is_file()}
    says = "is not empty, and this workspace knows nothing of what is in it: name a new or empty folder"
    (tmp_path / "second").mkdir()
    assert says in wrong(tmp_path / "second", "align", root / "raw", root / "aligned", "--size", 64)
    (root / "link").symlink_to(root / "aligned")
    assert says in wrong(root, "align", root / "raw", root / "link", "--size", 64)
    shutil.rmtree(root / ".ft")
    assert says in wrong(root, "align", root / "raw", root / "aligned", "--size", 32)
    assert {path: path.read_bytes() for path in (root / "aligned").rglob("*") if path.is_file()} == before
    ft(root, "align", root / "raw", root / "new", "--size", 32)


@pytest.mark.parametrize("name", ["rows", "kept", "split", "cached", "cache", "raw.files", "crops.files"])
def test_flipped_bits_in_our_files_are_noticed_or_mended(root: Path, ft: Callable, name: str) -> None:
    """Never believed, and never a crash: one clear line that names the file, or it is made again."""
    ft(root, "align", root / "raw", root / "aligned", "--size", 32)
    ft(root, "prune", "--min", 1)
    ft(root, "split", 0.4)
    ft(root, "cache", "-j", 1)
    path = Workspace.find(root).dataset().folder / f"{name}.arrow"
    whole = path.read_bytes()
    rows = Workspace.find(root).dataset().folder / "rows.arrow"
    right = (rows.read_bytes(), ft(root, "status").stdout)
    for position in range(3, len(whole), max(1, len(whole) // 9)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        for command in (
            ["status"],
            ["align", root / "raw", root / "aligned", "--size", 32],
            ["cache", "-j", 1],
        ):
            path.write_bytes(flipped)
            result = CliRunner().invoke(main, ["-C", str(root), *map(str, command)])
            assert result.exception is None or isinstance(result.exception, SystemExit), command
            assert result.exit_code in (0, 2), (command, result.output)
            if result.exit_code == 2:
                assert f"{name}.arrow is damaged" in " ".join(result.stderr.split())
        path.write_bytes(whole)
    assert (rows.read_bytes(), ft(root, "status").stdout) == right


def test_a_full_disk_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("facetrain.tables.pa.OSFile", full)
    result = CliRunner().invoke(main, ["-C", str(root), "split", "0.4"])
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: {store(root) / 'split.arrow'}: No space left on device: "
        f"make room, and run the same command again to go on\n"
    )


@pytest.mark.parametrize(
    ("table", "again"), [("kept", "ft prune --min 2"), ("split", "ft split 0.4 --by identity --seed 3")]
)
def test_a_stage_whose_table_is_lost_is_not_undone_unasked(
    root: Path, ft: Callable, wrong: Callable, table: str, again: str
) -> None:
    """Or people who were left out would be trained on, and validation people exported as training."""
    ft(root, "prune", "--min", 2)
    ft(root, "split", 0.4, "--seed", 3)
    path = Workspace.find(root).dataset().folder / f"{table}.arrow"
    before = path.read_bytes()
    path.unlink()
    for command in (["export", "--parquet", root / "out"], ["train"], ["export-tree", root / "tree"]):
        assert f"{path} is gone: run `{again}` again" in wrong(root, *command)
    ft(root, *again.split()[1:])
    assert path.read_bytes() == before
    ft(root, {"kept": "prune", "split": "split"}[table], "--undo")
    assert not path.exists()
    ft(root, "status")
