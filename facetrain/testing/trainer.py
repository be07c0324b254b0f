"""The contract of a trainer, checked on a tiny network and pictures of noise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facetrain.batch import Batch
from facetrain.errors import UserError
from facetrain.plugins import resolve
from facetrain.testing.expect import (
    expect,
    expect_finite_state,
    expect_gradients,
    expect_loss,
    made,
    name_of,
    normal,
    seeded,
    through_file,
)
from facetrain.train.trainers.base import Trainer

SIZE_PX, LR = 8, 0.05


def check_trainer(
    make_trainer: Callable[..., Trainer],
    *,
    people: int = 40,
    images: int = 8,
    embedding_dim: int = 16,
    steps: int = 4,
    device: torch.device | str = "cpu",
) -> None:
    """Hold a trainer to the contract of `facetrain.train.trainers.base.Trainer`.

    ``make_trainer`` is the class, a `functools.partial` of it, or a function that makes one; it is given
    ``num_classes`` and ``embedding_dim``. people, images: training people, and photographs of each; there must be
    enough for a batch. steps: how many are run before a state is taken, and again after it. Raises AssertionError,
    which says what went wrong.
    """
    check = _TrainerCheck(make_trainer, people, images, embedding_dim, steps, torch.device(device))
    check.two_classes()
    check.runs()
    check.equal_copies_stay_equal()
    check.state_round_trip()


class _Training:
    """A trainer, a network and an optimiser, stepped as facetrain's loop does."""

    def __init__(self, name: str, trainer: Trainer, network: nn.Module) -> None:
        trainer.attach(network)
        self.name, self.trainer, self.network = name, trainer, network
        parameters = [p for module in (network, trainer) for p in module.parameters() if p.requires_grad]
        self.optimiser = torch.optim.SGD(parameters, lr=LR, momentum=0.9)

    def step(
        self, batch: Batch, step: int, progress: float, noise: int = 0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and statistics, looked at. ``noise`` changes the chance that is not the step's: it must change nothing."""
        device = batch.images.device
        self.network.train()
        self.trainer.train()
        torch.manual_seed(step)
        self.trainer.before_step(progress)
        embeddings = self.trainer.embed(self.network, batch)
        torch.manual_seed(step + noise)
        loss, stats = self.trainer(embeddings.float(), batch, seeded(step, device))
        expect_loss(f"{self.name}, step {step}", loss, stats, torch.float32)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.trainer.after_step(self.network)
        return loss, stats

    def state(self) -> dict[str, Any]:
        return {
            "trainer": self.trainer.state_dict(),
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.trainer.load_state_dict(state["trainer"])
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])


class _TrainerCheck:
    def __init__(
        self,
        make_trainer: Callable[..., Trainer],
        people: int,
        images: int,
        embedding_dim: int,
        steps: int,
        device: torch.device,
    ) -> None:
        self.make_trainer, self.name = make_trainer, name_of(make_trainer)
        self.people, self.embedding_dim, self.steps, self.device = people, embedding_dim, steps, device
        self.labels = np.repeat(np.arange(people), images)
        faces = normal(people, 3, SIZE_PX, SIZE_PX, seed=1, device=device)
        noise = normal(len(self.labels), 3, SIZE_PX, SIZE_PX, seed=2, device=device)
        self.images = faces[torch.from_numpy(self.labels).to(device)] + noise

    def make(self, seed: int, num_classes: int | None = None) -> Trainer:
        torch.manual_seed(seed)
        given = {"num_classes": self.people if num_classes is None else num_classes}
        trainer = made(self.make_trainer, **given, embedding_dim=self.embedding_dim)
        expect(
            isinstance(trainer, Trainer),
            f"{self.name} makes {type(trainer).__name__}, not a facetrain Trainer",
        )
        return trainer.to(self.device)

    def training(self, seed: int = 0) -> _Training:
        torch.manual_seed(seed)
        pixels = 3 * SIZE_PX * SIZE_PX
        network = nn.Sequential(
            nn.Flatten(),
            nn.Linear(pixels, 24),
            nn.BatchNorm1d(24),
            nn.PReLU(),
            nn.Dropout(0.1),
            nn.Linear(24, self.embedding_dim),
        ).to(self.device)
        return _Training(self.name, self.make(seed), network)

    def batches(self, trainer: Trainer) -> Iterator[Batch]:
        """Batches without end, drawn by the trainer's own sampler."""
        expect(
            isinstance(trainer.sampler, str),
            f"{self.name}: 'sampler' is {trainer.sampler!r}, not a sampler's name",
        )
        try:
            make_sampler = resolve("samplers", trainer.sampler)
            sampler = make_sampler(self.labels, seed=0, batches_per_epoch=None, **trainer.sampler_args())
        except (UserError, TypeError) as error:
            raise AssertionError(
                f"{self.name}: no batches from sampler '{trainer.sampler}' with {trainer.sampler_args()} for "
                f"{self.people} people × {len(self.labels) // self.people} photographs: {error}"
            ) from error
        epoch = 0
        while True:
            for draw in sampler.epoch(epoch):
                positions = torch.from_numpy(draw.positions).to(self.device)
                labels = torch.from_numpy(self.labels[draw.positions]).to(self.device)
                yield Batch(
                    self.images[positions], labels, torch.from_numpy(draw.positions), draw.num_anchors
                )
            epoch += 1

    # -- rules ---------------------------------------------------------------------------------------------------

    def two_classes(self) -> None:
        """facetrain makes one so, to have its arguments checked before data are read."""
        try:
            self.make(0, num_classes=2)
        except AssertionError as error:
            raise AssertionError(f"with num_classes = 2, {error}") from error

    def runs(self) -> None:
        training, names = self.training(), set[str]()
        trainer, network = training.trainer, training.network
        batches = self.batches(trainer)
        for step in range(2 * self.steps):
            who, batch = f"{self.name}, step {step}", next(batches)
            before = batch.labels.clone(), batch.images.clone()
            embeddings = trainer.embed(network.train(), batch)
            shape = (len(batch.images), self.embedding_dim)
            expect(
                isinstance(embeddings, Tensor)
                and tuple(embeddings.shape) == shape
                and embeddings.requires_grad,
                f"{who}: embed must return embeddings {list(shape)} that can be differentiated",
            )
            try:
                loss, stats = training.step(batch, step, step / (2 * self.steps))
            except AssertionError:
                raise
            except Exception as error:
                raise AssertionError(f"{who}: {type(error).__name__}: {error}") from error
            same = torch.equal(before[0], batch.labels) and torch.equal(before[1], batch.images)
            expect(same, f"{who}: the batch was changed in place")
            names = set(stats) if step == 0 else names
            expect(
                set(stats) == names,
                f"{who}: the statistics are {sorted(stats)}, and {sorted(names)} at first; they must stay the same",
            )
            expect_gradients(who, [(f"the network's '{n}'", p) for n, p in network.named_parameters()])
            expect_finite_state(who, trainer)
            expect_finite_state(who, network)
            if step == 0:
                moved = any(bool(p.grad.any()) for p in network.parameters() if p.grad is not None)
                expect(moved, f"{who}: the gradient of the whole network is zero")
            line = trainer.trouble(
                {"loss": loss.item(), **{name: value.item() for name, value in stats.items()}}
            )
            expect(
                line is None or (isinstance(line, str) and "\n" not in line),
                f"{who}: trouble returns {line!r}, neither None nor one line",
            )

    def equal_copies_stay_equal(self) -> None:
        one, other = self.training(), self.training()
        expect(
            _equal(one.trainer.state_dict(), other.trainer.state_dict()),
            f"{self.name}: made twice from the same torch.manual_seed, its weights differ",
        )
        for step, batch in zip(range(2 * self.steps), self.batches(one.trainer), strict=False):
            progress = step / (2 * self.steps)
            losses = [one.step(batch, step, progress)[0], other.step(batch, step, progress, noise=1)[0]]
            expect(
                torch.equal(*losses),
                f"{self.name}: two equal copies part at step {step} (losses {losses[0]:.9g} and {losses[1]:.9g}): all "
                f"chance in forward must come from the generator",
            )

    def state_round_trip(self) -> None:
        one = self.training()
        batches = self.batches(one.trainer)
        for step in range(self.steps):
            one.step(next(batches), step, step / (2 * self.steps))
        other = self.training(seed=1)
        try:
            other.load(copy.deepcopy(through_file(self.name, one.state())))
        except (RuntimeError, ValueError) as error:
            raise AssertionError(f"{self.name}: its state does not fit one made anew: {error}") from error
        for step in range(self.steps, 2 * self.steps):
            batch, progress = next(batches), step / (2 * self.steps)
            losses = [training.step(batch, step, progress)[0] for training in (one, other)]
            expect(
                torch.equal(*losses),
                f"{self.name}: resumed from its state, the loss of step {step} is {losses[1]:.9g} instead of "
                f"{losses[0]:.9g}: what it remembers from step to step must be in parameters or buffers",
            )


def _equal(one: Any, other: Any) -> bool:
    """Whether two states, or parts of them, are the same."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    return bool(one == other)
