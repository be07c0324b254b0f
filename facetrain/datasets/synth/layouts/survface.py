"""QMUL-SurvFace: small faces. Each person's odd photographs are the gallery, the even ones the mated probes; as many
strangers are the unmated probes. Others are compared in pairs, two photographs each.

The lists are .csv, which needs no MATLAB.
"""

from __future__ import annotations

from pathlib import Path

from facetrain.datasets.synth.layouts import Drawing, Layout
from facetrain.errors import UserError
from facetrain.files import write_bytes

STRANGERS, COMPARED = (
    1_000_000,
    2_000_000,
)  # numbers of people from here on: a larger set extends a smaller one
SMALLER = 10  # than the photographs of other sets


def lay_out(identities: int, images: int, seed: int, size_px: int) -> Layout:
    if images < 2:
        raise UserError(
            "SurvFace needs a gallery photograph and a probe of each person: ask for 2 images or more"
        )
    if identities < 2:
        raise UserError("SurvFace compares people with each other: ask for 2 identities or more")
    size_px = max(16, size_px // SMALLER)
    drawings: list[Drawing] = []

    def draw(folder: str, person: int, image: int) -> str:
        name = f"{person}_cam{1 + image % 3}_{image}.jpg"
        drawings.append(Drawing(f"{folder}/{name}", person, image, size_px, face_only=True))
        return name

    search, compare = "Face_Identification_Test_Set", "Face_Verification_Test_Set"
    lists: dict[str, list[str]] = {}
    for kind, first in (("gallery", 1), ("mated_probe", 2)):
        lines = lists.setdefault(f"{search}/{kind}_img_ID_pairs.csv", [])
        for person in range(1, identities + 1):
            for image in range(first, images + 1, 2):
                lines.append(f"{draw(f'{search}/{kind}', person, image)},{person}")
    for stranger in range(1, identities + 1):
        draw(f"{search}/unmated_probe", STRANGERS + stranger, 1)
    people = range(1, identities + 1)
    names = [[draw(f"{compare}/verification_images", COMPARED + p, i) for i in (1, 2)] for p in people]
    lists[f"{compare}/positive_pairs_names.csv"] = [f"{a},{b}" for a, b in names]
    neighbours = zip(names, names[1:] + names[:1], strict=True)
    lists[f"{compare}/negative_pairs_names.csv"] = [f"{own[0]},{other[1]}" for own, other in neighbours]

    def write_lists(out: Path) -> None:
        for path, lines in lists.items():
            write_bytes(out / path, "".join(f"{line}\n" for line in lines).encode())

    return Layout(drawings, write_lists)
