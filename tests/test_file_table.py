"""Which files have changed? And which are there at all?"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pyarrow as pa
import pytest
from blake3 import blake3

from facetrain import file_table
from facetrain.file_table import (
    LISTED,
    MAX_DEPTH,
    RACY_NS,
    SCHEMA,
    FileTable,
    Listing,
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


def paths(of: Listing | FileTable) -> list[str]:
    return (of.files if isinstance(of, Listing) else of.table)["path"].to_pylist()


def nested(root: Path, depth: int) -> None:
    """d/d/d/…/1.jpg, made folder by folder."""
    here = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("1.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def unnest(root: Path) -> None:
    """Remove it again, as pytest's own clearing up would stumble over it: each folder is moved up and emptied."""
    while (root / "d").is_dir():
        (root / "d" / "1.jpg").unlink(missing_ok=True)
        if (root / "d" / "d").is_dir():
            (root / "d" / "d").rename(root / "next")
        (root / "d").rmdir()
        if (root / "next").is_dir():
            (root / "next").rename(root / "d")


def trusted(table: FileTable, tree: Path) -> list[bytes | None]:
    """What the table says of the tree's files as they are now."""
    return table.contents(walk(tree).files).to_pylist()


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
        assert paths(listing) == sorted(names)
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
        assert paths(walk(tmp_path)) == sorted(names)

    def test_a_folder_may_be_called_like_a_photograph(self, tmp_path: Path) -> None:
        write(tmp_path / "a" / "b.jpg" / "c.jpg")
        assert paths(walk(tmp_path)) == ["a/b.jpg/c.jpg"]

    def test_a_name_that_is_not_utf8_is_a_problem(self, tmp_path: Path) -> None:
        with open(os.fsencode(tmp_path) + b"/\xff\xfe.jpg", "wb"):
            pass
        listing = walk(tmp_path)
        assert paths(listing) == []
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
        assert paths(listing) == ["ann/2.jpg", "ann/3.jpg", "bob/1.jpg"]
        assert set(listing.problems) == {"ann/up", "ann/self", "ann/lost.jpg", "ann/eats its tail.jpg"}
        assert listing.problems["ann/up"] == "a link back to a folder above it"

    def test_what_is_no_file_is_never_opened(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        os.mkfifo(tmp_path / "a" / "pipe.jpg")
        listing = walk(tmp_path)
        assert paths(listing) == []
        assert list(listing.problems) == ["a/pipe.jpg"]

    def test_a_folder_that_cannot_be_read_is_a_problem(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path / "a" / "1.jpg")
        write(tmp_path / "b" / "1.jpg")
        real = os.open

        def refuse(path: str, *arguments: int, **options: int) -> int:
            if path == "a":
                raise PermissionError(13, "Permission denied", path)
            return real(path, *arguments, **options)

        monkeypatch.setattr(file_table.os, "open", refuse)
        listing = walk(tmp_path)
        assert listing.problems == {"a": "Permission denied"}
        assert paths(listing) == ["b/1.jpg"]

    @pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, 3000])
    def test_folders_in_folders(self, tmp_path: Path, depth: int) -> None:
        """A photograph in the deepest, whose path no system call takes."""
        root = tmp_path / "root"
        write(root / "a" / "1.jpg")
        nested(root, depth)
        try:
            listing = walk(root)
            found = list(find_photographs(root))
        finally:
            unnest(root)
        if depth <= MAX_DEPTH:
            assert paths(listing) == found == ["a/1.jpg", "d/" * depth + "1.jpg"]
            assert listing.problems == {}
        else:
            assert paths(listing) == found == ["a/1.jpg"]
            assert listing.problems == {"/".join("d" * (MAX_DEPTH + 1)): "more than 100 folders deep"}

    def test_what_a_killed_command_left_is_told_apart(self, tmp_path: Path) -> None:
        write(tmp_path / "a" / f"{TEMP_PREFIX}123-abc")
        listing = walk(tmp_path)
        assert (listing.temporary, paths(listing)) == ([f"a/{TEMP_PREFIX}123-abc"], [])
        assert not listing.others

    def test_find_photographs(self, tmp_path: Path) -> None:
        write(tmp_path / "a" / "notes.txt")
        write(tmp_path / "a" / ".x.jpg")
        assert list(find_photographs(tmp_path)) == []
        write(tmp_path / "b" / "c" / "d" / "1.WebP")
        write(tmp_path / "2.jpg")
        assert sorted(find_photographs(tmp_path)) == ["2.jpg", "b/c/d/1.WebP"]


STATE = {"size_bytes": 10, "mtime_ns": 10**18, "ctime_ns": 10**18, "inode": 7}


class TestStill:
    """When is a file that looks as it did taken for unchanged?"""

    def known(self, folder: Path, hashed_ns: int, then: dict[str, int], now: dict[str, int]) -> bool:
        table = FileTable(folder / "files.arrow")
        row = {"path": "a.jpg", "hashed_ns": hashed_ns, "content": bytes(32)}
        table.put(pa.Table.from_pylist([row | then], schema=SCHEMA))
        files = pa.Table.from_pylist([{"path": "a.jpg"} | now], schema=LISTED)
        return table.contents(files).to_pylist() == [bytes(32)]

    def test_long_unchanged(self, tmp_path: Path) -> None:
        assert self.known(tmp_path, 10**18 + RACY_NS + 1, STATE, STATE)

    @pytest.mark.parametrize("field", STATE)
    def test_any_difference_counts(self, tmp_path: Path, field: str) -> None:
        other = STATE | {field: STATE[field] - 1}
        assert not self.known(tmp_path, 10**18 + 2 * RACY_NS, STATE, other)

    @pytest.mark.parametrize("field", ["mtime_ns", "ctime_ns"])
    def test_a_file_that_was_young_when_hashed_is_not_trusted(self, tmp_path: Path, field: str) -> None:
        state = STATE | {"mtime_ns": 10**17, "ctime_ns": 10**17, field: 10**18}
        for hashed_ns in (10**18 - 1, 10**18, 10**18 + RACY_NS):
            assert not self.known(tmp_path, hashed_ns, state, state)
        assert self.known(tmp_path, 10**18 + RACY_NS + 1, state, state)


class TestFileTable:
    def refreshed(self, tmp_path: Path) -> FileTable:
        table = FileTable(tmp_path / "files.arrow")
        assert table.refresh(tmp_path / "tree", walk(tmp_path / "tree").files) == {}
        table.save()
        return FileTable(tmp_path / "files.arrow")

    def test_contents_are_hashed_and_kept(self, tmp_path: Path) -> None:
        for name in ("b/2.jpg", "a/1.jpg", "a/10.jpg"):
            write(tmp_path / "tree" / name, name.encode())
        table = self.refreshed(tmp_path)
        assert paths(table) == ["a/1.jpg", "a/10.jpg", "b/2.jpg"]
        for row in table.table.to_pylist():
            assert row["content"] == blake3(row["path"].encode()).digest()
            found = (tmp_path / "tree" / row["path"]).stat()
            assert (row["size_bytes"], row["mtime_ns"]) == (found.st_size, found.st_mtime_ns)
            assert (row["ctime_ns"], row["inode"]) == (found.st_ctime_ns, found.st_ino)

    def test_an_empty_tree(self, tmp_path: Path) -> None:
        (tmp_path / "tree").mkdir()
        assert paths(self.refreshed(tmp_path)) == []

    def test_a_file_written_just_now_is_read_again(self, tmp_path: Path) -> None:
        """The same size within the same tick of the clock: only the content can tell."""
        path = write(tmp_path / "tree" / "a" / "1.jpg", b"old")
        table = self.refreshed(tmp_path)
        assert trusted(table, tmp_path / "tree") == [None], "it is too young to be trusted"
        with open(path, "r+b") as handle:  # the same inode and size
            handle.write(b"new")
        assert self.refreshed(tmp_path).table["content"].to_pylist() == [blake3(b"new").digest()]

    def test_an_old_file_is_not_read_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "tree" / "a" / "1.jpg", b"old")
        later = file_system_now_ns(tmp_path) + 10 * RACY_NS
        monkeypatch.setattr(file_table, "file_system_now_ns", lambda folder: later)
        table = self.refreshed(tmp_path)
        assert trusted(table, tmp_path / "tree") == [blake3(b"old").digest()]
        monkeypatch.setattr(file_table, "blake3", lambda data: pytest.fail("it was read"))
        table = self.refreshed(tmp_path)
        assert table.table["content"].to_pylist() == [blake3(b"old").digest()]
        assert table.table["hashed_ns"].to_pylist() == [later], "the time of the hash stays with it"

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
        assert trusted(table, tmp_path / "tree") == [None]
        assert self.refreshed(tmp_path).table["content"].to_pylist() == [blake3(b"new").digest()]

    @pytest.mark.parametrize("way", ["in place", "another file renamed over it"])
    def test_of_thousands_of_rewrites_with_size_and_mtime_kept_none_is_missed(
        self, tmp_path: Path, way: str
    ) -> None:
        """As tools do that keep times: neither size nor mtime shows it. No clock is turned forward here."""
        names = [f"{i // 100:02d}/{i % 100:02d}.jpg" for i in range(3000)]
        for name in names:
            age(write(tmp_path / "tree" / name, b"old"), 3600)
        self.refreshed(tmp_path)
        for name in names:
            path = tmp_path / "tree" / name
            before = path.stat()
            if way == "in place":
                path.write_bytes(b"new")
            else:
                write(tmp_path / "other", b"new").rename(path)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        table = self.refreshed(tmp_path)
        assert table.table["content"].to_pylist() == [blake3(b"new").digest()] * len(names)

    def test_ctime_alone_shows_a_rewrite_of_a_file_that_was_trusted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same once the files are old enough to be trusted by their state."""
        names = [f"{i // 100:02d}/{i % 100:02d}.jpg" for i in range(2000)]
        for name in names:
            age(write(tmp_path / "tree" / name, b"old"), 3600)
        later = file_system_now_ns(tmp_path) + 10 * RACY_NS
        monkeypatch.setattr(file_table, "file_system_now_ns", lambda folder: later)
        table = self.refreshed(tmp_path)
        assert trusted(table, tmp_path / "tree") == [blake3(b"old").digest()] * len(names)
        time.sleep(0.02)  # past the kernel's tick
        for name in names[::2]:
            path = tmp_path / "tree" / name
            before = path.stat()
            path.write_bytes(b"new")
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        now = trusted(table, tmp_path / "tree")
        assert now == [None, blake3(b"old").digest()] * (len(names) // 2), "just those are read again"

    def test_files_that_are_gone_are_forgotten(self, tmp_path: Path) -> None:
        write(tmp_path / "tree" / "a" / "1.jpg")
        write(tmp_path / "tree" / "a" / "2.jpg")
        self.refreshed(tmp_path)
        (tmp_path / "tree" / "a" / "1.jpg").unlink()
        assert paths(self.refreshed(tmp_path)) == ["a/2.jpg"]

    def test_a_file_that_vanishes_meanwhile_is_an_error_not_a_crash(self, tmp_path: Path) -> None:
        path = write(tmp_path / "tree" / "a" / "1.jpg")
        listing = walk(tmp_path / "tree")
        path.unlink()
        table = FileTable(tmp_path / "files.arrow")
        assert table.refresh(tmp_path / "tree", listing.files) == {"a/1.jpg": "No such file or directory"}
        assert paths(table) == []

    def test_the_clock_leaves_no_trace(self, tmp_path: Path) -> None:
        before = time.time_ns()
        now = file_system_now_ns(tmp_path)
        assert abs(now - before) < 10**9
        assert list(tmp_path.iterdir()) == []
