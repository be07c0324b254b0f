"""RFW, Racial Faces in the Wild (Wang et al., 2019): four lists of 6,000 pairs in LFW's format.

txts/African/African_pairs.txt      m.0c7mh2<TAB>1<TAB>3                     one person; there is no first line with counts
                                    m.0c7mh2<TAB>1<TAB>m.03bwv2<TAB>2        two people
txts/African/African_lmk.txt        …/African/m.0c7mh2/m.0c7mh2_0001.jpg<TAB>0<TAB>x<TAB>y… of five points
data/African/m.0c7mh2/m.0c7mh2_0001.jpg
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.evaluate.pairs import read_pairs
from facetrain.evaluate.protocols.base import Figure, Measured, Photographs, Protocol, Trials
from facetrain.evaluate.protocols.files import fault, find_files, first_there, read_lines
from facetrain.evaluate.protocols.pairwise import (
    PairRows,
    check_no_face,
    measure_pairs,
    no_face_notes,
    pairs_without_face,
    unique_rows,
)
from facetrain.evaluate.search import Embeddings
from facetrain.evaluate.verification import deal_folds

RACES = ("African", "Asian", "Caucasian", "Indian")
OF_RACE = {
    "accuracy": Figure("accuracy"),
    "standard_error": Figure("  standard error", lower_is_better=True),
    "auc": Figure("  AUC"),
    "eer": Figure("  EER", lower_is_better=True),
    "tar_at_far_0.01": Figure("  TAR at FAR 0.01"),
    "tar_at_far_0.001": Figure("  TAR at FAR 0.001"),
}
FIGURES = {
    "accuracy": Figure("accuracy, mean of races"),
    "accuracy_deviation": Figure("  sample deviation over races", lower_is_better=True),
    "skewed_error_ratio": Figure("  skewed error ratio", lower_is_better=True),
    **{
        f"{name}_{race.lower()}": Figure(f"{race}: {figure.label.strip()}", figure.lower_is_better)
        for race in RACES
        for name, figure in OF_RACE.items()
    },
}

FileLine = tuple[Path, int]


class RacePairs(NamedTuple):
    """Pairs of one race, in their order: photographs as `find_files` takes them, and the line of each pair."""

    path: Path
    first: list[str]
    second: list[str]
    same: NDArray[np.bool_]
    folds: NDArray[np.int64]
    lines: list[int]


class Rfw(Protocol):
    """LFW's protocol on each of four races; the mean of their accuracies, and how far these are apart.

    data: the folder with ``txts`` and ``data`` (RFW's ``test``), or one above it. images: the photographs,
    ``data``, where they lie elsewhere (aligned ones, say). landmarks: whether the lists of landmarks that come with RFW are
    used, where a network takes crops on such points and they are there.
    """

    figures = FIGURES

    def __init__(
        self, data: Path, *, images: str | None = None, landmarks: bool = True, no_face: str = "different"
    ) -> None:
        self.no_face = check_no_face(no_face)
        lists = first_there(data, ("txts", "test/txts", "images/test/txts"), "lists of RFW")
        root = Path(images) if images else lists.parent / "data"
        races = [read_race(lists / race / f"{race}_pairs.txt", race) for race in RACES]
        wanted: dict[str, FileLine] = {}
        for pairs in races:
            for name, line in zip(pairs.first + pairs.second, pairs.lines * 2, strict=True):
                wanted.setdefault(name, (pairs.path, line))
        found = find_files(root, wanted)
        keys, rows = unique_rows([name for pairs in races for name in pairs.first + pairs.second])
        points = _landmarks(lists, keys) if landmarks else None
        self.photographs = Photographs(root, [found[key] for key in keys], landmarks=points)
        ends = np.split(rows, np.cumsum([len(pairs.same) for pairs in races for _ in (1, 2)])[:-1])
        self.races = {
            race: PairRows(first, second, pairs.same, pairs.folds)
            for race, first, second, pairs in zip(RACES, ends[::2], ends[1::2], races, strict=True)
        }
        self.people = frozenset(key.split("/")[1] for key in keys)
        self.facts = {"pairs": str(lists), "images": str(root)}

    def measure(self, embeddings: Embeddings, found: NDArray[np.bool_], *, device: Any = None) -> Measured:
        measured = {
            race: measure_pairs(pairs, embeddings, found, no_face=self.no_face)
            for race, pairs in self.races.items()
        }
        accuracies = np.array([part.details["accuracy_mean"] for part in measured.values()])
        values = {
            "accuracy": float(accuracies.mean()),
            "accuracy_deviation": float(accuracies.std(ddof=1)),
            "skewed_error_ratio": skewed_error_ratio(accuracies.tolist()),
        }
        for race, part in measured.items():
            values |= {f"{name}_{race.lower()}": part.values[name] for name in OF_RACE}
        without = ", ".join(f"{pairs_without_face(part):,} {race}" for race, part in measured.items())
        return Measured(
            values=values,
            counts={
                f"{race} pairs, same / different": f"{part.details['same_pairs']:,} / "
                f"{part.details['different_pairs']:,}"
                for race, part in measured.items()
            },
            details={
                "races": {race: dict(part.details) for race, part in measured.items()},
                "no_face_rule": self.no_face,
                "groups": list(RACES),
            },
            trials=_trials([part.trials for part in measured.values() if part.trials is not None]),
            notes=no_face_notes(found, f"the pairs with one ({without})", self.no_face),
        )


def skewed_error_ratio(accuracies: Sequence[float]) -> float | None:
    """The largest error over the smallest; None where the smallest is none (Wang and Deng, 2020)."""
    errors = [1 - accuracy for accuracy in accuracies]
    return max(errors) / min(errors) if min(errors) > 0 else None


def read_race(path: Path, race: str) -> RacePairs:
    """Read a list of pairs, with LFW's first line or, as RFW has them, without. Folds are tenths of either kind, in order,
    where there is no such line. UserError, with the line, for anything else."""
    lines = [(number, text.split()) for number, text in read_lines(path, "list of pairs")]
    if len(lines[0][1]) <= 2 and all(field.isdecimal() for field in lines[0][1]):
        pairs = read_pairs(path)
        first = [_name(race, pair.person1, pair.number1) for pair in pairs]
        second = [_name(race, pair.person2, pair.number2) for pair in pairs]
        return RacePairs(path, first, second, pairs.same, pairs.folds, [pair.line for pair in pairs])
    first, second = [], []
    for line, fields in lines:
        person1, person2 = fields[0], fields[-2] if len(fields) == 4 else fields[0]
        numbers = [fields[1], fields[-1]] if len(fields) in (3, 4) else [""]
        if not all(number.isascii() and number.isdecimal() for number in numbers):
            raise fault(
                path,
                line,
                "expected 'person number number' or 'person number person number'",
                " ".join(fields),
            )
        if any(person in (".", "..") or "/" in person for person in (person1, person2)):
            raise fault(path, line, "a person's name must be the name of a folder", " ".join(fields))
        first.append(_name(race, person1, int(numbers[0])))
        second.append(_name(race, person2, int(numbers[1])))
    same = np.array([len(fields) == 3 for _, fields in lines])
    if same.all() or not same.any():
        raise UserError(
            f"{path}: all {len(same):,} pairs are of {'one person' if same.all() else 'two people'}: both kinds are needed"
        )
    return RacePairs(path, first, second, same, deal_folds(same), [line for line, _ in lines])


def _name(race: str, person: str, number: int) -> str:
    return f"{race}/{person}/{person}_{number:04d}.jpg"


def _landmarks(lists: Path, names: Sequence[str]) -> NDArray[np.float64] | None:
    """Landmarks float64 [n, 5, 2] of these photographs; None unless there is a list of each race."""
    files = [lists / race / f"{race}_lmk.txt" for race in RACES]
    if not all(file.is_file() for file in files):
        return None
    points: dict[str, list[float]] = {}
    for race, file in zip(RACES, files, strict=True):
        for line, text in read_lines(file, "list of landmarks"):
            name, *fields = text.split()
            try:
                five = [float(field) for field in fields[-10:]]
            except ValueError:
                five = []
            if len(fields) != 11 or len(five) != 10 or not np.isfinite(five).all():
                raise fault(
                    file, line, "expected a path, a label and ten numbers, x and y of five points", text
                )
            key = f"{race}/{'/'.join(name.split('/')[-2:])}"
            if key in points:
                raise fault(file, line, f"{name} has landmarks further up")
            points[key] = five
    for name in names:
        if name not in points:
            race = name.partition("/")[0]
            raise UserError(
                f"{lists / race / f'{race}_lmk.txt'} has no landmarks of {name}: mend it, or --protocol-arg landmarks=false"
            )
    return np.array([points[name] for name in names]).reshape(-1, 5, 2)


def _trials(parts: Sequence[Trials]) -> Trials:
    """The trials of all races; a group is a race, in the order of `RACES`."""

    def joined(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])

    groups = np.repeat(np.arange(len(parts)), [len(part.scores) for part in parts])
    return Trials(joined("scores"), joined("same"), joined("first"), joined("second"), groups)
