"""Cleaning: proposals in a file that a person looks through, and the marks in the index that they become.

The file is CSV with a header, one proposal a line, for an editor or a spreadsheet; what these make of it is read too:
semicolons or tabs for commas, columns in another order, and further ones:

    action     leave-out: not used any more; rename: of the person ``becomes``; keep: without a mark again
    path       of the photograph, as in the index; empty: all photographs that there are of the person now
    identity   whose it is now; a file that does not fit what is there is not applied
    becomes    whose it is in truth, of rename
    reason, score   for the reader

Marks are a table of their own (`facetrain.index.MARKS`); nothing is moved or deleted.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from facetrain.errors import UserError
from facetrain.files import write_csv
from facetrain.index import MARKS, Index
from facetrain.preprocess.align_tree import folded
from facetrain.tables import find_sorted

LEAVE_OUT, RENAME, KEEP = "leave-out", "rename", "keep"
ACTIONS = (LEAVE_OUT, RENAME, KEEP)
SEPARATORS = ",;\t"
HEADER = ("action", "path", "identity", "becomes", "reason", "score")
NAME = re.compile(r"[^/.\s\x00-\x1f]([^/\x00-\x1f]*[^/\s\x00-\x1f])?")  # of a folder that is no hidden one


@dataclass(frozen=True)
class Proposal:
    """One line of the file; ``line`` is its number, of one that was read."""

    action: str
    path: str
    identity: str
    becomes: str = ""
    reason: str = ""
    score: str = ""
    line: int = 0


@dataclass
class Mark:
    """What is known of one photograph, the one of this content; identity None: that of its folder."""

    content: bytes
    left_out: bool = False
    identity: str | None = None


def write_proposals(out: Path, proposals: Sequence[Proposal]) -> None:
    """Write the file, whole or not at all."""
    lines = ((p.action, p.path, p.identity, p.becomes, p.reason, p.score) for p in proposals)
    write_csv(out, HEADER, lines)


def read_proposals(file: Path) -> list[Proposal]:
    """The lines of a file. Raises UserError, with the line's number, for one that cannot be."""
    found = []
    try:
        with open(file, encoding="utf-8-sig", newline="") as handle:
            first = handle.readline()
            reader = csv.reader(chain([first], handle), delimiter=_separator(first))
            columns = _cells(next(reader, []))
            if any(columns.count(name) != 1 for name in HEADER):
                raise UserError(
                    f"{file}, line 1: no list of proposals: its columns must be {','.join(HEADER)}"
                )
            for fields in reader:
                if any(fields):
                    found.append(_proposal(file, reader.line_num, columns, fields))
    except UnicodeDecodeError:
        raise UserError(f"{file}: no list of proposals: it is not UTF-8 text") from None
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: no CSV: {error}") from None
    except OSError as error:
        raise UserError(f"{file}: cannot read the proposals: {error.strerror}") from None
    return found


def _separator(header: str) -> str:
    """Of SEPARATORS the one that is there most often: no name of a column needs any."""
    return max(SEPARATORS, key=header.count)


def _cells(header: list[str]) -> list[str]:
    return [cell.strip().lower() for cell in header]


def _proposal(file: Path, line: int, columns: list[str], fields: list[str]) -> Proposal:
    if len(fields) != len(columns):
        raise _fault(file, line, f"{len(fields)} columns, not the {len(columns)} of the first line")
    values = {name: value for name, value in zip(columns, fields, strict=True) if name in HEADER}
    values["action"] = values["action"].strip().lower()
    proposal = Proposal(**values, line=line)
    if proposal.action not in ACTIONS:
        raise _fault(file, line, f"no action '{proposal.action}': write {', '.join(ACTIONS)}")
    if not proposal.identity:
        raise _fault(file, line, "whose photograph it is, is not said (identity)")
    if proposal.action == RENAME:
        if not NAME.fullmatch(proposal.becomes):
            raise _fault(file, line, f"'{proposal.becomes}' cannot be a person's name (becomes)")
        if proposal.becomes == proposal.identity:
            raise _fault(file, line, f"it is called {proposal.identity} already (becomes)")
    return proposal


def _fault(file: Path, line: int, why: str) -> UserError:
    return UserError(f"{file}, line {line}: {why}; nothing was applied")


def apply_proposals(index: Index, proposals: Sequence[Proposal], file: Path) -> pa.Table:
    """All marks once the proposals are applied to those that there are, as `MARKS`, sorted by path.

    A line with a path counts more than one of the whole person. Leaving out and renaming are apart: a photograph that is
    left out stays so under another name. Raises UserError, with the number of the line in ``file``, for one that does
    not fit the index.
    """
    rows = _rows_of(index, proposals, file)
    marks = _marks_of(index)
    paths, contents = index.rows["path"], index.rows["content"]
    folders = index.rows["identity"]
    for row, proposal in rows.items():
        path, content = paths[row].as_py(), contents[row].as_py()
        mark = marks.get(path)
        if mark is None or mark.content != content:  # of what was there before it changed
            mark = marks[path] = Mark(content)
        if proposal.action == KEEP:
            del marks[path]
        elif proposal.action == LEAVE_OUT:
            mark.left_out = True
        else:
            own = folders[row].as_py() == proposal.becomes
            mark.identity = None if own else proposal.becomes
            if own and not mark.left_out:
                del marks[path]
    ordered = sorted(marks.items())
    columns = [
        [path for path, _ in ordered],
        [mark.content for _, mark in ordered],
        [mark.left_out for _, mark in ordered],
        [mark.identity for _, mark in ordered],
    ]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, MARKS, strict=True)]
    return pa.table(arrays, schema=MARKS)


def _marks_of(index: Index) -> dict[str, Mark]:
    if index.marks is None:
        return {}
    columns = (index.marks[name].to_pylist() for name in ("content", "left_out", "identity"))
    marks = (Mark(*values) for values in zip(*columns, strict=True))
    return dict(zip(index.marks["path"].to_pylist(), marks, strict=True))


def _rows_of(index: Index, proposals: Sequence[Proposal], file: Path) -> dict[int, Proposal]:
    """What is proposed for each row of the index that a line is about."""
    single = {p.path: p for p in proposals if p.path}
    whole = {p.identity: p for p in proposals if not p.path}
    renamed = {name: p for name, p in whole.items() if p.action == RENAME}
    for p in proposals:
        same = single[p.path] if p.path else whole[p.identity]
        if same is not p:
            raise _fault(
                file, same.line, f"line {p.line} says already what becomes of {p.path or p.identity}"
            )
        if p.action == RENAME and p.becomes in renamed:
            raise _fault(file, p.line, _of_chain(p, renamed))
    codes, names = index.people
    readable = index.rows["content"].is_valid().to_numpy()
    rows: dict[int, Proposal] = {}

    code_of = {name: code for code, name in enumerate(names.to_pylist()) if name in whole}
    of_whole = np.zeros(len(names) + 1, bool)  # the last is for -1
    of_whole[list(code_of.values())] = True
    chosen = np.flatnonzero(of_whole[codes] & readable)
    there = set(codes[chosen].tolist())
    for p in whole.values():
        if code_of.get(p.identity) not in there:
            raise _fault(file, p.line, f"no photographs of a person '{p.identity}' are in the index")
    for row, name in zip(chosen.tolist(), index.identities(chosen), strict=True):
        rows[row] = whole[str(name)]

    found = find_sorted(index.rows["path"], list(single))
    for p, row in zip(single.values(), found.tolist(), strict=True):
        if row < 0 or not readable[row]:
            raise _fault(file, p.line, f"no photograph '{p.path}' is in the index")
    for p, row, name in zip(single.values(), found.tolist(), index.identities(found), strict=True):
        if name != p.identity:
            raise _fault(file, p.line, f"{p.path} is of {name} by now, not of {p.identity}")
        rows[row] = p
    return rows


def _of_chain(p: Proposal, renamed: dict[str, Proposal]) -> str:
    """What to do about a line that gives photographs to a person who becomes another in the same file."""
    name, seen = p.becomes, set()
    while name in renamed and name not in seen:
        seen.add(name)
        name = renamed[name].becomes
    if name in seen:
        other = renamed[name].becomes
        return (
            f"{name} becomes {other}, and {other} in the end {name}: people who swap names need two files, and names "
            f"that nobody has; in the first give each of them such a name, in the second give these the right ones"
        )
    target = renamed[p.becomes]
    own = target.becomes == p.identity
    do = "remove this line" if own else f"write {target.becomes}, or leave this line for a second file"
    return f"{p.becomes} becomes {target.becomes} in line {target.line}: {do}"


def alike(name: str) -> str:
    """What names that differ in case, Unicode form or the marks between words only have in common."""
    return re.sub(r"[\s_.\-]+", " ", folded(name)).strip()
