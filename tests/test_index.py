"""The index: rows, the columns that later stages lay beside them, and what damage to its files leads to."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from facetrain.errors import MissingStage, UserError
from facetrain.image_spec import ImageSpec
from facetrain.index import ROWS, STATUSES, Index, read_index
from facetrain.tables import read_table, table_fingerprint, write_table

PHOTOGRAPHS = [
    ("ann/1.jpg", "ann", "aligned"),
    ("ann/2.jpg", "ann", "aligned"),
    ("ann/3.jpg", "ann", "no-face"),
    ("bob/1.jpg", "bob", "aligned"),
    ("loose.jpg", None, "no-identity"),
]


def write_rows(folder: Path, photographs: list = PHOTOGRAPHS) -> Index:
    values = [
        {"path": path, "identity": person, "status": status, "aligned": path if status == "aligned" else None}
        for path, person, status in photographs
    ]
    metadata = {"image_spec": ImageSpec(size_px=48).to_json(), "settings": json.dumps({})}
    write_table(folder / "rows.arrow", pa.Table.from_pylist(values, schema=ROWS.with_metadata(metadata)))
    return read_index(folder)


def test_before_the_first_align(tmp_path: Path) -> None:
    with pytest.raises(MissingStage, match=r"run `ft align RAW ALIGNED` first"):
        read_index(tmp_path)


def test_without_columns_everything_usable_is_kept(tmp_path: Path) -> None:
    index = write_rows(tmp_path)
    assert index.spec == ImageSpec(size_px=48)
    assert index.usable.tolist() == index.kept.tolist() == [True, True, False, True, False]
    assert index.split is None
    assert index.status_counts() == {"aligned": 3, "no-face": 1, "no-identity": 1}
    assert index.count_people(index.kept) == (2, 3)


def test_columns_are_masked_by_what_is_usable_and_kept(tmp_path: Path) -> None:
    index = write_rows(tmp_path)
    index.write_column("kept", pa.array([True, False, True, True, True]))
    index.write_column("split", pa.array(["train", "train", "val", "val", "val"]))
    index = read_index(tmp_path)
    assert index.kept.tolist() == [True, False, False, True, False]
    assert index.split is not None
    assert index.split.to_pylist() == ["train", None, None, "val", None]


def test_undecodable_crops_are_not_usable(tmp_path: Path) -> None:
    index = write_rows(tmp_path)
    bad = pa.table({"path": ["bob/1.jpg"], "reason": ["torn"]})
    write_table(tmp_path / "undecodable.arrow", bad)
    index = read_index(tmp_path)
    assert index.usable.tolist() == [True, True, False, False, False]
    assert index.status_counts() == {"aligned": 2, "no-face": 1, "no-identity": 1, "undecodable": 1}
    assert list(index.status_counts()) == [status for status in STATUSES if status in index.status_counts()]


@pytest.mark.parametrize(
    ("name", "stage", "values"), [("kept", "prune", [True]), ("split", "split", ["train"])]
)
def test_columns_of_other_rows_are_refused(tmp_path: Path, name: str, stage: str, values: list) -> None:
    index = write_rows(tmp_path)
    index.write_column(name, pa.array(values * len(PHOTOGRAPHS)))
    assert getattr(read_index(tmp_path), name) is not None
    index = write_rows(tmp_path, [("ann/0.jpg", "ann", "aligned"), *PHOTOGRAPHS[1:]])  # as many rows, others
    with pytest.raises(
        MissingStage, match=f"the photographs have changed since `ft {stage}`: run `ft {stage}` again"
    ):
        getattr(index, name)


def test_the_fingerprint_is_of_the_file(tmp_path: Path) -> None:
    assert table_fingerprint(tmp_path / "rows.arrow") is None
    first = write_rows(tmp_path).fingerprint
    assert write_rows(tmp_path).fingerprint == first == table_fingerprint(tmp_path / "rows.arrow")
    assert write_rows(tmp_path, PHOTOGRAPHS[:-1]).fingerprint != first


def test_an_empty_table_comes_back(tmp_path: Path) -> None:
    index = write_rows(tmp_path, [])
    assert index.rows.num_rows == 0
    assert index.kept.tolist() == []
    assert index.status_counts() == {}
    assert index.count_people(index.kept) == (0, 0)


@pytest.mark.parametrize("keep", [0, 4, 40, -200, -9])
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, keep: int) -> None:
    write_rows(tmp_path)
    path = tmp_path / "rows.arrow"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"rows.arrow is damaged.*: remove it and run the command again"):
        read_table(path)


def test_any_arrow_reader_reads_it(tmp_path: Path) -> None:
    write_rows(tmp_path)
    table = pa.ipc.open_file(str(tmp_path / "rows.arrow")).read_all()
    assert table.schema.equals(ROWS)
    assert table["path"].to_pylist() == [path for path, *_ in PHOTOGRAPHS]
