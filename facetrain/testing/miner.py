"""The contract of a miner, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from facetrain.kernels.mining import Triplets
from facetrain.testing.expect import expect, made, name_of, normal, seeded
from facetrain.train.miners.base import Miner

MARGINS = (0.0, 0.2, 2.0, math.inf)


class Case(NamedTuple):
    """A batch to show to a miner. ``barren``: no triplet can be made of it."""

    name: str
    embeddings: Tensor
    labels: Tensor
    num_anchors: int | None = None
    barren: bool = False


def check_miner(
    make_miner: Callable[..., Miner], *, embedding_dim: int = 16, device: torch.device | str = "cpu"
) -> None:
    """Hold a miner to the contract of `facetrain.train.miners.base.Miner`.

    ``make_miner`` is the class, a `functools.partial` of it, or a function that makes one, and is called without
    arguments. Raises AssertionError, which says on which batch what went wrong.
    """
    check = _MinerCheck(make_miner, embedding_dim, torch.device(device))
    check.every_batch()
    check.chance_comes_from_the_generator()
    check.order_plays_no_part()


class _MinerCheck:
    def __init__(self, make_miner: Callable[..., Miner], embedding_dim: int, device: torch.device) -> None:
        self.name, self.embedding_dim, self.device = name_of(make_miner), embedding_dim, device
        self.miner = made(make_miner)
        expect(
            isinstance(self.miner, Miner),
            f"{self.name} makes {type(self.miner).__name__}, not a facetrain Miner",
        )
        order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
        self.labels = torch.arange(6).repeat_interleave(4)[order].to(device)
        centres = normal(6, embedding_dim, seed=2, device=device)
        self.embeddings = F.normalize(centres[self.labels] + normal(24, embedding_dim, seed=3, device=device))

    def cases(self) -> Iterator[Case]:
        plain, labels = self.embeddings, self.labels
        yield Case("a batch of 6 people", plain, labels)
        yield Case("an empty batch", plain[:0], labels[:0], barren=True)
        yield Case("one photograph", plain[:1], labels[:1], barren=True)
        yield Case("one person", plain[:5], torch.zeros_like(labels[:5]), barren=True)
        yield Case("a photograph of each person", plain, torch.arange(24, device=self.device), barren=True)
        yield Case(
            "two of one person, one of another", plain[:3], torch.tensor([0, 0, 1], device=self.device)
        )
        yield Case("equal rows", plain[:1].expand(24, -1), labels)
        yield Case("people whose rows are equal", plain[labels], labels)
        yield Case("extra negatives", plain, labels, num_anchors=15)
        yield Case("extra negatives alone", plain, labels, num_anchors=0, barren=True)
        yield Case("a batch of 6 people in float64", plain.double(), labels)

    def every_batch(self) -> None:
        found = 0
        for case in self.cases():
            for margin in MARGINS:
                who = f"{self.name} on {case.name} (margin {margin:g})"
                embeddings, labels = case.embeddings.clone().requires_grad_(), case.labels.clone()
                triplets = self.mine(who, embeddings, labels, margin, case.num_anchors)
                self.expect_triplets(who, triplets, labels, case)
                same = torch.equal(case.embeddings, embeddings.detach()) and torch.equal(labels, case.labels)
                expect(same, f"{who}: embeddings or labels were changed in place")
                if case.name == "a batch of 6 people" and margin == math.inf:
                    found = len(triplets)
        expect(found > 0, f"{self.name} finds no triplet in a batch of 6 people × 4 with an infinite margin")

    def mine(
        self,
        who: str,
        embeddings: Tensor,
        labels: Tensor,
        margin: float,
        num_anchors: int | None = None,
        seed: int = 0,
    ) -> Triplets:
        try:
            triplets = self.miner(
                embeddings,
                labels,
                margin=margin,
                generator=seeded(seed, self.device),
                num_anchors=num_anchors,
            )
        except Exception as error:
            raise AssertionError(f"{who}: {type(error).__name__}: {error}") from error
        expect(isinstance(triplets, Triplets), f"{who}: it returns {type(triplets).__name__}, not Triplets")
        return triplets

    def expect_triplets(self, who: str, triplets: Triplets, labels: Tensor, case: Case) -> None:
        rows, num_anchors = len(labels), len(labels) if case.num_anchors is None else case.num_anchors
        parts = {"anchor": triplets.anchor, "positive": triplets.positive, "negative": triplets.negative}
        for name, numbers in parts.items():
            expect(
                numbers.dtype == torch.int64 and numbers.shape == triplets.anchor.shape and numbers.ndim == 1,
                f"{who}: '{name}' is {numbers.dtype} {list(numbers.shape)}; the three must be int64 [t]",
            )
            below = rows if name == "negative" else num_anchors
            expect(
                bool(((numbers >= 0) & (numbers < below)).all()),
                f"{who}: '{name}' is not always from 0 to {below - 1}"
                + (": rows behind num_anchors are negatives only" if below < rows else ""),
            )
        anchor, positive, negative = parts.values()
        expect(bool((anchor != positive).all()), f"{who}: a photograph is its own positive")
        expect(bool((labels[anchor] == labels[positive]).all()), f"{who}: a positive is of another person")
        expect(
            bool((labels[anchor] != labels[negative]).all()), f"{who}: a negative is of the anchor's person"
        )
        pairs = len(torch.unique(anchor * max(rows, 1) + positive))
        expect(
            isinstance(triplets.num_pairs, int) and triplets.num_pairs >= pairs,
            f"{who}: num_pairs is {triplets.num_pairs!r}, with {pairs} pairs among the triplets",
        )
        expect(not (case.barren and len(triplets)), f"{who}: {len(triplets)} triplets where none can be made")

    def chance_comes_from_the_generator(self) -> None:
        results = []
        for noise in (1, 2):
            torch.manual_seed(noise)
            results.append(self.mine(self.name, self.embeddings, self.labels, 0.5, seed=7))
        expect(
            listed(results[0]) == listed(results[1]),
            f"{self.name}: generators in the same state give different triplets: all chance must come from it",
        )
        try:
            self.miner(self.embeddings, self.labels, margin=0.5)
        except Exception as error:
            raise AssertionError(
                f"{self.name} without a generator: {type(error).__name__}: {error}"
            ) from error

    def order_plays_no_part(self) -> None:
        """Of a miner without chance; with chance, it is another draw."""
        order = torch.randperm(24, generator=torch.Generator().manual_seed(5)).to(self.device)
        for margin in MARGINS:
            drawn = [
                self.mine(self.name, self.embeddings, self.labels, margin, seed=seed) for seed in range(4)
            ]
            if any(listed(other) != listed(drawn[0]) for other in drawn[1:]):
                continue
            permuted = self.mine(self.name, self.embeddings[order], self.labels[order], margin)
            expect(
                listed(drawn[0]) == listed(permuted, order),
                f"{self.name}: other triplets are found where the rows are in another order (margin {margin:g})",
            )


def listed(triplets: Triplets, order: Tensor | None = None) -> list[tuple[int, ...]]:
    """The triplets in ascending order, as numbers of the rows that ``order`` was made from."""
    rows = torch.stack([triplets.anchor, triplets.positive, triplets.negative], dim=1)
    return sorted(tuple(row) for row in (rows if order is None else order[rows]).tolist())
