"""Arrow tables in files, with fingerprints of their own; and lookups between columns."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from facetrain import tables
from facetrain.errors import UserError
from facetrain.files import naming
from facetrain.tables import (
    dictionary_codes,
    find_sorted,
    is_intact,
    positions,
    put_rows,
    read_table,
    table_fingerprint,
    take,
    write_table,
)


def column(values: list, kind: pa.DataType | None = None, chunk: int = 3) -> pa.ChunkedArray:
    """In several chunks, as real columns are."""
    parts = [values[i : i + chunk] for i in range(0, len(values), chunk)] or [[]]
    return pa.chunked_array([pa.array(part, kind or pa.large_string()) for part in parts])


TABLE = pa.table(
    {
        "path": column([f"{i:03d}.jpg" for i in range(100)]),
        "person": column(["ann", None, "bob", "cat"] * 25, pa.string()).dictionary_encode(),
        "number": column(list(range(100)), pa.int64()),
    },
    metadata={"of": "a test"},
)


class TestWrite:
    def test_what_is_written_comes_back(self, tmp_path: Path) -> None:
        fingerprint = write_table(tmp_path / "x.arrow", TABLE)
        table = read_table(tmp_path / "x.arrow")
        assert table.to_pydict() == TABLE.to_pydict()
        assert table.schema.metadata == {b"of": b"a test", b"fingerprint": fingerprint.encode()}
        assert table_fingerprint(tmp_path / "x.arrow") == fingerprint

    def test_any_arrow_reader_reads_it(self, tmp_path: Path) -> None:
        write_table(tmp_path / "x.arrow", TABLE)
        with pa.ipc.open_file(tmp_path / "x.arrow") as reader:
            assert reader.read_all().to_pydict() == TABLE.to_pydict()

    def test_the_fingerprint_is_that_of_the_bytes_with_its_place_blank(self, tmp_path: Path) -> None:
        fingerprint = write_table(tmp_path / "x.arrow", TABLE).encode()
        data = (tmp_path / "x.arrow").read_bytes()
        assert data.count(fingerprint) == 2
        assert blake3(data.replace(fingerprint, tables._BLANK)).hexdigest().encode() == fingerprint

    @pytest.mark.parametrize("chunk", [1, 7, 1000])
    def test_it_does_not_depend_on_how_the_table_is_cut(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
    ) -> None:
        monkeypatch.setattr(tables, "CHUNK_ROWS", 30)
        cut = pa.concat_tables([TABLE.slice(i, chunk) for i in range(0, 100, chunk)])
        assert write_table(tmp_path / "a.arrow", cut) == write_table(tmp_path / "b.arrow", TABLE)
        assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()
        again = read_table(tmp_path / "a.arrow")
        assert write_table(tmp_path / "c.arrow", again) == table_fingerprint(tmp_path / "a.arrow")

    def test_other_values_or_metadata_are_another_fingerprint(self, tmp_path: Path) -> None:
        others = [
            TABLE,
            TABLE.slice(1),
            TABLE.replace_schema_metadata({"of": "other"}),
            TABLE.drop_columns("number"),
        ]
        found = {write_table(tmp_path / f"{i}.arrow", table) for i, table in enumerate(others)}
        assert len(found) == len(others)

    def test_the_same_again_leaves_the_file_alone(self, tmp_path: Path) -> None:
        write_table(tmp_path / "x.arrow", TABLE)
        before = (tmp_path / "x.arrow").stat()
        write_table(tmp_path / "x.arrow", TABLE)
        after = (tmp_path / "x.arrow").stat()
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
        assert [path.name for path in tmp_path.iterdir()] == ["x.arrow"]

    def test_no_file_has_no_fingerprint(self, tmp_path: Path) -> None:
        assert table_fingerprint(tmp_path / "x.arrow") is None

    def test_an_arrow_file_of_someone_else(self, tmp_path: Path) -> None:
        with (
            pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, TABLE.schema) as writer,
        ):
            writer.write_table(TABLE.unify_dictionaries())
        with pytest.raises(UserError, match=r"x.arrow is damaged \(it carries no fingerprint\)"):
            read_table(tmp_path / "x.arrow")


def test_one_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    write_table(path, TABLE.slice(0, 8))
    assert is_intact(path)
    data = path.read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        assert not is_intact(path), position
        with pytest.raises(UserError, match=r"x.arrow is damaged"):
            read_table(path)
        with suppress(UserError):  # it may read as another one, and is never a crash
            assert len(table_fingerprint(path) or "") == 64
    for size in range(len(data)):
        path.write_bytes(data[:size])
        assert not is_intact(path), size
    path.write_bytes(data + b"\0")
    assert not is_intact(path)


def test_what_the_disk_cannot_read_is_not_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.arrow"
    write_table(path, TABLE)
    for code in (errno.EIO, errno.ESTALE):

        def fails(*arguments: object, code: int = code) -> bytes:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(tables, "_hash", fails)
        if code == errno.EIO:
            assert not is_intact(path)
        else:
            with pytest.raises(OSError, match="Stale"):
                is_intact(path)


class TestNaming:
    @pytest.mark.parametrize("name", [None, "/disk/.ft-tmp-12-ab", b"/disk/.ft-tmp-12-ab"])
    def test_errors_without_a_name_and_of_temporary_files(self, name: str | bytes | None) -> None:
        with pytest.raises(OSError, match="No space") as caught, naming(Path("/disk/x.arrow")):
            raise OSError(errno.ENOSPC, "No space left on device", name)
        assert caught.value.filename == "/disk/x.arrow"

    def test_others_keep_theirs(self) -> None:
        with pytest.raises(OSError, match="Permission") as caught, naming(Path("/disk/x.arrow")):
            raise OSError(errno.EACCES, "Permission denied", "/disk/y.arrow")
        assert caught.value.filename == "/disk/y.arrow"

    def test_of_a_table_it_is_the_table(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*arguments: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(tables.pa, "OSFile", full)
        with pytest.raises(OSError, match="No space") as caught:
            write_table(tmp_path / "x.arrow", TABLE)
        assert caught.value.filename == str(tmp_path / "x.arrow")
        assert list(tmp_path.iterdir()) == []


WORDS = st.text("abc/", max_size=3)


class TestLookups:
    @given(st.lists(st.one_of(st.none(), WORDS)), st.lists(WORDS, unique=True))
    def test_positions(self, of: list[str | None], within: list[str]) -> None:
        found = positions(column(of), column(within))
        assert found.tolist() == [within.index(v) if v in within else -1 for v in of]

    @given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
    def test_positions_in_columns_that_are_nearly_equal(self, gone: set[int], new: set[int]) -> None:
        of = [f"{i:03d}" for i in range(61) if i not in gone]
        within = [f"{i:03d}" for i in range(61) if i not in new]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tables, "MANY_ROWS", 0)
            patch.setattr(tables.pc, "index_in", lambda *arguments, **options: pytest.fail("it hashed them"))
            if of and within:
                found = positions(column(of), column(within, chunk=7)).tolist()
                assert found == [within.index(v) if v in within else -1 for v in of]

    def test_positions_in_columns_that_are_not_alike(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tables, "MANY_ROWS", 0)
        monkeypatch.setattr(tables, "FEW_ROWS", 3)
        of, within = [f"{i:03d}" for i in range(0, 60, 2)], [f"{i:03d}" for i in range(0, 60, 3)]
        assert positions(column(of), column(within)).tolist() == [
            within.index(v) if v in within else -1 for v in of
        ]

    @given(st.lists(WORDS), st.lists(WORDS, unique=True))
    def test_find_sorted(self, values: list[str], within: list[str]) -> None:
        within = sorted(within)
        expected = [within.index(v) if v in within else -1 for v in values]
        assert find_sorted(column(within), values).tolist() == expected

    def test_a_few_among_many_are_found_without_reading_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        many = column([f"{i:05d}" for i in range(5000)], chunk=700)
        monkeypatch.setattr(tables, "positions", lambda of, within: pytest.fail("it read them all"))
        assert find_sorted(many, ["00000", "04999", "02345", "x", ""]).tolist() == [0, 4999, 2345, -1, -1]

    @given(st.lists(st.one_of(st.none(), WORDS), min_size=1), st.data())
    def test_take(self, values: list, data: st.DataObject) -> None:
        where = data.draw(st.lists(st.integers(-1, len(values) - 1)))
        taken = take(column(values), np.array(where, np.int64))
        assert taken.to_pylist() == [None if i < 0 else values[i] for i in where]

    @given(st.dictionaries(WORDS, st.just("old")), st.dictionaries(WORDS, st.just("new")), st.booleans())
    def test_put_rows(self, old: dict[str, str], new: dict[str, str], many: bool) -> None:
        def table(rows: dict[str, str]) -> pa.Table:
            values = column([rows[path] for path in sorted(rows)], pa.string())
            return pa.table({"path": column(sorted(rows)), "value": values})

        old |= {f"{i:03d}": "old" for i in range(0 if many else 100 * len(new))}
        both = put_rows(table(old), table(new))
        assert list(zip(*both.to_pydict().values(), strict=True)) == sorted((old | new).items())

    @given(st.lists(st.one_of(st.none(), WORDS)), st.booleans())
    def test_dictionary_codes(self, values: list, encoded: bool) -> None:
        made = column(values, pa.string())
        codes, names = dictionary_codes(made.dictionary_encode() if encoded else made)
        assert [None if code < 0 else names[int(code)].as_py() for code in codes] == values
        assert len(set(names.to_pylist())) == len(names)
