"""AdaM-Softmax (AdaptiveFace)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from facetrain.train.losses.checks import within
from facetrain.train.losses.head import Head, Targets


class AdaMSoftmax(Head):
    """cos θ − m_y at the own class, with a learned margin m_c for each class; plus a pull on all of them to be large.

    The loss gains regulariser · (1 − mean m). Classes with few photographs, which cannot spread, come to have larger
    margins. ``margins`` [C] is kept in [0, 1].

    Source: Liu et al., "AdaptiveFace", CVPR 2019; defaults: FaceX-Zoo's, whose margins begin at random from .3 to .4.

    margin_cos: where the margins begin. regulariser: the paper's λ. ``margin_share`` acts on the margins and on the
    regulariser, which would drive unused margins to 1.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin_cos: float = 0.35,
        regulariser: float = 70.0,
        scale: float = 30.0,
    ) -> None:
        super().__init__(num_classes, embedding_dim, scale)
        self.regulariser = within("regulariser", regulariser, 0, 1e6)
        self.margins = nn.Parameter(torch.full((num_classes,), float(within("margin_cos", margin_cos, 0, 1))))

    def target(self, targets: Targets) -> Tensor:
        return targets.cos_B - self.margin_share * self.margins[targets.labels_B].to(targets.cos_B.dtype)

    def extra(self, targets: Targets) -> Tensor:
        return self.margin_share * self.regulariser * (1 - self.margins.to(targets.cos_B.dtype).mean())

    def observe(self, targets: Targets) -> None:
        self.margins.clamp_(0, 1)  # a step may have led out of it

    def stats(self, targets: Targets) -> dict[str, Tensor]:
        return {"margin_cos": self.margins.mean()}
