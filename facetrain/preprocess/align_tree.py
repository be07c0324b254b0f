"""Aligning a tree: which photographs, where their crops go, and what may stand in the way."""

from __future__ import annotations

import os
import time
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from facetrain.errors import UserError
from facetrain.file_table import FileTable, Listing, find_photographs, walk
from facetrain.files import temp_path, write_if_changed
from facetrain.image_spec import FORMATS, SPEC_FILE
from facetrain.preprocess.aligner import AlignSettings, Outcome, align_block, crop_path, identity_of
from facetrain.preprocess.row_update import RowUpdate, UpdateReport, Work
from facetrain.tables import dictionary_codes, find_sorted, positions


@dataclass(frozen=True)
class AlignReport:
    """What an align did."""

    rows: UpdateReport
    ignored: dict[str, int]  # files that are no photographs, by suffix
    alike: list[tuple[str, ...]]  # people whose names differ in case or Unicode form only
    seconds: float


def align_tree(
    raw: Path,
    aligned: Path,
    store: Path,
    settings: AlignSettings,
    work: Work,
    *,
    redo: bool = False,
    verify: bool = False,
    only: Collection[str] | None = None,
) -> AlignReport:
    """Bring ``aligned`` and the index in ``store`` up to date with ``raw``.

    ``only`` restricts the work to these paths, which may lie right in ``raw``. ``redo`` allows settings other than those of the crops that are there,
    and makes them all again. ``verify`` reads and hashes every photograph and every crop, whatever their times say.
    Raises UserError for folders that cannot serve, SpecMismatch when the settings differ and ``redo`` is not given.
    """
    started = time.monotonic()
    listing = _list(raw, aligned, only)
    update = RowUpdate(
        store,
        settings.spec,
        settings.to_dict(),
        str(aligned),
        "was aligned",
        redo=redo,
        verify=verify,
        only=only,
    )
    crop_files = FileTable(store / "crops.files.arrow", trusted=not verify)
    _refresh(crop_files, aligned, work)
    nobodys = without_identity(listing) if only is None else ()  # those that were asked for need no name
    refused = [*nobodys, *_clashing(listing, aligned, settings.spec.format)]
    if redo:
        (aligned / SPEC_FILE).unlink(missing_ok=True)  # until all crops are of one kind again
    update.begin(listing)
    for row in update.rows_of([*listing.problems, *(row.path for row in refused)]):
        if row is not None and row["aligned"] is not None:  # no photograph's any more, and in the way perhaps
            _remove_file(aligned / row["aligned"])
    look = partial(align_block, raw, aligned, settings)
    looked_at = update.look_at(listing, crop_files.table, [row.path for row in refused], look, work)

    if only is None:  # before the journal goes: a redo that is killed in between is then a redo still
        _remove_other_crops(aligned, crop_files.table["path"], update.rows, listing)
    report = update.finish(listing, refused, looked_at)
    write_if_changed(aligned / SPEC_FILE, (settings.spec.to_json() + "\n").encode())
    crop_files.save()
    return AlignReport(report, dict(listing.others), alike_names(update.rows), time.monotonic() - started)


def check_folders(raw: Path, aligned: Path, *, people: bool = True) -> None:
    """Raise UserError unless ``raw`` holds folders with photographs (or, without ``people``, photographs anywhere) and
    ``aligned`` can be another folder; quick."""
    if aligned.exists() and not aligned.is_dir():
        raise UserError(f"{aligned} is a file: name a folder for the crops")
    inside = os.path.realpath(aligned), os.path.realpath(raw)
    if os.path.commonpath(inside) in inside and not _is_hidden(*inside):
        raise UserError(
            f"{aligned} and {raw} must not be the same or lie in each other: name another folder for the crops"
        )
    check_photographs(raw, people=people)


def check_photographs(raw: Path, *, people: bool = True) -> None:
    """Raise UserError unless ``raw`` holds folders with photographs (or, without ``people``, photographs anywhere); quick."""
    if not raw.exists():
        raise UserError(f"no folder {raw}: name the folder that holds one folder of photographs per person")
    if not raw.is_dir():
        raise UserError(f"{raw} is a file: name the folder that holds one folder of photographs per person")
    if not os.access(raw, os.R_OK | os.X_OK):
        raise UserError(f"the folder {raw} cannot be read: its permissions forbid it")
    loose = False
    for path in find_photographs(raw):
        if identity_of(path) is not None or not people:
            return
        loose = True
    if loose:
        raise UserError(
            f"the photographs lie right in {raw}: put those of each person into a folder of their own"
        )
    raise UserError(
        f"no photographs in {raw}: it must hold a folder per person with .jpg, .png, .webp, .bmp or .tiff files"
    )


def _is_hidden(folder: str, root: str) -> bool:
    """True when a walk through ``root`` passes ``folder`` over, for a name that begins with a dot."""
    below = os.path.relpath(folder, root).split(os.sep)
    return below[0] != os.pardir and below != [os.curdir] and any(name.startswith(".") for name in below)


def _list(raw: Path, aligned: Path, only: Collection[str] | None) -> Listing:
    check_folders(raw, aligned, people=only is None)
    listing = walk(raw)
    if only is not None:
        wanted = find_sorted(listing.files["path"], sorted(only))
        listing.files = listing.files.take(pa.array(wanted[wanted >= 0]))
        listing.problems = {}
    try:
        aligned.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {aligned} ({error.strerror}): name another one") from None
    return listing


def _refresh(crop_files: FileTable, aligned: Path, work: Work) -> None:
    """Find out which crops are there, and what is in them."""
    listing = walk(aligned)
    for leftover in listing.temporary:
        (aligned / leftover).unlink(missing_ok=True)
    crop_files.refresh(aligned, listing.files, work.on_check_start, work.on_check)


def _remove_file(path: Path) -> None:
    if path.is_file():
        path.unlink()


def _remove_other_crops(aligned: Path, crops: pa.ChunkedArray, rows: pa.Table, listing: Listing) -> None:
    """Remove crops of photographs that are gone, or were made with other settings; other files stay."""
    claimed = rows["aligned"].filter(pa.array(positions(rows["path"], listing.files["path"]) >= 0))
    leftover = set(crops.filter(pa.array(positions(crops, claimed.drop_null()) < 0)).to_pylist())
    for chunk in [*rows["path"].chunks, *listing.files["path"].chunks] if leftover else ():
        for path in chunk.to_pylist():
            for crop in {crop_path(path, image_format) for image_format in FORMATS} & leftover:
                _remove_file(aligned / crop)


# -- photographs that cannot have a crop -----------------------------------------------------------------------------


def without_identity(listing: Listing) -> Iterator[Outcome]:
    loose = pc.invert(pc.match_substring(listing.files["path"], "/"))
    for row in listing.files.filter(loose).select(["path", "size_bytes"]).to_pylist():
        reason = "not in a person's folder under RAW"
        yield Outcome(row["path"], "no-identity", reason, size_bytes=row["size_bytes"])


def _clashing(listing: Listing, aligned: Path, image_format: str) -> Iterator[Outcome]:
    """Photographs whose crop would take another's place: the one that comes first by name has it."""
    clashes = _with_folders(listing, image_format)
    ours = pc.starts_with(listing.files["path"], f"{SPEC_FILE}/")
    for path in listing.files["path"].filter(ours).to_pylist():
        clashes[path] = f"ALIGNED/{SPEC_FILE} is a file of ours: rename the folder"
    if _folds_names(aligned):
        clashes |= _with_other_spellings(listing, image_format)
    where = find_sorted(listing.files["path"], list(clashes))
    for (path, reason), row in zip(clashes.items(), where.tolist(), strict=True):
        yield Outcome(path, "name-clash", reason, size_bytes=listing.files["size_bytes"][row].as_py())


def _with_folders(listing: Listing, image_format: str) -> dict[str, str]:
    """``ann/x.png`` beside a folder ``ann/x.png.jpg/``, which holds others' crops and cannot be a crop itself."""
    paths = listing.files["path"]
    folders: set[str] = set()
    for path in paths.filter(pc.match_substring(paths, f".{image_format}/")).to_pylist():
        while path := path.rpartition("/")[0]:
            if path.endswith(f".{image_format}"):
                folders.add(path)
    sources = {folder[: -len(image_format) - 1]: folder for folder in sorted(folders)}
    there = find_sorted(paths, list(sources)) >= 0
    return {
        path: f"its crop would be called like the folder {folder}: rename one of them"
        for (path, folder), is_there in zip(sources.items(), there.tolist(), strict=True)
        if is_there and crop_path(path, image_format) == folder
    }


def _with_other_spellings(listing: Listing, image_format: str) -> dict[str, str]:
    """On a disk that knows no capitals, or only one Unicode form, ``Ann/1.jpg`` and ``ann/1.jpg`` are one file."""
    first: dict[str, str] = {}
    clashes = {}
    for path in listing.files["path"].to_pylist():
        other = first.setdefault(folded(crop_path(path, image_format)), path)
        if other != path:
            clashes[path] = (
                f"on the disk of ALIGNED its crop would overwrite that of {other}: rename one of them"
            )
    return clashes


def folded(name: str) -> str:
    """What names that differ in case or Unicode form only have in common."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _folds_names(folder: Path) -> bool:
    """True where names that differ in case (or Unicode form) only are those of one file."""
    probe = temp_path(folder, "caf\u00e9")
    probe.touch()
    try:
        others = (probe.name.upper(), unicodedata.normalize("NFD", probe.name))
        return any((folder / other).exists() for other in others)
    finally:
        probe.unlink()


def alike_names(rows: pa.Table) -> list[tuple[str, ...]]:
    """Groups of people whose names differ in case or Unicode form only."""
    groups: dict[str, list[str]] = {}
    for name in dictionary_codes(rows["identity"])[1].to_pylist():
        groups.setdefault(folded(name), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]
