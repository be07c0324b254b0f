"""insightface's verification set: ``pairs.bin``, made of ``faces/person_00001_0001.jpg``, ten folds one after the other.

The faces are cut out and scaled, not aligned. Theirs are of 112 pixels: `ft synth OUT --layout bin --size 112`.
"""

from __future__ import annotations

import pickle
from pathlib import Path

from facetrain.datasets.synth.layouts import Drawing, Layout
from facetrain.datasets.synth.layouts._pairs import Number, folds_of, pairs_of, require
from facetrain.files import write_if_changed


def lay_out(identities: int, images: int, seed: int, size_px: int) -> Layout:
    require("bin", identities, images, least_identities=2, least_images=2)
    people, every = range(1, identities + 1), range(1, images + 1)

    def write_lists(out: Path) -> None:
        pairs = pairs_of(folds_of(people), every, every)
        encoded = {number: (out / _path(number)).read_bytes() for pair in pairs for number in pair[:2]}
        photographs = [encoded[number] for pair in pairs for number in pair[:2]]
        write_if_changed(out / "pairs.bin", pickle.dumps((photographs, [pair.same for pair in pairs]), 4))

    return Layout(
        [Drawing(_path((p, i)), p, i, size_px, face_only=True) for p in people for i in every], write_lists
    )


def _path(photograph: Number) -> str:
    return f"faces/person_{photograph[0]:05d}_{photograph[1]:04d}.jpg"
