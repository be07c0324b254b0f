"""AdaFace."""

from __future__ import annotations

import torch
from torch import Tensor

from facetrain.train.losses.checks import positive, within
from facetrain.train.losses.head import Head, Targets, mean
from facetrain.train.losses.heads.angles import cos_shifted


class AdaFace(Head):
    """cos(θ − margin · z) − (margin + margin · z) at the own class, z from the length of the raw embedding.

    z = clip(h · (length − mean) / std, −1, 1), where mean and std follow the training's lengths by a moving average,
    and carries no gradient. Long embeddings (clear photographs) get an additive margin, which dwells on the hard ones;
    short ones an angular margin, which does not. θ − margin · z is kept in [0, π].

    Source: Kim et al., "AdaFace", CVPR 2022. Defaults: the paper's.

    margin: in radians in the first place, of the cosine in the second. h: how fast z saturates. ema: share of the
    batch in mean and std (buffers, 20 and 100 at first, as the authors' code has them).
    """

    norm_mean: Tensor
    norm_std: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin: float = 0.4,
        h: float = 0.333,
        scale: float = 64.0,
        ema: float = 0.01,
    ) -> None:
        super().__init__(num_classes, embedding_dim, scale)
        self.margin, self.h = within("margin", margin, 0, 1), positive("h", h)
        self.ema = within("ema", ema, 0, 1)
        self.register_buffer("norm_mean", torch.tensor(20.0))
        self.register_buffer("norm_std", torch.tensor(100.0))

    def target(self, targets: Targets) -> Tensor:
        margin = self.margin_share * self.margin
        z_B = self.quality(targets)
        return cos_shifted(targets.cos_B, -margin * z_B) - (margin + margin * z_B)

    def quality(self, targets: Targets) -> Tensor:
        """z [B], from −1 to 1."""
        z_B = (_norm(targets) - self.norm_mean) / (self.norm_std + 1e-3)
        return (self.h * z_B).clamp(-1, 1).to(targets.cos_B.dtype)

    def observe(self, targets: Targets) -> None:
        norm_B = _norm(targets).to(self.norm_mean.dtype)
        self.norm_mean.lerp_(norm_B.mean(), self.ema)
        if len(norm_B) > 1:  # one row has no spread
            self.norm_std.lerp_(norm_B.std(), self.ema)

    def stats(self, targets: Targets) -> dict[str, Tensor]:
        return {"embedding_norm": mean(targets.norm_B), "quality": mean(self.quality(targets))}


def _norm(targets: Targets) -> Tensor:
    return targets.norm_B.detach().clamp(1e-3, 100)
