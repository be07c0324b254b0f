"""Packed datasets of several files, which are read one after the other; and which files are meant."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from facetrain.datasets.importers.record import At, Record, number_name
from facetrain.errors import UserError


class FileByFile(ABC):
    """A `Source` of several files. A reader says how one file is read, and keeps ``_done`` up to date meanwhile."""

    format: str

    def __init__(self, files: list[Path], options: dict[str, Any]) -> None:
        self.files, self.options = files, options
        self._ends = [0]  # where each file ends, in bytes of all
        for file in files:
            self._ends.append(self._ends[-1] + file.stat().st_size)
        self._done = 0

    def position_bytes(self) -> int:
        return self._done

    def records(self, start: At = (0, 0)) -> Iterator[Record]:
        for number in range(start[0], len(self.files)):
            yield from self._file(number, start[1] if number == start[0] else 0)
            self._done = self._ends[number + 1]

    @abstractmethod
    def _file(self, number: int, first: int) -> Iterator[Record]:
        """The records of a file, from ``first`` on or from earlier."""

    def _name(self, at: At) -> str:
        return number_name(at, len(self.files))

    def _rejected(self, at: At, why: str) -> Record:
        return Record(at, None, self._name(at), None, why)


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files beneath ``folder`` that end so, sorted. Raises UserError where there are none."""
    found = [file for file in sorted(folder.rglob("*")) if file.name.endswith(suffixes) and file.is_file()]
    if not found:
        raise UserError(f"no {suffixes[0]} in {folder}: name a file, or the folder that holds the files")
    return found


def check_files(files: list[Path]) -> None:
    """Raise UserError where a file is not there, or named twice."""
    missing = [file for file in files if not file.is_file()]
    if missing:
        more = f" (and {len(missing) - 1:,} more that are named)" if len(missing) > 1 else ""
        raise UserError(f"there is no {missing[0]}{more}: name files that are there, or a folder of them")
    if len(set(files)) < len(files):
        twice = next(file for file, times in Counter(files).items() if times > 1)
        raise UserError(f"{twice} is named twice: name each file once")
