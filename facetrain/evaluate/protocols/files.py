"""Lists and photographs of protocols: read, found, and what is wrong with them said in one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from facetrain.errors import UserError
from facetrain.files import PHOTOGRAPHS
from facetrain.image_spec import FORMATS, SPEC_FILE


def fault(path: Path, line: int, why: str, found: str | None = None) -> UserError:
    """The error of a list: ``path, line n: why, found '…'``."""
    shown = "" if found is None else f", found {found[:120]!r}"
    return UserError(f"{path}, line {line}: {why}{shown}")


def read_lines(path: Path, what: str) -> Iterator[tuple[int, str]]:
    """(number from 1, text without the ends) of each line that is not empty, of a UTF-8 file.

    what: such as "list of pairs". UserError for a file that cannot be read, is no text, or holds no line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot read the {what}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: no {what}: it is not UTF-8 text (save it as UTF-8)") from None
    # Not splitlines(): it also cuts at characters that may stand in a name.
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise UserError(f"{path}: the {what} is empty")
    yield from lines


def first_there(data: Path, names: tuple[str, ...], what: str) -> Path:
    """The first of these files or folders below ``data`` that is there; UserError names what is looked for."""
    if not data.exists():
        raise UserError(f"{data}: no such folder; name the one that holds the {what}")
    if data.is_file():
        raise UserError(f"{data} is a file: name the folder that holds the {what}")
    for name in names:
        if (data / name).exists():
            return data / name
    raise UserError(f"{data} holds no {what}: looked for {', '.join(names)}")


def find_files(root: Path, wanted: Mapping[str, tuple[Path, int]]) -> dict[str, str]:
    """The file below ``root`` of each photograph that is wanted, in their order: name → path, '/' between folders.

    wanted: names as the lists have them, with the list and the line that name them first. In a tree that `ft align` made,
    the crop of ``a/b.png`` may be called ``a/b.jpg`` or ``a/b.png.jpg``; where there
    is none, no face was found: its path is "", as `Photographs` has it.
    UserError, naming the first of them and its line, when photographs are missing.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of photographs")
    is_crops = (root / SPEC_FILE).is_file()
    folders: dict[str, set[str]] = {}
    found: dict[str, str] = {}
    for name in wanted:
        folder, _, file = name.rpartition("/")
        if folder not in folders:
            folders[folder] = _names_in(root / folder)
        crops = (f"{file}.{kind}" for kind in FORMATS) if is_crops else ()
        there = next((crop for crop in (*crops, file) if crop in folders[folder]), "")
        found[name] = f"{folder}/{there}" if folder and there else there
    if is_crops:
        _find_by_stem(folders, found)
    missing = [name for name, path in found.items() if not path]
    if missing and not is_crops:
        path, line = wanted[missing[0]]
        more = f" ({len(missing) - 1:,} more of the photographs that are named are missing)"
        raise fault(path, line, f"there is no photograph {missing[0]} in {root}{more * (len(missing) > 1)}")
    if len(missing) == len(wanted):
        raise UserError(f"none of the {len(wanted):,} photographs that are named is in {root}")
    return found


def _find_by_stem(folders: Mapping[str, set[str]], found: dict[str, str]) -> None:
    """Crops of photographs that the list has with another suffix than they had: what is nobody else's crop."""
    taken = set(found.values())
    left: dict[tuple[str, str], str] = {}
    for folder, names in folders.items():
        for file in sorted(names, key=lambda file: (len(file), file)):
            path = f"{folder}/{file}" if folder else file
            if path not in taken:
                left.setdefault((folder, _stem(file)), path)
    for name, path in found.items():
        folder, _, file = name.rpartition("/")
        if not path:
            found[name] = left.get((folder, _stem(file)), "")


def _names_in(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return set()
        raise


def _stem(name: str) -> str:
    """Without any suffix of an image: of a crop ``b.png.jpg`` of a photograph ``b.png``, ``b``."""
    stem, suffix = os.path.splitext(name)
    while suffix.lower() in PHOTOGRAPHS:
        name = stem
        stem, suffix = os.path.splitext(name)
    return name
