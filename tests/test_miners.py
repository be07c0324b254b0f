"""Miners: the contract, and which triplets each of them takes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from facetrain.errors import UserError
from facetrain.kernels.mining import Triplets, mine_triplets
from facetrain.plugins import BUILT_IN, make
from facetrain.testing.miner import check_miner

# What each is in terms of the one function behind them.
SAME_AS = {
    "all-violating-random": {"strategy": "all-violating-random"},
    "semihard": {"strategy": "semihard"},
    "hardest": {"strategy": "hardest"},
    "batch-hard": {"strategy": "hardest", "positives": "furthest", "margin": math.inf},
    "easy-positive": {"strategy": "closest-semihard", "positives": "closest"},
    "all": {"strategy": "all"},
}


def make_batch(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Six people × four, and five extra rows."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(6).repeat_interleave(4), 6 + torch.arange(5)])
    centres = torch.randn(11, 8, generator=generator)
    return F.normalize(centres[labels] + torch.randn(29, 8, generator=generator)).to(dtype), labels


def rows_of(triplets: Triplets) -> list[list[int]]:
    return torch.stack([triplets.anchor, triplets.positive, triplets.negative], 1).tolist()


@pytest.mark.parametrize("name", BUILT_IN["miners"])
def test_contract(name: str) -> None:
    check_miner(lambda: make("miners", name, {}))


@pytest.mark.parametrize("name", BUILT_IN["miners"])
@pytest.mark.parametrize("margin", [0.1, 0.5])
def test_which_triplets(name: str, margin: float) -> None:
    embeddings, labels = make_batch()
    found, expected = (
        mine(
            embeddings,
            labels,
            **{"margin": margin, "num_anchors": 24, "generator": torch.Generator().manual_seed(3)} | settings,
        )
        for mine, settings in ((make("miners", name, {}), {}), (mine_triplets, SAME_AS[name]))
    )
    assert len(found) > 0
    assert rows_of(found) == rows_of(expected)
    assert found.num_pairs == expected.num_pairs


@pytest.mark.parametrize(
    ("negative", "strategy"),
    [("semihard", "closest-semihard"), ("hardest", "hardest"), ("random", "all-violating-random")],
)
def test_negatives_of_easy_positives(negative: str, strategy: str) -> None:
    embeddings, labels = make_batch()
    settings = {"margin": 0.5, "num_anchors": 24}
    found = make("miners", "easy-positive", {"negative": negative})(
        embeddings, labels, generator=torch.Generator().manual_seed(3), **settings
    )
    expected = mine_triplets(
        embeddings,
        labels,
        generator=torch.Generator().manual_seed(3),
        strategy=strategy,
        positives="closest",
        **settings,
    )
    assert rows_of(found) == rows_of(expected)
    distances = torch.cdist(embeddings, embeddings)
    mates = (labels[:, None] == labels) & ~torch.eye(29, dtype=torch.bool)
    closest = distances.masked_fill(~mates, torch.inf).argmin(1)
    assert torch.equal(found.positive, closest[found.anchor])


def test_the_bounds_of_a_violator_are_strict() -> None:
    """Along the axes all d² between two are exactly 2: a negative is as far as the positive, or beyond by the margin."""
    embeddings, labels = torch.eye(3), torch.tensor([0, 0, 1])
    twice = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # d²(a,p) = 0, d²(a,n) = 2

    def number(name: str, of: torch.Tensor, margin: float) -> int:
        return len(make("miners", name, {})(of, labels, margin=margin, generator=torch.Generator()))

    assert number("semihard", embeddings, 0.5) == 0, "as close as the positive: too hard"
    assert number("all-violating-random", embeddings, 0.5) == number("hardest", embeddings, 0.5) == 2
    for name in ("all-violating-random", "semihard", "hardest", "all"):
        assert number(name, twice, 2.0) == 0, "beyond it by the margin: no violator"
        assert number(name, twice, 2.5) == 2


def test_batch_hard_takes_every_anchor_whatever_the_margin() -> None:
    embeddings, labels = torch.eye(4).repeat_interleave(2, 0), torch.arange(4).repeat_interleave(2)
    for margin in (0.0, 0.2):
        triplets = make("miners", "batch-hard", {})(embeddings, labels, margin=margin)
        assert triplets.anchor.tolist() == list(range(8))
        assert triplets.positive.tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
        assert triplets.negative.tolist() == [2, 2, 0, 0, 0, 0, 0, 0], "the first of those at one distance"
        assert triplets.num_pairs == 8


@pytest.mark.parametrize("name", BUILT_IN["miners"])
def test_half_precision_is_taken_as_it_is(name: str) -> None:
    embeddings, labels = make_batch(torch.bfloat16)
    half, full = (
        make("miners", name, {})(e, labels, margin=0.5, generator=torch.Generator().manual_seed(0))
        for e in (embeddings, embeddings.float())
    )
    assert rows_of(half) == rows_of(full)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("easy-positive", {"negative": "soft"}, "negative = 'soft': choose one of semihard, hardest, random"),
        ("all", {"max_triplets": 0}, "max_triplets = 0: choose 1 or more"),
        ("batch-hard", {"margin": 0.2}, "miner 'batch-hard' takes no 'margin'"),
        ("batchhard", {}, "did you mean 'batch-hard'"),
    ],
)
def test_wrong_arguments(name: str, arguments: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make("miners", name, arguments)
