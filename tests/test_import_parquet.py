"""Parquet: files of pyarrow's and of polars', laid out plainly and as Hugging Face does; finding columns; damage."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facetrain.datasets.importers.parquet import Parquet, open_parquet
from facetrain.datasets.importers.record import Record
from facetrain.errors import UserError

JPEG = b"\xff\xd8\xff\xe0"
IMAGES = [JPEG + bytes([i]) * 50 for i in range(12)]
PEOPLE = ["Ann", "Bob/Cid", "Zoë"]
NUMBERS = [i // 4 for i in range(12)]


def open_(*paths: Path, image: str | None = None, label: str | None = None) -> Parquet:
    return open_parquet(list(paths), image=image, label=label)


def read(*paths: Path, image: str | None = None, label: str | None = None) -> list[Record]:
    return list(open_(*paths, image=image, label=label).records())


def good(records: list[Record]) -> list[tuple[Any, bytes]]:
    return [(item.identity, item.data) for item in records if item.data is not None]


def reasons(records: list[Record]) -> list[str]:
    return [item.reason for item in records if item.data is None]


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def hugging_face(path: Path, images: list[bytes | None], labels: list[int], names: list[str]) -> Path:
    """As `Dataset.to_parquet` of datasets 5.2 lays it out."""
    features = {
        "image": {"_type": "Image"},
        "label": {"names": names, "_type": "ClassLabel"},
        "quality": {"dtype": "int64", "_type": "Value"},
    }
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    structs = [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(images)]
    table = pa.table(
        {"image": pa.array(structs, kind), "label": pa.array(labels, pa.int64()), "quality": pa.array(labels)}
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


# -- whole files -----------------------------------------------------------------------------------------------------


def test_hugging_faces_layout_with_names_of_classes(tmp_path: Path) -> None:
    records = read(hugging_face(tmp_path / "train.parquet", IMAGES, NUMBERS, PEOPLE))
    assert good(records) == [(PEOPLE[n], data) for n, data in zip(NUMBERS, IMAGES, strict=True)]
    assert [item.name for item in records] == [f"{n:09d}" for n in range(12)]


@pytest.mark.parametrize("labels", [NUMBERS, [PEOPLE[n] for n in NUMBERS]], ids=["numbers", "texts"])
@pytest.mark.parametrize("layout", ["binary", "struct"])
@pytest.mark.parametrize("compression", ["zstd", "snappy", "uncompressed"])
def test_files_of_polars(tmp_path: Path, labels: list[Any], layout: str, compression: Any) -> None:
    """By its own writer in Rust, which shares no code with pyarrow's reader; several row groups."""
    structs = [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(IMAGES)]
    kinds = {"binary": pl.Binary(), "struct": pl.Struct({"bytes": pl.Binary(), "path": pl.String()})}
    images = pl.Series("image", IMAGES if layout == "binary" else structs, dtype=kinds[layout])
    path = tmp_path / "a.parquet"
    pl.DataFrame([images, pl.Series("label", labels)]).write_parquet(
        path, compression=compression, row_group_size=5, use_pyarrow=False
    )
    assert pq.ParquetFile(path).num_row_groups == 3
    assert "polars" in pq.ParquetFile(path).metadata.created_by.lower()
    source = open_(path)
    assert good(list(source.records())) == list(zip(labels, IMAGES, strict=True))
    assert good(list(source.records((0, 7)))) == list(zip(labels, IMAGES, strict=True))[5:]


def test_categories_and_gaps_of_polars(tmp_path: Path) -> None:
    people = pl.Series("label", ["Ann", None, "Zoë", "Ann"], dtype=pl.Categorical)
    images = pl.Series("image", [JPEG, JPEG, None, JPEG + b"2"], dtype=pl.Binary)
    pl.DataFrame([images, people]).write_parquet(tmp_path / "a.parquet", use_pyarrow=False)
    records = read(tmp_path / "a.parquet")
    assert good(records) == [("Ann", JPEG), ("Ann", JPEG + b"2")]
    assert reasons(records) == ["no label that could be used: None", "no bytes in the record"]


@pytest.mark.parametrize("names", [["same", "same", "other"], ["", "b", "c"], []])
def test_names_that_are_no_names_leave_the_numbers(tmp_path: Path, names: list[str]) -> None:
    records = read(hugging_face(tmp_path / "train.parquet", IMAGES, NUMBERS, names))
    assert [identity for identity, _ in good(records)] == NUMBERS


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array(NUMBERS, pa.int16()), NUMBERS),
        (pa.array([f"id {n}" for n in NUMBERS]), [f"id {n}" for n in NUMBERS]),
        (pa.array([f"id {n}" for n in NUMBERS], pa.large_string()), [f"id {n}" for n in NUMBERS]),
        (pa.array([f"id {n}" for n in NUMBERS]).dictionary_encode(), [f"id {n}" for n in NUMBERS]),
    ],
)
def test_plain_columns(tmp_path: Path, kind: pa.DataType, labels: pa.Array, expected: list[Any]) -> None:
    path = write(tmp_path / "a.parquet", {"jpg": pa.array(IMAGES, kind), "who": labels})
    assert good(read(path)) == list(zip(expected, IMAGES, strict=True))


def test_a_folder_of_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for i in (2, 0, 1):
        part = slice(4 * i, 4 * i + 4)
        path = tmp_path / "set" / "data" / f"train-{i:05d}-of-00003.parquet"
        write(path, {"image": IMAGES[part], "label": NUMBERS[part]}, row_group_size=3)
    records = read(tmp_path / "set")
    assert good(records) == list(zip(NUMBERS, IMAGES, strict=True))
    assert records[5].name == "00001-000000001"


def test_reading_goes_on_from_any_row(tmp_path: Path) -> None:
    for i in range(2):
        part = slice(6 * i, 6 * i + 6)
        write(
            tmp_path / "set" / f"{i}.parquet",
            {"image": IMAGES[part], "label": NUMBERS[part]},
            row_group_size=2,
        )
    records = read(tmp_path / "set")
    for start in ((0, 0), (0, 3), (0, 6), (1, 0), (1, 5), (1, 6)):
        rest = list(open_(tmp_path / "set").records(start))
        assert [item for item in rest if item.at >= start] == [item for item in records if item.at >= start]
        assert (
            len(rest) <= len([item for item in records if item.at >= start]) + 1
        )  # whole row groups are not read


def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": [JPEG + bytes(20_000)] * 2000, "label": [1] * 2000})
    before = pa.default_memory_pool().bytes_allocated()
    assert pq.ParquetFile(path).num_row_groups == 1
    tracemalloc.start()
    most = 0
    for _ in open_(path).records():
        most = max(most, pa.default_memory_pool().bytes_allocated() - before)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000  # of 40 million bytes
    assert most < 20_000_000


# -- records that cannot be used -------------------------------------------------------------------------------------


def test_rows_without_image_or_label(tmp_path: Path) -> None:
    records = read(hugging_face(tmp_path / "a.parquet", [JPEG, None, JPEG, JPEG], [0, 1, -1, 3], PEOPLE))
    assert good(records) == [("Ann", JPEG)]
    assert reasons(records) == [
        "no bytes in the record (only a path?)",
        "no label that could be used: -1",
        "no label that could be used: 3",
    ]
    path = write(tmp_path / "b.parquet", {"image": [JPEG] * 4, "label": [1.0, 1.5, None, float("nan")]})
    records = read(path, label="label")
    assert good(records) == [(1, JPEG)]
    assert len(reasons(records)) == 3


def test_a_damaged_page_costs_its_row_group(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet",
        {"image": IMAGES, "label": NUMBERS},
        row_group_size=4,
        write_page_checksum=True,
        compression="none",
        use_dictionary=False,
    )
    content = path.read_bytes()
    assert content.count(IMAGES[5]) == 1
    path.write_bytes(content.replace(IMAGES[5], IMAGES[5][:-1] + b"!"))
    records = read(path)
    assert [data for _, data in good(records)] == IMAGES[:4] + IMAGES[8:]
    assert [why.split(":")[:2] for why in reasons(records)] == [["damaged", " 4 rows are lost"]]


def test_a_damaged_file_among_others(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / "set" / f"{i}.parquet", {"image": IMAGES[:2], "label": NUMBERS[:2]})
    torn = tmp_path / "set" / "0.parquet"
    torn.write_bytes(torn.read_bytes()[:-20])
    write(tmp_path / "set" / "3.parquet", {"image": IMAGES[:2], "other": NUMBERS[:2]})
    records = read(tmp_path / "set")
    assert len(good(records)) == 4
    assert reasons(records)[0].startswith("the file is damaged")
    assert reasons(records)[1] == "the file has no column label"


# -- which columns ---------------------------------------------------------------------------------------------------


def test_columns_are_found_where_they_are_plain(tmp_path: Path) -> None:
    one = pa.array([JPEG])
    path = write(
        tmp_path / "a.parquet", {"thumb": one, "image": one, "id": [3], "identity": ["Ann"], "age": [40]}
    )
    source = open_(path)
    assert (source.image, source.label) == ("image", "identity")


@pytest.mark.parametrize(
    ("columns", "named", "why"),
    [
        ({"a": [JPEG], "b": [JPEG], "label": [1]}, {}, "which column is the image"),
        ({"image": [JPEG], "x": [1], "y": [2]}, {}, "which column is the label"),
        ({"image": [JPEG], "label": [1], "identity": [2]}, {}, "which column is the label"),
        ({"image": [JPEG]}, {}, "which column is the label"),
        ({"label": [1]}, {}, "which column is the image"),
        ({"image": [JPEG], "label": [1]}, {"label": "gone"}, "there is no column 'gone' for --label"),
        ({"image": [JPEG], "label": [1]}, {"image": "label"}, "cannot be the image"),
        ({"image": [JPEG], "label": [[1]]}, {"label": "label"}, "cannot be the label"),
    ],
)
def test_mistakes_list_the_columns(
    tmp_path: Path, columns: dict[str, Any], named: dict[str, str], why: str
) -> None:
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError, match=why) as error:
        open_(path, **named)
    assert all(f"{name} (" in str(error.value) for name in columns)


def test_mistakes(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match=r"no \.parquet in"):
        open_(tmp_path / "empty")
    with pytest.raises(UserError, match="there is no"):
        open_(tmp_path / "gone.parquet")
    with pytest.raises(UserError, match="no Parquet file, or damaged"):
        open_(tmp_path / "no.parquet")
    with pytest.raises(UserError, match="named twice"):
        open_(tmp_path / "no.parquet", tmp_path / "no.parquet")
