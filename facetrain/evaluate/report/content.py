"""What a report shows, as plain values; pictures are `data:` URIs. What is missing is said in its place, in a text that
may name a command between backquotes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.evaluate.metrics import Metrics

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Missing:
    """Something that the page would show if it were there; ``why`` ends in what would bring it."""

    why: str


@dataclass(frozen=True)
class Picture:
    """A crop; ``caption`` is where it lies."""

    uri: str
    caption: str

    @property
    def short(self) -> str:
        """The caption without folders that the file's name repeats, as LFW's do."""
        *folders, name = self.caption.split("/")
        return name if folders and name.startswith(folders[-1]) else self.caption


@dataclass(frozen=True)
class HardPair:
    """Two photographs that were compared. rank: 0 is the hardest of its kind."""

    first: Picture
    second: Picture
    same: bool
    score: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one JSON file of `ft evaluate` says, and the files beside it.

    scores float64 [n] and same bool [n]: every comparison, refused ones (-inf) included; None where there are none.
    test: what has to be equal for two evaluations to be compared. epoch: of the network, where that is known.
    threshold: at or above it a pair is taken for one person: the median of those of the folds, else that of equal errors.
    options: those of the protocol, as they were asked for. damaged: what there is to say of files beside it that are not
    shown, by what they would be shown in: "trials", "hardest".
    """

    file: Path
    name: str
    protocol: str
    test: tuple[Any, ...]
    values: Mapping[str, float | None]
    labels: Mapping[str, str]
    lower_is_better: frozenset[str]
    counts: Mapping[str, str]
    notes: Sequence[str]
    flip: bool
    epoch: int | None
    threshold: float | None
    scores: Floats | None = None
    same: NDArray[np.bool_] | None = None
    hardest: Sequence[HardPair] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    damaged: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Person:
    """Some photographs of one person, the most typical first. name: "" for a single one, which its caption names."""

    name: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Doubt:
    """A probable label error. subject: what is doubtful; beside: what it is held against, each with what there is to say."""

    subject: Person
    beside: Sequence[tuple[str, Person]]


@dataclass(frozen=True)
class Doubts:
    """The worst of ``total`` probable label errors of a kind."""

    worst: Sequence[Doubt]
    total: int


@dataclass(frozen=True, eq=False)
class EmbeddingMap:
    """points float64 [n, 2], wider than high; person int [n], rows of ``names``; method: how they came to lie there."""

    points: Floats
    person: NDArray[np.int64]
    names: Sequence[str]
    method: str


@dataclass(frozen=True, eq=False)
class Validation:
    """What the embeddings of the validation split show. farthest: photographs far from the centre of the others of their
    name, each with the name and the cosine. notes: whole sentences."""

    photographs: int
    people: int
    outliers: Doubts
    two_in_one: Doubts
    one_in_two: Doubts
    farthest: Sequence[tuple[Picture, str, float]]
    map: EmbeddingMap | Missing
    notes: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Data:
    """A dataset. parts: (name, people, photographs). statuses: (what, photographs), usable ones first; rejected_list: the
    file that names the others.

    per_person: int [people], photographs of each who is kept.
    """

    name: str
    raw: str
    parts: Sequence[tuple[str, int, int]]
    statuses: Sequence[tuple[str, int]]
    rejected_list: str | None
    per_person: NDArray[np.int64]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Kept:
    """The checkpoint that is a run's best: epochs finished, steps done, and what was measured of it, by column."""

    epoch: int
    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Run:
    """A training. settings: dotted names → values as text. validators: the columns of each → whether lower is better, the
    first being the one that ranks checkpoints. data: a key of the report's ``data``."""

    name: str
    folder: Path
    settings: Mapping[str, str] | Missing
    facts: Mapping[str, Any]
    metrics: Metrics | Missing
    validators: Sequence[Mapping[str, bool]]
    evaluations: Sequence[Evaluation]
    kept: Kept | None = None
    notes: Sequence[str] = ()
    data: str | Missing = field(default_factory=lambda: Missing(""))
    validation: Validation | Missing = field(default_factory=lambda: Missing(""))


@dataclass(frozen=True)
class Report:
    """Everything on the page. others: evaluations of other embedders, by what they are called."""

    runs: Sequence[Run]
    others: Mapping[str, Sequence[Evaluation]]
    data: Mapping[str, Data | Missing]
    written: str
