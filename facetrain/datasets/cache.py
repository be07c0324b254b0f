"""The decoded cache: Arrow shards brought up to date with the crops and the index.

A leaf's shard holds the kept rows, and those it held before that still exist: so prune and split never cause work,
and a shard's name, the hash of its rows, says whether it is the right one. Pixels are copied from older shards by
content hash wherever they are known; only the rest is decoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3

from facetrain.datasets.check import remove_damaged
from facetrain.datasets.decode import Decoder
from facetrain.datasets.manifest import MANIFEST, Manifest, read_manifest
from facetrain.datasets.shards import (
    DecodeSpec,
    assign_leaves,
    identity_hash,
    map_shard,
    shard_name,
    write_shard,
)
from facetrain.datasets.undecodable import Undecodable, forget_replaced
from facetrain.errors import UserError
from facetrain.file_table import FileTable, walk
from facetrain.files import file_fingerprint
from facetrain.image_spec import ImageSpec
from facetrain.index import Index, read_index
from facetrain.tables import CONTENT


@dataclass(frozen=True)
class CacheReport:
    """What a cache run did: images decoded, copied from older shards; shards written, used as they were."""

    images: int
    decoded: int
    copied: int
    undecodable: int
    undecodable_list: Path
    absent: int  # crops that the index knows and the aligned tree has not
    shards_written: int
    shards_kept: int
    shards_damaged: int  # found to be other than when they were written, and made again
    bytes: int
    fingerprint: str
    seconds: float


def build_cache(
    index: Index,
    aligned: Path,
    shard_folder: Path,
    *,
    threads: int,
    verify: bool = False,
    on_start: Callable[[int], None] = lambda total: None,
    on_progress: Callable[[int, int], None] = lambda images, total_bytes: None,
) -> CacheReport:
    """Bring the shards in ``shard_folder`` and the manifest in the index's folder up to date.

    A shard whose file has another size than when it was written is made again; with ``verify`` every crop and every
    shard is hashed, so that one flipped bit is found.
    ``on_start(images to decode at most)`` and ``on_progress(images, bytes)`` are called as the work goes on.
    """
    started = time.monotonic()
    store = index.folder
    spec = decode_spec(index.spec)
    shard_folder.mkdir(parents=True, exist_ok=True)
    if verify:
        (store / "crops.files.arrow").unlink(missing_ok=True)
    before = read_manifest(store)
    damaged = remove_damaged(before, shard_folder, verify)
    old = _Old.read(store, shard_folder, spec)
    files = _crop_contents(store, aligned)
    undecodable = forget_replaced(index, files)
    plan, absent = _plan(read_index(store), files, old, spec)
    builder = _Builder(aligned, shard_folder, spec, threads, old, undecodable, on_progress)

    leaves = [plan.slice(start, length) for start, length in _runs(plan["leaf"].to_numpy())]
    missing = [leaf for leaf in leaves if not (shard_folder / _name(spec, leaf)).is_file()]
    on_start(sum(pc.sum(pc.invert(pc.is_in(leaf["content"], old.contents))).as_py() or 0 for leaf in missing))
    parts: list[pa.Table] = []
    names: list[str] = []
    for leaf in leaves:
        leaf, name = builder.build(leaf)
        if leaf.num_rows:
            row = _dense(leaf)
            shard = np.full(len(row), len(names), np.int32)
            columns = [leaf["path"], leaf["identity"], leaf["content"], pa.array(shard), pa.array(row)]
            parts.append(pa.table(columns, schema=MANIFEST))
            names.append(name)
    hashes = {} if before is None else before.hashes
    table = pa.concat_tables([MANIFEST.empty_table(), *parts]).sort_by("path")
    sizes = {name: (shard_folder / name).stat().st_size for name in names}
    hashes = {name: hashes.get(name) or file_fingerprint(shard_folder / name) for name in names}
    fingerprint = Manifest(table, names, spec, sizes, hashes).write(store)
    return CacheReport(
        images=table.num_rows,
        decoded=builder.decoded,
        copied=builder.copied,
        undecodable=len(undecodable.rows),
        undecodable_list=undecodable.csv,
        absent=absent,
        shards_written=builder.written,
        shards_kept=len(names) - builder.written,
        shards_damaged=damaged,
        bytes=sum(sizes.values()),
        fingerprint=fingerprint,
        seconds=time.monotonic() - started,
    )


def decode_spec(spec: ImageSpec) -> DecodeSpec:
    """The part of an ImageSpec that decides on a shard's bytes."""
    return DecodeSpec(spec.size_px, spec.channels)


@dataclass(frozen=True)
class _Old:
    """What earlier runs left: where pixels of a content lie, and which (identity, content) pairs were cached."""

    shards: list[Path]
    contents: pa.Array
    shard: np.ndarray
    row: np.ndarray
    keys: pa.Array  # identity + "\0" + content

    @classmethod
    def read(cls, store: Path, shard_folder: Path, spec: DecodeSpec) -> _Old:
        manifest = read_manifest(store)
        if manifest is None or manifest.spec != spec:
            empty = np.zeros(0, np.int32)
            return cls([], pa.array([], CONTENT), empty, empty, pa.array([], pa.binary()))
        paths = [shard_folder / name for name in manifest.shards]
        there = np.array([path.is_file() for path in paths], bool)
        table = manifest.table.filter(pa.array(there[manifest.table["shard"].to_numpy()], pa.bool_()))
        return cls(
            paths,
            table["content"].combine_chunks(),
            table["shard"].to_numpy(),
            table["row"].to_numpy(),
            _keys(table).combine_chunks(),
        )


def _keys(table: pa.Table) -> pa.ChunkedArray:
    parts = table["identity"].cast(pa.binary()), table["content"].cast(pa.binary())
    return pc.binary_join_element_wise(*parts, b"\0")


def _crop_contents(store: Path, aligned: Path) -> pa.Table:
    """aligned, content: the crops that are there and the hashes of their bytes as they are now."""
    crop_files = FileTable(store / "crops.files.arrow")
    crop_files.refresh(aligned, walk(aligned).files)
    crop_files.save()
    return crop_files.table.select(["path", "content"]).rename_columns(["aligned", "content"])


def _plan(index: Index, files: pa.Table, old: _Old, spec: DecodeSpec) -> tuple[pa.Table, int]:
    """path, identity, crop, content, leaf of the rows to be cached, by leaf, identity and content; absent crops."""
    rows = index.rows.select(["path", "identity", "aligned"]).append_column("kept", pa.array(index.kept))
    rows = rows.filter(pa.array(index.usable))
    rows = rows.set_column(1, "identity", rows["identity"].cast(pa.string()))
    position = pc.index_in(rows["aligned"], files["aligned"])
    absent = pc.sum(pc.and_(pc.is_null(position), rows["kept"])).as_py() or 0
    rows = rows.append_column("content", files["content"].take(position)).filter(pc.is_valid(position))
    if not rows.num_rows:
        raise UserError("none of the crops that the index names is there: run `ft align` again")

    people = rows["identity"].combine_chunks().dictionary_encode()
    code = people.indices.to_numpy()
    names = people.dictionary.to_pylist()
    leaf_of_person = assign_leaves(
        identity_hash(names), np.bincount(code, minlength=len(names)), spec.rows_per_shard
    )
    rows = rows.append_column("leaf", pa.array(leaf_of_person[code]))
    wanted = pc.or_(rows["kept"], pc.is_in(_keys(rows), old.keys))
    return rows.filter(wanted).sort_by(
        [(n, "ascending") for n in ("leaf", "identity", "content", "path")]
    ), absent


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """(start, length) of the runs of equal values."""
    edges = np.flatnonzero(np.diff(values)) + 1
    starts = np.concatenate([[0], edges]) if len(values) else np.zeros(0, np.int64)
    return [(int(a), int(b - a)) for a, b in zip(starts, np.append(starts[1:], len(values)), strict=True)]


def _first_of_each(leaf: pa.Table) -> np.ndarray:
    """bool per row: the first of its (identity, content); copies of a photograph share one row of the shard."""
    keys = _keys(leaf).combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.ones(len(keys), bool)
    first[1:] = keys[1:] != keys[:-1]
    return first


def _dense(leaf: pa.Table) -> np.ndarray:
    """The shard's row of each row of the leaf, int32."""
    return (np.cumsum(_first_of_each(leaf)) - 1).astype(np.int32)


def _name(spec: DecodeSpec, leaf: pa.Table) -> str:
    rows = leaf.filter(pa.array(_first_of_each(leaf)))
    people = rows["identity"].combine_chunks()
    runs = _runs(people.dictionary_encode().indices.to_numpy())
    names = [people[start].as_py() for start, _ in runs]
    return shard_name(spec, names, [length for _, length in runs], b"".join(rows["content"].to_pylist()))


class _Builder:
    """Makes the shards that are not there yet, one at a time."""

    def __init__(
        self,
        aligned: Path,
        shard_folder: Path,
        spec: DecodeSpec,
        threads: int,
        old: _Old,
        undecodable: Undecodable,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self.aligned, self.shard_folder, self.spec = aligned, shard_folder, spec
        self.old, self.undecodable = old, undecodable
        self.decoder = Decoder(spec.size_px, threads)
        self.on_progress = on_progress
        self.decoded = self.copied = self.written = self.bytes = 0

    def build(self, leaf: pa.Table) -> tuple[pa.Table, str]:
        """Write the leaf's shard unless it is there; return the leaf without what cannot be decoded, and the name."""
        name = _name(self.spec, leaf)
        if (self.shard_folder / name).is_file():
            return leaf, name
        images, bad = self._pixels(leaf.filter(pa.array(_first_of_each(leaf))))
        if bad:
            has_pixels = pc.invert(pc.is_in(leaf["content"], pa.array(sorted(bad), CONTENT)))
            without = leaf.filter(pc.invert(has_pixels)).select(["path", "content"]).to_pylist()
            self.undecodable.add([(row["path"], row["content"], bad[row["content"]]) for row in without])
            leaf = leaf.filter(has_pixels)
            if not leaf.num_rows:
                return leaf, ""
            name = _name(self.spec, leaf)
        rows = leaf.filter(pa.array(_first_of_each(leaf)))
        path = self.shard_folder / name
        if not path.is_file():
            write_shard(path, self.spec, images, rows["content"].to_pylist(), rows["identity"].to_pylist())
            self.written += 1
        return leaf, name

    def _pixels(self, rows: pa.Table) -> tuple[np.ndarray, dict[bytes, str]]:
        """uint8 [n, H, W, 3] of the rows that have pixels, in order, and why the other contents have none."""
        size = self.spec.size_px
        images = np.empty((rows.num_rows, size, size, 3), np.uint8)
        where = pc.index_in(rows["content"], self.old.contents).to_numpy(zero_copy_only=False)
        known = np.flatnonzero(~np.isnan(where)) if where.dtype.kind == "f" else np.arange(len(where))
        sources = where[known].astype(np.int64)
        for number in np.unique(self.old.shard[sources]):
            here = self.old.shard[sources] == number
            views = map_shard(self.old.shards[number])
            pixels = views[0] if len(views) == 1 else np.concatenate(views)
            images[known[here]] = pixels[self.old.row[sources[here]]]
        self.copied += len(known)

        todo = np.setdiff1d(np.arange(rows.num_rows), known)
        crops, contents = (rows[name].take(pa.array(todo)).to_pylist() for name in ("aligned", "content"))
        reasons: dict[bytes, str] = {}
        there = np.ones(rows.num_rows, bool)
        step = 1024
        for start in range(0, len(todo), step):
            part = slice(start, start + step)
            encoded = [
                self._read(crop, content) for crop, content in zip(crops[part], contents[part], strict=True)
            ]
            out = np.empty((len(encoded), size, size, 3), np.uint8)
            for i, why in self.decoder.decode(encoded, out).items():
                reasons[contents[start + i]] = why
                there[todo[start + i]] = False
            images[todo[part]] = out
            self.decoded += len(encoded)
            self.bytes += out.nbytes
            self.on_progress(len(encoded), self.bytes)
        return images[there], reasons

    def _read(self, crop: str, content: bytes) -> np.ndarray:
        data = (self.aligned / crop).read_bytes()
        if blake3(data).digest() != content:
            raise UserError(f"{self.aligned / crop} changed while it was being cached: run `ft cache` again")
        return np.frombuffer(data, np.uint8)
