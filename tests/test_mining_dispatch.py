"""Mining by way of the kernels' table, as on a GPU, here under Triton's interpreter: what `mine_triplets` makes of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from facetrain.kernels import mining
from facetrain.kernels.mining import Triplets, mine_batches, mine_triplets

pytest.importorskip("triton")
from facetrain.kernels import mining_table

pytestmark = pytest.mark.gpu  # there too; here under the interpreter
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COLUMNS = ("anchor", "positive", "negative")


def batch(rows: int, people: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit vectors, float32 [N, 24], and labels in no order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(people, (rows,), generator=generator)
    centres = torch.randn(people, 24, generator=generator)
    embeddings = F.normalize(centres[labels] + 0.8 * torch.randn(rows, 24, generator=generator), dim=1)
    return embeddings.to(DEVICE), labels.to(DEVICE)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(seed)


@pytest.fixture
def in_kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """float32 goes to the kernels on every device, double precision to torch. The strategies that went there."""
    went: list[str] = []
    by_table = mining._mine_in_kernels

    def counted(*args: Any, **how: Any) -> Triplets:
        went.append(how["strategy"])
        return by_table(*args, **how)

    monkeypatch.setattr(mining, "_in_kernels", lambda rows, strategy: rows.dtype == torch.float32)
    monkeypatch.setattr(mining, "_mine_in_kernels", counted)
    return went


def assert_alike(found: Triplets, expected: Triplets) -> None:
    for name in COLUMNS:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.num_pairs == expected.num_pairs
    assert len(expected) and found.distances is not None and expected.distances is not None
    for ours, theirs in zip(found.distances, expected.distances, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("positives", mining.POSITIVES)
@pytest.mark.parametrize("strategy", ["hardest", "closest-semihard"])
@pytest.mark.parametrize(("num_anchors", "banked"), [(None, 0), (25, 0), (25, 9), (None, 9)])
def test_the_triplets_are_torchs(
    strategy: Any, positives: Any, num_anchors: int | None, banked: int, in_kernels: list[str]
) -> None:
    embeddings, labels = batch(39, 8)
    rows = 39 - banked

    def mined(embeddings: Tensor) -> Triplets:
        return mine_triplets(
            embeddings[:rows], labels[:rows], margin=0.3, num_anchors=num_anchors, strategy=strategy,
            positives=positives, bank=(embeddings[rows:], labels[rows:]) if banked else None,
        )  # fmt: skip

    found, expected = mined(embeddings), mined(embeddings.double())
    assert in_kernels == [strategy]
    assert_alike(found, expected)
    if banked:
        assert found.bank is not None and torch.equal(found.bank, embeddings[rows:])
        assert positives != "all" or bool((found.positive >= rows).any())
        assert bool((found.negative >= rows).any())
    else:
        assert found.bank is None


@pytest.mark.parametrize("strategy", ["all-violating-random", "semihard"])
def test_drawn_negatives_are_violators_and_the_generators_state_repeats_them(
    strategy: Any, in_kernels: list[str]
) -> None:
    embeddings, labels = batch(50, 8)
    how: dict[str, Any] = {"margin": 0.3, "num_anchors": 40, "strategy": strategy}
    one, same, other = (
        mine_triplets(embeddings, labels, generator=seeded(seed), **how) for seed in (1, 1, 2)
    )
    assert in_kernels == [strategy] * 3
    expected = mine_triplets(embeddings.double(), labels, **how)
    d2 = torch.cdist(embeddings.double(), embeddings.double()).square()
    for found in (one, other):
        assert torch.equal(found.anchor, expected.anchor) and torch.equal(found.positive, expected.positive)
        assert found.num_pairs == expected.num_pairs
        assert bool((labels[found.anchor] != labels[found.negative]).all())
        gap = d2[found.anchor, found.negative] - d2[found.anchor, found.positive]
        assert bool((gap < 0.3).all()) and (strategy != "semihard" or bool((gap > 0).all()))
    assert torch.equal(one.negative, same.negative)
    assert not torch.equal(one.negative, other.negative)
    generator = seeded(1)
    steps = [mine_triplets(embeddings, labels, generator=generator, **how).negative for _ in range(2)]
    assert torch.equal(steps[0], one.negative) and not torch.equal(steps[0], steps[1])


@pytest.mark.parametrize("strategy", ["hardest", "closest-semihard"])
def test_batches_are_torchs_too(strategy: Any, in_kernels: list[str]) -> None:
    # Of different labels in each, so that the rows of one label are at most so many in the second batch only.
    parts = [batch(21, people, seed=people) for people in (9, 2, 5)]
    embeddings, labels = (torch.stack(part) for part in zip(*parts, strict=True))
    how: dict[str, Any] = {"margin": 0.4, "strategy": strategy, "positives": "all"}
    found = mine_batches(embeddings, labels, **how)
    assert in_kernels == [strategy]
    expected = mine_batches(embeddings.double(), labels, **how)
    assert set((expected.anchor // 21).tolist()) == {0, 1, 2}
    assert_alike(found, expected)


def test_batches_draw_within_themselves(in_kernels: list[str]) -> None:
    embeddings, labels = batch(60, 6)
    how: dict[str, Any] = {"margin": math.inf, "strategy": "all-violating-random"}
    found, same = (
        mine_batches(embeddings.view(3, 20, -1), labels.view(3, 20), generator=seeded(4), **how) for _ in "12"
    )
    assert in_kernels == ["all-violating-random"] * 2
    assert torch.equal(found.negative, same.negative)
    assert torch.equal(found.anchor // 20, found.negative // 20)
    assert torch.equal(found.anchor // 20, found.positive // 20)
    assert bool((labels[found.anchor] != labels[found.negative]).all())
    assert bool((labels[found.anchor] == labels[found.positive]).all())


def test_nothing_to_mine(in_kernels: list[str]) -> None:
    embeddings, labels = batch(12, 3)
    assert len(mine_triplets(embeddings, labels, margin=1.0, num_anchors=0)) == 0
    assert len(mine_batches(embeddings[None, :0], labels[None, :0], margin=1.0)) == 0
    assert in_kernels == []  # there is no program to start
    for alike in (torch.arange(12, device=DEVICE), torch.zeros_like(labels)):
        for strategy in ("all-violating-random", "hardest", "closest-semihard"):
            assert len(mine_triplets(embeddings, alike, margin=math.inf, strategy=strategy)) == 0  # type: ignore[arg-type]
    assert len(in_kernels) == 6


@pytest.fixture
def said() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("setting", "precision"), [("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")]
)
def test_products_are_as_exact_as_pytorch_is_told(
    setting: str, precision: str, said: None, in_kernels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    made = mining_table.mine_table

    def recorded(*args: Any, **how: Any) -> mining_table.Table:
        asked.append(how["precision"])
        return made(*args, **how)

    monkeypatch.setattr(mining_table, "mine_table", recorded)
    torch.set_float32_matmul_precision(setting)
    embeddings, labels = batch(12, 3)
    mine_triplets(embeddings, labels, margin=1.0, strategy="hardest")
    mine_batches(embeddings[None], labels[None], margin=1.0, strategy="hardest")
    assert asked == [precision] * 2


@pytest.mark.parametrize(
    ("dtype", "strategy", "kernels"),
    [
        (torch.float32, "hardest", True),
        (torch.bfloat16, "semihard", True),
        (torch.float16, "closest-semihard", True),
        (torch.float64, "hardest", False),
        (torch.float32, "all", False),
    ],
)
def test_double_precision_all_triplets_and_processors_are_torchs(
    dtype: torch.dtype, strategy: str, kernels: bool
) -> None:
    class Rows:  # a tensor as far as is asked
        is_cuda = True

    rows = Rows()
    rows.dtype = dtype  # type: ignore[attr-defined]
    assert mining._in_kernels(rows, strategy) is kernels  # type: ignore[arg-type]
    assert mining._in_kernels(torch.zeros(2, 2, dtype=dtype), strategy) is False


def test_more_batches_than_a_launch_takes(in_kernels: list[str]) -> None:
    embeddings, labels = (
        torch.zeros(65_536, 2, 1, device=DEVICE),
        torch.zeros(65_536, 2, dtype=torch.int64, device=DEVICE),
    )
    with pytest.raises(ValueError, match="65,535 at most"):
        mine_batches(embeddings, labels, margin=0.2)
