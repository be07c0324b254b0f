"""CPLFW: ``images/person_00001_0001.jpg``, ``pairs_CPLFW.txt`` with two lines a pair, the same-person pairs first."""

from __future__ import annotations

from facetrain.datasets.synth.layouts import Layout
from facetrain.datasets.synth.layouts.calfw import cross_lfw


def lay_out(identities: int, images: int, seed: int, size_px: int) -> Layout:
    return cross_lfw("cplfw", identities, images, size_px)
