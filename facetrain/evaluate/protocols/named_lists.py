"""Lists of two columns: a set's own MATLAB files (where scipy is installed), or the same as .csv; and photographs of
which only their names say who is on them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facetrain.errors import UserError
from facetrain.evaluate.protocols.files import fault, read_lines
from facetrain.evaluate.protocols.matlab import has_scipy, read_matlab
from facetrain.files import PHOTOGRAPHS

Row = tuple[int, str, str]  # number of the line, or of the entry in a MATLAB file, from 1; the two cells


@dataclass(frozen=True)
class Labelled:
    """Photographs of a folder and who is on them. lines: the list and the line that name each, by its path, '/' between
    folders. notes: what a reader of the figures must know."""

    labels: list[str]
    lines: dict[str, tuple[Path, int]]
    notes: tuple[str, ...] = ()


def read_labelled(lists: Path, stem: str, variables: tuple[str, str], root: Path, folder: str) -> Labelled:
    """Photographs in ``root/folder`` with their labels: from ``lists/stem.csv`` (a line: name,label), else from
    ``lists/stem.mat`` (variables: of the names, of the labels), else from their names, ``<label>_<anything>``.

    A MATLAB file that cannot be read since scipy is not installed is passed over; when names have to do there is a note.
    UserError for an odd, an empty or a doubled line.
    """
    csv, mat = lists / f"{stem}.csv", lists / f"{stem}.mat"
    notes: tuple[str, ...] = ()
    if csv.is_file() or (mat.is_file() and has_scipy()):
        path = csv if csv.is_file() else mat
        rows = read_two_columns(path, "list of photographs and people", variables)
    else:
        why = (
            f"{mat.name} needs scipy, which is not installed" if mat.is_file() else f"there is no {mat.name}"
        )
        notes = (f"{why}: people are told by the names of the files in {folder}",)
        path = root / folder
        rows = [(i, name, _label_of(path, name)) for i, name in enumerate(names_below(path), start=1)]
    lines: dict[str, tuple[Path, int]] = {}
    for line, name, _ in rows:
        key = f"{folder}/{name}"
        if key in lines:
            raise fault(path, line, f"the photograph is in line {lines[key][1]} already", name)
        lines[key] = (path, line)
    return Labelled([label for _, _, label in rows], lines, notes)


def check_mates(probes: Labelled, gallery: Labelled) -> None:
    """UserError, naming its line, for a probe of somebody who is not in the gallery."""
    enrolled = set(gallery.labels)
    for label, (name, (path, line)) in zip(probes.labels, probes.lines.items(), strict=True):
        if label not in enrolled:
            why = f"{name} is of a person without a photograph in the gallery"
            raise fault(path, line, why, label) if path.is_file() else UserError(f"{path}: {why}: {label}")


def read_two_columns(path: Path, what: str, variables: tuple[str, ...]) -> list[Row]:
    """The lines of a .csv file without a header, or the entries of a .mat file.

    variables: of a .mat file, that of the first column and that of the second, or one with both, [n, 2]. UserError for
    a file that cannot be read, an odd line, columns that do not fit together, or where there is nothing.
    """
    if path.suffix == ".mat":
        return _read_mat(path, what, variables)
    rows = []
    for line, text in read_lines(path, what):
        cells = [cell.strip() for cell in text.split(",")]
        if len(cells) != 2 or not all(cells):
            raise fault(path, line, "expected two texts with a comma between them", text)
        rows.append((line, cells[0], cells[1]))
    return rows


def names_below(folder: Path) -> list[str]:
    """All photographs below ``folder``, in order of their names: paths from there, '/' between folders. UserError for a
    folder that is not there, or holds none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of photographs")
    names = []
    for where, _, files in os.walk(folder):
        inside = Path(where).relative_to(folder).as_posix()
        start = "" if inside == "." else f"{inside}/"
        names += [start + file for file in files if _is_photograph(file)]
    if not names:
        raise UserError(f"{folder} holds no photographs")
    return sorted(names)


def _is_photograph(file: str) -> bool:
    # Names that begin with a dot are what some systems put beside the real ones.
    return os.path.splitext(file)[1].lower() in PHOTOGRAPHS and not file.startswith(".")


def _label_of(folder: Path, name: str) -> str:
    label, mark, _ = name.partition("_")
    if not (label and mark):
        raise UserError(f"{folder / name}: there is no list, and the name is not <person>_<number>")
    return label


def _read_mat(path: Path, what: str, variables: tuple[str, ...]) -> list[Row]:
    found = read_matlab(path, what, variables)
    columns = _columns([np.asarray(found[name]) for name in variables])
    if len(columns) != 2:
        raise UserError(f"{path}: no {what}: expected two columns, found {len(columns)}")
    first, second = columns
    if len(first) != len(second):
        raise UserError(f"{path}: {len(first):,} of {variables[0]}, and {len(second):,} of {variables[-1]}")
    if not first:
        raise UserError(f"{path}: the {what} is empty")
    for entry, cells in enumerate(zip(first, second, strict=True), start=1):
        if not all(cells):
            raise fault(path, entry, "an empty cell")
    return [(entry, a, b) for entry, (a, b) in enumerate(zip(first, second, strict=True), start=1)]


def _columns(arrays: Sequence[np.ndarray]) -> list[list[str]]:
    if len(arrays) == 1 and arrays[0].ndim == 2:
        arrays = list(arrays[0].T)
    return [[_text(cell) for cell in array.reshape(-1)] for array in arrays]


def _text(cell: Any) -> str:
    """What a cell of MATLAB holds: arrays of one within each other; "" where there is nothing."""
    while isinstance(cell, np.ndarray):
        if cell.size != 1:
            return ""
        cell = cell.reshape(-1)[0]
    if isinstance(cell, np.floating) and float(cell).is_integer():
        cell = int(cell)  # MATLAB's numbers are floating ones
    return str(cell).strip()
