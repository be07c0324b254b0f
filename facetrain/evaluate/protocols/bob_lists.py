"""Lists of a verification protocol as bob.bio.base has them: what is enrolled, what is probed, and what is compared.

Three generations of them, in a folder for each of the groups ``dev`` and ``eval``; see docs/reference/protocols/bob.md.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.evaluate.protocols.files import fault, read_lines
from facetrain.files import PHOTOGRAPHS
from facetrain.image_spec import SPEC_FILE

COMPARISONS = ("all", "listed")

Ints = NDArray[np.int64]


@dataclass
class Names:
    """Photographs as the lists name them, each once, in the order of their first coming."""

    row_of: dict[str, int] = field(default_factory=dict)
    first: dict[str, tuple[Path, int]] = field(default_factory=dict)

    def row(self, name: str, path: Path, line: int) -> int:
        row = self.row_of.setdefault(name, len(self.row_of))
        self.first.setdefault(name, (path, line))
        return row


@dataclass
class Templates:
    """Models or probes, T of them, made of F photographs: names and people [T]; rows of the photographs and the template of
    each, [F]."""

    names: list[str] = field(default_factory=list)
    people: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    templates: list[int] = field(default_factory=list)
    index: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def add(self, name: str, person: str, row: int) -> int:
        """A new template of one photograph."""
        self.names.append(name)
        self.people.append(person)
        self.rows.append(row)
        self.templates.append(len(self.names) - 1)
        return len(self.names) - 1

    def grow(self, name: str, person: str, row: int, path: Path, line: int) -> int:
        """The photograph goes into the template of this name, which must be of the same person."""
        known = self.index.get(name)
        if known is None:
            self.index[name] = known = self.add(name, person, row)
            return known
        if self.people[known] != person:
            raise fault(path, line, f"'{name}' is of '{self.people[known]}' in a line before", person)
        self.rows.append(row)
        self.templates.append(known)
        return known

    def once(self, name: str, person: str, row: int, path: Path, line: int) -> int:
        """The template of this one photograph, which may be named in several lines."""
        if name not in self.index:
            return self.grow(name, person, row, path, line)
        if self.people[self.index[name]] != person:
            raise fault(
                path, line, f"'{name}' is of '{self.people[self.index[name]]}' in a line before", person
            )
        return self.index[name]


@dataclass(frozen=True, eq=False)
class Group:
    """What is compared: the rows of models and of probes, int64 [n] each; None: each model with each probe."""

    models: Templates
    probes: Templates
    listed: tuple[Ints, Ints] | None

    def comparisons(self) -> tuple[Ints, Ints]:
        """Rows of the models and of the probes, of all comparisons, in their order: model by model where none are listed."""
        if self.listed is not None:
            return self.listed
        models, probes = np.arange(len(self.models)), np.arange(len(self.probes))
        return np.repeat(models, len(probes)), np.tile(probes, len(models))


def read_group(folder: Path, names: Names, comparisons: str | None) -> Group:
    """The lists of ``dev`` or ``eval``. comparisons: ``all`` or ``listed``; None: as the lists have it.

    Photographs are counted into ``names``. UserError for whatever is wrong, with the list and the line.
    """
    kinds = {"for_models.lst": _read_lst, "for_models.csv": _read_csv, "for_enrolling.csv": _read_templates}
    there = [kind for kind in kinds if (folder / kind).is_file()]
    if not there:
        raise UserError(f"{folder} holds no list of models: looked for {', '.join(kinds)}")
    if len(there) > 1:
        raise UserError(f"{folder} holds {' and '.join(there)}: leave the one that counts")
    group = kinds[there[0]](folder, names, comparisons)
    if comparisons == "listed" and group.listed is None:
        raise UserError(f"comparisons = 'listed': {folder} has no list of comparisons")
    return Group(group.models, group.probes, None) if comparisons == "all" else group


def _read_lst(folder: Path, names: Names, comparisons: str | None) -> Group:
    """``filename model_id [client_id]``; ``filename client_id``, or ``filename model_id claimed_client_id client_id``."""
    models, probes = Templates(), Templates()
    path = folder / "for_models.lst"
    for line, words in _lst(path, "models", {2: "filename model_id", 3: "filename model_id client_id"}):
        models.grow(words[1], words[-1], names.row(words[0], path, line), path, line)
    dense, sparse = folder / "for_probes.lst", folder / "for_scores.lst"
    if comparisons is None and dense.is_file() and sparse.is_file():
        raise UserError(
            f"{folder} holds for_probes.lst and for_scores.lst: choose with comparisons=all or comparisons=listed"
        )
    if comparisons == "all" or (comparisons is None and not sparse.is_file()):
        for line, words in _lst(dense, "probes", {2: "filename client_id"}):
            probes.add(words[0], words[1], names.row(words[0], dense, line))
        return Group(models, probes, None)
    listed = []
    wanted = {4: "filename model_id claimed_client_id client_id"}
    for line, (file, model, claimed, person) in _lst(sparse, "comparisons", wanted):
        known = _known(models, model, sparse, line)
        if models.people[known] != claimed:
            raise fault(sparse, line, f"model '{model}' is of '{models.people[known]}'", claimed)
        listed.append((known, probes.once(file, person, names.row(file, sparse, line), sparse, line)))
    return Group(models, probes, _pairs(listed))


def _read_csv(folder: Path, names: Names, comparisons: str | None) -> Group:
    """PATH,REFERENCE_ID or TEMPLATE_ID[,SUBJECT_ID], a probe a line; with COMPARE_REFERENCE_ID: a comparison a line."""
    models, probes = Templates(), Templates()
    path = folder / "for_models.csv"
    for line, row in _csv(path, "models", ("path", "reference_id")):
        person = row.get("subject_id", row["reference_id"])
        models.grow(row["reference_id"], person, names.row(row["path"], path, line), path, line)
    path, listed = folder / "for_probes.csv", []
    for line, row in _csv(path, "probes", ("path", "reference_id")):
        person, photograph = row.get("subject_id", row["reference_id"]), names.row(row["path"], path, line)
        if "compare_reference_id" not in row:
            probes.add(row["path"], person, photograph)
            continue
        known = _known(models, row["compare_reference_id"], path, line)
        listed.append((known, probes.once(row["path"], person, photograph, path, line)))
    return Group(models, probes, _pairs(listed) if listed else None)


def _read_templates(folder: Path, names: Names, comparisons: str | None) -> Group:
    """path or key,template_id[,subject_id]; and for_matching.csv: enroll_template_id,probe_template_id."""
    sides = []
    for name, what in (("for_enrolling.csv", "models"), ("for_probing.csv", "probes")):
        path, side = folder / name, Templates()
        for line, row in _csv(path, what, ("path", "reference_id")):
            person = row.get("subject_id", row["reference_id"])
            side.grow(row["reference_id"], person, names.row(row["path"], path, line), path, line)
        sides.append(side)
    models, probes = sides
    path = folder / "for_matching.csv"
    if comparisons == "all" or not path.is_file():
        return Group(models, probes, None)
    listed = [
        (
            _known(models, row["enroll_template_id"], path, line),
            _known(probes, row["probe_template_id"], path, line, "probe"),
        )
        for line, row in _csv(path, "comparisons", ("enroll_template_id", "probe_template_id"))
    ]
    return Group(models, probes, _pairs(listed))


def _known(templates: Templates, name: str, path: Path, line: int, what: str = "model") -> int:
    found = templates.index.get(name)
    if found is None:
        raise fault(path, line, f"there is no {what} of this name", name)
    return found


def _pairs(listed: list[tuple[int, int]]) -> tuple[Ints, Ints]:
    both = np.array(listed, np.int64)
    return both[:, 0], both[:, 1]


def _lst(path: Path, what: str, wanted: dict[int, str]) -> Iterator[tuple[int, list[str]]]:
    """The words of each line, as many as ``wanted`` has descriptions for; all lines have as many as the first."""
    number = 0
    for line, text in read_lines(path, f"list of {what}"):
        if text.startswith("#"):
            continue
        words = text.split()
        number = number or len(words)
        if len(words) != number or number not in wanted:
            raise fault(path, line, f"expected '{wanted.get(number, ' or '.join(wanted.values()))}'", text)
        yield line, words
    if not number:
        raise UserError(f"{path}: the list of {what} is empty")


def _cells(path: Path, line: int, text: str) -> list[str]:
    try:
        return next(csv.reader([text]))
    except csv.Error as error:
        raise fault(path, line, f"no line of a CSV file ({error})", text) from None


def _csv(path: Path, what: str, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Each line by the names in the header, in lower case: template_id is called reference_id, and key, without a path,
    path."""
    lines = read_lines(path, f"list of {what}")
    first, text = next(lines)
    header = [name.strip().lower() for name in _cells(path, first, text)]
    header = ["reference_id" if name == "template_id" else name for name in header]
    if "path" not in header:
        header = ["path" if name == "key" else name for name in header]
    if any(header.count(name) != 1 for name in needed):
        shown = " and ".join("TEMPLATE_ID" if name == "reference_id" else name.upper() for name in needed)
        raise fault(path, first, f"expected a header with {shown}", text)
    empty = True
    for line, text in lines:
        values = _cells(path, line, text)
        if len(values) != len(header):
            raise fault(path, line, f"expected {len(header)} columns, as in the header", text)
        row = dict(zip(header, values, strict=True))
        if not all(row[name] for name in needed):
            raise fault(path, line, "a column that is needed is empty", text)
        empty = False
        yield line, row
    if empty:
        raise UserError(f"{path}: the list of {what} is empty")


def with_suffixes(root: Path, names: Names, extension: str | None) -> dict[str, tuple[Path, int]]:
    """The names with the suffixes of files, which Bob's lists leave out: ``extension``, or that of the one photograph that
    has the name. A name that is found nowhere, or is one of a tree of crops, stays as it is."""
    if extension is not None:
        return {name + extension: where for name, where in names.first.items()}
    if (root / SPEC_FILE).is_file():
        return dict(names.first)
    folders: dict[str, tuple[set[str], dict[str, list[str]]]] = {}
    wanted: dict[str, tuple[Path, int]] = {}
    for name, (path, line) in names.first.items():
        folder, _, file = name.rpartition("/")
        if folder not in folders:
            folders[folder] = _photographs_in(root / folder)
        there, of_stem = folders[folder]
        found = [file] if file in there else of_stem.get(file, [file])
        if len(found) > 1:
            raise fault(
                path, line, f"which is it, {' or '.join(found)}? Say extension=.jpg, for example", name
            )
        full = f"{folder}/{found[0]}" if folder else found[0]
        if full in wanted:
            raise fault(path, line, "the same photograph has another name in a line before", name)
        wanted[full] = (path, line)
    return wanted


def _photographs_in(folder: Path) -> tuple[set[str], dict[str, list[str]]]:
    """The files, and those that are photographs by their names without suffix."""
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    of_stem: dict[str, list[str]] = {}
    for name in sorted(there):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in PHOTOGRAPHS:
            of_stem.setdefault(stem, []).append(name)
    return there, of_stem
