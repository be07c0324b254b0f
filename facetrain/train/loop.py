"""The training loop: one for all trainers. It knows batches, a network and a loss, and the names of none.

Every random draw of a step follows from (seed, epoch, position), and the learning rate from the step, so a resumed run
equals an uninterrupted one.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facetrain.batch import Batches
from facetrain.config import TrainConfig
from facetrain.errors import UserError
from facetrain.files import write_bytes
from facetrain.kernels.launch import products_in
from facetrain.train.average import Average
from facetrain.train.checkpoint import NetworkInfo, link_best, load_state, save_network, save_state
from facetrain.train.metrics_log import BASE_COLUMNS, MetricsLog
from facetrain.train.optimiser import build_optimiser, lr_at
from facetrain.train.row_optimisers import clip_gradients
from facetrain.train.trainers.base import Trainer
from facetrain.train.validator import Validator
from facetrain.workspace import DIVERGED

LOG_EVERY_STEPS = 10
TROUBLE_IN_A_ROW = 3  # logged rows, before the user is told


class Reporter(Protocol):
    """What is told of a training as it goes on. ``measured``: the main column of each validator that has measured now."""

    def start(self, step: int, total_steps: int) -> None: ...
    def step(self, step: int, note: str) -> None: ...
    def epoch(self, values: dict[str, float], epochs: int, measured: Sequence[str]) -> None: ...
    def validated(self, values: dict[str, float], measured: Sequence[str]) -> None: ...
    def warn(self, line: str) -> None: ...


@dataclass
class Position:
    """Where a training stands: ``epoch`` epochs and ``batch`` batches of the next are done."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    best: float = -math.inf


def train(
    folder: Path,
    config: TrainConfig,
    backbone: nn.Module,
    trainer: Trainer,
    batches: Batches,
    validators: Sequence[Validator],
    info: NetworkInfo,
    device: torch.device,
    *,
    reporter: Reporter,
) -> bool:
    """Train until all epochs are done (True) or someone asks to stop (False), from the run's state if it has one.

    ``folder`` is the run's; ``info`` says what the weights are of. On Ctrl-C or SIGTERM the step is finished and the
    state saved; a second one ends at once.
    """
    run = _Run(folder, config, backbone, trainer, batches, validators, info, device, reporter)
    on_gpu = device.type == "cuda"
    with (
        _stop_signals() as stop,
        torch.cuda.device(device) if on_gpu else nullcontext(),
        _tf32(on_gpu and uses_bf16(config.precision, device)),
    ):
        return run.run(stop)


class _Run:
    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        backbone: nn.Module,
        trainer: Trainer,
        batches: Batches,
        validators: Sequence[Validator],
        info: NetworkInfo,
        device: torch.device,
        reporter: Reporter,
    ) -> None:
        self.folder, self.config, self.info, self.device = folder, config, info, device
        trainer.attach(backbone)
        self.backbone, self.trainer = backbone.to(device), trainer.to(device)
        self.average = Average(self.backbone, config.average) if config.average else None
        self.batches, self.validators, self.reporter = batches, validators, reporter
        self.optimiser = build_optimiser(config, backbone, trainer)
        self.at = Position()
        self.sums: dict[str, float] = {}  # over the epoch so far, for its means
        self.logged = 0  # steps in them
        if (folder / "state.pt").is_file():
            self._restore(load_state(folder / "state.pt"))
        self.log = MetricsLog(folder, self.at.step)
        self.total_steps = config.epochs * len(batches)
        self.autocast = torch.autocast(
            device.type, torch.bfloat16, enabled=uses_bf16(config.precision, device)
        )
        self.trouble = 0
        self.untold = False  # it was said that what decides cannot be told
        self.stat_names: frozenset[str] | None = None
        self._started = time.monotonic() - self.at.seconds

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self, stop: Callable[[], bool]) -> bool:
        (self.folder / DIVERGED).unlink(missing_ok=True)
        self.reporter.start(self.at.step, self.total_steps)
        saved = time.monotonic()
        try:
            while self.at.epoch < self.config.epochs:
                waiting: list[dict[str, Tensor]] = []
                for batch in self.batches.epoch(self.at.epoch, self.at.batch):
                    waiting.append(self._step(batch))
                    self.at.images += len(batch.images)
                    self.at.step, self.at.batch = self.at.step + 1, self.at.batch + 1
                    stopping = stop()
                    if len(waiting) >= LOG_EVERY_STEPS or self.at.batch == len(self.batches) or stopping:
                        self._flush(waiting)
                    if self.at.batch < len(self.batches):  # else the end of the epoch sees to it
                        self._validate_within(waiting)
                    if stopping:
                        self._save_state()
                        return False
                    if time.monotonic() - saved > 60 * self.config.save_every_minutes:
                        self._flush(waiting)
                        self._save_state()
                        saved = time.monotonic()
                self._end_epoch()
                saved = time.monotonic()
        finally:
            self.log.close()
        return True

    def _step(self, batch: Any) -> dict[str, Tensor]:
        seed = (self.config.seed * 1_000_003 + self.at.step) % 2**63
        torch.manual_seed(seed)  # dropout and the like
        generator = torch.Generator(self.device).manual_seed(seed)
        for group in self.optimiser.param_groups:
            group["lr"] = lr_at(self.config, self.at.step, self.total_steps)
        self.backbone.train()
        self.trainer.train()
        self.trainer.before_step(self.at.step / self.total_steps)
        with self.autocast:
            embeddings = self.trainer.embed(self.backbone, batch)
        loss, stats = self._checked(self.trainer(embeddings.float(), batch, generator))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.clip_norm is not None:
            trained = [p for group in self.optimiser.param_groups for p in group["params"]]
            clip_gradients(trained, self.config.clip_norm)
        self.optimiser.step()
        self.trainer.after_step(self.backbone)
        if self.average is not None:
            self.average.update(self.backbone, self.at.step)
        return {**stats, "loss": loss.detach()}

    def _checked(self, returned: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """What a trainer returns of a step, a plug-in's perhaps: UserError, which names it, where it is something else."""
        who = f"trainer '{self.config.trainer}' (or its loss)"
        if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)):
            raise UserError(f"{who} must return the loss and a dict of statistics, not {_kind(returned)}")
        loss, stats = returned
        if not (isinstance(loss, Tensor) and loss.ndim == 0 and loss.requires_grad):
            raise UserError(f"{who} must return a loss that is a scalar with a gradient, not {_kind(loss)}")
        for name, value in stats.items():
            if not (isinstance(name, str) and isinstance(value, Tensor) and value.ndim == 0):
                raise UserError(
                    f"{who} gives a statistic {name!r} that is no scalar tensor, but {_kind(value)}"
                )
        self._check_names(stats)
        return loss, stats

    def _check_names(self, stats: dict[str, Tensor]) -> None:
        """The statistics of a trainer are columns of a table: always the same, and none of ours."""
        if stats.keys() == self.stat_names:
            return
        if self.stat_names is not None:
            raise UserError(
                f"trainer '{self.config.trainer}' gives other statistics than at its first step "
                f"({', '.join(sorted(stats.keys() ^ self.stat_names))}): they must be the same at every step"
            )
        taken = stats.keys() & {*BASE_COLUMNS, *(name for v in self.validators for name in v.columns)}
        if taken:
            raise UserError(
                f"trainer '{self.config.trainer}' calls a statistic '{min(taken)}', which is a column of the loop's own: "
                f"rename it"
            )
        self.stat_names = frozenset(stats)

    def _flush(self, waiting: list[dict[str, Tensor]]) -> None:
        """Log the means of the waiting steps: the one place where the loop waits for the device."""
        if not waiting:
            return
        names = list(waiting[0])
        table = torch.stack([torch.stack([stats[name].float() for name in names]) for stats in waiting]).cpu()
        if not torch.isfinite(table[:, names.index("loss")]).all():
            raise self._diverged("loss is")
        for name, total in zip(names, table.double().sum(0).tolist(), strict=True):
            self.sums[name] = self.sums.get(name, 0.0) + total
        self.logged += len(waiting)
        means = dict(zip(names, table.mean(0).tolist(), strict=True))
        self.log.write("step", self._where() | means)
        self._watch(means)
        self.reporter.step(self.at.step, f"epoch {self.at.epoch + 1}  loss {means['loss']:.4f}")
        waiting.clear()

    def _watch(self, means: dict[str, float]) -> None:
        line = self.trainer.trouble(means)
        self.trouble = self.trouble + 1 if line else 0
        if line and self.trouble == TROUBLE_IN_A_ROW:
            self.reporter.warn(line)

    def _end_epoch(self) -> None:
        means = {name: total / self.logged for name, total in self.sums.items()}
        done, ended = self.at.epoch + 1, self.at.epoch + 1 == self.config.epochs
        due = [
            v for v in self.validators if v.due_after_epoch(done) or v.due_after_step(self.at.step) or ended
        ]
        measured = self._validate(due, f"epoch-{done:04d}")
        self.at.epoch, self.at.batch = done, 0
        self.sums, self.logged = {}, 0
        values = self._where() | means | measured
        checkpoint = self._save_network(f"epoch-{done:04d}", means | measured)
        if self._is_best(measured | means) or self.at.best == -math.inf:  # nothing decides yet: the latest
            link_best(checkpoint)
        self.log.write("epoch", values)
        self._save_state()
        self.reporter.epoch(values, self.config.epochs, [v.main for v in due])

    # -- validation ----------------------------------------------------------------------------------------------

    def _validate_within(self, waiting: list[dict[str, Tensor]]) -> None:
        """Validators that are due at a step within an epoch; a checkpoint where it is the best so far."""
        due = [validator for validator in self.validators if validator.due_after_step(self.at.step)]
        if not due:
            return
        self._flush(waiting)
        moment = f"step-{self.at.step:08d}"
        measured = self._validate(due, moment)
        if self._is_best(measured):
            link_best(self._save_network(moment, measured))
        values = self._where() | measured
        self.log.write("validation", values)
        self.reporter.validated(values, [v.main for v in due])

    def _validate(self, due: Sequence[Validator], moment: str) -> dict[str, float]:
        measured: dict[str, float] = {}
        for validator in due:
            measured |= validator.measure(self.embed, moment)
        return measured

    def _is_best(self, values: dict[str, float]) -> bool:
        """Whether these are better than all before; False where what decides is not among them."""
        which = self.config.best or (self.validators[0].main if self.validators else "loss")
        lower = {"loss": True} | {name: low for v in self.validators for name, low in v.columns.items()}
        score = self.at.step if which == "last" else values.get(which, math.nan)
        if which in values and math.isnan(score) and not self.untold:
            self.untold = True
            self.reporter.warn(
                f"{which} decides which checkpoint is the best, and cannot be told on so small a set: "
                f"choose another column by `best`"
            )
        score = -score if lower.get(which) else score
        if not score > self.at.best:  # nor is NaN
            return False
        self.at.best = score
        return True

    def _save_network(self, moment: str, values: dict[str, float]) -> Path:
        info = replace(self.info, epoch=self.at.epoch, step=self.at.step, metrics=values)
        checkpoint = self.folder / "checkpoints" / f"{moment}.safetensors"
        checkpoint.parent.mkdir(exist_ok=True)
        save_network(checkpoint, self._measured, info)
        return checkpoint

    def embed(self, images: Iterable[Tensor], flip: bool = False) -> np.ndarray:
        """Unit embeddings of batches of images, float32 [n, embedding_dim], as the network stands."""
        embeddings = embed(self._measured.eval(), images, flip)
        if not np.isfinite(embeddings).all():
            # The step before has spoilt the weights; there is no loss of it yet.
            raise self._diverged("embeddings are")
        return embeddings

    def _diverged(self, what: str) -> UserError:
        why = f"the {what} no longer a number (step {self.at.step})"
        write_bytes(self.folder / DIVERGED, f"{why}\n".encode())
        return UserError(
            f"{why}: start again with a lower --lr; "
            f"the checkpoints of {self.folder.name} up to epoch {self.at.epoch} are sound"
        )

    @property
    def _measured(self) -> nn.Module:
        """The network that is validated and kept: the average of the weights where there is one."""
        return self.backbone if self.average is None else self.average.network

    # -- state ---------------------------------------------------------------------------------------------------

    def _where(self) -> dict[str, float]:
        self.at.seconds = time.monotonic() - self._started
        epoch = self.at.epoch + self.at.batch / len(self.batches)
        lr = self.optimiser.param_groups[0]["lr"]
        return {
            "epoch": epoch,
            "step": self.at.step,
            "images": self.at.images,
            "seconds": self.at.seconds,
            "lr": lr,
        }

    def _save_state(self) -> None:
        self.at.seconds = time.monotonic() - self._started
        state = {
            "backbone": self.backbone.state_dict(),
            "trainer": self.trainer.state_dict(),
            "average": None if self.average is None else self.average.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "position": vars(self.at),
            "sums": self.sums,
            "logged": self.logged,
        }
        save_state(self.folder / "state.pt", state)

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.backbone.load_state_dict(state["backbone"])
            self.trainer.load_state_dict(state["trainer"])
            if self.average is not None:
                self.average.network.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError):
            raise UserError(
                f"the state of run '{self.folder.name}' does not fit the network as it is here: "
                f"go on with the version of facetrain (or of the plug-in) that began it"
            ) from None
        self.at = Position(**state["position"])
        self.sums, self.logged = dict(state["sums"]), state["logged"]


def _kind(value: Any) -> str:
    """What something is, in a few words."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"a tensor {list(value.shape)}{'' if value.requires_grad else ' without a gradient'}"


@torch.inference_mode()
def embed(backbone: nn.Module, images: Iterable[Tensor], flip: bool = False) -> np.ndarray:
    """Unit embeddings, float32 [n, embedding_dim], of batches of images float32 NCHW on the backbone's device."""
    parts = []
    for batch in images:
        raw = backbone(batch).float()
        if flip:
            raw = raw + backbone(batch.flip(3)).float()
        parts.append(F.normalize(raw).cpu().numpy())
    return np.concatenate(parts)


def uses_bf16(precision: str, device: torch.device) -> bool:
    """What a setting ``precision`` means on this device."""
    return precision == "bf16" or (precision == "auto" and bf16_is_fast(device))


def bf16_is_fast(device: torch.device) -> bool:
    """True where bf16 products run on units made for them: tensor cores from Ampere on, AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def _tf32(enabled: bool) -> AbstractContextManager[None]:
    """On a GPU, float32 products of heads and losses in TF32: more exact than what comes from a network in bf16."""
    return products_in("tf32") if enabled else nullcontext()


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """The first SIGINT or SIGTERM is remembered, the next acts as usual. Outside the main thread: never."""
    asked = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, remember)
    except ValueError:  # not in the main thread, where signals do not arrive anyway
        before.clear()
    try:
        yield lambda: asked
    finally:
        restore()
