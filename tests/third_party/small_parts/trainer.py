"""Softmax and center loss (Wen et al., "A discriminative feature learning approach", ECCV 2016)."""

import torch
from torch import nn
from torch.nn import functional as F

from facetrain.train.trainers.base import Trainer


class CenterTrainer(Trainer):
    """Cross-entropy, and weight/2 times the squared distance of each embedding to the centre of its person.

    After each step the centres move by ``follow`` towards the embeddings that they saw. batch_size: photographs.
    """

    sampler = "shuffled"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        weight: float = 0.003,
        follow: float = 0.5,
        batch_size: int = 128,
    ) -> None:
        super().__init__()
        self.weight, self.follow, self.batch_size = weight, follow, batch_size
        self.head = nn.Linear(embedding_dim, num_classes)
        self.register_buffer("centres", torch.zeros(num_classes, embedding_dim))  # saved, and not optimised

    def sampler_args(self):
        return {"batch_size": self.batch_size, "drop_last": True}

    def forward(self, embeddings, batch, generator):
        logits = self.head(embeddings)
        distance = (embeddings - self.centres[batch.labels]).square().sum(1).mean()
        self.seen = embeddings.detach(), batch.labels  # until after_step, a moment later: nothing to save
        loss = F.cross_entropy(logits, batch.labels) + self.weight / 2 * distance
        right = (logits.argmax(1) == batch.labels).float().mean()
        return loss, {"train_accuracy": right, "distance_centre": distance.detach()}

    @torch.no_grad()
    def after_step(self, backbone):
        embeddings, labels = self.seen
        photographs = torch.bincount(labels, minlength=len(self.centres))[labels]
        moves = (embeddings - self.centres[labels]) / (1 + photographs)[:, None]
        self.centres.index_add_(0, labels, moves, alpha=self.follow)
