"""Proxy-NCA (Movshovitz-Attias et al., ICCV 2017)."""

import torch
from torch import nn
from torch.nn import functional as F

from facetrain.train.losses.base import Loss


class ProxyNCA(Loss):
    """Mean over the batch of −log(exp(−d²(x, p_y)) / Σ_{z≠y} exp(−d²(x, p_z))).

    p_z is a learned vector for person z; d² is between vectors of length ``scale``.
    """

    def __init__(self, num_classes: int, embedding_dim: int, *, scale: float = 3.0) -> None:
        super().__init__()
        self.scale = scale
        self.proxies = nn.Parameter(torch.randn(num_classes, embedding_dim))

    def forward(self, embeddings, labels, generator=None, num_anchors=None):
        cosine = F.normalize(embeddings) @ F.normalize(self.proxies).T
        distance = self.scale**2 * (2 - 2 * cosine)  # squared, [n, num_classes]
        own = F.one_hot(labels, len(self.proxies)).bool()
        others = (-distance).masked_fill(own, -torch.inf).logsumexp(1)
        rows = max(len(labels), 1)  # an empty batch has the loss 0
        loss = (distance[own] + others).sum() / rows
        right = (distance.argmin(1) == labels).sum() / rows
        return loss, {"train_accuracy": right}
