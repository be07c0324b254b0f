"""WebDataset: shards written by the webdataset package, tars as others make them, damaged ones."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import webdataset

from facetrain.datasets.importers.record import Record
from facetrain.datasets.importers.webdataset import expand_braces, open_webdataset, split_name
from facetrain.errors import UserError

JPEG = b"\xff\xd8\xff\xe0"


def photograph(number: int) -> bytes:
    return JPEG + f"photograph {number}".encode() + bytes(number % 700)


def tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as out:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def read(*paths: Path | str, label: str | None = None, image: str | None = None) -> list[Record]:
    return list(open_webdataset([Path(path) for path in paths], label=label, image=image).records())


def good(records: list[Record]) -> list[tuple[Any, bytes]]:
    return [(item.identity, item.data) for item in records if item.data is not None]


def reasons(records: list[Record]) -> list[str]:
    return [item.reason for item in records if item.data is None]


# -- whole shards ----------------------------------------------------------------------------------------------------


def shards(folder: Path, count: int = 25, per_shard: int = 10) -> list[tuple[Any, bytes]]:
    folder.mkdir()
    photographs = [(i // 4, photograph(i)) for i in range(count)]
    with webdataset.ShardWriter(str(folder / "faces-%04d.tar"), maxcount=per_shard, verbose=0) as writer:
        for i, (person, data) in enumerate(photographs):
            writer.write({"__key__": f"{i:06d}", "jpg": data, "cls": person, "npy": b"\x93NUMPY" * 9})
    return photographs


@pytest.mark.parametrize("how", ["folder", "pattern", "files"])
def test_shards_of_the_webdataset_package(tmp_path: Path, how: str) -> None:
    photographs = shards(tmp_path / "set")
    named = {
        "folder": [tmp_path / "set"],
        "pattern": [tmp_path / "set" / "faces-{0000..0002}.tar"],
        "files": sorted((tmp_path / "set").iterdir()),
    }
    records = read(*named[how])
    assert good(records) == photographs
    assert reasons(records) == []
    assert len({item.name for item in records}) == len(records)
    assert records[10].name == "00001-000000000-000010"
    assert [item.at for item in records] == sorted({item.at for item in records})


def test_the_webdataset_package_reads_the_same(tmp_path: Path) -> None:
    shards(tmp_path / "set")
    theirs = []
    for path in sorted((tmp_path / "set").iterdir()):
        with open(path, "rb") as file:
            members = ({**m, "__url__": ""} for m in webdataset.tariterators.tar_file_iterator(file))
            theirs += [(int(s["cls"]), s["jpg"]) for s in webdataset.tariterators.group_by_keys(members)]
    assert good(read(tmp_path / "set")) == theirs


@pytest.mark.parametrize("compress", [False, True])
def test_tar_writer_and_gzip(tmp_path: Path, compress: bool) -> None:
    path = tmp_path / ("a.tar.gz" if compress else "a.tar")
    with webdataset.TarWriter(str(path), compress=compress) as writer:
        for i in range(3):
            writer.write(
                {"__key__": f"x/{i}", "png": b"\x89PNG\r\n\x1a\n" + bytes([i]), "json": {"identity": "Ann"}}
            )
    assert [identity for identity, _ in good(read(path))] == ["Ann"] * 3


def test_tars_made_by_tar(tmp_path: Path) -> None:
    """Long names, folders as members, and tars one behind the other."""
    long = "a-very-long-name" * 10
    for person in ("ann", long):
        (tmp_path / "raw" / person).mkdir(parents=True)
        for i in range(2):
            (tmp_path / "raw" / person / f"{i}.jpg").write_bytes(photograph(i))
    subprocess.run(["tar", "-C", tmp_path / "raw", "--sort=name", "-cf", tmp_path / "a.tar", "."], check=True)
    both = (tmp_path / "a.tar").read_bytes() * 2
    (tmp_path / "both.tar").write_bytes(both)
    expected = [(person, photograph(i)) for person in (long, "ann") for i in range(2)]
    assert good(read(tmp_path / "a.tar")) == expected
    assert good(read(tmp_path / "both.tar")) == expected * 2
    assert reasons(read(tmp_path / "both.tar")) == []


def test_keys_end_at_the_first_dot_of_the_name() -> None:
    """As webdataset's own function has it."""
    for name in ("a.jpg", "a/b.c/d.left.jpg", "a", ".hidden.jpg", "x/y.", "./a.jpg", "a.tar.gz", "é.PNG"):
        ours = split_name(name)
        theirs = webdataset.tariterators.base_plus_ext(name)
        assert ours == (theirs if theirs[1] else None), name


def test_memory_does_not_grow_with_the_tar(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as out:
        for i in range(4000):
            info = tarfile.TarInfo(f"p/{i}.jpg")
            info.size = 600
            out.addfile(info, io.BytesIO(JPEG + bytes(596)))
    source = open_webdataset([tmp_path / "a.tar"], label=None, image=None)
    tracemalloc.start()
    assert sum(1 for _ in source.records()) == 4000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000  # with the members kept it is more than two million


# -- who it is -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "label", "identity"),
    [
        ({"cls": b"7\n"}, None, 7),
        ({"cls": b"Ann B\xc3\xb6rg"}, None, "Ann Börg"),
        ({"txt": b" Ann \n"}, None, "Ann"),
        ({"txt": b"a caption\nof two lines"}, None, "folder"),
        ({"json": b'{"label": 3, "x": 1}'}, None, 3),
        ({"json": b'{"label": 3.0}'}, None, 3),
        ({"json": b'{"label": "three"}', "txt": b"a face"}, None, "three"),
        ({"json": b'{"who": "Ann", "label": 3}', "cls": b"1"}, "who", "Ann"),
        ({"id": b"Bob", "cls": b"1"}, "id", "Bob"),
        ({"txt": b"Bob", "cls": b"1"}, "txt", "Bob"),
        ({}, None, "folder"),
        ({"json": b"{damaged"}, None, "folder"),
        ({"json": b"[1]"}, None, "folder"),
        ({"json": b"[" * 100_000}, None, "folder"),
        ({"json": b'{"label": 1e300}'}, None, "folder"),
        ({"cls": b"--5"}, None, "--5"),
        ({"cls": b"7" * 5000}, None, "7" * 5000),
        ({"cls": b"007"}, None, "007"),
        ({"cls": b"+7"}, None, "+7"),
        ({"cls": b"0"}, None, 0),
        ({"cls": b"-0"}, None, "-0"),
        ({"cls": b"-12"}, None, -12),
        ({"cls": "٧".encode()}, None, "٧"),
        ({"json": b'{"label": " Ann"}'}, None, " Ann"),
    ],
)
def test_where_the_identity_is(
    tmp_path: Path, members: dict[str, bytes], label: str | None, identity: Any
) -> None:
    files = [
        ("shard/folder/1.jpg", JPEG),
        *((f"shard/folder/1.{name}", data) for name, data in members.items()),
    ]
    for order in (files, files[::-1]):
        assert good(read(tar(tmp_path / "a.tar", order), label=label)) == [(identity, JPEG)]


def test_folders_of_keys_that_end_in_a_dot_are_others(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("ann/1.jpg", JPEG), ("ann./1.jpg", JPEG), ("./1.jpg", JPEG)])
    assert [identity for identity, _ in good(read(path))] == ["ann", "ann."]
    assert reasons(read(path))[0].startswith("no label")


def test_no_label_is_a_reason(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar",
        [("1.jpg", JPEG), ("2.jpg", JPEG), ("2.json", json.dumps({"label": None}).encode())],
    )
    assert [why.split(":")[0] for why in reasons(read(path))] == ["no label", "no label"]
    assert "no key 'who' in .json" in reasons(read(path, label="who"))[0]


def test_which_member_is_the_image(tmp_path: Path) -> None:
    several = [("p/1.jpg", JPEG + b"1"), ("p/1.png", JPEG + b"2"), ("p/1.mask.png", JPEG + b"3")]
    path = tar(tmp_path / "a.tar", several)
    assert reasons(read(path)) == ["several images in the sample (jpg, png)"]
    assert good(read(path, image="png")) == [("p", JPEG + b"2")]
    assert good(read(path, image="mask.png")) == [("p", JPEG + b"3")]
    assert reasons(read(path, image="webp")) == ["no image in the sample (jpg, png, mask.png)"]
    assert good(read(tar(tmp_path / "b.tar", several[::2]))) == [("p", JPEG + b"1")]
    assert good(read(tar(tmp_path / "c.tar", [("p/1.JPEG", JPEG)]))) == [("p", JPEG)]
    assert reasons(read(tar(tmp_path / "d.tar", [("p/1.mp4", b"film")]))) == ["no image in the sample (mp4)"]
    hidden = tar(tmp_path / "e.tar", [("p/._1.jpg", b"of a Mac"), ("p/1.jpg", JPEG)])
    assert reasons(read(hidden)) == ["p/._1.jpg: a name that begins with a dot is no key"]
    twice = tar(tmp_path / "f.tar", [("p/1.jpg", JPEG), ("p/1.jpg", JPEG)])
    assert reasons(read(twice)) == ["two members .jpg in one sample"]


# -- damage ----------------------------------------------------------------------------------------------------------

MANY = [(f"p{i // 3}/{i}.jpg", JPEG + bytes([i + 1]) * 700) for i in range(9)]
MEMBER_BYTES = 512 + 1024


def test_a_damaged_header_costs_one_file(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", MANY)
    content = bytearray(path.read_bytes())
    content[4 * MEMBER_BYTES + 3] ^= 1
    path.write_bytes(content)
    records = read(path)
    assert [data for _, data in good(records)] == [data for i, (_, data) in enumerate(MANY) if i != 4]
    assert reasons(records) == [
        "3 blocks of the tar are no header of a file: damaged, what they held is lost"
    ]


def pax_tar(path: Path, headers: dict[str, str]) -> Path:
    """MANY, with a pax header in front of the fifth."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as out:
        for i, (name, data) in enumerate(MANY):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.pax_headers = headers if i == 4 else {}
            out.addfile(info, io.BytesIO(data))
    return path


OTHERS = [data for i, (_, data) in enumerate(MANY) if i != 4]


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.map": "0,damaged", "GNU.sparse.size": "704"},
        {"GNU.sparse.map": "", "GNU.sparse.size": "704"},
        {"GNU.sparse.map": "0,704", "GNU.sparse.size": "many"},
        {"GNU.sparse.size": "x"},
        {"GNU.sparse.realsize": "1e3"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},  # and no map in front of the data
        {"size": "-512"},
        {"size": str(1 << 60)},
        {"size": "7o4"},
        {"size": "9" * 5000},
    ],
    ids=lambda headers: ",".join(headers) + " " + str(headers.get("size", ""))[:8],
)
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_damaged_value_of_a_pax_header_costs_its_file(
    tmp_path: Path, headers: dict[str, str], suffix: str
) -> None:
    path = pax_tar(tmp_path / "a.tar", headers)
    if suffix == ".tar.gz":
        content = path.read_bytes()
        path = tmp_path / "a.tar.gz"
        path.write_bytes(gzip.compress(content))
    records = read(path)
    assert [data for _, data in good(records)] == OTHERS
    assert "blocks of the tar are no header of a file" in reasons(records)[0]


def test_any_damaged_byte_of_a_pax_header(tmp_path: Path) -> None:
    """It costs its own file at most: or nothing, where it stood in what we do not use."""
    for headers in (
        {"GNU.sparse.map": "0,704", "GNU.sparse.size": "704"},
        {"path": "pé/4.jpg"},
    ):
        path = pax_tar(tmp_path / "a.tar", headers)
        content = path.read_bytes()
        begin = 4 * MEMBER_BYTES + 512  # of the values, behind the pax header's own header
        end = content.index(b"\0", begin)
        assert 0 < end - begin < 100
        for at in range(begin, end):
            for value in (b"\0", b" ", b"x", b"0", b"9", b"\xff", b"-", b","):
                path.write_bytes(content[:at] + value + content[at + 1 :])
                records = read(path)
                assert [data for _, data in good(records) if data in OTHERS] == OTHERS, (at, value)
                assert len(good(records)) in (8, 9)


def test_a_damaged_header_behind_a_long_name_costs_one_file(tmp_path: Path) -> None:
    files = [(f"{'a-very-long-name' * 10}/{i}.jpg", data) for i, (_, data) in enumerate(MANY)]
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as out:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[4 * (1024 + MEMBER_BYTES) + 1024 + 3] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    records = read(tmp_path / "a.tar")
    assert [data for _, data in good(records)] == OTHERS
    assert len(reasons(records)) == 1


def test_every_way_to_cut_a_tar(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", MANY)
    content = path.read_bytes()
    for length in [*range(512, 9 * MEMBER_BYTES + 1, 128)]:
        path.write_bytes(content[:length])
        records = read(path)
        whole = (length - 4 + 324) // MEMBER_BYTES  # the padding behind the data, 324 bytes, may be missing
        assert [data for _, data in good(records)] == [data for _, data in MANY[:whole]], length
        assert reasons(records), length


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_gzip_ends_there_with_a_word(tmp_path: Path, damage: str) -> None:
    path = tar(tmp_path / "a.tar.gz", [(name, data[:4] + bytes(range(256)) * 9) for name, data in MANY])
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[-60:]
    else:
        content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises((EOFError, gzip.zlib.error, gzip.BadGzipFile)):  # type: ignore[attr-defined]
        gzip.decompress(bytes(content))
    assert any("damaged" in why or "ends within" in why for why in reasons(read(path)))


def test_files_that_are_no_tar(tmp_path: Path) -> None:
    for content in (b"", b"x" * 100, b"x" * 5000):
        (tmp_path / "a.tar").write_bytes(content)
        records = read(tmp_path / "a.tar")
        assert good(records) == []
        assert reasons(records)


# -- mistakes --------------------------------------------------------------------------------------------------------


def test_braces_expand_as_in_bash() -> None:
    assert expand_braces("a.tar") == ["a.tar"]
    patterns = ["a-{000..002}.tar", "{8..11}", "{a,b}/{0..1}.tar", "{00..10}", "x{y", "x}y{", "{7..7}"]
    script = "".join(f"echo {pattern}\n" for pattern in patterns)
    theirs = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    assert [" ".join(expand_braces(pattern)) for pattern in patterns] == theirs.splitlines()


def test_mistakes(tmp_path: Path) -> None:
    shards(tmp_path / "set")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"there is no .*faces-0003\.tar \(and 6 more"):
        read(tmp_path / "set" / "faces-{0000..0009}.tar")
    with pytest.raises(UserError, match=r"no \.tar in"):
        read(tmp_path / "empty")
    with pytest.raises(UserError, match="is named twice"):
        read(tmp_path / "set", tmp_path / "set" / "faces-0001.tar")
    with pytest.raises(UserError, match="--image mask"):
        read(tmp_path / "set", image="mask")
    with pytest.raises(UserError, match="no range"):
        read("a-{9..1}.tar")
