"""LFW's pairs files, and the photographs they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from facetrain.errors import UserError
from facetrain.evaluate.pairs import find_photographs, photograph_stem, read_pairs

TWO_FOLDS = "2\t1\nAnn\t1\t2\nAnn\t1\tBob\t3\nBob\t3\t12\nBob\t1\tCy\t1\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "pairs.txt"
    path.write_text(text, encoding="utf-8", newline="")
    return path


def photograph(root: Path, name: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def test_ten_folds_in_small(tmp_path):
    pairs = read_pairs(write(tmp_path, TWO_FOLDS))
    assert len(pairs) == 4
    assert pairs.num_folds == 2
    assert [tuple(pair) for pair in pairs] == [
        ("Ann", 1, "Ann", 2, True, 0, 2),
        ("Ann", 1, "Bob", 3, False, 0, 3),
        ("Bob", 3, "Bob", 12, True, 1, 4),
        ("Bob", 1, "Cy", 1, False, 1, 5),
    ]
    assert pairs.same.tolist() == [True, False, True, False]
    assert pairs.folds.tolist() == [0, 0, 1, 1]


def test_view_1_is_one_fold(tmp_path):
    pairs = read_pairs(write(tmp_path, "2\nAnn\t1\t2\nBob\t1\t2\nAnn\t1\tBob\t1\nBob\t2\tCy\t1\n"))
    assert pairs.num_folds == 1
    assert pairs.same.tolist() == [True, True, False, False]
    assert pairs.folds.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "text",
    [
        TWO_FOLDS.replace("\t", "  "),
        TWO_FOLDS.replace("\n", "\r\n"),
        TWO_FOLDS.replace("\n", "\n\n") + "  \n",
        TWO_FOLDS.rstrip("\n"),
        "\ufeff" + TWO_FOLDS,
        TWO_FOLDS.replace("\n", " \n"),
    ],
    ids=["spaces", "windows", "blank lines", "no last newline", "byte order mark", "trailing space"],
)
def test_the_same_written_otherwise(tmp_path, text):
    expected = read_pairs(write(tmp_path, TWO_FOLDS))
    assert [pair[:-1] for pair in read_pairs(write(tmp_path, text))] == [pair[:-1] for pair in expected]


def test_names_with_spaces_between_tabs(tmp_path):
    pairs = read_pairs(write(tmp_path, "1\t1\nZoë de la Cruz\t1\t2\nZoë de la Cruz\t1\t123\t4\n"))
    assert [(pair.person1, pair.person2) for pair in pairs] == [
        ("Zoë de la Cruz", "Zoë de la Cruz"),
        ("Zoë de la Cruz", "123"),
    ]


@pytest.mark.parametrize(
    "text, line, message",
    [
        ("", None, "empty"),
        (" \n\n", None, "empty"),
        ("Ann\t1\t2\n", 1, "expected the number of folds"),
        ("ten\t300\n", 1, "expected the number of folds"),
        ("0\t300\n", 1, "expected the number of folds"),
        ("-1\n", 1, "expected the number of folds"),
        ("1\t2\t3\n", 1, "expected the number of folds"),
        ("10\t300\n", 1, "promises 10 x 2 x 300 = 6000 pairs, the file holds 0"),
        ("1\t1\nAnn\t1\t2\n", 2, "= 2 pairs, the file holds 1"),
        (TWO_FOLDS + "Ann\t1\t2\n", 6, "= 4 pairs, the file holds 5"),
        ("1\t1\nAnn\t1\tBob\t1\nAnn\t1\t2\n", 2, "expected a same-person pair"),
        ("1\t1\n\nAnn\t1\t2\nAnn\t1\t3\n", 4, "expected a different-person pair"),
        ("1\t1\nAnn\t1\t2\nAnn\t1\tBob\t1\t1\n", 3, "expected a different-person pair"),
        ("1\t1\nAnn\t1\ttwo\nAnn\t1\tBob\t1\n", 2, "whole numbers"),
        ("1\t1\nAnn\t1\t2.0\nAnn\t1\tBob\t1\n", 2, "whole numbers"),
        ("1\t1\nAnn\t1\t2\nAnn\t1\tBob\t-1\n", 3, "whole numbers"),
        ("1\t1\nAnn\t1\t1\nAnn\t1\tBob\t1\n", 2, "paired with itself"),
        ("1\t1\nAnn\t1\t2\nAnn\t1\tAnn\t2\n", 3, "two different people"),
        ("1\t1\n../Ann\t1\t2\nAnn\t1\tBob\t1\n", 2, "name of a folder"),
        ("1\t1\nAnn\t1\t2\nAnn\t1\t..\t1\n", 3, "name of a folder"),
    ],
)
def test_files_that_are_not_pairs(tmp_path, text, line, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_pairs(path)
    where = f"{path}, line {line}: " if line else f"{path}: "
    assert str(caught.value).startswith(where)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_file_a_folder_and_a_picture(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_pairs(tmp_path / "none.txt")
    with pytest.raises(UserError, match="directory"):
        read_pairs(tmp_path)
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match="not UTF-8"):
        read_pairs(tmp_path / "x.jpg")


def test_stem():
    assert photograph_stem("Abel_Pacheco", 4) == "Abel_Pacheco_0004"
    assert photograph_stem("A", 12345) == "A_12345"


def test_photographs_are_found_under_any_suffix(tmp_path):
    pairs = read_pairs(write(tmp_path, TWO_FOLDS))
    root = tmp_path / "aligned"
    for name in (
        "Ann/Ann_0001.jpg",
        "Ann/Ann_0002.PNG",
        "Bob/Bob_0001.png.jpg",
        "Bob/Bob_0003.JPEG.webp",
        "Bob/Bob_0012.tiff",
        "Cy/Cy_0001.bmp",
        "Cy/Cy_00010.jpg",
        "Dan/Dan_0001.jpg",
    ):
        photograph(root, name)
    assert find_photographs(root, pairs) == {
        ("Ann", 1): Path("Ann/Ann_0001.jpg"),
        ("Ann", 2): Path("Ann/Ann_0002.PNG"),
        ("Bob", 3): Path("Bob/Bob_0003.JPEG.webp"),
        ("Bob", 12): Path("Bob/Bob_0012.tiff"),
        ("Bob", 1): Path("Bob/Bob_0001.png.jpg"),
        ("Cy", 1): Path("Cy/Cy_0001.bmp"),
    }


def test_of_several_files_the_plainest_is_taken(tmp_path):
    pairs = read_pairs(write(tmp_path, "1\nAnn\t1\t2\nAnn\t1\tBob\t1\n"))
    for name in ("Ann_0001.png.jpg", "Ann_0001.png", "Ann_0001.bmp.png", "Ann_0001.txt", "Ann_0002.webp"):
        photograph(tmp_path, f"Ann/{name}")
    photograph(tmp_path, "Bob/Bob_0001.jpg")
    found = find_photographs(tmp_path, pairs)
    assert found["Ann", 1] == Path("Ann/Ann_0001.png")


def test_missing_photographs(tmp_path):
    pairs = read_pairs(write(tmp_path, TWO_FOLDS))
    root = tmp_path / "raw"
    for name in ("Ann/Ann_0001.jpg", "Ann/Ann_0002.jpg", "Bob/Bob_0003.txt", "Bob/Bob_0001.jpg"):
        photograph(root, name)
    (root / "Bob" / "Bob_0012.jpg").mkdir()  # a folder is no photograph
    with pytest.raises(UserError) as caught:
        find_photographs(root, pairs)
    assert str(caught.value) == (
        f"{pairs.path}, line 3: there is no photograph Bob_0003 in {root / 'Bob'} "
        "(2 more of the photographs it names are missing)"
    )
    assert find_photographs(root, pairs, allow_missing=True) == {
        ("Ann", 1): Path("Ann/Ann_0001.jpg"),
        ("Ann", 2): Path("Ann/Ann_0002.jpg"),
        ("Bob", 1): Path("Bob/Bob_0001.jpg"),
    }
    for name in ("Bob/Bob_0003.jpg", "Bob/Bob_0012.png"):
        photograph(root, name)
    with pytest.raises(UserError, match=r"line 5: there is no photograph Cy_0001 in .*Cy$"):
        find_photographs(root, pairs)


def test_the_tree_must_be_a_folder(tmp_path):
    pairs = read_pairs(write(tmp_path, TWO_FOLDS))
    for root in (tmp_path / "none", pairs.path):
        with pytest.raises(UserError, match="no such folder"):
            find_photographs(root, pairs)
