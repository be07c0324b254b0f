"""Synthetic photographs laid out as the sets of the field are, a layout a file: for tests, and to try protocols out.

Each module here has a function ``lay_out(identities, images, seed, size_px) -> Layout``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from facetrain.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Drawing:
    """One photograph: where it goes below OUT, and what is drawn: person and photograph, both counted from 1.

    size_px: its side. face_only: cut to the head first, and scaled to ``size_px``. A path that ends in .png is stored
    without loss.
    """

    path: str
    identity: int
    image: int
    size_px: int
    face_only: bool = False


@dataclass(frozen=True)
class Layout:
    """The photographs, and what writes the lists beside them: called with OUT once all are drawn."""

    drawings: list[Drawing]
    write_lists: Callable[[Path], None]


class LayOut(Protocol):
    """What a layout's module has as ``lay_out``. UserError where the numbers are too small for the set."""

    def __call__(self, identities: int, images: int, seed: int, size_px: int) -> Layout: ...


NAMES = tuple(sorted(path.stem.replace("_", "-") for path in Path(__file__).parent.glob("[a-z]*.py")))


def layout_named(name: str) -> LayOut:
    """UserError for a name that is none."""
    if name not in NAMES:
        raise UserError(f"no layout '{name}': {did_you_mean(name, NAMES)}there are {', '.join(NAMES)}")
    lay_out: LayOut = importlib.import_module(f"{__name__}.{name.replace(chr(45), chr(95))}").lay_out
    return lay_out
