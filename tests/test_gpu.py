"""What must hold on an NVIDIA GPU. Needs torch alone; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from facetrain.kernels.mining import mine_triplets
from facetrain.train.checkpoint import build_backbone
from facetrain.train.losses.triplet import triplet_loss

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")]


def test_mining_and_loss_are_those_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(120, 32, generator=generator, dtype=torch.float64))
    labels = torch.arange(30).repeat_interleave(4)
    triplets = mine_triplets(embeddings, labels, margin=0.3, strategy="hardest")
    on_gpu = mine_triplets(embeddings.cuda(), labels.cuda(), margin=0.3, strategy="hardest")
    for name in ("anchor", "positive", "negative"):
        assert torch.equal(getattr(triplets, name), getattr(on_gpu, name).cpu())
    loss = triplet_loss(embeddings, triplets, margin=0.3).loss
    assert torch.allclose(loss, triplet_loss(embeddings.cuda(), on_gpu, margin=0.3).loss.cpu(), rtol=1e-12)


def test_random_mining_repeats_with_its_generator() -> None:
    embeddings = torch.nn.functional.normalize(torch.randn(64, 16, device="cuda"))
    labels = torch.arange(16, device="cuda").repeat_interleave(4)
    one, two = (
        mine_triplets(embeddings, labels, margin=0.5, generator=torch.Generator("cuda").manual_seed(7))
        for _ in "ab"
    )
    assert torch.equal(one.negative, two.negative)


@pytest.mark.parametrize("name", ["nn4.small2", "iresnet.small"])
def test_a_backbone_gives_the_cpus_embeddings(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, {}, 64, 96).eval()
    images = torch.randn(8, 3, 96, 96)
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(backbone(images))
        found = torch.nn.functional.normalize(backbone.cuda()(images.cuda())).cpu()
    assert (expected * found).sum(1).min() > 0.999
