"""insightface's training sets: dmlc RecordIO (`train.rec`, `train.idx`), read without mxnet.

A record on disk, all numbers little-endian:

    uint32 0xced7230a   magic
    uint32              upper 3 bits: part (0 a whole record, 1 the first part, 2 a middle one, 3 the last);
                        lower 29 bits: bytes of this part
    bytes, then zeros up to a multiple of 4

Where the magic stands in the payload at a multiple of 4, the writer leaves it out and cuts the record in two there.
Inside is mxnet's image record: `flag uint32, label float32, id uint64, id2 uint64`, then ``flag`` float32 which are
the label when flag > 0, then the encoded image. Sources: dmlc-core `recordio.h`, mxnet `recordio.py`.

insightface puts a record without an image in front (key 0): its label is [first identity record, one past the last].
The identity records have no image either; their label is the range of the person's images. All others are images.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from facetrain.datasets.importers.record import (
    MAX_RECORD_BYTES,
    At,
    Record,
    number_name,
    whole_number,
)
from facetrain.errors import UserError

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
HEADER = struct.Struct("<IfQQ")
BUFFER_BYTES = 1 << 20
_PART = struct.Struct("<II")
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)


class Torn(Exception):
    """There is no whole record at this place; the message says why."""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """mxnet's image record. ``label`` float32 [n], one number or more; ``image`` encoded bytes, or none."""

    label: np.ndarray
    flag: int
    image: bytes

    @property
    def has_no_image(self) -> bool:
        return self.flag > 0 and not self.image


def read_record(file: BinaryIO) -> bytes | None:
    """The payload of the record that begins here, its parts rejoined; None at the end of the file.

    Leaves ``file`` behind the record. Raises Torn.
    """
    parts: list[bytes] = []
    total = 0
    while True:
        head = file.read(_PART.size)
        if not head and not parts:
            return None
        if len(head) < _PART.size:
            raise Torn("the file ends within a record")
        magic, rest = _PART.unpack(head)
        if magic != MAGIC:
            raise Torn("bad magic number: no record begins here")
        part, length = rest >> 29, rest & (1 << 29) - 1
        if part not in ((_MIDDLE, _LAST) if parts else (_WHOLE, _FIRST)):
            raise Torn("a part of a record without the others")
        total += length
        if total > MAX_RECORD_BYTES:
            raise Torn(f"a record of {total:,} bytes or more is no photograph")
        data = file.read(length + -length % 4)
        if len(data) < length:
            raise Torn("the file ends within a record")
        if _holds_record(data[:length]):
            raise Torn("a damaged length: the next record lies within this one")
        parts.append(data[:length])
        if part in (_WHOLE, _LAST):
            return MAGIC_BYTES.join(parts)


def unpack(payload: bytes) -> ImageRecord:
    """Take an image record apart. Raises Torn."""
    if len(payload) < HEADER.size:
        raise Torn("too short for an image record")
    flag, label, _, _ = HEADER.unpack_from(payload)
    if flag == 0:
        return ImageRecord(np.array([label], np.float32), 0, payload[HEADER.size :])
    end = HEADER.size + 4 * flag
    if len(payload) < end:
        raise Torn(f"too short for a label of {flag:,} numbers")
    return ImageRecord(np.frombuffer(payload, "<f4", flag, HEADER.size), flag, payload[end:])


@dataclass
class RecordIO:
    """A `.rec` file, by its `.idx` where there is one, else from front to end."""

    rec: Path
    idx: Path | None
    format: str = "recordio"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.files = [self.rec] if self.idx is None else [self.rec, self.idx]
        self._done = 0

    def position_bytes(self) -> int:
        return self._done

    def records(self, start: At = (0, 0)) -> Iterator[Record]:
        with open(self.rec, "rb", buffering=BUFFER_BYTES) as file:
            if self.idx is None:
                yield from self._front_to_end(file, start[1])
            else:
                yield from self._by_index(file, self.idx, start[1])

    def _by_index(self, file: BinaryIO, idx: Path, start: int) -> Iterator[Record]:
        """By the offsets of the `.idx`, which find the next record behind a damaged one."""
        rec_bytes, idx_bytes = self.rec.stat().st_size, idx.stat().st_size
        first_identity = self._first_identity(file, idx)
        lines = idx_done = furthest = 0
        for number, (key, offset, line_bytes) in enumerate(_index_lines(idx)):
            lines += 1
            idx_done += line_bytes
            furthest = max(furthest, offset or 0)
            if number < start:
                continue
            if key is None or offset is None:
                yield self._rejected(number, "a line of the .idx that is no key and offset")
                continue
            if offset != file.tell():
                file.seek(offset)
            try:
                payload = read_record(file)
                if payload is None:
                    raise Torn("the file ends before this record begins")
                is_image = first_identity is None or 0 < key < first_identity
                if is_image or not _is_range(payload):
                    yield self._image(number, payload)
            except Torn as torn:
                yield self._rejected(number, str(torn))
            self._done = idx_done * (rec_bytes + idx_bytes) // idx_bytes
        if more := self._behind(file, furthest):
            why = (
                f"{more:,} bytes behind the last record that {idx.name} names: move it away to read them too"
            )
            yield self._rejected(lines, why)

    def _behind(self, file: BinaryIO, furthest: int) -> int:
        """The bytes of the `.rec` behind its last record by the `.idx`; 0 where that one is torn."""
        file.seek(furthest)
        try:
            if read_record(file) is None:
                return 0
        except Torn:
            return 0
        return self.rec.stat().st_size - file.tell()

    def _first_identity(self, file: BinaryIO, idx: Path) -> int | None:
        """The key of the first identity record, which insightface's record 0 names."""
        zero = next((offset for key, offset, _ in _index_lines(idx) if key == 0), None)
        if zero is None:
            return None
        file.seek(zero)
        try:
            header = unpack(read_record(file) or b"")
        except Torn:
            return None
        finally:
            file.seek(0)
        return int(header.label[0]) if header.has_no_image else None

    def _front_to_end(self, file: BinaryIO, start: int) -> Iterator[Record]:
        number = 0
        while True:
            offset = file.tell()
            try:
                payload = read_record(file)
            except Torn as torn:
                found = _next_record(file, offset + 1)
                if number >= start:
                    end = f"{found:,}" if found is not None else "the end"
                    yield self._rejected(number, f"{torn} (bytes {offset:,} to {end})")
                if found is None:
                    return
                file.seek(found)
            else:
                if payload is None:
                    return
                if number >= start and not _is_range(payload):
                    yield self._image(number, payload)
            number += 1
            self._done = file.tell()

    def _image(self, number: int, payload: bytes) -> Record:
        try:
            record = unpack(payload)
        except Torn as torn:
            return self._rejected(number, str(torn))
        label = whole_number(record.label[0])
        name = number_name((0, number), 1)
        if label is None:
            return Record((0, number), None, name, None, f"the label {record.label[0]:g} is no whole number")
        return Record((0, number), label, name, record.image)

    def _rejected(self, number: int, why: str) -> Record:
        return Record((0, number), None, number_name((0, number), 1), None, why)


def open_recordio(path: Path) -> RecordIO:
    """Open a `.rec`, its `.idx`, or a folder that holds `train.rec` or one other. Raises UserError."""
    if path.is_dir():
        found = sorted(path.glob("*.rec"))
        train = path / "train.rec"
        if train not in found and len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise UserError(
                f"{path} must hold train.rec, or one .rec file (there are: {names}): name the file"
            )
        rec = train if train in found else found[0]
    else:
        rec = path.with_suffix(".rec") if path.suffix == ".idx" else path
    if not rec.is_file():
        raise UserError(f"there is no {rec}: the photographs are in it")
    with open(rec, "rb") as file:
        if (head := file.read(4)) != MAGIC_BYTES:
            what = "is empty" if not head else "does not begin with RecordIO's magic number"
            raise UserError(f"{rec} {what}: it is no RecordIO file, or damaged in front")
    idx = rec.with_suffix(".idx")
    return RecordIO(rec, idx if idx.is_file() and idx.stat().st_size else None)


def _is_range(payload: bytes) -> bool:
    """insightface's record 0 and identity records have two numbers and no image."""
    return len(payload) == HEADER.size + 8 and HEADER.unpack_from(payload)[0] == 2


def _index_lines(idx: Path) -> Iterator[tuple[int | None, int | None, int]]:
    """(key, offset, bytes of the line) for each line `key<TAB>offset`; None for what is none."""
    with open(idx, "rb", buffering=BUFFER_BYTES) as lines:
        for line in lines:
            fields = line.split()
            if not fields:
                continue
            if len(fields) == 2 and fields[0].isdigit() and fields[1].isdigit():
                yield int(fields[0]), int(fields[1]), len(line)
            else:
                yield None, None, len(line)


def _holds_record(part: bytes) -> bool:
    """The writer leaves no magic number at a multiple of 4 in a payload: where one is, a record begins."""
    at = part.find(MAGIC_BYTES)
    while at >= 0:
        if at % 4 == 0 and at + _PART.size <= len(part) and _begins_record(part, at):
            return True
        at = part.find(MAGIC_BYTES, at + 1)
    return False


def _begins_record(data: bytes, at: int) -> bool:
    return _PART.unpack_from(data, at)[1] >> 29 in (_WHOLE, _FIRST)


def _next_record(file: BinaryIO, begin: int) -> int | None:
    """Where, at a multiple of 4 from ``begin`` on, the next record begins; None when none does."""
    position = begin + -begin % 4
    while True:
        file.seek(position)
        block = file.read(BUFFER_BYTES)
        if len(block) < _PART.size:
            return None
        at = block.find(MAGIC_BYTES)
        while at >= 0:
            if at % 4 == 0 and at + _PART.size <= len(block) and _begins_record(block, at):
                return position + at
            at = block.find(MAGIC_BYTES, at + 1)
        position += len(block) // 4 * 4 - 4  # a record's head may lie across the border
