"""What must hold on an NVIDIA GPU; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from facetrain.datasets.cache.build import build_cache
from facetrain.datasets.cache.decode import DecodeBatch, Decoder
from facetrain.datasets.cache.shards import decoder_of, map_shard
from facetrain.index import read_index
from facetrain.kernels.mining import mine_triplets
from facetrain.train.checkpoint import build_backbone
from facetrain.train.losses.triplet import triplet_loss
from facetrain.workspace import Workspace

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


def crops_of(root: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((root / "aligned").rglob("*.jpg"))]


def test_a_gpu_decodes_what_the_cpu_does(aligned_once: Path) -> None:
    """nvJPEG's inverse DCT and chroma upsampling round otherwise: by a level or two, more along sharp colours."""
    encoded = crops_of(aligned_once)
    on_cpu, on_gpu = (np.empty((len(encoded), 32, 32, 3), np.uint8) for _ in range(2))
    assert Decoder(32, 1).decode(encoded, on_cpu) == {}
    assert Decoder(32, 1, "cuda").decode(encoded, on_gpu) == {}
    difference = np.abs(on_cpu.astype(int) - on_gpu)
    assert difference.mean() < 1.5
    assert np.percentile(difference, 99) <= 12


def test_batches_on_a_gpu_overlap_and_bad_crops_are_named(aligned_once: Path) -> None:
    good = crops_of(aligned_once)
    bad = {7: b"", 40: b"no picture", 70: good[3][:-200], 71: good[4][:300]}
    encoded = [bad.get(i, good[i % len(good)]) for i in range(96)]
    out = np.zeros((96, 32, 32, 3), np.uint8)
    decoder = Decoder(32, 2, "cuda:0")
    batches = [
        DecodeBatch(encoded[start : start + 32], out, np.arange(start, start + 32)) for start in (0, 32, 64)
    ]
    for batch in batches:
        decoder.submit(batch)
    decoder.finish()
    assert {32 * i + at for i, batch in enumerate(batches) for at in batch.failed} == set(bad)
    assert batches[0].decoders == {"mixed"}
    wanted = np.empty((len(good), 32, 32, 3), np.uint8)
    Decoder(32, 1).decode(good, wanted)
    difference = np.abs(out[95].astype(int) - wanted[95 % len(good)])
    assert difference.mean() < 1.5


def test_a_cache_made_by_a_gpu_has_the_same_names(root: Path) -> None:
    """What decoded the pixels stands in the shard, not in its name: a cache goes from machine to machine."""
    index = read_index(Workspace.find(root).dataset().folder)
    on_gpu = build_cache(index, root / "aligned", root / "gpu", threads=1, device="cuda")
    (index.folder / "cache.arrow").unlink()
    on_cpu = build_cache(index, root / "aligned", root / "cpu", threads=1)
    assert on_gpu.decoded == on_cpu.decoded == 30
    (a,), (b,) = (sorted((root / name).iterdir()) for name in ("gpu", "cpu"))
    assert a.name == b.name
    assert (decoder_of(a), decoder_of(b)) == ("mixed", "cpu")
    difference = np.abs(map_shard(a)[0].astype(int) - map_shard(b)[0])
    assert difference.mean() < 1.5
