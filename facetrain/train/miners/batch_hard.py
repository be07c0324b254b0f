"""Batch-hard mining."""

from __future__ import annotations

import math

from facetrain.train.miners.mined import Mined


class BatchHard(Mined):
    """One triplet for each anchor: its furthest positive and its closest negative.

    Whether they violate the margin or not, as in the paper, whose loss is a mean over all anchors; ``average =
    "active"`` of the triplet loss leaves out those that do not. Of rows at the same distance the first is taken.

    Source: Hermans, Beyer and Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017.
    """

    def __init__(self) -> None:
        super().__init__(margin=math.inf, strategy="hardest", positives="furthest")
