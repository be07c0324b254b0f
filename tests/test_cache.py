"""The cache: what is in the shards, and exactly which of them a change concerns."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from facetrain import file_table
from facetrain.datasets.cache import build as module
from facetrain.datasets.cache import crop_reader, decode, shard_file, shards
from facetrain.datasets.cache.build import CacheReport, build_cache
from facetrain.datasets.cache.decode import DecodeBatch, Decoder
from facetrain.datasets.cache.manifest import Manifest, read_manifest
from facetrain.datasets.cache.plan import Plan, in_order, make_plan
from facetrain.datasets.cache.shard_file import aligned_array
from facetrain.datasets.cache.shards import (
    DecodeSpec,
    assign_leaves,
    decoder_of,
    identity_hash,
    map_shard,
    shard_name,
    write_shard,
)
from facetrain.datasets.crop_files import read_crops
from facetrain.datasets.photo_set import PhotoSet, select_rows
from facetrain.errors import MissingStage, UserError
from facetrain.file_table import FileTable
from facetrain.files import TEMP_PREFIX
from facetrain.image_spec import ImageSpec
from facetrain.index import read_index
from facetrain.tables import is_intact, table_fingerprint
from facetrain.workspace import Workspace

pytestmark = pytest.mark.usefixtures("in_process")

ROW_BYTES = 32 * 32 * 3


def store_of(root: Path) -> Path:
    return Workspace.find(root).dataset().folder


def cache(root: Path) -> CacheReport:
    return build_cache(read_index(store_of(root)), root / "aligned", root / ".ft" / "cache", threads=2)


def manifest_of(root: Path) -> Manifest:
    manifest = read_manifest(store_of(root))
    assert manifest is not None
    return manifest


def shard_files(root: Path) -> set[str]:
    return {path.name for path in (root / ".ft" / "cache").iterdir()}


def align(root: Path, ft: Callable) -> None:
    ft(root, "align", root / "raw", root / "aligned", "--size", 32)


def cached_pixels(root: Path) -> dict[str, np.ndarray]:
    """{path of the photograph: its pixels}, read as a stranger to this package would: with pyarrow alone."""
    manifest = pa.ipc.open_file(str(store_of(root) / "cache.arrow")).read_all()
    names = json.loads(manifest.schema.metadata[b"facetrain.cache"])["shards"]
    tables = [pa.ipc.open_file(str(root / ".ft" / "cache" / name)).read_all() for name in names]
    found = {}
    for row in manifest.to_pylist():
        table = tables[row["shard"]]
        assert table["content"][row["row"]].as_py() == row["content"]
        assert table["identity"][row["row"]].as_py() == row["identity"] == row["path"].split("/")[0]
        image = table["image"].combine_chunks()
        found[row["path"]] = image.to_numpy_ndarray()[row["row"]]
    return found


def crops(root: Path) -> dict[str, np.ndarray]:
    """{path of the photograph: its crop, as Pillow decodes it}."""
    rows = read_index(store_of(root)).rows
    pairs = zip(rows["path"].to_pylist(), rows["aligned"].to_pylist(), strict=True)
    return {path: np.asarray(Image.open(root / "aligned" / crop)) for path, crop in pairs if crop}


def assert_holds(root: Path, paths: set[str]) -> None:
    pixels, expected = cached_pixels(root), crops(root)
    assert set(pixels) == paths
    for path in paths:
        np.testing.assert_array_equal(pixels[path], expected[path])


def everyone(root: Path) -> set[str]:
    return {f"{p.parent.name}/{p.name}" for p in (root / "raw").glob("*/*")}


class TestContent:
    def test_the_shards_hold_the_crops(self, root: Path) -> None:
        report = cache(root)
        assert (report.images, report.decoded, report.copied) == (30, 30, 0)
        assert (report.shards_written, report.shards_kept, report.absent, report.undecodable) == (1, 0, 0, 0)
        assert report.bytes == sum(p.stat().st_size for p in (root / ".ft" / "cache").iterdir())
        assert_holds(root, everyone(root))

    @pytest.mark.usefixtures("small_shards")
    def test_an_identity_lies_in_one_shard(self, root: Path) -> None:
        report = cache(root)
        assert report.shards_written >= 3
        assert_holds(root, everyone(root))
        table = manifest_of(root).table
        for person in ("ann", "bob", "cat", "dan", "eve", "fay"):
            rows = [row for row in table.to_pylist() if row["identity"] == person]
            assert len({row["shard"] for row in rows}) == 1
            numbers = sorted(row["row"] for row in rows)
            assert numbers == list(range(numbers[0], numbers[0] + 5)), "one behind the other"

    def test_the_schema_is_arrows_own(self, root: Path) -> None:
        cache(root)
        (path,) = (root / ".ft" / "cache").iterdir()
        table = pa.ipc.open_file(str(path)).read_all()
        image = table.schema.field("image").type
        assert image.equals(pa.fixed_shape_tensor(pa.uint8(), [32, 32, 3], dim_names=["H", "W", "C"]))
        assert table.schema.field("content").type == pa.binary(32)
        assert table.schema.field("identity").type == pa.string()
        with pa.memory_map(str(path)) as source:
            before = pa.total_allocated_bytes()
            mapped = pa.ipc.open_file(source).read_all()
            assert mapped.num_rows == 30
            assert pa.total_allocated_bytes() - before < ROW_BYTES, "uncompressed: mapped, not read"

    def test_copies_of_a_photograph(self, root: Path, ft: Callable) -> None:
        """Under one identity they share a row; under two each has its own."""
        shutil.copy(root / "raw" / "ann" / "1.jpg", root / "raw" / "ann" / "copy.jpg")
        shutil.copy(root / "raw" / "ann" / "1.jpg", root / "raw" / "bob" / "copy.jpg")
        align(root, ft)
        report = cache(root)
        assert report.images == 32
        assert_holds(root, everyone(root))
        table = manifest_of(root).table
        row = {row["path"]: (row["shard"], row["row"]) for row in table.to_pylist()}
        assert row["ann/1.jpg"] == row["ann/copy.jpg"]
        assert len(set(row.values())) == 31

    def test_two_runs_make_the_same_bytes(self, root: Path, tmp_path: Path) -> None:
        shutil.copytree(root, tmp_path / "other")
        cache(root)
        cache(tmp_path / "other")
        assert shard_files(root) == shard_files(tmp_path / "other")
        for name in shard_files(root):
            assert (root / ".ft/cache" / name).read_bytes() == (
                tmp_path / "other/.ft/cache" / name
            ).read_bytes()
        assert (store_of(root) / "cache.arrow").read_bytes() == (
            store_of(tmp_path / "other") / "cache.arrow"
        ).read_bytes()


@pytest.mark.usefixtures("small_shards")
class TestChanges:
    """After a change: (images decoded, shards written)."""

    def change(self, root: Path, ft: Callable) -> tuple[int, int]:
        before = shard_files(root)
        align(root, ft)
        report = cache(root)
        assert len(shard_files(root) - before) == report.shards_written
        assert_holds(root, everyone(root))
        return report.decoded, report.shards_written

    def test_nothing(self, root: Path, ft: Callable) -> None:
        cache(root)
        before = (store_of(root) / "cache.arrow").read_bytes()
        assert self.change(root, ft) == (0, 0)
        assert (store_of(root) / "cache.arrow").read_bytes() == before

    def test_one_photograph_is_changed_added_removed_renamed(
        self, root: Path, ft: Callable, drawn: Path
    ) -> None:
        cache(root)
        shutil.copy(drawn / "bob" / "1.jpg", root / "raw" / "ann" / "1.jpg")
        assert self.change(root, ft) == (0, 1), "it is known from elsewhere"
        Image.open(drawn / "ann" / "1.jpg").rotate(5).save(root / "raw" / "ann" / "1.jpg")
        assert self.change(root, ft) == (1, 1)
        Image.open(drawn / "ann" / "2.jpg").rotate(-5).save(root / "raw" / "ann" / "6.jpg")
        assert self.change(root, ft) == (1, 1)
        (root / "raw" / "ann" / "6.jpg").unlink()
        assert self.change(root, ft) == (0, 0), "the shard of before is still there"
        (root / "raw" / "ann" / "2.jpg").unlink()
        assert self.change(root, ft) == (0, 1)
        (root / "raw" / "ann" / "1.jpg").rename(root / "raw" / "ann" / "9.jpg")
        assert self.change(root, ft) == (0, 0), "the rows are the same"

    def test_a_photograph_goes_to_another_person(self, root: Path, ft: Callable) -> None:
        cache(root)
        leaves = manifest_of(root).table
        shard = dict(zip(leaves["identity"].to_pylist(), leaves["shard"].to_pylist(), strict=True))
        other = next(name for name in shard if shard[name] != shard["ann"])
        (root / "raw" / "ann" / "1.jpg").rename(root / "raw" / other / "of ann.jpg")
        decoded, written = self.change(root, ft)
        assert decoded == 0
        assert written >= 2

    def test_a_new_person(self, root: Path, ft: Callable, drawn: Path) -> None:
        cache(root)
        (root / "raw" / "gus").mkdir()
        Image.open(drawn / "ann" / "1.jpg").rotate(5).save(root / "raw" / "gus" / "1.jpg")
        decoded, written = self.change(root, ft)
        assert decoded == 1
        assert written <= 2

    def test_every_file_is_touched(self, root: Path, ft: Callable) -> None:
        cache(root)
        for path in [*(root / "raw").rglob("*.jpg"), *(root / "aligned").rglob("*.jpg")]:
            path.touch()
        assert self.change(root, ft) == (0, 0)

    def test_prune_and_split_cost_nothing(self, root: Path, ft: Callable) -> None:
        for path in ("ann/1.jpg", "ann/2.jpg", "bob/1.jpg"):
            (root / "raw" / path).unlink()
        align(root, ft)
        cache(root)
        before = shard_files(root)
        for command in (["prune", "--min", 5], ["split", 0.5], ["prune", "--min", 4], ["prune", "--undo"]):
            ft(root, *command)
            report = cache(root)
            assert (report.decoded, report.copied, report.shards_written) == (0, 0, 0)
        assert shard_files(root) == before

    def test_only_what_is_kept_is_decoded_and_the_rest_when_it_is_wanted(
        self, root: Path, ft: Callable
    ) -> None:
        (root / "raw" / "ann" / "1.jpg").unlink()
        align(root, ft)
        ft(root, "prune", "--min", 5)
        report = cache(root)
        assert (report.images, report.decoded) == (25, 25)
        assert_holds(root, {path for path in everyone(root) if not path.startswith("ann/")})
        ft(root, "prune", "--undo")
        report = cache(root)
        assert (report.images, report.decoded, report.shards_written) == (29, 4, 1)
        assert_holds(root, everyone(root))

    def test_a_lost_shard_is_made_again(self, root: Path) -> None:
        cache(root)
        before = {name: (root / ".ft/cache" / name).read_bytes() for name in shard_files(root)}
        lost = sorted(before)[0]
        (root / ".ft" / "cache" / lost).unlink()
        report = cache(root)
        assert report.shards_written == 1
        assert 0 < report.decoded < 30
        assert {name: (root / ".ft/cache" / name).read_bytes() for name in shard_files(root)} == before

    def test_a_lost_manifest_costs_no_decoding(self, root: Path) -> None:
        cache(root)
        (store_of(root) / "cache.arrow").unlink()
        report = cache(root)
        assert (report.decoded, report.shards_written) == (0, 0)

    def test_another_size(self, root: Path, ft: Callable) -> None:
        cache(root)
        ft(root, "align", root / "raw", root / "aligned", "--size", 48, "--redo")
        with pytest.raises(MissingStage, match="run `ft cache`"):
            photo_set(root)
        report = cache(root)
        assert (report.images, report.decoded) == (30, 30)
        assert_holds(root, everyone(root))

    def test_two_datasets_share_what_is_the_same(self, root: Path, ft: Callable) -> None:
        cache(root)
        ft(root, "align", root / "raw", root / "again", "--size", 32)
        report = build_cache(read_index(store_of(root)), root / "again", root / ".ft" / "cache", threads=1)
        assert (report.decoded, report.shards_written) == (0, 0)


class TestBadCrops:
    def bad(self, root: Path, ft: Callable) -> dict[str, str]:
        undecodable = read_index(store_of(root)).undecodable
        assert undecodable is not None
        counts = json.loads(ft(root, "status", "--json").stdout)["stages"][0]["detail"]
        if undecodable.num_rows:
            assert f"{undecodable.num_rows} with a crop that cannot be decoded" in counts
        found = dict(zip(undecodable["path"].to_pylist(), undecodable["reason"].to_pylist(), strict=True))
        with open(store_of(root) / "undecodable.csv", newline="") as file:
            assert [tuple(line) for line in csv.reader(file)] == [("path", "reason"), *sorted(found.items())]
        return found

    @pytest.mark.parametrize(
        ("kind", "wanted"),
        [
            ("text", "it is no picture, or a damaged one"),
            ("empty", "the file is empty"),
            ("truncated", "it is damaged: image file is truncated"),
            ("headless", "it is damaged: "),
            ("gif", "it is a GIF file that DALI cannot decode"),
        ],
    )
    def test_one_that_cannot_be_decoded(self, root: Path, ft: Callable, kind: str, wanted: str) -> None:
        path = root / "aligned" / "ann" / "1.jpg"
        intact = path.read_bytes()
        gif = io.BytesIO()
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(gif, "gif")
        data = {
            "text": b"no picture",
            "empty": b"",
            "truncated": intact[: len(intact) - 300],
            "headless": intact[:300],
            "gif": gif.getvalue(),
        }
        path.write_bytes(data[kind])
        report = cache(root)
        assert (report.images, report.undecodable, report.decoded) == (29, 1, 29)
        assert_holds_but(root, "ann/1.jpg")
        (reason,) = self.bad(root, ft).values()
        assert reason.startswith(wanted)
        assert "\n" not in reason
        again = cache(root)
        assert (again.decoded, again.shards_written, again.undecodable) == (0, 0, 1), "it is not tried again"

        align(root, ft)
        report = cache(root)
        assert (report.images, report.decoded, report.undecodable) == (30, 1, 0)
        assert self.bad(root, ft) == {}
        assert_holds(root, everyone(root))
        assert path.read_bytes() == intact

    def test_one_of_another_size(self, root: Path, ft: Callable) -> None:
        Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(root / "aligned" / "ann" / "1.jpg")
        report = cache(root)
        assert (report.images, report.undecodable) == (29, 1)
        assert self.bad(root, ft) == {"ann/1.jpg": "it is 30×40 pixels, not 32×32"}
        assert_holds_but(root, "ann/1.jpg")

    def test_copies_of_a_bad_one(self, root: Path, ft: Callable) -> None:
        """Each is listed, and each is forgotten for itself when it is put right."""
        paths = ["ann/1.jpg", "ann/2.jpg", "bob/1.jpg"]
        intact = (root / "aligned" / "ann" / "2.jpg").read_bytes()
        for path in paths:
            (root / "aligned" / path).write_bytes(b"no picture")
        report = cache(root)
        assert (report.images, report.undecodable) == (27, 3)
        assert sorted(self.bad(root, ft)) == paths
        (root / "aligned" / "ann" / "2.jpg").write_bytes(intact)
        report = cache(root)
        assert (report.images, report.undecodable) == (28, 2)
        assert sorted(self.bad(root, ft)) == ["ann/1.jpg", "bob/1.jpg"]
        assert_holds_but(root, "ann/1.jpg", "bob/1.jpg")

    def test_nobody_is_left(self, root: Path, ft: Callable) -> None:
        for path in (root / "aligned").rglob("*.jpg"):
            path.write_bytes(path.parent.name.encode() + path.name.encode())
        report = cache(root)
        assert (report.images, report.undecodable, report.bytes, report.shards_written) == (0, 30, 0, 0)
        assert len(self.bad(root, ft)) == 30

    def test_people_lose_photographs_that_cannot_be_decoded(self, root: Path, ft: Callable) -> None:
        (root / "aligned" / "ann" / "1.jpg").write_bytes(b"no picture")
        ft(root, "prune", "--min", 5)
        assert sum(read_index(store_of(root)).kept.tolist()) == 30
        cache(root)
        assert sum(read_index(store_of(root)).kept.tolist()) == 29
        ft(root, "prune", "--min", 5)
        assert sum(read_index(store_of(root)).kept.tolist()) == 25

    def test_crops_that_are_gone(self, root: Path, ft: Callable) -> None:
        cache(root)
        (root / "aligned" / "ann" / "1.jpg").unlink()
        report = cache(root)
        assert (report.images, report.absent, report.decoded) == (29, 1, 0)
        assert_holds_but(root, "ann/1.jpg")
        align(root, ft)
        assert cache(root).images == 30
        shutil.rmtree(root / "aligned")
        with pytest.raises(
            UserError, match=r"none of the crops that the index names is there: run `ft align` again"
        ):
            cache(root)

    def test_one_that_changes_under_our_hands(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was read is what is cached, under its own hash."""
        crop, other = root / "aligned" / "ann" / "1.jpg", root / "aligned" / "bob" / "1.jpg"

        def plan_then_change(*arguments: object) -> Plan:
            made = make_plan(*arguments)  # type: ignore[arg-type]
            crop.write_bytes(other.read_bytes())
            return made

        monkeypatch.setattr(module, "make_plan", plan_then_change)
        assert (cache(root).images, cache(root).changed) == (30, 1)
        assert_holds(root, everyone(root))

    def test_one_that_cannot_be_read(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = crop_reader.open_file

        def fails(path: str, flags: int) -> int:
            if path.endswith("ann/1.jpg"):
                raise OSError(errno.EIO, "the disk is broken", path)
            return real(path, flags)

        monkeypatch.setattr(crop_reader, "open_file", fails)
        report = cache(root)
        assert (report.images, report.absent, report.undecodable) == (29, 1, 0)
        assert_holds_but(root, "ann/1.jpg")
        monkeypatch.undo()
        assert cache(root).images == 30


class TestReading:
    """What is read, and how often."""

    @pytest.fixture
    def read(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The crops that have been read; and nothing is racy."""
        monkeypatch.setattr(file_table, "RACY_NS", 0)
        real, read = crop_reader.open_file, []

        def noted(path: str, flags: int) -> int:
            read.append("/".join(path.split("/")[-2:]))
            return real(path, flags)

        monkeypatch.setattr(crop_reader, "open_file", noted)
        return read

    @pytest.mark.usefixtures("small_shards")
    def test_every_crop_is_read_once_and_then_never(self, root: Path, read: list[str]) -> None:
        (store_of(root) / "crops.files.arrow").unlink()
        cache(root)
        assert sorted(read) == sorted(everyone(root))
        read.clear()
        assert cache(root).decoded == 0
        assert read == []
        for path in (root / "aligned" / "ann").iterdir():
            path.touch()
        report = cache(root)
        assert (report.decoded, report.shards_written) == (0, 0)
        assert sorted(read) == [f"ann/{i}.jpg" for i in range(1, 6)]

    @pytest.mark.usefixtures("small_shards")
    def test_crops_whose_content_is_known_are_read_when_their_pixels_are_wanted(
        self, root: Path, read: list[str]
    ) -> None:
        cache(root)
        read.clear()
        table = manifest_of(root).table
        lost = manifest_of(root).shards[0]
        (root / ".ft" / "cache" / lost).unlink()
        report = cache(root)
        wanted = [row["path"] for row in table.to_pylist() if row["shard"] == 0]
        assert sorted(read) == sorted(wanted)
        assert (report.decoded, report.shards_written) == (len(wanted), 1)

    def test_what_an_interrupted_run_has_read_is_not_read_again(
        self, root: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (store_of(root) / "crops.files.arrow").unlink()
        with monkeypatch.context() as patch:
            patch.setattr(shard_file, "_write_all", no_room)
            with pytest.raises(OSError, match="No space left") as error:
                cache(root)
        assert str(error.value.filename).endswith(".arrow")
        assert TEMP_PREFIX not in str(error.value.filename)
        assert shard_files(root) == set()
        table = FileTable(store_of(root) / "crops.files.arrow").table
        assert table["path"].to_pylist() == sorted(everyone(root))
        assert cache(root).decoded == 30
        assert_holds(root, everyone(root))

    def test_pruned_people_are_not_read(self, root: Path, ft: Callable, read: list[str]) -> None:
        (root / "raw" / "ann" / "1.jpg").unlink()
        align(root, ft)
        ft(root, "prune", "--min", 5)
        (store_of(root) / "crops.files.arrow").unlink()
        read.clear()
        assert cache(root).images == 25
        assert not [path for path in read if path.startswith("ann/")]

    def test_progress_adds_up(self, root: Path) -> None:
        totals, steps = [], []
        (root / "aligned" / "ann" / "1.jpg").write_bytes(b"no picture")
        build_cache(
            read_index(store_of(root)),
            root / "aligned",
            root / ".ft" / "cache",
            threads=1,
            on_start=totals.append,
            on_progress=lambda *step: steps.append(step),
        )
        assert totals == [30]
        assert sum(crops for crops, _ in steps) == 30
        assert steps[-1][1] == 30 * ROW_BYTES
        (root / "aligned" / "ann" / "2.jpg").unlink()
        assert cache(root).images == 28

    def test_crops_other_than_when_they_were_aligned_are_counted(self, root: Path) -> None:
        assert cache(root).changed == 0
        shutil.copy(root / "aligned" / "bob" / "1.jpg", root / "aligned" / "ann" / "1.jpg")
        report = cache(root)
        assert (report.changed, report.decoded, report.copied) == (1, 0, 30)
        assert_holds(root, everyone(root))


def test_crops_are_listed_as_a_walk_lists_them(tmp_path: Path) -> None:
    names = ["b/2.jpg", "a/1.jpg", "a-b/1.jpg", "a/no.jpg", "a/folder.jpg/3.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "a/no.jpg").unlink()
    asked = pa.chunked_array([[*names[:3], "a/folder.jpg"], names[3:]], pa.large_string())
    assert crop_reader.list_crops(tmp_path, asked).equals(file_table.walk(tmp_path).files)
    assert crop_reader.list_crops(tmp_path, asked.slice(0, 0)).num_rows == 0


class TestIntegrity:
    def test_a_shard_carries_its_fingerprint(self, root: Path) -> None:
        cache(root)
        (name,) = shard_files(root)
        path = root / ".ft" / "cache" / name
        assert is_intact(path)
        intact = path.read_bytes()
        for position in (3, 1000, len(intact) // 2, len(intact) - 20):
            path.write_bytes(flipped(intact, position))
            assert not is_intact(path), position

    def test_a_damaged_shard_that_no_manifest_knows_is_not_believed(self, root: Path) -> None:
        cache(root)
        (name,) = shard_files(root)
        path = root / ".ft" / "cache" / name
        intact = path.read_bytes()
        path.write_bytes(flipped(intact, len(intact) // 2))
        (store_of(root) / "cache.arrow").unlink()
        report = cache(root)
        assert (report.damaged, report.decoded, report.shards_written) == ([name], 30, 1)
        assert path.read_bytes() == intact

    def test_metadata_say_what_decoded(self, root: Path) -> None:
        cache(root)
        (name,) = shard_files(root)
        assert decoder_of(root / ".ft" / "cache" / name) == "cpu"

    def test_an_unknown_device(self, root: Path) -> None:
        with pytest.raises(UserError, match="unknown device 'gpu': choose cpu, cuda or cuda:1"):
            build_cache(read_index(store_of(root)), root / "aligned", root / "c", threads=1, device="gpu")


def no_room(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def assert_holds_but(root: Path, *bad: str) -> None:
    pixels = cached_pixels(root)
    assert set(pixels) == everyone(root) - set(bad)
    for path, image in pixels.items():
        np.testing.assert_array_equal(image, np.asarray(Image.open(root / "aligned" / path)))


class TestDecoder:
    @pytest.fixture
    def encoded(self, aligned_once: Path) -> list[np.ndarray]:
        return [np.fromfile(path, np.uint8) for path in sorted((aligned_once / "aligned").rglob("*.jpg"))]

    def test_batches_with_bad_ones_among_them(
        self, encoded: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decode, "BATCH", 8)
        wanted = np.stack([np.asarray(Image.open(io_of(data))) for data in encoded])
        for number in (0, 9, 15, 29):
            encoded[number] = np.frombuffer(b"torn", np.uint8)
        out = np.full((30, 32, 32, 3), 7, np.uint8)
        decoder = Decoder(32, 2)
        for _ in range(2):  # the second time with what the first has left of the pipeline
            failed = decoder.decode(encoded, out)
            assert sorted(failed) == [0, 9, 15, 29]
        for number in range(30):
            np.testing.assert_array_equal(out[number], 7 if number in failed else wanted[number])
        assert decoder.decode(encoded[1:9], out[1:9]) == {}
        assert decoder.decode([], out) == {}

    def test_after_a_bad_batch_the_next_is_decoded_in_one_go(
        self, encoded: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decoder, out = Decoder(32, 1), np.empty((3, 32, 32, 3), np.uint8)
        assert list(decoder.decode([encoded[0], encoded[1][:-200]], out)) == [1]
        monkeypatch.setattr(decode._Lane, "_decode_one", lambda *arguments: pytest.fail("one by one"))
        assert decoder.decode(encoded[:3], out) == {}

    @pytest.mark.parametrize("cut", [0, 3, 100, 300, 600, 610])
    def test_headers_that_would_end_the_process(self, encoded: list[np.ndarray], cut: int) -> None:
        """DALI 2.4 crashes on them in batches of more than some thirty."""
        many = [encoded[i % 30].tobytes() for i in range(128)]
        png = png_of(np.zeros((32, 32), np.uint8)).tobytes()
        many[77], many[78] = many[77][:cut], png[: cut // 10]
        out = np.empty((128, 32, 32, 3), np.uint8)
        assert sorted(Decoder(32, 2).decode(many, out)) == [77, 78]
        np.testing.assert_array_equal(out[127], np.asarray(Image.open(io_of(encoded[127 % 30]))))

    def test_pixels_go_where_they_belong_while_batches_overlap(self, encoded: list[np.ndarray]) -> None:
        wanted = np.stack([np.asarray(Image.open(io_of(data))) for data in encoded])
        decoder, out = Decoder(32, 2), np.zeros((60, 32, 32, 3), np.uint8)
        rows = np.random.default_rng(0).permutation(60)[:30]
        batches = [
            DecodeBatch(encoded[part], out, np.sort(rows)[part])
            for part in (slice(0, 7), slice(7, 7), slice(7, 30))
        ]
        for batch in batches:
            decoder.submit(batch)
        assert not all(batch.done for batch in batches)
        decoder.finish()
        assert [(batch.done, batch.failed) for batch in batches] == [(True, {})] * 3
        np.testing.assert_array_equal(out[np.sort(rows)], wanted)
        assert not out[np.setdiff1d(np.arange(60), rows)].any()

    def test_what_a_gpu_fails_at_the_cpu_decodes(
        self, encoded: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """There is a pipeline in the GPU's place that has no memory left."""
        real = decode._build

        class NoMemory:
            def feed_input(self, name: str, data: list[np.ndarray]) -> None: ...

            def schedule_run(self) -> None: ...

            def share_outputs(self) -> None:
                raise RuntimeError("CUDA allocation failed: out of memory")

        monkeypatch.setattr(decode, "free_memory", lambda device_id: 1 << 40)
        monkeypatch.setattr(
            decode, "_build", lambda size, threads, gpu: NoMemory() if gpu == 1 else real(size, threads, gpu)
        )
        decoder, out = Decoder(32, 1, "cuda:1"), np.empty((30, 32, 32, 3), np.uint8)
        before = decoder.batch_size
        torn = [*encoded[:5], np.frombuffer(b"torn", np.uint8), encoded[6][:-200], *encoded[7:]]
        batch = DecodeBatch(torn, out, np.arange(30))
        decoder.submit(batch)
        decoder.finish()
        assert decoder.batch_size == before // 2
        assert (sorted(batch.failed), batch.decoders) == ([5, 6], {"cpu"})
        np.testing.assert_array_equal(out[29], np.asarray(Image.open(io_of(encoded[29]))))

    def test_batches_for_a_gpu(self) -> None:
        sizes = [decode.gpu_batch(96, gigabytes << 30) for gigabytes in (0, 1, 4, 8, 80)]
        assert sizes == sorted(sizes)
        assert (sizes[0], sizes[-1]) == (decode.SMALLEST_GPU_BATCH, decode.LARGEST_GPU_BATCH)
        assert sizes[1] * 96 * 96 * 3 * 3 < 1 << 30, "three of its images each fit"
        assert decode.gpu_batch(1024, 8 << 30) < decode.gpu_batch(96, 8 << 30)

    def test_names_of_devices(self) -> None:
        names = ("cpu", "cuda", "cuda:0", "cuda:12")
        assert [decode.device_number(name) for name in names] == [None, 0, 0, 12]
        for name in ("gpu", "cuda:", "cuda:x", "cuda1", ""):
            with pytest.raises(UserError, match=f"unknown device '{name}'"):
                decode.device_number(name)

    def test_png_grey_and_alpha(self) -> None:
        rng = np.random.default_rng(0)
        grey = rng.integers(0, 256, (32, 32), np.uint8)
        rgba = rng.integers(0, 256, (32, 32, 4), np.uint8)
        out = np.empty((2, 32, 32, 3), np.uint8)
        assert [decode.size_in_header(png_of(image)) for image in (grey, rgba)] == [(32, 32)] * 2
        assert Decoder(32, 1).decode([png_of(grey), png_of(rgba)], out) == {}
        np.testing.assert_array_equal(out[0], np.repeat(grey[..., None], 3, 2))
        np.testing.assert_array_equal(out[1], rgba[..., :3])

    def test_codecs_do_not_write_to_the_terminal(
        self, encoded: list[np.ndarray], capfd: pytest.CaptureFixture
    ) -> None:
        out = np.empty((3, 32, 32, 3), np.uint8)
        half = encoded[0][: len(encoded[0]) // 2]
        Decoder(32, 1).decode([encoded[0], half, np.frombuffer(b"torn", np.uint8)], out)
        print("still here", flush=True)
        assert capfd.readouterr() == ("still here\n", "")

    def test_crops_from_their_files(self, aligned_once: Path) -> None:
        paths = [f"ann/{i}.jpg" for i in range(1, 6)]
        batches = list(
            read_crops(aligned_once / "aligned", paths, ImageSpec(size_px=32), threads=1, batch_size=2)
        )
        assert [len(batch) for batch in batches] == [2, 2, 1]
        wanted = [np.asarray(Image.open(aligned_once / "aligned" / path)) for path in paths]
        np.testing.assert_array_equal(np.concatenate(batches), wanted)
        with pytest.raises(UserError, match=r"ann/1\.jpg cannot be used: it is 32×32 pixels, not 48×48"):
            list(read_crops(aligned_once / "aligned", paths, ImageSpec(size_px=48), threads=1))


def io_of(data: np.ndarray) -> object:
    return io.BytesIO(data.tobytes())


def png_of(pixels: np.ndarray) -> np.ndarray:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return np.frombuffer(out.getvalue(), np.uint8)


class TestLeaves:
    PEOPLE = st.dictionaries(st.text(min_size=1, max_size=6), st.integers(1, 12), min_size=1, max_size=50)

    def leaves(self, people: dict[str, int], capacity: int) -> dict[str, int]:
        names = list(people)
        assigned = assign_leaves(identity_hash(names), np.array([people[n] for n in names]), capacity)
        return dict(zip(names, assigned.tolist(), strict=True))

    @staticmethod
    def members(leaves: dict[str, int]) -> set[frozenset[str]]:
        return {frozenset(n for n in leaves if leaves[n] == number) for number in set(leaves.values())}

    @given(PEOPLE, st.integers(1, 40))
    def test_no_leaf_is_too_full_unless_one_person_fills_it(
        self, people: dict[str, int], capacity: int
    ) -> None:
        leaves = self.leaves(people, capacity)
        assert set(leaves.values()) == set(range(max(leaves.values()) + 1))
        for group in self.members(leaves):
            assert sum(people[name] for name in group) <= capacity or len(group) == 1

    @given(PEOPLE, st.integers(1, 40), st.randoms(use_true_random=False))
    def test_the_order_of_people_does_not_matter(
        self, people: dict[str, int], capacity: int, random: object
    ) -> None:
        names = list(people)
        random.shuffle(names)  # type: ignore[attr-defined]
        assert self.leaves({name: people[name] for name in names}, capacity) == self.leaves(people, capacity)

    @given(PEOPLE, st.text(min_size=1, max_size=6), st.integers(1, 12), st.integers(1, 40))
    def test_a_new_person_concerns_one_leaf(
        self, people: dict[str, int], name: str, count: int, capacity: int
    ) -> None:
        people.pop(name, None)
        if not people:
            return
        before = self.members(self.leaves(people, capacity))
        after = self.members(self.leaves(people | {name: count}, capacity))
        changed = before - after
        assert len(changed) <= 1, "others are as they were"
        new = after - before
        assert frozenset().union(*new) == frozenset().union(*changed) | {name}, "one leaf, perhaps divided"

    def test_equal_hashes_stay_together(self) -> None:
        leaf = assign_leaves(np.array([5, 5, 9], np.uint64), np.array([10, 10, 10]), 10)
        assert leaf[0] == leaf[1] != leaf[2]

    def test_leaves_are_filled_well(self) -> None:
        people = {f"person {i}": 20 for i in range(5000)}
        groups = self.members(self.leaves(people, 1000))
        assert len(groups) < 2.2 * 100, "half full at least, on the whole"


class TestShards:
    SPEC = DecodeSpec(8, "RGB")

    def test_names_say_what_is_inside(self) -> None:
        def name(
            spec: DecodeSpec = self.SPEC,
            people: tuple = ("a", "b"),
            counts: tuple = (1, 2),
            data: bytes = b"x",
        ) -> str:
            return shard_name(spec, list(people), list(counts), data)

        others = [
            name(),
            name(spec=DecodeSpec(9, "RGB")),
            name(spec=DecodeSpec(8, "BGR")),
            name(spec=DecodeSpec(8, "RGB", version=3)),
            name(people=("a", "c")),
            name(people=("ab", "")),
            name(counts=(2, 1)),
            name(data=b"y"),
        ]
        assert len(set(others)) == len(others)
        assert name() == name()

    def test_several_record_batches(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As in a person of more than 2³¹ values."""
        monkeypatch.setattr(shards, "MAX_BATCH_VALUES", 5 * self.SPEC.row_bytes)
        images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
        write_shard(
            tmp_path / "a.arrow", self.SPEC, images, [bytes([i] * 32) for i in range(12)], ["ann"] * 12
        )
        views = map_shard(tmp_path / "a.arrow")
        assert [len(view) for view in views] == [5, 5, 2]
        np.testing.assert_array_equal(np.concatenate(views), images)
        assert not any(view.flags.writeable for view in views)
        table = pa.ipc.open_file(str(tmp_path / "a.arrow")).read_all()
        assert table["content"].to_pylist() == [bytes([i] * 32) for i in range(12)]

    def test_direct_and_ordinary_writing_make_the_same_bytes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec, n = DecodeSpec(64, "RGB"), 101
        images = aligned_array((n, 64, 64, 3))
        images[:] = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
        assert images.nbytes > shard_file.PIXELS

        def write(name: str, pixels: np.ndarray) -> bytes:
            write_shard(tmp_path / name, spec, pixels, [bytes([i] * 32) for i in range(n)], ["ann"] * n)
            assert is_intact(tmp_path / name)
            np.testing.assert_array_equal(np.concatenate(map_shard(tmp_path / name)), images)
            return (tmp_path / name).read_bytes()

        direct = write("direct", images)
        assert write("unaligned", aligned_array((n + 1, 64, 64, 3))[1:].copy() * 0 + images) == direct
        real = shard_file._write_all

        def refuse(file: int, view: memoryview, at: int) -> None:
            if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "not here")
            real(file, view, at)

        monkeypatch.setattr(shard_file, "_write_all", refuse)
        assert write("refused", images) == direct
        monkeypatch.setattr(shard_file, "_open_direct", lambda path: None)
        assert write("unknown", images) == direct

    def test_a_row_that_fills_a_shard(self) -> None:
        assert DecodeSpec(1024, "RGB").rows_per_shard == 21
        assert DecodeSpec(8192, "RGB").rows_per_shard == 1


def photo_set(root: Path, part: str | None = None) -> PhotoSet:
    index = read_index(store_of(root))
    return PhotoSet(index, manifest_of(root), root / ".ft" / "cache", select_rows(index, part))


class TestDamagedPixels:
    """A flipped bit must not be copied into a new shard, whose fingerprint would vouch for it."""

    def flip(self, root: Path, person: str) -> str:
        """Flip a bit of the person's last photograph's pixels; the shard's name."""
        manifest = manifest_of(root)
        row = max(
            (row for row in manifest.table.to_pylist() if row["identity"] == person),
            key=lambda row: row["row"],
        )
        path = root / ".ft" / "cache" / manifest.shards[row["shard"]]
        pixels = map_shard(path)[0][row["row"]].tobytes()
        data = bytearray(path.read_bytes())
        data[data.find(pixels) + 1000] ^= 8
        path.write_bytes(data)
        return path.name

    def test_of_the_shard_that_is_made_anew(self, root: Path, ft: Callable, drawn: Path) -> None:
        cache(root)
        name = self.flip(root, "bob")
        Image.open(drawn / "ann" / "1.jpg").rotate(5).save(root / "raw" / "ann" / "1.jpg")
        align(root, ft)
        report = cache(root)
        assert report.damaged == [name]
        assert (report.decoded, report.copied) == (30, 0)
        assert_holds(root, everyone(root))

    @pytest.mark.usefixtures("small_shards")
    def test_of_a_shard_that_stays_in_use(self, root: Path, ft: Callable) -> None:
        """It is believed for its own people, until someone else's photograph is wanted from it."""
        cache(root)
        name = self.flip(root, "ann")
        table = manifest_of(root).table
        shard = dict(zip(table["identity"].to_pylist(), table["shard"].to_pylist(), strict=True))
        other = next(person for person in shard if shard[person] != shard["ann"])
        shutil.copy(root / "raw" / "ann" / "1.jpg", root / "raw" / other / "of ann.jpg")
        align(root, ft)
        report = cache(root)
        assert report.damaged == [name]
        assert_holds(root, everyone(root))
        assert all(is_intact(path) for path in (root / ".ft" / "cache").iterdir())


@pytest.mark.usefixtures("small_shards")
class TestPhotoSet:
    def test_gather_gives_the_crops(self, root: Path, ft: Callable) -> None:
        shutil.copy(root / "raw" / "ann" / "1.jpg", root / "raw" / "bob" / "copy.jpg")
        align(root, ft)
        cache(root)
        photos = photo_set(root)
        index = read_index(store_of(root))
        paths = index.rows["path"].take(pa.array(photos.rows)).to_pylist()
        wanted = crops(root)
        assert (len(photos), photos.absent, photos.image_shape) == (31, 0, (32, 32, 3))
        rng = np.random.default_rng(0)
        for positions in (
            np.arange(31),
            rng.permutation(31),
            rng.integers(0, 31, 100),
            np.zeros(0, np.int64),
        ):
            images = photos.gather(positions)
            assert (images.dtype, images.shape) == (np.uint8, (len(positions), 32, 32, 3))
            for image, position in zip(images, positions, strict=True):
                np.testing.assert_array_equal(image, wanted[paths[position]])

    def test_labels_are_dense_and_in_the_order_of_names(self, root: Path, ft: Callable) -> None:
        cache(root)
        ft(root, "split", 0.5, "--seed", 1)
        index = read_index(store_of(root))
        assert index.split is not None
        both = {}
        for part in ("train", "val"):
            photos = photo_set(root, part)
            names = index.rows["identity"].take(pa.array(photos.rows)).to_pylist()
            assert photos.identities == sorted(set(names))
            assert [photos.identities[label] for label in photos.labels] == names
            assert photos.labels.dtype == photos.rows.dtype == np.int64
            assert pc.unique(index.split.take(pa.array(photos.rows))).to_pylist() == [part]
            both[part] = set(names)
        assert not both["train"] & both["val"]
        assert both["train"] | both["val"] == {"ann", "bob", "cat", "dan", "eve", "fay"}

    def test_what_has_no_pixels_is_counted(self, root: Path, ft: Callable) -> None:
        (root / "aligned" / "ann" / "1.jpg").unlink()
        cache(root)
        photos = photo_set(root)
        assert (len(photos), photos.absent) == (29, 1)
        paths = read_index(store_of(root)).rows["path"].take(pa.array(photos.rows)).to_pylist()
        assert "ann/1.jpg" not in paths
        np.testing.assert_array_equal(photos.gather(np.array([0]))[0], crops_of(root, paths[0]))

    def test_nothing_to_select(self, root: Path, ft: Callable) -> None:
        with pytest.raises(MissingStage, match=r"run `ft split 0\.1` first"):
            select_rows(read_index(store_of(root)), "train")
        ft(root, "split", 0.5)
        store = store_of(root)
        index = read_index(store)
        index.write_column("kept", pa.array([False] * 30))
        for part in ("train", "val", None):
            with pytest.raises(UserError, match=f"no photographs are left for {part or 'use'}"):
                select_rows(read_index(store), part)


def crops_of(root: Path, path: str) -> np.ndarray:
    return np.asarray(Image.open(root / "aligned" / path))


class TestCommand:
    def test_what_it_says(self, root: Path, ft: Callable) -> None:
        first = ft(root, "cache", "-j", 1).stdout
        assert first.startswith("30 crops in 1 shard, 0 MB: 30 decoded, 0 copied, 1 shard written; ")
        assert ft(root, "cache").stdout.startswith(
            "30 crops in 1 shard, 0 MB: 0 decoded, 0 copied, 0 shards written; "
        )
        record = Workspace.find(root).dataset().record("cache")
        assert record is not None
        assert record.counts["images"] == 30
        assert record.output == table_fingerprint(store_of(root) / "cache.arrow")

    def test_status(self, root: Path, ft: Callable, drawn: Path) -> None:
        def line() -> dict:
            lines = json.loads(ft(root, "status", "--json").stdout)["stages"]
            return next(line for line in lines if line["stage"] == "cache")

        assert line()["state"] == "missing"
        ft(root, "cache")
        assert line() == {"stage": "cache", "state": "fresh", "detail": "30 crops in 1 shard, 0 MB"}
        (root / ".ft" / "cache" / next(iter(shard_files(root)))).unlink()
        assert line()["state"] == "stale"
        assert line()["detail"].startswith("1 shards are gone: `ft cache` makes them again")
        ft(root, "cache")
        assert line()["state"] == "fresh"
        shutil.copy(drawn / "ann" / "1.jpg", root / "raw" / "bob" / "6.jpg")
        align(root, ft)
        assert line()["state"] == "stale"
        assert line()["detail"].startswith("the photographs have changed: `ft cache` brings it up to date")

    def test_leftovers_of_killed_commands_are_swept(self, root: Path, ft: Callable) -> None:
        ft(root, "cache")
        left = [
            root / ".ft" / "cache" / f"{TEMP_PREFIX}{2**22 + 5}-abc",
            store_of(root) / f"{TEMP_PREFIX}{2**22 + 5}-abc",
            store_of(root) / "stages" / f"{TEMP_PREFIX}{2**22 + 5}-abc",
        ]
        for path in left:
            path.write_bytes(b"half a shard")
        ft(root, "cache")
        assert not any(path.exists() for path in left)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=20))
def test_rows_of_a_leaf_are_numbered_by_content(rows: list) -> None:
    """Copies of a photograph share a row of the shard; others have their own; no row is left out."""
    n = len(rows)
    person, number = np.array(rows).T
    plan = Plan(
        row=np.arange(n),
        file=np.arange(n),
        person=person,
        kept=np.ones(n, bool),
        content=np.repeat(number[:, None], 32, 1).astype(np.uint8),
        known=np.ones(n, bool),
        people=["a", "b", "c"],
        hashes=identity_hash(["a", "b", "c"]),
        starts=np.array([0, n]),
        absent=0,
    )
    leaf = in_order(plan, DecodeSpec(8, "RGB"), 0, np.arange(n))
    assert {(rows[row], shard_row) for row, shard_row in zip(leaf.rows, leaf.shard_row, strict=True)} == {
        (row, number) for number, row in enumerate(sorted(set(rows)))
    }
    assert [rows[row] for row in leaf.first] == sorted(set(rows))
    backwards = in_order(plan, DecodeSpec(8, "RGB"), 0, np.arange(n)[::-1])
    assert backwards.name == leaf.name
