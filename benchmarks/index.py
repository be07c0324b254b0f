"""The index at web scale: rows by the million through the command line, and the check for changed files.

    python benchmarks/index.py                      10 million rows, a tree of 200,000 files
    python benchmarks/index.py --rows 1000000 --files 20000

The rows are made up (`--per-person` photographs of each person, one in fifty without a face); there are no
photographs behind them. Every command is run as a user runs it, in a process of its own: seconds with start-up, and
the most memory that was resident, mapped files included. Needs about 250 bytes of disk a row, 0.7 kB of memory.

The check for changed files: a tree of small files is walked, each file's state is compared with the file table of
before (all of them unchanged, none racy), and the table is saved. Prints Markdown tables for docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from _common import hardware

from facetrain import file_table
from facetrain.file_table import FileTable, Listing, Stat, walk
from facetrain.image_spec import ImageSpec
from facetrain.index import ROWS, count_statuses
from facetrain.preprocess.aligner import AlignSettings, Outcome, Task
from facetrain.preprocess.row_update import RowUpdate, Work
from facetrain.tables import CHUNK_ROWS, read_table, write_table
from facetrain.workspace import StageRecord, Workspace


def made_up_rows(count: int, per_person: int) -> pa.Table:
    """As `ft align` would write them, sorted by path."""
    return pa.concat_tables(
        [_part(start, min(start + CHUNK_ROWS, count), per_person) for start in range(0, count, CHUNK_ROWS)]
    ).unify_dictionaries()


def _part(start: int, stop: int, per_person: int) -> pa.Table:
    rng = np.random.default_rng(start)
    number = np.arange(start, stop)
    n = len(number)
    people, person = np.unique(number // per_person, return_inverse=True)
    path = pa.array(
        [f"id_{i // per_person:08d}/{i // per_person:08d}_{i % per_person:04d}.jpg" for i in number],
        pa.large_string(),
    )
    face = rng.random(n) >= 0.02
    content, crop = (
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), n, [None, pa.py_buffer(rng.bytes(32 * n))])
        for _ in range(2)
    )
    present = pa.array(face)

    def where_face(values: pa.Array) -> pa.Array:
        return values.take(pa.array(np.arange(n), mask=~face))

    box = pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 250, 4 * n), pa.int32()), 4)
    offsets = pa.array(np.concatenate([[0], np.cumsum(10 * face)]), pa.int64())
    landmarks = pa.LargeListArray.from_arrays(
        offsets, pa.array(rng.random(10 * int(face.sum()), np.float32)), mask=pa.array(~face)
    )
    columns = {
        "path": path,
        "identity": pa.DictionaryArray.from_arrays(
            pa.array(person, pa.int32()), [f"id_{p:08d}" for p in people]
        ),
        "status": pa.DictionaryArray.from_arrays(pa.array(~face).cast(pa.int32()), ["aligned", "no-face"]),
        "reason": pa.array(np.where(face, None, "no face found"), pa.string()),
        "content": content,
        "size_bytes": pa.array(rng.integers(8_000, 200_000, n), pa.int64()),
        "width_px": pa.array(np.full(n, 250), pa.int32()),
        "height_px": pa.array(np.full(n, 250), pa.int32()),
        "faces": present.cast(pa.int16()),
        "detector_score": where_face(pa.array(rng.random(n, np.float32))),
        "box": where_face(box),
        "landmarks": landmarks,
        "aligned": where_face(path),
        "aligned_content": where_face(crop),
    }
    return pa.table([columns[f.name] for f in ROWS], schema=ROWS)


def made_up_workspace(root: Path, count: int, per_person: int) -> Path:
    """A workspace whose current dataset has these rows; the path of rows.arrow."""
    for name in ("raw", "aligned"):
        (root / name).mkdir()
    workspace = Workspace.find(root, create=True)
    workspace.create()
    dataset = workspace.add_dataset(root / "raw", root / "aligned")
    settings = AlignSettings().to_dict()
    metadata = {"image_spec": ImageSpec().to_json(), "settings": json.dumps(settings, sort_keys=True)}
    rows = made_up_rows(count, per_person).replace_schema_metadata(metadata)
    fingerprint = write_table(dataset.folder / "rows.arrow", rows)
    dataset.write_record(StageRecord("align", settings, {}, fingerprint, count_statuses(rows["status"]), 0.0))
    workspace.make_current(dataset)
    return dataset.folder / "rows.arrow"


def ft(root: Path, *arguments: str) -> tuple[float, float]:
    """Run a command; (seconds, GB resident at most)."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "facetrain.cli", "-C", str(root), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, code, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        sys.exit(f"ft {' '.join(arguments)}: exit code {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e9


def update_rows(root: Path, changed: int) -> tuple[float, float]:
    """What `ft align` does between the walks and the end, when so many photographs have changed; as `ft`."""
    store = Workspace.find(root).dataset().folder
    rows = read_table(store / "rows.arrow")
    long_ago = pa.array(np.full(rows.num_rows, 10**18))
    state = [rows["size_bytes"], long_ago, long_ago, pa.array(np.arange(rows.num_rows, dtype=np.uint64))]
    files = pa.table([rows["path"], *state], schema=file_table.LISTED)
    known = [*files.columns, pa.array(np.full(rows.num_rows, 2 * 10**18)), rows["content"]]
    write_table(store / "raw.files.arrow", pa.table(known, schema=file_table.SCHEMA))
    crops = pa.table({"path": rows["aligned"], "content": rows["aligned_content"]}).drop_null()
    if changed:
        times = np.full(rows.num_rows, 10**18)
        times[:: rows.num_rows // changed] += 1
        files = files.set_column(2, "mtime_ns", pa.array(times))
    started = time.perf_counter()
    settings = AlignSettings()
    update = RowUpdate(store, settings.spec, settings.to_dict(), "it", "was aligned")
    update.begin(Listing(files))
    looked_at = update.look_at(Listing(files), crops, [], _no_face, Work())
    update.finish(Listing(files), [], looked_at)
    assert looked_at == changed
    return time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _no_face(tasks: Sequence[Task]) -> list[Outcome]:
    seen = Stat(1, 10**18, 10**18, 1)
    return [Outcome(t.path, "no-face", "no face found", bytes(32), 1, stat=seen) for t in tasks]


def make_tree(root: Path, files: int, per_folder: int = 20) -> None:
    """Empty files will do: it is their state that is looked at."""
    for start in range(0, files, per_folder):
        folder = root / f"id_{start // per_folder:08d}"
        folder.mkdir(parents=True)
        for i in range(start, min(start + per_folder, files)):
            (folder / f"{i:08d}.jpg").touch()


def best(function: Callable[[], object], rounds: int) -> tuple[float, float]:
    """(fastest, median) seconds."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return min(seconds), sorted(seconds)[rounds // 2]


def check_for_changes(folder: Path, files: int, rounds: int) -> tuple[float, float]:
    """Seconds of a walk and comparison that finds nothing changed."""
    make_tree(folder / "tree", files)
    later = file_table.file_system_now_ns(folder) + 10 * file_table.RACY_NS  # so that none of them is racy
    file_table.file_system_now_ns = lambda where: later
    table = FileTable(folder / "files.arrow")
    table.refresh(folder / "tree", walk(folder / "tree").files)
    table.save()

    def check() -> None:
        known = FileTable(folder / "files.arrow")
        listing = walk(folder / "tree")
        assert known.contents(listing.files).null_count == 0, "nothing may be read again"
        known.refresh(folder / "tree", listing.files)
        known.save()

    return best(check, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--per-person", type=int, default=20)
    parser.add_argument(
        "--files", type=int, default=200_000, help="of the tree that is walked; 0 leaves it out"
    )
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{hardware()}\n")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # In a process of its own: a child is counted as large as its parent was when it was started.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            rows = pool.submit(made_up_workspace, root, arguments.rows, arguments.per_person).result()
        people = -(-arguments.rows // arguments.per_person)
        print(f"{arguments.rows:,} rows of {people:,} people, {rows.stat().st_size / 1e9:.2f} GB\n")
        print("| command | seconds, median (range) | memory, GB |\n|---|---:|---:|")
        for command in (
            ["status"],
            ["prune", "--min", "10"],
            ["split", "0.1"],
            ["status"],
            ["split", "0.1", "--by", "image"],
            ["prune", "--min", "5", "--dry-run"],
        ):
            runs = [ft(root, *command) for _ in range(arguments.rounds)]
            seconds = sorted(run[0] for run in runs)
            span = f"{seconds[len(seconds) // 2]:.2f} ({seconds[0]:.2f}–{seconds[-1]:.2f})"
            print(f"| `ft {' '.join(command)}` | {span} | {max(run[1] for run in runs):.2f} |")
        for changed in (0, 10):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                seconds, memory = pool.submit(update_rows, root, changed).result()
            print(f"| `ft align` without its walks, {changed} changed | {seconds:.1f} | {memory:.2f} |")
    if arguments.files:
        with tempfile.TemporaryDirectory() as folder:
            fastest, median = check_for_changes(Path(folder), arguments.files, arguments.rounds)
        print(
            f"\nCheck for changed files, {arguments.files:,} files, warm: {arguments.files / median:,.0f} files/s "
            f"(fastest {arguments.files / fastest:,.0f})"
        )


if __name__ == "__main__":
    main()
