"""File lists of bob.bio.base: ``Default/{norm,dev,eval}/*.lst``, and the photographs in ``images/``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from facetrain.datasets.synth.layouts import Drawing, Layout
from facetrain.errors import UserError
from facetrain.files import write_bytes

LEAST_PEOPLE = 5  # one to train on, two to develop on, two to be measured


def lay_out(identities: int, images: int, seed: int, size_px: int) -> Layout:
    """The people are shared out between training (a fifth), dev and eval. Of each the first half of the photographs is
    enrolled, and the others are probes."""
    if identities < LEAST_PEOPLE or images < 2:
        raise UserError(
            f"the layout bob needs {LEAST_PEOPLE} people with two photographs each, not {identities} with {images}"
        )
    drawings = [
        Drawing(f"images/{_name(person, image)}.jpg", person, image, size_px)
        for person in range(1, identities + 1)
        for image in range(1, images + 1)
    ]
    return Layout(drawings, partial(_write_lists, identities, images))


def _write_lists(identities: int, images: int, out: Path) -> None:
    world = identities // LEAST_PEOPLE
    middle = world + (identities - world) // 2
    everyone = range(1, images + 1)
    enrolled, probed = everyone[: images // 2], everyone[images // 2 :]
    _write(out / "Default/norm/train_world.lst", _lines(range(1, world + 1), everyone, "{file} {person}"))
    for group, people in (("dev", range(world + 1, middle + 1)), ("eval", range(middle + 1, identities + 1))):
        _write(out / f"Default/{group}/for_models.lst", _lines(people, enrolled, "{file} {person} {person}"))
        _write(out / f"Default/{group}/for_probes.lst", _lines(people, probed, "{file} {person}"))


def _lines(people: Iterable[int], images: Iterable[int], line: str) -> list[str]:
    return [
        line.format(file=_name(person, image), person=f"{person:04d}")
        for person in people
        for image in images
    ]


def _name(person: int, image: int) -> str:
    return f"{person:04d}/{image:03d}"  # Bob's lists leave the suffix out


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, ("\n".join(lines) + "\n").encode())
