"""The kept crops as Parquet files that Hugging Face's `datasets.load_dataset` opens with no code.

    OUT/README.md                                dataset card: the files of each split, their sizes, the ImageSpec
    OUT/data/train-00000-of-00012.parquet        image, label, identity, path
    OUT/data/validation-00000-of-00002.parquet

Layout and sizes are those of Hugging Face's `push_to_hub`: the columns' features in the schema's metadata under
``huggingface``, files of at most 500 MB, row groups well under 100 MB, with a page index, by which a viewer reads a few
rows. Everything is written into a hidden folder beside OUT, which takes OUT's name when all of it is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from facetrain.errors import Locked, MissingStage, UserError
from facetrain.files import fsync_folder, naming
from facetrain.image_spec import ImageSpec
from facetrain.index import Index
from facetrain.workspace import locked

FILE_BYTES = 500_000_000
ROW_GROUP_BYTES = 32_000_000
MOST_ROWS_AT_A_TIME = 256

COLUMNS = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),  # the crop's file, as it is
        ("label", pa.int64()),  # dense from 0, in the order of the sorted identities of all splits
        ("identity", pa.string()),
        ("path", pa.string()),  # of the photograph, relative to RAW
    ]
)


@dataclass(frozen=True)
class SplitReport:
    """What was written of one split. ``bytes``: of its rows in memory, as Hugging Face counts them."""

    crops: int
    people: int
    files: int
    bytes: int
    file_bytes: int


@dataclass(frozen=True)
class ParquetReport:
    """What an export wrote, by the name of the split: ``train``, and ``validation`` when there is one."""

    splits: dict[str, SplitReport]
    people: int
    seconds: float


def export_parquet(
    index: Index,
    aligned: Path,
    out: Path,
    *,
    made_by: str = "align",
    jobs: int = 1,
    on_start: Callable[[int], None] = lambda total: None,
    on_progress: Callable[[int, int], None] = lambda crops, total_bytes: None,
) -> ParquetReport:
    """Write the kept crops of ``aligned`` as Parquet files below ``out``, whole or not at all, in bounded memory.

    Every crop must have the hash that the index knows. ``made_by``: the command that made the index, for messages.
    ``on_start(crops)`` and ``on_progress(crops, bytes so far)`` are called as the work goes on.

    :param out: a new or empty folder.
    :param jobs: threads that read.
    :raises UserError: ``out`` is something else, nothing is kept, or crops have changed since they were aligned.
    """
    started = time.monotonic()
    out = out.resolve()
    check_out(out)
    parts = _parts(index)
    labels = _Labels.of(index)
    crops = _Crops(index, aligned, labels, made_by, jobs, on_progress)
    schema = _schema(labels.names, index.spec)
    with naming(out), _appearing(out) as folder:
        on_start(sum(map(len, parts.values())))
        (folder / "data").mkdir()
        splits = {}
        for split, rows in parts.items():
            files = _SplitFiles(folder / "data", split, schema)
            with files:
                for table in crops.row_groups(rows):
                    files.write(table)
            splits[split] = SplitReport(
                crops=len(rows),
                people=len(np.unique(labels.of_row[rows])),
                files=files.count,
                bytes=files.bytes,
                file_bytes=files.file_bytes,
            )
        crops.check()
        card = dataset_card(out.name, splits, len(labels.names), index.spec)
        with open(folder / "README.md", "x", encoding="utf-8") as file:
            file.write(card)
            os.fsync(file.fileno())
        fsync_folder(folder / "data")
        fsync_folder(folder)
    return ParquetReport(splits, len(labels.names), time.monotonic() - started)


def check_out(out: Path) -> None:
    """Raise UserError unless ``out`` is a new or empty folder."""
    if out.is_dir() and os.path.ismount(out):
        raise UserError(f"{out} is a mount point: name a new folder in it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already and not empty: name a new folder, or remove it first")


@contextlib.contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder that becomes ``out`` when the block ends well. What a killed run has left of its own is removed."""
    folder = out.parent / f".{out.name}.ft-export"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / "lock", str(out)):
            try:
                for left in folder.iterdir():
                    if left.is_dir():
                        shutil.rmtree(left)
                    elif left.name != "lock":
                        left.unlink()
                yield folder
                check_out(out)
                (folder / "lock").unlink()
                os.replace(folder, out)
                fsync_folder(out.parent)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    except Locked:
        raise Locked(f"another command is exporting to {out}: wait for it to end") from None


def _parts(index: Index) -> dict[str, np.ndarray]:
    """Rows of each split, int64, ascending; a split of none is left out."""
    if index.split is None:
        masks = {"train": index.kept}
    else:
        masks = {"train": index.part("train"), "validation": index.part("val")}
    parts = {split: np.flatnonzero(mask) for split, mask in masks.items()}
    parts = {split: rows for split, rows in parts.items() if len(rows)}
    if not parts:
        raise UserError(
            "no photographs are left to export: `ft prune --min` with a smaller number keeps more"
        )
    return parts


@dataclass(frozen=True)
class _Labels:
    """names: of the kept people, sorted; of_row: int64 [rows], -1 where the person is not kept."""

    names: list[str]
    of_row: np.ndarray

    @classmethod
    def of(cls, index: Index) -> _Labels:
        codes, people = index.people
        present = people.take(pa.array(np.unique(codes[index.kept]))).to_pylist()
        names = sorted(present)
        rank = {name: label for label, name in enumerate(names)}
        label_of_code = [rank.get(name, -1) for name in people.to_pylist()]
        return cls(names, np.array([*label_of_code, -1], np.int64)[codes])  # code -1: nobody


def _schema(names: list[str], spec: ImageSpec) -> pa.Schema:
    """COLUMNS, and what Hugging Face's datasets is to make of them."""
    features = {
        "image": {"_type": "Image"},
        "label": {"names": names, "_type": "ClassLabel"},
        "identity": {"dtype": "string", "_type": "Value"},
        "path": {"dtype": "string", "_type": "Value"},
    }
    info = json.dumps({"info": {"features": features}}, ensure_ascii=False)
    return COLUMNS.with_metadata({"huggingface": info, "facetrain.image_spec": spec.to_json()})


class _Crops:
    """Reads crops in the order of rows, and checks each against the index."""

    def __init__(
        self,
        index: Index,
        aligned: Path,
        labels: _Labels,
        made_by: str,
        jobs: int,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self.rows = index.rows.select(["path", "aligned", "aligned_content"])
        self.aligned, self.labels, self.made_by = aligned, labels, made_by
        self.jobs, self.on_progress = jobs, on_progress
        pixels_bytes = index.spec.size_px**2 * 3  # which a PNG may come close to
        self.at_a_time = max(1, min(MOST_ROWS_AT_A_TIME, ROW_GROUP_BYTES // pixels_bytes))
        self.bytes = self.bad = 0
        self.first_bad = ""

    def row_groups(self, rows: np.ndarray) -> Iterator[pa.Table]:
        """The crops of these rows, as COLUMNS, in tables of about ROW_GROUP_BYTES.

        From the first bad crop on nothing comes any more, but the others are looked at all the same, to be counted.
        """
        waiting: list[pa.Table] = []
        with ThreadPoolExecutor(self.jobs) as threads:
            for start in range(0, len(rows), self.at_a_time):
                part = rows[start : start + self.at_a_time]
                table, size = self._read(part, threads)
                self.bytes += size
                self.on_progress(len(part), self.bytes)
                if self.bad:
                    waiting = []
                    continue
                waiting.append(table)
                if sum(table.nbytes for table in waiting) + table.nbytes > ROW_GROUP_BYTES:
                    yield pa.concat_tables(waiting)
                    waiting = []
        if waiting:
            yield pa.concat_tables(waiting)

    def check(self) -> None:
        """Raise MissingStage when a crop was other than the index knows it."""
        if self.bad:
            what = "1 crop has" if self.bad == 1 else f"{self.bad:,} crops have"
            raise MissingStage(
                f"{what} changed or gone since `ft {self.made_by}`, such as {self.first_bad}; nothing was exported: "
                f"run `ft {self.made_by}` again first"
            )

    def _read(self, rows: np.ndarray, threads: ThreadPoolExecutor) -> tuple[pa.Table, int]:
        first = int(rows[0])  # a slice costs nothing, and leaves little to take from
        here = self.rows.slice(first, int(rows[-1]) - first + 1).take(pa.array(rows - first))
        crops = here["aligned"].to_pylist()
        each = threads.map(self._read_crop, crops) if self.jobs > 1 else map(self._read_crop, crops)
        data = list(each)
        for crop, found, content in zip(crops, data, here["aligned_content"].to_pylist(), strict=True):
            if found is None or blake3(found).digest() != content:
                self.bad += 1
                self.first_bad = self.first_bad or crop
        labels = self.labels.of_row[rows]
        columns = [
            pa.StructArray.from_arrays(
                [pa.array(data, pa.binary()), pa.array(crops, pa.string())], ["bytes", "path"]
            ),
            pa.array(labels),
            pa.array([self.labels.names[label] for label in labels.tolist()], pa.string()),
            here["path"].cast(pa.string()),
        ]
        return pa.table(columns, schema=COLUMNS), sum(len(item or b"") for item in data)

    def _read_crop(self, crop: str) -> bytes | None:
        try:
            return (self.aligned / crop).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None


class _SplitFiles:
    """The files of one split, each of at most FILE_BYTES; named when their number is known, at the end."""

    def __init__(self, folder: Path, split: str, schema: pa.Schema) -> None:
        self.folder, self.split, self.schema = folder, split, schema
        self.count = self.bytes = self.file_bytes = 0
        self._file: pa.OSFile | None = None
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append a row group."""
        if self._file is not None and self._file.tell() + table.nbytes > FILE_BYTES:
            self._close()
        if self._writer is None:
            self._file = pa.OSFile(str(self._path(self.count)), "wb")
            self._writer = pq.ParquetWriter(
                self._file,
                self.schema,
                compression={"image.bytes": "none", "image.path": "zstd"}
                | dict.fromkeys(COLUMNS.names[1:], "zstd"),
                use_dictionary=["label", "identity"],
                write_statistics=COLUMNS.names[1:],
                write_page_index=True,
                write_page_checksum=True,
            )
            self.count += 1
        self._writer.write_table(table.replace_schema_metadata(self.schema.metadata), table.num_rows)
        self.bytes += table.nbytes

    def __enter__(self) -> _SplitFiles:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *rest: object) -> None:
        if error_type is None:
            self._close()
            for number in range(self.count):
                final = f"{self.split}-{number:05d}-of-{self.count:05d}.parquet"
                os.replace(self._path(number), self.folder / final)
        else:
            with contextlib.suppress(OSError):  # on a full disk its end cannot be written: it goes anyway
                self._close()

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.split}-{number:05d}"

    def _close(self) -> None:
        if self._writer is None or self._file is None:
            return
        writer, file, self._writer, self._file = self._writer, self._file, None, None
        try:
            writer.close()
        finally:
            file.close()
        path = self._path(self.count - 1)
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
        self.file_bytes += path.stat().st_size


def dataset_card(name: str, splits: dict[str, SplitReport], people: int, spec: ImageSpec) -> str:
    """README.md: in front what Hugging Face reads (YAML), then the same for people."""
    crops = sum(split.crops for split in splits.values())
    front = [
        "---",
        f"pretty_name: {json.dumps(name)}",
        "tags:",
        "- face-recognition",
        "size_categories:",
        f"- {_size_category(crops)}",
        "configs:",
        "- config_name: default",
        "  data_files:",
    ]
    for split in splits:
        front += [f"  - split: {split}", f"    path: data/{split}-*"]
    front += ["dataset_info:", "  splits:"]
    for split, report in splits.items():
        front += [
            f"  - name: {split}",
            f"    num_bytes: {report.bytes}",
            f"    num_examples: {report.crops}",
        ]
    front += [
        f"  download_size: {sum(split.file_bytes for split in splits.values())}",
        f"  dataset_size: {sum(split.bytes for split in splits.values())}",
        "---",
    ]
    rows = [
        f"| {split} | {report.crops:,} | {report.people:,} | {report.files:,} | {report.file_bytes / 1e6:,.1f} |"
        for split, report in splits.items()
    ]
    text = f"""
# {name}

{crops:,} aligned face crops of {people:,} people, {spec.size_px} × {spec.size_px} pixels, written by facetrain.

| split | crops | people | files | MB |
|---|---|---|---|---|
{chr(10).join(rows)}

- `image`: the crop's {spec.format.upper()} file, as it was stored
- `label`: the person's number, a ClassLabel over the people of all splits
- `identity`: the person's name
- `path`: the photograph that the crop was made from

How the crops were made (facetrain's ImageSpec, also in the metadata of every file):

```json
{json.dumps(json.loads(spec.to_json()), indent=2)}
```

The rows lie in the order of their paths, a person's together: shuffle them for training. These are photographs of
people: state here where they are from, and what may be done with them.
"""
    return "\n".join(front) + "\n" + text


def _size_category(crops: int) -> str:
    """Hugging Face's name for how many rows there are."""
    steps = [(10**3, "1K"), (10**4, "10K"), (10**5, "100K"), (10**6, "1M"), (10**7, "10M"), (10**8, "100M")]
    if crops < steps[0][0]:
        return "n<1K"
    for (_, low), (limit, high) in zip(steps, steps[1:], strict=False):
        if crops < limit:
            return f"{low}<n<{high}"
    return "100M<n<1B"
