"""IJB's lists as arrays.

They are long (15.7 million pairs): pyarrow reads them at once. What it cannot read is read again line by line, which
takes any white space and says which line is odd.
"""

from __future__ import annotations

import csv
import math
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.evaluate.protocols.files import fault

_WHOLE = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64()}


@dataclass(frozen=True)
class ListFormat:
    """what: such as "list of pairs". line: what each of its lines holds, with an example. columns: their names, and str,
    int or float. by_comma: they are parted by commas, else by white space. header: the first line names the columns;
    there may be others beside those that are wanted, in any order."""

    what: str
    line: str
    columns: Mapping[str, type]
    by_comma: bool = False
    header: bool = False


@dataclass(frozen=True, eq=False)
class ListFile:
    """A list that was read. numbers: its columns of numbers, int64 or float64 [n]; names: its column of text, where it
    has one; lines: the number of each one's line."""

    path: Path
    numbers: Mapping[str, NDArray[Any]]
    names: Sequence[str]
    lines: Sequence[int]

    def fault(self, row: int, why: str) -> UserError:
        """The error of the line of a row."""
        return fault(self.path, self.lines[row], why)

    def fault_of_first(self, wrong: NDArray[np.bool_], column: str, why: str) -> None:
        """Raise the error of the first row that is ``wrong``, bool [n], if any; ``{}`` in ``why`` is its value."""
        if wrong.any():
            row = int(np.argmax(wrong))
            raise self.fault(row, why.format(self.numbers[column][row]))


FACES = ListFormat(
    "list of faces in templates",
    "a file, a template and a medium, as '1.jpg 1 69544'",
    {"file": str, "template": int, "medium": int},
)
POINTS = ListFormat(
    "list of landmarks",
    "a file, x and y of five landmarks and a detector's score, as '1.jpg 46.1 62.3 … 0.998'",
    {"file": str, **{f"{axis}{i}": float for i in range(5) for axis in "xy"}, "score": float},
)
PAIRS = ListFormat(
    "list of pairs",
    "two templates, and 1 for the same person or 0, as '1 11065 1'",
    {"first": int, "second": int, "same": int},
)
MATCHES = ListFormat(
    "list of pairs", "two templates, as '1,11065'", {"first": int, "second": int}, by_comma=True
)
SUBJECTS = ListFormat(
    "list of templates",
    "columns TEMPLATE_ID and SUBJECT_ID, whole numbers",
    {"TEMPLATE_ID": int, "SUBJECT_ID": int},
    by_comma=True,
    header=True,
)


def read_list(path: Path, form: ListFormat) -> ListFile:
    """UserError for a file that cannot be read, holds nothing, or has an odd line: the first is named."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            opening = file.readline()
    except OSError as error:
        raise UserError(f"{path}: cannot read the {form.what}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: no {form.what}: it is not UTF-8 text") from None
    columns = _header(path, form, opening) if form.header else list(form.columns)
    found = _at_once(path, form, columns) or _line_by_line(path, form, columns)
    if not len(found.lines):
        raise UserError(f"{path}: the {form.what} is empty")
    return found


def _header(path: Path, form: ListFormat, opening: str) -> list[str]:
    if not opening.strip():
        raise UserError(f"{path}: the {form.what} is empty")
    columns = [name.strip().upper() for name in next(csv.reader([opening]))]
    missing = [name for name in form.columns if columns.count(name) != 1]
    if missing:
        raise fault(path, 1, f"expected a header that names {' and '.join(form.columns)}", opening.strip())
    return columns


def _at_once(path: Path, form: ListFormat, columns: list[str]) -> ListFile | None:
    """None for a file that is not quite what pyarrow reads."""
    try:
        table = pyarrow.csv.read_csv(
            path,
            pyarrow.csv.ReadOptions(column_names=columns, skip_rows=int(form.header)),
            # An empty line would be passed over, and lines after it counted wrongly.
            pyarrow.csv.ParseOptions(
                delimiter="," if form.by_comma else " ",
                quote_char='"' if form.by_comma else False,
                ignore_empty_lines=False,
            ),
            pyarrow.csv.ConvertOptions(
                include_columns=list(form.columns),
                column_types={name: _ARROW[kind] for name, kind in form.columns.items()},
                null_values=[],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowException:
        return None
    kinds = form.columns.items()
    numbers = {name: table[name].to_numpy() for name, kind in kinds if kind is not str}
    if any(not np.isfinite(numbers[name]).all() for name, kind in kinds if kind is float):
        return None
    names = [text for name, kind in kinds if kind is str for text in table[name].to_pylist()]
    if "" in names:
        return None
    first = 1 + form.header
    return ListFile(path, numbers, names, range(first, first + table.num_rows))


def _line_by_line(path: Path, form: ListFormat, columns: list[str]) -> ListFile:
    wanted = [(columns.index(name), name, kind) for name, kind in form.columns.items()]
    numbers = {name: array("q" if kind is int else "d") for _, name, kind in wanted if kind is not str}
    names: list[str] = []
    lines = array("q")
    for line, text in _texts(path, form):
        fields = next(csv.reader([text])) if form.by_comma else text.split()
        if len(fields) != len(columns):
            raise fault(path, line, f"expected {_expected(form, columns)}", text)
        for place, name, kind in wanted:
            value = _value(fields[place].strip(), kind)
            if value is None:
                raise fault(path, line, f"expected {form.line}", text)
            if kind is str:
                names.append(fields[place])
            else:
                numbers[name].append(value)
        lines.append(line)
    return ListFile(path, {name: np.array(values) for name, values in numbers.items()}, names, lines)


def _expected(form: ListFormat, columns: list[str]) -> str:
    return f"{len(columns)} columns, as the header names" if form.header else form.line


def _texts(path: Path, form: ListFormat) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line below the header that is not empty."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            for line, text in enumerate(file, start=1):
                if text.strip() and line > form.header:
                    yield line, text.strip()
    except UnicodeDecodeError:
        raise UserError(f"{path}: no {form.what}: it is not UTF-8 text") from None


def _value(field: str, kind: type) -> Any:
    """None for what is no value of this kind."""
    if kind is int:
        return int(field) if _WHOLE.fullmatch(field) else None
    if kind is float:
        try:
            value = float(field)
        except ValueError:
            return None
        return value if math.isfinite(value) else None
    return field or None
