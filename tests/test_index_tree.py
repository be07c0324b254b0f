"""ft index: crops that were made elsewhere, where they lie."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from facetrain.datasets.cache.manifest import read_manifest
from facetrain.image_spec import SPEC_FILE, ImageSpec
from facetrain.index import Index, read_index
from facetrain.tables import table_fingerprint
from facetrain.workspace import Workspace

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def crops(drawn: Path, tmp_path: Path) -> Path:
    """``tmp_path / "crops"``: 112-pixel crops of six people, JPEG and PNG, as another program may have made them."""
    for path in sorted(drawn.rglob("*.jpg")):
        target = tmp_path / "crops" / path.relative_to(drawn)
        target.parent.mkdir(parents=True, exist_ok=True)
        image = Image.open(path).resize((112, 112))
        image.save(target if target.stem != "5" else target.with_suffix(".png"), quality=95)
    return tmp_path / "crops"


def the_index(root: Path) -> Index:
    return read_index(Workspace.find(root).dataset().folder)


def tree_state(tree: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in tree.rglob("*") if p.is_file()}


def test_every_crop_is_a_row_and_nothing_is_changed(tmp_path: Path, crops: Path, ft: Callable) -> None:
    before = tree_state(crops)
    result = ft(tmp_path, "index", crops, "--size", 112, "--detector", "mtcnn")
    assert "30  100.00%" in result.stdout
    index = the_index(tmp_path)
    assert index.spec == ImageSpec(size_px=112, predictor=0, quality=0, detector="mtcnn")
    rows = index.rows.to_pylist()
    assert [row["path"] for row in rows] == sorted(str(Path(p).relative_to(crops)) for p in before)
    for row in rows:
        assert (row["status"], row["aligned"], row["aligned_content"]) == (
            "aligned",
            row["path"],
            row["content"],
        )
        assert (row["width_px"], row["height_px"]) == (112, 112)
        assert row["identity"] == row["path"].split("/")[0]
        assert row["box"] is row["landmarks"] is row["faces"] is None, "they are not known"
    assert tree_state(crops) == before


def test_it_feeds_the_pipeline(tmp_path: Path, crops: Path, ft: Callable) -> None:
    ft(tmp_path, "index", crops, "--size", 112)
    ft(tmp_path, "prune", "--min", 3)
    ft(tmp_path, "split", 0.4)
    assert "30 decoded" in ft(tmp_path, "cache", "-j", 1).stdout
    manifest = read_manifest(Workspace.find(tmp_path).dataset().folder)
    assert manifest is not None
    assert manifest.spec.size_px == 112
    lines = ft(tmp_path, "status").stdout.splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [
        [s, "fresh"] for s in ("index", "prune", "split", "cache")
    ]


def test_again_looks_at_what_is_new_or_changed(tmp_path: Path, crops: Path, ft: Callable) -> None:
    ft(tmp_path, "index", crops, "--size", 112)
    rows = Workspace.find(tmp_path).dataset().folder / "rows.arrow"
    before = table_fingerprint(rows)
    assert "nothing to do" in ft(tmp_path, "index", crops, "--size", 112).stdout
    assert table_fingerprint(rows) == before
    (crops / "ann" / "1.jpg").unlink()
    shutil.copy(crops / "bob" / "1.jpg", crops / "ann" / "2.jpg")
    shutil.copytree(crops / "bob", crops / "gus")
    assert "index stale" in " ".join(ft(tmp_path, "status").stdout.split())
    result = ft(tmp_path, "index", crops, "--size", 112).stdout
    assert "6 looked at" in result
    assert "1 photograph, marked missing" in result
    by_path = {row["path"]: row for row in the_index(tmp_path).rows.to_pylist()}
    assert by_path["ann/1.jpg"]["status"] == "missing"
    assert by_path["ann/2.jpg"]["content"] == by_path["bob/1.jpg"]["content"]


def test_verify_reads_everything(
    tmp_path: Path, crops: Path, ft: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the table of known files says."""
    from facetrain.file_table import SCHEMA, FileTable
    from facetrain.preprocess import index_tree

    ft(tmp_path, "index", crops, "--size", 112)
    store = Workspace.find(tmp_path).dataset().folder
    known = FileTable(store / "raw.files.arrow")
    later = [row | {"hashed_ns": row["hashed_ns"] + 60 * 10**9} for row in known.table.to_pylist()]
    known.table = pa.Table.from_pylist(later, schema=SCHEMA)
    known.save()
    read: list[Path] = []
    real = index_tree.read_whole
    monkeypatch.setattr(index_tree, "read_whole", lambda path: (read.append(path), real(path))[1])
    ft(tmp_path, "index", crops, "--size", 112)
    assert read == []
    assert "nothing to do" in ft(tmp_path, "index", crops, "--size", 112, "--verify").stdout
    assert len(read) == 30


def test_a_damaged_index_is_noticed_by_verify(
    tmp_path: Path, crops: Path, ft: Callable, wrong: Callable
) -> None:
    ft(tmp_path, "index", crops, "--size", 112)
    path = Workspace.find(tmp_path).dataset().folder / "rows.arrow"
    data = bytearray(path.read_bytes())
    data[data.index(b"bob/1.jpg")] ^= 1
    path.write_bytes(data)
    says = wrong(tmp_path, "index", crops, "--size", 112, "--verify")
    assert (
        "rows.arrow is damaged (it is other than when it was written): remove it and run the command again"
        in says
    )
    path.unlink()
    ft(tmp_path, "index", crops, "--size", 112, "--verify")


def test_a_damaged_imagespec(root: Path, tmp_path: Path, wrong: Callable) -> None:
    shutil.copytree(root / "aligned", tmp_path / "there")
    (tmp_path / "there" / SPEC_FILE).write_text('{"size_px":')
    assert "an image spec is damaged" in wrong(tmp_path, "index", tmp_path / "there")


def test_what_is_no_such_crop_is_a_row_with_a_reason(tmp_path: Path, crops: Path, ft: Callable) -> None:
    Image.new("RGB", (96, 96)).save(crops / "ann" / "small.png")
    Image.new("RGB", (112, 96)).save(crops / "ann" / "wide.jpg")
    (crops / "ann" / "empty.jpg").touch()
    (crops / "ann" / "text.jpg").write_text("dear ann")
    (crops / "loose.jpg").write_bytes((crops / "ann" / "1.jpg").read_bytes())
    result = ft(tmp_path, "index", crops, "--size", 112)
    assert "those not aligned, and why: " in result.stdout
    rows = the_index(tmp_path).rows.to_pylist()
    assert {row["path"]: (row["status"], row["reason"]) for row in rows if row["status"] != "aligned"} == {
        "ann/small.png": ("other-size", "it is 96×96 pixels, not 112×112 as was declared"),
        "ann/wide.jpg": ("other-size", "it is 112×96 pixels, not 112×112 as was declared"),
        "ann/empty.jpg": ("unreadable", "the file is empty"),
        "ann/text.jpg": ("unreadable", "no image format that we know"),
        "loose.jpg": ("no-identity", "not in a person's folder under RAW"),
    }


def test_a_torn_crop_is_left_out_by_the_cache(tmp_path: Path, crops: Path, ft: Callable) -> None:
    path = crops / "ann" / "1.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    ft(tmp_path, "index", crops, "--size", 112)
    assert "crops that cannot be decoded, left out: 1, see" in ft(tmp_path, "cache", "-j", 1).stdout
    assert int(the_index(tmp_path).kept.sum()) == 29


def test_a_tree_of_our_own_says_what_it_holds(
    root: Path, tmp_path: Path, ft: Callable, wrong: Callable
) -> None:
    """Crops that `ft align` made on another machine."""
    shutil.copytree(root / "aligned", tmp_path / "there")
    ft(tmp_path, "index", tmp_path / "there")
    assert the_index(tmp_path).spec == the_index(root).spec
    assert the_index(tmp_path).spec.made_here
    says = wrong(tmp_path, "index", tmp_path / "there", "--size", 112)
    assert f"{SPEC_FILE} says size_px 32, not 112: leave the option out" in says


def test_mistakes(tmp_path: Path, crops: Path, root: Path, ft: Callable, wrong: Callable) -> None:
    says = wrong(tmp_path, "index", crops)
    assert "how many pixels have the crops in" in says
    assert "has 112×112" in says
    assert not (tmp_path / ".ft").exists(), "a mistake writes nothing"
    assert "no folder" in wrong(tmp_path, "index", tmp_path / "nowhere", "--size", 112)
    assert "choose a size from 16 to 1024" in wrong(tmp_path, "index", crops, "--size", 5)
    assert "unknown landmark set 'eyes'" in wrong(
        tmp_path, "index", crops, "--size", 112, "--landmarks", "eyes"
    )
    assert "was aligned in this workspace" in wrong(root, "index", root / "aligned")
    ft(tmp_path, "index", crops, "--size", 112)
    says = wrong(tmp_path, "index", crops, "--size", 112, "--detector", "mtcnn")
    assert "was indexed with detector unknown, asked for is mtcnn: name another folder, or add --redo" in says
    assert "holds crops that were made elsewhere" in wrong(tmp_path, "align", root / "raw", crops)
    ft(tmp_path, "index", crops, "--size", 112, "--detector", "mtcnn", "--redo")
    assert the_index(tmp_path).spec.detector == "mtcnn"


def test_interrupted_and_run_again(
    tmp_path: Path, crops: Path, ft: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from facetrain.preprocess import row_update

    monkeypatch.setattr(row_update, "BLOCK", 4)
    with monkeypatch.context() as patch:
        patch.setattr(row_update.RowUpdate, "finish", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ft(tmp_path, "index", crops, "--size", 112)
    workspace = Workspace.find(tmp_path)
    assert (workspace.datasets()[0].folder / "journal.bin").is_file()
    ft(tmp_path, "index", crops, "--size", 112)
    fingerprint = table_fingerprint(workspace.datasets()[0].folder / "rows.arrow")
    (tmp_path / "other").mkdir()
    ft(tmp_path / "other", "index", crops, "--size", 112)
    other = Workspace.find(tmp_path / "other").dataset().folder
    assert table_fingerprint(other / "rows.arrow") == fingerprint


def test_records_say_what_was_declared(tmp_path: Path, crops: Path, ft: Callable) -> None:
    ft(tmp_path, "index", crops, "--size", 112, "--landmarks", "other")
    record = json.loads((Workspace.find(tmp_path).dataset().folder / "stages" / "index.json").read_text())
    assert record["parameters"]["spec"]["landmarks"] == "other"
    assert record["counts"]["aligned"] == 30
