"""Verification as Bob has it: a threshold from the development set, frozen, and the errors on the evaluation set.

Lists of bob.bio.base (Anjos et al. 2012; Günther et al. 2012), or score files that any program wrote.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.evaluate.protocols.base import Figure, Measured, Photographs, Protocol, Trials, without_face
from facetrain.evaluate.protocols.bob_lists import (
    COMPARISONS,
    Group,
    Ints,
    Names,
    Templates,
    read_group,
    with_suffixes,
)
from facetrain.evaluate.protocols.bob_scores import scores_of
from facetrain.evaluate.protocols.files import find_files, first_there
from facetrain.evaluate.protocols.pairwise import check_no_face
from facetrain.evaluate.score_files import read_scores, score_lines
from facetrain.evaluate.search import Embeddings
from facetrain.evaluate.thresholds import (
    FAR,
    check_criterion,
    check_kinds,
    check_resolution,
    choose_threshold,
    error_rates,
)
from facetrain.evaluate.verification import auc, eer, roc

GROUPS = ("dev", "eval")
MODELS = ("mean", "max")

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def _figures(prefix: str, label: str) -> dict[str, Figure]:
    return {
        f"{prefix}hter": Figure(f"HTER{label}", lower_is_better=True),
        f"{prefix}fmr": Figure(f"  FMR{label}", lower_is_better=True),
        f"{prefix}fnmr": Figure(f"  FNMR{label}", lower_is_better=True),
        f"{prefix}eer": Figure(f"EER{label}", lower_is_better=True),
        f"{prefix}auc": Figure(f"AUC{label}"),
    }


FIGURES = {"eval": _figures("", ", eval"), "dev": _figures("dev_", ", dev")}


@dataclass(frozen=True)
class Criterion:
    """How the threshold is chosen on dev, see `facetrain.evaluate.thresholds.choose_threshold`; and what becomes of refused
    comparisons: ``different``, they are not accepted; ``drop``, they are left out."""

    name: str
    far: float
    no_face: str


def make_criterion(criterion: str, far: float | None, no_face: str) -> Criterion:
    """UserError for what cannot be."""
    if far is not None and criterion != "far":
        raise UserError(f"far = {far} is of criterion=far, not of criterion={criterion}")
    made = Criterion(criterion, FAR if far is None else far, check_no_face(no_face))
    check_criterion(made.name, made.far)
    return made


class Bob(Protocol):
    """data: the folder with ``dev/`` and ``eval/``, of which each holds lists, or the one above it; ``protocol`` chooses
    among several in it. Or a folder with the score files ``scores-dev`` and ``scores-eval`` (also .txt and .csv), of which no
    photographs are needed. Without eval, dev is measured on itself.

    images: the folder that the lists' names are below; by default ``images/`` or ``raw/`` in ``data``, else ``data``.
    extension: what the names lack, ``.jpg``; by default looked for. comparisons: ``all``, each model with each probe, or
    ``listed``; by default as the lists have it. models: a model or probe of several photographs is the ``mean`` of their
    embeddings, or the pair with the ``max`` score counts. criterion, far, no_face: see `Criterion`.
    """

    def __init__(
        self,
        data: Path,
        *,
        protocol: str | None = None,
        images: str | None = None,
        extension: str | None = None,
        comparisons: str | None = None,
        models: str = "mean",
        criterion: str = "eer",
        far: float | None = None,
        no_face: str = "different",
    ) -> None:
        self.criterion = make_criterion(criterion, far, no_face)
        if models not in MODELS:
            raise UserError(f"models = '{models}': choose {' or '.join(MODELS)}")
        if comparisons not in (None, *COMPARISONS):
            raise UserError(f"comparisons = '{comparisons}': choose {' or '.join(COMPARISONS)}")
        self.models = models
        self.groups: dict[str, Group] = {}
        self.scores = _score_files(data)
        if self.scores:
            if (data / "dev").is_dir():
                raise UserError(f"{data} holds lists and score files: move the one aside that is not meant")
            named = {
                "protocol": protocol,
                "images": images,
                "extension": extension,
                "comparisons": comparisons,
                "models": None if models == "mean" else models,
            }
            for name, value in named.items():
                if value is not None:
                    raise UserError(f"{data} holds score files: {name} = '{value}' is of lists, leave it out")
            self.photographs = Photographs(data, ())
            self.facts = {"scores": {name: str(file) for name, file in self.scores.items()}}
        else:
            folder = _protocol_folder(data, protocol)
            root = Path(images) if images else first_there(data, ("images", "raw", "."), "photographs")
            names = Names()
            there = [name for name in GROUPS if name == "dev" or (folder / name).is_dir()]
            self.groups = {name: read_group(folder / name, names, comparisons) for name in there}
            for name, group in self.groups.items():
                _check_numbers(folder / name, name, group, self.criterion)
            found = find_files(root, with_suffixes(root, names, extension))
            self.photographs = Photographs(root, list(found.values()))
            self.people = frozenset(
                person
                for group in self.groups.values()
                for side in (group.models, group.probes)
                for person in side.people
            )
            self.facts = {"lists": str(folder), "images": str(root), "models": models}
        there = [name for name in reversed(GROUPS) if name in (self.scores or self.groups)]
        self.figures = {name: figure for group in there for name, figure in FIGURES[group].items()}

    def measure(self, embeddings: Embeddings, found: Bools, *, device: Any = None) -> Measured:
        if self.scores:
            return _measure_files(self.scores, self.criterion)
        compared, files = {}, {}
        for name, group in self.groups.items():
            models, probes = group.comparisons()
            scores = scores_of(group, embeddings, found, self.models)
            first, second = _photographs(group.models, models), _photographs(group.probes, probes)
            compared[name] = Compared(scores, _same(group, models, probes), first, second)
            files[f"scores-{name}"] = score_lines(
                group.models.people, group.probes.people, group.probes.names, models, probes, scores
            )
        counts: dict[str, int | str] = {
            f"models / probes, {name}": f"{len(group.models):,} / {len(group.probes):,}"
            for name, group in self.groups.items()
        }
        notes = []
        if not found.all():
            notes.append(without_face(found))
        return _measured(compared, self.criterion, counts=counts, files=files, notes=notes)


def measure_score_files(
    dev: Path,
    eval: Path | None,
    criterion: str = "eer",
    *,
    far: float | None = None,
    no_face: str = "different",
) -> Measured:
    """What score files say that any program wrote, see `facetrain.evaluate.score_files`. The figures are those of
    `FIGURES`; without ``eval``, those of dev alone. UserError for whatever is wrong with them."""
    files = {"dev": dev} if eval is None else {"dev": dev, "eval": eval}
    return _measure_files(files, make_criterion(criterion, far, no_face))


@dataclass(frozen=True, eq=False)
class Compared:
    """Comparisons of one group, n of them: scores float64 [n], -inf = refused; same bool [n]; the photographs that were
    compared, int64 [n], None where templates were, or where they are not known."""

    scores: Floats
    same: Bools
    first: Ints | None = None
    second: Ints | None = None


def _measure_files(files: Mapping[str, Path], criterion: Criterion) -> Measured:
    compared = {}
    for name, file in files.items():
        read = read_scores(file)
        check_kinds(int(read.same.sum()), int((~read.same).sum()), f"{file}: ")
        compared[name] = Compared(read.scores, read.same)
    return _measured(compared, criterion)


def _measured(
    compared: Mapping[str, Compared],
    criterion: Criterion,
    *,
    counts: Mapping[str, int | str] | None = None,
    files: Mapping[str, Iterable[str]] | None = None,
    notes: Sequence[str] = (),
) -> Measured:
    """Choose the threshold on ``dev``, measure both groups at it."""
    kept, notes = {}, list(notes)
    for name, group in compared.items():
        refused = group.scores == -np.inf
        if refused.any():
            how = "not accepted" if criterion.no_face == "different" else "left out"
            notes.append(
                f"{int(refused.sum()):,} of {len(refused):,} comparisons of {name} are refused: {how}"
            )
        kept[name] = _where(group, ~refused) if criterion.no_face == "drop" else group
        same = int(kept[name].same.sum())
        check_kinds(same, len(kept[name].same) - same, f"{name}: ")
    dev = kept["dev"]
    threshold = choose_threshold(dev.scores, dev.same, criterion.name, far=criterion.far)
    values: dict[str, float | None] = {}
    details: dict[str, Any] = {"criterion": criterion.name, "no_face_rule": criterion.no_face}
    details["thresholds"] = [threshold if math.isfinite(threshold) else None]
    if criterion.name == "far":
        details["far"] = criterion.far
    pairs: dict[str, int | str] = {}
    for name, group in kept.items():
        rates = error_rates(group.scores, group.same, threshold)
        far, tar, _ = roc(group.scores, group.same)
        found = (rates.hter, rates.fmr, rates.fnmr, eer(far, tar), auc(far, tar))
        values.update(zip(FIGURES[name], found, strict=True))
        details[name] = rates.to_dict()
        pairs[f"comparisons, same / different, {name}"] = f"{rates.same_pairs:,} / {rates.different_pairs:,}"
    if len(kept) == 1:
        notes.append(
            "there is no eval group: the threshold is chosen on the comparisons that it is measured on, which flatters it"
        )
    chosen = criterion.name + (f" {criterion.far:g}" if criterion.name == "far" else "")
    shown = "+inf" if math.isinf(threshold) else f"{threshold:.6g}"
    return Measured(
        values=values,
        counts={f"threshold ({chosen} on dev)": shown, **pairs, **(counts or {})},
        details=details,
        trials=_trials(kept),
        files=files or {},
        notes=notes,
    )


def _where(group: Compared, keep: Bools) -> Compared:
    first, second = (None if rows is None else rows[keep] for rows in (group.first, group.second))
    return Compared(group.scores[keep], group.same[keep], first, second)


def _trials(groups: Mapping[str, Compared]) -> Trials:
    """All comparisons, with the number of their group: 0 dev, 1 eval. Curves are of eval, or of dev where it is alone."""

    def joined(parts: list[Ints | None]) -> Ints | None:
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if len(known) == len(parts) else None

    parts = list(groups.values())
    first, second = joined([part.first for part in parts]), joined([part.second for part in parts])
    whole = first is not None and second is not None
    group = np.repeat(np.arange(len(parts)), [len(part.scores) for part in parts])
    return Trials(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.same for part in parts]),
        first if whole else None,
        second if whole else None,
        group,
        shown=group == len(parts) - 1,
    )


def _score_files(data: Path) -> dict[str, Path]:
    """The score files in ``data``, by group; {} where there are none."""
    found = {}
    for group in GROUPS:
        names = [f"scores-{group}{ending}" for ending in ("", ".txt", ".csv")]
        there = [name for name in names if (data / name).is_file()]
        if len(there) > 1:
            raise UserError(f"{data} holds {' and '.join(there)}: leave the one that counts")
        if there:
            found[group] = data / there[0]
    if found and "dev" not in found:
        raise UserError(
            f"{data} holds {found['eval'].name} without scores-dev, on which the threshold is chosen"
        )
    return found


def _protocol_folder(data: Path, protocol: str | None) -> Path:
    """The folder that ``dev`` is in."""
    if not data.is_dir():
        raise UserError(f"{data}: no such folder; name the one that holds the lists or the score files")
    if protocol is not None:
        if not (data / protocol / "dev").is_dir():
            raise UserError(f"protocol = '{protocol}': there is no folder {data / protocol / 'dev'}")
        return data / protocol
    if (data / "dev").is_dir():
        return data
    there = sorted(path.name for path in data.iterdir() if (path / "dev").is_dir())
    if not there:
        raise UserError(f"{data} holds no lists (dev/, or a folder with it), and no score files (scores-dev)")
    if len(there) > 1:
        raise UserError(
            f"{data} holds several protocols: choose with protocol={there[0]}, or {', '.join(there[1:])}"
        )
    return data / there[0]


def _check_numbers(folder: Path, name: str, group: Group, criterion: Criterion) -> None:
    """That a threshold can be had of it, before hours go into embedding."""
    models, probes = _people(group)
    if group.listed is None:
        number = max(int(models.max()), int(probes.max())) + 1
        same = int(np.bincount(models, minlength=number) @ np.bincount(probes, minlength=number))
        total = len(models) * len(probes)
    else:
        same, total = int(_same(group, *group.listed).sum()), len(group.listed[0])
    check_kinds(same, total - same, f"{folder}: ")
    if name == "dev" and criterion.name == "far":
        check_resolution(criterion.far, total - same)


def _people(group: Group) -> tuple[Ints, Ints]:
    """The people of models and probes as numbers, the same for the same name."""
    number: dict[str, int] = {}
    models, probes = (
        np.array([number.setdefault(person, len(number)) for person in side.people], np.int64)
        for side in (group.models, group.probes)
    )
    return models, probes


def _same(group: Group, models: Ints, probes: Ints) -> Bools:
    of_model, of_probe = _people(group)
    same: Bools = of_model[models] == of_probe[probes]
    return same


def _photographs(side: Templates, rows: Ints) -> Ints | None:
    """The photograph of each template in ``rows``; None where one has several."""
    return np.array(side.rows, np.int64)[rows] if len(side.rows) == len(side) else None
