"""The tree that `ft import` writes: names, reasons, going on after an interruption; and the command."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from facetrain.datasets.importers import write_tree
from facetrain.datasets.importers.image_type import image_suffix
from facetrain.datasets.importers.names import file_name
from facetrain.datasets.importers.recognise import open_source, recognise
from facetrain.datasets.importers.record import At, Record, class_name
from facetrain.datasets.importers.write_tree import REJECTED, ImportReport, check_out, import_tree
from facetrain.errors import FacetrainError, UserError
from facetrain.files import PHOTOGRAPHS

JPEG = b"\xff\xd8\xff\xe0"


class Made:
    """A source of records that were made up; it can fail on the way, and remembers where it was asked to begin."""

    format = "made"

    def __init__(
        self, file: Path, records: list[tuple[Any, bytes | None]], *, fail_at: int | None = None
    ) -> None:
        if not file.exists():
            file.write_bytes(b"source")
        self.files, self.made, self.fail_at = [file], records, fail_at
        self.options: dict[str, Any] = {}
        self.begun: list[At] = []
        self.at = 0

    def records(self, start: At = (0, 0)) -> Iterator[Record]:
        self.begun.append(start)
        for number in range(max(0, start[1] - 1), len(self.made)):  # one too early, as a reader may
            if number == self.fail_at:
                raise KeyboardInterrupt
            self.at = number + 1
            identity, data = self.made[number]
            yield Record(
                (0, number), identity, f"{number:04d}", data, "" if data is not None else "made damaged"
            )

    def position_bytes(self) -> int:
        return self.at


def tree_of(out: Path) -> dict[str, bytes]:
    """Every file but those of our own that begin with a dot."""
    files = [path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".ft-import")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def rejected(out: Path) -> list[dict[str, str]]:
    with open(out / REJECTED, newline="") as file:
        return list(csv.DictReader(file))


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Ann Börg", "Ann Börg"),
        ("a/b", "a%2Fb"),
        ("..", "%2E."),
        (".hidden", "%2Ehidden"),
        ("50%", "50%25"),
        ("a\nb\0", "a%0Ab%00"),
        ("a\\b", "a%5Cb"),
        ("caf\udce9", "caf%E9"),
        ("\ud83d", "%uD83D"),
        ("pairs.txt", "%70airs.txt"),
        ("import-rejected.csv", "%69mport-rejected.csv"),
    ],
)
def test_names_are_safe(name: str, expected: str) -> None:
    assert file_name(name) == expected


# Every text (half pairs of surrogates too), and bytes that are no UTF-8 as Python hands them on.
NAMES = st.text(st.characters(), max_size=400) | st.binary(max_size=300).map(
    lambda raw: raw.decode(errors="surrogateescape")
)


@given(NAMES, NAMES)
def test_names_are_one_to_one(first: str, second: str) -> None:
    one, other = file_name(first), file_name(second)
    assert (one == other) == (first == second)
    assert 0 < len(one.encode()) <= 255
    assert one not in ("", ".", "..") and not one.startswith(".") and "/" not in one and "\0" not in one


def test_long_names_that_differ_at_the_end_stay_apart() -> None:
    names = {file_name("é" * 300 + end) for end in ("", "a", "b")}
    assert len(names) == 3
    assert all(len(name.encode()) <= 255 for name in names)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "AVIF", "PPM"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_suffixes_follow_from_the_bytes(kind: str, mode: str) -> None:
    out = io.BytesIO()
    Image.new(mode, (40, 30)).save(out, kind)
    suffix = image_suffix(out.getvalue())
    assert suffix in PHOTOGRAPHS
    assert Image.registered_extensions()[suffix] == kind


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"BM, it says", b"RIFF....WAVE", b"P6x", b"no image", b"\0" * 64]
)
def test_other_bytes_have_none(data: bytes) -> None:
    assert image_suffix(data) is None


# -- the tree --------------------------------------------------------------------------------------------------------

EVIL = [
    "../up",
    "a/b",
    "..",
    ".",
    "new\nline",
    "'quotes\" ",
    "ann",
    "Ann",
    "é",
    unicodedata.normalize("NFD", "é"),
    "x" * 300,
]


def test_any_identity_becomes_a_folder_of_its_own_right_in_out(tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = Made(tmp_path / "source", [(name, JPEG + name.encode()) for name in EVIL])
    report = import_tree(source, out)
    assert (report.photographs, report.people, report.rejected) == (len(EVIL), len(EVIL), 0)
    assert sorted(tree_of(out).values()) == sorted(JPEG + name.encode() for name in EVIL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_labels_that_look_alike_are_folders_of_their_own(tmp_path: Path) -> None:
    """Read from a tar, where they are texts; and as the numbers and texts that other readers hand on."""
    labels = ["007", "7", "id_0000007", "%69d_0000007", "id_7", "-7", "id_-000007", "07"]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, label in enumerate(labels):
            for suffix, data in (("cls", label.encode()), ("jpg", JPEG + label.encode())):
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    import_tree(open_source([tmp_path / "a.tar"]), tmp_path / "out")
    folders = {
        path.read_bytes()[4:].decode(): path.parent.name for path in (tmp_path / "out").glob("*/*.jpg")
    }
    assert folders == {
        "007": "007",
        "7": "id_0000007",
        "id_0000007": "%69d_0000007",
        "%69d_0000007": "%2569d_0000007",
        "id_7": "id_7",
        "-7": "id_-000007",
        "id_-000007": "%69d_-000007",
        "07": "07",
    }
    mixed: list[Any] = [
        7,
        "7",
        "id_0000007",
        10**18,
        f"id_{10**18}",
        int(1e300),
        f"id_{int(1e300)}",
        "id_" + "7" * 5000,
    ]
    report = import_tree(Made(tmp_path / "source", [(label, JPEG) for label in mixed]), tmp_path / "mixed")
    assert report.people == len(mixed)


@given(st.integers(-(10**20), 10**20), st.from_regex(r"(%69d|id)_-?[0-9]{5,21}", fullmatch=True))
def test_numbers_and_names_never_share_a_folder(number: int, name: str) -> None:
    assert write_tree._folder(number) not in (
        write_tree._folder(name),
        write_tree._folder(class_name(number)),
    )


def test_whatever_is_no_photograph_is_listed_with_a_reason(tmp_path: Path) -> None:
    records = [(3, JPEG), (None, None), (7, b""), ("x/y", b"\0text"), (None, JPEG), ("", JPEG)]
    report = import_tree(Made(tmp_path / "source", records), tmp_path / "out")
    assert (report.photographs, report.people, report.rejected) == (1, 1, 5)
    assert [(row["record"], row["identity"], row["reason"]) for row in rejected(tmp_path / "out")] == [
        ("1", "", "made damaged"),
        ("2", "id_0000007", "the image is empty"),
        ("3", "x%2Fy", "no image format that we know (it begins with 00 74 65 78 74)"),
        ("4", "", "no label"),
        ("5", "%", "no label"),
    ]
    assert report.rejected_list == tmp_path / "out" / REJECTED
    assert (tmp_path / "out" / "id_0000003" / "0000.jpg").read_bytes() == JPEG


def test_without_rejected_records_there_is_no_list(tmp_path: Path) -> None:
    report = import_tree(Made(tmp_path / "source", [(1, JPEG)]), tmp_path / "out")
    assert report.rejected_list is None
    assert sorted(tree_of(tmp_path / "out")) == ["id_0000001/0000.jpg"]


MANY: list[tuple[Any, bytes | None]] = [
    (i // 5, JPEG + bytes([i]) * (i % 9) if i % 7 else None) for i in range(200)
]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_tree, "BLOCK_RECORDS", 4)
    monkeypatch.setattr(write_tree, "BLOCKS_PER_MARK", 3)


def interrupted(tmp_path: Path, at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        import_tree(Made(tmp_path / "source", MANY, fail_at=at), tmp_path / "out")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("at", [0, 1, 12, 13, 50, 199])
@pytest.mark.parametrize("rebooted", [False, True])
def test_an_interrupted_import_ends_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, rebooted: bool
) -> None:
    monkeypatch.setattr(write_tree, "_boot_id", lambda: "first")
    whole = import_tree(Made(tmp_path / "source", MANY), tmp_path / "whole")
    interrupted(tmp_path, at)
    if rebooted:
        monkeypatch.setattr(write_tree, "_boot_id", lambda: "second")
    again = Made(tmp_path / "source", MANY)
    report = import_tree(again, tmp_path / "out")
    assert tree_of(tmp_path / "out") == tree_of(tmp_path / "whole")
    for name in ("photographs", "people", "bytes", "rejected"):
        assert getattr(report, name) == getattr(whole, name), name
    assert again.begun == [(0, 0 if rebooted else at // 12 * 12)]
    assert report.skipped == sum(data is not None for _, data in MANY[: again.begun[0][1]])
    assert report.written == whole.written - sum(data is not None for _, data in MANY[: at // 4 * 4])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("change", ["time", "list", "mark"])
def test_a_mark_that_cannot_be_relied_on_is_not(tmp_path: Path, change: str) -> None:
    interrupted(tmp_path, 100)
    out = tmp_path / "out"
    if change == "time":
        os.utime(tmp_path / "source", (1, 1))
    elif change == "list":
        (out / ".ft-import-rejected.csv").write_bytes(b"")
    else:
        record = json.loads((out / ".ft-import.json").read_text())
        record["mark"]["at"] = "far"
        (out / ".ft-import.json").write_text(json.dumps(record))
    again = Made(tmp_path / "source", MANY)
    import_tree(again, out)
    assert again.begun == [(0, 0)]
    whole = import_tree(Made(tmp_path / "source", MANY), tmp_path / "whole")
    assert len(rejected(out)) == whole.rejected


def test_run_again_it_mends_what_is_torn_or_gone_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = import_tree(Made(tmp_path / "source", MANY), out)
    before = tree_of(out)
    times = {name: (out / name).stat().st_mtime_ns for name in before}
    (out / "id_0000001" / "0008.jpg").write_bytes(JPEG)
    (out / "id_0000002" / "0011.jpg").unlink()
    (out / ".ft-tmp-999999999-1").write_bytes(b"of a run that was killed")
    report = import_tree(Made(tmp_path / "source", MANY), out)
    assert (report.written, report.photographs) == (2, first.photographs)
    assert tree_of(out) == before
    same = {name for name, time in times.items() if (out / name).stat().st_mtime_ns == time}
    assert {"id_0000001/0008.jpg", "id_0000002/0011.jpg", REJECTED} >= set(before) - same


@pytest.mark.parametrize("jobs", [2, 8])
def test_threads_change_nothing(tmp_path: Path, jobs: int) -> None:
    import_tree(Made(tmp_path / "source", MANY), tmp_path / "one")
    import_tree(Made(tmp_path / "source", MANY), tmp_path / "many", jobs=jobs)
    assert tree_of(tmp_path / "one") == tree_of(tmp_path / "many")


def test_out_must_be_ours(tmp_path: Path) -> None:
    source = Made(tmp_path / "source", MANY)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photograph.jpg").touch()
    (tmp_path / "empty").mkdir()
    check_out(tmp_path / "empty", source)
    check_out(tmp_path / "new", source)
    with pytest.raises(UserError, match="did not make"):
        check_out(tmp_path / "other", source)
    with pytest.raises(UserError, match="is a file"):
        check_out(tmp_path / "source", source)
    import_tree(source, tmp_path / "out")
    check_out(tmp_path / "out", source)
    source.options = {"label": "who"}
    with pytest.raises(UserError, match="other options"):
        check_out(tmp_path / "out", source)
    (tmp_path / "source").write_bytes(b"another source")
    with pytest.raises(UserError, match="another source"):
        check_out(tmp_path / "out", source)
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["photograph.jpg"]


def test_two_at_a_time_are_one_too_many(tmp_path: Path) -> None:
    out = tmp_path / "out"

    class During(Made):
        def records(self, start: At = (0, 0)) -> Iterator[Record]:
            with pytest.raises(UserError, match="another command is importing into"):
                import_tree(Made(self.files[0], MANY), out)
            yield from super().records(start)

    assert import_tree(During(tmp_path / "source", MANY), out).photographs == sum(
        d is not None for _, d in MANY
    )


def test_a_disk_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(write_tree, "write_json", lambda *_: None)
    (tmp_path / "source").touch()
    with pytest.raises(FacetrainError, match="No space left on device"):
        import_tree(Made(tmp_path / "source", MANY), tmp_path / "out")


# -- which format ----------------------------------------------------------------------------------------------------


def parquet(path: Path, rows: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [JPEG + bytes([i]) for i in range(rows)]
    pq.write_table(pa.table({"image": images, "label": [f"p{i // 2}" for i in range(rows)]}), path)
    return path


def test_formats_are_recognised(tmp_path: Path) -> None:
    folders = {
        "rec": ["train.rec", "lfw.bin", "property"],
        "tars": ["0.tar", "1.tar.gz"],
        "pq": ["data/0.parquet"],
    }
    for folder, files in folders.items():
        for name in files:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).touch()
    found = {folder: recognise(tmp_path / folder) for folder in folders}
    assert found == {"rec": "recordio", "tars": "webdataset", "pq": "parquet"}
    assert recognise(Path("not-there-{0..3}.tar")) == "webdataset"
    (tmp_path / "a").write_bytes(b"\x0a\x23\xd7\xce1234")
    (tmp_path / "b").write_bytes(pickle.dumps(([], []), 2))
    (tmp_path / "c").write_bytes(pickle.dumps(([], []), 0))
    parquet(tmp_path / "d")
    assert [recognise(tmp_path / name) for name in "abcd"] == ["recordio", "bin", "bin", "parquet"]


def test_mistakes_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "a.tar").touch()
    (tmp_path / "bins").mkdir()
    (tmp_path / "bins" / "lfw.bin").touch()
    (tmp_path / "text").write_text("hello")
    path = parquet(tmp_path / "both" / "b.parquet")
    cases: list[tuple[list[Path], dict[str, str], str]] = [
        ([tmp_path / "gone"], {}, "there is no"),
        ([tmp_path / "gone.parquet"], {}, "there is no"),
        ([tmp_path / "text"], {}, "no format that we know"),
        ([tmp_path / "nothing"], {}, "nothing to import"),
        ([tmp_path / "both"], {}, "tars and Parquet"),
        ([tmp_path / "bins"], {}, "name the one"),
        ([tmp_path / "bins"], {"format": "bin"}, "is a folder"),
        ([path, tmp_path / "both" / "a.tar"], {}, "mixes formats"),
        ([tmp_path / "a.rec", tmp_path / "b.rec"], {}, "one SOURCE at a time"),
        ([tmp_path / "a.rec"], {"label": "x"}, "needs neither"),
        ([path], {"format": "zip"}, "no format 'zip'"),
        ([tmp_path / "gone.bin"], {}, "cannot read it"),
    ]
    for paths, options, why in cases:
        with pytest.raises(UserError, match=why):
            open_source(paths, **options)  # type: ignore[arg-type]


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, ft: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parquet(tmp_path / "set" / "0.parquet")
    parquet(tmp_path / "set" / "1.parquet", rows=4)
    lines = ft(tmp_path, "import", "set", "out").stdout.splitlines()
    assert lines[0] == "10 photographs of 3 people in out, 0 MB (parquet)"
    assert lines[1].startswith("10 written now, 0 there already; 0:0")
    assert (
        lines[2] == "next: `ft align out out-aligned`; when they are aligned crops, `ft index out --size 112`"
    )
    assert len(tree_of(tmp_path / "out")) == 10
    lines = ft(tmp_path, "import", "set", "out").stdout.splitlines()
    assert lines[1].startswith("0 written now, 10 there already")
    ft(tmp_path, "import", "set/0.parquet", "set/1.parquet", "out")
    assert not (tmp_path / ".ft").exists()  # it needs no workspace


def test_the_command_on_a_verification_set(
    tmp_path: Path, ft: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = [JPEG + bytes([i]) for i in range(8)]
    (tmp_path / "own.bin").write_bytes(pickle.dumps((images, [True, False, True, False])))
    lines = ft(tmp_path, "import", "own.bin", "out").stdout.splitlines()
    assert lines[0] == "8 photographs in 4 pairs (1 fold) in out, 0 MB"
    assert lines[2].startswith("note: one fold instead of ten")
    assert lines[3].startswith("next: `ft evaluate --pairs out/pairs.txt --images out`")
    assert (tmp_path / "out" / "pairs.txt").read_text().startswith("1\t2\npair_00001\t1\t2\n")


def test_the_commands_mistakes(
    tmp_path: Path, wrong: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parquet(tmp_path / "a.parquet")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert "Missing argument" in wrong(tmp_path, "import", "a.parquet")
    assert "no column 'who'" in wrong(tmp_path, "import", "a.parquet", "out", "--label", "who")
    assert "did not make" in wrong(tmp_path, "import", "a.parquet", "taken")
    assert not (tmp_path / "out").exists()
    pq.write_table(pa.table({"image": [b"text", b""], "label": [1, 2]}), tmp_path / "none.parquet")
    assert "none of 2 records is a photograph" in wrong(tmp_path, "import", "none.parquet", "out")
    pq.write_table(
        pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int8())}), "empty.parquet"
    )
    assert "holds no photograph" in wrong(tmp_path, "import", "empty.parquet", "out2")


def test_the_report_is_of_the_whole_import(tmp_path: Path) -> None:
    report = import_tree(Made(tmp_path / "source", MANY), tmp_path / "out")
    data = [item for _, item in MANY if item is not None]
    assert isinstance(report, ImportReport)
    assert report.photographs == report.written == len(data)
    assert report.bytes == sum(map(len, data))
    assert report.reasons == {"made damaged": report.rejected}


def test_the_benchmark_runs() -> None:
    script = Path(__file__).resolve().parent.parent / "benchmarks" / "importing.py"
    command = [sys.executable, str(script), "--photographs", "40", "--bytes", "200"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert text.startswith("40 photographs, 0 MB; -j 1\n")
    assert [line.split("`")[1] for line in text.splitlines() if "`" in line] == [
        "train.rec",
        "own.bin",
        "0.tar",
        "0.parquet",
    ]
