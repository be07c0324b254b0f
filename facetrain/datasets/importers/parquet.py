"""Parquet with a column of encoded images: plain binary, or Hugging Face's struct {bytes, path}."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from facetrain.datasets.importers.file_by_file import FileByFile, check_files, files_in
from facetrain.datasets.importers.record import MAX_RECORD_BYTES, At, Record, whole_number
from facetrain.errors import UserError

SUFFIXES = (".parquet", ".pq")
IMAGE_NAMES = ("image", "img", "jpg", "photo", "photograph", "picture", "face")
LABEL_NAMES = ("identity", "label", "labels", "class", "class_id", "person", "person_id", "subject", "subject_id", "fine_label", "name")  # fmt: skip
ROWS_AT_A_TIME = 64
BUFFER_BYTES = 1 << 20  # column chunks are read piece by piece: a row group may be larger than the memory


class Parquet(FileByFile):
    """Files with the same columns ``image`` and ``label``, in the order given.

    ``in_struct``: images are Hugging Face's {bytes, path}. ``class_names``: of labels that are numbers with names.
    """

    format = "parquet"

    def __init__(
        self, files: list[Path], image: str, label: str, in_struct: bool, class_names: list[str] | None
    ) -> None:
        super().__init__(files, {"image": image, "label": label})
        self.image, self.label = image, label
        self.in_struct, self.class_names = in_struct, class_names

    def _file(self, number: int, first: int) -> Iterator[Record]:
        size = self._ends[number + 1] - self._ends[number]
        try:
            file = pq.ParquetFile(
                self.files[number], buffer_size=BUFFER_BYTES, page_checksum_verification=True
            )
        except (pa.ArrowException, OSError) as error:
            yield self._rejected((number, 0), f"the file is damaged, nothing of it is read: {_line(error)}")
            return
        with file:
            absent = {self.image, self.label} - set(file.schema_arrow.names)
            if absent:
                yield self._rejected((number, 0), f"the file has no column {', '.join(sorted(absent))}")
                return
            total = max(file.metadata.num_rows, 1)
            end = 0
            for group in range(file.num_row_groups):
                begin, end = end, end + file.metadata.row_group(group).num_rows
                if end <= first:
                    continue
                row = begin
                try:
                    for batch in self._batches(file, group):
                        for image, label in batch:
                            yield self._record((number, row), image, label)
                            row += 1
                        self._done = self._ends[number] + size * row // total
                except (pa.ArrowException, OSError) as error:
                    why = f"damaged: {end - row:,} rows are lost: {_line(error)}"
                    yield self._rejected((number, row), why)

    def _batches(self, file: pq.ParquetFile, group: int) -> Iterator[list[tuple[Any, Any]]]:
        column = f"{self.image}.bytes" if self.in_struct else self.image
        batches = file.iter_batches(ROWS_AT_A_TIME, row_groups=[group], columns=[column, self.label])
        for batch in batches:
            images = batch.column(self.image)
            if self.in_struct:
                images = images.field("bytes")
            yield list(zip(images.to_pylist(), batch.column(self.label).to_pylist(), strict=True))

    def _record(self, at: At, image: bytes | None, label: Any) -> Record:
        name = self._name(at)
        identity = self._identity(label)
        if identity is None:
            return Record(at, None, name, None, f"no label that could be used: {label!r}")
        if image is None:
            why = "no bytes in the record (only a path?)" if self.in_struct else "no bytes in the record"
            return Record(at, identity, name, None, why)
        if len(image) > MAX_RECORD_BYTES:
            return Record(at, identity, name, None, f"{len(image):,} bytes are too many")
        return Record(at, identity, name, image)

    def _identity(self, label: Any) -> str | int | None:
        if isinstance(label, bytes):
            label = label.decode(errors="surrogateescape")
        if isinstance(label, float):
            label = whole_number(label)
        if self.class_names is not None and isinstance(label, int):
            return self.class_names[label] if 0 <= label < len(self.class_names) else None
        return label if label != "" else None


def open_parquet(paths: list[Path], *, image: str | None, label: str | None) -> Parquet:
    """Open Parquet files, or folders of them; find the columns where they are not named. Raises UserError."""
    files: list[Path] = []
    for path in paths:
        files += files_in(path, SUFFIXES) if path.is_dir() else [path]
    check_files(files)
    schema = _first_schema(files)
    features = _features(schema)
    image = _column(schema, image, "image", _images(schema, features), IMAGE_NAMES)
    label = _column(schema, label, "label", _labels(schema, features, image), LABEL_NAMES)
    in_struct = pa.types.is_struct(schema.field(image).type)
    return Parquet(files, image, label, in_struct, _class_names(features.get(label)))


def _first_schema(files: list[Path]) -> pa.Schema:
    for file in files:
        try:
            return pq.read_schema(file)
        except (pa.ArrowException, OSError) as error:
            problem = error
    raise UserError(f"{files[0]}: no Parquet file, or damaged: {_line(problem)}")


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What Hugging Face's datasets wrote about the columns; nothing where it did not write the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _class_names(feature: dict[str, Any] | None) -> list[str] | None:
    """The names of a ClassLabel's numbers, where there is one name for each."""
    names = (feature or {}).get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        return None
    return names if names and len(set(names)) == len(names) else None


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
    return _is_bytes(kind)


def _is_label(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_label(kind.value_type)
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return text or pa.types.is_integer(kind) or pa.types.is_floating(kind) or _is_bytes(kind)


def _images(schema: pa.Schema, features: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Columns that could be the image, the likeliest kind first."""
    fields = [field for field in schema if _is_image(field.type)]
    declared = [field.name for field in fields if features.get(field.name, {}).get("_type") == "Image"]
    structs = [field.name for field in fields if pa.types.is_struct(field.type)]
    return [declared, structs, [field.name for field in fields]]


def _labels(schema: pa.Schema, features: dict[str, dict[str, Any]], image: str) -> list[list[str]]:
    fields = [field for field in schema if field.name != image and _is_label(field.type)]
    declared = [field.name for field in fields if features.get(field.name, {}).get("_type") == "ClassLabel"]
    exact = [
        field.name for field in fields if not (pa.types.is_floating(field.type) or _is_bytes(field.type))
    ]
    return [declared, exact]


def _column(
    schema: pa.Schema, asked: str | None, what: str, kinds: list[list[str]], usual: tuple[str, ...]
) -> str:
    """The column that was asked for, or the only one that can be meant."""
    columns = ", ".join(f"{field.name} ({_short(field.type)})" for field in schema)
    if asked is not None:
        if asked not in schema.names:
            raise UserError(f"there is no column {asked!r} for --{what}; there are: {columns}")
        fits = _is_image if what == "image" else _is_label
        if not fits(schema.field(asked).type):
            needed = "hold bytes, or structs with bytes" if what == "image" else "hold numbers or texts"
            raise UserError(
                f"the column {asked!r} cannot be the {what}: it must {needed}; there are: {columns}"
            )
        return asked
    for names in kinds:
        for choice in (names, [name for name in names if name.lower() in usual]):
            if len(choice) == 1:
                return choice[0]
    raise UserError(f"which column is the {what}? Name it with --{what} COLUMN; there are: {columns}")


def _short(kind: pa.DataType) -> str:
    return "struct" if pa.types.is_struct(kind) else str(kind)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
