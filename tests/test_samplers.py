"""Who is in a batch: everyone in turn, nobody twice, the same at every run."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facetrain.datasets.samplers import Draw, PairsSampler, PeopleSampler, ShuffledSampler, ViewsSampler
from facetrain.errors import UserError
from facetrain.plugins import BUILT_IN, resolve
from facetrain.testing.sampler import check_sampler

COUNTS = st.lists(st.integers(1, 9), min_size=2, max_size=30).filter(
    lambda counts: sum(c >= 2 for c in counts) >= 2
)


def labels_of(counts: list[int], seed: int = 0) -> np.ndarray:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(seed).permutation(labels)


def sampler_of(labels: np.ndarray, people: int = 4, images: int = 3, **options: int) -> PeopleSampler:
    return PeopleSampler(labels, people_per_batch=people, images_per_person=images, **{"seed": 0} | options)


@settings(max_examples=80, deadline=None)
@given(COUNTS, st.integers(2, 12), st.integers(2, 6), st.integers(0, 3))
def test_every_batch(counts: list[int], people: int, images: int, epoch: int) -> None:
    labels = labels_of(counts)
    sampler = sampler_of(labels, people, images, batches_per_epoch=7)
    assert len(sampler) == 7
    able = sum(count >= 2 for count in counts)
    draws = list(sampler.epoch(epoch))
    assert len(draws) == 7
    for draw in draws:
        assert draw.positions.dtype == np.int64
        assert draw.num_anchors == len(draw.positions) <= people * images <= sampler.max_batch
        assert len(set(draw.positions.tolist())) == len(draw.positions), "no photograph twice"
        of_person = Counter(labels[draw.positions].tolist())
        assert all(2 <= number <= images for number in of_person.values()), "everyone has a pair"
        # As many photographs as there is room for, short of one that would have no partner.
        most = sum(sorted((min(c, images) for c in counts if c >= 2), reverse=True))
        assert len(draw.positions) >= min(people * images - 1, most)
        assert len(of_person) <= able
        runs = np.flatnonzero(np.diff(labels[draw.positions])) + 1
        assert len(runs) + 1 == len(of_person), "a person's photographs lie together"


@settings(max_examples=80, deadline=None)
@given(COUNTS, st.integers(2, 12), st.integers(2, 6))
def test_everyone_in_turn(counts: list[int], people: int, images: int) -> None:
    """At no moment has anyone been drawn two times oftener than somebody else."""
    labels = labels_of(counts)
    able = [person for person, count in enumerate(counts) if count >= 2]
    drawn = Counter(dict.fromkeys(able, 0))
    for draw in sampler_of(labels, people, images, batches_per_epoch=25).epoch(0):
        drawn.update(set(labels[draw.positions].tolist()))
        assert set(drawn) == set(able), "people with a single photograph are left out"
        assert max(drawn.values()) - min(drawn.values()) <= 2
    assert max(drawn.values()) > 0


def test_all_photographs_of_a_person_are_seen_before_any_comes_again() -> None:
    labels = labels_of([7, 7, 7])
    seen: dict[int, Counter] = {person: Counter() for person in range(3)}
    for draw in sampler_of(labels, people=3, images=3, batches_per_epoch=14).epoch(0):
        for position in draw.positions.tolist():
            seen[labels[position]][position] += 1
        for counter in seen.values():
            if len(counter) < 7:
                assert set(counter.values()) == {1}
            assert max(counter.values()) - min(counter.values()) <= 1
    assert all(set(counter.values()) == {6} for counter in seen.values())


def test_an_epoch_holds_about_as_many_photographs_as_there_are() -> None:
    rng = np.random.default_rng(1)
    for counts in (rng.integers(2, 40, 200), rng.integers(1, 4, 300), np.full(50, 2)):
        labels = labels_of(counts.tolist())
        draws = list(sampler_of(labels, people=10, images=5).epoch(0))
        usable = sum(count for count in counts if count >= 2)
        assert abs(sum(draw.num_anchors for draw in draws) - usable) <= 0.1 * usable + 50


def same(a: list[Draw], b: list[Draw]) -> bool:
    return all(
        x.positions.tolist() == y.positions.tolist() and x.num_anchors == y.num_anchors
        for x, y in zip(a, b, strict=True)
    )


def test_seed_and_epoch_decide() -> None:
    labels = labels_of([6] * 20)

    def epoch(number: int, **options: int) -> list[Draw]:
        return list(sampler_of(labels, extra_negatives=3, **options).epoch(number))

    used = sampler_of(labels, extra_negatives=3)
    list(used.epoch(0))
    assert same(list(used.epoch(5)), epoch(5)), "no state is carried from epoch to epoch"
    assert not same(epoch(0), epoch(1))
    assert not same(epoch(0), epoch(0, seed=1))


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(1, 20), st.integers(0, 9))
def test_extra_negatives_are_of_other_people(counts: list[int], extra: int, seed: int) -> None:
    labels = labels_of(counts)
    sampler = sampler_of(labels, people=3, images=3, extra_negatives=extra, batches_per_epoch=4, seed=seed)
    for draw in sampler.epoch(0):
        anchors, extras = np.split(draw.positions, [draw.num_anchors])
        assert len(extras) <= extra
        assert len(draw.positions) <= sampler.max_batch
        assert not set(labels[extras]) & set(labels[anchors])
        assert len(set(extras.tolist())) == len(extras)


def test_extra_negatives_come_from_everyone() -> None:
    """People with a single photograph, too; and as many as were asked for where there are many people."""
    labels = labels_of([4] * 100 + [1] * 400)
    drawn: Counter = Counter()
    for draw in sampler_of(labels, people=8, images=4, extra_negatives=50, batches_per_epoch=60).epoch(0):
        assert len(draw.positions) == 32 + 50
        drawn.update(labels[draw.positions[draw.num_anchors :]].tolist())
    single = sum(count for person, count in drawn.items() if person >= 100)
    assert 0.4 < single / drawn.total() < 0.6


def test_extra_negatives_leave_the_anchors_as_they_are() -> None:
    labels = labels_of([5] * 30)
    with_them = next(iter(sampler_of(labels, extra_negatives=10).epoch(0)))
    without = next(iter(sampler_of(labels).epoch(0)))
    assert with_them.positions[: with_them.num_anchors].tolist() == without.positions.tolist()


@pytest.mark.parametrize(
    ("counts", "people", "images", "says"),
    [
        ([5], 4, 3, "1 of the training people|1 people"),
        ([1, 1, 1], 4, 3, "0 of the training people|0 people"),
        ([5, 1], 4, 3, "1 of the training people|1 people"),
        ([5, 5], 1, 3, "at least 2"),
        ([5, 5], 4, 1, "at least 2"),
    ],
)
def test_too_little_to_draw_from(counts: list[int], people: int, images: int, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        sampler_of(labels_of(counts), people, images)
    assert "\n" not in str(error.value)


class TestFromTheMiddle:
    """An epoch begun at any batch is the rest of the whole one."""

    @settings(max_examples=60, deadline=None)
    @given(COUNTS, st.integers(0, 6), st.integers(0, 9), st.sampled_from([0, 3]))
    def test_people(self, counts: list[int], epoch: int, start: int, extra: int) -> None:
        sampler = sampler_of(labels_of(counts), extra_negatives=extra, batches_per_epoch=7)
        assert same(list(sampler.epoch(epoch))[start:], list(sampler.epoch(epoch, start)))

    @settings(max_examples=60, deadline=None)
    @given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 60), st.booleans())
    def test_shuffled(self, count: int, batch_size: int, start: int, drop_last: bool) -> None:
        sampler = ShuffledSampler(
            np.zeros(count, np.int64), seed=1, batch_size=min(batch_size, count), drop_last=drop_last
        )
        assert same(list(sampler.epoch(3))[start:], list(sampler.epoch(3, start)))


class TestShuffled:
    @settings(max_examples=60, deadline=None)
    @given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 5))
    def test_every_photograph_once_an_epoch(self, count: int, batch_size: int, epoch: int) -> None:
        sampler = ShuffledSampler(np.zeros(count, np.int64), seed=0, batch_size=batch_size)
        draws = list(sampler.epoch(epoch))
        assert len(draws) == len(sampler) == -(-count // batch_size)
        assert all(draw.num_anchors == len(draw.positions) for draw in draws)
        assert all(len(draw.positions) == batch_size for draw in draws[:-1])
        assert sorted(np.concatenate([draw.positions for draw in draws]).tolist()) == list(range(count))

    def test_without_the_last(self) -> None:
        sampler = ShuffledSampler(np.zeros(25, np.int64), seed=0, batch_size=10, drop_last=True)
        assert [len(draw.positions) for draw in sampler.epoch(0)] == [10, 10]
        assert len(sampler) == 2

    def test_fewer_batches_than_the_epoch_has(self) -> None:
        labels = np.zeros(100, np.int64)
        few = ShuffledSampler(labels, seed=0, batch_size=10, batches_per_epoch=3)
        assert same(list(few.epoch(0)), list(ShuffledSampler(labels, seed=0, batch_size=10).epoch(0))[:3])
        assert len(ShuffledSampler(labels, seed=0, batch_size=10, batches_per_epoch=50)) == 10

    def test_seed_and_epoch_decide(self) -> None:
        def epoch(number: int, seed: int = 0) -> list[Draw]:
            return list(ShuffledSampler(np.zeros(99, np.int64), seed=seed, batch_size=9).epoch(number))

        assert same(epoch(0), epoch(0))
        assert not same(epoch(0), epoch(1))
        assert not same(epoch(0), epoch(0, seed=1))

    def test_any_order_is_as_likely(self) -> None:
        first = [
            int(next(ShuffledSampler(np.zeros(10, np.int64), seed=0).epoch(e)).positions[0])
            for e in range(2000)
        ]
        counts = np.bincount(first, minlength=10)
        assert ((counts - 200) ** 2 / 200).sum() < 27.9, "chi-square, nine degrees of freedom, p = 0.001"

    @pytest.mark.parametrize("drop_last", [False, True])
    def test_fewer_than_a_batch_are_one_smaller_batch(self, drop_last: bool) -> None:
        sampler = ShuffledSampler(np.zeros(5, np.int64), seed=0, batch_size=6, drop_last=drop_last)
        assert [sorted(draw.positions.tolist()) for draw in sampler.epoch(0)] == [[0, 1, 2, 3, 4]]
        assert len(sampler) == 1

    @pytest.mark.parametrize(
        ("count", "batch_size", "says"), [(5, 0, "at least 1"), (0, 6, "no photographs to draw")]
    )
    @pytest.mark.parametrize("kind", [ShuffledSampler, ViewsSampler])
    def test_too_little(self, kind: type[ShuffledSampler], count: int, batch_size: int, says: str) -> None:
        with pytest.raises(UserError, match=says):
            kind(np.zeros(count, np.int64), seed=0, batch_size=batch_size)


class TestViews:
    @settings(max_examples=60, deadline=None)
    @given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 4), st.integers(0, 3))
    def test_every_photograph_so_many_times_side_by_side(
        self, count: int, batch_size: int, views: int, epoch: int
    ) -> None:
        sampler = ViewsSampler(np.zeros(count, np.int64), seed=3, batch_size=batch_size, views=views)
        draws = list(sampler.epoch(epoch))
        assert len(draws) == len(sampler) == max(1, count // batch_size)
        seen: set[int] = set()
        for draw in draws:
            assert draw.num_anchors == len(draw.positions) <= sampler.max_batch
            assert len(draw.positions) == views * min(batch_size, count)
            rows = draw.positions.reshape(-1, views)
            assert (rows == rows[:, :1]).all()
            assert len(set(rows[:, 0].tolist())) == len(rows)
            assert not seen & set(rows[:, 0].tolist())
            seen |= set(rows[:, 0].tolist())
        assert same(draws[1:], list(sampler.epoch(epoch, 1)))

    def test_the_photographs_are_those_of_the_plain_sampler(self) -> None:
        labels = np.zeros(50, np.int64)
        plain = ShuffledSampler(labels, seed=2, batch_size=8, drop_last=True)
        views = ViewsSampler(labels, seed=2, batch_size=8, batches_per_epoch=4)
        assert len(views) == 4
        for one, other in zip(views.epoch(1), plain.epoch(1), strict=False):
            assert one.positions[::2].tolist() == other.positions.tolist()

    def test_no_views(self) -> None:
        with pytest.raises(UserError, match="0 views of each photograph"):
            ViewsSampler(np.zeros(5, np.int64), seed=0, views=0)


class TestPairs:
    @settings(max_examples=80, deadline=None)
    @given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 12), st.integers(0, 3))
    def test_every_photograph_once_in_pairs_of_one_person(
        self, counts: list[int], pairs: int, epoch: int
    ) -> None:
        labels = labels_of([*counts, 1])
        num_pairs = sum((count + 1) // 2 for count in [*counts, 1])
        sampler = PairsSampler(labels, seed=0, pairs_per_batch=num_pairs)
        (draw,) = sampler.epoch(epoch)
        assert len(sampler) == 1
        assert draw.positions.dtype == np.int64
        assert draw.num_anchors == len(draw.positions) == sampler.max_batch == 2 * num_pairs
        first, second = draw.positions[::2], draw.positions[1::2]
        assert (labels[first] == labels[second]).all()
        alone = first == second
        assert sorted(labels[first[alone]].tolist()) == [p for p, c in enumerate([*counts, 1]) if c == 1]
        times = Counter(draw.positions.tolist())
        assert set(times) == set(range(len(labels)))
        twice = [position for position, number in times.items() if number == 2]
        assert max(times.values()) <= 2
        assert sorted(labels[twice].tolist()) == [p for p, c in enumerate([*counts, 1]) if c % 2]
        # Smaller batches are parts of the same.
        small = PairsSampler(labels, seed=0, pairs_per_batch=pairs)
        draws = list(small.epoch(epoch))
        assert len(draws) == len(small) == max(1, num_pairs // pairs)
        together = np.concatenate([draw.positions for draw in draws])
        assert together.tolist() == draw.positions[: len(together)].tolist()
        assert same(draws[1:], list(small.epoch(epoch, 1)))

    def test_anyone_of_a_person_is_as_likely_a_partner(self) -> None:
        labels = labels_of([6, 3])
        of_first = np.flatnonzero(labels == 0)
        partners: Counter = Counter()
        for epoch in range(1000):
            (draw,) = PairsSampler(labels, seed=0, pairs_per_batch=5).epoch(epoch)
            place = draw.positions.tolist().index(of_first[0])
            partners[int(draw.positions[place ^ 1])] += 1
        assert set(partners) == set(of_first[1:].tolist())
        assert sum((number - 200) ** 2 / 200 for number in partners.values()) < 18.5, "p = 0.001"

    def test_pairs_come_in_any_order(self) -> None:
        labels = labels_of([2] * 40)
        first = [PairsSampler(labels, seed=0, pairs_per_batch=4).epoch(e) for e in range(50)]
        people = Counter(person for draws in first for person in labels[next(draws).positions[::2]].tolist())
        assert len(people) == 40

    def test_fewer_batches_than_the_epoch_has(self) -> None:
        labels = labels_of([2] * 40)
        few = PairsSampler(labels, seed=0, pairs_per_batch=4, batches_per_epoch=3)
        assert same(list(few.epoch(0)), list(PairsSampler(labels, seed=0, pairs_per_batch=4).epoch(0))[:3])

    @pytest.mark.parametrize(("count", "pairs", "says"), [(5, 0, "at least 1"), (0, 4, "no photographs to")])
    def test_too_little(self, count: int, pairs: int, says: str) -> None:
        with pytest.raises(UserError, match=says):
            PairsSampler(np.zeros(count, np.int64), seed=0, pairs_per_batch=pairs)


@pytest.mark.parametrize("name", BUILT_IN["samplers"])
def test_contract(name: str) -> None:
    arguments = {"people": {"people_per_batch": 4, "images_per_person": 3, "extra_negatives": 5}}
    check_sampler(functools.partial(resolve("samplers", name), **arguments.get(name, {})))
