"""CFP: ``Data/Images/001/frontal/01.jpg``, ``Protocol/Pair_list_F.txt`` and ``Protocol/Split/FP/01/same.txt``.

Five of seven photographs are called frontal and two profile, as in CFP; no face is drawn in profile.
"""

from __future__ import annotations

from pathlib import Path

from facetrain.datasets.synth.layouts import Drawing, Layout
from facetrain.datasets.synth.layouts._pairs import Number, folds_of, pairs_of, require, write_lines


def lay_out(identities: int, images: int, seed: int, size_px: int) -> Layout:
    require("cfp-fp", identities, images, least_identities=2, least_images=3)
    people = range(1, identities + 1)
    kinds = {
        "frontal": [image for image in range(1, images + 1) if image % 7 not in (3, 6)],
        "profile": [image for image in range(1, images + 1) if image % 7 in (3, 6)],
    }

    def write_lists(out: Path) -> None:
        number_of: dict[Number, int] = {}
        for kind, numbers in kinds.items():
            lines: list[str] = []
            for person in people:
                for at, image in enumerate(numbers, start=1):
                    number_of[person, image] = len(lines) + 1
                    lines.append(f"{len(lines) + 1} ../Data/Images/{person:03d}/{kind}/{at:02d}.jpg")
            write_lines(out / f"Protocol/Pair_list_{kind[0].upper()}.txt", lines)
        folds = folds_of(people)
        for split, second in (("FP", "profile"), ("FF", "frontal")):
            pairs = pairs_of(folds, kinds["frontal"], kinds[second])
            for fold in range(len(folds)):
                for name, same in (("same", True), ("diff", False)):
                    lines = [
                        f"{number_of[pair.first]},{number_of[pair.second]}"
                        for pair in pairs
                        if (pair.fold, pair.same) == (fold, same)
                    ]
                    write_lines(out / f"Protocol/Split/{split}/{fold + 1:02d}/{name}.txt", lines)

    return Layout(
        [
            Drawing(f"Data/Images/{person:03d}/{kind}/{at:02d}.jpg", person, image, size_px)
            for person in people
            for kind, numbers in kinds.items()
            for at, image in enumerate(numbers, start=1)
        ],
        write_lists,
    )
