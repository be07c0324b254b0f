"""LFW's lists of verification pairs (`pairs.txt`, `pairsDevTest.txt`) and the photographs that they name.

    10<TAB>300                       folds, pairs of either kind a fold (View 1: one number, and one fold)
    Abel_Pacheco<TAB>1<TAB>4         300 same-person pairs: name, photograph number, photograph number
    Ben_Kingsley<TAB>1<TAB>Bob_Hope<TAB>2     300 different-person pairs; then the next fold

Format: http://vis-www.cs.umass.edu/lfw/ (README of View 1 and View 2).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.files import PHOTOGRAPHS


class Pair(NamedTuple):
    """One line of a pairs file; ``fold`` counts from 0, ``line`` from 1."""

    person1: str
    number1: int
    person2: str
    number2: int
    same: bool
    fold: int
    line: int


@dataclass(frozen=True)
class PairList:
    """All pairs of a file, in its order."""

    path: Path
    pairs: tuple[Pair, ...]
    num_folds: int

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    @property
    def same(self) -> NDArray[np.bool_]:
        """bool [n]"""
        return np.array([pair.same for pair in self.pairs], dtype=bool)

    @property
    def folds(self) -> NDArray[np.int64]:
        """int64 [n]"""
        return np.array([pair.fold for pair in self.pairs], dtype=np.int64)


def read_pairs(path: Path) -> PairList:
    """Read a pairs file. Fields are separated by tabs, or by any white space on a line without tabs; empty
    lines are skipped. Raises UserError, with file and line number, for anything else that is not the format
    above."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot read the pairs file: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a pairs file: it is not UTF-8 text") from None
    # Not splitlines(): it also cuts at characters that may stand in a name.
    lines = [(number, _fields(line)) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise UserError(f"{path}: the pairs file is empty")

    header_line, header = lines[0]
    counts = [_number(field) for field in header]
    if len(counts) not in (1, 2) or not all(counts):
        raise UserError(
            f"{path}, line {header_line}: expected the number of folds and that of pairs of either kind in "
            f"each (as in '10 300'), or the latter alone, found {' '.join(header)!r}"
        )
    num_folds, half = (1, *counts) if len(counts) == 1 else counts
    assert num_folds and half
    body = lines[1:]
    expected = num_folds * 2 * half
    if len(body) != expected:
        last = body[-1][0] if body else header_line
        raise UserError(
            f"{path}, line {last}: the first line promises {num_folds} x 2 x {half} = {expected} pairs, "
            f"the file holds {len(body)}"
        )
    pairs = tuple(
        _pair(path, line, fields, same=i % (2 * half) < half, fold=i // (2 * half))
        for i, (line, fields) in enumerate(body)
    )
    return PairList(Path(path), pairs, num_folds)


def photograph_stem(person: str, number: int) -> str:
    """LFW's file name without suffix: `Abel_Pacheco_0004`."""
    return f"{person}_{number:04d}"


def find_photographs(
    root: Path, pairs: PairList, *, allow_missing: bool = False
) -> dict[tuple[str, int], Path]:
    """(person, number) → path relative to ``root``, for each photograph that the pairs name.

    It is the file `<person>/<person>_NNNN` with any image suffix in any case, or several: an aligned tree may
    hold `X_0001.png.jpg`, the crop of `X_0001.png`. Of several such files the one with the shortest name is
    taken, of equally short ones the first by name.

    Raises UserError when ``root`` is not a folder and, unless ``allow_missing`` (they are then left out),
    when photographs are missing: it names the first, with its line in the pairs file, and counts the others.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; name the one that holds a folder of photographs for each person"
        )
    files_of: dict[str, dict[str, str]] = {}
    found: dict[tuple[str, int], Path] = {}
    missing: dict[tuple[str, int], int] = {}  # → line
    for pair in pairs:
        for person, number in ((pair.person1, pair.number1), (pair.person2, pair.number2)):
            if person not in files_of:
                files_of[person] = _photographs_by_stem(root / person)
            name = files_of[person].get(photograph_stem(person, number))
            if name is None:
                missing.setdefault((person, number), pair.line)
            else:
                found[person, number] = Path(person, name)
    if missing and not allow_missing:
        (person, number), line = next(iter(missing.items()))
        name, more = photograph_stem(person, number), len(missing) - 1
        others = f" ({more:,} more of the photographs it names are missing)" if more else ""
        raise UserError(
            f"{pairs.path}, line {line}: there is no photograph {name} in {root / person}{others}"
        )
    return found


def _photographs_by_stem(folder: Path) -> dict[str, str]:
    """Name without image suffixes → file name; nothing when there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_file()]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return {}
        raise
    by_stem: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (len(name), name)):
        stem, suffix = os.path.splitext(name)
        while suffix.lower() in PHOTOGRAPHS:
            by_stem.setdefault(stem, name)
            stem, suffix = os.path.splitext(stem)
    return by_stem


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.strip().split("\t" if "\t" in line.strip() else None)]


def _number(field: str) -> int | None:
    return int(field) if field.isascii() and field.isdigit() and len(field) < 10 else None


def _pair(path: Path, line: int, fields: list[str], *, same: bool, fold: int) -> Pair:
    def fault(why: str) -> UserError:
        return UserError(f"{path}, line {line}: {why}, found {' '.join(fields)!r}")

    if len(fields) != (3 if same else 4):
        if same:
            raise fault("expected a same-person pair, 'name number number'")
        raise fault("expected a different-person pair, 'name number name number'")
    person1, text1, text2 = fields[0], fields[1], fields[-1]
    person2 = person1 if same else fields[2]
    number1, number2 = _number(text1), _number(text2)
    if number1 is None or number2 is None:
        raise fault("photograph numbers must be whole numbers")
    if any(person in ("", ".", "..") or "/" in person or "\0" in person for person in (person1, person2)):
        raise fault("a person's name must be the name of a folder")
    if same and number1 == number2:
        raise fault("a photograph is paired with itself")
    if not same and person1 == person2:
        raise fault("expected two different people")
    return Pair(person1, number1, person2, number2, same, fold, line)
