"""Pruning: leave out people with too few photographs. A column of the index; nothing is moved or deleted."""

from __future__ import annotations

import numpy as np

from facetrain.errors import UserError


def prune(person: np.ndarray, usable: np.ndarray, min_photographs: int) -> np.ndarray:
    """bool [rows]: of a person with at least ``min_photographs`` usable photographs.

    person: int [rows], the code of each row's identity, -1 where it has none.
    """
    if min_photographs < 1:
        raise UserError(f"--min {min_photographs}: ask for at least 1 photograph per person")
    known = person >= 0
    counts = np.bincount(person[usable & known], minlength=person.max(initial=-1) + 1)
    enough = np.append(counts >= min_photographs, False)  # the last is for -1
    return enough[person]
