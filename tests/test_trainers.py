"""Trainers over pairs of photographs: triplet, metric, simclr, semi-siamese."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from facetrain.batch import Batch
from facetrain.config import TrainConfig
from facetrain.errors import UserError
from facetrain.image_spec import ImageSpec
from facetrain.plugins import make, resolve
from facetrain.testing.trainer import check_trainer
from facetrain.train.average import Average
from facetrain.train.checkpoint import NetworkInfo
from facetrain.train.loop import train
from facetrain.train.losses.infonce import InfoNCE
from facetrain.train.losses.multi_similarity import MultiSimilarity
from facetrain.train.losses.triplet import Triplet
from facetrain.train.trainers.base import Trainer
from facetrain.train.trainers.classification import ClassificationTrainer
from facetrain.train.trainers.collapse import is_collapsed
from facetrain.train.trainers.metric import MetricTrainer
from facetrain.train.trainers.semi_siamese import SemiSiameseTrainer

PEOPLE, IMAGES, SIZE, DIM = 12, 5, 6, 8
TRAINERS = {
    "triplet": {"people": 4, "images": 3, "margin": 0.5},
    "triplet, batch-hard": {
        "people": 4,
        "images": 3,
        "miner": "batch-hard",
        "soft_margin": True,
        "margin": 0.0,
    },
    "metric": {"people": 4, "images": 3, "extra_negatives": 3},
    "metric, n-pair": {"people": 4, "images": 2, "loss": "n-pair"},
    "simclr": {"batch_size": 12, "projection_dim": 6, "projection_hidden": 10},
    "simclr, no projection": {"batch_size": 12, "projection_dim": 0, "views": 3},
    "semi-siamese": {"people": 5, "queue_size": 12, "decay": 0.9, "margin_cos": 0.1, "scale": 8.0},
}
everyone = pytest.mark.parametrize("name", TRAINERS)


def trainer_of(name: str, seed: int = 0, **settings) -> Trainer:
    torch.manual_seed(seed)
    arguments = TRAINERS[name] | settings
    return make("trainers", name.split(",")[0], arguments, num_classes=PEOPLE, embedding_dim=DIM)


class Dead(Exception):
    pass


class Drawn:
    """Noisy pictures of twelve people, drawn by the trainer's own sampler; each place in a batch has its own noise."""

    def __init__(self, trainer: Trainer, stop_after: int | None = None) -> None:
        self.left = stop_after
        self.labels = np.repeat(np.arange(PEOPLE), IMAGES)
        self.sampler = resolve("samplers", trainer.sampler)(
            self.labels, seed=0, batches_per_epoch=6, **trainer.sampler_args()
        )
        generator = torch.Generator().manual_seed(0)
        people = torch.randn(PEOPLE, 3, SIZE, SIZE, generator=generator)
        self.images = people[self.labels] + 0.5 * torch.randn(
            len(self.labels), 3, SIZE, SIZE, generator=generator
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for position, draw in enumerate(self.sampler.epoch(epoch, start), start):
            if self.left == 0:
                raise Dead
            self.left = None if self.left is None else self.left - 1
            generator = torch.Generator().manual_seed(1000 * epoch + position)
            noise = 0.5 * torch.randn(len(draw.positions), 3, SIZE, SIZE, generator=generator)
            yield Batch(
                self.images[draw.positions] + noise,
                torch.from_numpy(self.labels[draw.positions]),
                torch.from_numpy(draw.positions),
                draw.num_anchors,
            )


class Recorder:
    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self.warnings: list[str] = []

    def start(self, step: int, total_steps: int) -> None:
        self.first = step

    def step(self, step: int, note: str) -> None: ...

    def epoch(self, values: dict[str, float], epochs: int, measured: Sequence[str]) -> None:
        self.epochs.append(values)

    def warn(self, line: str) -> None:
        self.warnings.append(line)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [
        nn.Linear(3 * SIZE * SIZE, 16),
        nn.BatchNorm1d(16),
        nn.PReLU(),
        nn.Dropout(0.1),
        nn.Linear(16, DIM),
    ]
    return nn.Sequential(nn.Flatten(), *layers)


def run(
    folder: Path, trainer: Trainer, *, seed: int = 0, stop_after: int | None = None, **settings
) -> Recorder:
    """Train; ``stop_after``: die after so many steps."""
    folder.mkdir(exist_ok=True)
    config = TrainConfig(**({"epochs": 4, "embedding_dim": DIM, "precision": "fp32", "lr": 0.01} | settings))
    reporter, batches = Recorder(), Drawn(trainer, stop_after=stop_after)
    info = NetworkInfo("none", {}, DIM, ImageSpec(size_px=16))
    train(folder, config, network(seed), trainer, batches, [], info, torch.device("cpu"), reporter=reporter)
    return reporter


@everyone
def test_contract(name: str) -> None:
    check_trainer(functools.partial(resolve("trainers", name.split(",")[0]), **TRAINERS[name]))


@everyone
def test_a_training_lowers_its_loss(name: str, tmp_path: Path) -> None:
    reporter = run(tmp_path / "run", trainer_of(name), epochs=15)
    losses = [values["loss"] for values in reporter.epochs]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert reporter.warnings == []
    tensors = load_file(tmp_path / "run" / "checkpoints" / "best.safetensors")
    assert tensors.keys() == network().state_dict().keys(), "what is the trainer's own is left behind"


@everyone
@pytest.mark.parametrize("stop_after", [7, 13])
def test_a_resumed_run_equals_an_uninterrupted_one(name: str, stop_after: int, tmp_path: Path) -> None:
    run(tmp_path / "straight", trainer_of(name))
    with pytest.raises(Dead):
        run(tmp_path / "stopped", trainer_of(name), stop_after=stop_after, save_every_minutes=1e-9)
    resumed = run(tmp_path / "stopped", trainer_of(name, seed=5), seed=5)
    assert resumed.first == stop_after, "in the middle of an epoch"
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("straight", "stopped")]
    for part in ("backbone", "trainer"):
        assert states[0][part].keys() == states[1][part].keys()
        assert all(torch.equal(states[0][part][key], states[1][part][key]) for key in states[0][part])


# -- triplet and metric ------------------------------------------------------------------------------------------------


def batch_of(labels: Tensor, num_anchors: int | None = None) -> Batch:
    images = torch.randn(len(labels), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    return Batch(
        images, labels, torch.arange(len(labels)), len(labels) if num_anchors is None else num_anchors
    )


def test_triplet_hands_its_settings_on() -> None:
    settings = {
        "margin": 0.3,
        "miner": "easy-positive",
        "miner_args": {"negative": "hardest"},
        "distance": "cosine",
        "soft_margin": True,
        "swap": True,
        "average": "active",
    }
    batch = batch_of(torch.arange(6).repeat_interleave(3), num_anchors=12)
    embeddings = torch.randn(18, DIM, generator=torch.Generator().manual_seed(0))
    trainer = make("trainers", "triplet", settings, num_classes=6, embedding_dim=DIM)
    loss, stats = trainer(embeddings, batch, torch.Generator())
    expected, its = Triplet(**settings)(embeddings, batch.labels, torch.Generator(), 12)
    assert torch.equal(loss, expected)
    assert stats == its
    assert not torch.equal(loss, Triplet(**settings)(embeddings, batch.labels, torch.Generator())[0])
    assert trainer.sampler_args() == {"people_per_batch": 32, "images_per_person": 8, "extra_negatives": 0}


@pytest.mark.parametrize(
    "loss", ["contrastive", "multi-similarity", "n-pair", "infonce", "supcon", "circle", "triplet"]
)
def test_metric_takes_any_loss(loss: str) -> None:
    trainer = make("trainers", "metric", {"loss": loss, "people": 3}, num_classes=6, embedding_dim=DIM)
    batch = batch_of(torch.arange(6).repeat_interleave(3), num_anchors=12)
    embeddings = torch.randn(18, DIM, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value, _ = trainer(embeddings, batch, torch.Generator().manual_seed(2))
    expected, _ = make("losses", loss, {})(embeddings, batch.labels, torch.Generator().manual_seed(2), 12)
    assert torch.equal(value, expected)
    assert float(value.detach()) > 0
    assert trainer.sampler_args()["people_per_batch"] == 3


def test_metric_takes_arguments_and_heads() -> None:
    given = {"num_classes": 6, "embedding_dim": DIM}
    trainer = make("trainers", "metric", {"loss_args": {"alpha": 3.0, "mining": False}}, **given)
    assert isinstance(trainer.loss, MultiSimilarity)
    assert (trainer.loss.alpha, trainer.loss.mining) == (3.0, False)
    head = make("trainers", "metric", {"loss": "cosface"}, **given)
    assert [tuple(p.shape) for p in head.parameters()] == [(6, DIM)]


# -- simclr ------------------------------------------------------------------------------------------------------------


def test_simclr_compares_photographs_and_not_people() -> None:
    trainer = trainer_of("simclr", batch_size=6)
    batch = next(iter(Drawn(trainer).epoch(0)))
    assert len(batch.images) == 12
    assert torch.equal(batch.rows[::2], batch.rows[1::2])
    assert not torch.equal(batch.images[::2], batch.images[1::2])
    embeddings = network()(batch.images)
    loss, _ = trainer(embeddings, batch, torch.Generator())
    projected = trainer.projection(embeddings)
    assert projected.shape == (12, 6)
    photographs = torch.arange(6).repeat_interleave(2)
    torch.testing.assert_close(loss, InfoNCE()(projected, photographs)[0])
    one_person = Batch(batch.images, torch.zeros_like(batch.labels), batch.rows, 12)
    assert torch.equal(trainer(embeddings, one_person, torch.Generator())[0], loss)


def test_simclrs_projection() -> None:
    assert [tuple(p.shape) for p in trainer_of("simclr").parameters()] == [(10, DIM), (10,), (6, 10), (6,)]
    assert list(trainer_of("simclr, no projection").parameters()) == []
    default = make("trainers", "simclr", {}, num_classes=2, embedding_dim=256)
    assert [tuple(p.shape) for p in default.parameters()] == [(256, 256), (256,), (128, 256), (128,)]
    assert default.sampler_args() == {"batch_size": 128, "views": 2}


# -- semi-siamese ------------------------------------------------------------------------------------------------------


def plain_semi_siamese(
    probes: Tensor,
    prototypes: Tensor,
    people: list[int],
    queue: list[tuple[Tensor, int]],
    margin: float,
    scale: float,
) -> float:
    """Mean over both ways round, in plain loops; rows 2i and 2i + 1 are the two photographs of ``people[i]``."""
    losses = []
    for i in range(len(people)):
        for probe, partner in ((2 * i, 1), (2 * i + 1, 0)):
            own = math.exp(scale * (float(probes[probe] @ prototypes[2 * i + partner]) - margin))
            others = [prototypes[2 * j + partner] for j in range(len(people)) if people[j] != people[i]]
            others += [prototype for prototype, person in queue if person != people[i]]
            total = own + sum(math.exp(scale * float(probes[probe] @ other)) for other in others)
            losses.append(-math.log(own / total))
    return sum(losses) / len(losses)


def test_semi_siamese_equals_plain_loops_and_keeps_a_queue() -> None:
    """Over six steps: the queue fills, and its oldest go; the gallery network is the moving average."""
    trainer, backbone = trainer_of("semi-siamese"), network().double()
    trainer.double()
    trainer.attach(backbone)
    gallery = Average(backbone, 0.9)
    for module in gallery.network.modules():
        module.train(isinstance(module, nn.BatchNorm1d))  # and no dropout
    optimiser = torch.optim.SGD(backbone.parameters(), lr=0.1)
    queue: list[tuple[Tensor, int]] = []
    twice = 0
    for step, batch in enumerate(Drawn(trainer).epoch(0)):
        batch = Batch(batch.images.double(), batch.labels, batch.rows, batch.num_anchors)
        torch.manual_seed(step)
        embeddings = trainer.embed(backbone, batch)
        loss, _ = trainer(embeddings, batch, torch.Generator().manual_seed(step))
        with torch.no_grad():
            prototypes = F.normalize(gallery.network(batch.images).float()).double()
        people = batch.labels[::2].tolist()
        twice += len(set(people)) < len(people)
        expected = plain_semi_siamese(F.normalize(embeddings.detach()), prototypes, people, queue, 0.1, 8.0)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-9)

        kept = trainer.queue[trainer.queue_people >= 0]
        assert len(kept) == min(5 * (step + 1), 12)
        new = [
            next(
                (prototypes[row], person)
                for row in (2 * i, 2 * i + 1)
                if (trainer.queue == prototypes[row]).all(1).any()
            )
            for i, person in enumerate(people)
        ]
        queue = (queue + new)[-12:]
        assert sorted(trainer.queue_people.tolist()) == sorted(
            [-1] * (12 - len(queue)) + [p for _, p in queue]
        )

        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        trainer.after_step(backbone)
        gallery.update(backbone, step)
        same = zip(trainer.gallery.state_dict().values(), gallery.network.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in same)
    assert twice, "two pairs of one person were in one batch: they are not each other's negatives"
    assert not torch.equal(trainer.gallery[1].weight, backbone[1].weight)


def test_semi_siamese_trains_the_network_alone() -> None:
    trainer, backbone = trainer_of("semi-siamese"), network()
    trainer.attach(backbone)
    assert [name for name, p in trainer.named_parameters() if p.requires_grad] == []
    batch = next(iter(Drawn(trainer).epoch(0)))
    before = copy.deepcopy(trainer.gallery.state_dict())
    loss, _ = trainer(trainer.embed(backbone, batch), batch, torch.Generator())
    loss.backward()
    assert all(p.grad is not None for p in backbone.parameters())
    assert all(p.grad is None for p in trainer.parameters())
    assert torch.equal(before["1.weight"], trainer.gallery[1].weight)


def test_semi_siamese_with_photographs_that_are_all_of_one_person() -> None:
    trainer, backbone = trainer_of("semi-siamese"), network()
    trainer.attach(backbone)
    batch = batch_of(torch.zeros(10, dtype=torch.int64))
    loss, stats = trainer(trainer.embed(backbone, batch), batch, torch.Generator())
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad.isfinite().all() for p in backbone.parameters())
    assert all(stat.isfinite() for stat in stats.values())


def test_prototypes_have_no_dropout_and_the_batchs_norm() -> None:
    trainer, backbone = trainer_of("semi-siamese"), nn.Sequential(network(), nn.Dropout(0.6))
    trainer.attach(backbone)
    batch = next(iter(Drawn(trainer).epoch(0)))
    assert torch.equal(trainer.gallery(batch.images), trainer.gallery(batch.images))
    trainer.eval()
    assert not any(module.training for module in trainer.modules())
    trainer.train()
    assert [type(module) for module in trainer.gallery.modules() if module.training] == [nn.BatchNorm1d]
    means = trainer.gallery[0][2].running_mean.clone()
    trainer.embed(backbone, batch)
    assert not torch.equal(means, trainer.gallery[0][2].running_mean)


def semi_siamese_of_vectors(people: int) -> SemiSiameseTrainer:
    """One whose batches are the embeddings themselves: both networks hand them on."""
    trainer = SemiSiameseTrainer(people, DIM, people=people, queue_size=people, margin_cos=0.3, scale=8.0)
    trainer.attach(nn.Identity())
    return trainer


def test_semi_siamese_draws_for_each_person_which_of_two_is_kept() -> None:
    vectors = F.normalize(torch.randn(128, DIM, generator=torch.Generator().manual_seed(0)))
    labels = torch.arange(64).repeat_interleave(2)
    batch = Batch(vectors, labels, torch.arange(128), 128)

    def first_kept(seed: int) -> Tensor:
        trainer = semi_siamese_of_vectors(64)
        trainer(trainer.embed(nn.Identity(), batch), batch, torch.Generator().manual_seed(seed))
        first, second = (trainer.queue.isclose(vectors[half::2]).all(1) for half in (0, 1))
        assert (first ^ second).all(), "one of each person's two"
        assert trainer.queue_people.tolist() == list(range(64))
        return first

    assert 16 < int(first_kept(0).sum()) < 48, "some people's first, some people's second"
    assert torch.equal(first_kept(0), first_kept(0))
    assert not torch.equal(first_kept(0), first_kept(1))


def test_semi_siameses_accuracy_is_that_before_the_margin() -> None:
    """Two people at cos 0.8 to each other, their own two photographs at 0.95: nearer, but by less than the margin."""
    angles = torch.tensor([0.0, math.acos(0.95), math.acos(0.95) + math.acos(0.8), 0.0])
    angles[3] = angles[2] + math.acos(0.95)
    vectors = F.pad(torch.stack([angles.cos(), angles.sin()], 1), (0, DIM - 2))
    batch = Batch(vectors, torch.tensor([0, 0, 1, 1]), torch.arange(4), 4)
    trainer = semi_siamese_of_vectors(2)
    _, stats = trainer(trainer.embed(nn.Identity(), batch), batch, torch.Generator())
    assert float(stats["cos_target"]) == pytest.approx(0.95)
    assert float(stats["train_accuracy"]) == 1.0


def test_semi_siamese_defaults() -> None:
    trainer = SemiSiameseTrainer(10, DIM)
    assert trainer.queue.shape == (16384, DIM)
    assert (trainer.decay, trainer.margin_cos, trainer.scale) == (0.999, 0.35, 32.0)
    assert trainer.sampler_args() == {"pairs_per_batch": 64}


# -- what can go wrong -------------------------------------------------------------------------------------------------


@everyone
def test_collapse_is_told(name: str) -> None:
    trainer = trainer_of(name)
    loss = math.log(2) if "batch-hard" in name else 0.5
    stats = {"loss": loss, "embedding_std": 0.001}
    line = trainer.trouble(stats)
    assert line is not None
    assert "every photograph gets the same embedding" in line
    assert trainer.trouble(stats | {"embedding_std": 0.3}) is None
    if name.startswith("triplet"):
        assert trainer.trouble(stats | {"loss": 0.1}) is None


@pytest.mark.parametrize("embedding_dim", [8, 128])
def test_collapse_begins_at_a_twentieth_of_the_full_spread(embedding_dim: int) -> None:
    full = embedding_dim**-0.5
    assert is_collapsed({"embedding_std": 0.049 * full}, embedding_dim)
    assert not is_collapsed({"embedding_std": 0.051 * full}, embedding_dim)
    assert not is_collapsed({"loss": 0.2}, embedding_dim), "nothing is known of the spread"


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("triplet", {"margin": 5.0}, "a margin of 5"),
        ("triplet", {"miner": "some"}, "no 'some' among the miners"),
        ("triplet", {"extra_negatives": -1}, "-1 extra negatives"),
        ("triplet", {"soft_margin": 1}, "soft_margin = 1 should be of type bool"),
        ("metric", {"loss": "multisimilarity"}, "did you mean 'multi-similarity'"),
        ("metric", {"loss_args": {"gamma": 1}}, "loss 'multi-similarity' takes no 'gamma'"),
        ("metric", {"extra_negatives": -1}, "-1 extra negatives"),
        ("simclr", {"views": 1}, "1 views of each photograph: choose 2 or more"),
        ("simclr", {"batch_size": 1}, "1 photographs in a batch: choose 2 or more"),
        ("simclr", {"projection_dim": -1}, "choose widths above 0"),
        ("simclr", {"loss_args": {"temperature": 0.0}}, "temperature = 0: choose a number above 0"),
        ("semi-siamese", {"people": 1}, "1 people in a batch"),
        ("semi-siamese", {"people": 13}, "13 people in a batch"),
        ("semi-siamese", {"decay": 1.5}, "decay = 1.5: choose a number from 0 to 0.999999"),
        ("semi-siamese", {"scale": 0.0}, "scale = 0"),
    ],
)
def test_wrong_settings_are_one_line(name: str, settings: dict, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        trainer_of(name, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("trainer", ["simclr", "semi-siamese", "metric"])
def test_the_command(trainer: str, root: Path, ft) -> None:
    ft(root, "split", "0.3")
    settings = {
        "simclr": ["--batch-size", "4"],
        "semi-siamese": ["--people", "2"],
        "metric": ["--people", "2", "--images", "3"],
    }
    small = ["--epochs", "1", "-j", "1", "--set", "validation_pairs=20"]
    result = ft(root, "train", "--trainer", trainer, "--name", "it", *settings[trainer], *small)
    assert "best checkpoint" in result.output
    rows = (root / ".ft" / "runs" / "it" / "metrics.csv").read_text().splitlines()
    loss = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))["loss"]
    assert math.isfinite(float(loss))


def test_a_memory_holds_the_last_embeddings_as_negatives() -> None:
    torch.manual_seed(0)
    trainer = MetricTrainer(50, 8, loss="contrastive", people=4, images=2, memory=20)
    plain = MetricTrainer(50, 8, loss="contrastive", people=4, images=2)
    generator = torch.Generator().manual_seed(0)
    seen: list[torch.Tensor] = []
    for step in range(5):
        rows = torch.randn(8, 8, generator=generator, requires_grad=True)
        labels = torch.randint(50, (4,), generator=generator).repeat_interleave(2)
        batch = Batch(torch.empty(8, 0), labels, torch.arange(8), 8)
        loss, _ = trainer(rows, batch, generator)
        loss.backward()
        remembered = torch.cat([rows[:0].detach(), *[s[0] for s in seen]])[-20:]
        remembered_labels = torch.cat([labels[:0], *[s[1] for s in seen]])[-20:]
        expected, _ = plain.loss(
            torch.cat([rows.detach(), remembered]), torch.cat([labels, remembered_labels]), generator, 8
        )
        torch.testing.assert_close(loss.detach(), expected, msg=f"step {step}")
        seen.append((rows.detach(), labels))
    again = MetricTrainer(50, 8, loss="contrastive", people=4, images=2, memory=20)
    again.load_state_dict(trainer.state_dict())
    rows = torch.randn(8, 8, generator=generator)
    assert torch.equal(again(rows, batch, generator)[0], trainer(rows, batch, generator)[0])


def test_wrong_memories_are_refused() -> None:
    with pytest.raises(UserError, match="a memory of -1"):
        MetricTrainer(5, 8, memory=-1)
    with pytest.raises(UserError, match="'cosface' is a head"):
        MetricTrainer(5, 8, loss="cosface", memory=5)


def test_sampled_classes_need_a_head_that_can() -> None:
    trainer = ClassificationTrainer(50, 8, loss="cosface", sampled_classes=0.5)
    assert trainer.loss.sampled_classes == 0.5
    with pytest.raises(UserError, match="sampled_classes = 0"):
        ClassificationTrainer(50, 8, loss="cosface", sampled_classes=0.0)
    with pytest.raises(UserError, match="'npcface' has to see all people"):
        ClassificationTrainer(50, 8, loss="npcface", sampled_classes=0.5)
