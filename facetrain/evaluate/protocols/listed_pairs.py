"""Protocols whose lists name photographs by path: CALFW, CPLFW, AgeDB-30.

Aaron_Eckhart_0001.jpg 1                two lines a pair, with the same number on both:
Aaron_Eckhart_0003.jpg 1                0, different people; else the same one (CALFW: its fold, from 1)

a/1.jpg b/1.jpg 0                       or a line a pair, 1 or 0 being last or first
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.evaluate.protocols.base import Measured, Photographs, Protocol
from facetrain.evaluate.protocols.files import fault, find_files, first_there, read_lines
from facetrain.evaluate.protocols.pairwise import FIGURES, PairRows, check_no_face, measure_pairs, unique_rows
from facetrain.evaluate.search import Embeddings
from facetrain.evaluate.verification import NUM_FOLDS, deal_folds
from facetrain.image_spec import SPEC_FILE

LOOKED_AT = 100  # photographs that tell in which folder they are


@dataclass(frozen=True, eq=False)
class PathPairs:
    """Pairs of paths, n of them, with the line of each; numbers int64 [n]: 0 or less for different people."""

    path: Path
    first: list[str]
    second: list[str]
    numbers: NDArray[np.int64]
    lines: list[int]

    @property
    def same(self) -> NDArray[np.bool_]:
        """bool [n]"""
        return self.numbers > 0

    @property
    def folds(self) -> NDArray[np.int64]:
        """int64 [n]. Where same-person pairs have several numbers, these are their folds, and the different-person pairs
        are cut, in their order, into as many runs; else both kinds are cut into ten (`deal_folds`)."""
        same = self.same
        values, fold_of_same = np.unique(self.numbers[same], return_inverse=True)
        folds = deal_folds(same, len(values) if len(values) > 1 else NUM_FOLDS)
        if len(values) > 1:
            folds[same] = fold_of_same
        return folds


class ListedPairs(Protocol):
    """Ten folds of pairs from a list of paths, as LFW's View 2.

    data: the folder with the list and the photographs. ``pairs`` and ``images`` name them where they lie elsewhere.
    lists, folders: where they are looked for below ``data``.
    """

    figures = FIGURES
    lists: ClassVar[tuple[str, ...]]
    folders: ClassVar[tuple[str, ...]]

    def __init__(
        self, data: Path, *, pairs: str | None = None, images: str | None = None, no_face: str = "different"
    ) -> None:
        self.no_face = check_no_face(no_face)
        path_pairs = self.read(Path(pairs) if pairs else first_there(data, self.lists, "list of pairs"))
        same = path_pairs.same
        if same.all() or not same.any():
            raise UserError(
                f"{path_pairs.path}: all {len(same):,} pairs are of {'one person' if same.all() else 'two people'}: both "
                f"kinds are needed"
            )
        if images:
            root = _folder_of(Path(images), (".", *self.folders), path_pairs.first)
        else:
            root = _folder_of(data, self.folders, path_pairs.first)
        root, prefix = _with_a_folder(root, path_pairs.first)
        names, rows = unique_rows([prefix + name for name in path_pairs.first + path_pairs.second])
        lines: dict[str, tuple[Path, int]] = {}
        for row, line in zip(rows.tolist(), path_pairs.lines * 2, strict=True):
            lines.setdefault(names[row], (path_pairs.path, line))
        found = find_files(root, lines)
        self.photographs = Photographs(root, [found[name] for name in names])
        self.pairs = PairRows(rows[: len(same)], rows[len(same) :], same, path_pairs.folds)
        self.people = self.people_of(names)
        self.facts = {"pairs": str(path_pairs.path), "images": str(root / prefix)}

    def read(self, path: Path) -> PathPairs:
        """The pairs of a list."""
        return read_path_pairs(path)

    def people_of(self, names: Iterable[str]) -> frozenset[str]:
        """Of ``Aaron_Eckhart_0001.jpg``, Aaron_Eckhart."""
        found = (re.fullmatch(r"(?:.*/)?([^/]+)_\d+\.\w+", name) for name in names)
        return frozenset(match[1] for match in found if match is not None)

    def measure(self, embeddings: Embeddings, found: NDArray[np.bool_], *, device: Any = None) -> Measured:
        return measure_pairs(self.pairs, embeddings, found, no_face=self.no_face)


def read_path_pairs(path: Path) -> PathPairs:
    """Read such a list; the first line says of which form it is. UserError, with the line, for what is of none."""
    lines = [(number, text.split()) for number, text in read_lines(path, "list of pairs")]
    fields = lines[0][1]
    if len(fields) == 2:
        return _two_lines_a_pair(path, lines)
    at = next((i for i in (2, 0) if len(fields) == 3 and _number(fields[i]) is not None), None)
    if at is None:
        raise fault(
            path,
            lines[0][0],
            "expected 'photograph number' (two lines a pair), 'photograph photograph 1' or '1 photograph photograph'",
            " ".join(fields),
        )
    form = "photograph photograph 1" if at == 2 else "1 photograph photograph"
    first, second, numbers = [], [], []
    for line, fields in lines:
        number = _number(fields[at]) if len(fields) == 3 else None
        if number is None:
            raise fault(path, line, f"expected '{form}', with 0 for different people", " ".join(fields))
        a, b = fields[:2] if at == 2 else fields[1:]
        first.append(_checked(path, line, a))
        second.append(_checked(path, line, b))
        numbers.append(number)
    return PathPairs(path, first, second, np.array(numbers, np.int64), [line for line, _ in lines])


def _two_lines_a_pair(path: Path, lines: Sequence[tuple[int, list[str]]]) -> PathPairs:
    names, numbers = [], []
    for line, fields in lines:
        number = _number(fields[1]) if len(fields) == 2 else None
        if number is None:
            raise fault(path, line, "expected 'photograph number'", " ".join(fields))
        names.append(_checked(path, line, fields[0]))
        numbers.append(number)
    for i in range(1, len(lines), 2):
        if numbers[i] != numbers[i - 1]:
            raise fault(
                path,
                lines[i][0],
                f"expected the number of the line before, {numbers[i - 1]}: they are a pair",
                " ".join(lines[i][1]),
            )
    if len(lines) % 2:
        raise fault(
            path, lines[-1][0], "a pair has two lines, and this one is left over", " ".join(lines[-1][1])
        )
    return PathPairs(
        path, names[::2], names[1::2], np.array(numbers[::2], np.int64), [line for line, _ in lines[::2]]
    )


def _number(field: str) -> int | None:
    return int(field) if re.fullmatch(r"-?[0-9]{1,9}", field) else None


def _checked(path: Path, line: int, name: str) -> str:
    name = name.removeprefix("./")
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise fault(path, line, "a photograph must be a path below the folder of photographs", name)
    return name


def _folder_of(above: Path, folders: Sequence[str], names: Sequence[str]) -> Path:
    """Of these folders below ``above`` the one that holds most of the photographs, of equally good ones the first."""
    there = [above / folder for folder in folders if (above / folder).is_dir()]
    if not there:
        raise UserError(f"{above}: no such folder; name the one that holds the photographs")
    return max(there, key=lambda folder: sum((folder / name).is_file() for name in names[:LOOKED_AT]))


def _with_a_folder(root: Path, names: Sequence[str]) -> tuple[Path, str]:
    """The root, and what goes before each name. In trees that are aligned, photographs lie in folders: where the list has
    none, the folder that all lie in is part of their names."""
    if all("/" in name for name in names) or (root / SPEC_FILE).is_file():
        return root, ""
    if root.name in ("", ".."):
        root = Path(os.path.abspath(root))
    return root.parent, f"{root.name}/"
