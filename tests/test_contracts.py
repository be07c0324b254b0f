"""Every built-in part, by its name, held to the contract that third parties are held to."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from facetrain.datasets.synth import draw_face
from facetrain.plugins import BUILT_IN, resolve
from facetrain.testing import (
    check_backbone,
    check_detector,
    check_loss,
    check_miner,
    check_sampler,
    check_trainer,
)

# Options that change what is computed.
LOSS_VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("arcface", {"gradient": "straight-through"}),
    ("contrastive", {"power": 1, "average": "all"}),
    ("triplet", {"miner": "batch-hard", "soft_margin": True, "margin": 0}),
    ("triplet", {"miner": "all", "distance": "cosine", "swap": True, "average": "active"}),
    ("triplet", {"miner": "semihard", "swap": True}),
    ("triplet", {"miner": "hardest"}),
    ("triplet", {"miner": "easy-positive"}),
]

# Deep networks on small images, to spare time; at 96 and 112 px they are in tests/test_backbones.py.
SIZE_PX = {"iresnet18": 48, "iresnet34": 48, "iresnet50": 48, "iresnet100": 48}

# What a trainer would give to a sampler that cannot do without.
SAMPLER_ARGS: dict[str, dict[str, Any]] = {
    "people": {"people_per_batch": 5, "images_per_person": 4, "extra_negatives": 3},
}


def each(family: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return pytest.mark.parametrize("name", BUILT_IN[family])


@each("losses")
def test_loss(name: str) -> None:
    check_loss(resolve("losses", name))


def test_the_head_in_the_documents() -> None:
    page = Path(__file__).resolve().parent.parent / "docs" / "explanation" / "heads.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    check_loss(names["Wary"], gradcheck=True)


@pytest.mark.parametrize(("name", "options"), LOSS_VARIANTS)
def test_loss_with_options(name: str, options: dict[str, Any]) -> None:
    check_loss(partial(resolve("losses", name), **options))


@each("miners")
def test_miner(name: str) -> None:
    check_miner(resolve("miners", name))


@each("backbones")
def test_backbone(name: str) -> None:
    check_backbone(resolve("backbones", name), sizes_px=[SIZE_PX.get(name, 96)])


@each("trainers")
def test_trainer(name: str) -> None:
    check_trainer(resolve("trainers", name), steps=2)


@each("losses")
def test_trainer_with_each_loss(name: str) -> None:
    """Those with weights for the people under ``softmax``, those over pairs under ``metric``."""
    if "num_classes" in inspect.signature(resolve("losses", name)).parameters:
        make = partial(resolve("trainers", "softmax"), loss=name, batch_size=12)
    else:
        make = partial(resolve("trainers", "metric"), loss=name, people=4, images=3)
    check_trainer(make, people=8, images=6, steps=2)


@each("samplers")
def test_sampler(name: str) -> None:
    check_sampler(partial(resolve("samplers", name), **SAMPLER_ARGS.get(name, {})))


@each("detectors")
def test_detector(name: str) -> None:
    photographs = [draw_face(1, person, 1, size_px=150) for person in (1, 2)]
    check_detector(resolve("detectors", name), photographs=photographs)


def test_every_family_is_checked() -> None:
    families = {"losses", "miners", "backbones", "trainers", "samplers", "detectors"}
    assert set(BUILT_IN) == families | {
        "embedders",
        "protocols",
    }  # in tests/test_embedders.py, test_protocols.py
