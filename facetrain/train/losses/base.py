"""The contract of a loss: over the embeddings of a batch, with or without weights of its own."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from facetrain.errors import UserError
from facetrain.plugins import make, parameters_of, resolve


class Loss(nn.Module):
    """A loss over the embeddings of a batch.

    Constructed as ``Loss(**loss_args)``; one that has a weight for each class (a head, see `facetrain.train.losses.head`) also
    takes ``num_classes`` and ``embedding_dim``, which follow from the data and the configuration. Its parameters and
    buffers are optimised, saved and resumed with the network's.

    ``margin_share``, from 0 to 1, is what its margin is to be multiplied by at this step: trainers ramp it up.
    ``most_alike``: no label is on more anchors of the next batch; None where that is not known. Trainers set both.
    """

    margin_share: float = 1.0
    most_alike: int | None = None

    def __init__(self) -> None:  # nn.Module's takes anything, and then fails on it
        super().__init__()

    @abstractmethod
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
        num_anchors: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (a scalar) and its statistics (detached scalars, by name).

        embeddings: float32 or float64 [n, embedding_dim], raw: the loss normalises them if it wants to. labels: int64
        [n]. ``generator``, on the embeddings' device: all chance comes from it. ``num_anchors``: rows from there on
        are extra negatives, which are nobody's anchor and nobody's positive; losses that know no anchors ignore it.

        Finite, with finite gradients, for any finite embeddings: also where nothing in the batch can be compared (one
        row, one person), where the loss is 0 with a gradient of zeros, and for rows that are alike or all zeros.
        The order of the rows plays no part.
        """


def is_head(name: str) -> bool:
    """Whether the loss of this name has weights for the training people: whether it takes ``num_classes``."""
    return "num_classes" in parameters_of(resolve("losses", name), f"loss '{name}'")


def make_loss(name: str, arguments: dict[str, Any] | None, **given: Any) -> Loss:
    """The loss of this name, see `facetrain.plugins.make`; UserError where it makes something else."""
    loss = make("losses", name, arguments, **given)
    if not isinstance(loss, Loss):
        raise UserError(f"'{name}' cannot be used as a loss: it makes a {type(loss).__name__}, no Loss")
    return loss
