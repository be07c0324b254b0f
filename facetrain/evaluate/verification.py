"""Face verification, measured: are these two photographs of the same person?

A system gives every pair a score, higher = more alike; a pair is called "same" when its score is at or above
a threshold. A score of -inf is a pair that the system refused (no face found in one photograph, say): no
threshold accepts it, so it counts as "different" in every accuracy and every rate.

Everything here is exact: every distinct score is tried as a threshold, and only the order of the scores
matters. Cosine similarity, minus the distance and minus the squared distance of unit vectors give the same
figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facetrain.errors import UserError

NUM_FOLDS = 10  # as LFW's View 2
FAR_TARGETS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class VerificationResult:
    """What :func:`verify` measured; all rates are fractions, 0 to 1.

    ``accuracy_mean`` is the plain mean over folds. LFW reports it with ``accuracy_standard_error`` =
    s/√folds, s being the sample standard deviation (n - 1); other projects print
    ``accuracy_population_deviation`` (n), which is about √folds times as large. With one fold the first is
    None and the second 0.
    """

    accuracy_mean: float
    accuracy_standard_error: float | None
    accuracy_population_deviation: float
    accuracies: tuple[float, ...]  # one a fold, folds in ascending order
    thresholds: tuple[float, ...]  # one a fold; +inf: best to accept no pair
    threshold_on_itself: bool  # there was one fold: its threshold was chosen on the pairs it was measured on
    auc: float
    eer: float
    tar_at_far: dict[float, float | None]  # None: too few different-person pairs to resolve that rate
    same_pairs: int
    different_pairs: int
    refused_same_pairs: int
    refused_different_pairs: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: infinite thresholds become None, the FAR targets become text, as "0.001"."""
        values = asdict(self)
        values["accuracies"] = list(self.accuracies)
        values["thresholds"] = [t if math.isfinite(t) else None for t in self.thresholds]
        values["tar_at_far"] = {f"{target:g}": tar for target, tar in self.tar_at_far.items()}
        return values


def verify(
    scores: ArrayLike,
    same: ArrayLike,
    folds: ArrayLike | None = None,
    *,
    num_folds: int = NUM_FOLDS,
    far_targets: Sequence[float] = FAR_TARGETS,
) -> VerificationResult:
    """Measure verification by LFW's protocol (Huang et al., 2007), exactly.

    ``scores`` float [n], higher = more alike, -inf = refused. ``same`` bool [n]. ``folds`` int [n], any
    numbers; None deals the pairs by :func:`deal_folds` into ``num_folds``.

    - Accuracy: each fold is measured at the threshold that is most accurate on all other folds together.
      Candidates are all distinct scores of those folds, and +inf (accept none). Of equally good ones the
      middle one in order of score is taken, of two middle ones the lower. A single fold is measured at its
      own best threshold, which flatters it: ``threshold_on_itself`` says so.
    - AUC, EER and TAR at FAR are of all pairs together: see :func:`auc`, :func:`eer`, :func:`tar_at_far`.

    Takes O(n log n + n·folds). Raises UserError unless there are pairs of both kinds, ValueError for NaN,
    +inf or arrays that do not fit together.
    """
    scores, same = _checked(scores, same)
    _, fold_of_pair = np.unique(deal_folds(same, num_folds) if folds is None else folds, return_inverse=True)
    if fold_of_pair.shape != same.shape:
        raise ValueError(f"folds must have one number a pair: {len(same)} pairs, shape {fold_of_pair.shape}")
    accuracies, thresholds = _fold_accuracies(scores, same, fold_of_pair)

    n = len(accuracies)
    far, tar, curve_thresholds = roc(scores, same)
    refused = scores == -np.inf
    return VerificationResult(
        accuracy_mean=float(accuracies.mean()),
        accuracy_standard_error=float(accuracies.std(ddof=1) / math.sqrt(n)) if n > 1 else None,
        accuracy_population_deviation=float(accuracies.std(ddof=0)),
        accuracies=tuple(accuracies.tolist()),
        thresholds=tuple(thresholds.tolist()),
        threshold_on_itself=n == 1,
        auc=auc(far, tar),
        eer=eer(far, tar),
        tar_at_far=tar_at_far(far, tar, curve_thresholds, far_targets, different_pairs=int((~same).sum())),
        same_pairs=int(same.sum()),
        different_pairs=int((~same).sum()),
        refused_same_pairs=int((refused & same).sum()),
        refused_different_pairs=int((refused & ~same).sum()),
    )


def deal_folds(same: ArrayLike, num_folds: int = NUM_FOLDS) -> Ints:
    """Folds int64 [n], 0 to ``num_folds`` - 1, for pairs that come without: the same-person pairs, in their
    order, are cut into ``num_folds`` contiguous runs of equal length (give or take one), and so are the
    different-person pairs.

    Contiguous, because pairs in order of person then keep most of a person's pairs in one fold. When there
    are fewer pairs of one kind than folds, there are only that many folds, at least one.
    """
    same = np.asarray(same, dtype=bool)
    num_folds = max(1, min(num_folds, int(same.sum()), int((~same).sum())))
    folds = np.zeros(len(same), dtype=np.int64)
    for kind in (same, ~same):
        count = int(kind.sum())
        folds[kind] = np.arange(count) * num_folds // max(count, 1)
    return folds


def roc(scores: ArrayLike, same: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """(far, tar, thresholds), float64 [distinct scores + 1]: the share of different-person (far) and of
    same-person (tar) pairs with a score >= threshold, from (0, 0) at +inf down to (1, 1) at the lowest score.

    Equal scores make one step, as in scikit-learn's ``roc_curve(drop_intermediate=False)``. Refused pairs are
    the last step, all tied at -inf: it closes the curve, but is not a threshold that could be used.
    """
    scores, same = _checked(scores, same)
    values, rank = np.unique(scores, return_inverse=True)
    rates = [
        np.concatenate([[0], np.cumsum(np.bincount(rank[kind], minlength=len(values))[::-1])]) / kind.sum()
        for kind in (~same, same)
    ]
    return rates[0], rates[1], np.concatenate([[np.inf], values[::-1]])


def auc(far: Floats, tar: Floats) -> float:
    """Area under the ROC curve by the trapezoid rule: the chance that a same-person pair scores above a
    different-person pair, a tie (two refused pairs, for one) counting half."""
    return float(np.sum(np.diff(far) * (tar[1:] + tar[:-1])) / 2)


def eer(far: Floats, tar: Floats) -> float:
    """Equal error rate: where FAR = 1 - TAR on the ROC curve, drawn with straight lines between its points.

    A point within such a line is what one gets by tossing a coin for the pairs tied there, refused ones
    included.
    """
    excess = far + tar - 1  # rises from -1 to 1 along the curve
    after = int(np.argmax(excess >= 0))
    before = after - 1
    part = -excess[before] / (excess[after] - excess[before])
    return float(far[before] + part * (far[after] - far[before]))


def tar_at_far(
    far: Floats, tar: Floats, thresholds: Floats, targets: Sequence[float], *, different_pairs: int
) -> dict[float, float | None]:
    """For each target, the largest TAR of any threshold whose FAR is at or below the target; nothing is
    interpolated.

    None where the target lies below 1 / ``different_pairs``: so few pairs cannot resolve it. Takes what
    :func:`roc` returns.
    """
    usable = thresholds > -np.inf
    far, tar = far[usable], tar[usable]
    return {
        float(target): None
        if target < 1 / different_pairs
        else float(tar[np.searchsorted(far, target, side="right") - 1])
        for target in targets
    }


def _checked(scores: ArrayLike, same: ArrayLike) -> tuple[Floats, Bools]:
    scores = np.asarray(scores, dtype=np.float64)
    same = np.asarray(same, dtype=bool)
    if scores.ndim != 1 or scores.shape != same.shape:
        raise ValueError(
            f"scores and same must be 1-d and of one length, not {scores.shape} and {same.shape}"
        )
    if not (scores < np.inf).all():
        raise ValueError("scores must be numbers below +inf; use -inf for a pair that was refused")
    if same.all() or not same.any():
        raise UserError(
            f"verification needs same-person and different-person pairs; these are {int(same.sum()):,} and "
            f"{int((~same).sum()):,}"
        )
    return scores, same


def _fold_accuracies(scores: Floats, same: Bools, fold_of_pair: Ints) -> tuple[Floats, Floats]:
    """Accuracy and threshold of each fold, float64 [folds] each; the threshold is chosen on the other
    folds."""
    values, rank = np.unique(scores, return_inverse=True)

    def count(pairs: Bools) -> Ints:
        return np.bincount(rank[pairs], minlength=len(values))

    all_same, all_different = count(same), count(~same)
    num_folds = int(fold_of_pair.max()) + 1
    accuracies, thresholds = np.empty(num_folds), np.empty(num_folds)
    for fold in range(num_folds):
        held_out = fold_of_pair == fold
        if num_folds == 1:
            threshold = _best_threshold(values, all_same, all_different)
        else:
            threshold = _best_threshold(
                values, all_same - count(same & held_out), all_different - count(~same & held_out)
            )
        thresholds[fold] = threshold
        accuracies[fold] = np.mean((scores[held_out] >= threshold) == same[held_out])
    return accuracies, thresholds


def _best_threshold(values: Floats, same_count: Ints, different_count: Ints) -> float:
    """The most accurate threshold for pairs counted by score; ``values`` are the scores, ascending."""
    usable = (same_count + different_count > 0) & (values > -np.inf)
    # What accepting all pairs down to each score wins over accepting none, in pairs.
    gain = np.cumsum((same_count - different_count)[usable][::-1])
    gain = np.concatenate([[0], gain])
    candidates = np.concatenate([[np.inf], values[usable][::-1]])
    best = np.flatnonzero(gain == gain.max())
    return float(candidates[best[len(best) // 2]])


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of rows: ``first``, ``second`` int64 [n] row numbers, ``same`` bool [n], ``folds`` int64 [n]."""

    first: Ints
    second: Ints
    same: Bools
    folds: Ints

    def __len__(self) -> int:
        return len(self.first)


def make_pairs(identity_codes: ArrayLike, *, num_pairs: int, seed: int, num_folds: int = NUM_FOLDS) -> Pairs:
    """Verification pairs drawn from labelled photographs: half of one person, half of two, the same-person
    ones first.

    ``identity_codes`` int [n], equal = same person. Gives ``num_pairs`` pairs rounded down to even, or as
    many as there are: no pair twice, none of a photograph with itself. The same input and seed give the same
    pairs.

    Nobody dominates: same-person pairs are taken in rounds, one from each person who has another to give, and
    different-person pairs one from each pair of people, every person as often as any other. Within a person,
    photographs take turns. The folds are those of :func:`deal_folds`: each holds as many pairs of either
    kind, and the same-person pairs of one person lie next to each other.

    Takes O(n log n). Raises UserError for fewer than two people, or when no person has two photographs.
    """
    codes = np.asarray(identity_codes)
    if codes.ndim != 1:
        raise ValueError(f"identity_codes must be 1-d, not {codes.shape}")
    if num_pairs < 2:
        raise UserError(f"{num_pairs} verification pairs are too few: ask for at least 2")
    rng = np.random.default_rng(seed)

    # People and their photographs in random order: rows[start[p] : start[p] + size[p]] are those of person p.
    _, person = np.unique(codes, return_inverse=True)
    people = int(person.max()) + 1 if len(person) else 0
    person = rng.permutation(people)[person]
    rows = rng.permutation(len(codes))
    rows = rows[np.argsort(person[rows], kind="stable")]
    size = np.bincount(person, minlength=people)
    start = np.cumsum(size) - size
    if people < 2:
        raise UserError(f"verification needs photographs of at least two people; there are {people}")
    if size.max() < 2:
        raise UserError("verification needs a person with at least two photographs; each has one")

    same_capacity = size * (size - 1) // 2
    different_capacity = (len(codes) ** 2 - int((size**2).sum())) // 2
    half = min(num_pairs // 2, int(same_capacity.sum()), different_capacity)

    # Same person: the k-th pair of person p.
    p, k = _expand(_in_rounds(same_capacity, half))
    a, b = _kth_pair(k, size[p])
    same_first, same_second = rows[start[p] + a], rows[start[p] + b]

    # Different people: the k-th pair of photographs of the u-th pair of people.
    units = min(half, people * (people - 1) // 2)
    p, q = _kth_pair(np.arange(units), np.full(units, people))
    capacity = size[p] * size[q]
    offset = rng.integers(capacity)  # or a person would meet everyone with the same photograph
    u, k = _expand(_in_rounds(capacity, half))
    p, q = p[u], q[u]
    k = (k + offset[u]) % capacity[u]
    a = k % size[p]
    b = (k // size[p] + a) % size[q]  # with a, one to one for k in [0, capacity)
    different_first, different_second = rows[start[p] + a], rows[start[q] + b]

    same = np.arange(2 * half) < half
    return Pairs(
        first=np.concatenate([same_first, different_first]),
        second=np.concatenate([same_second, different_second]),
        same=same,
        folds=deal_folds(same, num_folds),
    )


def _in_rounds(capacity: Ints, total: int) -> Ints:
    """How many of ``total`` things each giver gives, int64 [givers], when they give one each in turn until
    the total is reached and each can give ``capacity``; the first ones give in the last, broken round."""
    low, high = 0, int(capacity.max())  # full rounds: the most that do not exceed the total
    while low < high:
        rounds = (low + high + 1) // 2
        if int(np.minimum(capacity, rounds).sum()) <= total:
            low = rounds
        else:
            high = rounds - 1
    quota = np.minimum(capacity, low)
    able = np.flatnonzero(capacity > low)
    quota[able[: total - int(quota.sum())]] += 1
    return quota


def _expand(quota: Ints) -> tuple[Ints, Ints]:
    """[2, 0, 3] → givers [0, 0, 2, 2, 2] and their counters [0, 1, 0, 1, 2]."""
    giver = np.repeat(np.arange(len(quota)), quota)
    return giver, np.arange(len(giver)) - np.repeat(np.cumsum(quota) - quota, quota)


def _kth_pair(k: Ints, size: Ints) -> tuple[Ints, Ints]:
    """The k-th of the size·(size-1)/2 unordered pairs of ``size`` things, elementwise, none twice.

    Laid out on a circle: first all pairs of neighbours, then all pairs at distance 2, and so on, so that all
    things are used equally often. On the way round the even places come first, or k and k + 1 would share a
    thing.
    """
    distance, turn = 1 + k // size, k % size
    evens = (size + 1) // 2
    a = np.where(turn < evens, 2 * turn, 2 * (turn - evens) + 1)
    a = np.where(2 * distance == size, turn, a)  # opposite things: half a turn meets every pair
    return a, (a + distance) % size
