"""What every reader yields, and what every reader is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

MAX_RECORD_BYTES = 1 << 28  # 256 MB; what is larger is no photograph, and must not fill the memory

_DIGITS = re.compile("-?[0-9]{6,309}")  # the largest float has that many

At = tuple[int, int]  # number of the file, and of the record in it, both from 0


@dataclass(frozen=True, slots=True)
class Record:
    """One photograph of a packed dataset, or the reason why there is none.

    ``identity`` is who it shows: a name, or the number of a class; ``name`` what the photograph will be called, without
    suffix, unique among those of the source. ``data`` are the encoded bytes as they were packed.
    """

    at: At
    identity: str | int | None
    name: str
    data: bytes | None
    reason: str = ""  # why there are no data


class Source(Protocol):
    """A packed dataset, opened and checked: it can be read from end to end, as often as one likes."""

    format: str
    files: list[Path]  # in the order in which they are read; `Record.at` counts them
    options: dict[str, Any]  # what else decides what is read

    def records(self, start: At = (0, 0)) -> Iterator[Record]:
        """The records at ``start`` and behind it, in order and in bounded memory; some before it may come again.

        `Record.at` only grows. What is damaged is a record with a reason, and so is what lies between and behind the
        records of a file (bytes that are no record, a torn end).
        """

    def position_bytes(self) -> int:
        """How far the last `records` has got, in bytes of all files."""


def number_name(at: At, files: int) -> str:
    """A name that follows from the record's place: `000000123`, and `00004-000000123` where there are many files."""
    number = f"{at[1]:09d}"
    return number if files == 1 else f"{at[0]:05d}-{number}"


def class_name(label: int) -> str:
    """The folder of a class that has a number only: `id_0000123`."""
    return f"id_{label:07d}"


def is_class_name(name: str) -> bool:
    """Whether a class with a number has this folder."""
    digits = name.removeprefix("id_")
    return bool(_DIGITS.fullmatch(digits)) and name == class_name(int(digits))


def whole_number(label: float) -> int | None:
    """A label that was stored as a float; None when it is not whole."""
    return int(label) if float(label).is_integer() else None
