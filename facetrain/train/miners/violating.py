"""A negative for every anchor–positive pair that has one which violates the margin."""

from __future__ import annotations

from facetrain.train.miners.mined import Mined


class AllViolatingRandom(Mined):
    """A negative at random among all with d²(a,n) < d²(a,p) + margin, those closer than the positive included.

    Source: Amos et al., "OpenFace", 2016.
    """

    def __init__(self) -> None:
        super().__init__(strategy="all-violating-random")


class SemiHard(Mined):
    """A negative at random among those with d²(a,p) < d²(a,n) < d²(a,p) + margin.

    Source: Schroff et al., "FaceNet", CVPR 2015, section 3.2.
    """

    def __init__(self) -> None:
        super().__init__(strategy="semihard")


class Hardest(Mined):
    """The closest negative, where d²(a,n) < d²(a,p) + margin. Early on this can pull all embeddings together."""

    def __init__(self) -> None:
        super().__init__(strategy="hardest")
