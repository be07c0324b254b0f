"""Prune and split: columns that follow from names, contents and a seed, whatever else is there."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from facetrain.errors import UserError
from facetrain.index import read_index
from facetrain.preprocess.export_tree import export_tree
from facetrain.preprocess.prune import prune
from facetrain.preprocess.split import split
from facetrain.tables import CONTENT, dictionary_codes
from facetrain.workspace import Workspace


def text(values: list[str | None]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, pa.string())])


def hashes(values: list[object]) -> pa.ChunkedArray:
    contents = [None if value is None else blake3(str(value).encode()).digest() for value in values]
    return pa.chunked_array([pa.array(contents, CONTENT)])


def pruned(names: list[str | None], usable: list[bool], minimum: int) -> list[bool]:
    return prune(dictionary_codes(text(names))[0], np.array(usable, bool), minimum).tolist()


def sides_of(
    names: list[str | None], contents: list[object], kept: list[bool], ratio: float, *, by: str, seed: int
) -> list[str]:
    """ "train" or "val" of each photograph."""
    person, people = dictionary_codes(text(names))
    val = split(person, people, hashes(contents), np.array(kept, bool), ratio, by=by, seed=seed)
    return np.where(val, "val", "train").tolist()


PEOPLE = st.lists(st.tuples(st.sampled_from([None, "ann", "bob", "cat", "dan"]), st.booleans()), max_size=40)


class TestPrune:
    @given(PEOPLE, st.integers(1, 6))
    def test_people_with_enough_usable_photographs_are_kept(self, rows: list, minimum: int) -> None:
        names, usable = [name for name, _ in rows], [bool(name) and ok for name, ok in rows]
        counts = Counter(name for name, ok in zip(names, usable, strict=True) if ok)
        assert pruned(names, usable, minimum) == [
            name is not None and counts[name] >= minimum for name in names
        ]

    @pytest.mark.parametrize("minimum", [0, -3])
    def test_less_than_one_is_refused(self, minimum: int) -> None:
        with pytest.raises(UserError, match=f"--min {minimum}: ask for at least 1"):
            pruned(["ann"], [True], minimum)


def split_by_identity(
    names: list[str], ratio: float, seed: int = 0, kept: list[bool] | None = None
) -> dict[str, str]:
    kept = kept or [True] * len(names)
    column = sides_of(names, list(range(len(names))), kept, ratio, by="identity", seed=seed)
    sides: dict[str, set[str]] = {}
    for name, side in zip(names, column, strict=True):
        sides.setdefault(name, set()).add(side)
    assert all(len(both) == 1 for both in sides.values()), "nobody is on both sides"
    return {name: next(iter(one)) for name, one in sides.items()}


CROWD = [f"person {i}" for i in range(60)]


class TestSplitByIdentity:
    @given(st.sets(st.integers(60, 10_000), max_size=60), st.permutations(range(8)), st.integers(0, 5))
    @settings(deadline=None)
    def test_adding_people_moves_nobody(self, more: set[int], order: list[int], seed: int) -> None:
        before = split_by_identity(CROWD, 0.3, seed)
        everyone = [*(f"person {i}" for i in more), *CROWD]
        cut = len(everyone) // 8
        everyone = [name for part in order for name in everyone[part * cut : (part + 1) * cut]] + everyone[
            8 * cut :
        ]
        after = split_by_identity(everyone, 0.3, seed)
        assert {name: after[name] for name in CROWD} == before

    @given(st.integers(2, 56), st.integers(0, 5))
    @settings(deadline=None)
    def test_leaving_people_out_moves_nobody(self, gone: int, seed: int) -> None:
        """As far as two people remain on either side."""
        before = split_by_identity(CROWD, 0.5, seed)
        kept = [i >= gone for i in range(60)]
        after = split_by_identity(CROWD, 0.5, seed, kept)
        left = {side: {n for n in CROWD[gone:] if before[n] == side} for side in ("train", "val")}
        if min(map(len, left.values())) >= 2:
            assert after == before

    @given(st.integers(4, 12), st.floats(0.001, 0.999), st.integers(0, 50))
    @settings(deadline=None)
    def test_two_people_at_least_on_either_side(self, people: int, ratio: float, seed: int) -> None:
        names = [f"person {i}" for i in range(people + 3)]
        kept = [i < people for i in range(people + 3)]  # the last three are pruned, and do not count
        sides = split_by_identity(names, ratio, seed, kept)
        counts = Counter(sides[name] for name in names[:people])
        assert min(counts["train"], counts["val"]) >= 2

    @pytest.mark.parametrize("ratio", [0.02, 0.1, 0.5, 0.9])
    def test_the_share_is_about_what_was_asked_for(self, ratio: float) -> None:
        names = [f"person {i}" for i in range(20_000)]
        share = Counter(split_by_identity(names, ratio).values())["val"] / len(names)
        assert abs(share - ratio) < 4 * np.sqrt(ratio * (1 - ratio) / len(names))

    def test_a_larger_share_contains_the_smaller(self) -> None:
        names = [f"person {i}" for i in range(2000)]
        val = [
            {n for n, side in split_by_identity(names, ratio).items() if side == "val"}
            for ratio in (0.1, 0.2)
        ]
        assert val[0] < val[1]

    def test_another_seed_is_another_split(self) -> None:
        names = [f"person {i}" for i in range(1000)]
        both = [
            {n for n, side in split_by_identity(names, 0.5, seed).items() if side == "val"} for seed in (0, 1)
        ]
        assert 150 < len(both[0] & both[1]) < 350, "independent: a quarter is in both"

    @pytest.mark.parametrize("people", [0, 1, 3])
    def test_too_few_people(self, people: int) -> None:
        names = ["a", "b", "c", "d", "e"]
        with pytest.raises(UserError, match=f"{people} people are too few to split: at least 4 are needed"):
            split_by_identity(names, 0.5, kept=[i < people for i in range(5)])


@pytest.mark.parametrize("ratio", [0, 1, 1.5, -0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("by", ["identity", "image"])
def test_shares_that_cannot_be(ratio: float, by: str) -> None:
    with pytest.raises(UserError, match=r"choose a number between 0 and 1, such as 0\.1"):
        sides_of(list("abcd"), [1, 2, 3, 4], [True] * 4, ratio, by=by, seed=0)


def test_an_unknown_way_and_no_rows() -> None:
    with pytest.raises(UserError, match="cannot split by 'colour': choose identity or image"):
        sides_of(list("abcd"), [1, 2, 3, 4], [True] * 4, 0.5, by="colour", seed=0)
    for by in ("identity", "image"):
        with pytest.raises(UserError):
            sides_of([], [], [], 0.5, by=by, seed=0)
        with pytest.raises(UserError):
            sides_of(list("abcd"), [1, 2, 3, 4], [False] * 4, 0.5, by=by, seed=0)


class TestSplitByImage:
    ROWS = st.lists(
        st.tuples(st.sampled_from([None, "ann", "bob", "cat"]), st.integers(0, 15), st.booleans()),
        min_size=1,
        max_size=40,
    ).filter(lambda rows: any(name is not None and kept for name, _, kept in rows))

    @given(ROWS, st.floats(0.01, 0.99), st.integers(0, 9))
    @settings(deadline=None)
    def test_everyone_keeps_a_photograph_to_train_on(self, rows: list, ratio: float, seed: int) -> None:
        names = [name for name, _, _ in rows]
        kept = [name is not None and keep for name, _, keep in rows]
        contents = [
            None if not keep and number == 0 else number
            for (_, number, _), keep in zip(rows, kept, strict=True)
        ]
        column = sides_of(names, contents, kept, ratio, by="image", seed=seed)
        for name in {name for name, keep in zip(names, kept, strict=True) if keep}:
            sides = [side for side, n, keep in zip(column, names, kept, strict=True) if keep and n == name]
            assert "train" in sides
        of_content: dict[tuple, set[str]] = {}
        for name, content, keep, side in zip(names, contents, kept, column, strict=True):
            if keep:
                of_content.setdefault((name, content), set()).add(side)
        assert all(len(sides) == 1 for sides in of_content.values()), "copies of a photograph are on one side"

    def test_the_share_and_what_is_added(self) -> None:
        names = [f"person {i % 500}" for i in range(20_000)]
        contents = list(range(20_000))
        first = sides_of(names, contents, [True] * 20_000, 0.2, by="image", seed=3)
        # Each of the 500 people has 40; the last of them is for training whatever its hash.
        assert abs(first.count("val") / 20_000 - 0.2) < 0.015
        more = sides_of(
            [*names, *(f"new {i % 7}" for i in range(500))],
            [*contents, *range(20_000, 20_500)],
            [True] * 20_500,
            0.2,
            by="image",
            seed=3,
        )
        assert more[:20_000] == first
        other = sides_of(names, contents, [True] * 20_000, 0.2, by="image", seed=4)
        both = sum(a == b == "val" for a, b in zip(first, other, strict=True))
        assert 600 < both < 1000, "independent: 4 % are in both"


def test_half_a_million_rows_are_no_matter() -> None:
    """Columnar work: a loop over rows would take this test seconds."""
    rng = np.random.default_rng(0)
    people = rng.integers(0, 30_000, 500_000)
    names = pa.array([f"person {i}" for i in range(30_000)])
    contents = pa.chunked_array(
        [pa.FixedSizeBinaryArray.from_buffers(CONTENT, 500_000, [None, pa.py_buffer(rng.bytes(16_000_000))])]
    )
    usable = rng.random(500_000) < 0.9
    enough = prune(people, usable, 15)
    counts = np.bincount(people[usable], minlength=30_000)
    np.testing.assert_array_equal(enough, counts[people] >= 15)
    for by in ("identity", "image"):
        val = split(people, names, contents, enough, 0.1, by=by, seed=0)
        assert 0.08 < val[enough].mean() < 0.12


class TestExportTree:
    def test_links_lead_to_the_crops(self, tmp_path: Path) -> None:
        crops = ["ann/1.jpg", "ann/b/2.jpg", "bob/1.png.jpg"]
        for crop in crops:
            (tmp_path / "aligned" / crop).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "aligned" / crop).write_text(crop)
        done: list[int] = []
        parts = {"train": text([crops[0], crops[2]]), "val": text([crops[1]])}
        counts = export_tree(tmp_path / "aligned", parts, tmp_path / "out", done.append)
        assert (counts, sum(done)) == ({"train": 2, "val": 1}, 3)
        found = {
            str(p.relative_to(tmp_path / "out")): p.read_text()
            for p in (tmp_path / "out").rglob("*")
            if p.is_file()
        }
        assert found == {
            "train/ann/1.jpg": "ann/1.jpg", "val/ann/b/2.jpg": "ann/b/2.jpg", "train/bob/1.png.jpg": "bob/1.png.jpg"
        }  # fmt: skip
        assert all(p.is_symlink() for p in (tmp_path / "out").rglob("*.jpg"))

    def test_only_into_an_empty_place(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "x").touch()
        for out in ("file", "full"):
            with pytest.raises(UserError, match="is there already and not empty: name a new folder"):
                export_tree(tmp_path, {"train": text(["a/1.jpg"])}, tmp_path / out, lambda count: None)


# -- through the commands ----------------------------------------------------------------------------------------


def kept_and_split(root: Path) -> tuple[list, list | None]:
    index = read_index(Workspace.find(root).dataset().folder)
    return index.kept.tolist(), None if index.split is None else index.split.to_pylist()


def remove(root: Path, person: str, keep: int) -> None:
    for path in sorted((root / "raw" / person).iterdir())[keep:]:
        path.unlink()


pytestmark = pytest.mark.usefixtures("in_process")


class TestCommands:
    def test_prune_and_its_undoing(self, root: Path, ft: Callable) -> None:
        remove(root, "ann", 1)
        remove(root, "bob", 2)
        ft(root, "align", root / "raw", root / "aligned", "--size", 32)
        everyone = kept_and_split(root)[0]
        assert sum(everyone) == 23
        shown = ft(root, "prune", "--min", 3, "--dry-run").stdout
        assert [line.split() for line in shown.splitlines()] == [
            ["people", "photographs"], ["before", "6", "23"], ["would", "be", "kept", "4", "20"]
        ]  # fmt: skip
        assert kept_and_split(root)[0] == everyone, "a dry run writes nothing"
        assert "nobody was left out" in ft(root, "prune", "--undo").stdout
        shown = ft(root, "prune", "--min", 3).stdout
        assert shown.splitlines()[-1].split() == ["kept", "4", "20"]
        assert sum(kept_and_split(root)[0]) == 20
        ft(root, "prune", "--min", 2)
        assert sum(kept_and_split(root)[0]) == 22, "a second prune starts from everyone"
        photographs = {
            p: p.read_bytes() for p in [*(root / "raw").rglob("*.jpg"), *(root / "aligned").rglob("*.jpg")]
        }
        assert "everyone is kept again" in ft(root, "prune", "--undo").stdout
        assert kept_and_split(root)[0] == everyone
        assert {p: p.read_bytes() for p in photographs} == photographs

    def test_split_and_its_undoing(self, root: Path, ft: Callable) -> None:
        shown = ft(root, "split", 0.4, "--dry-run").stdout
        assert kept_and_split(root)[1] is None
        assert ft(root, "split", 0.4).stdout == shown
        first = kept_and_split(root)[1]
        assert first is not None
        assert first.count("train") + first.count("val") == 30
        ft(root, "split", 0.4, "--seed", 9)
        assert kept_and_split(root)[1] != first
        ft(root, "split", 0.4)
        assert kept_and_split(root)[1] == first
        assert "the split is taken away" in ft(root, "split", "--undo").stdout
        assert "nothing was split" in ft(root, "split", "--undo").stdout
        assert kept_and_split(root)[1] is None

    def test_prune_leaves_sides_as_they_are(self, root: Path, ft: Callable) -> None:
        remove(root, "ann", 2)
        ft(root, "align", root / "raw", root / "aligned", "--size", 32)
        ft(root, "split", 0.5)
        index = read_index(Workspace.find(root).dataset().folder)
        assert index.split is not None
        before = dict(zip(index.rows["path"].to_pylist(), index.split.to_pylist(), strict=True))
        ft(root, "prune", "--min", 3)
        index = read_index(Workspace.find(root).dataset().folder)
        assert index.split is not None
        after = dict(zip(index.rows["path"].to_pylist(), index.split.to_pylist(), strict=True))
        assert after == {path: None if path.startswith("ann") else side for path, side in before.items()}

    def test_both_must_run_again_when_photographs_change(
        self, root: Path, ft: Callable, wrong: Callable
    ) -> None:
        ft(root, "prune", "--min", 1)
        ft(root, "split", 0.5)
        remove(root, "ann", 4)
        ft(root, "align", root / "raw", root / "aligned", "--size", 32)
        assert "the photographs have changed since `ft prune`: run `ft prune` again" in wrong(
            root, "split", 0.5
        )
        assert "the photographs have changed since `ft prune`: run `ft prune` again" in wrong(root, "cache")
        ft(root, "prune", "--min", 1)
        assert "since `ft split`: run `ft split` again" in wrong(root, "export-tree", root / "out")
        assert sum(kept_and_split_only(root)) == 29

    def test_export_tree(self, root: Path, ft: Callable, wrong: Callable) -> None:
        assert "not split yet: run `ft split 0.1` first" in wrong(root, "export-tree", root / "out")
        ft(root, "split", 0.4, "--by", "image")
        shown = ft(root, "export-tree", root / "out").stdout
        _, sides = kept_and_split(root)
        assert sides is not None
        assert shown == (
            f"{sides.count('train')} training and {sides.count('val')} validation crops linked in {root / 'out'}\n"
        )
        for path in (root / "out").rglob("*.jpg"):
            part, person, name = path.relative_to(root / "out").parts
            assert part in ("train", "val")
            assert os.path.realpath(path) == os.path.realpath(root / "aligned" / person / name)
        assert len(list((root / "out").rglob("*.jpg"))) == 30
        assert "not empty" in wrong(root, "export-tree", root / "out")

    def test_records_say_what_was_done(self, root: Path, ft: Callable) -> None:
        ft(root, "prune", "--min", 2)
        ft(root, "split", 0.4, "--seed", 5)
        dataset = Workspace.find(root).dataset()
        prune_record, split_record = dataset.record("prune"), dataset.record("split")
        assert prune_record is not None
        assert split_record is not None
        assert prune_record.parameters == {"min": 2}
        assert prune_record.counts == {"people": 6, "photographs": 30}
        assert split_record.parameters == {"ratio": 0.4, "by": "identity", "seed": 5}
        assert split_record.inputs["kept"] == prune_record.output
        lines = json.loads(ft(root, "status", "--json").stdout)["stages"]
        assert {line["stage"]: line["state"] for line in lines}["prune"] == "fresh"
        ft(root, "prune", "--min", 1)
        lines = {line["stage"]: line for line in json.loads(ft(root, "status", "--json").stdout)["stages"]}
        assert lines["split"]["state"] == "fresh", "the same photographs are kept"
        shutil.rmtree(root / "raw" / "ann")
        lines = {line["stage"]: line for line in json.loads(ft(root, "status", "--json").stdout)["stages"]}
        assert (lines["align"]["state"], lines["prune"]["state"]) == ("stale", "fresh")
        assert "5 gone since: run `ft align` again" in lines["align"]["detail"]


def kept_and_split_only(root: Path) -> list[bool]:
    return read_index(Workspace.find(root).dataset().folder).kept.tolist()
