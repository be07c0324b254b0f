"""The image-similarity challenge: ``queries/``, ``references/`` and ``ground_truth.csv``.

Other than there a query is no edited copy of its reference, but another photograph of the same person.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from facetrain.datasets.synth.layouts import Drawing, Layout
from facetrain.errors import UserError
from facetrain.files import write_bytes

LEAST_PEOPLE = 4


def lay_out(identities: int, images: int, seed: int, size_px: int) -> Layout:
    """Of every four people one has queries only and one a reference only; the others' first photograph is the reference of
    all their further ones."""
    if identities < LEAST_PEOPLE or images < 2:
        raise UserError(
            f"the layout isc needs {LEAST_PEOPLE} people with two photographs each, not {identities} with {images}"
        )
    drawings, truth = [], []
    for person in range(1, identities + 1):
        reference = f"R{person:06d}"
        if person % 4 != 1:
            drawings.append(Drawing(f"references/{reference}.jpg", person, 1, size_px))
        for image in range(2, images + 1) if person % 4 != 2 else ():
            query = f"Q{person:05d}{image:03d}"
            drawings.append(Drawing(f"queries/{query}.jpg", person, image, size_px))
            truth.append(f"{query},{'' if person % 4 == 1 else reference}\n")
    return Layout(drawings, partial(_write_lists, truth))


def _write_lists(truth: list[str], out: Path) -> None:
    write_bytes(out / "ground_truth.csv", ("query_id,reference_id\n" + "".join(truth)).encode())
