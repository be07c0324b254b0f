"""InfoNCE: SimCLR's NT-Xent, for any labels; and supervised contrastive loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from facetrain.train.losses.checks import positive
from facetrain.train.losses.pairs import PairLoss, logsumexp_where, mean_where


class InfoNCE(PairLoss):
    """Mean over ordered positive pairs (a, p) of −ln( exp(s_ap/τ) / (exp(s_ap/τ) + Σₙ exp(s_an/τ)) ), s the cosines, n
    the anchor's negatives: the pair has to stand out among them; other positives play no part in it.

    temperature: τ. With two views of each photograph and their rows as labels this is NT-Xent.

    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018; Chen et al., "A
    Simple Framework for Contrastive Learning of Visual Representations" (SimCLR), ICML 2020 (τ 0.1 to 0.5). τ here is
    0.07, as in MoCo.
    """

    def __init__(self, *, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def of_pairs(self, cos_AN: Tensor, positive_AN: Tensor, negative_AN: Tensor) -> Tensor:
        logits_AN = cos_AN / self.temperature
        negatives_A = logsumexp_where(logits_AN, negative_AN)
        return mean_where(F.softplus(negatives_A[:, None] - logits_AN), positive_AN)


class SupCon(PairLoss):
    """Mean over anchors a of the mean over their positives p of −ln( exp(s_ap/τ) / Σₖ exp(s_ak/τ) ), s the cosines, k
    all the anchor's positives and negatives: the form L_out of the paper.

    temperature: τ. Anchors without a positive are left out.

    Source: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020 (τ 0.1).
    """

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def of_pairs(self, cos_AN: Tensor, positive_AN: Tensor, negative_AN: Tensor) -> Tensor:
        logits_AN = cos_AN / self.temperature
        all_A = logsumexp_where(logits_AN, positive_AN | negative_AN)
        count_A = positive_AN.sum(dim=1)
        mean_positive_A = logits_AN.masked_fill(~positive_AN, 0).sum(dim=1) / count_A.clamp_min(1)
        return mean_where(all_A - mean_positive_A, count_A > 0)
