"""The pairs of a `.bin` verification set as a list in LFW's format, beside the tree that `write_tree` makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from facetrain.datasets.importers.image_type import image_suffix
from facetrain.datasets.importers.verification_bin import VerificationSet, people_of_pair
from facetrain.errors import UserError
from facetrain.files import write_if_changed

FOLDS = 10  # insightface's: ten runs of pairs in the file's order


@dataclass(frozen=True)
class PairsReport:
    """The list that was written; ``notes`` say where it differs from what insightface would measure."""

    path: Path
    pairs: int
    folds: int
    notes: list[str]


def write_pairs(pairs: VerificationSet, out: Path) -> PairsReport:
    """Write `out/pairs.txt`.

    insightface takes each tenth of the pairs, in the file's order, as a fold. LFW's format wants as many same-person as
    different-person pairs in each fold, the former first: the tenths are written so where they are so, as in
    LFW, and all pairs as one fold otherwise. Raises UserError where all are of one kind.
    """
    notes = []
    usable = [
        i
        for i, (first, second, _) in enumerate(pairs.pairs())
        if image_suffix(first) and image_suffix(second)
    ]
    if len(usable) < len(pairs):
        notes.append(
            f"{len(pairs) - len(usable):,} of {len(pairs):,} pairs are left out: an image cannot be used"
        )
    folds = _tenths(pairs.same, usable)
    if folds is None:
        folds, left_out = _one_fold(pairs.same, usable)
        why = "one fold instead of ten, since its tenths do not hold as many same-person as different-person pairs"
        notes.append(f"{why}: the accuracy is not comparable with insightface's")
        if left_out:
            notes.append(f"{left_out:,} pairs are left out: LFW's format needs as many of either kind")
    half = len(folds[0]) // 2
    if not half:
        raise UserError(f"{pairs.path}: all its pairs are of one kind: there is nothing to tell apart")
    lines = [f"{len(folds)}\t{half}", *(_line(i, pairs.same[i]) for fold in folds for i in fold)]
    path = out / "pairs.txt"
    write_if_changed(path, ("\n".join(lines) + "\n").encode())
    return PairsReport(path, sum(map(len, folds)), len(folds), notes)


def _tenths(same: Sequence[bool], usable: list[int]) -> list[list[int]] | None:
    """Ten folds of pairs, the same-person ones first; None where LFW's format cannot hold them."""
    size, rest = divmod(len(usable), FOLDS)
    if rest or not size:
        return None
    folds = [_same_first(same, usable[i * size : (i + 1) * size]) for i in range(FOLDS)]
    return folds if all(2 * sum(same[i] for i in fold) == size for fold in folds) else None


def _one_fold(same: Sequence[bool], usable: list[int]) -> tuple[list[list[int]], int]:
    """All pairs, of the commoner kind the first ones only; how many are left out."""
    alike = [i for i in usable if same[i]]
    apart = [i for i in usable if not same[i]]
    half = min(len(alike), len(apart))
    return [alike[:half] + apart[:half]], len(usable) - 2 * half


def _same_first(same: Sequence[bool], pairs: list[int]) -> list[int]:
    return sorted(pairs, key=lambda i: not same[i])


def _line(number: int, same: bool) -> str:
    (person1, photograph1), (person2, photograph2) = people_of_pair(number, same)
    return (
        f"{person1}\t{photograph1}\t{photograph2}"
        if same
        else f"{person1}\t{photograph1}\t{person2}\t{photograph2}"
    )
