"""Cross-batch memory: embeddings of earlier batches, as further negatives.

Source: Wang et al., "Cross-Batch Memory for Embedding Learning", CVPR 2020. Embeddings drift slowly, so those of some
batches ago are nearly what the network would give now.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from facetrain.errors import UserError


class CrossBatchMemory(nn.Module):
    """The last ``size`` embeddings and their labels, without gradients. Its state is saved and resumed."""

    rows: Tensor
    labels: Tensor

    def __init__(self, size: int, embedding_dim: int) -> None:
        super().__init__()
        self.size, self.filled, self.next = size, 0, 0
        try:
            self.register_buffer("rows", torch.zeros(size, embedding_dim))
            self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        except RuntimeError:
            gigabytes = 4e-9 * size * embedding_dim
            raise UserError(
                f"a memory of {size:,} embeddings takes {gigabytes:,.0f} GB, which are not there: choose fewer"
            ) from None

    def behind(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A batch with what is remembered behind it."""
        rows = self.rows[: self.filled].to(embeddings.dtype)
        return torch.cat([embeddings, rows]), torch.cat([labels, self.labels[: self.filled]])

    @torch.no_grad()
    def add(self, embeddings: Tensor, labels: Tensor) -> None:
        """Remember a batch, in place of the oldest rows."""
        embeddings, labels = embeddings[-self.size :], labels[-self.size :]
        places = (torch.arange(len(labels), device=labels.device) + self.next) % self.size
        self.rows[places] = embeddings.to(self.rows.dtype)
        self.labels[places] = labels
        self.next = (self.next + len(labels)) % self.size
        self.filled = min(self.filled + len(labels), self.size)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.filled, self.next])

    def set_extra_state(self, state: Tensor) -> None:
        self.filled, self.next = state.tolist()
