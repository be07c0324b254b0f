"""What the loader hands to a trainer. Shared by datasets/ and train/, which do not know each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Batch:
    """images: float32 NCHW on the training device, scaled by the ImageSpec; labels: int64 [n], dense from 0; rows:
    int64 [n], row numbers of the index. The first ``num_anchors`` images were drawn as people × images; those behind
    them are extra negatives. ``most_alike``: no label is on more of these; None where nobody has counted. (To count on a
    GPU is to wait for it.)"""

    images: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    num_anchors: int
    most_alike: int | None = None


class Batches(Protocol):
    """A source of batches, deterministic in (seed, epoch, position)."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches from position ``start`` on."""
