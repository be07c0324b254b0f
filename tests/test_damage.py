"""What was damaged, or left half-done, is noticed and put right; status tells it as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

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
    assert "damaged, and made again: 1 shard" in ft(root, "cache", "--verify").stdout
    assert shards(root) == before


def test_a_cut_shard_is_made_again_without_being_asked(root: Path, ft: Callable) -> None:
    ft(root, "cache")
    before = shards(root)
    name, data = next(iter(before.items()))
    (root / ".ft" / "cache" / name).write_bytes(data[:1000])
    assert "damaged, and made again: 1 shard" in ft(root, "cache").stdout
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
    assert "did not make" in wrong(root, "align", root / "raw", root / "other")
    assert "workspace's own folder" in wrong(root, "align", root / "raw", root / ".ft" / "crops")
    (root / "aligned" / "imagespec.json").unlink()
    assert "did not make" in wrong(root, "align", root / "aligned", root / "raw")
    assert before == {path: path.read_bytes() for path in (root / "raw").rglob("*.jpg")}
    assert before.keys() == {
        root / "raw" / p.relative_to(root / "other") for p in (root / "other").rglob("*.jpg")
    }
