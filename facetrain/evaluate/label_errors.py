"""Probable label errors: photographs under a wrong name, two people under one name, one person under two.

No threshold is given beforehand. What an error would look like is made from the photographs themselves, and where
many of what is there look like that, there is the limit:

1. Photographs under a wrong name: each is put under the name of another one, drawn at random.
2. Two people under one name: each person is put together with another one drawn at random.
3. One person under two names: each person's photographs are divided into two halves.

Let A(t) be the share of those made errors (and one more, the worst), and F(t) the share of what is there, that are at least as suspicious as t.
A share ε of errors among what is there gives F ≥ ε A everywhere; the smallest F / A is the estimate of ε (as for the
share of null hypotheses: Storey, "A direct approach to false discovery rates", 2002, with the sides exchanged), and
ε A(t) / F(t) the estimated precision of a limit t. The limit is the one that finds most with at least ``precision``.

Legend of shapes: n photographs, D dimensions, P people.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from facetrain.evaluate.search import scores_of_pairs, top_k

BLOCK_ROWS = 65_536  # photographs whose embeddings are gathered at a time
NEIGHBOURS = 8  # people nearest to a person, looked at for one under two names
MIN_GROUP = 2  # photographs of the smaller of two people under one name; a single one is an outlier
MADE = 1000  # errors that are made at least, of few photographs several of each
ITERATIONS = 20  # of dividing a person's photographs in two, at most

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Outlier:
    """A photograph that is probably not of the person whose name it bears.

    own_cosine: with the centre of the other photographs of that name. nearest_label: of the centre that is nearest among
    those of all other people; nearest_cosine: with it.
    """

    row: int
    label: int
    own_cosine: float
    nearest_label: int
    nearest_cosine: float


@dataclass(frozen=True)
class TwoInOne:
    """A name whose photographs are probably of two people: ``rows`` of one, ``other_rows``, not more, of the other.

    cosine: of the two groups' centres.
    """

    label: int
    rows: list[int]
    other_rows: list[int]
    cosine: float


@dataclass(frozen=True)
class OneInTwo:
    """Two names that are probably of one person; ``first_label`` has at least as many photographs.

    cosine: of their centres.
    """

    first_label: int
    second_label: int
    cosine: float


@dataclass(frozen=True)
class LabelErrors:
    """Each kind, the worst first. No photograph is both an outlier and in the smaller group of a `TwoInOne`."""

    outliers: list[Outlier]
    two_in_one: list[TwoInOne]
    one_in_two: list[OneInTwo]


def find_label_errors(
    embeddings: Floats,
    labels: Ints,
    *,
    precision: float = 0.8,
    reach: float = 0.99,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> LabelErrors:
    """Probable label errors among photographs: embeddings float32 [n, D] of length 1, labels int64 [n] of their names.

    precision: the share of proposals that are to be right, as far as it can be estimated; lower finds more.
    reach: the share of made errors beyond which nothing is proposed, however rare it is there.
    seed: of what is drawn at random. device: where the search among all people is done. Memory: a copy of the embeddings,
    three of the people's centres, and blocks.
    Raises ValueError for arrays that do not fit together, or embeddings that are not finite.
    """
    embeddings, labels = np.asarray(embeddings), np.asarray(labels, np.int64)
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"embeddings and labels must be [n, D] and [n], not {embeddings.shape} and {labels.shape}"
        )
    if not (0 < precision <= 1 and 0 < reach <= 1):
        raise ValueError(f"precision and reach must lie in (0, 1], not {precision} and {reach}")
    if not all(np.isfinite(embeddings[rows]).all() for rows in _blocks(np.arange(len(labels)))):
        raise ValueError("embeddings must be finite numbers")
    if len(np.unique(labels)) < 2:
        return LabelErrors([], [], [])
    people = _People.of(embeddings, labels)
    rng = np.random.default_rng(seed)
    limits = {"precision": precision, "reach": reach}
    one_in_two = _one_in_two(embeddings, people, limits, device)
    two_in_one = _two_in_one(embeddings, people, one_in_two, rng, limits)
    said = {row for found in two_in_one for row in found.other_rows}
    outliers = _outliers(embeddings, people, rng, limits, device)
    return LabelErrors(
        outliers=[outlier for outlier in outliers if outlier.row not in said],
        two_in_one=two_in_one,
        one_in_two=one_in_two,
    )


def people_in_both(
    embeddings: Floats,
    labels: Ints,
    others: Floats,
    other_labels: Ints,
    *,
    threshold: float | None = None,
    precision: float = 0.8,
    reach: float = 0.99,
    device: torch.device | str | None = None,
) -> list[OneInTwo]:
    """People of one set who are probably in another one too: of each its nearest there, the most alike first.

    embeddings float32 [n, D] of length 1 and labels int64 [n]; others [m, D] and other_labels [m] alike. The cosine of two
    centres from which they are taken for one person's is ``threshold``, or found as for one person under two names.
    """
    people, there = _People.of(embeddings, labels), _People.of(others, other_labels)
    cosine, near = top_k(people.centre, there.centre, 1, device=device)
    cosine, near = cosine[:, 0], near[:, 0]
    if threshold is None:
        threshold = -_limit(-cosine, -_halves(embeddings, people), precision=precision, reach=reach)
    order = np.argsort(-cosine, kind="stable")
    return [
        OneInTwo(int(people.names[i]), int(there.names[near[i]]), float(cosine[i]))
        for i in order[cosine[order] >= threshold].tolist()
    ]


@dataclass(frozen=True)
class _People:
    """names: int64 [P], sorted labels. person: int64 [n]. order: rows by person, those of person p from ``first[p]``,
    ``count[p]`` many. total: float32 [P, D], the sum of each one's embeddings; centre: the same of length 1."""

    names: Ints
    person: Ints
    order: Ints
    first: Ints
    count: Ints
    total: Floats
    centre: Floats

    @classmethod
    def of(cls, embeddings: Floats, labels: Ints) -> _People:
        names, person, count = np.unique(labels, return_inverse=True, return_counts=True)
        order = np.argsort(person, kind="stable")
        total = np.zeros((len(names), embeddings.shape[1]), np.float32)
        _add_to(total, embeddings, person, order)
        first = np.cumsum(count) - count
        return cls(names, person, order, first, count, total, _unit(total))

    def rows_of(self, person: int) -> Ints:
        return self.order[self.first[person] : self.first[person] + self.count[person]]


def _outliers(
    embeddings: Floats,
    people: _People,
    rng: np.random.Generator,
    limits: dict[str, float],
    device: torch.device | str | None,
) -> list[Outlier]:
    """Photographs nearer to another person than to their own, or far from their own, beyond what is usual.

    Nearness is judged without what all embeddings have in common, and by the sum of a person's embeddings over one more
    than there are: as if each had another photograph, like the mean of all. Else a person of one photograph, or a network
    whose embeddings all lie on one side, would be near to too many. Being far is judged of people with three photographs
    or more: of two that are unlike, nothing says which is wrong.
    """
    n, everyone = len(embeddings), np.arange(len(embeddings))
    apart = _centred(embeddings)
    shrunk = np.zeros_like(people.total)
    _add_to(shrunk, apart, people.person, people.order)
    shrunk /= (people.count + 1)[:, None]
    own, own_score = _with_own(apart, people, shrunk)
    score, near = top_k(apart, shrunk, 2, device=device)
    second = (near[:, 0] == people.person).astype(np.int64)  # the nearest is the own: the next one, then
    nearest, nearest_score = near[everyone, second], score[everyone, second]

    others = people.count[people.person] - 1
    who = np.tile(everyone, -(-MADE // n))
    drawn = people.person[rng.permuted(who.reshape(-1, n), axis=1).ravel()]
    who, drawn = who[drawn != people.person[who]], drawn[drawn != people.person[who]]
    drawn_score = scores_of_pairs(apart, shrunk, who, drawn)
    rest_score = np.where(nearest[who] == drawn, own_score[who], np.maximum(own_score, nearest_score)[who])

    margin = own_score - nearest_score
    made_margin = (drawn_score - rest_score)[others[who] > 0]
    nearer = (others > 0) & (margin <= min(0.0, _limit(margin[others > 0], made_margin, **limits)))
    made_own = scores_of_pairs(apart, _unit(shrunk), who, drawn)[others[who] > 1]
    far = (others > 1) & (own <= _limit(own[others > 1], made_own, **limits))
    rows = np.flatnonzero(nearer | far)
    rows = rows[np.argsort(margin[rows], kind="stable")]

    rest = _unit(people.total[people.person[rows]] - embeddings[rows])
    own_cosine = scores_of_pairs(embeddings, rest, rows, np.arange(len(rows)))
    nearest_cosine = scores_of_pairs(embeddings, people.centre, rows, nearest[rows])
    labels, nearest_labels = people.names[people.person[rows]], people.names[nearest[rows]]
    columns = (rows, labels, own_cosine, nearest_labels, nearest_cosine)
    return [Outlier(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def _with_own(apart: Floats, people: _People, shrunk: Floats) -> tuple[Floats, Floats]:
    """float32 [n], [n]: of each photograph and the others of its person the cosine, and the score as `_outliers` has it;
    0 where there are none."""
    cosines, scores = np.zeros(len(apart), np.float32), np.zeros(len(apart), np.float32)
    for rows in _blocks(np.arange(len(apart))):
        count = people.count[people.person[rows]].astype(np.float32)
        rest = shrunk[people.person[rows]] * (count + 1)[:, None] - apart[rows]
        rest[count == 1] = 0  # exactly, whatever was rounded
        cosines[rows] = np.einsum("nd,nd->n", apart[rows], _unit(rest))
        scores[rows] = np.einsum("nd,nd->n", apart[rows], rest) / count
    return cosines, scores


def _two_in_one(
    embeddings: Floats,
    people: _People,
    alike: list[OneInTwo],
    rng: np.random.Generator,
    limits: dict[str, float],
) -> list[TwoInOne]:
    """People whose photographs, divided in two as well as can be, are as unlike as those of two people (who are not
    ``alike``)."""
    asked = np.flatnonzero(people.count >= 2 * MIN_GROUP)
    sides, cosines = [], np.empty(len(asked))
    for place, person in enumerate(asked.tolist()):
        e = embeddings[people.rows_of(person)]
        side = _divide(e)
        left, right = _unit(np.stack([e[side].sum(axis=0), e[~side].sum(axis=0)]))
        cosines[place] = left @ right if _large_enough(side) else np.nan
        sides.append(side)
    divided = ~np.isnan(cosines)
    one = np.tile(asked, -(-MADE // max(len(asked), 1)))
    other = rng.permuted(one.reshape(-1, max(len(asked), 1)), axis=1).ravel()
    pairs = np.array([(pair.first_label, pair.second_label) for pair in alike], np.int64).reshape(-1, 2)
    first, second = np.searchsorted(people.names, pairs).T
    n = len(people.names)
    apart = (one != other) & ~np.isin(
        one * n + other, np.concatenate([first * n + second, second * n + first])
    )
    made = scores_of_pairs(people.centre, people.centre, one[apart], other[apart])
    limit = _limit(cosines[divided], made, **limits)
    found = []
    for place in np.argsort(cosines, kind="stable").tolist():  # NaN is last
        if not cosines[place] <= limit:
            break
        rows, side = people.rows_of(asked[place]), sides[place]
        smaller = side if side.sum() * 2 <= len(side) else ~side
        name = int(people.names[asked[place]])
        found.append(TwoInOne(name, rows[~smaller].tolist(), rows[smaller].tolist(), float(cosines[place])))
    return found


def _divide(e_MD: Floats) -> NDArray[np.bool_]:
    """Two groups of M embeddings, bool [M], by 2-means of directions, begun along the line of greatest spread."""
    centred = e_MD - e_MD.mean(axis=0)
    line = centred[np.argmax(np.einsum("md,md->m", centred, centred))]
    for _ in range(ITERATIONS):  # power iteration
        line = _unit((centred.T @ (centred @ line))[None])[0]
    side = centred @ line > 0
    for _ in range(ITERATIONS):
        if side.all() or not side.any():
            break
        one, other = _unit(np.stack([e_MD[side].sum(axis=0), e_MD[~side].sum(axis=0)]))
        moved = e_MD @ one > e_MD @ other
        if (moved == side).all():
            break
        side = moved
    return side


def _large_enough(side: NDArray[np.bool_]) -> bool:
    return MIN_GROUP <= int(side.sum()) <= len(side) - MIN_GROUP


def _one_in_two(
    embeddings: Floats, people: _People, limits: dict[str, float], device: torch.device | str | None
) -> list[OneInTwo]:
    """People who are as like each other as the halves of one person are."""
    neighbours = min(NEIGHBOURS, len(people.names) - 1)
    cosines, near = top_k(people.centre, people.centre, neighbours, exclude_self=True, device=device)
    limit = -_limit(-cosines[:, 0], -_halves(embeddings, people), **limits)
    first, place = np.nonzero(cosines >= limit)
    second, scores = near[first, place], cosines[first, place]
    fewer = people.count[first] < people.count[second]
    first, second = np.where(fewer, second, first), np.where(fewer, first, second)
    low, high = np.minimum(first, second), np.maximum(first, second)
    once = np.unique(low * len(near) + high, return_index=True)[1]  # each of the two may have found the other
    order = once[np.argsort(-scores[once], kind="stable")]
    return [
        OneInTwo(*values)
        for values in zip(
            people.names[first[order]].tolist(),
            people.names[second[order]].tolist(),
            scores[order].tolist(),
            strict=True,
        )
    ]


def _halves(embeddings: Floats, people: _People) -> Floats:
    """float32 [people with two photographs or more]: the cosine of the centres of every other photograph and the rest."""
    place = np.empty(len(embeddings), np.int64)
    place[people.order] = np.arange(len(embeddings)) - np.repeat(people.first, people.count)
    half = np.zeros_like(people.total)
    _add_to(half, embeddings, people.person, people.order[place[people.order] % 2 == 1])
    several = people.count > 1
    one, other = _unit(half[several]), _unit((people.total - half)[several])
    cosines: Floats = np.einsum("pd,pd->p", one, other)
    return cosines


def _limit(
    there: NDArray[np.floating], made: NDArray[np.floating], *, precision: float, reach: float
) -> float:
    """The value at or below which what is ``there`` is probably an error, given those ``made``; -inf: nothing is.

    See the top of this file. Both arrays are of one dimension, low values the suspicious ones.
    """
    if len(there) == 0 or len(made) == 0:
        return -np.inf
    values = np.unique(there)
    count = np.searchsorted(np.sort(there), values, side="right")
    share = (np.searchsorted(np.sort(made), values, side="right") + 1) / (len(made) + 1)
    possible = (share <= reach) & np.append(share[1:] > share[:-1], True)  # of each share the last
    if not possible.any():
        return -np.inf
    values, count, share = values[possible], count[possible], share[possible]
    errors = ((count + np.sqrt(count) + 1) / share).min()  # a low count may be low by chance
    good = errors * share >= precision * count
    return float(values[good].max(initial=-np.inf))


def _centred(embeddings: Floats) -> Floats:
    """Without the mean of all, and of length 1 again."""
    total = np.zeros(embeddings.shape[1])
    for rows in _blocks(np.arange(len(embeddings))):
        total += embeddings[rows].sum(axis=0, dtype=np.float64)
    centred = np.empty(embeddings.shape, np.float32)
    for rows in _blocks(np.arange(len(embeddings))):
        centred[rows] = _unit((embeddings[rows] - total / len(embeddings)).astype(np.float32))
    return centred


def _add_to(total: Floats, embeddings: Floats, person: Ints, rows: Ints) -> None:
    """Add the embeddings of these rows, which are in the order of people, to those of their person."""
    for block in _blocks(rows):
        who, start = np.unique(person[block], return_index=True)
        total[who] += np.add.reduceat(embeddings[block], start, axis=0)


def _unit(x: Floats) -> Floats:
    """Rows of length 1; those of all zeros stay so."""
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, lengths, out=np.zeros_like(x), where=lengths > 0)


def _blocks(rows: Ints) -> Iterator[Ints]:
    for start in range(0, len(rows), BLOCK_ROWS):
        yield rows[start : start + BLOCK_ROWS]
