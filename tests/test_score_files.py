"""Bob's score files: read as they are written, and every wrong line said."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from facetrain.errors import UserError
from facetrain.evaluate.score_files import read_scores, score_lines


def write(folder: Path, text: str | bytes, name: str = "scores-dev") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    claimed, real, probes = ["ann", "bob b"], ["ann", "bob b", 'c"d'], ["a/1", "b 2", "ü"]
    models, rows = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 0, 1, 2])
    scores = np.array([1 / 3, -0.1, -np.inf, 1e-300, np.float32(0.1), 5.0])
    path = write(tmp_path, "".join(score_lines(claimed, real, probes, models, rows, scores)))
    assert path.read_text().splitlines()[0] == "ann ann a/1 0.3333333333333333"
    found = read_scores(path)
    np.testing.assert_array_equal(found.scores, scores)
    assert found.same.tolist() == [True, False, False, False, True, False]
    assert found.claimed.to_pylist() == [claimed[i] for i in models]
    assert found.real.to_pylist() == [real[i] for i in rows]
    assert found.probes is not None and found.probes.to_pylist() == [probes[i] for i in rows]
    assert found.models is None and len(found) == 6
    with open(path, newline="") as file:  # as bob.bio.base reads it
        lines = list(csv.reader(file, delimiter=" "))
    assert [line[:3] for line in lines] == [
        [claimed[m], real[r], probes[r]] for m, r in zip(models, rows, strict=True)
    ]
    assert [float(line[3]) for line in lines] == scores.tolist()


def test_many_lines_are_written_in_blocks(tmp_path: Path) -> None:
    number = 150_000
    rows = np.arange(number) % 3
    scores = np.random.default_rng(0).normal(size=number)
    text = score_lines(["a"], ["a", "b", "c"], ["1", "2", "3"], np.zeros(number, np.int64), rows, scores)
    found = read_scores(write(tmp_path, "".join(text)))
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_array_equal(found.same, rows == 0)


FIVE = "01 m1 01 p1 0.5\n01 m2 1 p2 nan\n"
HEADER = "probe_key,probe_template_id,probe_subject_id,bio_ref_template_id,bio_ref_subject_id,score"


@pytest.mark.parametrize(
    "text",
    [
        FIVE,
        FIVE.replace("\n", "\r\n"),
        "\ufeff" + FIVE,
        "\n" + FIVE.replace("\n", "\n\n"),
        FIVE.replace(" ", "\t"),
        FIVE.replace(" p", "   p").replace("\n", "  \n"),
        FIVE.rstrip(),
    ],
)
def test_five_columns_however_they_are_spaced(text: str, tmp_path: Path) -> None:
    found = read_scores(write(tmp_path, text))
    assert found.scores.tolist() == [0.5, -np.inf]  # nan: could not be compared
    assert found.same.tolist() == [True, False]  # 01 is not 1
    assert found.models is not None and found.models.to_pylist() == ["m1", "m2"]
    assert found.probes is not None and found.probes.to_pylist() == ["p1", "p2"]


def test_a_csv_with_a_header(tmp_path: Path) -> None:
    text = f'{HEADER}\np1,t1,01,m1,01,0.5\n"p,2",t2,1,m1,01,-0.25\n'
    found = read_scores(write(tmp_path, text, "scores-dev.csv"))
    assert found.scores.tolist() == [0.5, -0.25]
    assert found.same.tolist() == [True, False]
    assert found.probes is not None and found.probes.to_pylist() == ["p1", "p,2"]
    short = read_scores(
        write(tmp_path, "score,bio_ref_subject_id,probe_subject_id\n1,a,a\n", "scores-dev.csv")
    )
    assert short.scores.tolist() == [1.0] and short.probes is None


@pytest.mark.parametrize(
    ("text", "name", "why"),
    [
        ("", "s", "the list of scores is empty"),
        ("\n \n", "s", "the list of scores is empty"),
        (
            "a b 1\n",
            "s",
            r"line 1: expected 'claimed_id real_id probe_label score', or five columns, found 'a b 1'",
        ),
        ("a a p 1\n\na b 1\n", "s", r"line 3: expected 4 columns, as before, found 'a b 1'"),
        ("a a p 1\na m b p 1\n", "s", r"line 2: expected 4 columns"),
        ("a a p 1\na b p one\n", "s", r"line 2: the score is no number, found 'one'"),
        ("a a p 1\na b p inf\n", "s", r"line 2: a score must be below infinity, found 'inf'"),
        (b"a a p 1\n\xff b p 1\n", "s", r"line 2: not UTF-8 text"),
        ("a,b,1\n", "s.csv", r"line 1: expected a header with one column bio_ref_subject_id, found 'a,b,1'"),
        (f"{HEADER}\n1,2,3\n", "s.csv", r"line 2: expected 6 columns"),
        (f"{HEADER}\n1,2,3,4,5,x\n", "s.csv", r"line 2: the score is no number, found 'x'"),
    ],
)
def test_wrong_files(text: str | bytes, name: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=why):
        read_scores(write(tmp_path, text, name))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the scores: No such file"):
        read_scores(tmp_path / "scores-dev")
