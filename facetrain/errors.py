"""The exception tree. Every message is one line that says what to do next.

    FacetrainError
    ├── WorkerDied         a worker process was killed or crashed, again and again (`workers`)
    ├── ClusterFailed      the scheduler was lost, or workers died again and again (`cluster`)
    └── UserError          a mistake of the user's: the CLI prints the line and exits with code 2
        ├── MissingStage   a stage that must run first has not run (or is stale)
        ├── SpecMismatch   two sides were made with different image specs
        ├── Locked         another command is writing to the same workspace
        └── UnfitWorker    a cluster's worker has other versions, or does not see the folders (`cluster`)

Internal bugs are ordinary exceptions and keep their traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class FacetrainError(Exception):
    """Base of all errors that facetrain raises on purpose."""


class UserError(FacetrainError):
    """Something the user can put right; the message is one line that says how."""


class MissingStage(UserError):
    """A stage has not run, or what it was run on has changed since."""


class SpecMismatch(UserError):
    """Photographs made with one ImageSpec were handed to something that was made with another."""


class Locked(UserError):
    """Another command holds the writer's lock."""


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """``did you mean 'x'? `` of the name that is closest, with the blank; nothing where none is close."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{close[0]}'? " if close else ""
