"""Files that appear whole or not at all, and what is left by those that were killed half-way."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facetrain.files import (
    TEMP_PREFIX,
    replacing,
    sweep,
    temp_path,
    write_bytes,
    write_csv,
    write_if_changed,
    write_json,
)


@pytest.mark.parametrize("sync", [True, False])
def test_a_write_replaces_the_old_file(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "a.bin"
    for data in (b"old", b"new and longer"):
        write_bytes(path, data, sync=sync)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail_half_way() -> None:
        with replacing(path) as temp:
            temp.write_bytes(b"half")
            assert path.read_bytes() == b"old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_may_think_better_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with replacing(path) as temp:
        temp.write_bytes(b"old")
        temp.unlink()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_there_already_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for data, written in ((b"old", True), (b"old", False), (b"new", True)):
        before = path.stat().st_ino if path.exists() else 0
        write_if_changed(path, data)
        assert (path.stat().st_ino != before) == written
        assert path.read_bytes() == data


def test_json(tmp_path: Path) -> None:
    value = {"z": 1, "a": ["ø", None]}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert list(json.loads(text)) == ["z", "a"]
    assert "ø" in text
    assert text.endswith("}\n")


def test_sweep_takes_what_the_dead_left(tmp_path: Path) -> None:
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    kept = tmp_path / f"{TEMP_PREFIX}{living.pid}-1"
    (tmp_path / "photograph.jpg").touch()
    for path in (
        kept,
        tmp_path / f"{TEMP_PREFIX}{ended.pid}-2",
        tmp_path / f"{TEMP_PREFIX}old",
        temp_path(tmp_path, "x"),
    ):
        path.touch()
    try:
        sweep(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([kept, tmp_path / "photograph.jpg"])
    finally:
        living.communicate(b"\n")
    sweep(tmp_path)
    sweep(tmp_path / "no such folder")
    assert list(tmp_path.iterdir()) == [tmp_path / "photograph.jpg"]


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    code = (
        "import os, signal; from pathlib import Path; from facetrain.files import replacing\n"
        f"with replacing(Path({str(path)!r})) as temp:\n"
        "    temp.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 2
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


@given(st.lists(st.lists(st.text(), min_size=1, max_size=3), max_size=4))
def test_a_csv_file_comes_back_whatever_is_in_it(rows: list[list[str]]) -> None:
    """Names of files may hold line ends of every kind, quotes, and bytes that are no UTF-8."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        write_csv(path, ("a", "b"), rows)
        with open(path, newline="", encoding="utf-8") as file:
            found = list(csv.reader(file))
    expected = [[value.encode(errors="backslashreplace").decode() for value in row] for row in rows]
    assert found == [["a", "b"], *expected]
