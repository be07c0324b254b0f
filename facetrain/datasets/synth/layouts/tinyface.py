"""TinyFace: small faces in ``Testing_Set/``; each person's odd photographs are in the gallery, the even ones are probes.
Two strangers for each person are the distractors.

The lists are .csv, which needs no MATLAB.
"""

from __future__ import annotations

from pathlib import Path

from facetrain.datasets.synth.layouts import Drawing, Layout
from facetrain.errors import UserError
from facetrain.files import write_bytes

STRANGERS = 1_000_000  # numbers of people from here on, so that a larger set extends a smaller one
SMALLER = 10  # than the photographs of other sets


def lay_out(identities: int, images: int, seed: int, size_px: int) -> Layout:
    if images < 2:
        raise UserError(
            "TinyFace needs a gallery photograph and a probe of each person: ask for 2 images or more"
        )
    size_px = max(16, size_px // SMALLER)
    drawings = []
    lists: dict[str, list[str]] = {"gallery_match": [], "probe": []}
    for person in range(1, identities + 1):
        for image in range(1, images + 1):
            kind, folder = ("gallery_match", "Gallery_Match") if image % 2 else ("probe", "Probe")
            name = f"{person}_{image}.jpg"
            drawings.append(Drawing(f"Testing_Set/{folder}/{name}", person, image, size_px, face_only=True))
            lists[kind].append(f"{name},{person}")
    for stranger in range(1, 2 * identities + 1):
        path = f"Testing_Set/Gallery_Distractor/{stranger}.jpg"
        drawings.append(Drawing(path, STRANGERS + stranger, 1, size_px, face_only=True))

    def write_lists(out: Path) -> None:
        for kind, lines in lists.items():
            text = "".join(f"{line}\n" for line in lines)
            write_bytes(out / "Testing_Set" / f"{kind}_img_ID_pairs.csv", text.encode())

    return Layout(drawings, write_lists)
