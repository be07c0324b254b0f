"""The trainers with a head: alone, and with a loss over pairs beside it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from facetrain.batch import Batch
from facetrain.datasets.samplers import PeopleSampler
from facetrain.errors import UserError
from facetrain.plugins import make, resolve
from facetrain.testing import check_trainer
from facetrain.train.trainers.classification import ClassificationTrainer

JOINT = {"loss": "cosface", "pair_loss": "supcon", "batch_size": 16, "people": 3, "images": 4}


def batch_of(labels: torch.Tensor, num_anchors: int) -> Batch:
    return Batch(torch.zeros(len(labels), 3, 8, 8), labels, torch.arange(len(labels)), num_anchors)


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_loss_is_the_heads_and_weight_times_the_pairs(weight: float) -> None:
    trainer = ClassificationTrainer(9, 6, **JOINT, pair_weight=weight)
    embeddings = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.cat([torch.arange(3).repeat_interleave(4), torch.tensor([5, 6, 7, 8])])
    with torch.no_grad():
        loss, stats = trainer(embeddings, batch_of(labels, 12), torch.Generator())
        head, head_stats = trainer.loss(embeddings, labels)
    pairs, pair_stats = make("losses", "supcon", {})(embeddings, labels, num_anchors=12)
    assert float(loss) == pytest.approx(float(head + weight * pairs))
    assert stats.keys() == {*head_stats, *pair_stats, "loss_head", "loss_pairs"}
    assert (float(stats["loss_head"]), float(stats["loss_pairs"])) == (float(head), float(pairs))


def test_people_fill_a_part_of_the_batch_and_anyone_the_rest() -> None:
    trainer = ClassificationTrainer(9, 6, **JOINT)
    assert trainer.sampler == "people"
    labels = np.repeat(np.arange(30), [1] * 20 + [6] * 10)
    sampler = resolve("samplers", trainer.sampler)(labels, seed=0, **trainer.sampler_args())
    assert isinstance(sampler, PeopleSampler)
    singles = 0
    for draw in sampler.epoch(0):
        drawn = labels[draw.positions]
        assert (len(drawn), draw.num_anchors) == (16, 12)
        assert np.bincount(drawn[:12])[20:].tolist().count(4) == 3
        singles += int((drawn[12:] < 20).sum())
    assert singles > 0, "people with one photograph take part"


def test_without_people_it_goes_through_all_photographs() -> None:
    trainer = ClassificationTrainer(9, 6, batch_size=32)
    assert trainer.sampler == "shuffled"
    assert trainer.sampler_args() == {"batch_size": 32, "drop_last": True}


@pytest.mark.parametrize("name", ["arcface", "softmax"])
def test_the_margin_rises_for_both_losses(name: str) -> None:
    trainer = resolve("trainers", name)(9, 6, **JOINT | {"pair_loss": "circle", "margin_ramp": 0.5})
    for progress, share in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.9, 1.0)):
        trainer.before_step(progress)
        assert (trainer.loss.margin_share, trainer.pair_loss.margin_share) == (share, share)


def test_arcface_is_the_default_head_of_arcface() -> None:
    trainer = resolve("trainers", "arcface")(9, 6)
    assert type(trainer.loss).__name__ == "ArcFace"
    assert trainer.margin_ramp == 0.3


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"pair_loss": "supcon"}, "a pair_loss needs pairs: set people and images"),
        ({"people": 9, "images": 4, "batch_size": 32}, "9 people × 4 photographs in a batch of 32"),
        ({"people": -1}, "-1 people"),
        ({"margin_ramp": 1.5}, "margin_ramp = 1.5"),
        ({**JOINT, "pair_weight": 0.0}, "pair_weight = 0"),
        ({"pair_weight": 2.0}, "pair_loss_args and pair_weight are of a pair_loss"),
        ({"pair_loss_args": {"temperature": 0.1}}, "pair_loss_args and pair_weight are of a pair_loss"),
        ({"loss": "circle"}, "'circle' compares photographs and knows no people"),
        ({**JOINT, "pair_loss": "cosface"}, "'cosface' is a head"),
        ({"pair_loss": "supcom", "people": 2}, "did you mean 'supcon'"),
        ({"loss": "cosfaces"}, "did you mean 'cosface'"),
    ],
)
def test_wrong_settings_are_one_line(settings: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ClassificationTrainer(9, 6, **settings)


def test_with_a_pair_loss_it_keeps_the_contract_of_a_trainer() -> None:
    check_trainer(partial(ClassificationTrainer, **JOINT))
