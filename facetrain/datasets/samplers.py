"""Which photographs make up a batch. Deterministic in (seed, epoch); no state is carried from epoch to epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from facetrain.errors import UserError


@dataclass(frozen=True)
class Draw:
    """Positions of a batch's photographs, int64; those behind the first ``num_anchors`` are extra negatives."""

    positions: np.ndarray
    num_anchors: int


class PeopleSampler:
    """Batches of P people with up to K photographs each, as triplet losses want them (FaceNet, OpenFace).

    Every person with two or more photographs comes once in a round, in an order drawn anew for each; a person with
    more than K photographs shows others in the next round, until all have been seen. The last batch of a round is
    filled from the next one, without anyone twice in a batch. An epoch is as many batches as show about as many
    photographs as there are, or ``batches_per_epoch``.

    extra_negatives: random photographs of anyone (single-photograph people included) behind the P × K, which serve as
    negatives only.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        seed: int,
        people_per_batch: int,
        images_per_person: int,
        extra_negatives: int = 0,
        batches_per_epoch: int | None = None,
    ) -> None:
        order = np.argsort(labels, kind="stable")
        counts = np.bincount(labels)
        of_person = np.split(order, np.cumsum(counts)[:-1])
        self._of_person = [positions for positions in of_person if len(positions) >= 2]
        if len(self._of_person) < 2:
            raise UserError(
                f"{len(self._of_person)} people with two or more photographs are left to train on, at least 2 are "
                f"needed: `ft prune --min 2` or more photographs per person"
            )
        if images_per_person < 2:
            raise UserError(f"--images {images_per_person}: a triplet needs at least 2 photographs of a person")
        self.people = min(people_per_batch, len(self._of_person))
        if self.people < 2:
            raise UserError(f"--people {people_per_batch}: a triplet needs at least 2 people")
        self.images, self.extra_negatives = images_per_person, extra_negatives
        self._labels, self.seed = labels, seed
        drawn = sum(min(len(positions), images_per_person) for positions in self._of_person)
        per_batch = drawn / len(self._of_person) * self.people
        self._length = batches_per_epoch or max(1, round(sum(map(len, self._of_person)) / per_batch))

    def __len__(self) -> int:
        return self._length

    @property
    def max_batch(self) -> int:
        """The most photographs that a batch can hold."""
        return self.people * self.images + self.extra_negatives

    def epoch(self, epoch: int) -> Iterator[Draw]:
        """The epoch's batches."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        shuffled = [rng.permutation(positions) for positions in self._of_person]
        shown = np.zeros(len(shuffled), np.int64)
        queue: list[int] = []
        for _ in range(self._length):
            while len(queue) < self.people:
                # Those still waiting come first; the new round is put so that none of them is twice in this batch.
                waiting = set(queue)
                round_ = rng.permutation(len(shuffled)).tolist()
                queue += [p for p in round_ if p not in waiting] + [p for p in round_ if p in waiting]
            people, queue = queue[: self.people], queue[self.people :]
            positions = np.concatenate([self._next(shuffled[p], shown, p) for p in people])
            yield Draw(self._with_extra(positions, rng), len(positions))

    def _next(self, photographs: np.ndarray, shown: np.ndarray, person: int) -> np.ndarray:
        count = min(self.images, len(photographs))
        start = shown[person]
        shown[person] += count
        return photographs[(start + np.arange(count)) % len(photographs)]

    def _with_extra(self, positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self.extra_negatives:
            return positions
        people = np.unique(self._labels[positions])
        drawn = rng.integers(len(self._labels), size=4 * self.extra_negatives)
        others = drawn[~np.isin(self._labels[drawn], people)]
        first = np.sort(np.unique(others, return_index=True)[1])  # each once, in the order drawn
        return np.concatenate([positions, others[first][: self.extra_negatives]])
