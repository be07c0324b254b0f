"""RecordIO: files written by mxnet, files written here from the format's description, damaged ones.

`train.rec` and `train.idx` below were written by mxnet 1.9.1 (MXIndexedRecordIO, recordio.pack): five images of two
people and one, with labels as one number and as arrays, and payloads that hold the magic number at a multiple of 4 and
elsewhere; insightface's record 0 and identity records.
"""

from __future__ import annotations

import base64
import random
import struct
from pathlib import Path

import pytest

from facetrain.datasets.importers.record import Record
from facetrain.datasets.importers.recordio import RecordIO, open_recordio
from facetrain.errors import UserError

BY_MXNET = """
CiPXziAAAAACAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAMBAAAAQQQoj184fAAAAAAAAAAAAAAABAAAAAAAAAAAAAAAAAAAA/9j/4G9uZQAKI9fOHAAA
IAAAAAAAAAAAAgAAAAAAAAAAAAAAAAAAAP/Y/+AKI9fOAwAAYHR3bwAKI9fOJAAAIAIAAAAAAAAAAwAAAAAAAAAAAAAAAAAAAAAAgD8AAOBA/9j/4Aoj
184AAABACiPXzggAAEB4eXoKI9fOeAoj184AAABgCiPXzjEAAAABAAAAAAAAAAQAAAAAAAAAAAAAAAAAAAAAAIA//9j/4GFiCiPXzm5vdCBhbGlnbmVk
AAAACiPXziAAACAAAAAA//9/SwUAAAAAAAAAAAAAAAAAAAD/2P/gdGFpbAoj184AAABgCiPXziAAAAACAAAAAAAAAAYAAAAAAAAAAAAAAAAAAAAAAIA/
AABAQAoj184gAAAAAgAAAAAAAAAHAAAAAAAAAAAAAAAAAAAAAABAQAAAoEAKI9fOIAAAAAIAAAAAAAAACAAAAAAAAAAAAAAAAAAAAAAAoEAAAMBA
"""
ITS_INDEX = "MAkwCjEJNDAKMgk4MAozCTEyOAo0CTIwNAo1CTI2NAo2CTMxMgo3CTM1Mgo4CTM5Mgo="
MAGIC = b"\x0a\x23\xd7\xce"
JPEG = b"\xff\xd8\xff\xe0"  # four bytes, so that the magic number behind them lies at a multiple of 4
IMAGES = [
    (0, JPEG + b"one"),
    (0, JPEG + MAGIC + b"two"),
    (1, JPEG + MAGIC + MAGIC + b"xyz" + MAGIC + b"x" + MAGIC),
    (1, JPEG + b"ab" + MAGIC + b"not aligned"),
    (16777215, JPEG + b"tail" + MAGIC),
]


# -- a writer, from the description of the format alone --------------------------------------------------------------


def part(kind: int, data: bytes) -> bytes:
    return MAGIC + struct.pack("<I", kind << 29 | len(data)) + data + b"\0" * (-len(data) % 4)


def record(payload: bytes) -> bytes:
    words = [payload[i : i + 4] for i in range(0, len(payload), 4)]
    pieces = [b""]
    for word in words:
        if word == MAGIC:
            pieces.append(b"")
        else:
            pieces[-1] += word
    if len(pieces) == 1:
        return part(0, payload)
    kinds = [1, *[2] * (len(pieces) - 2), 3]
    return b"".join(part(kind, piece) for kind, piece in zip(kinds, pieces, strict=True))


def image(label: float | list[float], data: bytes) -> bytes:
    if isinstance(label, list):
        return struct.pack("<IfQQ", len(label), 0, 0, 0) + struct.pack(f"<{len(label)}f", *label) + data
    return struct.pack("<IfQQ", 0, label, 0, 0) + data


def write(folder: Path, payloads: list[bytes], *, keys: list[int] | None = None) -> Path:
    """`train.rec` and `train.idx`, the payloads in this order, by default with the keys 0, 1, 2, …"""
    content, index = b"", ""
    for key, payload in zip(keys or range(len(payloads)), payloads, strict=True):
        index += f"{key}\t{len(content)}\n"
        content += record(payload)
    folder.mkdir(exist_ok=True)
    (folder / "train.rec").write_bytes(content)
    (folder / "train.idx").write_text(index)
    return folder


def insightface(images: list[tuple[int, bytes]]) -> list[bytes]:
    """Record 0, images sorted by person, an identity record for each person."""
    n, people = len(images), sorted({label for label, _ in images})
    payloads = [image([n + 1, n + 1 + len(people)], b"")]
    payloads += [image(label, data) for label, data in images]
    for person in people:
        places = [i for i, (label, _) in enumerate(images, start=1) if label == person]
        payloads.append(image([places[0], places[-1] + 1], b""))
    return payloads


def read(path: Path) -> list[Record]:
    return list(open_recordio(path).records())


def good(records: list[Record]) -> list[tuple[object, bytes]]:
    return [(item.identity, item.data) for item in records if item.data is not None]


def reasons(records: list[Record]) -> list[str]:
    return [item.reason for item in records if item.data is None]


@pytest.fixture
def by_mxnet(tmp_path: Path) -> Path:
    (tmp_path / "train.rec").write_bytes(base64.b64decode(BY_MXNET))
    (tmp_path / "train.idx").write_bytes(base64.b64decode(ITS_INDEX))
    return tmp_path


# -- whole files -----------------------------------------------------------------------------------------------------


def test_what_mxnet_wrote(by_mxnet: Path) -> None:
    records = read(by_mxnet)
    assert [(item.identity, item.data) for item in records] == IMAGES
    assert [item.name for item in records] == [f"{n:09d}" for n in range(1, 6)]
    (by_mxnet / "train.idx").unlink()
    assert read(by_mxnet) == records


def test_our_writer_writes_what_mxnet_writes(by_mxnet: Path) -> None:
    """So that what the other tests write is what a reader meets."""
    content = (by_mxnet / "train.rec").read_bytes()
    labels: list[float | list[float]] = [0.0, 0.0, [1.0, 7.0], [1.0]]
    payloads = [image(label, data) for label, (_, data) in zip(labels, IMAGES[:4], strict=True)]
    ours = b"".join(record(payload) for payload in payloads)
    theirs = content[40 : 40 + len(ours)]
    for number in range(1, 5):  # the ids, which ours leaves 0
        theirs = theirs.replace(struct.pack("<QQ", number, 0), struct.pack("<QQ", 0, 0), 1)
    assert ours == theirs


@pytest.mark.parametrize("which", ["folder", "rec", "idx"])
def test_any_of_the_files_names_the_dataset(by_mxnet: Path, which: str) -> None:
    path = by_mxnet if which == "folder" else by_mxnet / f"train.{which}"
    assert good(read(path)) == IMAGES


def test_payloads_full_of_magic_numbers(tmp_path: Path) -> None:
    draw = random.Random(0)
    images = []
    for number in range(300):
        pieces = [draw.choice([MAGIC, draw.randbytes(draw.randrange(6))]) for _ in range(draw.randrange(30))]
        images.append((number // 7, JPEG + b"".join(pieces)))
    folder = write(tmp_path / "set", insightface(images))
    assert (folder / "train.rec").read_bytes().count(MAGIC) > 1000
    assert good(read(folder)) == images
    assert reasons(read(folder)) == []
    (folder / "train.idx").unlink()
    assert good(read(folder)) == images
    assert reasons(read(folder)) == []


@pytest.mark.parametrize("with_index", [True, False])
def test_without_a_header_every_record_is_an_image(tmp_path: Path, with_index: bool) -> None:
    folder = write(tmp_path / "set", [image([float(label), 0.5], data) for label, data in IMAGES])
    if not with_index:
        (folder / "train.idx").unlink()
    assert good(read(folder)) == IMAGES


def test_the_header_may_stand_last(tmp_path: Path) -> None:
    payloads = insightface(IMAGES)
    keys = [*range(1, len(payloads)), 0]
    folder = write(tmp_path / "set", [*payloads[1:], payloads[0]], keys=keys)
    assert good(read(folder)) == IMAGES
    assert reasons(read(folder)) == []


def test_an_index_in_another_order(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", insightface(IMAGES))
    lines = (folder / "train.idx").read_text().splitlines(keepends=True)
    (folder / "train.idx").write_text("".join(reversed(lines)))
    assert good(read(folder)) == IMAGES[::-1]


def test_reading_goes_on_from_any_record(by_mxnet: Path) -> None:
    records = read(by_mxnet)
    assert list(open_recordio(by_mxnet).records((0, 4))) == records[3:]
    (by_mxnet / "train.idx").unlink()
    assert list(open_recordio(by_mxnet).records((0, 4))) == records[3:]


# -- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_index", [True, False])
def test_one_bad_magic_number_costs_one_record(tmp_path: Path, with_index: bool) -> None:
    folder = write(tmp_path / "set", insightface(IMAGES))
    content = bytearray((folder / "train.rec").read_bytes())
    offsets = [int(line.split()[1]) for line in (folder / "train.idx").read_text().splitlines()]
    content[offsets[2]] ^= 1
    (folder / "train.rec").write_bytes(content)
    if not with_index:
        (folder / "train.idx").unlink()
    records = read(folder)
    assert good(records) == [IMAGES[0], *IMAGES[2:]]
    assert len(reasons(records)) == 1
    assert reasons(records)[0].startswith("bad magic number")


@pytest.mark.parametrize("with_index", [True, False])
def test_a_damaged_length_swallows_no_other_record(tmp_path: Path, with_index: bool) -> None:
    images = [(i, JPEG + bytes([i]) * 400) for i in range(6)]
    folder = write(tmp_path / "set", insightface(images))
    offsets = [int(line.split()[1]) for line in (folder / "train.idx").read_text().splitlines()]
    content = bytearray((folder / "train.rec").read_bytes())
    content[offsets[3] + 5] ^= 2  # 512 bytes more: the next record would be inside
    (folder / "train.rec").write_bytes(content)
    if not with_index:
        (folder / "train.idx").unlink()
    records = read(folder)
    assert good(records) == [item for item in images if item[0] != 2]
    assert len(reasons(records)) == 1
    assert reasons(records)[0].startswith("a damaged length")


@pytest.mark.parametrize("with_index", [True, False])
def test_every_way_to_cut_the_file(by_mxnet: Path, with_index: bool) -> None:
    """Whatever is cut off: no crash, all whole records, and a word of what is missing."""
    content = (by_mxnet / "train.rec").read_bytes()
    ends = [80, 128, 204, 264, 312]
    if not with_index:
        (by_mxnet / "train.idx").unlink()
    for length in range(80, 312):
        (by_mxnet / "train.rec").write_bytes(content[:length])
        records = read(by_mxnet)
        # The padding of the last record may be missing; the image is whole then.
        whole = sum(end <= length for end in ends)
        assert good(records) in (IMAGES[:whole], IMAGES[: whole + 1])
        if with_index:
            assert len(good(records)) + len(reasons(records)) == 5 + 3
        elif length not in ends:
            assert len(reasons(records)) == (len(good(records)) == whole)


def test_an_index_cut_short_is_noticed(by_mxnet: Path) -> None:
    lines = (by_mxnet / "train.idx").read_text().splitlines(keepends=True)
    (by_mxnet / "train.idx").write_text("".join(lines[:3]))
    records = read(by_mxnet)
    assert good(records) == IMAGES[:2]
    assert len(reasons(records)) == 1
    assert reasons(records)[0].startswith("304 bytes behind the last record that train.idx names")
    assert list(open_recordio(by_mxnet).records((0, 3))) == records[2:]


def test_a_line_of_the_index_that_is_none(by_mxnet: Path) -> None:
    lines = (by_mxnet / "train.idx").read_text().splitlines()
    lines[2] = "2\t-7"
    (by_mxnet / "train.idx").write_text("\n".join(lines) + "\n")
    records = read(by_mxnet)
    assert good(records) == [IMAGES[0], *IMAGES[2:]]
    assert reasons(records) == ["a line of the .idx that is no key and offset"]


def test_records_that_are_no_image_records(tmp_path: Path) -> None:
    payloads = [
        image(0.5, JPEG),
        image(float("nan"), JPEG),
        b"short",
        struct.pack("<IfQQ", 1000, 0, 0, 0),
        image(3, b""),
    ]
    records = read(write(tmp_path / "set", payloads))
    assert reasons(records) == [
        "the label 0.5 is no whole number",
        "the label nan is no whole number",
        "too short for an image record",
        "too short for a label of 1,000 numbers",
    ]
    assert good(records) == [(3, b"")]  # which the writer of the tree rejects


def test_parts_in_the_wrong_order(tmp_path: Path) -> None:
    whole = image(4, JPEG)
    (tmp_path / "a.rec").write_bytes(part(0, whole) + part(3, b"last") + part(1, b"first") + part(0, whole))
    records = read(tmp_path / "a.rec")
    assert good(records) == [(4, JPEG), (4, JPEG)]
    assert [why.split(" (")[0] for why in reasons(records)] == ["a part of a record without the others"] * 2


# -- mistakes --------------------------------------------------------------------------------------------------------


def test_mistakes(tmp_path: Path) -> None:
    (tmp_path / "empty.rec").touch()
    (tmp_path / "other.rec").write_bytes(b"something else")
    with pytest.raises(UserError, match="is empty"):
        open_recordio(tmp_path / "empty.rec")
    with pytest.raises(UserError, match="magic number"):
        open_recordio(tmp_path / "other.rec")
    with pytest.raises(UserError, match=r"there is no .*gone\.rec"):
        open_recordio(tmp_path / "gone.idx")
    with pytest.raises(UserError, match=r"empty\.rec, other\.rec"):
        open_recordio(tmp_path)


def test_an_empty_index_is_none(by_mxnet: Path) -> None:
    (by_mxnet / "train.idx").write_bytes(b"")
    source = open_recordio(by_mxnet)
    assert isinstance(source, RecordIO)
    assert source.idx is None
    assert good(list(source.records())) == IMAGES
