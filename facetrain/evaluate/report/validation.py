"""What the embeddings of a validation split show: probable label errors, and a map."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from facetrain.evaluate.label_errors import LabelErrors, find_label_errors
from facetrain.evaluate.report.content import Doubt, Doubts, Person, Picture, Validation
from facetrain.evaluate.report.embedding_map import embedding_map
from facetrain.evaluate.report.pictures import jpeg_uri
from facetrain.evaluate.report.texts import signed

MOST_DOUBTS = 8  # of each kind
MOST_FARTHEST = 16
TYPICAL = 3  # photographs of a person that something is held against

Embeddings = NDArray[np.float32]
Labels = NDArray[np.int64]
Show = Callable[[NDArray[np.int64]], NDArray[np.uint8]]


def look_at(
    embeddings: Embeddings,
    labels: Labels,
    names: Sequence[str],
    paths: Sequence[str],
    show: Show,
    notes: Sequence[str] = (),
) -> Validation:
    """embeddings: float32 [n, D] of length 1. labels: int64 [n], rows of ``names``. show: crops uint8 [k, H, W, 3] of k of
    the n rows."""
    faces = _Faces(embeddings, labels, names, paths, show)
    errors = find_label_errors(embeddings, labels)
    return Validation(
        photographs=len(labels),
        people=len(np.unique(labels)),
        outliers=_outliers(errors, faces),
        two_in_one=_two_in_one(errors, faces),
        one_in_two=_one_in_two(errors, faces),
        farthest=_farthest(faces),
        map=embedding_map(embeddings, labels, names),
        notes=notes,
    )


def _outliers(errors: LabelErrors, faces: _Faces) -> Doubts:
    doubts = []
    for found in errors.outliers[:MOST_DOUBTS]:
        own = faces.person(found.label, leave_out=found.row)
        near = faces.person(found.nearest_label)
        doubts.append(
            Doubt(
                faces.these([found.row], ""),
                [
                    (f"the others, cosine {signed(found.own_cosine, 2)}", own),
                    (f"nearest person, cosine {signed(found.nearest_cosine, 2)}", near),
                ],
            )
        )
    return Doubts(doubts, len(errors.outliers))


def _two_in_one(errors: LabelErrors, faces: _Faces) -> Doubts:
    doubts = []
    for found in errors.two_in_one[:MOST_DOUBTS]:
        name = faces.names[found.label]
        one = faces.these(found.rows, f"{name}: these {len(found.rows)}")
        other = faces.these(found.other_rows, f"and these {len(found.other_rows)}")
        doubts.append(Doubt(one, [(f"mean cosine between them {signed(found.cosine, 2)}", other)]))
    return Doubts(doubts, len(errors.two_in_one))


def _one_in_two(errors: LabelErrors, faces: _Faces) -> Doubts:
    doubts = []
    for found in errors.one_in_two[:MOST_DOUBTS]:
        one, other = faces.person(found.first_label), faces.person(found.second_label)
        doubts.append(Doubt(one, [(f"mean cosine between them {signed(found.cosine, 2)}", other)]))
    return Doubts(doubts, len(errors.one_in_two))


def _farthest(faces: _Faces) -> list[tuple[Picture, str, float]]:
    """(photograph, person, cosine with the centre of the others), the lowest cosine first."""
    known = np.flatnonzero(np.isfinite(faces.own_cosine))
    worst = known[np.argsort(faces.own_cosine[known], kind="stable")[:MOST_FARTHEST]]
    pictures = faces.pictures(worst)
    return [
        (picture, faces.names[int(faces.labels[row])], float(faces.own_cosine[row]))
        for picture, row in zip(pictures, worst.tolist(), strict=True)
    ]


class _Faces:
    """The photographs of a split; ``own_cosine`` [n]: with the centre of the others of that name, NaN where there are none."""

    def __init__(
        self, embeddings: Embeddings, labels: Labels, names: Sequence[str], paths: Sequence[str], show: Show
    ) -> None:
        self.labels, self.names, self.paths, self._show = labels, names, paths, show
        total = np.zeros((len(names), embeddings.shape[1]))
        np.add.at(total, labels, embeddings)
        others = total[labels] - embeddings
        length = np.linalg.norm(others, axis=1)
        alone = np.bincount(labels, minlength=len(names))[labels] < 2
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine = (others * embeddings).sum(axis=1) / length
        self.own_cosine = np.where(alone | (length == 0), np.nan, cosine)

    def person(self, label: int, leave_out: int = -1) -> Person:
        """The photographs of a person that are nearest to its centre."""
        rows = np.flatnonzero(self.labels == label)
        rows = rows[rows != leave_out]
        typical = rows[np.argsort(-np.nan_to_num(self.own_cosine[rows], nan=-2), kind="stable")]
        return self.these(typical.tolist(), self.names[label])

    def these(self, rows: Sequence[int], name: str) -> Person:
        return Person(name, self.pictures(np.array(rows[:TYPICAL], np.int64)))

    def pictures(self, rows: NDArray[np.int64]) -> list[Picture]:
        if not len(rows):
            return []
        crops = self._show(rows)
        return [
            Picture(jpeg_uri(crop), self.paths[row]) for crop, row in zip(crops, rows.tolist(), strict=True)
        ]
