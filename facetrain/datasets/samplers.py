"""Which photographs make up a batch. Deterministic in (seed, epoch); no state is carried from epoch to epoch."""

from __future__ import annotations

from collections import deque
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
    """Batches of P people × K photographs, as triplet losses want them (FaceNet, OpenFace).

    A person with fewer than K photographs gives all of them, and further people fill the batch up to P·K. Everyone
    with two or more photographs comes once in a round, in an order drawn anew for each; people with more than K show
    others in the next round, until all have been seen. Nobody is twice in a batch. An epoch is as many batches as hold
    as many photographs as there are, or ``batches_per_epoch``.

    extra_negatives: random photographs of anyone else (of single-photograph people too) behind the P·K, which serve as
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
        if people_per_batch < 2:
            raise UserError(f"{people_per_batch} people in a batch: a triplet needs at least 2")
        if images_per_person < 2:
            raise UserError(
                f"{images_per_person} photographs of a person in a batch: a triplet needs at least 2"
            )
        order = np.argsort(labels, kind="stable")
        of_person = np.split(order, np.cumsum(np.bincount(labels))[:-1])
        self._of_person = [positions for positions in of_person if len(positions) >= 2]
        if len(self._of_person) < 2:
            raise UserError(
                f"only {len(self._of_person)} of the training people has two or more photographs, at least 2 people are "
                f"needed: `ft prune --min` with a smaller number keeps more"
            )
        self.images, self.extra_negatives = images_per_person, extra_negatives
        self._room = people_per_batch * images_per_person
        self._labels, self.seed = labels, seed
        in_a_round = sum(min(len(positions), images_per_person) for positions in self._of_person)
        photographs = sum(len(positions) for positions in self._of_person)
        self._length = batches_per_epoch or max(1, round(photographs / min(self._room, in_a_round)))

    def __len__(self) -> int:
        return self._length

    @property
    def max_batch(self) -> int:
        """The most photographs that a batch can hold."""
        return self._room + self.extra_negatives

    def epoch(self, epoch: int) -> Iterator[Draw]:
        """The epoch's batches."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        shuffled = [rng.permutation(positions) for positions in self._of_person]
        shown = np.zeros(len(shuffled), np.int64)
        queue: deque[int] = deque()
        for _ in range(self._length):
            parts: dict[int, np.ndarray] = {}
            twice = []
            room = self._room
            while room >= 2 and len(parts) < len(shuffled):
                if not queue:
                    queue.extend(rng.permutation(len(shuffled)).tolist())
                person = queue.popleft()
                if person in parts:
                    twice.append(person)  # of the next round: for the next batch
                    continue
                parts[person] = self._next(shuffled[person], shown, person, room)
                room -= len(parts[person])
            queue.extendleft(reversed(twice))
            positions = np.concatenate(list(parts.values()))
            yield Draw(self._with_extra(positions, rng), len(positions))

    def _next(self, photographs: np.ndarray, shown: np.ndarray, person: int, room: int) -> np.ndarray:
        count = min(self.images, len(photographs), room)
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
