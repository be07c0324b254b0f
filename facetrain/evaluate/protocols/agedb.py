"""AgeDB-30 (Moschoglou et al., 2017): pairs whose photographs were taken 30 years apart.

AgeDB's own list is a MATLAB file with a cell array ``splits``. Each of the ten cells holds a structure of two fields, by
their order: 2 × 600 cells, each with a structure whose first field is the name of a photograph without ``.jpg``; and 600
numbers, 1 for the same person, -1 for different ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.evaluate.protocols.listed_pairs import ListedPairs, PathPairs, read_path_pairs
from facetrain.evaluate.protocols.matlab import read_matlab

MATLAB = "04_FINAL_protocol_30_years.mat"


class AgeDb30(ListedPairs):
    """AgeDB's protocol of 30 years, in its ten folds.

    data: the folder with its MATLAB file, or with a list of paths, and the photographs in ``03_Protocol_Images``.
    ``pairs`` and ``images`` name them where they lie elsewhere.
    """

    lists = (MATLAB, "agedb_30_pair.txt", "agedb_30_pairs.txt", "agedb_30_ann.txt")
    folders = (
        "03_Protocol_Images",
        "03_Protocol_Images/03_Protocol_Images",
        "AgeDB",
        "images",
        ".",
        "agedb30_align_112",
    )

    def read(self, path: Path) -> PathPairs:
        return _read_matlab(path) if path.suffix == ".mat" else read_path_pairs(path)

    def people_of(self, names: Iterable[str]) -> frozenset[str]:
        """Its names are not those of other sets."""
        return frozenset()


class _MatlabPairs(PathPairs):
    """Numbers tell the fold of pairs of both kinds: fold f, from 1, is f or -f."""

    @property
    def folds(self) -> NDArray[np.int64]:
        return np.abs(self.numbers) - 1


def _read_matlab(path: Path) -> PathPairs:
    """The line of a pair is its number in the file, from 1."""
    content = read_matlab(path, "list of pairs", ("splits",))
    first: list[str] = []
    second: list[str] = []
    numbers: list[int] = []
    for fold, cell in enumerate(np.asarray(content["splits"]).ravel(), start=1):
        try:
            ends, labels = _fold(cell)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise UserError(
                f"{path}: fold {fold} is not as AgeDB has it: 2 x n names of photographs, and n numbers"
            ) from None
        first += [f"{name}.jpg" for name in ends[0]]
        second += [f"{name}.jpg" for name in ends[1]]
        numbers += [fold if label > 0 else -fold for label in labels]
    if not numbers:
        raise UserError(f"{path}: the list of pairs is empty")
    return _MatlabPairs(path, first, second, np.array(numbers, np.int64), list(range(1, len(numbers) + 1)))


def _fold(cell: Any) -> tuple[list[list[str]], list[float]]:
    """(names of the first and of the second photographs, labels). Each layer of MATLAB's is an array of one thing."""
    names, labels = list(cell.ravel()[0])[:2]
    ends = [[str(item.ravel()[0][0].item()) for item in row] for row in names]
    numbers = [float(label) for label in labels.ravel()]
    if len(ends) != 2 or not len(ends[0]) == len(ends[1]) == len(numbers):
        raise ValueError("numbers that do not fit")
    return ends, numbers
