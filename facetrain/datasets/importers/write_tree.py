"""Writing a packed dataset as a tree: OUT/<identity>/<name>.<suffix>, the bytes as they were packed.

Interrupted at any moment and run again, it ends in the same tree as if never interrupted. Every name follows from the
record's place in the source, so files that are there are compared and left alone. How far it got is written down now
and then, and records before that are not even read again, as long as the machine has not been started anew since (the
mark makes no file durable) and the source is unchanged. A finished import that is run again compares everything.

    .ft-import.json            what is imported, how far it got
    import-rejected.csv        every record that is no photograph, with the reason
    .ft-import-rejected.csv    the same while the import goes on
"""

from __future__ import annotations

import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from facetrain.datasets.importers.image_type import image_suffix
from facetrain.datasets.importers.names import MAX_BYTES, file_name
from facetrain.datasets.importers.record import At, Record, Source, class_name, is_class_name
from facetrain.errors import FacetrainError, Locked, UserError
from facetrain.files import TEMP_PREFIX, csv_line, temp_path, write_json
from facetrain.workspace import locked

RECORD = ".ft-import.json"
LOCK = ".ft-import.lock"
REJECTED = "import-rejected.csv"
REJECTED_SO_FAR = ".ft-import-rejected.csv"
HEADER = ("file", "record", "identity", "name", "reason")
BLOCK_RECORDS, BLOCK_BYTES = 256, 64 << 20  # written at a time, by several threads
BLOCKS_PER_MARK = 16
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass
class Mark:
    """How far an import got: all before ``at`` is in the tree or in the list of rejected records."""

    at: At = (0, 0)
    photographs: int = 0
    rejected: int = 0
    bytes: int = 0
    rejected_bytes: int = 0  # length of the list
    position_bytes: int = 0
    boot: str = ""
    times_ns: str = ""  # of the source's files


@dataclass(frozen=True)
class ImportReport:
    """What an import did. Counts are of the whole import; ``written`` are this run's."""

    format: str
    photographs: int
    people: int
    bytes: int
    written: int
    skipped: int  # taken from an interrupted run without reading them again
    rejected: int
    reasons: dict[str, int]  # the commonest, this run's
    rejected_list: Path | None
    seconds: float


def import_tree(
    source: Source,
    out: Path,
    *,
    jobs: int = 1,
    on_start: Callable[[int, int], None] = lambda total_bytes, position_bytes: None,
    on_progress: Callable[[int, int], None] = lambda position_bytes, photographs: None,
) -> ImportReport:
    """Write every photograph of ``source`` below ``out``; memory is bounded, whatever the source's size.

    :param out: a new or empty folder, or one that holds an import of the same source with the same options.
    :param jobs: threads that write.
    :param on_start: called with the size of the source in bytes, and how far an interrupted run got.
    :param on_progress: called with the position in the source, and the photographs in the tree so far.
    :raises UserError: ``out`` holds something else, or another command is at it.
    """
    started = time.monotonic()
    facts = _facts(source)
    check_out(out, source)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out} ({error.strerror}): name another one") from None
    try:
        with locked(out / LOCK, str(out)):
            for left in out.glob(
                f"{TEMP_PREFIX}*"
            ):  # by runs that were killed: under the lock there are no others
                left.unlink()
            run = _Run(source, out, facts, _last_mark(out, source))
            on_start(facts["bytes"], run.mark.position_bytes)
            run.write_all(jobs, on_progress)
            return run.finish(started)
    except Locked:
        raise UserError(f"another command is importing into {out}: wait for it to end") from None


def check_out(out: Path, source: Source) -> None:
    """Raise UserError unless ``out`` is new, empty, or an import of the same source. Changes nothing."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder for the photographs")
    if not out.exists() or not any(path.name != LOCK for path in out.iterdir()):
        return
    record = _read_record(out)
    if record is None:
        raise UserError(f"{out} holds files that `ft import` did not make: name a new or empty folder")
    facts = _facts(source)
    differing = [key for key, value in facts.items() if record.get(key) != value]
    if differing:
        if differing == ["options"]:
            raise UserError(f"{out} holds an import of this source with other options: name another folder")
        was = f"{record.get('first')}, {record.get('files')} files, {record.get('bytes')} bytes"
        raise UserError(f"{out} holds an import of another source ({was}): name another folder")


@dataclass
class _Run:
    """One run of an import, from the mark of the one before on."""

    source: Source
    out: Path
    facts: dict[str, Any]
    mark: Mark
    written: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.skipped = self.mark.photographs
        self.mark.boot, self.mark.times_ns = _boot_id(), _times_ns(self.source)

    def write_all(self, jobs: int, on_progress: Callable[[int, int], None]) -> None:
        self._save(finished=False)  # first of all, so that the folder is known as ours
        with open(self.out / REJECTED_SO_FAR, "ab") as rejected, ThreadPoolExecutor(jobs) as threads:
            rejected.truncate(self.mark.rejected_bytes)
            for number, block in enumerate(_blocks(self._records()), start=1):
                outcomes = threads.map(self._write, block) if jobs > 1 else map(self._write, block)
                for record, outcome in zip(block, outcomes, strict=True):
                    self._count(record, outcome, rejected)
                last = block[-1].at
                self.mark.at, self.mark.position_bytes = (last[0], last[1] + 1), self.source.position_bytes()
                if number % BLOCKS_PER_MARK == 0:
                    rejected.flush()
                    self._save(finished=False)
                on_progress(self.mark.position_bytes, self.mark.photographs)

    def finish(self, started: float) -> ImportReport:
        """The list of rejected records gets its name; all is made durable, and only then called finished."""
        so_far, listed = self.out / REJECTED_SO_FAR, self.out / REJECTED
        if self.mark.rejected:
            os.replace(so_far, listed)
        else:
            so_far.unlink()
            listed.unlink(missing_ok=True)
        os.sync()
        self._save(finished=True)
        with os.scandir(self.out) as entries:
            people = sum(entry.is_dir() and not entry.name.startswith(".") for entry in entries)
        return ImportReport(
            format=self.source.format,
            photographs=self.mark.photographs,
            people=people,
            bytes=self.mark.bytes,
            written=self.written,
            skipped=self.skipped,
            rejected=self.mark.rejected,
            reasons=dict(self.reasons.most_common(3)),
            rejected_list=listed if self.mark.rejected else None,
            seconds=time.monotonic() - started,
        )

    def _records(self) -> Iterator[Record]:
        records = self.source.records(self.mark.at)
        while True:
            try:
                record = next(records, None)
            except OSError as error:
                where = ", ".join(map(str, self.source.files[:2]))
                raise FacetrainError(f"{where}: cannot be read: {error.strerror or error}") from None
            if record is None:
                return
            if record.at >= self.mark.at:
                yield record

    def _write(self, record: Record) -> str | bool:
        """Whether the file had to be written; or the reason why there is none."""
        if record.data is None:
            return record.reason
        if not record.data:
            return "the image is empty"
        suffix = image_suffix(record.data)
        if suffix is None:
            return f"no image format that we know (it begins with {record.data[:8].hex(' ')})"
        if record.identity is None or record.identity == "":
            return "no label"
        path = self.out / _folder(record.identity) / (file_name(record.name, room=MAX_BYTES - 8) + suffix)
        if _holds(path, record.data):
            return False
        # The temporary file lies right in OUT, where the next run finds what a killed one has left without a walk.
        temp = temp_path(self.out, f"{record.at[0]}-{record.at[1]}")
        try:
            temp.write_bytes(record.data)
            try:
                os.replace(temp, path)
            except FileNotFoundError:
                path.parent.mkdir(exist_ok=True)
                os.replace(temp, path)
        except OSError as error:
            raise FacetrainError(f"{path}: cannot be written: {error.strerror}; run again to go on") from None
        finally:
            temp.unlink(missing_ok=True)
        return True

    def _count(self, record: Record, outcome: str | bool, rejected: io.BufferedWriter) -> None:
        if not isinstance(outcome, str):
            self.mark.photographs += 1
            self.mark.bytes += len(record.data or b"")
            self.written += outcome
            return
        if not self.mark.rejected:
            self.mark.rejected_bytes += rejected.write(csv_line(HEADER))
        file = str(self.source.files[record.at[0]])
        identity = "" if record.identity is None else _folder(record.identity)
        self.mark.rejected_bytes += rejected.write(
            csv_line((file, record.at[1], identity, file_name(record.name), outcome))
        )
        self.mark.rejected += 1
        if len(self.reasons) < 1000 or outcome in self.reasons:
            self.reasons[outcome] += 1

    def _save(self, *, finished: bool) -> None:
        value = self.facts | {"finished": finished} | ({} if finished else {"mark": asdict(self.mark)})
        write_json(self.out / RECORD, value)


def _folder(identity: str | int) -> str:
    """A folder of its own for each identity; the name `id_0000007` makes room for the number 7."""
    if isinstance(identity, int):
        return file_name(class_name(identity))
    if is_class_name(identity):
        return "%69" + file_name(identity, room=MAX_BYTES - 2).removeprefix("i")
    return file_name(identity)


def _holds(path: Path, data: bytes) -> bool:
    try:
        if os.stat(path).st_size != len(data):
            return False
        return path.read_bytes() == data
    except FileNotFoundError:
        return False


def _blocks(records: Iterable[Record]) -> Iterator[list[Record]]:
    block: list[Record] = []
    held = 0
    for record in records:
        block.append(record)
        held += len(record.data or b"")
        if len(block) >= BLOCK_RECORDS or held >= BLOCK_BYTES:
            yield block
            block, held = [], 0
    if block:
        yield block


# -- the import's own record -----------------------------------------------------------------------------------------


def _facts(source: Source) -> dict[str, Any]:
    """What makes two imports the same: format, options, names and sizes of the files (their folder may move)."""
    files = [(file.name, file.stat().st_size) for file in source.files]
    listing = "\n".join(f"{size} {name}" for name, size in files)
    return {
        "format": source.format,
        "options": source.options,
        "first": files[0][0],
        "files": len(files),
        "bytes": sum(size for _, size in files),
        "fingerprint": blake3(listing.encode(errors="surrogateescape")).hexdigest(16),
    }


def _read_record(out: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((out / RECORD).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _last_mark(out: Path, source: Source) -> Mark:
    """Where an interrupted run got to, if that can be relied on; else the beginning."""
    try:
        fields = (_read_record(out) or {})["mark"]
        mark = Mark(**fields | {"at": (int(fields["at"][0]), int(fields["at"][1]))})
        listed = (out / REJECTED_SO_FAR).stat().st_size
    except (KeyError, TypeError, ValueError, OSError):
        return Mark()
    same = mark.boot and mark.boot == _boot_id() and mark.times_ns == _times_ns(source)
    return mark if same and listed >= mark.rejected_bytes else Mark()


def _boot_id() -> str:
    """Changes when the machine is started anew: what was written before may then be lost. Empty: not known."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _times_ns(source: Source) -> str:
    times = "\n".join(str(file.stat().st_mtime_ns) for file in source.files)
    return blake3(times.encode()).hexdigest(16)
