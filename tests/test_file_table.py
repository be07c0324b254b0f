"""Which files have changed? And which are there at all?"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from blake3 import blake3

from facetrain import file_table
from facetrain.file_table import (
    RACY_NS,
    FileTable,
    Known,
    Listing,
    Stat,
    file_system_now_ns,
    find_photographs,
    walk,
)
from facetrain.files import TEMP_PREFIX


def write(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def age(path: Path, seconds: float) -> None:
    """Set mtime back; ctime cannot be set."""
    then = time.time_ns() - int(seconds * 1e9)
    os.utime(path, ns=(then, then))


class TestWalk:
    def test_photographs_of_every_kind_and_case(self, tmp_path: Path) -> None:
        names = [
            f"a/{i}.{suffix}"
            for i, suffix in enumerate(
                ["jpg", "JPG", "jpeg", "Jpeg", "png", "PNG", "webp", "bmp", "tif", "TIFF"]
            )
        ]
        for name in [
            *names,
            "a/notes.txt",
            "a/list.CSV",
            "a/README",
            "a/.hidden.jpg",
            ".git/x.jpg",
            "a/.b/x.jpg",
        ]:
            write(tmp_path / name)
        listing = walk(tmp_path)
        assert list(listing.photographs) == sorted(names)
        assert listing.others == {".txt": 1, ".csv": 1, "": 1}
        assert listing.problems == {}

    def test_names_of_any_kind_in_the_order_of_their_code_points(self, tmp_path: Path) -> None:
        names = [
            "Ann Lee/my face.jpg",
            "Ærøskøbing/ø.jpg",
            "a\nb/1.jpg",
            "李小龙/😀.png",
            "ann/n\u0303.jpg",
            "ann/\xf1.jpg",
        ]
        for name in names:
            write(tmp_path / name)
        assert list(walk(tmp_path).photographs) == sorted(names)

    def test_a_folder_may_be_called_like_a_photograph(self, tmp_path: Path) -> None:
        write(tmp_path / "a" / "b.jpg" / "c.jpg")
        assert list(walk(tmp_path).photographs) == ["a/b.jpg/c.jpg"]

    def test_a_name_that_is_not_utf8_is_a_problem(self, tmp_path: Path) -> None:
        with open(os.fsencode(tmp_path) + b"/\xff\xfe.jpg", "wb"):
            pass
        listing = walk(tmp_path)
        assert listing.photographs == {}
        assert listing.problems == {"\\xff\\xfe.jpg": "its name is not UTF-8: rename it"}

    def test_links_are_followed_and_loops_are_not(self, tmp_path: Path) -> None:
        write(tmp_path / "elsewhere" / "1.jpg")
        write(tmp_path / "raw" / "ann" / "2.jpg")
        (tmp_path / "raw" / "bob").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "raw" / "ann" / "up").symlink_to(tmp_path / "raw")
        (tmp_path / "raw" / "ann" / "self").symlink_to(tmp_path / "raw" / "ann")
        (tmp_path / "raw" / "ann" / "3.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
        (tmp_path / "raw" / "ann" / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
        (tmp_path / "raw" / "ann" / "eats its tail.jpg").symlink_to(
            tmp_path / "raw" / "ann" / "eats its tail.jpg"
        )
        listing = walk(tmp_path / "raw")
        assert list(listing.photographs) == ["ann/2.jpg", "ann/3.jpg", "bob/1.jpg"]
        assert set(listing.problems) == {"ann/up", "ann/self", "ann/lost.jpg", "ann/eats its tail.jpg"}
        assert listing.problems["ann/up"] == "a link back to a folder above it"

    def test_what_is_no_file_is_never_opened(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        os.mkfifo(tmp_path / "a" / "pipe.jpg")
        listing = walk(tmp_path)
        assert listing.photographs == {}
        assert list(listing.problems) == ["a/pipe.jpg"]

    def test_a_folder_that_cannot_be_read_is_a_problem(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path / "a" / "1.jpg")
        write(tmp_path / "b" / "1.jpg")
        real = os.scandir

        def scandir(path: Path) -> object:
            if Path(path).name == "a":
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(file_table.os, "scandir", scandir)
        listing = walk(tmp_path)
        assert listing.problems == {"a": "Permission denied"}
        assert list(listing.photographs) == ["b/1.jpg"]

    def test_what_a_killed_command_left_is_told_apart(self, tmp_path: Path) -> None:
        write(tmp_path / "a" / f"{TEMP_PREFIX}123-abc")
        listing = walk(tmp_path)
        assert listing == Listing(temporary=[f"a/{TEMP_PREFIX}123-abc"])

    def test_find_photographs(self, tmp_path: Path) -> None:
        write(tmp_path / "a" / "notes.txt")
        write(tmp_path / "a" / ".x.jpg")
        assert list(find_photographs(tmp_path)) == []
        write(tmp_path / "b" / "c" / "d" / "1.WebP")
        write(tmp_path / "2.jpg")
        assert sorted(find_photographs(tmp_path)) == ["2.jpg", "b/c/d/1.WebP"]


class TestKnown:
    STAT = Stat(10, mtime_ns=10**18, ctime_ns=10**18, inode=7)

    def test_long_unchanged(self) -> None:
        assert Known(self.STAT, 10**18 + RACY_NS + 1, b"").still(self.STAT)

    @pytest.mark.parametrize("field", ["size_bytes", "mtime_ns", "ctime_ns", "inode"])
    def test_any_difference_counts(self, field: str) -> None:
        fields = {name: getattr(self.STAT, name) for name in Stat.__dataclass_fields__}
        other = Stat(**fields | {field: fields[field] - 1})
        assert not Known(self.STAT, 10**18 + 2 * RACY_NS, b"").still(other)

    @pytest.mark.parametrize("field", ["mtime_ns", "ctime_ns"])
    def test_a_file_that_was_young_when_hashed_is_not_trusted(self, field: str) -> None:
        times = {"mtime_ns": 10**17, "ctime_ns": 10**17, field: 10**18}
        stat = Stat(10, inode=7, **times)
        for hashed_ns in (10**18 - 1, 10**18, 10**18 + RACY_NS):
            assert not Known(stat, hashed_ns, b"").still(stat)
        assert Known(stat, 10**18 + RACY_NS + 1, b"").still(stat)


class TestFileTable:
    def refreshed(self, tmp_path: Path) -> FileTable:
        table = FileTable(tmp_path / "files.arrow")
        assert table.refresh(tmp_path / "tree", walk(tmp_path / "tree").photographs) == {}
        table.save()
        return FileTable(tmp_path / "files.arrow")

    def test_contents_are_hashed_and_kept(self, tmp_path: Path) -> None:
        for name in ("b/2.jpg", "a/1.jpg", "a/10.jpg"):
            write(tmp_path / "tree" / name, name.encode())
        table = self.refreshed(tmp_path)
        assert list(table.known) == ["a/1.jpg", "a/10.jpg", "b/2.jpg"]
        for name, known in table.known.items():
            assert known.content == blake3(name.encode()).digest()
            assert known.stat == Stat.of((tmp_path / "tree" / name).stat())

    def test_an_empty_tree(self, tmp_path: Path) -> None:
        (tmp_path / "tree").mkdir()
        assert self.refreshed(tmp_path).known == {}

    def test_a_file_written_just_now_is_read_again(self, tmp_path: Path) -> None:
        """The same size within the same tick of the clock: only the content can tell."""
        path = write(tmp_path / "tree" / "a" / "1.jpg", b"old")
        table = self.refreshed(tmp_path)
        stat = walk(tmp_path / "tree").photographs["a/1.jpg"]
        assert table.unchanged("a/1.jpg", stat) is None, "it is too young to be trusted"
        with open(path, "r+b") as handle:  # the same inode and size
            handle.write(b"new")
        assert self.refreshed(tmp_path).known["a/1.jpg"].content == blake3(b"new").digest()

    def test_an_old_file_is_not_read_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write(tmp_path / "tree" / "a" / "1.jpg", b"old")
        later = file_system_now_ns(tmp_path) + 10 * RACY_NS
        monkeypatch.setattr(file_table, "file_system_now_ns", lambda folder: later)
        table = self.refreshed(tmp_path)
        assert table.unchanged("a/1.jpg", Stat.of(path.stat())) == blake3(b"old").digest()
        monkeypatch.setattr(file_table, "blake3", lambda data: pytest.fail("it was read"))
        table = self.refreshed(tmp_path)
        assert table.known["a/1.jpg"].content == blake3(b"old").digest()
        assert table.known["a/1.jpg"].hashed_ns == later, "the time of the hash stays with it"

    def test_a_rewrite_of_the_same_size_with_mtime_restored_is_noticed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write(tmp_path / "tree" / "a" / "1.jpg", b"old")
        age(path, 3600)
        later = file_system_now_ns(tmp_path) + 10 * RACY_NS
        monkeypatch.setattr(file_table, "file_system_now_ns", lambda folder: later)
        table = self.refreshed(tmp_path)
        before = path.stat()
        time.sleep(0.02)  # past the kernel's tick; ctime shows it
        path.write_bytes(b"new")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        assert table.unchanged("a/1.jpg", Stat.of(path.stat())) is None
        assert self.refreshed(tmp_path).known["a/1.jpg"].content == blake3(b"new").digest()

    def test_files_that_are_gone_are_forgotten(self, tmp_path: Path) -> None:
        write(tmp_path / "tree" / "a" / "1.jpg")
        write(tmp_path / "tree" / "a" / "2.jpg")
        self.refreshed(tmp_path)
        (tmp_path / "tree" / "a" / "1.jpg").unlink()
        assert list(self.refreshed(tmp_path).known) == ["a/2.jpg"]

    def test_a_file_that_vanishes_meanwhile_is_an_error_not_a_crash(self, tmp_path: Path) -> None:
        path = write(tmp_path / "tree" / "a" / "1.jpg")
        listing = walk(tmp_path / "tree")
        path.unlink()
        table = FileTable(tmp_path / "files.arrow")
        assert table.refresh(tmp_path / "tree", listing.photographs) == {
            "a/1.jpg": "No such file or directory"
        }
        assert table.known == {}

    def test_the_clock_leaves_no_trace(self, tmp_path: Path) -> None:
        before = time.time_ns()
        now = file_system_now_ns(tmp_path)
        assert abs(now - before) < 10**9
        assert list(tmp_path.iterdir()) == []
