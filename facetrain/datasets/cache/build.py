"""The decoded cache: Arrow shards brought up to date with the crops and the index.

A leaf's shard holds the kept rows, and those it held before that still exist: so prune and split never cause work,
and a shard's name, the hash of its rows, says whether it is the right one. Pixels are copied from older shards by
content hash wherever they are known; only the rest is decoded.

While DALI decodes, one thread reads and hashes the crops of the next leaf, and another writes the shard before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from facetrain.datasets.cache.cached_pixels import CachedPixels
from facetrain.datasets.cache.check import remove_damaged
from facetrain.datasets.cache.crop_reader import CropReader, content_array, content_bytes, list_crops
from facetrain.datasets.cache.decode import device_number
from facetrain.datasets.cache.leaf_builder import LeafBuilder
from facetrain.datasets.cache.manifest import MANIFEST, Manifest, read_manifest
from facetrain.datasets.cache.plan import Plan, make_plan
from facetrain.datasets.cache.shards import DecodeSpec
from facetrain.datasets.cache.undecodable import forget_replaced
from facetrain.file_table import FileTable
from facetrain.image_spec import ImageSpec
from facetrain.index import Index, read_index
from facetrain.tables import positions


@dataclass(frozen=True)
class CacheReport:
    """What a cache run did: images decoded, copied from older shards; shards written, used as they were."""

    images: int
    decoded: int
    copied: int
    undecodable: int
    undecodable_list: Path
    absent: int  # crops that the index knows and the aligned tree has not, or that cannot be read
    changed: int  # crops cached as they are, though other than when they were aligned
    shards_written: int
    shards_kept: int
    damaged: list[str]  # shards found to be other than when they were written, and made again
    bytes: int
    fingerprint: str
    seconds: float


def build_cache(
    index: Index,
    aligned: Path,
    shard_folder: Path,
    *,
    threads: int,
    device: str = "cpu",
    on_start: Callable[[int], None] = lambda total: None,
    on_progress: Callable[[int, int], None] = lambda crops, total_bytes: None,
) -> CacheReport:
    """Bring the shards in ``shard_folder`` and the manifest in the index's folder up to date.

    A shard whose file has another size than when it was written is made again, and so is one of which pixels are
    wanted and that is not intact. ``device``: where crops are decoded, "cpu", "cuda" or "cuda:1".
    ``on_start(crops to be looked at)`` and ``on_progress(crops, bytes of the cache made or found right so far)`` are
    called as the work goes on.
    """
    started = time.monotonic()
    device_number(device)  # a name that there is
    store = index.folder
    spec = decode_spec(index.spec)
    shard_folder.mkdir(parents=True, exist_ok=True)
    before = read_manifest(store)
    damaged = remove_damaged(before, shard_folder, verify=False)
    cached = CachedPixels(before, shard_folder, spec)

    files = list_crops(aligned, index.rows["aligned"].drop_null())
    table = FileTable(store / "crops.files.arrow")
    contents = table.contents(files)
    settled = contents.is_valid().to_numpy()
    reader = CropReader(aligned, files, table, store)
    try:
        undecodable = forget_replaced(
            index, lambda crops: _contents_of(positions(crops, files["path"]), contents, reader)
        )
        index = read_index(store)
        plan = make_plan(index, files, contents, cached, spec)
        builder = LeafBuilder(
            plan,
            reader,
            cached,
            shard_folder,
            spec,
            on_undecodable=lambda rows: undecodable.add(
                [(index.rows["path"][row].as_py(), content, why) for row, content, why in rows]
            ),
            on_progress=_adding_up(on_progress, spec.row_bytes),
        )
        builder.run(threads, device, on_start)
    except BaseException:
        with suppress(OSError):  # what has been read need not be read again
            reader.save(settled)
        raise
    reader.save(settled)
    damaged = sorted({*damaged, *builder.damaged, *cached.damaged})
    if in_use := cached.damaged.intersection(builder.names):  # believed for one leaf, found out for another
        for name in in_use:
            (shard_folder / name).unlink(missing_ok=True)
        again = build_cache(index, aligned, shard_folder, threads=threads, device=device)
        return replace(
            again,
            decoded=again.decoded + builder.decoded,
            copied=again.copied + builder.copied,
            shards_written=again.shards_written + builder.written,
            shards_kept=again.shards_kept - builder.written,
            damaged=damaged,
        )

    manifest, changed = _manifest(index, plan, builder, spec, shard_folder)
    fingerprint = manifest.write(store)
    return CacheReport(
        images=manifest.table.num_rows,
        decoded=builder.decoded,
        copied=builder.copied,
        undecodable=len(undecodable.rows),
        undecodable_list=undecodable.csv,
        absent=plan.absent + builder.unreadable,
        changed=changed,
        shards_written=builder.written,
        shards_kept=len(manifest.shards) - builder.written,
        damaged=damaged,
        bytes=sum(manifest.sizes.values()),
        fingerprint=fingerprint,
        seconds=time.monotonic() - started,
    )


def decode_spec(spec: ImageSpec) -> DecodeSpec:
    """The part of an ImageSpec that decides on a shard's bytes."""
    return DecodeSpec(spec.size_px, spec.channels)


def _adding_up(on_progress: Callable[[int, int], None], row_bytes: int) -> Callable[[int], None]:
    """From crops to crops and all bytes so far."""
    total = 0

    def advance(crops: int) -> None:
        nonlocal total
        total += crops * row_bytes
        on_progress(crops, total)

    return advance


def _contents_of(places: np.ndarray, contents: pa.ChunkedArray, reader: CropReader) -> list[bytes | None]:
    """The contents of some crops by their places in the listing, read where they are not known; None for no crop."""
    found: list[bytes | None] = []
    for place in places.tolist():
        content = contents[place].as_py() if place >= 0 else None
        if place >= 0 and content is None:
            read = reader.read(np.array([place]))[0]
            content = read[1] if read else None
        found.append(content)
    return found


def _manifest(
    index: Index, plan: Plan, builder: LeafBuilder, spec: DecodeSpec, shard_folder: Path
) -> tuple[Manifest, int]:
    """The manifest, in the order of the index; and how many crops are other than when they were aligned."""
    there = builder.shard >= 0
    order = np.flatnonzero(there)[np.argsort(plan.row[there])]
    rows = plan.row[order]
    codes, names = index.people
    identity = pa.DictionaryArray.from_arrays(pa.array(codes[rows]), names)
    content = plan.content[order]
    path = _rows_of(index.rows["path"], rows)
    where = pa.array(builder.shard[order]), pa.array(builder.shard_row[order])
    table = pa.table([path, identity, content_array(content), *where], schema=MANIFEST)
    aligned_content, known = content_bytes(_rows_of(index.rows["aligned_content"], rows))
    changed = int(np.count_nonzero(known & (aligned_content != content).any(axis=1)))
    sizes = {name: (shard_folder / name).stat().st_size for name in builder.names}
    return Manifest(table, builder.names, spec, sizes), changed


def _rows_of(column: pa.ChunkedArray, rows: np.ndarray) -> pa.ChunkedArray:
    """The values at these ascending rows; all of them are not copied."""
    return column if len(rows) == len(column) else column.take(pa.array(rows))
