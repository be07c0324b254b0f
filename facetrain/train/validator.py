"""What measures a network while it is trained, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor


class Embed(Protocol):
    """Unit embeddings, float32 [n, embedding_dim], of batches of images float32 NCHW on the training device.

    flip: of each image and its mirror image the sum, before it is scaled to length 1.
    """

    def __call__(self, images: Iterable[Tensor], flip: bool = False) -> np.ndarray: ...


@dataclass(frozen=True)
class Validator:
    """measure(embed, moment) → values of the columns, NaN where one cannot be told; ``moment`` is a name for files, such
    as ``epoch-0003``.

    columns: names of what is measured, the first being the one that checkpoints are ranked by, → whether lower is better.
    Measured after every ``every_epochs`` epochs, or every ``every_steps`` steps; and when the training ends.
    """

    measure: Callable[[Embed, str], dict[str, float]]
    columns: Mapping[str, bool]
    every_epochs: int | None = 1
    every_steps: int | None = None

    @property
    def main(self) -> str:
        """The column that checkpoints are ranked by."""
        return next(iter(self.columns))

    def due_after_epoch(self, epoch: int) -> bool:
        """epoch: how many are done."""
        return self.every_epochs is not None and epoch % self.every_epochs == 0

    def due_after_step(self, step: int) -> bool:
        """step: how many are done."""
        return self.every_steps is not None and step % self.every_steps == 0
