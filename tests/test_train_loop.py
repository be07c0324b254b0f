"""The training loop on small random data: resuming, stopping, trouble; and the parts around it."""

from __future__ import annotations

import csv
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from facetrain.batch import Batch
from facetrain.config import TrainConfig
from facetrain.errors import UserError
from facetrain.image_spec import ImageSpec
from facetrain.train import loop
from facetrain.train.average import Average
from facetrain.train.checkpoint import NetworkInfo, build_backbone, load_network, load_state, save_network
from facetrain.train.loop import embed, train
from facetrain.train.metrics_log import MetricsLog
from facetrain.train.optimiser import build_optimiser, lr_at
from facetrain.train.trainers.base import Trainer
from facetrain.train.trainers.classification import ClassificationTrainer
from facetrain.train.trainers.triplet import TripletTrainer
from facetrain.train.validator import Validator

PEOPLE, IMAGES, SIZE = 4, 3, 8


class RandomBatches:
    """Four people × three noisy pictures; deterministic in (epoch, position), as the real loader."""

    def __init__(self, batches: int = 7) -> None:
        self.batches = batches
        self.people = torch.randn(PEOPLE, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for position in range(start, self.batches):
            generator = torch.Generator().manual_seed(1000 * epoch + position)
            labels = torch.arange(PEOPLE).repeat_interleave(IMAGES)
            noise = torch.randn(len(labels), 3, SIZE, SIZE, generator=generator)
            yield Batch(self.people[labels] + noise, labels, torch.arange(len(labels)), len(labels))


class Recorder:
    """A reporter that remembers, and may do something at a step."""

    def __init__(self, at_step: int = -1, do=lambda: None) -> None:
        self.at_step, self.do = at_step, do
        self.warnings: list[str] = []
        self.epochs: list[dict[str, float]] = []
        self.validations: list[tuple[int, list[str]]] = []

    def start(self, step: int, total_steps: int) -> None:
        self.first = step

    def step(self, step: int, note: str) -> None:
        if step >= self.at_step >= 0:
            self.at_step = -1
            self.do()

    def epoch(self, values: dict[str, float], epochs: int, measured: Sequence[str]) -> None:
        self.epochs.append(values)

    def validated(self, values: dict[str, float], measured: Sequence[str]) -> None:
        self.validations.append((round(values["step"]), list(measured)))

    def warn(self, line: str) -> None:
        self.warnings.append(line)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 16), nn.BatchNorm1d(16), nn.Dropout(0.1), nn.Linear(16, 8)
    )


def run(
    folder: Path,
    reporter: Recorder | None = None,
    backbone: nn.Module | None = None,
    trainer: Trainer | None = None,
    validate: Validator | list[Validator] | None = None,
    batches: int = 7,
    **settings,
) -> nn.Module:
    folder.mkdir(exist_ok=True)
    config = TrainConfig(**({"epochs": 3, "embedding_dim": 8, "precision": "fp32", "lr": 0.01} | settings))
    backbone = backbone or network()
    trainer = trainer or TripletTrainer(PEOPLE, 8, margin=0.5)
    info = NetworkInfo("none", {}, 8, ImageSpec(size_px=16))

    def val_accuracy(embed_batches, moment) -> dict[str, float]:
        images = RandomBatches().people
        return {"val_accuracy": float(np.abs(embed_batches([images, images])).mean())}

    validators = validate or Validator(val_accuracy, {"val_accuracy": False})
    finished = train(
        folder,
        config,
        backbone,
        trainer,
        RandomBatches(batches),
        validators if isinstance(validators, list) else [validators],
        info,
        torch.device("cpu"),
        reporter=reporter or Recorder(),
    )
    backbone.finished = finished
    return backbone


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def metrics(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_training_lowers_the_loss_and_leaves_a_run_behind(tmp_path: Path) -> None:
    reporter = Recorder()
    run(tmp_path / "run", reporter, epochs=12)
    assert [round(values["epoch"]) for values in reporter.epochs] == list(range(1, 13))
    assert reporter.epochs[-1]["distance_positive"] < 0.7 * reporter.epochs[0]["distance_positive"]
    checkpoints = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert checkpoints == ["best.safetensors", *(f"epoch-{n:04d}.safetensors" for n in range(1, 13))]
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    rows = metrics(tmp_path / "run")
    assert sum(row["kind"] == "epoch" for row in rows) == 12
    assert not list((tmp_path / "run").rglob(".ft-tmp-*"))


@pytest.mark.parametrize("stop_at", [1, 7, 10, 14])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, stop_at: int) -> None:
    straight = run(tmp_path / "straight")
    stopping = Recorder(stop_at, lambda: os.kill(os.getpid(), signal.SIGINT))
    stopped = run(tmp_path / "stopped", stopping)
    assert not stopped.finished
    going_on = Recorder()
    resumed = run(tmp_path / "stopped", going_on, backbone=network(seed=99))
    assert resumed.finished
    assert stop_at <= going_on.first < 21
    assert same_weights(straight, resumed)
    epochs = [
        [row for row in metrics(tmp_path / name) if row["kind"] == "epoch"]
        for name in ("straight", "stopped")
    ]
    for one, other in zip(*epochs, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - {"kind"}:
            assert float(one[key]) == pytest.approx(float(other[key]), rel=1e-6)


def test_the_average_is_what_is_kept_and_measured_and_survives_a_resume(tmp_path: Path) -> None:
    straight = run(tmp_path / "straight", average=0.9)
    plain = run(tmp_path / "plain")
    assert same_weights(straight, plain), "the average has no part in the training itself"
    run(tmp_path / "stopped", Recorder(10, lambda: os.kill(os.getpid(), signal.SIGINT)), average=0.9)
    run(tmp_path / "stopped", backbone=network(seed=99), average=0.9)
    last = "checkpoints/epoch-0003.safetensors"
    kept = {name: load_file(tmp_path / name / last) for name in ("straight", "plain", "stopped")}
    assert all(torch.equal(kept["straight"][key], kept["stopped"][key]) for key in kept["straight"])
    assert not torch.equal(kept["straight"]["1.weight"], kept["plain"]["1.weight"])
    assert torch.equal(kept["plain"]["1.weight"], plain.state_dict()["1.weight"])
    values = [
        [row["val_accuracy"] for row in metrics(tmp_path / name)] for name in ("straight", "stopped", "plain")
    ]
    assert values[0][-1] == values[1][-1] != values[2][-1]


def test_a_trainer_is_told_of_every_step(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []

    class Telling(TripletTrainer):
        def attach(self, backbone: nn.Module) -> None:
            told.append(("attach", 0.0))

        def before_step(self, progress: float) -> None:
            told.append(("before", progress))

        def embed(self, backbone: nn.Module, batch: Batch) -> torch.Tensor:
            assert backbone.training
            told.append(("embed", 0.0))
            return super().embed(backbone, batch)

        def after_step(self, backbone: nn.Module) -> None:
            told.append(("after", 0.0))

    run(tmp_path / "run", trainer=Telling(PEOPLE, 8, margin=0.5), epochs=2)
    assert [name for name, _ in told] == ["attach", *["before", "embed", "after"] * 14]
    assert [progress for name, progress in told if name == "before"] == [step / 14 for step in range(14)]


def head_trainer(**settings) -> ClassificationTrainer:
    torch.manual_seed(1)
    return ClassificationTrainer(PEOPLE, 8, loss="cosface", **settings)


def test_a_head_is_trained_with_the_network(tmp_path: Path) -> None:
    trainer = head_trainer()
    before = trainer.loss.weight.detach().clone()
    reporter = Recorder()
    run(tmp_path / "run", reporter, trainer=trainer, epochs=8, weight_decay=0)
    assert (trainer.loss.weight - before).detach().norm(dim=1).min() > 0.05
    accuracy = [values["train_accuracy"] for values in reporter.epochs]
    assert accuracy[-1] > 0.9 > accuracy[0]


def test_a_heads_gradient_is_clipped_too(tmp_path: Path) -> None:
    plain = {"epochs": 1, "optimizer": "sgd", "lr": 1.0, "momentum": 0, "weight_decay": 0}
    moved = []
    for clip_norm in (None, 1e-6):
        trainer = head_trainer()
        before = trainer.loss.weight.detach().clone()
        run(tmp_path / f"{clip_norm}", trainer=trainer, clip_norm=clip_norm, **plain)
        moved.append(float((trainer.loss.weight - before).detach().norm()))
    assert moved[1] < 1e-3 * moved[0]


def test_every_step_and_every_seed_has_chance_of_its_own(tmp_path: Path) -> None:
    drawn: dict[int, list[float]] = {0: [], 1: []}

    class Drawing(TripletTrainer):
        def forward(self, embeddings: torch.Tensor, batch: Batch, generator: torch.Generator):
            drawn[seed].append(float(torch.rand((), generator=generator)))
            return super().forward(embeddings, batch, generator)

    for seed in drawn:
        run(tmp_path / str(seed), trainer=Drawing(PEOPLE, 8, margin=0.5), epochs=1, seed=seed)
    assert len(set(drawn[0] + drawn[1])) == 14


@pytest.mark.parametrize("best", [None, "val_auc", "val_eer", "loss", "last"])
def test_which_epoch_is_the_best(tmp_path: Path, best: str | None) -> None:
    accuracy, auc = iter([0.5, 0.9, 0.7, 0.6]), iter([0.5, 0.6, 0.9, 0.7])
    eer = iter([0.1, 0.4, 0.4, float("nan")])

    def measure(embed_batches, moment) -> dict[str, float]:
        return {"val_accuracy": next(accuracy), "val_auc": next(auc), "val_eer": next(eer)}

    columns = {"val_accuracy": False, "val_auc": False, "val_eer": True}
    run(tmp_path / "run", epochs=4, best=best, validate=Validator(measure, columns))
    losses = [float(row["loss"]) for row in metrics(tmp_path / "run") if row["kind"] == "epoch"]
    epoch = {
        None: 2,
        "val_auc": 3,
        "val_eer": 1,
        "loss": 1 + int(np.argmin(losses)),
        "last": 4,
    }[best]
    folder = tmp_path / "run" / "checkpoints"
    assert (folder / "best.safetensors").samefile(folder / f"epoch-{epoch:04d}.safetensors")


def now_and_then(values: dict[str, float], moments: list[str]) -> list[Validator]:
    """One at every fourth step, which a step's value is told of, and one after every other epoch."""

    def by_steps(embed_batches, moment) -> dict[str, float]:
        moments.append(moment)
        spread = float(embed_batches([RandomBatches().people[:4]], flip=True).std())
        return {"steps_score": values.get(moment, 0.0), "steps_spread": spread}

    def by_epochs(embed_batches, moment) -> dict[str, float]:
        return {"epochs_score": float(moment.removeprefix("epoch-"))}

    return [
        Validator(by_steps, {"steps_score": False, "steps_spread": True}, None, 4),
        Validator(by_epochs, {"epochs_score": False}, 2),
    ]


def test_validators_by_steps_and_by_epochs(tmp_path: Path) -> None:
    """Of three epochs of seven steps; interrupted between two validations, it ends in the same rows."""
    moments: list[str] = []
    values = {"step-00000008": 0.7, "step-00000012": 0.9}
    reporter = Recorder()
    run(tmp_path / "run", reporter, validate=now_and_then(values, moments))
    steps = [4, 8, 12, 16, 20]
    assert moments == [f"step-{n:08d}" for n in steps] + ["epoch-0003"], "and at the end"
    assert reporter.validations == [(n, ["steps_score"]) for n in steps]
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [str(n) for n in steps]
    ends = [row for row in rows if row["kind"] == "epoch"]
    assert [row["epochs_score"] for row in ends] == ["", "2", "3"]
    assert [bool(row["steps_score"]) for row in ends] == [False, False, True]
    checkpoints = tmp_path / "run" / "checkpoints"
    assert (checkpoints / "best.safetensors").samefile(checkpoints / "step-00000012.safetensors")
    assert {path.stem for path in checkpoints.glob("step-*")} == {f"step-{n:08d}" for n in (4, 8, 12)}

    stop = Recorder(10, lambda: os.kill(os.getpid(), signal.SIGINT))
    run(tmp_path / "stopped", stop, validate=now_and_then(values, []))
    run(tmp_path / "stopped", validate=now_and_then(values, []))
    assert [row for row in metrics(tmp_path / "stopped") if row["kind"] != "step"] == [
        row for row in rows if row["kind"] != "step"
    ]
    assert (tmp_path / "stopped/checkpoints/best.safetensors").samefile(
        tmp_path / "stopped/checkpoints/step-00000012.safetensors"
    )


def test_what_cannot_be_told_decides_nothing(tmp_path: Path) -> None:
    def measure(embed_batches, moment) -> dict[str, float]:
        return {"ijb_tar": math.nan, "ijb_auc": 0.5}

    reporter = Recorder()
    run(tmp_path / "run", reporter, validate=Validator(measure, {"ijb_tar": False, "ijb_auc": False}))
    folder = tmp_path / "run" / "checkpoints"
    assert (folder / "best.safetensors").samefile(folder / "epoch-0003.safetensors"), "the latest"
    (said,) = reporter.warnings
    assert "ijb_tar decides which checkpoint is the best, and cannot be told" in said


def test_a_step_that_ends_an_epoch_is_validated_once(tmp_path: Path) -> None:
    moments: list[str] = []
    first, _ = now_and_then({}, moments)
    run(tmp_path / "run", validate=[replace(first, every_steps=7)])
    assert moments == ["epoch-0001", "epoch-0002", "epoch-0003"]


def test_a_killed_run_goes_on_from_its_last_epoch(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def die() -> None:
        raise Killed

    straight = run(tmp_path / "straight")
    with pytest.raises(Killed):
        run(tmp_path / "killed", Recorder(10, die))
    resumed = run(tmp_path / "killed", backbone=network(seed=99))
    assert same_weights(straight, resumed)
    steps = [int(row["step"]) for row in metrics(tmp_path / "killed") if row["kind"] == "step"]
    assert steps == sorted(set(steps)), "no step is logged twice"


def test_the_state_holds_nothing_that_could_be_executed(tmp_path: Path) -> None:
    run(tmp_path / "run", epochs=1)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["position"]["epoch"] == 1
    assert load_state(tmp_path / "run" / "state.pt")["position"] == state["position"]


def test_a_loss_that_is_no_number_ends_with_one_line(tmp_path: Path) -> None:
    backbone = network()
    with torch.no_grad():
        backbone[1].weight.fill_(float("nan"))
    with pytest.raises(UserError, match="no longer a number"):
        run(tmp_path / "run", backbone=backbone)
    assert "the loss is no longer a number (step" in (tmp_path / "run" / "diverged.txt").read_text()


def test_weights_spoilt_by_the_last_step_of_an_epoch_end_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="embeddings are no longer a number"):
        run(tmp_path / "run", lr=1e30, optimizer="sgd", batches=1)


class Odd(TripletTrainer):
    """Gives a statistic more at some step, or under some name."""

    def __init__(self, name: str, from_step: int = 0) -> None:
        super().__init__(PEOPLE, 8, margin=0.5)
        self.name, self.left = name, from_step

    def forward(self, embeddings: torch.Tensor, batch: Batch, generator: torch.Generator):
        loss, stats = super().forward(embeddings, batch, generator)
        self.left -= 1
        return loss, stats | ({self.name: loss.detach()} if self.left < 0 else {})


@pytest.mark.parametrize("name", ["lr", "loss", "epoch", "val_accuracy"])
def test_no_statistic_takes_the_place_of_a_column_of_ours(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"calls a statistic '{name}'"):
        run(tmp_path / "run", trainer=Odd(name))


class Returning(TripletTrainer):
    """Returns what it is told to make of the loss and its statistics."""

    def __init__(self, what: Callable[[torch.Tensor, dict], object]) -> None:
        super().__init__(PEOPLE, 8, margin=0.5)
        self.what = what

    def forward(self, embeddings: torch.Tensor, batch: Batch, generator: torch.Generator):
        return self.what(*super().forward(embeddings, batch, generator))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (lambda loss, stats: None, "must return the loss and a dict of statistics, not a NoneType"),
        (lambda loss, stats: loss, r"a dict of statistics, not a tensor \[\]"),
        (lambda loss, stats: (float(loss.detach()), stats), "a scalar with a gradient, not a float"),
        (lambda loss, stats: (loss.detach(), stats), r"not a tensor \[\] without a gradient"),
        (lambda loss, stats: (loss[None], stats), r"not a tensor \[1\]"),
        (
            lambda loss, stats: (loss, stats | {"mine": 0.5}),
            "a statistic 'mine' that is no scalar tensor, but a float",
        ),
        (lambda loss, stats: (loss, stats | {3: loss.detach()}), "a statistic 3 "),
    ],
)
def test_what_a_trainer_returns_is_looked_at(tmp_path: Path, what: Callable, says: str) -> None:
    with pytest.raises(UserError, match=says):
        run(tmp_path / "run", trainer=Returning(what))


def test_statistics_stay_the_same(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gives other statistics than at its first step \(extra\)"):
        run(tmp_path / "run", trainer=Odd("extra", from_step=9))


def test_tied_weights_can_be_kept(tmp_path: Path) -> None:
    tied = network()
    tied.add_module("again", nn.Linear(8, 8, bias=False))
    tied.add_module("more", nn.Linear(8, 8, bias=False))
    tied.more.weight = tied.again.weight
    save_network(tmp_path / "tied.safetensors", tied, NetworkInfo("none", {}, 8, ImageSpec(size_px=16)))
    kept = load_file(tmp_path / "tied.safetensors")
    assert torch.equal(kept["more.weight"], tied.again.weight)


def test_collapse_is_said_once(tmp_path: Path) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.ones(8))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.bias + 1e-4 * images.flatten(1)[:, :8]

    reporter = Recorder()
    run(tmp_path / "run", reporter, backbone=Constant(), epochs=12, lr=1e-6)
    assert len(reporter.warnings) == 1
    assert "collapsed" in reporter.warnings[0]
    healthy = Recorder()
    run(tmp_path / "healthy", healthy, epochs=12)
    assert healthy.warnings == []


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    before = network()
    plain = {"epochs": 1, "optimizer": "sgd", "lr": 1.0, "weight_decay": 0}
    free = run(tmp_path / "free", **plain)
    clipped = run(tmp_path / "clipped", **plain, clip_norm=1e-6)
    moved = [
        sum((a - b).abs().sum().item() for a, b in zip(m.parameters(), before.parameters(), strict=True))
        for m in (free, clipped)
    ]
    assert moved[1] < 1e-2 * moved[0]


@pytest.mark.parametrize(("warmup", "total"), [(0.1, 100), (0.3, 57), (0.0, 10)])
def test_one_cycle_is_pytorchs(warmup: float, total: int) -> None:
    config = TrainConfig(lr=0.3, warmup=warmup, schedule="one-cycle")
    ours = [lr_at(config, step, total) for step in range(total)]
    assert max(ours) <= 0.3 + 1e-12
    assert ours[-1] == pytest.approx(0.3e-4, rel=1e-9)
    peak = int(np.argmax(ours))
    assert all(a < b for a, b in zip(ours[:peak], ours[1 : peak + 1], strict=True))
    assert all(a > b for a, b in zip(ours[peak:-1], ours[peak + 1 :], strict=True))
    # PyTorch's schedule, linear up: the cosine part against its own implementation, from the peak on.
    parameter = nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=0.3)
    tail = total - peak
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(tail - 1, 1), eta_min=0.3e-4)
    theirs = []
    for _ in range(tail):
        theirs.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        cosine.step()
    if warmup * total == int(warmup * total):
        np.testing.assert_allclose(ours[peak:], theirs, rtol=1e-6)


def test_constant_schedule_and_decay_groups() -> None:
    config = TrainConfig(schedule="constant", lr=0.2, weight_decay=0.1)
    assert {lr_at(config, step, 10) for step in range(10)} == {0.2}
    optimiser = build_optimiser(config, network())
    decayed, plain = optimiser.param_groups
    assert decayed["weight_decay"] == 0.1
    assert all(p.ndim == 2 for p in decayed["params"])
    assert plain["weight_decay"] == 0
    assert all(p.ndim == 1 for p in plain["params"])


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = build_backbone("iresnet.small", {}, 32, 96).eval()
    info = NetworkInfo("iresnet.small", {}, 32, ImageSpec(), run="r", epoch=3, metrics={"loss": 0.5})
    save_network(tmp_path / "a.safetensors", backbone, info)
    loaded, loaded_info = load_network(tmp_path / "a.safetensors", torch.device("cpu"))
    assert loaded_info == info
    assert same_weights(backbone, loaded)
    images = torch.randn(3, 3, 96, 96)
    np.testing.assert_array_equal(embed(backbone, [images]), embed(loaded, [images]))
    np.testing.assert_allclose(embed(loaded, [images]), embed(loaded, [images[:2], images[2:]]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embed(loaded, [images]), axis=1), 1, atol=1e-6)


def test_files_that_are_no_checkpoints_are_said_to_be_none(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="no checkpoint"):
        load_network(tmp_path / "nothing.safetensors", cpu)
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(UserError, match="is no checkpoint"):
        load_network(tmp_path / "text.safetensors", cpu)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="not written by facetrain"):
        load_network(tmp_path / "foreign.safetensors", cpu)
    info = NetworkInfo("iresnet.small", {}, 32, ImageSpec())
    save_network(tmp_path / "wrong.safetensors", nn.Linear(2, 2), info)
    with pytest.raises(UserError, match="does not fit"):
        load_network(tmp_path / "wrong.safetensors", cpu)


def test_metrics_after_a_resume_are_as_if_uninterrupted(tmp_path: Path) -> None:
    where = {"epoch": 0.5, "step": 5, "images": 50, "seconds": 1.0}
    log = MetricsLog(tmp_path, 0)
    log.write("step", where | {"loss": 0.5})
    log.write("step", where | {"step": 9, "loss": 0.4})
    log.close()
    log = MetricsLog(tmp_path, 5)
    log.write("step", where | {"step": 9, "loss": 0.3, "new": 1.0})
    log.close()
    rows = metrics(tmp_path)
    assert [(row["step"], row["loss"], row["new"]) for row in rows] == [("5", "0.5", ""), ("9", "0.3", "1")]


def test_a_weight_that_two_modules_hold_is_trained_once() -> None:
    network = torch.nn.Linear(2, 2)
    optimiser = build_optimiser(TrainConfig(), network, torch.nn.Sequential(network, torch.nn.Linear(2, 1)))
    trained = [p for group in optimiser.param_groups for p in group["params"]]
    assert len(trained) == len(set(trained)) == 4


def test_the_average_counts_the_steps_from_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    monkeypatch.setattr(Average, "update", lambda self, network, step: counted.append(step))
    run(tmp_path / "run", average=0.5)
    assert counted == list(range(len(counted)))
    assert len(counted) > 1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", ["sampled classes", "memory"])
def test_sparse_steps_and_memories_are_resumed(tmp_path: Path, kind: str, optimizer: str) -> None:
    class Killed(Exception):
        pass

    def die() -> None:
        raise Killed

    def trainer(seed: int = 0) -> Trainer:
        torch.manual_seed(seed)
        if kind == "memory":
            return TripletTrainer(PEOPLE, 8, margin=0.5, memory=50)
        return ClassificationTrainer(PEOPLE, 8, loss="cosface", sampled_classes=0.2)

    how = {"optimizer": optimizer, "clip_norm": 0.5, "average": 0.9}
    one, other, resumed = trainer(), trainer(), trainer(seed=9)
    straight = run(tmp_path / "straight", trainer=one, **how)
    with pytest.raises(Killed):
        run(tmp_path / "killed", Recorder(10, die), trainer=other, **how)
    again = run(tmp_path / "killed", trainer=resumed, backbone=network(seed=99), **how)
    assert same_weights(straight, again)
    assert same_weights(one, resumed)


@pytest.mark.parametrize("before", ["highest", "high"])
def test_tf32_beside_bf16_and_only_meanwhile(before: str) -> None:
    was = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(before)
        with loop._tf32(False):
            assert torch.get_float32_matmul_precision() == before
        with loop._tf32(True):
            assert torch.get_float32_matmul_precision() == "high"
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(was)
