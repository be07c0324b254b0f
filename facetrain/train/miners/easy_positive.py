"""Easy-positive mining."""

from __future__ import annotations

from typing import ClassVar

from facetrain.errors import UserError
from facetrain.kernels.mining import Strategy
from facetrain.train.miners.mined import Mined


class EasyPositive(Mined):
    """One triplet for each anchor: its closest positive, and a negative that violates the margin with it.

    The photographs of a person need not all come together, only each near one other: that leaves room for differences
    of pose and age. Pairs without a violator are dropped.

    negative: ``semihard``, the closest of those further away than the positive (the paper's EPSHN); ``hardest``, the
    closest (EPHN); ``random``, any violator.

    Source: Xuan, Stylianou and Pless, "Improved Embeddings with Easy Positive Triplet Mining", WACV 2020.
    """

    strategies: ClassVar[dict[str, Strategy]] = {
        "semihard": "closest-semihard",
        "hardest": "hardest",
        "random": "all-violating-random",
    }

    def __init__(self, *, negative: str = "semihard") -> None:
        if negative not in self.strategies:
            raise UserError(f"negative = '{negative}': choose one of {', '.join(self.strategies)}")
        super().__init__(strategy=self.strategies[negative], positives="closest")
