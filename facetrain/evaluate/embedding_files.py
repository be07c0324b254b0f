"""Embeddings as files, written a part at a time, so that any number of them fits.

parquet    path, identity, embedding (a list of D float32)
npz        path, identity: str [n]; embedding: float32 [n, D]
h5         the image-similarity challenge's layout: reference float32 [n, D], reference_ids str [n], the stems of the paths;
           with queries also query, query_ids
csv        OpenFace's (batch-represent): reps.csv, the numbers of one embedding a line; and labels.csv beside it, number of
           the identity and path

Legend of shapes: n photographs, D dimensions.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.files import csv_line, replacing


@dataclass(frozen=True)
class Embedded:
    """Photographs and their embeddings, which come in parts, float32 [m, dim], as often as they are asked for."""

    paths: list[str]
    identities: list[str | None]
    dim: int
    parts: Callable[[], Iterable[NDArray[np.float32]]]


def write_embeddings(
    out: Path, reference: Embedded, query: Embedded | None, facts: dict[str, Any]
) -> list[Path]:
    """Write ``out`` in the format that its suffix names, whole or not at all; the files that were written.

    query: a second set, which only .h5 holds. facts: plain data on how they were made, kept where the format has a place.
    """
    return writer_of(out, queries=query is not None)(out, reference, query, facts)


Writer = Callable[[Path, Embedded, Embedded | None, dict[str, Any]], list[Path]]


def writer_of(out: Path, *, queries: bool) -> Writer:
    """By the suffix; UserError for one that will not do, or where what it needs is not installed."""
    writers = {".parquet": _write_parquet, ".npz": _write_npz, ".h5": _write_h5, ".csv": _write_csv}
    if out.suffix not in writers:
        raise UserError(f"--out {out}: choose a name that ends in {', '.join(writers)}")
    if out.suffix == ".h5":
        _h5py()
    elif queries:
        raise UserError(f"--out {out}: only an .h5 file holds queries beside references")
    if out.suffix == ".csv":
        _check_csv(out)
    return writers[out.suffix]


def _check_csv(out: Path) -> None:
    """UserError where one of the two files is there and is not one of ours: text that somebody may need."""
    labels = _labels_of(out)
    if labels.exists() and not out.exists():
        raise UserError(f"{labels} is there already and would be overwritten: choose another --out")
    if out.is_file():
        with open(out, encoding="utf-8", errors="replace") as file:
            first = file.readline().strip()
        try:
            [float(field) for field in first.split(",")] if first else None
        except ValueError:
            raise UserError(
                f"{out} is there already, and holds no embeddings: choose another --out"
            ) from None


def _labels_of(out: Path) -> Path:
    return out.with_name("labels.csv" if out.name == "reps.csv" else f"{out.stem}-labels.csv")


def _write_parquet(
    out: Path, reference: Embedded, query: Embedded | None, facts: dict[str, Any]
) -> list[Path]:
    schema = pa.schema(
        [
            ("path", pa.string()),
            ("identity", pa.string()),
            ("embedding", pa.list_(pa.float32(), reference.dim)),
        ],
        {"facetrain": json.dumps(facts)},
    )
    with replacing(out) as temp, pq.ParquetWriter(temp, schema) as file:
        for here, part in _placed(reference):
            flat = pa.array(np.ascontiguousarray(part).reshape(-1))
            columns = [
                pa.array(reference.paths[here], pa.string()),
                pa.array(reference.identities[here], pa.string()),
                pa.FixedSizeListArray.from_arrays(flat, reference.dim),
            ]
            file.write_table(pa.table(columns, schema=schema))
    return [out]


def _write_npz(out: Path, reference: Embedded, query: Embedded | None, facts: dict[str, Any]) -> list[Path]:
    def header(file: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        form = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(file, form)

    with replacing(out) as temp, zipfile.ZipFile(temp, "w") as archive:
        with archive.open("embedding.npy", "w", force_zip64=True) as file:
            header(file, np.dtype(np.float32), (len(reference.paths), reference.dim))
            for part in reference.parts():
                file.write(np.ascontiguousarray(part, np.float32).data)
        texts = {
            "path": np.array(reference.paths, np.str_),
            "identity": np.array([name or "" for name in reference.identities], np.str_),
            "facts": np.array(json.dumps(facts)),
        }
        for name, array in texts.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return [out]


def _write_h5(out: Path, reference: Embedded, query: Embedded | None, facts: dict[str, Any]) -> list[Path]:
    h5py = _h5py()
    with replacing(out) as temp, h5py.File(temp, "w") as file:
        file.attrs["facetrain"] = json.dumps(facts)
        for name, embedded in (("reference", reference), ("query", query)):
            if embedded is None:
                continue
            data = file.create_dataset(name, (len(embedded.paths), embedded.dim), "f4")
            for here, part in _placed(embedded):
                data[here] = part
            ids = [PurePosixPath(path).stem for path in embedded.paths]
            if len(set(ids)) < len(ids):  # photographs of one name in several folders
                ids = embedded.paths
            file.create_dataset(f"{name}_ids", data=ids, dtype=h5py.string_dtype())
    return [out]


def _write_csv(out: Path, reference: Embedded, query: Embedded | None, facts: dict[str, Any]) -> list[Path]:
    names = sorted({name or "" for name in reference.identities})
    number_of = {name: number for number, name in enumerate(names, start=1)}
    labels = _labels_of(out)
    with replacing(labels) as temp, open(temp, "wb") as file:
        for path, name in zip(reference.paths, reference.identities, strict=True):
            file.write(csv_line([number_of[name or ""], path]))
    with replacing(out) as temp, open(temp, "wb") as file:
        for part in reference.parts():
            _write_lines(file, part)
    return [out, labels]


def _write_lines(file: BinaryIO, part: NDArray[np.float32]) -> None:
    for row in part.tolist():
        file.write((",".join(f"{value:.9g}" for value in row) + "\n").encode())  # enough for float32


def _placed(embedded: Embedded) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """The parts, and which photographs they are of."""
    start = 0
    for part in embedded.parts():
        yield slice(start, start + len(part)), part
        start += len(part)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise UserError("an .h5 file needs h5py: pip install 'facetrain[hdf5]'") from None
    return h5py
