"""Trainers, losses and backbones on an NVIDIA GPU; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from facetrain.plugins import BUILT_IN, make, resolve
from facetrain.testing import check_backbone, check_loss, check_miner, check_trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")]

HEADS = [name for name, target in BUILT_IN["losses"].items() if ".heads." in target]
BY_CHANCE = (
    "elastic-arcface",
    "elastic-cosface",
    "n-pair",
    "triplet",
)  # drawn on the device, by its own generator


@pytest.mark.parametrize("name", BUILT_IN["losses"])
def test_a_loss_keeps_its_contract(name: str) -> None:
    check_loss(resolve("losses", name), device="cuda")


@pytest.mark.parametrize("name", BUILT_IN["miners"])
def test_a_miner_keeps_its_contract(name: str) -> None:
    check_miner(resolve("miners", name), device="cuda")


@pytest.mark.parametrize("name", BUILT_IN["trainers"])
def test_a_trainer_keeps_its_contract(name: str) -> None:
    check_trainer(resolve("trainers", name), device="cuda")


@pytest.mark.parametrize("name", BUILT_IN["backbones"])
def test_a_backbone_keeps_its_contract(name: str) -> None:
    check_backbone(resolve("backbones", name), sizes_px=[112], device="cuda")


@pytest.mark.parametrize("name", [name for name in BUILT_IN["losses"] if name not in BY_CHANCE])
def test_a_loss_is_that_of_the_cpu(name: str) -> None:
    torch.manual_seed(0)
    loss = make("losses", name, {}, num_classes=20, embedding_dim=16).double()
    labels = torch.arange(8).repeat_interleave(3)
    found = []
    for device in ("cpu", "cuda"):
        embeddings = torch.randn(24, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        embeddings = embeddings.to(device).requires_grad_()
        value, _ = loss.to(device).eval()(embeddings, labels.to(device))
        value.backward()
        found.append((value.detach().cpu(), embeddings.grad.cpu()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", HEADS)
def test_a_step_of_a_head_waits_for_nothing(name: str) -> None:
    loss = make("losses", name, {}, num_classes=1000, embedding_dim=64).cuda().train()
    embeddings = torch.randn(64, 64, device="cuda", requires_grad=True)
    labels = torch.arange(64, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    loss(embeddings, labels, generator)[0].backward()  # whatever is set up once
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(embeddings, labels, generator)[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
