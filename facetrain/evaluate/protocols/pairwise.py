"""What the protocols that compare pairs of photographs share: the figures, and how they come from embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.evaluate.protocols.base import Figure, Measured, Trials, without_face
from facetrain.evaluate.search import Embeddings
from facetrain.evaluate.verification import FAR_TARGETS, VerificationResult, verify

NO_FACE = ("different", "drop")
PAIRS_AT_ONCE = 1024  # their embeddings stay in the processor's cache: six times as fast as 65,536


def rate_figures() -> dict[str, Figure]:
    """AUC, EER and TAR at each FAR."""
    tars = {f"tar_at_far_{far:g}": Figure(f"TAR at FAR {far:g}") for far in FAR_TARGETS}
    return {"auc": Figure("AUC"), "eer": Figure("EER", lower_is_better=True), **tars}


FIGURES = {
    "accuracy": Figure("accuracy, mean of folds"),
    "standard_error": Figure("  standard error", lower_is_better=True),
    "population_deviation": Figure("  population deviation", lower_is_better=True),
    **rate_figures(),
}


@dataclass(frozen=True, eq=False)
class PairRows:
    """Pairs of a protocol's photographs: rows first and second int64 [n], same bool [n], folds int64 [n]."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    same: NDArray[np.bool_]
    folds: NDArray[np.int64]


def check_no_face(rule: str) -> str:
    """UserError for a rule that is none."""
    if rule not in NO_FACE:
        raise UserError(f"no_face = '{rule}': choose {' or '.join(NO_FACE)}")
    return rule


def pair_scores(
    embeddings: Embeddings, found: NDArray[np.bool_], first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Cosine of each pair, -inf where one of the two has no face."""
    scores = np.empty(len(first))
    for start in range(0, len(first), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        a, b = np.asarray(embeddings[first[part]]), np.asarray(embeddings[second[part]])
        scores[part] = (a * b).sum(axis=1)
    return np.where(found[first] & found[second], scores, -np.inf)


def measure_pairs(
    pairs: PairRows, embeddings: Embeddings, found: NDArray[np.bool_], *, no_face: str = "different"
) -> Measured:
    """LFW's protocol, see `facetrain.evaluate.verification.verify`.

    no_face: what becomes of a pair with a photograph in which no face was found: ``different``, it is refused and
    counts as told apart; ``drop``, it is left out.
    """
    scores = pair_scores(embeddings, found, pairs.first, pairs.second)
    refused = scores == -np.inf
    keep = ~refused if no_face == "drop" else np.ones(len(scores), bool)
    result = verify(scores[keep], pairs.same[keep], pairs.folds[keep])
    folds = len(result.accuracies)
    trials = Trials(scores[keep], pairs.same[keep], pairs.first[keep], pairs.second[keep], pairs.folds[keep])
    return Measured(
        values=verification_values(result),
        counts={
            f"pairs, same / different ({folds} fold{'s' * (folds > 1)})": f"{result.same_pairs:,} / "
            f"{result.different_pairs:,}"
        },
        details={
            **result.to_dict(),
            "photographs": len(found),
            "photographs_without_face": int((~found).sum()),
            "no_face_rule": no_face,
            "pairs_dropped": int((~keep).sum()),
        },
        trials=trials,
        notes=no_face_notes(found, f"the {int(refused.sum()):,} pairs with one", no_face),
    )


def no_face_notes(found: NDArray[np.bool_], pairs: str, no_face: str) -> list[str]:
    """What is said of photographs without a face, if there are any. pairs: such as "the 36 pairs with one"."""
    if found.all():
        return []
    how = "counted as different people" if no_face == "different" else "left out"
    return [f"{without_face(found)}; {pairs} are {how}"]


def pairs_without_face(measured: Measured) -> int:
    """How many pairs of what `measure_pairs` found have a photograph without a face."""
    names = ("refused_same_pairs", "refused_different_pairs", "pairs_dropped")
    return sum(measured.details[name] for name in names)


def verification_values(result: VerificationResult) -> dict[str, float | None]:
    """The values of `FIGURES`."""
    return {
        "accuracy": result.accuracy_mean,
        "standard_error": result.accuracy_standard_error,
        "population_deviation": result.accuracy_population_deviation,
        "auc": result.auc,
        "eer": result.eer,
        **{f"tar_at_far_{far:g}": tar for far, tar in result.tar_at_far.items()},
    }


def column_value(value: float | None) -> float:
    """A value as a column of numbers has it."""
    return math.nan if value is None else value


def unique_rows(names: list[Any]) -> tuple[list[Any], NDArray[np.int64]]:
    """The different ones of ``names`` in the order of their first coming, and the row of each name among them."""
    row_of: dict[Any, int] = {}
    rows = np.array([row_of.setdefault(name, len(row_of)) for name in names], np.int64)
    return list(row_of), rows
