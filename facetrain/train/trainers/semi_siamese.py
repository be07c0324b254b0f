"""Semi-siamese training, for shallow data: many people with two photographs each, or one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from facetrain.batch import Batch
from facetrain.errors import UserError
from facetrain.kernels.unit import unit
from facetrain.train.average import Average
from facetrain.train.losses.checks import positive, within
from facetrain.train.losses.pairs import connected_zero, embedding_std
from facetrain.train.trainers.base import Trainer
from facetrain.train.trainers.collapse import collapse_line

NOBODY = -1  # whose the places of the queue are that were never filled


class SemiSiameseTrainer(Trainer):
    """Softmax with a margin over people as a second network sees them, instead of over weights that are learned.

    Two photographs of each person, a probe and a gallery one. The probe goes through the network, the gallery one
    through its moving average, which gives the person's prototype. A probe has to find its person's among those of the
    batch and of the latest batches, kept in a queue. Then the two photographs change places, and the loss is the mean
    of both. With a few photographs of a person, a class weight would have nothing to average; a prototype is a
    photograph's embedding itself.

    A person's other prototypes, in the batch or the queue, do not count as others. Which of the two goes into the queue
    is drawn for each person. Who has a single photograph takes part with two augmented views of it.

    people: pairs in a batch. queue_size: prototypes kept. decay: of the moving average (`Average`, with its warm-up).
    margin_cos, scale: CosFace's.

    Source: Du et al., "Semi-Siamese Training for Shallow Face Learning", ECCV 2020; defaults are FaceX-Zoo's, which
    shows each network the first and the second photographs in two batches, of a batch-norm each; here they are one.

    Statistics: ``train_accuracy``, the share of probes whose own prototype is nearer than all others, before the margin;
    ``cos_target``, the mean cosine to it; ``embedding_std``.
    """

    sampler = "pairs"
    queue: Tensor
    queue_people: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        people: int = 64,
        queue_size: int = 16_384,
        decay: float = 0.999,
        margin_cos: float = 0.35,
        scale: float = 32.0,
    ) -> None:
        super().__init__()
        if not 2 <= people <= queue_size:
            raise UserError(
                f"{people} people in a batch: choose 2 or more, and a queue_size of at least as many"
            )
        self.embedding_dim, self.people = embedding_dim, people
        self.margin_cos, self.scale = within("margin_cos", margin_cos, 0, 1), positive("scale", scale)
        self.decay = within("decay", decay, 0, 0.999_999)
        self.register_buffer("queue", torch.zeros(queue_size, embedding_dim))
        self.register_buffer("queue_people", torch.full((queue_size,), NOBODY))
        self.gallery: nn.Module | None = None  # the moving average of the network
        self._average: Average | None = None
        self._steps = self._written = 0  # numbers of steps, and of prototypes that were put into the queue

    def sampler_args(self) -> dict[str, Any]:
        return {"pairs_per_batch": self.people}

    def attach(self, backbone: nn.Module) -> None:
        self._average = Average(backbone, self.decay)
        self.gallery = self._average.network
        self.train(self.training)

    def train(self, mode: bool = True) -> SemiSiameseTrainer:
        """The gallery network's batch-norm goes with the batch; nothing else of it trains: a prototype has no dropout."""
        super().train(mode)
        for module in self.gallery.modules() if self.gallery is not None else ():
            module.training = mode and isinstance(module, _BatchNorm)
        return self

    def embed(self, backbone: nn.Module, batch: Batch) -> Tensor:
        assert self.gallery is not None
        with torch.no_grad():
            self._prototypes = unit(self.gallery(batch.images).float())
        return super().embed(backbone, batch)

    def forward(
        self, embeddings: Tensor, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        probes, prototypes = unit(embeddings), self._prototypes.to(embeddings.dtype)
        first, second, people = slice(0, None, 2), slice(1, None, 2), batch.labels[::2]
        one = self._found(probes[first], prototypes[second], people)
        other = self._found(probes[second], prototypes[first], people)
        loss, accuracy, cos_target = (torch.stack(both).mean() for both in zip(one, other, strict=True))
        with torch.no_grad():
            heads = torch.rand(len(people), 1, generator=generator, device=people.device) < 0.5
            self._remember(torch.where(heads, prototypes[first], prototypes[second]), people)
            stats = {
                "train_accuracy": accuracy,
                "cos_target": cos_target.detach(),
                "embedding_std": embedding_std(probes),
            }
        return loss + connected_zero(embeddings), stats

    def _found(
        self, probes_PD: Tensor, prototypes_PD: Tensor, people_P: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, accuracy and mean cosine of P probes; their own prototypes are columns 0 to P − 1, the queue follows."""
        columns_CD = torch.cat([prototypes_PD, self.queue.to(prototypes_PD.dtype)])
        people_C = torch.cat([people_P, self.queue_people])
        cos_PC = probes_PD @ columns_CD.T
        own_P = torch.arange(len(people_P), device=people_P.device)
        cos_own_P = cos_PC[own_P, own_P]
        no_other_PC = (people_P[:, None] == people_C) | (people_C == NOBODY)
        cos_others_PC = cos_PC.masked_fill(no_other_PC, -torch.inf)
        logits_PC = self.scale * cos_others_PC.index_put((own_P, own_P), cos_own_P - self.margin_cos)
        accuracy = (cos_own_P > cos_others_PC.amax(dim=1)).to(cos_PC.dtype).mean()
        return F.cross_entropy(logits_PC, own_P), accuracy, cos_own_P.mean()

    def _remember(self, prototypes_PD: Tensor, people_P: Tensor) -> None:
        """Put them into the queue, in the place of its oldest."""
        places = (torch.arange(len(people_P), device=people_P.device) + self._written) % len(self.queue)
        self.queue[places] = prototypes_PD.to(self.queue.dtype)
        self.queue_people[places] = people_P
        self._written += len(people_P)

    def after_step(self, backbone: nn.Module) -> None:
        assert self._average is not None
        self._average.update(backbone, self._steps)
        self._steps += 1

    def get_extra_state(self) -> Tensor:
        """The counters, as part of the state: on the processor, so that no step waits for the device to tell them."""
        return torch.tensor([self._steps, self._written])

    def set_extra_state(self, state: Tensor) -> None:
        self._steps, self._written = state.tolist()

    def trouble(self, stats: dict[str, float]) -> str | None:
        return collapse_line(stats, self.embedding_dim, "more --people per batch")
