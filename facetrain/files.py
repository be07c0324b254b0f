"""Files that appear whole or not at all."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from blake3 import blake3

TEMP_PREFIX = ".ft-tmp-"
# Suffixes, in lower case, of the files that are taken for photographs.
PHOTOGRAPHS = frozenset(
    [".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"]
    + [".gif", ".avif", ".jp2", ".ppm", ".pgm", ".pnm"]
)


def temp_path(folder: Path, name: str) -> Path:
    """A temporary file of this process's in ``folder``, as `sweep` knows them."""
    return folder / _temp_name(name)


def _temp_name(name: str) -> str:
    return f"{TEMP_PREFIX}{os.getpid()}-{name}"


def sweep(folder: Path) -> None:
    """Remove the temporary files right in ``folder`` that processes which are no more have left.

    For whoever has just got the lock under which ``folder`` is written: its own process has none there yet.
    """
    if not folder.is_dir():
        return
    for path in folder.glob(f"{TEMP_PREFIX}*"):
        pid = path.name[len(TEMP_PREFIX) :].partition("-")[0]
        if not pid.isdecimal() or int(pid) == os.getpid() or not _is_running(int(pid)):
            path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # someone else's, but it is there
    return True


def file_fingerprint(path: Path) -> str:
    """BLAKE3 of a file, hex."""
    return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError that names no file, or a temporary one, name ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            named = error.filename and not Path(os.fsdecode(error.filename)).name.startswith(TEMP_PREFIX)
            error.filename = error.filename if named else str(path)
        raise


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends well it takes ``path``'s place in one step.

    A block that removes its file again leaves the old one in place.

    With ``sync`` (the default) the content is on disk before the rename, so a power cut leaves the old file or the
    new one, never half of either. Leave it out for files whose content is checked by hash anyway.
    """
    temp = temp_path(path.parent, os.urandom(4).hex())
    with naming(path):
        try:
            yield temp
            if not temp.exists():
                return
            if sync:
                with open(temp, "rb") as handle:
                    os.fsync(handle.fileno())
            os.replace(temp, path)
            if sync:
                fsync_folder(path.parent)
        finally:
            temp.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write ``data`` to ``path``, whole or not at all; as `replacing` does, in fewer steps for many small files."""
    temp = f"{path.parent}{os.sep}{_temp_name(os.urandom(4).hex())}"
    with naming(path):
        try:
            with open(temp, "wb") as handle:
                handle.write(data)
                if sync:
                    handle.flush()
                    os.fsync(handle.fileno())
            os.replace(temp, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temp)
            raise
        if sync:
            fsync_folder(path.parent)


def write_if_changed(path: Path, data: bytes) -> None:
    """The same, but a file that holds ``data`` already is left alone, and its time with it."""
    if not path.is_file() or path.read_bytes() != data:
        write_bytes(path, data)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all, unless it is there already; keys keep their order."""
    write_if_changed(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table for people and spreadsheets, whole or not at all, unless it is there already."""
    write_if_changed(path, b"".join(csv_line(row) for row in itertools.chain([header], rows)))


def csv_line(row: Iterable[Any]) -> bytes:
    """A line of a CSV file, quoted where it must be; what is not UTF-8 is written as \\xNN."""
    text = io.StringIO()
    # The csv module quotes for the characters of its own line's end, so it must have both of those that divide lines.
    csv.writer(text, lineterminator="\r\n").writerow(row)
    return text.getvalue().removesuffix("\r\n").encode(errors="backslashreplace") + b"\n"


def fsync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable, where the platform can."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError:
        pass  # some network file systems cannot sync folders; the rename is atomic there all the same
    finally:
        os.close(fd)
