"""AgeDB-30: ``03_Protocol_Images/000010001_Person00001_60_f.jpg``, ``agedb_30_pair.txt``, of pairs 35 years apart.

The list is the one of paths; AgeDB's own is a MATLAB file. No face is drawn older or younger.
"""

from __future__ import annotations

from pathlib import Path

from facetrain.datasets.synth.layouts import Drawing, Layout
from facetrain.datasets.synth.layouts._pairs import folds_of, pairs_of, require, write_lines


def lay_out(identities: int, images: int, seed: int, size_px: int) -> Layout:
    require("agedb-30", identities, images, least_identities=2, least_images=2)
    people, every = range(1, identities + 1), range(1, images + 1)

    def write_lists(out: Path) -> None:
        pairs = pairs_of(folds_of(people), every[::2], every[1::2])
        write_lines(
            out / "agedb_30_pair.txt",
            [f"{_name(*pair.first)} {_name(*pair.second)} {int(pair.same)}" for pair in pairs],
        )

    return Layout(
        [Drawing(f"03_Protocol_Images/{_name(p, i)}", p, i, size_px) for p in people for i in every],
        write_lists,
    )


def _name(person: int, image: int) -> str:
    return f"{person:05d}{image:04d}_Person{person:05d}_{60 if image % 2 else 25}_{'mf'[person % 2]}.jpg"
