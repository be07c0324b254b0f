"""The image-similarity challenge (Douze et al. 2021), scored as its descriptor track.

Which references was a query made from, if any? All predictions are pooled: a score must mean the same for every query.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.evaluate.protocols.base import Figure, Measured, Photographs, Protocol, without_face
from facetrain.evaluate.protocols.files import fault, first_there, read_lines
from facetrain.evaluate.protocols.isc_file import Descriptors, open_descriptors
from facetrain.evaluate.protocols.isc_predictions import Predictions, predict
from facetrain.evaluate.retrieval import image_similarity
from facetrain.evaluate.search import Embeddings
from facetrain.files import PHOTOGRAPHS
from facetrain.image_spec import SPEC_FILE

K = 10  # predictions for each query, as the challenge's script has it
LIMIT = 500_000  # the most that the challenge took
TRUTH = ("ground_truth.csv", "public_ground_truth.csv", "gt.csv")
QUERIES, REFERENCES = ("queries", "query_images", "query"), ("references", "reference_images", "reference")

FIGURES = {
    "micro_average_precision": Figure("micro average precision"),
    "recall_at_p90": Figure("recall at precision 0.9"),
}


@dataclass(frozen=True)
class Truth:
    """A ground truth: each query and each pair, with the line that has it first."""

    path: Path
    queries: dict[str, int]
    pairs: dict[tuple[str, str], int]


class ImageSimilarity(Protocol):
    """data: a ground truth, ``query_id,reference_id`` a line, with ``embeddings``, an .h5 file in the challenge's layout; or a
    folder with ``ground_truth.csv``, ``queries/`` and ``references/``, whose photographs are embedded.

    k: predictions for each query; by default the k · Q nearest pairs of Q queries are predicted, as the challenge does
    it, and with ``per_query`` the k nearest references of each. limit: the most predictions; 0: any number. allow_missing:
    queries and references of the ground truth that are not there count as never predicted. whole: photographs are taken as
    they are, and no face is looked for.
    """

    figures = FIGURES

    def __init__(
        self,
        data: Path,
        *,
        embeddings: str | None = None,
        k: int = K,
        per_query: bool = False,
        limit: int = LIMIT,
        allow_missing: bool = False,
        whole: bool = False,
    ) -> None:
        if k < 1 or limit < 0:
            raise UserError(f"k = {k}, limit = {limit}: k is at least 1, and limit at least 0")
        self.k, self.per_query, self.limit = k, per_query, limit
        self.file: Descriptors | None = None
        if embeddings is not None:
            if whole:
                raise UserError("whole is of photographs: leave it out where there are embeddings")
            truth = _read_truth(data)
            self.file = open_descriptors(Path(embeddings))
            self.query_ids, self.reference_ids = self.file.query_ids, self.file.reference_ids
            self.unnamed = sum(name not in truth.queries for name in self.query_ids)
            self.photographs = Photographs(data, ())
            where = str(embeddings)
        else:
            if data.is_file():
                raise UserError(
                    f"{data} is a file: say embeddings=FILE.h5, or name the folder with the photographs"
                )
            truth = _read_truth(first_there(data, TRUTH, "ground truth"))
            allow_missing = allow_missing or (data / SPEC_FILE).is_file()
            queries, references = (
                _photographs_in(data, folders, what)
                for folders, what in ((QUERIES, "queries"), (REFERENCES, "references"))
            )
            named = {name: path for name, path in queries.items() if name in truth.queries}
            self.query_ids, self.reference_ids = list(named), list(references)
            self.unnamed = len(queries) - len(named)
            paths = [*named.values(), *references.values()]
            self.photographs = Photographs(data, paths, kind="faces" if whole else "photographs")
            where = str(data)
        self._match(truth, where, allow_missing)
        self.facts = {
            "ground_truth": str(truth.path),
            "embeddings" if self.file else "images": where,
            "k": k,
            "per_query": per_query,
            "limit": limit,
        }

    def _match(self, truth: Truth, where: str, allow_missing: bool) -> None:
        """Rows of the queries that count, and of the true pairs; what is missing is said, or counted."""
        query_row = {name: row for row, name in enumerate(self.query_ids)}
        reference_row = {name: row for row, name in enumerate(self.reference_ids)}
        missing = [(line, "query", name) for name, line in truth.queries.items() if name not in query_row]
        self.missing_queries = len(missing)
        found = {reference: line for (_, reference), line in reversed(truth.pairs.items())}
        absent = [(line, "reference", name) for name, line in found.items() if name not in reference_row]
        self.missing_references = len(absent)
        if (missing or absent) and not allow_missing:
            line, what, name = min(missing + absent)
            number = len(missing) + len(absent) - 1
            more = f" ({number:,} more are missing)" if number else ""
            why = f"there is no {what} {name} in {where}{more}; allow_missing=true counts such as never predicted"
            raise fault(truth.path, line, why)
        self.queries = np.array([query_row[name] for name in truth.queries if name in query_row], np.int64)
        if not len(self.queries):
            raise UserError(f"none of the {len(truth.queries):,} queries of {truth.path} is in {where}")
        # What is not there gets a row that nothing is predicted of.
        self.true_rows = np.array(
            [
                (
                    query_row.setdefault(query, len(query_row)),
                    reference_row.setdefault(reference, len(reference_row)),
                )
                for query, reference in truth.pairs
            ],
            np.int64,
        )

    def measure(self, embeddings: Embeddings, found: NDArray[np.bool_], *, device: Any = None) -> Measured:
        notes: list[str] = []
        queries: Embeddings
        references: Embeddings
        if self.file is not None:
            queries, references = self.file.read("query"), self.file.read("reference")
            found = np.ones(len(queries) + len(references), bool)
        else:
            queries, references = embeddings[: len(self.query_ids)], embeddings[len(self.query_ids) :]
            if not found.all():
                notes.append(f"{without_face(found)}: nothing is predicted of them")
        of_query, of_reference = found[: len(self.query_ids)], found[len(self.query_ids) :]
        rows, able = self.queries[of_query[self.queries]], np.flatnonzero(of_reference)
        wanted = self.k * len(self.queries)
        cut = wanted if self.limit == 0 else min(wanted, self.limit)
        predictions = predict(
            queries,
            rows,
            references,
            able,
            self.true_rows,
            number=cut,
            per_query=self.k if self.per_query else None,
            device=device,
        )
        notes += self._notes(wanted, cut)
        result = image_similarity(
            predictions.queries, predictions.references, predictions.scores, *self.true_rows.T
        )
        return Measured(
            values={
                "micro_average_precision": result.micro_average_precision,
                "recall_at_p90": result.recall_at_precision,
            },
            counts={
                "queries / references": f"{len(self.queries):,} / {len(self.reference_ids):,}",
                "predictions": result.predictions,
                "true matches, predicted / all": f"{result.true_matches_predicted:,} / {result.true_matches:,}",
            },
            details={"similarity": result.to_dict()},
            files={"predictions.csv": self._lines(predictions)},
            notes=notes,
        )

    def _notes(self, wanted: int, cut: int) -> Iterator[str]:
        """What a reader of the figures must know of queries and predictions that are left out."""
        if self.unnamed:
            yield (
                f"{self.unnamed:,} of {self.unnamed + len(self.queries):,} queries are not in the ground truth, and left out; "
                f"one without a match is a line without a reference"
            )
        if self.missing_queries or self.missing_references:
            yield (
                f"{self.missing_queries:,} queries and {self.missing_references:,} references of the ground truth are missing: "
                f"they count as never predicted"
            )
        if cut < wanted:
            yield f"{cut:,} predictions are taken, not {wanted:,} ({self.k} for each query): limit says so"

    def _lines(self, predictions: Predictions) -> Iterator[str]:
        """The matching track's file."""
        yield "query_id,reference_id,score\n"
        columns = predictions.queries.tolist(), predictions.references.tolist(), predictions.scores.tolist()
        for query, reference, score in zip(*columns, strict=True):
            yield f"{self.query_ids[query]},{self.reference_ids[reference]},{score!r}\n"


def _read_truth(path: Path) -> Truth:
    """``query_id,reference_id`` a line, the header optional; a query without a match has no reference."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: with embeddings, --data is the ground truth, a .csv file")
    queries: dict[str, int] = {}
    pairs: dict[tuple[str, str], int] = {}
    empty: dict[str, int] = {}
    for line, text in read_lines(path, "ground truth"):
        words = [word.strip() for word in next(csv.reader([text]))]
        if words == ["query_id", "reference_id"] and not queries:
            continue
        if len(words) != 2 or not words[0]:
            raise fault(
                path,
                line,
                "expected 'query_id,reference_id', or 'query_id,' for a query without a match",
                text,
            )
        query, reference = words
        if (query, reference) in pairs or query in empty or (not reference and query in queries):
            raise fault(path, line, f"query {query} is listed in line {queries[query]} already", text)
        if reference:
            pairs[query, reference] = line
        else:
            empty[query] = line
        queries.setdefault(query, line)
    if not pairs:
        raise UserError(f"{path}: the ground truth has no true match")
    return Truth(path, queries, pairs)


def _photographs_in(data: Path, folders: tuple[str, ...], what: str) -> dict[str, str]:
    """The photographs right in the first of ``folders`` that is there, by their names without suffix: id → path."""
    folder = first_there(data, folders, what)
    found: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in PHOTOGRAPHS:
            continue
        while suffix.lower() in PHOTOGRAPHS:  # a crop of Q1.png may be called Q1.png.jpg
            name_only, (stem, suffix) = stem, os.path.splitext(stem)
        stem = name_only
        if stem in found:
            raise UserError(
                f"{folder}: {Path(found[stem]).name} and {name} are both {what} {stem}: leave one"
            )
        found[stem] = f"{folder.name}/{name}"
    if not found:
        raise UserError(f"{folder} holds no photographs")
    return found
