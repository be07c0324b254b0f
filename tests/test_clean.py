"""ft clean: proposals, the file that a person edits, the marks in the index, and who sees them."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blake3 import blake3
from conftest import run
from numpy.typing import NDArray
from test_index import write_rows

from facetrain.commands.cleaning import show_proposals
from facetrain.datasets.cache.manifest import read_manifest
from facetrain.datasets.crop_files import read_crops
from facetrain.datasets.photo_set import PhotoSet, select_rows
from facetrain.errors import MissingStage, UserError
from facetrain.evaluate.embedders.base import Embedder
from facetrain.image_spec import ImageSpec
from facetrain.index import Index, read_index
from facetrain.preprocess.clean import (
    HEADER,
    Proposal,
    alike,
    apply_proposals,
    read_proposals,
    write_proposals,
)
from facetrain.tables import table_fingerprint, write_table
from facetrain.workspace import Workspace

pytestmark = pytest.mark.usefixtures("in_process")


class Told(Embedder):
    """Embeddings by what a crop's bytes are, from a file: so that tests say who looks like whom."""

    def __init__(self, *, table: str) -> None:
        self.spec = ImageSpec(size_px=32)
        self.told: dict[str, list[float]] = json.loads(Path(table).read_text())

    def of(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.array([self.told[blake3(crop.tobytes()).hexdigest()] for crop in crops], np.float32)


def tell(tree: Path, table: Path, looks: dict[str, int], seed: int = 0) -> list[Any]:
    """Options of an embedder for which photographs look like the face of this number, by path; else by person."""
    rng = np.random.default_rng(seed)
    centres = np.eye(40)
    paths = sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*.jpg"))
    people = sorted({path.split("/")[0] for path in paths})
    crops = np.concatenate(list(read_crops(tree, paths, ImageSpec(size_px=32), threads=1)))
    told = json.loads(table.read_text()) if table.is_file() else {}
    for path, crop in zip(paths, crops, strict=True):
        face = looks.get(path, looks.get(path.split("/")[0], people.index(path.split("/")[0])))
        told[blake3(crop.tobytes()).hexdigest()] = (centres[face] + 0.05 * rng.normal(size=40)).tolist()
    table.write_text(json.dumps(told))
    return ["--embedder", f"{__name__}:Told", "--embedder-arg", f'table="{table}"', "-j", 1]


def index_of(root: Path) -> Index:
    return read_index(Workspace.find(root).dataset().folder)


def state(root: Path) -> dict[str, str]:
    lines = json.loads(run_status(root))["stages"]
    return {line["stage"]: line["state"] for line in lines if line["stage"] != "align"}  # a copy is touched


def detail_of(root: Path) -> str:
    """What `ft status` says of the stage clean."""
    details = {line["stage"]: line["detail"] for line in json.loads(run_status(root))["stages"]}
    detail: str = details["clean"]
    return detail


def run_status(root: Path) -> str:
    output: str = run(root, "status", "--json").stdout
    return output


def people_of(root: Path) -> dict[str, str | None]:
    """Whose each kept photograph is."""
    index = index_of(root)
    rows = np.flatnonzero(index.kept)
    return dict(zip(index.rows["path"].take(pa.array(rows)).to_pylist(), index.identities(rows), strict=True))


def lines(*proposals: tuple[str, ...]) -> str:
    return "\n".join([",".join(HEADER), *(",".join((*p, *[""] * (6 - len(p)))) for p in proposals)]) + "\n"


def read_csv(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as handle:
        return list(csv.DictReader(handle))


# -- proposals -------------------------------------------------------------------------------------------------------


def test_proposals_and_their_application(root: Path, ft: Callable, wrong: Callable, tmp_path: Path) -> None:
    """ann/1 is bob's; cat's 4 and 5 are somebody else's; dan and eve are one person."""
    looks = {"ann/1.jpg": 1, "cat/4.jpg": 30, "cat/5.jpg": 30, "eve": 3}
    named = tell(root / "aligned", tmp_path / "table.json", looks)
    before = {path: path.read_bytes() for path in (root / ".ft" / "datasets").rglob("*") if path.is_file()}
    photographs = sorted(path for path in root.rglob("*.jpg"))
    text = ft(root, "clean", *named, "--out", tmp_path / "clean.csv").output
    assert "1 photograph to leave out" in text and "ft clean --apply" in text
    assert "1 person who looks like two (2 photographs)" in text and "1 pair who look like one" in text
    found = [
        {key: row[key] for key in ("action", "path", "identity", "becomes")}
        for row in read_csv(tmp_path / "clean.csv")
    ]
    expected = [
        ("leave-out", "ann/1.jpg", "ann", "bob"),
        ("rename", "cat/4.jpg", "cat", "cat~2"),
        ("rename", "cat/5.jpg", "cat", "cat~2"),
        ("rename", "", "eve", "dan"),
    ]
    assert [tuple(row.values()) for row in found] == expected
    assert {path: path.read_bytes() for path in before} == before, "proposing changes nothing"
    assert "is there already" in wrong(root, "clean", *named, "--out", tmp_path / "clean.csv")

    text = ft(root, "clean", "--apply", tmp_path / "clean.csv", "--dry-run").output
    assert "would be marked in all: 1 photograph left out, 7 given to another person" in text
    assert "names that are new: cat~2" in text
    assert not (Workspace.find(root).dataset().folder / "clean.arrow").exists()
    ft(root, "clean", "--apply", tmp_path / "clean.csv")
    assert sorted(path for path in root.rglob("*.jpg")) == photographs, "nothing is moved or deleted"
    people = people_of(root)
    assert "ann/1.jpg" not in people and len(people) == 29
    assert people["cat/4.jpg"] == people["cat/5.jpg"] == "cat~2"
    assert people["eve/1.jpg"] == people["dan/1.jpg"] == "dan"
    assert "nothing to propose" in ft(root, "clean", *named, "--out", tmp_path / "again.csv").output

    ft(root, "clean", "--undo")
    after = {path: path.read_bytes() for path in (root / ".ft" / "datasets").rglob("*") if path.is_file()}
    assert after == before, "byte for byte"
    assert "nothing was marked" in ft(root, "clean", "--undo").output


def test_who_sees_the_marks(root: Path, ft: Callable, wrong: Callable, tmp_path: Path) -> None:
    """prune, split, cache, what a training loads, status, and both exports; and all of it after an undo."""
    ft(root, "prune", "--min", 5)
    ft(root, "split", 0.4, "--seed", 3)
    ft(root, "cache", "-j", 1)
    folder = Workspace.find(root).dataset().folder
    tables = ("rows", "kept", "split", "cache", "cached")
    first = {name: table_fingerprint(folder / f"{name}.arrow") for name in tables}
    (tmp_path / "a.csv").write_text(
        lines(
            ("leave-out", "ann/1.jpg", "ann"),
            ("rename", "bob/2.jpg", "bob", "cat"),
            ("rename", "", "eve", "zoe"),
        )
    )
    text = ft(root, "clean", "--apply", tmp_path / "a.csv").output
    assert "run `ft prune` and `ft split` again" in text
    assert state(root) == {
        "clean": "fresh",
        "prune": "stale",
        "split": "stale",
        "cache": "stale",
    }
    for command in (
        ["train"],
        ["split", 0.4],
        ["cache"],
        ["export", "--parquet", tmp_path / "none"],
        ["export-tree", tmp_path / "none"],
    ):
        assert "`ft clean` has changed who is who since `ft " in wrong(root, *command)

    # ann and bob have 4 left each, cat 6.
    assert ft(root, "prune", "--min", 5).stdout.splitlines()[-1].split() == ["kept", "4", "21"]

    ft(root, "prune", "--min", 4)
    assert "who is who since `ft split`" in wrong(root, "export-tree", tmp_path / "none")
    ft(root, "split", 0.4, "--seed", 3)
    ft(root, "cache", "-j", 1)
    assert set(state(root).values()) == {"fresh"}
    people = people_of(root)
    expected = {
        f"{name}/{i}.jpg": {"eve": "zoe"}.get(name, name)
        for name in ("ann", "bob", "cat", "dan", "eve", "fay")
        for i in range(1, 6)
    }
    expected["bob/2.jpg"] = "cat"
    del expected["ann/1.jpg"]
    assert people == expected

    index, manifest = index_of(root), read_manifest(folder)
    assert manifest is not None
    manifest_people = dict(
        zip(manifest.table["path"].to_pylist(), manifest.table["identity"].to_pylist(), strict=True)
    )
    assert {path: manifest_people[path] for path in expected} == expected
    photos = PhotoSet(index, manifest, root / ".ft" / "cache", select_rows(index, None))
    assert photos.identities == ["ann", "bob", "cat", "dan", "fay", "zoe"]
    paths = index.rows["path"].take(pa.array(photos.rows)).to_pylist()
    assert {
        path: photos.identities[label] for path, label in zip(paths, photos.labels, strict=True)
    } == expected
    sides = {"train": set(), "val": set()}
    for part, names in sides.items():
        names.update(index.identities(select_rows(index, part)))
    assert not sides["train"] & sides["val"], "no person is on both sides"

    ft(root, "export-tree", tmp_path / "tree")
    linked = {}
    for link in (tmp_path / "tree").rglob("*.jpg"):
        source = Path(os.path.realpath(link)).relative_to(os.path.realpath(root / "aligned")).as_posix()
        linked[source] = link.relative_to(tmp_path / "tree").parts[1]
    assert linked == expected
    ft(root, "export", "--parquet", tmp_path / "parquet", "-j", 1)
    rows = [
        row
        for file in (tmp_path / "parquet").rglob("*.parquet")
        for row in pq.read_table(file).select(["path", "identity"]).to_pylist()
    ]
    assert {row["path"]: row["identity"] for row in rows} == expected
    ft(root, "embed", *tell(root / "aligned", tmp_path / "table.json", {}), "--out", tmp_path / "e.parquet")
    rows = pq.read_table(tmp_path / "e.parquet").select(["path", "identity"]).to_pylist()
    assert {row["path"]: row["identity"] for row in rows} == expected

    ft(root, "clean", "--undo")
    assert state(root) == {"prune": "stale", "split": "stale", "cache": "stale"}
    ft(root, "prune", "--min", 5)
    ft(root, "split", 0.4, "--seed", 3)
    ft(root, "cache", "-j", 1)
    assert {name: table_fingerprint(folder / f"{name}.arrow") for name in tables} == first
    assert set(state(root).values()) == {"fresh"}


def test_an_undo_makes_what_was_fresh_fresh_again(root: Path, ft: Callable, tmp_path: Path) -> None:
    ft(root, "prune", "--min", 2)
    ft(root, "split", 0.4)
    status = run_status(root)
    (tmp_path / "a.csv").write_text(lines(("leave-out", "", "ann")))
    ft(root, "clean", "--apply", tmp_path / "a.csv")
    assert run_status(root) != status
    ft(root, "clean", "--undo")
    assert run_status(root) == status


def test_a_second_file_is_added(root: Path, ft: Callable, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(lines(("leave-out", "ann/1.jpg", "ann"), ("rename", "", "bob", "cat")))
    (tmp_path / "b.csv").write_text(
        lines(
            ("keep", "ann/1.jpg", "ann"),
            ("rename", "bob/1.jpg", "cat", "bob"),
            ("leave-out", "bob/2.jpg", "cat"),
        )
    )
    ft(root, "clean", "--apply", tmp_path / "a.csv")
    text = ft(root, "clean", "--apply", tmp_path / "b.csv").output
    assert "1 photograph left out, 3 given to another person" in text, "what is left out counts as that"
    assert "1 left out, 3 given to another person" in run_status(root)
    people = people_of(root)
    assert people["ann/1.jpg"] == "ann" and people["bob/1.jpg"] == "bob" and people["bob/3.jpg"] == "cat"
    assert "bob/2.jpg" not in people
    record = Workspace.find(root).dataset().record("clean")
    assert record is not None
    assert record.parameters == {"files": [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")], "people": []}
    assert record.counts == {"left_out": 1, "renamed": 3}
    (tmp_path / "c.csv").write_text(lines(("keep", "", "cat"), ("keep", "bob/2.jpg", "cat")))
    ft(root, "clean", "--apply", tmp_path / "c.csv")
    assert set(state(root)) == {"prune", "split", "cache"}, "no mark is left"


def test_marks_are_of_photographs_as_they_were(root: Path, ft: Callable, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(lines(("leave-out", "", "ann")))
    ft(root, "clean", "--apply", tmp_path / "a.csv")
    shutil.copy(root / "raw" / "bob" / "1.jpg", root / "raw" / "ann" / "1.jpg")
    shutil.copy(root / "raw" / "ann" / "2.jpg", root / "raw" / "ann" / "6.jpg")
    (root / "raw" / "ann" / "3.jpg").unlink()
    ft(root, "align", root / "raw", root / "aligned", "--size", 32)
    kept = [path for path in people_of(root) if path.startswith("ann")]
    assert kept == ["ann/1.jpg", "ann/6.jpg"], "one has changed, one is new"
    again = "1 person who was left out has new photographs: apply it again"
    assert detail_of(root).startswith(f"{again}; 3 left out, 1 marked, but changed since"), "3.jpg is gone"
    text = ft(root, "clean", "--apply", tmp_path / "a.csv").output
    assert "marked in all: 5 photographs left out" in text
    assert detail_of(root).startswith("5 left out (")
    assert not any(path.startswith("ann") for path in people_of(root))


def test_only_people_who_were_left_out_as_a_whole_come_back(root: Path, ft: Callable, tmp_path: Path) -> None:
    """New photographs of ann, cat and dan: of ann one was left out, all of cat, and of dan too but for one."""
    first = lines(("leave-out", "ann/1.jpg", "ann"), ("leave-out", "", "cat"), ("leave-out", "", "dan"))
    (tmp_path / "a.csv").write_text(first + "keep,dan/2.jpg,dan,,,\n")
    ft(root, "clean", "--apply", tmp_path / "a.csv")
    assert detail_of(root).startswith("10 left out (")
    for name in ("ann", "cat", "dan"):
        shutil.copy(root / "raw" / "bob" / "1.jpg", root / "raw" / name / "7.jpg")
    ft(root, "align", root / "raw", root / "aligned", "--size", 32)
    assert state(root)["clean"] == "stale"
    assert detail_of(root).startswith(
        "1 person who was left out has new photographs: apply it again; 10 left"
    )
    (tmp_path / "b.csv").write_text(lines(("rename", "cat/7.jpg", "cat", "bob")))
    ft(root, "clean", "--apply", tmp_path / "b.csv")
    assert detail_of(root).startswith("10 left out, 1 given to another person (")


def test_marks_of_what_is_not_usable_are_not_counted(root: Path, ft: Callable, tmp_path: Path) -> None:
    (root / "raw" / "ann" / "1.jpg").write_bytes(b"no photograph")
    ft(root, "align", root / "raw", root / "aligned", "--size", 32)
    (tmp_path / "a.csv").write_text(lines(("leave-out", "ann/1.jpg", "ann")))
    text = ft(root, "clean", "--apply", tmp_path / "a.csv").output
    assert "marked in all: 0 photographs left out, 0 given to another person" in text
    assert detail_of(root).startswith("nothing usable is marked (")
    (tmp_path / "b.csv").write_text(lines(("leave-out", "", "ann"), ("rename", "", "bob", "ann")))
    text = ft(root, "clean", "--apply", tmp_path / "b.csv").output
    assert "marked in all: 4 photographs left out, 5 given to another person" in text
    assert detail_of(root).startswith("4 left out, 5 given to another person (")


# -- keeping people out ----------------------------------------------------------------------------------------------


def test_exclude_people(root: Path, ft: Callable, wrong: Callable, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\ufeffAnn\n\n  fay \nnobody\n")
    text = ft(root, "clean", "--exclude-people", tmp_path / "names.txt", "--out", tmp_path / "out.csv").output
    assert "2 of the 3 people named in" in text and "2 people to leave out" in text
    assert "note: not found: nobody\n" in text
    assert [row["identity"] for row in read_csv(tmp_path / "out.csv")] == ["ann", "fay"]
    assert len(people_of(root)) == 30
    ft(root, "clean", "--exclude-people", tmp_path / "names.txt", "--out", tmp_path / "again.csv", "--yes")
    assert {path.split("/")[0] for path in people_of(root)} == {"bob", "cat", "dan", "eve"}
    text = ft(
        root, "clean", "--exclude-people", tmp_path / "names.txt", "--out", tmp_path / "third.csv"
    ).output
    assert "nothing to propose" in text and not (tmp_path / "third.csv").exists()
    assert "of another 2 no photographs are used: they are left out already" in text
    assert "note: not found: nobody\n" in text, "who is left out is there"
    typos = ["Bobb", "bobb/", "Cat/", "/", *(f"typo {number}" for number in range(6))]
    (tmp_path / "typos.txt").write_text("\n".join(typos))
    text = ft(root, "clean", "--exclude-people", tmp_path / "typos.txt", "--out", tmp_path / "4.csv").output
    assert "1 of the 8 people named in" in text and "1 person to leave out" in text
    assert "not found: Bobb, typo 0, typo 1, typo 2, typo 3 and 2 more\n" in text
    assert [row["identity"] for row in read_csv(tmp_path / "4.csv")] == ["cat"]
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "the list of names is empty" in wrong(root, "clean", "--exclude-people", tmp_path / "empty.txt")
    assert "cannot read the list of names" in wrong(root, "clean", "--exclude-people", tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in wrong(root, "clean", "--exclude-people", tmp_path / "empty.txt")


def test_names_that_are_alike() -> None:
    assert alike("Abel_Pacheco") == alike("abel pacheco") == alike("ABEL-PACHECO ")
    assert alike("Jos\u00e9") == alike("Jose\u0301") != alike("Jose")


def test_exclude_overlap(root: Path, ft: Callable, wrong: Callable, tmp_path: Path) -> None:
    """Of the tree: a folder of bob's name; a photograph of cat, and a crop of dan, byte for byte."""
    tree = tmp_path / "tests"
    for source, name in (
        ("raw/fay/1.jpg", "Bob/x.jpg"),
        ("raw/cat/2.jpg", "c/y.jpg"),
        ("aligned/dan/3.jpg", "d/z.jpg"),
    ):
        (tree / name).parent.mkdir(parents=True)
        shutil.copy(root / source, tree / name)
    (tree / "Bob" / "x.jpg").write_bytes((root / "raw" / "fay" / "1.jpg").read_bytes() + b"!")

    def excluded(*options: object) -> dict[str, str]:
        out = tmp_path / "out.csv"
        out.unlink(missing_ok=True)
        ft(root, "clean", "--exclude-overlap", tree, *options, "--out", out, "-j", 1)
        return {row["identity"]: row["reason"] for row in read_csv(out)}

    assert set(excluded()) == {"bob", "cat", "dan"}
    assert set(excluded("--by", "name")) == {"bob"}
    found = excluded("--by", "content")
    assert set(found) == {"cat", "dan"}
    assert found["cat"] == f"cat/2.jpg is c/y.jpg in {tree} (such photographs: 1)"
    assert "choose name, content, embedding" in wrong(
        root, "clean", "--exclude-overlap", tree, "--by", "nose"
    )
    assert "no such folder" in wrong(root, "clean", "--exclude-overlap", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "no photographs in" in wrong(root, "clean", "--exclude-overlap", tmp_path / "empty")


def test_exclude_overlap_by_embedding(root: Path, ft: Callable, tmp_path: Path) -> None:
    """The tree is of crops; the person called x in it looks like ann, y like nobody."""
    tree = tmp_path / "tests"
    for number in range(1, 4):
        for name in ("x", "y"):
            (tree / name).mkdir(parents=True, exist_ok=True)
            crop = (root / "aligned" / "fay" / f"{number}.jpg").read_bytes()
            (tree / name / f"{number}.jpg").write_bytes(crop)
    from PIL import Image

    for number, path in enumerate(sorted(tree.rglob("*.jpg"))):
        Image.fromarray(np.full((32, 32, 3), 20 * number, np.uint8)).save(path)
    shutil.copy(root / "aligned" / "imagespec.json", tree)
    tell(root / "aligned", tmp_path / "table.json", {})
    named = tell(tree, tmp_path / "table.json", {"x": 0, "y": 35}, seed=1)
    how = ["--exclude-overlap", tree, "--by", "embedding", *named]
    text = ft(root, "clean", *how, "--out", tmp_path / "a.csv").output
    assert [(row["identity"], row["reason"]) for row in read_csv(tmp_path / "a.csv")] == [
        ("ann", f"looks like x in {tree}")
    ]
    highest = float(read_csv(tmp_path / "a.csv")[0]["score"])
    assert f"by embedding: 1 person, cosine {highest:.2f}\n" in text
    text = ft(root, "clean", *how, "--threshold", -1, "--out", tmp_path / "b.csv").output
    lowest = min(float(row["score"]) for row in read_csv(tmp_path / "b.csv"))
    assert f"by embedding: 6 people, cosines {lowest:.2f} to {highest:.2f}: look at the lowest" in text
    text = ft(root, "clean", *how, "--threshold", 1, "--out", tmp_path / "none.csv").output
    assert "by embedding: 0 people\n" in text
    assert next(row["identity"] for row in read_csv(tmp_path / "b.csv")) == "ann"
    assert len(read_csv(tmp_path / "b.csv")) == 6
    ft(root, "clean", *how, "--yes", "--out", tmp_path / "c.csv")
    assert not any(path.startswith("ann") for path in people_of(root))


# -- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "line", "said"),
    [
        ("action,path\n", 1, "its columns must be action,path,identity,becomes,reason,score"),
        ("", 1, "its columns must be"),
        ("{" * 200_000, 1, "no CSV: field larger than field limit"),
        (lines(("leave-out", "ann/1.jpg", "ann"), ("drop", "ann/2.jpg", "ann")), 3, "no action 'drop'"),
        (lines(("leave-out", "ann/9.jpg", "ann")), 2, "no photograph 'ann/9.jpg' is in the index"),
        (lines(("leave-out", "ann/1.jpg", "bob")), 2, "ann/1.jpg is of ann by now, not of bob"),
        (lines(("leave-out", "ann/1.jpg", "")), 2, "whose photograph it is, is not said"),
        (lines(("leave-out", "", "gus")), 2, "no photographs of a person 'gus' are in the index"),
        (lines(("rename", "ann/1.jpg", "ann", "")), 2, "'' cannot be a person's name"),
        (lines(("rename", "ann/1.jpg", "ann", "../x")), 2, "'../x' cannot be a person's name"),
        (lines(("rename", "ann/1.jpg", "ann", "ann")), 2, "it is called ann already"),
        (lines(("leave-out", "ann/1.jpg", "ann"), ("keep", "ann/1.jpg", "ann")), 3, "line 2 says already what becomes of ann/1.jpg"),
        (lines(("leave-out", "", "ann"), ("keep", "", "ann")), 3, "line 2 says already what becomes of ann"),
        (lines(("rename", "", "ann", "bob"), ("rename", "", "bob", "cat")), 2, "bob becomes cat in line 3: write cat"),
        (lines(("rename", "ann/1.jpg", "ann", "bob"), ("rename", "", "bob", "ann")), 2, "bob becomes ann in line 3: remove this line"),
        (lines(("rename", "", "ann", "bob"), ("rename", "", "bob", "ann")), 2, "people who swap names need two files"),
        (lines(("rename", "", "cat", "ann"), ("rename", "", "ann", "bob"), ("rename", "", "bob", "ann")), 2, "ann becomes bob, and bob in the end ann"),
        (lines(("leave-out", "ann/1.jpg", "ann")) + "keep,ann/2.jpg\n", 3, "2 columns, not the 6"),
        (lines().replace("path", "Path ").replace("score", "path"), 1, "its columns must be"),
        (lines(("leave-out", "ann/9.jpg", "ann")).replace(",", ";"), 2, "no photograph 'ann/9.jpg' is in the index"),
    ],
)  # fmt: skip
def test_a_wrong_line_applies_nothing(
    body: str, line: int, said: str, aligned_once: Path, wrong: Callable, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(aligned_once / ".ft", root / ".ft")
    (root / "aligned").mkdir()
    (tmp_path / "a.csv").write_text(body)
    text = wrong(root, "clean", "--apply", tmp_path / "a.csv")
    assert f"a.csv, line {line}: " in text and said in text
    assert not (Workspace.find(root).dataset().folder / "clean.arrow").exists()


def test_options_that_do_not_go_together(root: Path, wrong: Callable, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(lines(("leave-out", "", "ann")))
    for options, said in (
        (["--apply", tmp_path / "a.csv", "--undo"], "--undo goes alone"),
        (["--apply", tmp_path / "a.csv", "--embedder", "dlib"], "--apply goes alone"),
        (["--dry-run"], "--dry-run goes with --apply"),
        (["--yes"], "--yes goes with --exclude-people or --exclude-overlap"),
        (["--by", "name"], "go with --exclude-overlap"),
        (["--exclude-overlap", root / "raw", "--threshold", 0.5], "--threshold goes with --by embedding"),
        (["--exclude-overlap", root / "raw", "--embedder", "dlib"], "nothing is embedded for that"),
        (["--apply", tmp_path / "none.csv"], "cannot read the proposals"),
    ):
        assert said in wrong(root, "clean", *options)
    (tmp_path / "b.csv").write_text(lines())
    assert "proposes nothing" in wrong(root, "clean", "--apply", tmp_path / "b.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfea")
    assert "not UTF-8" in wrong(root, "clean", "--apply", tmp_path / "b.csv")


def test_a_spreadsheet_may_have_saved_it(tmp_path: Path) -> None:
    proposals = [Proposal("rename", 'a,b/"1".jpg', "a,b", "c d", "why, though", "0.1")]
    write_proposals(tmp_path / "a.csv", proposals)
    read = read_proposals(tmp_path / "a.csv")
    assert read == [Proposal("rename", 'a,b/"1".jpg', "a,b", "c d", "why, though", "0.1", line=2)]
    text = (tmp_path / "a.csv").read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbf" + text + b",,,,,\r\n\r\n")
    assert read_proposals(tmp_path / "b.csv") == read


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_an_editor_may_have_rearranged_it(separator: str, quoting: Any, tmp_path: Path) -> None:
    """Other separators, blanks around the header's cells, another order, further columns, capitals in the action."""
    header = [" Score", "identity ", "who looked", " path ", "action", "", "reason", "becomes"]
    row = ["0.1", "a,b;c\td", "me", "a,b;c\td/1.jpg", "Leave-Out", "", "why; though, ", ""]
    with open(tmp_path / "a.csv", "w", encoding="utf-8-sig", newline="") as handle:
        writer = csv.writer(handle, delimiter=separator, quoting=quoting)
        writer.writerows([header, row, [""] * 8, ["", "eve", "", "", " RENAME", "", "", "Dan"]])
    assert read_proposals(tmp_path / "a.csv") == [
        Proposal("leave-out", "a,b;c\td/1.jpg", "a,b;c\td", "", "why; though, ", "0.1", line=2),
        Proposal("rename", "", "eve", "Dan", line=4),
    ]


def test_people_who_swap_names(root: Path, ft: Callable, tmp_path: Path) -> None:
    """As the message says that it is done."""
    first = lines(("rename", "", "ann", "ann~2"), ("rename", "", "bob", "bob~2"))
    second = lines(("rename", "", "ann~2", "bob"), ("rename", "", "bob~2", "ann"))
    for number, text in enumerate((first, second)):
        (tmp_path / f"{number}.csv").write_text(text)
        ft(root, "clean", "--apply", tmp_path / f"{number}.csv")
    people = people_of(root)
    assert {people[f"ann/{i}.jpg"] for i in range(1, 6)} == {"bob"}
    assert {people[f"bob/{i}.jpg"] for i in range(1, 6)} == {"ann"}


def test_the_summary_counts_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    divided = [Proposal("rename", f"{name}/{i}.jpg", name, f"{name}~2") for name in "abc" for i in range(4)]
    joined = [Proposal("rename", "", name, "d") for name in "ef"]
    show_proposals([*divided, *joined, Proposal("leave-out", "", "g")], tmp_path / "a.csv")
    assert capsys.readouterr().out.splitlines()[:3] == [
        "  3 people who look like two (12 photographs)",
        "  2 pairs who look like one",
        "  1 person to leave out",
    ]


def test_marks_that_are_lost_or_damaged(root: Path, ft: Callable, wrong: Callable, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(lines(("leave-out", "", "ann")))
    ft(root, "clean", "--apply", tmp_path / "a.csv")
    marks = Workspace.find(root).dataset().folder / "clean.arrow"
    good = marks.read_bytes()
    marks.write_bytes(good[:-20] + b"\0" * 20)
    again = f"run `ft clean --undo`, then apply again what was applied: {tmp_path / 'a.csv'}"
    for command in (["prune", "--min", 2], ["split", 0.4], ["clean", "--apply", tmp_path / "a.csv"]):
        line = wrong(root, *command)
        assert f"clean.arrow is damaged: {again}\n" in line and "remove it" not in line
    details = {line["stage"]: line["detail"] for line in json.loads(run_status(root))["stages"]}
    assert details["clean"].endswith(f"clean.arrow is damaged: {again}")
    assert f"`ft clean --undo`, then `ft clean --apply {tmp_path / 'a.csv'}`" in wrong(
        root, "cache", "--verify"
    )
    marks.unlink()
    line = wrong(root, "split", 0.4)
    assert f"is gone: run `ft clean --undo`, then apply again what was applied: {tmp_path / 'a.csv'}" in line
    assert state(root)["clean"] == "stale"
    ft(root, "clean", "--undo")
    ft(root, "clean", "--apply", tmp_path / "a.csv")
    assert marks.read_bytes() == good


# -- the index alone -------------------------------------------------------------------------------------------------


def test_the_index_with_marks(tmp_path: Path) -> None:
    photographs = [(f"{name}/{i}.jpg", name, "aligned") for name in ("ann", "bob") for i in (1, 2)]
    index = write_rows(tmp_path, [*photographs, ("loose.jpg", None, "no-identity")])
    contents = pa.array([bytes([i]) * 32 for i in range(4)] + [None], pa.binary(32))
    number = index.rows.schema.get_field_index("content")
    write_table(tmp_path / "rows.arrow", index.rows.set_column(number, "content", contents))
    index = read_index(tmp_path)
    assert index.candidates is index.usable and index.inputs == {"rows": index.fingerprint}
    proposals = [
        Proposal("rename", "", "bob", "zoe", line=2),
        Proposal("leave-out", "ann/2.jpg", "ann", line=3),
    ]
    marks = apply_proposals(index, proposals, Path("a.csv"))
    write_table(tmp_path / "clean.arrow", marks)
    index = read_index(tmp_path)
    assert index.candidates.tolist() == index.kept.tolist() == [True, False, True, True, False]
    assert index.usable.tolist() == [True, True, True, True, False]
    assert index.identities(np.arange(5)) == ["ann", "ann", "zoe", "zoe", None]
    assert index.count_people(index.kept) == (2, 3)
    assert index.inputs["clean"] == table_fingerprint(tmp_path / "clean.arrow")
    index.write_column("kept", pa.array([True] * 5))
    assert read_index(tmp_path).kept.tolist() == [True, False, True, True, False]
    (tmp_path / "clean.arrow").unlink()
    with pytest.raises(MissingStage, match=r"`ft clean` has changed who is who since `ft prune`"):
        _ = read_index(tmp_path).kept
    with pytest.raises(UserError, match=r"a\.csv, line 7: no photograph 'loose.jpg' is in the index"):
        apply_proposals(index, [Proposal("leave-out", "loose.jpg", "x", line=7)], Path("a.csv"))


class Quarters(Embedder):
    """The mean colour of each quarter of a crop of another size than the workspace's."""

    def __init__(self) -> None:
        self.spec = ImageSpec(size_px=48)

    def of(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        quarters = crops.reshape(len(crops), 2, 24, 2, 24, 3).mean(axis=(2, 4), dtype=np.float32)
        return quarters.reshape(len(crops), 12) - 127


def test_a_network_that_takes_other_crops(root: Path, ft: Callable, wrong: Callable, tmp_path: Path) -> None:
    named = ["--embedder", f"{__name__}:Quarters", "-j", 1]
    rows = table_fingerprint(Workspace.find(root).dataset().folder / "rows.arrow")
    ft(root, "clean", *named, "--out", tmp_path / "a.csv")
    (crops,) = (root / ".ft" / "evaluate").iterdir()
    assert read_index(crops).spec == ImageSpec(size_px=48)
    assert read_index(crops).count_people(read_index(crops).usable) == (6, 30)
    assert table_fingerprint(Workspace.find(root).dataset().folder / "rows.arrow") == rows
    shutil.copytree(root / "aligned", root / "crops")
    ft(root, "index", root / "crops", "--keep-current", "-j", 1)
    line = wrong(root, "clean", *named, "--dataset", root / "crops", "--out", tmp_path / "b.csv")
    assert "size_px 48 against 32" in line


def test_a_run_does_not_go_on_with_other_people(
    root: Path, ft: Callable, wrong: Callable, tmp_path: Path
) -> None:
    """Whatever prune and split have done since."""
    ft(root, "split", 0.4)
    run_folder = root / ".ft" / "runs" / "first"
    run_folder.mkdir(parents=True)
    dataset = Workspace.find(root).dataset()
    tables = ("rows", "clean", "kept", "split")
    inputs = {name: table_fingerprint(dataset.folder / f"{name}.arrow") for name in tables}
    facts = {"config": {"epochs": 2}, "dataset": dataset.folder.name, "inputs": inputs}
    (run_folder / "config.json").write_text(json.dumps(facts))
    (tmp_path / "a.csv").write_text(lines(("leave-out", "ann/1.jpg", "ann")))
    ft(root, "clean", "--apply", tmp_path / "a.csv")
    ft(root, "split", 0.4)
    assert "was started on other data (`ft clean` has run since)" in wrong(root, "train", "--resume", "first")
