"""Crops that cannot be decoded: the list that the cache leaves beside the index, which then no longer uses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from facetrain.files import write_csv
from facetrain.index import Index
from facetrain.tables import CONTENT, positions, write_table

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


def forget_replaced(index: Index, content_of: Callable[[pa.ChunkedArray], list[bytes | None]]) -> Undecodable:
    """The crops known to be undecodable, without those that are gone or have another content now.

    ``content_of`` gives the contents of crops by their paths (null for none), None for one that is not there.
    """
    path, known = index.folder / "undecodable.arrow", index.undecodable
    if known is None or known.num_rows == 0:
        return Undecodable(path, [])
    row = pa.array(positions(known["path"], index.rows["path"]))
    crops = index.rows["aligned"].take(pc.if_else(pc.less(row, 0), None, row))
    rows = [tuple(row.values()) for row in known.to_pylist()]
    still = [row for row, content in zip(rows, content_of(crops), strict=True) if row[1] == content]
    undecodable = Undecodable(path, still)
    undecodable.save()
    return undecodable
