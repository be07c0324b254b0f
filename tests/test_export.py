"""`ft export --parquet`: what Hugging Face's datasets makes of it, the files themselves, and what is refused."""

from __future__ import annotations

import errno
import io
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from facetrain.datasets.cache.manifest import read_manifest
from facetrain.datasets.export_parquet import dataset_card
from facetrain.datasets.photo_set import PhotoSet
from facetrain.image_spec import ImageSpec
from facetrain.index import Index, read_index
from facetrain.workspace import Workspace, locked

ROOT = Path(__file__).resolve().parent.parent
MODULE = "facetrain.datasets.export_parquet"


def index_of(root: Path) -> Index:
    return read_index(Workspace.find(root).dataset().folder)


def crops_of(root: Path, mask: np.ndarray) -> list[tuple[str, str, bytes]]:
    """(identity, path, the crop's file) of these rows, in order."""
    index = index_of(root)
    rows = index.rows.filter(pa.array(mask)).select(["identity", "path", "aligned"]).to_pylist()
    return [(row["identity"], row["path"], (root / "aligned" / row["aligned"]).read_bytes()) for row in rows]


def read(out: Path, split: str) -> pa.Table:
    files = sorted((out / "data").glob(f"{split}-*"))
    return pa.concat_tables(pq.read_table(file) for file in files)


def rows_in(table: pa.Table) -> list[tuple[str, str, bytes]]:
    return [(row["identity"], row["path"], row["image"]["bytes"]) for row in table.to_pylist()]


def names_in(schema: pa.Schema) -> list[str]:
    return json.loads(schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file beneath a folder."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """One crop at a time, about four in a row group, about eight in a file."""
    monkeypatch.setattr(f"{MODULE}.ROW_GROUP_BYTES", 6_000)
    monkeypatch.setattr(f"{MODULE}.FILE_BYTES", 14_000)


@pytest.fixture(scope="module")
def load_dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Hugging Face's function, offline; what it caches goes into a temporary folder."""
    import datasets

    assert datasets.config.HF_HUB_OFFLINE, "as conftest.py has it"
    datasets.disable_progress_bars()
    cache = str(tmp_path_factory.mktemp("huggingface"))
    return lambda out, **options: datasets.load_dataset(str(out), cache_dir=cache, **options)


class TestHuggingFace:
    def test_opens_it_and_shows_the_crops(
        self, root: Path, out: Path, ft: Callable[..., Any], load_dataset: Callable[..., Any]
    ) -> None:
        ft(root, "export", "--parquet", out)
        opened = load_dataset(out)
        assert list(opened) == ["train"]
        train = opened["train"]
        expected = crops_of(root, index_of(root).kept)
        assert len(train) == len(expected) > 20
        people = sorted({identity for identity, _, _ in expected})
        assert train.features["label"].names == people
        for row, (identity, path, data) in zip(train, expected, strict=True):
            assert (row["identity"], row["path"]) == (identity, path)
            assert row["label"] == people.index(identity)
            assert isinstance(row["image"], Image.Image)
            np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(Image.open(io.BytesIO(data))))

    def test_splits(
        self, root: Path, out: Path, ft: Callable[..., Any], load_dataset: Callable[..., Any]
    ) -> None:
        ft(root, "split", 0.3)
        ft(root, "export", "--parquet", out)
        opened = load_dataset(out)
        assert list(opened) == ["train", "validation"]
        index = index_of(root)
        for split, part in (("train", "train"), ("validation", "val")):
            expected = crops_of(root, index.part(part))
            found = list(zip(opened[split]["identity"], opened[split]["path"], strict=True))
            assert found == [(identity, path) for identity, path, _ in expected]
        both = [opened[split].features["label"].names for split in opened]
        assert both[0] == both[1] == ["ann", "bob", "cat", "dan", "eve", "fay"]

    def test_pixel_for_pixel_what_the_cache_holds(
        self, root: Path, out: Path, ft: Callable[..., Any], load_dataset: Callable[..., Any]
    ) -> None:
        ft(root, "cache", "-j", 1)
        ft(root, "export", "--parquet", out)
        dataset = Workspace.find(root).dataset()
        index, manifest = index_of(root), read_manifest(dataset.folder)
        assert manifest is not None
        photos = PhotoSet(index, manifest, root / ".ft" / "cache", np.flatnonzero(index.kept))
        train = load_dataset(out)["train"]
        assert len(train) == len(photos)
        exported = np.stack([np.asarray(image) for image in train["image"]])
        np.testing.assert_array_equal(exported, photos.gather(np.arange(len(photos))))
        np.testing.assert_array_equal(train["label"], photos.labels)

    def test_streams_many_files(
        self,
        root: Path,
        out: Path,
        small_files: None,
        ft: Callable[..., Any],
        load_dataset: Callable[..., Any],
    ) -> None:
        ft(root, "export", "--parquet", out)
        assert len(tree(out / "data")) > 2
        rows = list(load_dataset(out, streaming=True)["train"])
        expected = crops_of(root, index_of(root).kept)
        assert [row["path"] for row in rows] == [path for _, path, _ in expected]
        assert rows[0]["image"].size == (32, 32)

    def test_the_code_of_the_page_runs(
        self,
        root: Path,
        ft: Callable[..., Any],
        load_dataset: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture,
        drawn: Path,
        tmp_path: Path,
        in_process: None,
    ) -> None:
        ft(tmp_path, "align", drawn, tmp_path / "faces")
        ft(tmp_path, "split", 0.3)
        monkeypatch.chdir(tmp_path)
        ft(tmp_path, "export", "--parquet", "faces-parquet")
        page = (ROOT / "docs" / "how-to" / "export.md").read_text()
        code, printed, listed = (
            re.findall(pattern, page, flags=re.MULTILINE | re.DOTALL)
            for pattern in (
                r"^```python\n(.*?)^```$",
                r"^```text\n(\(.*?)^```$",
                r"^```text\n(faces.*?)^```$",
            )
        )
        assert sorted(tree(tmp_path / "faces-parquet")) == [
            line.removeprefix("faces-parquet/") for line in listed[0].splitlines()
        ]
        capsys.readouterr()
        exec(compile("".join(code), "export.md", "exec"), {})
        assert re.fullmatch(r"\(96, 96\) \w{3}\n", capsys.readouterr().out)
        assert re.fullmatch(r"\(96, 96\) \w{3}\n", printed[0])


class TestFiles:
    def test_names_metadata_and_card(self, root: Path, out: Path, ft: Callable[..., Any]) -> None:
        ft(root, "split", 0.3)
        said = ft(root, "export", "--parquet", out).stdout
        assert list(tree(out)) == [
            "README.md",
            "data/train-00000-of-00001.parquet",
            "data/validation-00000-of-00001.parquet",
        ]
        index = index_of(root)
        card = yaml.safe_load((out / "README.md").read_text().split("---\n")[1])
        assert [entry["split"] for entry in card["configs"][0]["data_files"]] == ["train", "validation"]
        for split, part in (("train", "train"), ("validation", "val")):
            table = read(out, split)
            assert rows_in(table) == crops_of(root, index.part(part))
            assert ImageSpec.from_json(table.schema.metadata[b"facetrain.image_spec"]) == index.spec
            file = out / "data" / f"{split}-00000-of-00001.parquet"
            assert file.stat().st_size >= sum(len(data) for _, _, data in rows_in(table))
            (sizes,) = [entry for entry in card["dataset_info"]["splits"] if entry["name"] == split]
            assert sizes["num_examples"] == table.num_rows
            assert f"{split}: {table.num_rows} crops of {len(table['identity'].unique())} people" in said
        assert card["dataset_info"]["download_size"] == sum(
            p.stat().st_size for p in out.glob("data/*.parquet")
        )
        assert card["size_categories"] == ["n<1K"]

    def test_labels_are_dense_over_those_who_are_kept(
        self, root: Path, out: Path, ft: Callable[..., Any]
    ) -> None:
        index = index_of(root)
        kept = ~np.isin(index.rows["identity"].to_pylist(), ["ann", "dan"])
        index.write_column("kept", pa.array(kept))
        ft(root, "export", "--parquet", out)
        table = read(out, "train")
        assert rows_in(table) == crops_of(root, index_of(root).kept)
        assert names_in(table.schema) == ["bob", "cat", "eve", "fay"]
        assert [names_in(table.schema)[label] for label in table["label"].to_pylist()] == table[
            "identity"
        ].to_pylist()

    def test_a_split_of_nobody_is_left_out(self, root: Path, out: Path, ft: Callable[..., Any]) -> None:
        index = index_of(root)
        column = pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(index.rows.num_rows, np.int8)), ["train", "val"]
        )
        index.write_column("split", column)
        ft(root, "export", "--parquet", out)
        assert [path.name for path in (out / "data").iterdir()] == ["train-00000-of-00001.parquet"]

    def test_files_and_row_groups_have_a_largest_size(
        self, root: Path, out: Path, small_files: None, ft: Callable[..., Any]
    ) -> None:
        ft(root, "export", "--parquet", out)
        files = sorted((out / "data").iterdir())
        count = len(files)
        assert count > 2
        assert [file.name for file in files] == [
            f"train-{n:05d}-of-{count:05d}.parquet" for n in range(count)
        ]
        assert rows_in(read(out, "train")) == crops_of(root, index_of(root).kept)
        groups = []
        for file in files:
            facts = pq.read_metadata(file)
            assert names_in(pq.read_schema(file)) == ["ann", "bob", "cat", "dan", "eve", "fay"]
            sizes = [facts.row_group(n).total_byte_size for n in range(facts.num_row_groups)]
            assert sum(sizes) <= 14_000
            groups += sizes
            for column in range(facts.num_columns):
                assert facts.row_group(0).column(column).has_offset_index
        assert max(groups) <= 6_000
        assert len(groups) > count

    def test_png_crops(
        self, one_person: Path, tmp_path: Path, out: Path, in_process: None, ft: Callable[..., Any]
    ) -> None:
        ft(tmp_path, "align", one_person, tmp_path / "aligned", "--format", "png", "--size", 32)
        ft(tmp_path, "export", "--parquet", out)
        data = [data for _, _, data in rows_in(read(out, "train"))]
        assert data == [data for _, _, data in crops_of(tmp_path, index_of(tmp_path).kept)]
        assert {Image.open(io.BytesIO(item)).format for item in data} == {"PNG"}

    def test_the_same_dataset_gives_the_same_bytes(
        self, root: Path, out: Path, small_files: None, ft: Callable[..., Any]
    ) -> None:
        ft(root, "export", "--parquet", out / "1")
        (out / "2" / "1").mkdir(parents=True)  # an empty folder will do
        ft(root, "export", "--parquet", out / "2" / "1", root / "aligned", "-j", 3)
        assert tree(out / "1") == tree(out / "2" / "1")

    def test_polars_and_duckdb(
        self, root: Path, out: Path, small_files: None, ft: Callable[..., Any]
    ) -> None:
        ft(root, "export", "--parquet", out)
        expected = crops_of(root, index_of(root).kept)
        frame = pl.read_parquet(out / "data" / "train-*.parquet")
        data = frame["image"].struct.field("bytes").to_list()
        assert list(zip(frame["identity"], frame["path"], data, strict=True)) == expected
        with duckdb.connect() as connection:
            query = f"SELECT identity, path, image.bytes FROM '{out}/data/*.parquet' ORDER BY path"
            assert connection.sql(query).fetchall() == expected

    def test_imported_again_it_is_the_same_crops(
        self, root: Path, out: Path, tmp_path: Path, small_files: None, ft: Callable[..., Any]
    ) -> None:
        ft(root, "split", 0.3)
        ft(root, "export", "--parquet", out)
        ft(root, "import", out, tmp_path / "back")
        expected = crops_of(root, index_of(root).kept)
        found = [(path.parent.name, path.read_bytes()) for path in (tmp_path / "back").glob("*/*.jpg")]
        assert sorted(found) == sorted((identity, data) for identity, _, data in expected)

    def test_the_cards_front_is_yaml_whatever_the_name(self) -> None:
        card = dataset_card('a: "b" #é', {}, 0, ImageSpec())
        assert yaml.safe_load(card.split("---\n")[1])["pretty_name"] == 'a: "b" #é'

    @pytest.mark.parametrize(
        ("crops", "category"),
        [(999, "n<1K"), (1000, "1K<n<10K"), (2_500_000, "1M<n<10M"), (40_000_000, "10M<n<100M")],
    )
    def test_size_categories(self, crops: int, category: str) -> None:
        from facetrain.datasets.export_parquet import SplitReport

        card = dataset_card("faces", {"train": SplitReport(crops, 1, 1, 1, 1)}, 1, ImageSpec())
        assert yaml.safe_load(card.split("---\n")[1])["size_categories"] == [category]


class TestCropsThatChanged:
    def test_counted_and_nothing_exported(
        self,
        root: Path,
        out: Path,
        small_files: None,
        in_process: None,
        ft: Callable[..., Any],
        wrong: Callable[..., str],
    ) -> None:
        crops = sorted((root / "aligned").glob("*/*.jpg"))
        crops[3].unlink()
        data = bytearray(crops[-1].read_bytes())
        data[len(data) // 2] ^= 1
        crops[-1].write_bytes(data)
        first = crops[3].relative_to(root / "aligned")
        assert wrong(root, "export", "--parquet", out) == (
            f"Error: 2 crops have changed or gone since `ft align`, such as {first}; nothing was exported: "
            "run `ft align` again first\n"
        )
        assert list(out.parent.iterdir()) == [root]
        ft(root, "align", root / "raw", root / "aligned", "--size", 32)
        ft(root, "export", "--parquet", out)
        assert rows_in(read(out, "train")) == crops_of(root, index_of(root).kept)

    def test_a_person_who_became_a_file(self, root: Path, out: Path, wrong: Callable[..., str]) -> None:
        shutil.rmtree(root / "aligned" / "eve")
        (root / "aligned" / "eve").write_text("")
        assert "crops have changed or gone" in wrong(root, "export", "--parquet", out)

    def test_of_an_indexed_tree(
        self,
        root: Path,
        tmp_path: Path,
        out: Path,
        in_process: None,
        ft: Callable[..., Any],
        wrong: Callable[..., str],
    ) -> None:
        shutil.copytree(root / "aligned", tmp_path / "crops")
        ft(tmp_path, "index", tmp_path / "crops")
        next((tmp_path / "crops").glob("*/*.jpg")).unlink()
        assert "1 crop has changed or gone since `ft index`" in wrong(tmp_path, "export", "--parquet", out)

    def test_pruned_crops_are_not_looked_at(self, root: Path, out: Path, ft: Callable[..., Any]) -> None:
        index = index_of(root)
        index.write_column("kept", pa.array(~np.isin(index.rows["identity"].to_pylist(), ["ann"])))
        shutil.rmtree(root / "aligned" / "ann")
        ft(root, "export", "--parquet", out)
        assert "ann" not in read(out, "train")["identity"].to_pylist()


class TestInterrupted:
    def test_killed_it_leaves_nothing_that_looks_complete_and_can_be_run_again(
        self, root: Path, out: Path, ft: Callable[..., Any]
    ) -> None:
        kill = f"""
import itertools, os, signal, sys
from facetrain.datasets import export_parquet
from facetrain.cli import main

export_parquet.ROW_GROUP_BYTES, export_parquet.FILE_BYTES = 6_000, 14_000
read, calls = export_parquet._Crops._read, itertools.count()
def and_die(self, rows, threads):
    if next(calls) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, rows, threads)
export_parquet._Crops._read = and_die
main(["-C", {str(root)!r}, "export", "--parquet", {str(out)!r}])
"""
        done = subprocess.run([sys.executable, "-c", kill], capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not out.exists()
        left = out.parent / ".out.ft-export"
        assert any((left / "data").iterdir())
        ft(root, "export", "--parquet", out)
        assert rows_in(read(out, "train")) == crops_of(root, index_of(root).kept)
        assert sorted(path.name for path in out.parent.iterdir()) == ["out", "root"]
        assert sorted(path.name for path in out.iterdir()) == ["README.md", "data"]

    @pytest.mark.parametrize(
        ("error", "code", "said"),
        [
            (
                OSError(errno.ENOSPC, "No space left on device"),
                1,
                "No space left on device: make room, and run the same command again to go on",
            ),
            (KeyboardInterrupt(), 130, "interrupted"),
        ],
        ids=["disk full", "Ctrl-C"],
    )
    @pytest.mark.parametrize("at", [0, 3])
    def test_stopped_it_leaves_nothing(
        self,
        error: BaseException,
        code: int,
        said: str,
        at: int,
        root: Path,
        out: Path,
        small_files: None,
        ft: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        write, calls = pq.ParquetWriter.write_table, itertools.count()

        def fail(self: pq.ParquetWriter, *arguments: object) -> None:
            if next(calls) == at:
                raise error
            write(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(pq.ParquetWriter, "write_table", fail)
            assert said in ft(root, "export", "--parquet", out, code=code).stderr
        assert list(out.parent.iterdir()) == [root]
        ft(root, "export", "--parquet", out)
        assert rows_in(read(out, "train")) == crops_of(root, index_of(root).kept)

    def test_two_at_once(
        self, root: Path, out: Path, ft: Callable[..., Any], wrong: Callable[..., str]
    ) -> None:
        folder = out.parent / ".out.ft-export"
        folder.mkdir()
        with locked(folder / "lock", "out"):
            said = wrong(root, "export", "--parquet", out)
            assert said == f"Error: another command is exporting to {out}: wait for it to end\n"
            assert folder.is_dir()
        ft(root, "export", "--parquet", out)


class TestRefused:
    def test_no_format(self, root: Path, out: Path, wrong: Callable[..., str]) -> None:
        assert wrong(root, "export", out) == (
            f"Error: in which format? `ft export --parquet {out}`, --onnx, --torchscript or --safetensors\n"
        )

    def test_nothing_aligned(self, tmp_path: Path, out: Path, wrong: Callable[..., str]) -> None:
        (tmp_path / "new").mkdir()
        assert "run `ft align RAW ALIGNED` first" in wrong(tmp_path / "new", "export", "--parquet", out)

    def test_not_empty(self, root: Path, out: Path, wrong: Callable[..., str]) -> None:
        out.mkdir()
        (out / "mine").write_text("mine")
        assert "is there already and not empty" in wrong(root, "export", "--parquet", out)
        assert tree(out.parent / "out") == {"mine": b"mine"}

    def test_a_file(self, root: Path, out: Path, wrong: Callable[..., str]) -> None:
        out.write_text("mine")
        assert "is there already and not empty" in wrong(root, "export", "--parquet", out)
        assert out.read_text() == "mine"

    @pytest.mark.parametrize("folder", [".ft", "aligned", "raw"])
    def test_among_what_is_not_to_be_written_to(
        self, root: Path, folder: str, wrong: Callable[..., str]
    ) -> None:
        before = tree(root)
        said = wrong(root, "export", "--parquet", root / folder / "out")
        assert re.search(r"/out lies in the .*folder.*: name a folder outside of it", said)
        assert tree(root) == before

    def test_a_mount_point(
        self, root: Path, out: Path, wrong: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out.mkdir()
        monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == out)
        assert "is a mount point: name a new folder in it" in wrong(root, "export", "--parquet", out)

    def test_nobody_left(self, root: Path, out: Path, wrong: Callable[..., str]) -> None:
        index = index_of(root)
        index.write_column("kept", pa.array(np.zeros(index.rows.num_rows, bool)))
        assert "no photographs are left to export" in wrong(root, "export", "--parquet", out)

    def test_a_split_that_is_out_of_date(
        self, root: Path, out: Path, in_process: None, ft: Callable[..., Any], wrong: Callable[..., str]
    ) -> None:
        ft(root, "split", 0.3)
        (root / "raw" / "ann" / "1.jpg").unlink()
        ft(root, "align", root / "raw", root / "aligned", "--size", 32)
        assert "run `ft split` again" in wrong(root, "export", "--parquet", out)

    def test_an_interrupted_align(self, root: Path, out: Path, wrong: Callable[..., str]) -> None:
        (Workspace.find(root).dataset().folder / "journal.bin").write_bytes(b"")
        assert "was interrupted: run `ft align` again" in wrong(root, "export", "--parquet", out)
