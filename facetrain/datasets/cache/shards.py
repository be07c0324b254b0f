"""Arrow shards: which rows go into which, what a shard is called, writing and mapping one.

People are spread over shards by a hash of their name: a shard holds all people whose hash begins with its bits, and
where that is too much for one shard it is divided by one more bit. So an identity's rows lie together, and adding,
changing or removing a photograph concerns one shard (or divides it).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from blake3 import blake3

from facetrain.datasets.cache.shard_file import ShardFile, new_shard_file
from facetrain.files import replacing
from facetrain.tables import BLANK_FINGERPRINT, CONTENT

SHARD_BYTES = 64 << 20
PADDING = "padding"  # of a record batch's metadata
MAX_BATCH_VALUES = 2**31 - 1  # what an Arrow record batch can hold in a child array
PIXEL_ALIGNMENT = (
    1 << 16
)  # bytes; where pixels begin in the file: every page size divides it (see `shard_map`)


@dataclass(frozen=True)
class DecodeSpec:
    """What turns a crop's bytes into a shard's pixels; part of every shard's name."""

    size_px: int
    channels: str
    version: int = 2  # 2: pixels begin at multiples of PIXEL_ALIGNMENT

    @property
    def row_bytes(self) -> int:
        return self.size_px * self.size_px * 3

    @property
    def rows_per_shard(self) -> int:
        return max(1, SHARD_BYTES // self.row_bytes)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def identity_hash(names: list[str]) -> np.ndarray:
    """uint64 [n]: the hash that decides on an identity's shard."""
    digests = b"".join(blake3(name.encode()).digest(8) for name in names)
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def assign_leaves(hashes: np.ndarray, counts: np.ndarray, capacity: int) -> np.ndarray:
    """Leaf number, int64 [identities], for identities with these hashes and row counts.

    The leaves are the shallowest prefixes with at most ``capacity`` rows each; only a single identity with more rows
    than that, or equal hashes, make a larger one. Numbered in the order of the hashes.
    """
    order = np.argsort(hashes, kind="stable")
    sorted_hashes = hashes[order]
    rows_before = np.concatenate([[0], np.cumsum(counts[order])])
    leaf = np.zeros(len(hashes), np.int64)
    todo = [(0, len(hashes), 0)]
    number = 0
    while todo:
        start, stop, depth = todo.pop()
        if stop - start <= 1 or depth == 64 or rows_before[stop] - rows_before[start] <= capacity:
            if stop > start:
                leaf[order[start:stop]] = number
                number += 1
            continue
        prefix = int(sorted_hashes[start]) >> (64 - depth) << (64 - depth) if depth else 0
        middle = start + int(
            np.searchsorted(sorted_hashes[start:stop], np.uint64(prefix | (1 << (63 - depth))), side="left")
        )
        todo += [(middle, stop, depth + 1), (start, middle, depth + 1)]
    return leaf


def shard_name(spec: DecodeSpec, identities: list[str], counts: list[int], contents: bytes) -> str:
    """A shard's file name: the hash of what it is made from.

    identities and counts: its people in order and their numbers of rows; contents: the rows' hashes, one after another.
    """
    people = json.dumps([spec.to_json(), identities, counts], ensure_ascii=False)
    return blake3(people.encode() + b"\0" + contents).hexdigest(16) + ".arrow"


def shard_schema(spec: DecodeSpec, decoder: str) -> pa.Schema:
    """image: canonical fixed_shape_tensor, uint8 HWC; content: the crop's BLAKE3; identity."""
    image = pa.fixed_shape_tensor(pa.uint8(), [spec.size_px, spec.size_px, 3], dim_names=["H", "W", "C"])
    metadata = {b"facetrain.decode_spec": spec.to_json().encode(), b"facetrain.decoder": decoder.encode()}
    return pa.schema(
        [("image", image), ("content", CONTENT), ("identity", pa.string())],
        metadata=metadata | BLANK_FINGERPRINT,
    )


def write_shard(
    path: Path,
    spec: DecodeSpec,
    images: np.ndarray,
    contents: list[bytes],
    identities: list[str],
    *,
    decoder: str = "cpu",
    on_written: Callable[[], None] = lambda: None,
) -> None:
    """Write uint8 [n, size_px, size_px, 3] as an Arrow IPC file, uncompressed, whole or not at all.

    It carries its fingerprint, as tables do (`tables.is_intact`). ``decoder``: what made the pixels, for its metadata.
    ``on_written`` is called when ``images`` is no longer needed, before it is known to be on the disk.
    """
    schema = shard_schema(spec, decoder)
    per_batch = min(MAX_BATCH_VALUES // spec.row_bytes, len(images))
    with replacing(path) as temp:
        with new_shard_file(temp) as sink:
            _write_batches(sink, schema, spec, images, contents, identities, per_batch)
        on_written()


def _write_batches(
    sink: ShardFile,
    schema: pa.Schema,
    spec: DecodeSpec,
    images: np.ndarray,
    contents: list[bytes],
    identities: list[str],
    per_batch: int,
) -> None:
    with pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, len(images), per_batch):
            rows = slice(start, start + per_batch)
            flat = pa.array(images[rows].reshape(-1))
            storage = pa.FixedSizeListArray.from_arrays(flat, spec.row_bytes)
            image = pa.ExtensionArray.from_storage(schema.field("image").type, storage)
            columns = [image, pa.array(contents[rows], CONTENT), pa.array(identities[rows], pa.string())]
            batch = pa.record_batch(columns, schema=schema)
            padding = -(sink.tell() + _header_bytes(batch.slice(0, 1), start == 0)) % PIXEL_ALIGNMENT
            writer.write_batch(batch, custom_metadata={PADDING: " " * padding})


def _header_bytes(batch: pa.RecordBatch, first: bool) -> int:
    """Bytes that an Arrow file holds of a batch ahead of its pixels when no padding is in its metadata.

    Of the first that is written, the schema's too: it is written with it.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        if not first:
            writer.write_batch(batch)
        before = sink.tell()
        writer.write_batch(batch, custom_metadata={PADDING: ""})
    written = sink.getvalue()
    last = pa.ipc.open_file(written).get_batch(0 if first else 1)
    pixels = last.column("image").storage.values.buffers()[1]
    return int(pixels.address - written.address - before)


def map_shard(path: Path) -> list[np.ndarray]:
    """The images of a shard, memory-mapped: read-only uint8 [n, H, W, 3] views, one per record batch."""
    source = pa.memory_map(str(path))
    reader = pa.ipc.open_file(source)
    views = []
    for number in range(reader.num_record_batches):
        image = reader.get_batch(number).column("image")
        values = np.frombuffer(image.storage.flatten().buffers()[1], np.uint8)
        size = image.type.shape
        views.append(values[: len(image) * int(np.prod(size))].reshape(len(image), *size))
    return views


def decoder_of(path: Path) -> str:
    """What made the pixels of a shard: "cpu", "mixed" (a GPU), or "cpu+mixed"."""
    with pa.memory_map(str(path)) as source:
        decoder: bytes = pa.ipc.open_file(source).schema.metadata[b"facetrain.decoder"]
    return decoder.decode()
