"""The contract of a sampler, checked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from facetrain.datasets.loader import Sampler
from facetrain.datasets.samplers import Draw
from facetrain.testing.expect import expect, name_of

SEED, EPOCHS = 5, (0, 3, 1)


def check_sampler(make_sampler: Callable[..., Sampler], *, people: int = 40) -> None:
    """Hold a sampler to its contract: a function of (seed, epoch), from any position on.

    ``make_sampler`` is the class or a `functools.partial` of it with the arguments that a trainer would give; it is
    called with labels, ``seed`` and ``batches_per_epoch``, as facetrain does. people: how many there are to choose
    from, with 1 to 12 photographs each. Raises AssertionError, which says what went wrong.
    """
    check = _SamplerCheck(make_sampler, people)
    check.draws()
    check.is_a_function_of_seed_and_epoch()
    check.goes_on_from_any_position()
    check.batches_per_epoch()


class _SamplerCheck:
    def __init__(self, make_sampler: Callable[..., Sampler], people: int) -> None:
        self.make_sampler, self.name = make_sampler, name_of(make_sampler)
        rng = np.random.Generator(np.random.Philox(1))
        self.labels = rng.permutation(np.repeat(np.arange(people), rng.integers(1, 13, people)))

    def sampler(self, seed: int = SEED, batches_per_epoch: int | None = None) -> Sampler:
        labels = self.labels.copy()
        try:
            sampler = self.make_sampler(labels, seed=seed, batches_per_epoch=batches_per_epoch)
        except TypeError as error:
            raise AssertionError(
                f"{self.name} cannot be called with labels, seed and batches_per_epoch: {error}"
            ) from error
        expect(np.array_equal(labels, self.labels), f"{self.name} changes the labels in place")
        return sampler

    def draws(self) -> None:
        sampler = self.sampler()
        length = len(sampler)
        expect(length > 0, f"{self.name}: an epoch has no batches")
        for epoch in EPOCHS:
            count = 0
            for position, draw in enumerate(itertools.islice(sampler.epoch(epoch), length + 1)):
                self.draw(f"{self.name}, epoch {epoch}, batch {position}", draw, sampler.max_batch)
                count += 1
            expect(
                count == length,
                f"{self.name}: {count} batches or more in epoch {epoch}, where its len() is {length}",
            )

    def draw(self, who: str, draw: Any, max_batch: int) -> None:
        expect(isinstance(draw, Draw), f"{who}: it yields {type(draw).__name__}, not a Draw")
        positions, num_anchors = draw
        expect(
            isinstance(positions, np.ndarray) and positions.dtype == np.int64 and positions.ndim == 1,
            f"{who}: positions are {getattr(positions, 'dtype', type(positions).__name__)}, not int64 [n]",
        )
        expect(
            0 < len(positions) <= max_batch,
            f"{who}: {len(positions)} photographs, with max_batch {max_batch}",
        )
        least, most = int(positions.min()), int(positions.max())
        expect(
            least >= 0 and most < len(self.labels),
            f"{who}: positions from {least} to {most}, of {len(self.labels)} photographs",
        )
        expect(
            isinstance(num_anchors, int) and 0 <= num_anchors <= len(positions),
            f"{who}: num_anchors is {num_anchors!r}, of {len(positions)} photographs",
        )

    def is_a_function_of_seed_and_epoch(self) -> None:
        one, other = self.sampler(), self.sampler()
        first = {epoch: list(one.epoch(epoch)) for epoch in EPOCHS}
        np.random.seed(len(self.labels))
        for epoch in reversed(EPOCHS):
            expect(
                same(first[epoch], other.epoch(epoch)),
                f"{self.name}: two of the same seed differ in epoch {epoch}; it must follow from seed and epoch alone",
            )
            expect(
                same(first[epoch], one.epoch(epoch)),
                f"{self.name}: epoch {epoch} is another when asked again",
            )
        epochs = [first[epoch] for epoch in EPOCHS]
        expect(
            not same(epochs[0], epochs[1]), f"{self.name}: epochs {EPOCHS[0]} and {EPOCHS[1]} are the same"
        )
        expect(
            not same(epochs[0], self.sampler(seed=SEED + 1).epoch(EPOCHS[0])),
            f"{self.name}: epochs of different seeds are the same",
        )

    def goes_on_from_any_position(self) -> None:
        sampler = self.sampler()
        whole = list(sampler.epoch(2))
        for start in sorted({0, 1, len(whole) // 2, len(whole) - 1, len(whole)}):
            expect(
                same(whole[start:], sampler.epoch(2, start)),
                f"{self.name}: epoch(2, {start}) is not the rest of epoch(2) from batch {start} on",
            )

    def batches_per_epoch(self) -> None:
        for count in (1, 2):
            sampler = self.sampler(batches_per_epoch=count)
            expect(
                len(sampler) <= count, f"{self.name}: {len(sampler)} batches with batches_per_epoch = {count}"
            )
            found = sum(1 for _ in itertools.islice(sampler.epoch(0), count + 1))
            expect(
                found == len(sampler),
                f"{self.name}: {found} batches in an epoch, where its len() is {len(sampler)}",
            )


def same(one: Iterable[Draw], other: Iterable[Draw]) -> bool:
    """The same photographs in the same order, with the same anchors."""
    pairs = itertools.zip_longest(one, other)
    return all(
        a is not None
        and b is not None
        and a.num_anchors == b.num_anchors
        and np.array_equal(a.positions, b.positions)
        for a, b in pairs
    )
