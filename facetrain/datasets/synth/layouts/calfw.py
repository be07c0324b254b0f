"""CALFW: ``images/person_00001_0001.jpg``, ``pairs_CALFW.txt`` with two lines a pair, the same-person pairs first."""

from __future__ import annotations

from pathlib import Path

from facetrain.datasets.synth.layouts import Drawing, Layout
from facetrain.datasets.synth.layouts._pairs import Number, folds_of, pairs_of, require, write_lines


def lay_out(identities: int, images: int, seed: int, size_px: int) -> Layout:
    return cross_lfw("calfw", identities, images, size_px)


def cross_lfw(layout: str, identities: int, images: int, size_px: int) -> Layout:
    """The layout ``calfw`` or ``cplfw``. A same-person pair has the number of its fold in the one, 1 in the other."""
    require(layout, identities, images, least_identities=2, least_images=2)
    people, every = range(1, identities + 1), range(1, images + 1)

    def write_lists(out: Path) -> None:
        lines = []
        for pair in sorted(pairs_of(folds_of(people), every, every), key=lambda pair: not pair.same):
            number = (pair.fold + 1 if layout == "calfw" else 1) if pair.same else 0
            lines += [f"{_name(pair.first)} {number}", f"{_name(pair.second)} {number}"]
        write_lines(out / f"pairs_{layout.upper()}.txt", lines)

    return Layout(
        [Drawing(f"images/{_name((p, i))}", p, i, size_px) for p in people for i in every], write_lists
    )


def _name(photograph: Number) -> str:
    return f"person_{photograph[0]:05d}_{photograph[1]:04d}.jpg"
