"""The cache's shards in other programs: pyarrow, polars and DuckDB see the pixels that Pillow decodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pytest
from blake3 import blake3
from PIL import Image

from facetrain.index import read_index
from facetrain.workspace import Workspace

SIZE_PX = 32
TENSOR = pa.fixed_shape_tensor(pa.uint8(), [SIZE_PX, SIZE_PX, 3], dim_names=["H", "W", "C"])

Rows = dict[bytes, tuple[str, np.ndarray]]  # content → (identity, uint8 [H, W, C])


@pytest.fixture(params=["one shard", "several shards of several batches"])
def shards(
    request: pytest.FixtureRequest, root: Path, ft: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> list[Path]:
    """The shards of the workspace ``root``."""
    if request.param != "one shard":
        monkeypatch.setattr("facetrain.datasets.cache.shards.SHARD_BYTES", 12 * SIZE_PX * SIZE_PX * 3)
        monkeypatch.setattr("facetrain.datasets.cache.shards.MAX_BATCH_VALUES", 4 * SIZE_PX * SIZE_PX * 3)
    ft(root, "cache", "-j", 1)
    found = sorted((root / ".ft" / "cache").glob("*.arrow"))
    assert len(found) == 1 if request.param == "one shard" else len(found) > 1
    batches = [pa.ipc.open_file(pa.memory_map(str(shard))).num_record_batches for shard in found]
    assert max(batches) == 1 if request.param == "one shard" else max(batches) > 1
    return found


@pytest.fixture
def expected(root: Path) -> Rows:
    """Every crop, decoded by Pillow from its file."""
    dataset = Workspace.find(root).dataset()
    index = read_index(dataset.folder)
    rows = index.rows.filter(pa.array(index.kept)).select(["aligned", "identity"]).to_pylist()
    assert len(rows) > 20
    found = {}
    for row in rows:
        path = dataset.aligned / row["aligned"]
        found[blake3(path.read_bytes()).digest()] = (row["identity"], np.asarray(Image.open(path)))
    return found


def assert_same(contents: list[bytes], identities: list[str], images: np.ndarray, expected: Rows) -> None:
    assert images.dtype == np.uint8
    assert images.shape == (len(expected), SIZE_PX, SIZE_PX, 3)
    assert sorted(contents) == sorted(expected)
    for content, identity, image in zip(contents, identities, images, strict=True):
        assert identity == expected[content][0]
        np.testing.assert_array_equal(image, expected[content][1])


def test_pyarrow_file_by_file(shards: list[Path], expected: Rows) -> None:
    table = pa.concat_tables(pa.ipc.open_file(pa.memory_map(str(shard))).read_all() for shard in shards)
    assert table.schema.field("image").type == TENSOR
    images = np.concatenate([chunk.to_numpy_ndarray() for chunk in table["image"].chunks])
    assert_same(table["content"].to_pylist(), table["identity"].to_pylist(), images, expected)


def test_a_mapped_shard_allocates_nothing(shards: list[Path]) -> None:
    before = pa.total_allocated_bytes()
    table = pa.ipc.open_file(pa.memory_map(str(shards[0]))).read_all()
    image = table["image"].chunk(0).to_numpy_ndarray()
    assert pa.total_allocated_bytes() == before
    assert not image.flags.owndata
    assert not image.flags.writeable


def test_pyarrow_dataset(shards: list[Path], expected: Rows) -> None:
    dataset = pyarrow.dataset.dataset([str(shard) for shard in shards], format="ipc")
    assert dataset.schema.field("image").type == TENSOR
    table = dataset.to_table()
    images = np.concatenate([chunk.to_numpy_ndarray() for chunk in table["image"].chunks])
    assert_same(table["content"].to_pylist(), table["identity"].to_pylist(), images, expected)


def test_polars(shards: list[Path], expected: Rows) -> None:
    frame = pl.scan_ipc(shards).collect()
    images = frame["image"].to_numpy().reshape(-1, SIZE_PX, SIZE_PX, 3)
    assert_same(frame["content"].to_list(), frame["identity"].to_list(), images, expected)


def test_polars_with_a_filter(shards: list[Path], expected: Rows) -> None:
    frame = pl.scan_ipc(shards).filter(pl.col("identity") == "cat").collect()
    images = frame["image"].to_numpy().reshape(-1, SIZE_PX, SIZE_PX, 3)
    cat = {content: row for content, row in expected.items() if row[0] == "cat"}
    assert_same(frame["content"].to_list(), frame["identity"].to_list(), images, cat)


def test_duckdb(shards: list[Path], expected: Rows) -> None:
    dataset = pyarrow.dataset.dataset([str(shard) for shard in shards], format="ipc")
    with duckdb.connect() as connection:
        connection.register("cache", dataset)
        relation = connection.sql("SELECT image, content, identity FROM cache")
        assert [str(kind) for kind in relation.types] == [f"UTINYINT[{SIZE_PX**2 * 3}]", "BLOB", "VARCHAR"]
        images, contents, identities = zip(*relation.fetchall(), strict=True)
        counts = connection.sql("SELECT identity, count(*) FROM cache GROUP BY identity").fetchall()
    pixels = np.array(images, np.uint8).reshape(-1, SIZE_PX, SIZE_PX, 3)
    assert_same(list(contents), list(identities), pixels, expected)
    people = [identity for identity, _ in expected.values()]
    assert dict(counts) == {identity: people.count(identity) for identity in set(people)}
