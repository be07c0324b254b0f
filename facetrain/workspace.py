"""The .ft/ folder: which dataset is current, stage records, runs, the writer's lock.

    .ft/
      workspace.json            format version, current dataset
      lock                      held by whoever writes
      datasets/<id>/            one per aligned tree: index, file tables, cache manifest, stage records
      cache/<hash>.arrow        decoded shards, named by what they were made from
      runs/<name>/              one per training
      evaluate/<id>/            crops of photographs that were aligned for an evaluation

Found by walking up from the working directory as git does; `-C DIR` and FT_WORKSPACE name another.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blake3 import blake3

from facetrain import __version__
from facetrain.errors import Locked, MissingStage, UserError
from facetrain.files import sweep, write_json

FORMAT = 2
FOLDER = ".ft"
DIVERGED = "diverged.txt"  # in a run: why it ended; a resume would end there too


@dataclass(frozen=True)
class StageRecord:
    """What a stage was run with and on, and what came out; `ft status` compares it with what is there now."""

    stage: str
    parameters: dict[str, Any]
    inputs: dict[str, str]  # name → fingerprint of what the stage read
    output: str  # fingerprint of what it wrote
    counts: dict[str, int]
    seconds: float
    finished: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    version: str = __version__


class Dataset:
    """One aligned tree and everything that is known of it."""

    def __init__(self, workspace: Workspace, folder: Path) -> None:
        self.workspace = workspace
        self.folder = folder
        try:
            paths = dict(json.loads((folder / "dataset.json").read_text()))
            self.raw = Path(os.path.normpath(workspace.root / paths["raw"]))
            self.aligned = Path(os.path.normpath(workspace.root / paths["aligned"]))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{folder} is no dataset of this workspace ({error}): run `ft align` again"
            ) from None

    @property
    def first_stage(self) -> str:
        """The command that makes its rows: ``align``, or ``index`` for crops that were made elsewhere."""
        return "index" if self.raw == self.aligned else "align"

    def record(self, stage: str) -> StageRecord | None:
        """The stage's record; None when it has not run, or when the record is damaged, so that it must run again."""
        try:
            return StageRecord(**json.loads((self.folder / "stages" / f"{stage}.json").read_text()))
        except (FileNotFoundError, TypeError, ValueError):
            return None

    def write_record(self, record: StageRecord) -> None:
        """Write the stage's record, in place of an older one."""
        (self.folder / "stages").mkdir(exist_ok=True)
        write_json(self.folder / "stages" / f"{record.stage}.json", asdict(record))

    def forget(self, stage: str) -> None:
        """Remove the stage's record; its output is the caller's to remove."""
        (self.folder / "stages" / f"{stage}.json").unlink(missing_ok=True)


class Workspace:
    """A folder with a .ft/ in it."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.folder = self.root / FOLDER

    @classmethod
    def find(cls, start: Path | None = None, *, create: bool = False) -> Workspace:
        """The workspace of ``start`` (default: FT_WORKSPACE, else the working directory) or of a folder above it.

        When there is none, MissingStage is raised; with ``create`` it is one of ``start`` that `create` can make.
        """
        named = start or (Path(os.environ["FT_WORKSPACE"]) if os.environ.get("FT_WORKSPACE") else None)
        here = (named or Path.cwd()).resolve()
        if not here.is_dir():
            raise UserError(f"no folder {here}: name an existing folder for the workspace")
        # A workspace that was named is meant to be there; only an unnamed one is searched for upwards.
        candidates = [here] if named is not None else [here, *here.parents]
        for folder in candidates:
            if (folder / FOLDER / "workspace.json").is_file():
                return cls(folder)._checked()
        if not create:
            raise MissingStage(f"no facetrain workspace in {here}: run `ft align RAW ALIGNED` first")
        return cls(here)

    def create(self) -> None:
        """Make the .ft/ folder unless it is there."""
        if (self.folder / "workspace.json").is_file():
            return
        try:
            (self.folder / "datasets").mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "workspace.json", {"format": FORMAT, "current": None})
        except OSError as error:
            raise UserError(
                f"cannot make a workspace in {self.root} ({error.strerror}): use -C DIR"
            ) from None

    def _checked(self) -> Workspace:
        found = self._state().get("format")
        if found != FORMAT:
            raise UserError(
                f"{self.folder} has format {found}, this facetrain reads {FORMAT}: "
                f"use the version it is of, or remove workspace.json and datasets/ in it and align into a new folder"
            )
        return self

    def _state(self) -> dict[str, Any]:
        path = self.folder / "workspace.json"
        try:
            state: dict[str, Any] = dict(json.loads(path.read_text()))
            if not isinstance(state.get("current"), str | None):
                raise TypeError
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError):
            raise UserError(
                f"{path} is damaged: remove it and run `ft align` again (nothing is lost)"
            ) from None
        return state

    # -- datasets ------------------------------------------------------------------------------------------------

    def add_dataset(self, raw: Path, aligned: Path) -> Dataset:
        """The dataset of this aligned tree, made known if it is new."""
        for path in (raw, aligned):
            if not _is_text(path):
                raise UserError(f"the name of {os.fsencode(path)!r} is not UTF-8: rename the folder")
        folder = self.dataset_folder(aligned)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "dataset.json", {"raw": self._portable(raw), "aligned": self._portable(aligned)})
        return Dataset(self, folder)

    def make_current(self, dataset: Dataset) -> None:
        """Let it be the dataset of commands that name none."""
        write_json(self.folder / "workspace.json", {"format": FORMAT, "current": dataset.folder.name})

    def dataset(self, aligned: Path | None = None) -> Dataset:
        """The dataset of this aligned tree, or the current one."""
        if aligned is not None:
            if not aligned.exists():
                raise UserError(
                    f"no folder {aligned}: name an aligned tree, or run `ft align RAW {aligned}` first"
                )
            folder = self.dataset_folder(aligned)
            if not (folder / "dataset.json").is_file():
                raise MissingStage(
                    f"{aligned} was not aligned in this workspace: run `ft align RAW {aligned}` first"
                )
            return Dataset(self, folder)
        current = self._state().get("current")
        if current is None:
            raise MissingStage(f"no dataset in {self.folder} yet: run `ft align RAW ALIGNED` first")
        return Dataset(self, self.folder / "datasets" / current)

    def known_dataset(self, aligned: Path) -> Dataset | None:
        """The dataset of this aligned tree; None when this workspace knows none."""
        try:
            return self.dataset(aligned)
        except UserError:
            return None

    def datasets(self) -> list[Dataset]:
        """All datasets, by id."""
        folders = sorted((self.folder / "datasets").glob("*/dataset.json"))
        return [Dataset(self, path.parent) for path in folders]

    def dataset_folder(self, aligned: Path) -> Path:
        """Where what is known of this aligned tree lies, whether or not it is there."""
        portable = self._portable(aligned)
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(portable).name).strip("-.") or "dataset"
        return self.folder / "datasets" / f"{slug[:40]}-{blake3(os.fsencode(portable)).hexdigest()[:8]}"

    def _portable(self, path: Path) -> str:
        """Relative to the workspace where it lies beneath it, so that the whole folder can be moved."""
        path = Path(os.path.abspath(path))
        if not path.is_relative_to(self.root):
            path = (
                path.parent.resolve() / path.name
            )  # the way here may lead over a link, as the root's may have
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    # -- runs ----------------------------------------------------------------------------------------------------

    @property
    def runs_folder(self) -> Path:
        return self.folder / "runs"

    def run_folder(self, name: str) -> Path:
        """Where the run of this name lies, whether or not it is there."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise UserError(f"'{name}' cannot name a run: use letters, digits, '.', '_' and '-'")
        return self.runs_folder / name

    def runs(self) -> list[Path]:
        """All run folders, the oldest first."""
        folders = [path.parent for path in self.runs_folder.glob("*/config.json")]
        return sorted(folders, key=lambda folder: ((folder / "config.json").stat().st_mtime_ns, folder.name))

    # -- lock ----------------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the writer's lock; Locked, naming the holder, when another process has it. Readers need none."""
        with locked(self.folder / "lock", "this workspace"):
            sweep(self.folder)  # what commands that were killed have left
            for place in ("cache", "datasets/*", "datasets/*/stages", "evaluate/*"):
                for folder in self.folder.glob(place):
                    sweep(folder)
            yield


def _command() -> str:
    """The command that runs, such as ``align``."""
    words = iter(sys.argv[1:])
    for word in words:
        if word == "-C":
            next(words, None)
        elif not word.startswith("-"):
            return word
    return ""


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; the kernel drops it when the process ends, however it ends."""
    with open(path, "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "another command"
            raise Locked(
                f"{holder} is writing to {what}: wait for it to end, or use another one (-C DIR)"
            ) from None
        handle.truncate(0)
        handle.write(f"`ft {_command()}` (process {os.getpid()})")
        handle.flush()
        yield
