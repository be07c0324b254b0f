"""The index: one row per source photograph, rejected ones too. Columnar all the way: no Python loop over rows.

Align writes the rows; prune and split write a column each, beside them, clean a list of marked photographs, and the
cache a list of what it could not decode. Taking a file away undoes the stage. All of it is Arrow IPC, memory-mapped when
read.

    rows.arrow         `ROWS` below, sorted by path; metadata: the ImageSpec and align's settings
    clean.arrow        `MARKS` below, of the marked photographs only, sorted by path
    kept.arrow         kept: bool, one per row; counts only where the row is usable
    split.arrow        split: "train" or "val", one per row
    cached.arrow       cached: bool, one per row
    undecodable.arrow  path, content, reason

The rows hold only what follows from the photographs and the settings, so that an interrupted and an uninterrupted
align end in the same bytes; times and inodes live in the file tables (`file_table`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facetrain.errors import MissingStage, UserError
from facetrain.image_spec import ImageSpec
from facetrain.tables import (
    CONTENT,
    dictionary_codes,
    find_sorted,
    read_table,
    same_content,
    table_fingerprint,
    take,
    write_table,
)

ROWS = pa.schema(
    [
        ("path", pa.large_string()),  # relative to RAW, '/' between folders; sorted
        ("identity", pa.dictionary(pa.int32(), pa.string())),  # the folder right under RAW
        ("status", pa.dictionary(pa.int32(), pa.string())),  # one of STATUSES
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
        ("landmarks", pa.large_list(pa.float32())),  # x0, y0, x1, y1, … in pixels of the upright photograph
        ("aligned", pa.large_string()),  # the crop, relative to ALIGNED
        ("aligned_content", CONTENT),  # of the crop as align wrote it
    ]
)

# A mark is of the photograph as it was: one that is new, or has changed since, bears none.
MARKS = pa.schema(
    [
        ("path", pa.large_string()),
        ("content", CONTENT),
        ("left_out", pa.bool_()),
        ("identity", pa.string()),  # whose it is in truth; null: the folder's
    ]
)

ALIGNED = "aligned"
STATUSES = {
    ALIGNED: "aligned",
    "no-face": "no face found",
    "several-faces": "several faces (--multi skip)",
    "unreadable": "unreadable",
    "no-identity": "not in a person's folder",
    "other-size": "not of the declared size",
    "name-clash": "the crop's name is taken",
    "missing": "no longer in RAW",
    "undecodable": "with a crop that cannot be decoded",
}


@dataclass(frozen=True)
class MarkCounts:
    """Usable photographs that are left out; the others that were given to another person; marks that no longer hold."""

    left_out: int
    renamed: int
    changed: int


@dataclass(frozen=True)
class Index:
    """The rows and columns of one dataset as they stand; `read_index` makes it. Masks are bool [rows]."""

    folder: Path
    rows: pa.Table

    @cached_property
    def spec(self) -> ImageSpec:
        """The ImageSpec of the crops."""
        return ImageSpec.from_json(self.rows.schema.metadata[b"image_spec"])

    @cached_property
    def usable(self) -> np.ndarray:
        """There is a crop, and it can be decoded."""
        codes, statuses = dictionary_codes(self.rows["status"])
        usable = codes == (statuses.index(ALIGNED).as_py() if len(statuses) else 0)
        bad = self.undecodable
        if bad is not None and bad.num_rows:
            rows = find_sorted(self.rows["path"], bad["path"].to_pylist())
            usable[rows[rows >= 0]] = False
        return usable

    @cached_property
    def undecodable(self) -> pa.Table | None:
        """path, content, reason of the crops that the cache could not decode; None before the first cache."""
        path = self.folder / "undecodable.arrow"
        return read_table(path) if path.is_file() else None

    @cached_property
    def marks(self) -> pa.Table | None:
        """`MARKS` of `ft clean`; None where there are none. Raises MissingStage where they were lost or damaged."""
        path = self.folder / "clean.arrow"
        if not path.is_file():
            self._check_never_made(path, "clean")
            return None
        try:
            return read_table(path)
        except UserError:
            raise self._lost_marks("damaged") from None

    @property
    def has_marks(self) -> bool:
        """There are marks of `ft clean`."""
        return (self.folder / "clean.arrow").is_file()

    @cached_property
    def marked(self) -> np.ndarray:
        """int64 [marks]: the row of each mark's photograph, -1 where it is gone or has changed."""
        return np.zeros(0, np.int64) if self.marks is None else self._rows_of(self.marks)

    def _rows_of(self, marks: pa.Table) -> np.ndarray:
        rows = find_sorted(self.rows["path"], marks["path"].to_pylist())
        rows[~same_content(take(self.rows["content"], rows), marks["content"])] = -1
        return rows

    def count_marks(self, marks: pa.Table) -> MarkCounts:
        """What these `MARKS`, its own or others, come to."""
        rows = self._rows_of(marks)
        usable = np.append(self.usable, False)[rows]  # the last is for -1
        left_out = marks["left_out"].to_numpy()
        renamed = pc.is_valid(marks["identity"]).to_numpy() & ~left_out
        counts = (usable & left_out, usable & renamed, rows < 0)
        return MarkCounts(*(int(np.count_nonzero(mask)) for mask in counts))

    @cached_property
    def candidates(self) -> np.ndarray:
        """Usable, and not left out by `ft clean`: what prune chooses among."""
        if self.marks is None:
            return self.usable
        candidates = self.usable.copy()
        rows = self.marked[self.marks["left_out"].to_numpy()]
        candidates[rows[rows >= 0]] = False
        return candidates

    @cached_property
    def kept(self) -> np.ndarray:
        """Usable, not left out and not pruned."""
        column = self._column("kept")
        return self.candidates if column is None else self.candidates & column.to_numpy()

    @cached_property
    def split(self) -> pa.DictionaryArray | None:
        """ "train" or "val" per row, null where the row is not kept; None before `ft split`."""
        if self._sides is None:
            return None
        codes, parts = self._sides
        return pa.DictionaryArray.from_arrays(pa.array(codes, mask=~self.kept), parts)

    def part(self, name: str) -> np.ndarray:
        """Kept, and of the part ``train`` or ``val``. Raises MissingStage before `ft split`."""
        if self._sides is None:
            raise MissingStage("the photographs are not split yet: run `ft split 0.1` first")
        codes, parts = self._sides
        code = parts.index(name).as_py()
        return self.kept & (codes == code) & (code >= 0)

    @cached_property
    def cached(self) -> np.ndarray:
        """In the cache; MissingStage when the rows have changed since."""
        column = self._column("cached")
        return np.zeros(len(self.usable), bool) if column is None else column.to_numpy()

    @cached_property
    def _sides(self) -> tuple[np.ndarray, pa.Array] | None:
        column = self._column("split")
        return None if column is None else dictionary_codes(column)

    def _column(self, name: str) -> pa.ChunkedArray | None:
        path = self.folder / f"{name}.arrow"
        if not path.is_file():
            if name in ("kept", "split"):
                self._check_never_made(path, {"kept": "prune", "split": "split"}[name])
            return None
        table = read_table(path)
        stage = {"kept": "prune", "split": "split", "cached": "cache"}[name]
        if (
            table.num_rows != self.rows.num_rows
            or table.schema.metadata[b"rows"] != self.fingerprint.encode()
        ):
            raise MissingStage(f"the photographs have changed since `ft {stage}`: run `ft {stage}` again")
        if name != "cached" and table.schema.metadata.get(b"clean", b"") != self.clean_fingerprint.encode():
            raise MissingStage(
                f"`ft clean` has changed who is who since `ft {stage}`: run `ft {stage}` again"
            )
        return table[name]

    def _check_never_made(self, path: Path, stage: str) -> None:
        """A column that is gone while its stage's record is there was lost: going on would undo the stage unasked."""
        values = self._parameters(stage)
        if values is None:
            return
        if stage == "clean":
            raise self._lost_marks("gone")
        said = {
            "prune": lambda: f"ft prune --min {values['min']}",
            "split": lambda: f"ft split {values['ratio']:g} --by {values['by']} --seed {values['seed']}",
        }
        try:
            again = said[stage]()
        except (LookupError, TypeError, ValueError):
            again = f"ft {stage}"
        raise MissingStage(f"{path} is gone: run `{again}` again (or `ft {stage} --undo`)")

    def _parameters(self, stage: str) -> dict[str, Any] | None:
        """Of the stage's record; None where there is none that can be read."""
        try:
            record = json.loads((self.folder / "stages" / f"{stage}.json").read_text())
            return dict(record["parameters"])
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _lost_marks(self, how: str) -> MissingStage:
        files = ", ".join(map(str, (self._parameters("clean") or {}).get("files", [])))
        return MissingStage(
            f"{self.folder / 'clean.arrow'} is {how}: run `ft clean --undo`, then apply again what was applied"
            + (f": {files}" if files else "")
        )

    @property
    def fingerprint(self) -> str:
        """That of rows.arrow."""
        return self.rows.schema.metadata[b"fingerprint"].decode()

    @property
    def kept_fingerprint(self) -> str:
        """That of kept.arrow; empty before `ft prune`."""
        return table_fingerprint(self.folder / "kept.arrow") or ""

    @property
    def clean_fingerprint(self) -> str:
        """That of clean.arrow; empty where there are no marks."""
        try:
            return (table_fingerprint(self.folder / "clean.arrow") or "") if self.has_marks else ""
        except UserError:
            raise self._lost_marks("damaged") from None

    @property
    def inputs(self) -> dict[str, str]:
        """For stage records: what says which photographs there are, and whose."""
        cleaned = self.clean_fingerprint
        return {"rows": self.fingerprint} | ({"clean": cleaned} if cleaned else {})

    def is_cleaned_since(self, inputs: dict[str, str]) -> bool:
        """Whether a stage with these `inputs` saw other marks of `ft clean`."""
        return inputs.get("clean", "") != self.clean_fingerprint

    def write_column(self, name: str, values: pa.Array) -> str:
        """Write ``kept``, ``split`` or ``cached``, one value per row; return the file's fingerprint."""
        schema = pa.schema([(name, values.type)], metadata=self.inputs)
        return write_table(self.folder / f"{name}.arrow", pa.table([values], schema=schema))

    @cached_property
    def people(self) -> tuple[np.ndarray, pa.Array]:
        """(code of each row's identity, int32, -1 where it has none; the identities that the codes stand for). As
        `ft clean` has corrected them: ``rows["identity"]`` is the folder."""
        codes, names = dictionary_codes(self.rows["identity"])
        if self.marks is None:
            return codes, names
        renamed = pc.is_valid(self.marks["identity"]).to_numpy() & (self.marked >= 0)
        becomes = self.marks["identity"].filter(pa.array(renamed)).combine_chunks()
        names = pa.concat_arrays([names, becomes]).unique()  # those of the rows keep their codes
        codes = codes.copy()
        codes[self.marked[renamed]] = pc.index_in(becomes, value_set=names).to_numpy()
        return codes, names

    def identities(self, rows: np.ndarray) -> list[str | None]:
        """Names of the people of these rows, as `people` has them."""
        codes, names = self.people
        found: list[str | None] = names.take(pa.array(codes[rows], mask=codes[rows] < 0)).to_pylist()
        return found

    def count_people(self, mask: np.ndarray) -> tuple[int, int]:
        """(people, photographs) among the rows of ``mask``."""
        codes, names = self.people
        codes = codes[mask]
        present = np.zeros(len(names) + 1, bool)
        present[codes] = True
        return int(np.count_nonzero(present[:-1])), len(codes)

    def status_counts(self) -> dict[str, int]:
        """Photographs by status, in the order of STATUSES, those of none left out."""
        counts = count_statuses(self.rows["status"])
        undecodable = counts[ALIGNED] - int(self.usable.sum())
        counts |= {ALIGNED: counts[ALIGNED] - undecodable, "undecodable": undecodable}
        return {status: count for status, count in counts.items() if count}


def count_statuses(statuses: pa.ChunkedArray) -> dict[str, int]:
    """How many rows there are of each of STATUSES."""
    codes, names = dictionary_codes(statuses)
    counts = dict(zip(names.to_pylist(), np.bincount(codes, minlength=len(names)).tolist(), strict=True))
    return {status: counts.get(status, 0) for status in STATUSES}


def read_index(folder: Path) -> Index:
    """The index in a dataset's folder. Raises MissingStage before the first align."""
    path = folder / "rows.arrow"
    if not path.is_file():
        raise MissingStage("nothing is aligned yet: run `ft align RAW ALIGNED` first")
    return Index(folder, read_table(path))
