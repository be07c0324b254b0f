"""The contract of an embedder, checked on synthetic crops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from facetrain.image_spec import ImageSpec
from facetrain.testing.expect import expect, name_of

TOLERANCE = 1e-4  # of the cosine: products in batches of other sizes round otherwise


def check_embedder(make_embedder: Callable[[], Any]) -> None:
    """Hold an embedder to the contract of `facetrain.evaluate.embedders.base.Embedder`.

    ``make_embedder`` is the class or a function that makes one, and is called without arguments. Raises AssertionError,
    which says what went wrong.
    """
    check = _EmbedderCheck(make_embedder)
    check.embeddings()
    check.company_plays_no_part()
    check.crops_stay_as_they_are()


class _EmbedderCheck:
    def __init__(self, make_embedder: Callable[[], Any]) -> None:
        from facetrain.datasets.synth import draw_face
        from facetrain.evaluate.embedders.base import Embedder

        self.name = name_of(make_embedder)
        self.embedder = make_embedder()
        expect(
            isinstance(self.embedder, Embedder),
            f"{self.name} makes a {type(self.embedder).__name__}, no Embedder",
        )
        spec = self.embedder.spec
        expect(isinstance(spec, ImageSpec), f"{self.name}: spec is {spec!r}, not an ImageSpec")
        self.crops = np.stack([draw_face(1, person, 1, size_px=spec.size_px) for person in range(1, 6)])

    def of(self, which: str, crops: np.ndarray) -> np.ndarray:
        try:
            found = self.embedder.of(crops)
        except Exception as error:
            raise AssertionError(f"{self.name} on {which}: {type(error).__name__}: {error}") from error
        expect(
            isinstance(found, np.ndarray)
            and found.ndim == 2
            and len(found) == len(crops)
            and found.dtype == np.float32,
            f"{self.name} on {which}: it must return float32 [{len(crops)}, D], not "
            f"{getattr(found, 'dtype', type(found).__name__)} {getattr(found, 'shape', '')}",
        )
        expect(bool(np.isfinite(found).all()), f"{self.name} on {which}: an embedding is not finite")
        return found

    def embeddings(self) -> None:
        found = self.of("five crops", self.crops)
        distances = np.abs(found[:, None] - found[None]).sum(2)[~np.eye(5, dtype=bool)]
        expect(bool((distances > 0).all()), f"{self.name}: different people have the same embedding")
        grey = np.full_like(self.crops[:1], 127)
        expect(
            self.of("a grey crop", grey).shape[1] == found.shape[1],
            f"{self.name}: D changes from call to call",
        )

    def company_plays_no_part(self) -> None:
        whole = self.embedder.embed([self.crops])
        for says, batches, order in (
            ("alone", [self.crops[i : i + 1] for i in range(5)], slice(None)),
            ("in another order", [self.crops[::-1].copy()], slice(None, None, -1)),
            ("in batches of three and two", [self.crops[:3], self.crops[3:]], slice(None)),
        ):
            cosines = (self.embedder.embed(batches)[order] * whole).sum(1)
            expect(
                bool((cosines > 1 - TOLERANCE).all()),
                f"{self.name}: crops shown {says} have other embeddings (cosine {cosines.min():.4f} to those before)",
            )

    def crops_stay_as_they_are(self) -> None:
        before = self.crops.copy()
        self.of("five crops", self.crops)
        expect(np.array_equal(before, self.crops), f"{self.name} changes crops in place")
