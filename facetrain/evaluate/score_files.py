"""Score files as Bob (bob.bio.base) has them: what other programs have found can be measured, and our scores elsewhere.

four columns   claimed_id real_id probe_label score
five columns   claimed_id model_label real_id probe_label score
.csv           with a header, of which ``bio_ref_subject_id``, ``probe_subject_id`` and ``score`` are needed, ``probe_key``
               and ``bio_ref_template_id`` are read

A comparison is of one person where claimed_id equals real_id, as text: ``01`` is not ``1``.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.evaluate.protocols.files import fault

FOUR = ("claimed_id", "real_id", "probe_label", "score")
FIVE = ("claimed_id", "model_label", "real_id", "probe_label", "score")
CSV_NAMES = {
    "bio_ref_subject_id": "claimed_id",
    "bio_ref_template_id": "model_label",
    "probe_subject_id": "real_id",
    "probe_key": "probe_label",
    "score": "score",
}
LINES = 65536  # written at a time


@dataclass(frozen=True, eq=False)
class Scores:
    """Comparisons, n of them: scores float64 [n], -inf = refused; same bool [n].

    claimed, real, probes, models: text [n] as pyarrow dictionary arrays: the person of the model, the person of the probe,
    what the probe and the model are called; None where the file has no such column.
    """

    scores: NDArray[np.float64]
    same: NDArray[np.bool_]
    claimed: pa.Array
    real: pa.Array
    probes: pa.Array | None = None
    models: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.scores)


def read_scores(path: Path) -> Scores:
    """Read a score file: .csv by its header, any other by the number of columns of its first line.

    A score ``nan`` is a comparison that could not be made, as Bob writes it: it becomes -inf, refused. UserError, with the
    number of the line, for a line with another number of columns, or a score that is no number below infinity; and for a
    file that cannot be read, is not UTF-8 text, or is empty.
    """
    try:
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(f"{path}: cannot read the scores: {error.strerror}") from None
    if not data.strip():
        raise UserError(f"{path}: the list of scores is empty")
    names = _header(path, data) if path.suffix == ".csv" else _columns(path, data)
    try:
        table = _read_fast(data, names, header=path.suffix == ".csv")
    except pa.ArrowInvalid:
        table = _read_lines(path, data, names)
    scores = table["score"].to_numpy().copy()
    if (scores == np.inf).any():
        table = _read_lines(path, data, names)  # says where
    scores[np.isnan(scores)] = -np.inf
    texts = {
        name: table[name].dictionary_encode().combine_chunks() if name in table.column_names else None
        for name in ("claimed_id", "real_id", "probe_label", "model_label")
    }
    same = pc.equal(table["claimed_id"], table["real_id"]).to_numpy()
    return Scores(
        scores,
        same,
        texts["claimed_id"],
        texts["real_id"],
        texts["probe_label"],
        texts["model_label"],
    )


def score_lines(
    claimed: Sequence[str],
    real: Sequence[str],
    probes: Sequence[str],
    model_rows: NDArray[np.int64],
    probe_rows: NDArray[np.int64],
    scores: NDArray[np.float64],
) -> Iterator[str]:
    """The text of a file of four columns, a block of lines at a time.

    claimed: the persons of the models. real, probes: the persons of the probes, and what these are called. Comparison i is
    of model ``model_rows[i]`` and probe ``probe_rows[i]``, int64 [n]; ``scores`` float64 [n] are written so that they are
    read as the same numbers. A text with a blank in it is quoted, as Bob reads it.
    """
    names = [_quoted(name) for name in claimed]
    ends = [f"{_quoted(person)} {_quoted(label)}" for person, label in zip(real, probes, strict=True)]
    for start in range(0, len(scores), LINES):
        part = slice(start, start + LINES)
        block = zip(model_rows[part].tolist(), probe_rows[part].tolist(), scores[part].tolist(), strict=True)
        yield "".join(f"{names[model]} {ends[row]} {score!r}\n" for model, row, score in block)


def _quoted(text: str) -> str:
    if text and not any(character in ' \t"' for character in text):
        return text
    doubled = text.replace('"', '""')
    return f'"{doubled}"'


def _columns(path: Path, data: bytes) -> tuple[str, ...]:
    """Which columns the file has, as its first line tells."""
    number, words = next(_split_lines(path, data, " "))
    if len(words) not in (len(FOUR), len(FIVE)):
        raise fault(path, number, f"expected '{' '.join(FOUR)}', or five columns", " ".join(words))
    return FOUR if len(words) == len(FOUR) else FIVE


def _header(path: Path, data: bytes) -> tuple[str, ...]:
    """The columns that the first line of a .csv names, as we call those that we know."""
    number, words = next(_split_lines(path, data, ","))
    for needed in ("bio_ref_subject_id", "probe_subject_id", "score"):
        if words.count(needed) != 1:
            raise fault(path, number, f"expected a header with one column {needed}", ",".join(words))
    return tuple(CSV_NAMES.get(word, f"column {i}") for i, word in enumerate(words))


def _read_fast(data: bytes, names: tuple[str, ...], *, header: bool) -> pa.Table:
    """ArrowInvalid for whatever is not quite regular."""
    types = dict.fromkeys(names, pa.string()) | {"score": pa.float64()}
    kept = [name for name in names if name in FIVE]
    return pa_csv.read_csv(
        pa.BufferReader(data),
        pa_csv.ReadOptions(column_names=names, skip_rows=int(header)),
        pa_csv.ParseOptions(delimiter="," if header else " "),
        pa_csv.ConvertOptions(
            column_types=types, include_columns=kept, null_values=[], strings_can_be_null=False
        ),
    )


def _read_lines(path: Path, data: bytes, names: tuple[str, ...]) -> pa.Table:
    """The same line by line: several blanks or tabs between columns will do; says which line is wrong."""
    is_csv = path.suffix == ".csv"
    kept = [(i, name) for i, name in enumerate(names) if name in FIVE]
    columns: dict[str, list[str | float]] = {name: [] for _, name in kept}
    lines = _split_lines(path, data, "," if is_csv else " ")
    if is_csv:
        next(lines)
    for number, words in lines:
        if len(words) != len(names):
            raise fault(path, number, f"expected {len(names)} columns, as before", " ".join(words))
        for i, name in kept:
            columns[name].append(_number(path, number, words[i]) if name == "score" else words[i])
    types = {name: pa.float64() if name == "score" else pa.string() for _, name in kept}
    return pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})


def _number(path: Path, number: int, word: str) -> float:
    try:
        score = float(word)
    except ValueError:
        raise fault(path, number, "the score is no number", word) from None
    if score == float("inf"):
        raise fault(path, number, "a score must be below infinity", word)
    return score


def _split_lines(path: Path, data: bytes, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(number from 1, columns) of each line that is not empty."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise fault(path, number, "not UTF-8 text") from None
        if not text:
            continue
        if delimiter == " ":
            text = text.replace("\t", " ")
        yield number, next(csv.reader([text], delimiter=delimiter, skipinitialspace=delimiter == " "))
