"""Lists of LFW and the sets in its manner that are wrong, each said in one line; and other forms in which they come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_protocol_lfw_family import laid_out

from facetrain.errors import UserError
from facetrain.evaluate.protocols.agedb import MATLAB, AgeDb30
from facetrain.evaluate.protocols.base import Protocol
from facetrain.evaluate.protocols.cfp import CfpFp
from facetrain.evaluate.protocols.cross_lfw import Calfw, Cplfw
from facetrain.evaluate.protocols.lfw import Lfw
from facetrain.evaluate.protocols.listed_pairs import read_path_pairs
from facetrain.evaluate.protocols.rfw import Rfw, read_race

Change = Callable[[list[str]], list[str]]


def said_of(make: Callable[[], object]) -> str:
    """The one line of the UserError."""
    with pytest.raises(UserError) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(path: Path, how: Change) -> None:
    path.write_text("".join(f"{line}\n" for line in how(path.read_text().splitlines())))


def with_line(number: int, text: str) -> Change:
    return lambda lines: [*lines[: number - 1], text, *lines[number:]]


def without_line(number: int) -> Change:
    return lambda lines: lines[: number - 1] + lines[number:]


NOTHING: Change = lambda lines: []  # noqa: E731
ONLY_SAME: Change = lambda lines: [line for line in lines if len(line.split("\t")) == 3]  # noqa: E731

SAME, DIFFERENT = "Protocol/Split/FP/02/same.txt", "Protocol/Split/FP/02/diff.txt"
AFRICAN, POINTS = "txts/African/African_pairs.txt", "txts/African/African_lmk.txt"


@pytest.mark.parametrize(
    ("layout", "make", "file", "how", "says"),
    [
        ("lfw", Lfw, "pairs.txt", NOTHING, "pairs.txt: the pairs file is empty"),
        ("lfw", Lfw, "pairs.txt", without_line(3), "promises 6 x 2 x 20 = 240 pairs, the file holds 239"),
        ("lfw", Lfw, "pairs.txt", with_line(4, "who\t1"), "line 4: expected a same-person pair, 'name number number', found 'who 1'"),
        ("lfw", Lfw, "pairs.txt", with_line(5, "who\t1\t2"), "line 5: there is no photograph who_0001 in "),
        ("cfp-fp", CfpFp, SAME, NOTHING, "02/same.txt: the list of pairs is empty"),
        ("cfp-fp", CfpFp, SAME, with_line(2, "3 1"), "02/same.txt, line 2: expected the numbers of two photographs, '7,3', found '3 1'"),
        ("cfp-fp", CfpFp, DIFFERENT, with_line(3, "3,99"), "02/diff.txt, line 3: Pair_list_P.txt has no photograph 99"),
        ("cfp-fp", CfpFp, "Protocol/Pair_list_F.txt", with_line(2, "2 frontal.jpg"), "Pair_list_F.txt, line 2: expected 'number ../Data/Images/person/kind/photograph', found '2 frontal.jpg'"),
        ("cfp-fp", CfpFp, "Protocol/Pair_list_F.txt", with_line(3, "2 ../Data/Images/001/frontal/03.jpg"), "Pair_list_F.txt, line 3: photograph 2 is here a second time, after line 2"),
        ("cfp-fp", CfpFp, "Protocol/Pair_list_P.txt", with_line(1, "1 ../Data/Images/099/profile/01.jpg"), "Pair_list_P.txt, line 1: there is no photograph 099/profile/01.jpg in "),
        ("calfw", Calfw, "pairs_CALFW.txt", NOTHING, "pairs_CALFW.txt: the list of pairs is empty"),
        ("calfw", Calfw, "pairs_CALFW.txt", without_line(480), "line 479: a pair has two lines, and this one is left over, found 'person_00006_0004.jpg 0'"),
        ("calfw", Calfw, "pairs_CALFW.txt", without_line(1), "line 40: expected the number of the line before, 1: they are a pair, found 'person_00002_0001.jpg 2'"),
        ("calfw", Calfw, "pairs_CALFW.txt", with_line(4, "x.jpg 1"), "line 3: there is no photograph images/x.jpg in "),
        ("calfw", Calfw, "pairs_CALFW.txt", with_line(6, "x.jpg 5"), "line 6: expected the number of the line before, 1: they are a pair, found 'x.jpg 5'"),
        ("calfw", Calfw, "pairs_CALFW.txt", with_line(6, "x.jpg"), "line 6: expected 'photograph number', found 'x.jpg'"),
        ("calfw", Calfw, "pairs_CALFW.txt", with_line(6, "x.jpg same"), "line 6: expected 'photograph number', found 'x.jpg same'"),
        ("calfw", Calfw, "pairs_CALFW.txt", with_line(6, "../x.jpg 1"), "line 6: a photograph must be a path below the folder of photographs, found '../x.jpg'"),
        ("calfw", Calfw, "pairs_CALFW.txt", with_line(1, "a b c d"), "line 1: expected 'photograph number' (two lines a pair), 'photograph photograph 1' or '1 photograph photograph', found 'a b c d'"),
        ("cplfw", Cplfw, "pairs_CPLFW.txt", lambda lines: lines[:10], "pairs_CPLFW.txt: all 5 pairs are of one person: both kinds are needed"),
        ("agedb-30", AgeDb30, "agedb_30_pair.txt", with_line(7, "a.jpg b.jpg"), "line 7: expected 'photograph photograph 1', with 0 for different people, found 'a.jpg b.jpg'"),
        ("agedb-30", AgeDb30, "agedb_30_pair.txt", with_line(7, "a.jpg b.jpg 1"), "line 7: there is no photograph 03_Protocol_Images/a.jpg in "),
        ("rfw", Rfw, AFRICAN, NOTHING, "African_pairs.txt: the list of pairs is empty"),
        ("rfw", Rfw, AFRICAN, ONLY_SAME, "African_pairs.txt: all 30 pairs are of one person: both kinds are needed"),
        ("rfw", Rfw, AFRICAN, with_line(2, "m.00001\t1"), "line 2: expected 'person number number' or 'person number person number', found 'm.00001 1'"),
        ("rfw", Rfw, AFRICAN, with_line(2, "m.00001\t1\ttwo"), "line 2: expected 'person number number'"),
        ("rfw", Rfw, AFRICAN, with_line(2, "../m\t1\t2"), "line 2: a person's name must be the name of a folder"),
        ("rfw", Rfw, AFRICAN, with_line(2, "m.77777\t1\t2"), "African_pairs.txt, line 2: there is no photograph African/m.77777/m.77777_0001.jpg in "),
        ("rfw", Rfw, AFRICAN, lambda lines: ["1 20", *lines], "promises 1 x 2 x 20 = 40 pairs, the file holds 60"),
        ("rfw", Rfw, POINTS, with_line(3, "a/b.jpg 0 1 2 3"), "African_lmk.txt, line 3: expected a path, a label and ten numbers, x and y of five points"),
        ("rfw", Rfw, POINTS, with_line(3, "a/b.jpg 0 1 2 3 4 5 6 7 8 9 x"), "African_lmk.txt, line 3: expected a path"),
        ("rfw", Rfw, POINTS, without_line(1), "African_lmk.txt has no landmarks of African/m.00001/m.00001_0001.jpg: mend it, or --protocol-arg landmarks=false"),
    ],
)  # fmt: skip
def test_lists_that_are_wrong(
    layout: str, make: Callable[[Path], Protocol], file: str, how: Change, says: str, tmp_path: Path
) -> None:
    data = laid_out(tmp_path, layout)
    make(data)
    change(data / file, how)
    said = said_of(lambda: make(data))
    assert said.startswith(str(data))
    assert says in said


@pytest.mark.parametrize(
    ("layout", "make", "file"),
    [
        ("lfw", Lfw, "lfw/person_00003/person_00003_0002.jpg"),
        ("cfp-fp", CfpFp, "Data/Images/002/profile/01.jpg"),
        ("agedb-30", AgeDb30, "03_Protocol_Images/000020001_Person00002_60_m.jpg"),
        ("calfw", Calfw, "images/person_00002_0003.jpg"),
        ("cplfw", Cplfw, "images/person_00002_0003.jpg"),
        ("rfw", Rfw, "data/Indian/m.00004/m.00004_0002.jpg"),
    ],
)
def test_a_photograph_that_is_missing(
    layout: str, make: Callable[[Path], Protocol], file: str, tmp_path: Path
) -> None:
    data = laid_out(tmp_path, layout)
    count = len(make(data).photographs)
    (data / file).unlink()
    said = said_of(lambda: make(data))
    assert f"there is no photograph {Path(file).stem}" in said or f"{Path(file).name} in {data}" in said
    (text, line) = said.split(", line ")
    number = int(line.split(":")[0])
    if layout != "cfp-fp":  # its lists name photographs by numbers
        stem = Path(file).stem
        there = Path(text).read_text().splitlines()[number - 1 : number + 1]
        assert any(stem in line or stem[: stem.rindex("_")] in line for line in there)
    if layout not in ("agedb-30", "calfw", "cplfw"):
        root = data / file.split("/")[0] / ("Images" if layout == "cfp-fp" else "")
        (root / "imagespec.json").touch()  # an aligned tree: no face was found in it
        paths = make(data).photographs.paths
        assert len(paths) == count and list(paths).count("") == 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Lfw, "holds no list of pairs: looked for pairs.txt"),
        (lambda data: Lfw(data, view=1), "holds no list of pairs pairsDevTrain.txt: looked for pairsDevTrain.txt"),
        (lambda data: Lfw(data, view=3), "view = 3: LFW has View 1, for development, and View 2"),
        (lambda data: Lfw(data, view=1, pairs="x"), "View 1 has two lists, pairsDevTrain.txt and pairsDevTest.txt in --data: leave out pairs"),
        (CfpFp, "holds no protocol of CFP: looked for Protocol, cfp-dataset/Protocol"),
        (lambda data: CfpFp(data, kind="PP"), "kind = 'PP': choose FP or FF"),
        (AgeDb30, f"holds no list of pairs: looked for {MATLAB}, agedb_30_pair.txt"),
        (Calfw, "holds no list of pairs: looked for pairs_CALFW.txt, calfw_ann.txt"),
        (lambda data: Calfw(data, no_face="guess"), "no_face = 'guess': choose different or drop"),
        (lambda data: Calfw(data / "none"), "none: no such folder; name the one that holds the list of pairs"),
        (Cplfw, "looked for pairs_CPLFW.txt"),
        (Rfw, "holds no lists of RFW: looked for txts, test/txts, images/test/txts"),
    ],
)  # fmt: skip
def test_folders_that_are_none(make: Callable[[Path], Protocol], says: str, tmp_path: Path) -> None:
    assert says in said_of(lambda: make(tmp_path))


def test_folds_of_cfp_that_are_missing(tmp_path: Path) -> None:
    data = laid_out(tmp_path, "cfp-fp")
    split = data / "Protocol/Split/FP"
    (split / ".DS_Store").touch()
    CfpFp(data)
    (split / "03").rename(split / "13")
    assert f"{split}: there is no fold 03, and there is a fold 04" in said_of(lambda: CfpFp(data))
    (split / "02" / "diff.txt").unlink()
    (split / "13").rename(split / "03")
    assert "02/diff.txt: cannot read the list of pairs: No such file" in said_of(lambda: CfpFp(data))
    split.rename(data / "away")
    assert "FP holds no folds: looked for the folders 01, 02, …" in said_of(lambda: CfpFp(data))


def test_a_race_that_is_missing(tmp_path: Path) -> None:
    data = laid_out(tmp_path, "rfw")
    (data / "txts/Indian/Indian_pairs.txt").unlink()
    assert "Indian_pairs.txt: cannot read the list of pairs: No such file" in said_of(lambda: Rfw(data))


def test_through_the_command(tmp_path: Path, wrong: Callable) -> None:
    data = laid_out(tmp_path / "set", "cplfw")
    change(data / "pairs_CPLFW.txt", with_line(3, "what"))
    evaluate = ("evaluate", "--embedder", "dlib", "--protocol", "cplfw", "--data", data)
    assert "pairs_CPLFW.txt, line 3: expected 'photograph number', found 'what'" in wrong(tmp_path, *evaluate)
    said = wrong(tmp_path, *evaluate, "--protocol-arg", "fold=3")
    assert "protocol 'cplfw' takes no 'fold': it takes pairs, images, no_face" in said


# -- the forms in which lists come -----------------------------------------------------------------------------------------

PAIRS = [
    ("a_1.jpg", "a_2.jpg", 1),
    ("a_1.jpg", "b_1.jpg", 0),
    ("b_1.jpg", "b_2.jpg", 1),
    ("a_2.jpg", "b_2.jpg", 0),
]


@pytest.mark.parametrize(
    "write",
    [
        lambda a, b, same: f"{a} {same}\n{b} {same}\n",
        lambda a, b, same: f"{a}\t{same} \r\n\n{b}\t{same}\r\n",
        lambda a, b, same: f"{a} {b} {same}\n",
        lambda a, b, same: f"{same} {a} {b}\n",
        lambda a, b, same: f"{a}  {b}\t{1 if same else -1}\n",
        lambda a, b, same: f"{same} ./{a} ./{b}\n",
    ],
    ids=["two lines", "tabs, blank lines, windows", "label last", "label first", "minus one", "dots"],
)
def test_forms_of_one_list(write: Callable[[str, str, int], str], tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("".join(write(*pair) for pair in PAIRS).encode())
    pairs = read_path_pairs(path)
    assert [tuple(pair) for pair in zip(pairs.first, pairs.second, pairs.same.tolist(), strict=True)] == PAIRS
    assert pairs.folds.tolist() == [0, 0, 1, 1]


def test_numbers_are_folds_where_there_are_several(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    numbers = [2, 2, 7, 5, 0, 0, 0, 0, 0, 0]
    path.write_text("".join(f"a{i}.jpg {n}\nb{i}.jpg {n}\n" for i, n in enumerate(numbers)))
    assert read_path_pairs(path).folds.tolist() == [0, 0, 2, 1, 0, 0, 1, 1, 2, 2]
    path.write_text("".join(f"a{i}.jpg {n and 1}\nb{i}.jpg {n and 1}\n" for i, n in enumerate(numbers)))
    assert read_path_pairs(path).folds.tolist() == [0, 1, 2, 3, 0, 0, 1, 2, 2, 3]


def test_folders_in_which_photographs_lie(tmp_path: Path) -> None:
    """Where a list has folders in its paths, and where photographs are below a folder of another name."""
    data = laid_out(tmp_path / "set", "calfw")
    of_images = Calfw(data)
    assert of_images.photographs.root == data
    assert of_images.people == {f"person_{i:05d}" for i in range(1, 13)}
    (data / "images").rename(data / "faces")
    (data / "images").mkdir()
    assert "there is no photograph images/" in said_of(lambda: Calfw(data))
    moved = Calfw(data, images=str(data / "faces"))
    assert [path.split("/") for path in moved.photographs.paths] == [
        ["faces", path.split("/")[1]] for path in of_images.photographs.paths
    ]
    above = data / "images&landmarks/images&landmarks/images"
    above.parent.mkdir(parents=True)
    (data / "faces").rename(above)
    assert Calfw(data).photographs.root == above.parent
    assert "no such folder; name the one that holds" in said_of(
        lambda: Calfw(data, images=str(data / "none"))
    )

    (tmp_path / "val" / "calfw_112x112").mkdir(parents=True)
    for name in ("a_1.jpg", "a_2.jpg", "b_1.jpg", "b_2.jpg"):
        (tmp_path / "val" / "calfw_112x112" / name).touch()
    listed = "".join(f"{same} calfw_112x112/{a} calfw_112x112/{b}\n" for a, b, same in PAIRS)
    (tmp_path / "val" / "calfw_ann.txt").write_text(listed)
    protocol = Calfw(tmp_path / "val")
    assert protocol.photographs.root == tmp_path / "val"
    assert protocol.people == {"a", "b"}
    assert protocol.photographs.paths[0] == "calfw_112x112/a_1.jpg"


def test_a_race_with_lfws_first_line(tmp_path: Path) -> None:
    path = tmp_path / "Asian_pairs.txt"
    body = ["A\t1\t2", "A\t1\tB\t2", "B\t3\t12", "A\t2\tB\t1"]
    path.write_text("\n".join(body))
    without = read_race(path, "Asian")
    path.write_text("\n".join(["2\t1", *body]))
    with_line = read_race(path, "Asian")
    assert without.first == with_line.first == ["Asian/A/A_0001.jpg", "Asian/A/A_0001.jpg", "Asian/B/B_0003.jpg", "Asian/A/A_0002.jpg"]  # fmt: skip
    assert without.second[2] == with_line.second[2] == "Asian/B/B_0012.jpg"
    assert without.folds.tolist() == with_line.folds.tolist() == [0, 0, 1, 1]
    assert (without.lines, with_line.lines) == ([1, 2, 3, 4], [2, 3, 4, 5])


@pytest.mark.parametrize("content", [b"", b"no MATLAB file", b"MATLAB 5.0 MAT-file" + bytes(300)])
def test_a_damaged_matlab_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / MATLAB).write_bytes(content)
    assert f"{MATLAB}: no list of pairs that can be read" in said_of(lambda: AgeDb30(tmp_path))


def test_a_matlab_file_of_something_else(tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io")
    path = tmp_path / MATLAB
    io.savemat(str(path), {"pairs": [1, 2]})
    assert f"{MATLAB}: no list of pairs: there is no splits in it" in said_of(lambda: AgeDb30(tmp_path))
    for splits in ([1.0, 2.0], {"pairs": [1.0], "labels": [1.0]}):
        io.savemat(str(path), {"splits": splits})
        assert f"{MATLAB}: fold 1 is not as AgeDB has it" in said_of(lambda: AgeDb30(tmp_path))
    io.savemat(str(path), {"splits": []})
    assert f"{MATLAB}: the list of pairs is empty" in said_of(lambda: AgeDb30(tmp_path))
    missing = said_of(lambda: AgeDb30(tmp_path, pairs=str(tmp_path / "none.mat")))
    assert "none.mat: cannot read the list of pairs: No such file" in missing
