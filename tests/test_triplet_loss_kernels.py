"""The triplet loss over the kernels' tables: the same loss as over a list of triplets, and nothing waits for the GPU."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from facetrain.kernels import mining
from facetrain.kernels.mining import mine_triplets
from facetrain.plugins import make
from facetrain.train.losses.triplet import Triplet

pytest.importorskip("triton")

pytestmark = pytest.mark.gpu  # there too; here under the interpreter
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MINERS = ["all-violating-random", "semihard", "hardest", "batch-hard", "easy-positive"]


@pytest.fixture
def in_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 goes to the kernels on every device, double precision to torch."""
    monkeypatch.setattr(mining, "_in_kernels", lambda rows, strategy: rows.dtype == torch.float32)


def batch(rows: int = 40, people: int = 6, dim: int = 24) -> tuple[Tensor, Tensor]:
    """Embeddings of several lengths; of two people there is one photograph."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.cat([torch.randint(people, (rows - 2,), generator=generator), people + torch.arange(2)])
    centres = torch.randn(people + 2, dim, generator=generator)
    embeddings = centres[labels] + 0.8 * torch.randn(rows, dim, generator=generator)
    return embeddings.to(DEVICE), labels.to(DEVICE)


def result(loss: Triplet, embeddings: Tensor, labels: Tensor, most_alike: int | None, num_anchors: int) -> list[Tensor]:  # fmt: skip
    loss.most_alike = most_alike
    given = embeddings.clone().requires_grad_()
    value, stats = loss(given, labels, torch.Generator(DEVICE).manual_seed(2), num_anchors)
    value.backward()
    return [value.detach(), *stats.values(), given.grad]


@pytest.mark.parametrize(
    "how", [{}, {"average": "active"}, {"soft_margin": True, "distance": "cosine"}, {"swap": True}]
)
@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize(("num_anchors", "spare"), [(40, 0), (31, 3)])
def test_a_padded_table_gives_the_same_loss(
    miner: str, how: dict[str, Any], num_anchors: int, spare: int, in_kernels: None
) -> None:
    embeddings, labels = batch()
    loss = Triplet(miner=miner, margin=0.3, **how)
    most_alike = int(torch.unique(labels[:num_anchors], return_counts=True)[1].max())
    listed = result(loss, embeddings, labels, None, num_anchors)
    padded = result(loss, embeddings, labels, most_alike + spare, num_anchors)
    for one, other in zip(padded, listed, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-7)
    if miner in ("hardest", "batch-hard", "easy-positive"):  # torch makes the same choice
        exact = result(loss, embeddings.double(), labels, None, num_anchors)
        for one, other in zip(padded, exact, strict=True):
            torch.testing.assert_close(one.double(), other.double(), rtol=1e-4, atol=1e-6)


def test_the_loss_asks_for_a_padded_table(in_kernels: None) -> None:
    """Where it knows how many are alike: nothing then has to wait for a GPU."""
    embeddings, labels = batch()
    loss, seen = Triplet(), []
    loss.miner.register_forward_hook(lambda miner, given, triplets: seen.append(triplets.padded))
    for loss.most_alike in (12, None):
        loss(embeddings, labels, torch.Generator(DEVICE).manual_seed(0))
    assert seen == [True, False]


def test_tables_without_a_triplet(in_kernels: None) -> None:
    embeddings, labels = batch()
    for of, most_alike in ((torch.arange(40, device=DEVICE), 1), (torch.zeros_like(labels), 40)):
        value, *_, gradient = result(Triplet(), embeddings, of, most_alike, 40)
        assert value == 0 and not gradient.any()


def test_a_padded_list_says_which_places_hold_a_triplet(in_kernels: None) -> None:
    embeddings, labels = batch()
    embeddings = F.normalize(embeddings)
    how: dict[str, Any] = {"margin": 0.2, "strategy": "hardest"}
    listed, padded = (mine_triplets(embeddings, labels, **how, most_alike=k) for k in (None, 12))
    assert not listed.padded and padded.padded
    assert len(padded) == 40 * 12
    assert int(padded.num_pairs) == listed.num_pairs
    is_one = padded.negative >= 0
    for name in ("anchor", "positive", "negative"):
        assert torch.equal(getattr(padded, name)[is_one], getattr(listed, name))
        assert bool((getattr(padded, name)[~is_one] == -1).all())
    assert padded.distances is not None and listed.distances is not None
    assert torch.equal(padded.distances[1][is_one], listed.distances[1])


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU to wait for")
@pytest.mark.parametrize(
    "name", [*MINERS, "cosface", "curricularface", "adaface", "elastic-arcface", "softmax"]
)
def test_nothing_waits_for_the_gpu(name: str) -> None:
    embeddings, labels = batch()
    generator = torch.Generator(DEVICE).manual_seed(0)
    head_sizes = {} if name in MINERS else {"num_classes": 8, "embedding_dim": 24}
    loss = make("losses", name, {}, **head_sizes) if head_sizes else Triplet(miner=name)
    loss.to(DEVICE).most_alike = 12
    given = embeddings.clone().requires_grad_()
    loss(given, labels, generator)[0].backward()  # compiles
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is a prototype
            torch.cuda.set_sync_debug_mode("error")
        loss(given, labels, generator)[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
