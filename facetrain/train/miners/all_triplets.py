"""Every triplet that violates the margin."""

from __future__ import annotations

from facetrain.errors import UserError
from facetrain.kernels.mining import MAX_TRIPLETS
from facetrain.train.miners.mined import Mined


class AllTriplets(Mined):
    """Every (anchor, positive, negative) with d²(a,n) < d²(a,p) + margin.

    There can be N·(K − 1)·(N − K) of them, 10 million at N = 640 photographs, K = 25 of each person.

    max_triplets: with more than so many, 24 bytes each, the training ends with a line that says how many there are.
    """

    def __init__(self, *, max_triplets: int = MAX_TRIPLETS) -> None:
        if max_triplets < 1:
            raise UserError(f"max_triplets = {max_triplets}: choose 1 or more")
        super().__init__(strategy="all", max_triplets=max_triplets)
