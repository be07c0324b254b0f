"""Crops that cannot be decoded: the list that the cache leaves beside the index, which then no longer uses them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from facetrain.files import write_csv
from facetrain.index import Index
from facetrain.tables import CONTENT, write_table

UNDECODABLE = pa.schema([("path", pa.large_string()), ("content", CONTENT), ("reason", pa.string())])


class Undecodable:
    """The list of crops that cannot be decoded; written as it grows, so that a run after a kill knows it."""

    def __init__(self, path: Path, rows: list[tuple[str, bytes, str]]) -> None:
        self.path, self.rows = path, rows

    def add(self, rows: list[tuple[str, bytes, str]]) -> None:
        self.rows += rows
        self.save()

    def save(self) -> None:
        columns = list(zip(*sorted(self.rows), strict=True)) or [()] * len(UNDECODABLE)
        arrays = [pa.array(values, field.type) for values, field in zip(columns, UNDECODABLE, strict=True)]
        write_table(self.path, pa.table(arrays, schema=UNDECODABLE))
        write_csv(self.csv, ("path", "reason"), [(path, reason) for path, _, reason in sorted(self.rows)])

    @property
    def csv(self) -> Path:
        """The same for people and spreadsheets."""
        return self.path.with_suffix(".csv")


def forget_replaced(index: Index, files: pa.Table) -> Undecodable:
    """The crops known to be undecodable, without those that are gone or have another content now."""
    path, known = index.folder / "undecodable.arrow", index.undecodable
    if known is None or known.num_rows == 0:
        return Undecodable(path, [])
    row = pc.index_in(known["path"], index.rows["path"])
    position = pc.index_in(index.rows["aligned"].take(row), files["aligned"])
    still = pc.equal(known["content"], files["content"].take(position)).fill_null(False)
    undecodable = Undecodable(path, [tuple(row.values()) for row in known.filter(still).to_pylist()])
    undecodable.save()
    return undecodable
