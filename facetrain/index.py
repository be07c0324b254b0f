"""The index: one row per source photograph, rejected ones too. Columnar all the way: no Python loop over rows.

Align writes the rows; prune and split write a column each, beside them, and the cache a list of what it could not
decode. Taking a column away undoes the stage. All of it is Arrow IPC, memory-mapped when read.

    rows.arrow         `ROWS` below, sorted by path; metadata: the ImageSpec and align's settings
    kept.arrow         kept: bool, one per row; counts only where the row is usable
    split.arrow        split: "train" or "val", one per row
    undecodable.arrow  path, reason

The rows hold only what follows from the photographs and the settings, so that an interrupted and an uninterrupted
align end in the same bytes; times and inodes live in the file tables (`file_table`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3

from facetrain.errors import MissingStage, UserError
from facetrain.files import replacing
from facetrain.image_spec import ImageSpec

CONTENT = pa.binary(32)  # BLAKE3

ROWS = pa.schema(
    [
        ("path", pa.string()),  # relative to RAW, '/' between folders
        ("identity", pa.string()),  # the folder right under RAW
        ("status", pa.string()),  # one of STATUSES
        ("reason", pa.string()),  # why not "aligned"; null when it is
        ("content", CONTENT),  # of the photograph; null when it could not be read
        ("size_bytes", pa.int64()),
        ("width_px", pa.int32()),  # upright, EXIF orientation applied
        ("height_px", pa.int32()),
        ("faces", pa.int16()),  # how many the detector found
        (
            "detector_score",
            pa.float32(),
        ),  # the detector's confidence in the face that was taken; higher is surer
        ("box", pa.list_(pa.int32(), 4)),  # left, top, right, bottom in pixels of the upright photograph
        ("landmarks", pa.list_(pa.float32())),  # x0, y0, x1, y1, … in pixels of the upright photograph
        ("aligned", pa.string()),  # the crop, relative to ALIGNED
        ("aligned_content", CONTENT),  # of the crop as align wrote it
    ]
)

ALIGNED = "aligned"
STATUSES = {
    ALIGNED: "aligned",
    "no-face": "no face found",
    "several-faces": "several faces (--multi skip)",
    "unreadable": "unreadable",
    "no-identity": "not in a person's folder",
    "missing": "no longer in RAW",
    "undecodable": "crop could not be decoded",
}


def write_table(path: Path, table: pa.Table) -> str:
    """Write an Arrow IPC file, whole or not at all; return its fingerprint (BLAKE3, hex).

    A file that holds the same already is left alone, and its time with it.
    """
    with replacing(path) as temp:
        with pa.OSFile(str(temp), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks(), max_chunksize=1 << 20)
        fingerprint = file_fingerprint(temp)
        assert fingerprint is not None
        if file_fingerprint(path) == fingerprint:
            temp.unlink()
    return fingerprint


def file_fingerprint(path: Path) -> str | None:
    """BLAKE3 of a file, hex; None when there is no such file."""
    try:
        return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
    except FileNotFoundError:
        return None


def read_table(path: Path) -> pa.Table:
    """Map an Arrow IPC file; only the columns that are used are read."""
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is damaged ({error}): remove it and run the command again") from None


@dataclass(frozen=True)
class Index:
    """The rows and columns of one dataset as they stand; `read_index` makes it."""

    folder: Path
    rows: pa.Table

    @cached_property
    def spec(self) -> ImageSpec:
        """The ImageSpec of the crops."""
        return ImageSpec.from_json(self.rows.schema.metadata[b"image_spec"])

    @cached_property
    def usable(self) -> pa.ChunkedArray:
        """bool per row: there is a crop, and it can be decoded."""
        aligned = pc.equal(self.rows["status"], ALIGNED)
        bad = self.undecodable
        if bad is None or bad.num_rows == 0:
            return aligned
        return pc.and_(aligned, pc.invert(pc.is_in(self.rows["path"], bad["path"].combine_chunks())))

    @cached_property
    def undecodable(self) -> pa.Table | None:
        """path, reason of the crops that the cache could not decode; None before the first cache."""
        path = self.folder / "undecodable.arrow"
        return read_table(path) if path.is_file() else None

    @cached_property
    def kept(self) -> pa.ChunkedArray:
        """bool per row: usable and not pruned."""
        column = self._column("kept")
        return self.usable if column is None else pc.and_(self.usable, column)

    @cached_property
    def split(self) -> pa.ChunkedArray | None:
        """ "train" or "val" per row, null where the row is not kept; None before `ft split`."""
        column = self._column("split")
        return None if column is None else pc.if_else(self.kept, column, pa.scalar(None, pa.string()))

    def _column(self, name: str) -> pa.ChunkedArray | None:
        path = self.folder / f"{name}.arrow"
        if not path.is_file():
            return None
        table = read_table(path)
        if (
            table.num_rows != self.rows.num_rows
            or table.schema.metadata[b"rows"] != self.fingerprint.encode()
        ):
            stage = {"kept": "prune", "split": "split"}[name]
            raise MissingStage(f"the photographs have changed since `ft {stage}`: run `ft {stage}` again")
        return table[name]

    @cached_property
    def fingerprint(self) -> str:
        """BLAKE3 of rows.arrow."""
        found = file_fingerprint(self.folder / "rows.arrow")
        assert found is not None
        return found

    def write_column(self, name: str, values: pa.Array | pa.ChunkedArray) -> str:
        """Write ``kept`` or ``split``, one value per row; return the file's fingerprint."""
        schema = pa.schema([(name, values.type)], metadata={"rows": self.fingerprint})
        return write_table(self.folder / f"{name}.arrow", pa.table([values], schema=schema))

    def status_counts(self) -> dict[str, int]:
        """Photographs by status, in the order of STATUSES, those of none left out."""
        counts = {
            entry["values"]: entry["counts"] for entry in pc.value_counts(self.rows["status"]).to_pylist()
        }
        undecodable = counts.get(ALIGNED, 0) - (pc.sum(self.usable).as_py() or 0)
        counts[ALIGNED] = counts.get(ALIGNED, 0) - undecodable
        counts["undecodable"] = undecodable
        return {status: counts[status] for status in STATUSES if counts.get(status)}


def count_people(rows: pa.Table, mask: pa.ChunkedArray) -> tuple[int, int]:
    """(people, photographs) among the rows where ``mask`` is true."""
    identities = rows["identity"].filter(mask)
    return pc.count_distinct(identities).as_py(), len(identities)


def read_index(folder: Path) -> Index:
    """The index in a dataset's folder. Raises MissingStage before the first align."""
    path = folder / "rows.arrow"
    if not path.is_file():
        raise MissingStage("nothing is aligned yet: run `ft align RAW ALIGNED` first")
    return Index(folder, read_table(path))
