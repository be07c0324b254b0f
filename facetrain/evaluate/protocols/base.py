"""The contract of a protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from facetrain.evaluate.search import Embeddings


@dataclass(frozen=True, eq=False)
class Photographs:
    """The photographs of a protocol, n of them, each once.

    root, paths: their files, '/' between folders; "" for one of which an aligned tree has no crop. Or, of sets that are one file: ``root`` is that file, ``paths`` are
    what messages call the photographs in it, and ``read`` gives the i-th, encoded.

    kind: ``photographs``, in which a face is looked for; ``faces``, each one face cut out roughly, scaled to the
    network's size as it is (TinyFace, SurvFace); ``crops``, aligned already, of the network's size.

    landmarks: of photographs, float [n, 5, 2], x and y in pixels of the eyes, the nose and the corners of the mouth, the
    left one as one sees it first (insightface's order). Where a network takes crops on such points they are used, and no
    face is looked for.
    """

    root: Path
    paths: Sequence[str]
    kind: Literal["photographs", "faces", "crops"] = "photographs"
    landmarks: NDArray[np.floating[Any]] | None = None
    read: Callable[[int], bytes] | None = None

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Figure:
    """What a protocol measures: ``label`` for people; ``text`` how it is written."""

    label: str
    lower_is_better: bool = False
    text: str = ".4f"


@dataclass(frozen=True, eq=False)
class Trials:
    """Comparisons of two photographs, n of them: scores float64 [n], higher = more alike, -inf = refused; same bool [n];
    first and second int64 [n], rows of the protocol's photographs, None where templates of several were compared.

    groups: int [n], of protocols whose trials fall into parts (folds, dev and eval); for whoever reads the file.
    shown: bool [n], those that files, curves and pictures are of; None: all.
    """

    scores: NDArray[np.float64]
    same: NDArray[np.bool_]
    first: NDArray[np.int64] | None = None
    second: NDArray[np.int64] | None = None
    groups: NDArray[np.int64] | None = None
    shown: NDArray[np.bool_] | None = None

    def to_show(self) -> Trials:
        """Those that are to be shown."""
        keep = self.shown
        if keep is None:
            return self
        first, second, groups = (
            None if column is None else column[keep] for column in (self.first, self.second, self.groups)
        )
        return Trials(self.scores[keep], self.same[keep], first, second, groups)


@dataclass(frozen=True, eq=False)
class Measured:
    """What a protocol found out.

    values: one for each of the protocol's figures; None where the set is too small to resolve it.
    counts: what was compared, a label for people → a number or a short text; printed below the figures.
    details: plain values for the JSON file (thresholds, folds).
    trials: for curves, histograms and the hardest pairs; None where there are no comparisons one by one.
    files: text that is written beside the JSON file, by the end of the name: "scores-dev.txt" → its text.
    notes: whole sentences without a full stop, for people.
    """

    values: Mapping[str, float | None]
    counts: Mapping[str, int | str]
    details: Mapping[str, Any] = field(default_factory=dict)
    trials: Trials | None = None
    files: Mapping[str, Iterable[str]] = field(default_factory=dict)
    notes: Sequence[str] = ()


def without_face(found: NDArray[np.bool_]) -> str:
    """The beginning of a note, of photographs some of which were not found."""
    return f"{int((~found).sum()):,} of {len(found):,} photographs have no face that was found"


class Protocol(ABC):
    """A benchmark of the field. Constructed as ``Protocol(data, **protocol_args)``; ``data`` is its folder or file.

    The constructor reads and checks the lists (a wrong one is a UserError of one line, with the file and the line
    number) and looks whether the photographs are there. It decodes none.

    figures: by name, the first being the one that systems are ranked by. Names are lower case with underscores
    (``tar_at_far_0.001``): they are keys of the JSON file, and columns of a training's metrics.
    people: names of those who are in it, where they have names, so that it can be said who was trained on.
    facts: plain values that say what was measured (files, options), for the JSON file.
    """

    figures: Mapping[str, Figure]
    photographs: Photographs
    people: frozenset[str] = frozenset()
    facts: Mapping[str, Any]

    @abstractmethod
    def measure(self, embeddings: Embeddings, found: NDArray[np.bool_], *, device: Any = None) -> Measured:
        """embeddings: float32 [n, D] of the photographs, of length 1. found: bool [n], False where no face was found; the
        embedding is then all zeros. Nothing but these may decide: the same embeddings give the same figures.
        """
