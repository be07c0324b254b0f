"""Which photographs make up a batch. Deterministic in (seed, epoch); no state is carried from epoch to epoch.

Positions are those of a `PhotoSet`, in the order of the index: how the cache is divided into shards plays no part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from facetrain.errors import UserError


class Draw(NamedTuple):
    """Positions of a batch's photographs, int64; those behind the first ``num_anchors`` are extra negatives."""

    positions: np.ndarray
    num_anchors: int


class ShuffledSampler:
    """Every photograph once an epoch, in an order drawn anew for each; the last batch may be smaller.

    drop_last: leave that one out, unless it is the only one. batches_per_epoch: only so many, of an epoch that would
    have more.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        seed: int,
        batch_size: int = 256,
        drop_last: bool = False,
        batches_per_epoch: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"{batch_size} photographs in a batch: at least 1 is needed")
        if not len(labels):
            raise UserError("no photographs to draw batches from")
        self.seed, self.batch_size, self._count = seed, batch_size, len(labels)
        self._length = _num_batches(len(labels), batch_size, drop_last, batches_per_epoch)

    def __len__(self) -> int:
        return self._length

    @property
    def max_batch(self) -> int:
        """The most photographs that a batch can hold."""
        return self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Draw]:
        """The epoch's batches from position ``start`` on."""
        order = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(self._count)
        for position in range(start, self._length):
            drawn = order[position * self.batch_size : (position + 1) * self.batch_size]
            yield Draw(drawn, len(drawn))


class ViewsSampler(ShuffledSampler):
    """Every photograph once an epoch, ``views`` times side by side: the augmentation makes each of them another view.

    For learning without labels (SimCLR). batch_size: photographs in a batch, of which ``views`` times as many views are
    made. A last batch that is smaller is left out, unless it is the only one.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        seed: int,
        batch_size: int = 128,
        views: int = 2,
        batches_per_epoch: int | None = None,
    ) -> None:
        if views < 1:
            raise UserError(f"{views} views of each photograph: at least 1 is needed")
        super().__init__(
            labels, seed=seed, batch_size=batch_size, drop_last=True, batches_per_epoch=batches_per_epoch
        )
        self.views = views

    @property
    def max_batch(self) -> int:
        return self.batch_size * self.views

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Draw]:
        for draw in super().epoch(epoch, start):
            yield Draw(np.repeat(draw.positions, self.views), draw.num_anchors * self.views)


class PairsSampler:
    """Two photographs of a person side by side, and so on: places 0 and 1 are of one person, 2 and 3 of one, …

    Every photograph once an epoch, with a partner drawn anew for each; where a person has an odd number, one of them
    comes twice, and who has a single photograph is paired with it. A person with many photographs gives many pairs,
    two of which may be in one batch. A last batch that is smaller is left out, unless it is the only one.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        seed: int,
        pairs_per_batch: int = 64,
        batches_per_epoch: int | None = None,
    ) -> None:
        if pairs_per_batch < 1:
            raise UserError(f"{pairs_per_batch} pairs in a batch: at least 1 is needed")
        if not len(labels):
            raise UserError("no photographs to draw batches from")
        self.seed, self.pairs_per_batch, self._labels = seed, pairs_per_batch, labels
        counts = np.bincount(labels)
        self._first = np.cumsum(counts) - counts  # where each person's begin, sorted by person
        num_pairs = int(((counts + 1) // 2).sum())
        self._length = _num_batches(num_pairs, pairs_per_batch, True, batches_per_epoch)

    def __len__(self) -> int:
        return self._length

    @property
    def max_batch(self) -> int:
        """The most photographs that a batch can hold."""
        return 2 * self.pairs_per_batch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Draw]:
        """The epoch's batches from position ``start`` on."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        shuffled = rng.permutation(len(self._labels))
        rows = shuffled[
            np.argsort(self._labels[shuffled], kind="stable")
        ]  # people together, each in any order
        first = self._first[self._labels[rows]]
        place = np.arange(len(rows))
        one = np.flatnonzero((place - first) % 2 == 0)
        other = np.where(np.append(first[1:], -1)[one] == first[one], one + 1, first[one])
        pairs = rng.permutation(np.stack([rows[one], rows[other]], axis=1))
        for position in range(start, self._length):
            drawn = pairs[position * self.pairs_per_batch : (position + 1) * self.pairs_per_batch].reshape(-1)
            yield Draw(drawn, len(drawn))


def _num_batches(count: int, batch_size: int, drop_last: bool, most: int | None) -> int:
    """Batches of ``count`` things, at least one; ``most``: not more than so many."""
    batches = max(1, count // batch_size) if drop_last else -(-count // batch_size)
    return min(most or batches, batches)


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
            raise UserError(f"{people_per_batch} people in a batch: at least 2 are needed, to compare")
        if images_per_person < 2:
            raise UserError(
                f"{images_per_person} photographs of a person in a batch: at least 2 are needed, to compare"
            )
        order = np.argsort(labels, kind="stable")
        counts = np.bincount(labels)
        first = np.cumsum(counts) - counts
        # Our people are sorted by how many photographs they have: those of as many are shuffled in one go.
        self._sizes = np.sort(counts[counts >= 2])
        self._blocks = [
            order[first[counts == size][:, None] + np.arange(size)] for size in np.unique(self._sizes)
        ]
        if len(self._sizes) < 2:
            raise UserError(
                f"only {len(self._sizes)} of the training people with two or more photographs, at least 2 people are "
                f"needed: `ft prune --min` with a smaller number keeps more"
            )
        self.images, self.extra_negatives = images_per_person, extra_negatives
        self._room = people_per_batch * images_per_person
        self._labels, self.seed = labels, seed
        self._first = np.cumsum(self._sizes) - self._sizes  # where each person's begin
        in_a_round = int(np.minimum(self._sizes, images_per_person).sum())
        per_batch = min(self._room, in_a_round)
        self._length = batches_per_epoch or max(1, round(int(self._sizes.sum()) / per_batch))

    def __len__(self) -> int:
        return self._length

    @property
    def max_batch(self) -> int:
        """The most photographs that a batch can hold."""
        return self._room + self.extra_negatives

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Draw]:
        """The epoch's batches from position ``start`` on."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        shuffled = np.concatenate([rng.permuted(block, axis=1).reshape(-1) for block in self._blocks])
        queue = rng.permutation(len(self._sizes))
        shown = np.zeros(len(self._sizes), np.int64)
        for position in range(self._length):
            people, counts, queue = self._choose(queue, rng)
            # Of each, the photographs behind those that were shown last.
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            who = np.repeat(people, counts)
            chosen = shuffled[self._first[who] + (shown[who] + within) % self._sizes[who]]
            shown[people] += counts
            draw = Draw(self._with_extra(chosen, rng), len(chosen))
            if position >= start:
                yield draw

    def _choose(
        self, queue: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The people of a batch in the order of the queue, how many photographs of each, and the queue that is left.

        A queue is the rest of a round, in which nobody is twice. Where it does not fill the batch, the next round's
        people follow, and those who are in the batch already stay in the queue for the next batch.
        """
        people = queue[: self._room // 2 + 1]  # no more can be needed
        full = self._fill(people)
        rest = queue[len(full) :]
        if len(full) == len(people) and full.sum() < self._room - 1 and len(people) < len(self._sizes):
            following = rng.permutation(len(self._sizes))
            new = ~np.isin(following, people)
            people = np.concatenate([people, following[new]])
            full = self._fill(people)
            people = people[: len(full)]
            rest = following[~np.isin(following, people[len(queue) :])]
        return people[: len(full)], full, rest

    def _fill(self, people: np.ndarray) -> np.ndarray:
        """How many photographs of each of the first of these people fill the batch; at least two of each."""
        counts = np.minimum(self._sizes[people], self.images)
        total = np.cumsum(counts)
        needed = (
            int(np.searchsorted(total, self._room - 1)) + 1
        )  # room for one photograph is left: it has no partner
        if needed <= len(people):
            counts = counts[:needed]
            counts[-1] -= max(0, total[needed - 1] - self._room)
        return counts

    def _with_extra(self, positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self.extra_negatives:
            return positions
        people = np.unique(self._labels[positions])
        drawn = rng.integers(len(self._labels), size=4 * self.extra_negatives)
        others = drawn[~np.isin(self._labels[drawn], people)]
        first = np.sort(np.unique(others, return_index=True)[1])  # each once, in the order drawn
        return np.concatenate([positions, others[first][: self.extra_negatives]])
