"""NormFace."""

from __future__ import annotations

from facetrain.train.losses.head import Head


class NormFace(Head):
    """Softmax over scale · cos θ: no margin.

    Source: Wang et al., "NormFace", ACM Multimedia 2017. Default: 32, as of `cosface`, which is this head without its
    margin. A scale that is too small cannot reach a low loss: with C classes and p wanted for the own one it must be
    about ln((C − 1) p / (1 − p)) or more.
    """

    def __init__(self, num_classes: int, embedding_dim: int, *, scale: float = 32.0) -> None:
        super().__init__(num_classes, embedding_dim, scale)
