"""Photographs a second that `ft import` writes, format by format, through the command line as a user runs it.

    python benchmarks/importing.py                     20,000 made-up photographs of 10 kB
    python benchmarks/importing.py --raw PHOTOGRAPHS   a tree of your own, one folder a person

Prints a Markdown table: the import, the same again (which compares every file), and, of the first, the share of a bare
loop that writes the same files.
"""

from __future__ import annotations

import argparse
import io
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

Photograph = tuple[int, bytes]


def made_up(count: int, size: int) -> Iterator[Photograph]:
    """Bytes that begin as a JPEG does; the import does not decode them."""
    draw = random.Random(0)
    for number in range(count):
        yield number // 10, b"\xff\xd8\xff\xe0" + draw.randbytes(size - 4)


def photographs_of(raw: Path) -> Iterator[Photograph]:
    for label, person in enumerate(sorted(path for path in raw.iterdir() if path.is_dir())):
        for photograph in sorted(path for path in person.rglob("*") if path.is_file()):
            yield label, photograph.read_bytes()


def write_recordio(path: Path, photographs: list[Photograph]) -> None:
    """insightface's layout without identity records; made-up payloads hold no magic number."""
    with open(path, "wb") as rec, open(path.with_suffix(".idx"), "w") as idx:
        for key, (label, data) in enumerate(photographs):
            payload = struct.pack("<IfQQ", 0, label, key, 0) + data
            idx.write(f"{key}\t{rec.tell()}\n")
            rec.write(struct.pack("<II", 0xCED7230A, len(payload)) + payload + b"\0" * (-len(payload) % 4))


def write_bin(path: Path, photographs: list[Photograph]) -> None:
    images = [data for _, data in photographs][: len(photographs) // 4 * 4]
    path.write_bytes(pickle.dumps((images, [True, False] * (len(images) // 4)), 4))


def write_tar(path: Path, photographs: list[Photograph]) -> None:
    with tarfile.open(path, "w") as tar:
        for key, (label, data) in enumerate(photographs):
            for name, content in ((f"{key:08d}.jpg", data), (f"{key:08d}.cls", str(label).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def write_parquet(path: Path, photographs: list[Photograph]) -> None:
    labels, images = zip(*photographs, strict=True)
    pq.write_table(pa.table({"image": images, "label": labels}), path, row_group_size=1000)


def bare_loop(folder: Path, photographs: list[Photograph]) -> float:
    """Write the same files, and nothing else; seconds."""
    started = time.perf_counter()
    for number, (label, data) in enumerate(photographs):
        person = folder / f"id_{label:07d}"
        if not number or photographs[number - 1][0] != label:
            person.mkdir(parents=True, exist_ok=True)
        (person / f"{number:09d}.jpg").write_bytes(data)
    return time.perf_counter() - started


def ft_import(source: Path, out: Path, jobs: int) -> float:
    """Seconds, those that the command takes to start included."""
    command = [sys.executable, "-m", "facetrain.cli", "import", str(source), str(out), "-j", str(jobs)]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", type=Path, help="a folder of photographs, one folder a person")
    parser.add_argument("--photographs", type=int, default=20_000, help="made up, without --raw")
    parser.add_argument("--bytes", type=int, default=10_000, help="size of each")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="threads that write")
    arguments = parser.parse_args()

    made = photographs_of(arguments.raw) if arguments.raw else made_up(arguments.photographs, arguments.bytes)
    photographs = list(made)
    total = sum(len(data) for _, data in photographs)
    print(f"{len(photographs):,} photographs, {total / 1e6:,.0f} MB; -j {arguments.jobs}\n")
    print("| format | import, photographs/s | again | of a bare loop |")
    print("|---|---|---|---|")
    formats = (
        ("train.rec", write_recordio),
        ("own.bin", write_bin),
        ("0.tar", write_tar),
        ("0.parquet", write_parquet),
    )
    for name, write in formats:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            write(work / name, photographs)
            bare = bare_loop(work / "bare", photographs)
            first = ft_import(work / name, work / "out", arguments.jobs)
            again = ft_import(work / name, work / "out", arguments.jobs)
        n = len(photographs)
        print(f"| `{name}` | {n / first:,.0f} | {n / again:,.0f} | {bare / first:.0%} |", flush=True)


if __name__ == "__main__":
    main()
