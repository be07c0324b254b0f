"""The Triton kernels against torch, under Triton's interpreter where there is no GPU."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.nn import functional as F

from facetrain.kernels.distances import pair_distances, squared_distances
from facetrain.kernels.mining import POSITIVES, STRATEGIES, mine_triplets

pytest.importorskip("triton")
from facetrain.kernels import mining_triton
from facetrain.kernels.mining_table import Table, mine_table
from facetrain.kernels.mining_triton import (
    closest_others,
    listed_distances,
    one_in_each_window,
    pair_gradient,
)

pytestmark = pytest.mark.gpu  # there too; here under the interpreter
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ONE_EACH = [strategy for strategy in STRATEGIES if strategy != "all"]


def batch(rows: int, people: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit vectors, float32, and labels in no order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(people, (rows,), generator=generator)
    centres = torch.randn(people, dim, generator=generator)
    embeddings = F.normalize(centres[labels] + 0.8 * torch.randn(rows, dim, generator=generator), dim=1)
    return embeddings.to(DEVICE), labels.to(DEVICE)


def most_alike(labels: Tensor) -> int:
    return int(torch.unique(labels, return_counts=True)[1].max())


def table_of(embeddings: Tensor, labels: Tensor, strategy: str, positives: str, margin: float, num_anchors: int, num_rows: int, seed: int = 0) -> Table:  # fmt: skip
    table = mine_table(
        embeddings[None].contiguous(),
        labels[None].contiguous(),
        num_anchors=num_anchors,
        num_rows=num_rows,
        most_alike=most_alike(labels),
        margin=margin,
        strategy=strategy,
        positives=positives,
        seed=torch.tensor(seed, dtype=torch.int32, device=DEVICE),
        precision="ieee",
    )
    return Table(*(part[0].cpu() for part in table))


def pairs_of(table: Table) -> dict[tuple[int, int], int]:
    """{(anchor, positive): negative, −1 for none}"""
    anchor, k = (table.positive >= 0).nonzero(as_tuple=True)
    triples = torch.stack([anchor, table.positive[anchor, k], table.negative[anchor, k]], 1).tolist()
    return {(a, p): n for a, p, n in triples}


SHAPES = [(37, 5, 32), (150, 9, 70), (65, 1, 48), (40, 400, 128), (20, 3, 1024)]


@pytest.fixture(autouse=True, params=[1, 256])
def programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All columns in one program, a tile after another, and each tile in a program of its own."""
    monkeypatch.setattr(mining_triton, "PROGRAMS", request.param)


@pytest.mark.parametrize("positives", POSITIVES)
@pytest.mark.parametrize("strategy", ["hardest", "closest-semihard"])
@pytest.mark.parametrize(("rows", "people", "dim"), SHAPES)
@pytest.mark.parametrize(("margin", "extra", "banked"), [(0.2, 0, 0), (math.inf, 3, 6)])
def test_a_table_holds_what_torch_mines_in_double_precision(
    rows: int, people: int, dim: int, strategy: str, positives: str, margin: float, extra: int, banked: int
) -> None:
    embeddings, labels = batch(rows, people, dim)
    num_rows = rows - banked
    num_anchors = num_rows - extra
    table = table_of(embeddings, labels, strategy, positives, margin, num_anchors, num_rows)
    bank = (embeddings[num_rows:].double(), labels[num_rows:]) if banked else None
    expected = mine_triplets(
        embeddings[:num_rows].double(),
        labels[:num_rows],
        margin=margin,
        num_anchors=num_anchors,
        strategy=strategy,
        positives=positives,
        bank=bank,
    )
    found = {pair: n for pair, n in pairs_of(table).items() if n >= 0}
    a, p, n = (t.tolist() for t in (expected.anchor, expected.positive, expected.negative))
    assert found == dict(zip(zip(a, p, strict=True), n, strict=True))
    assert len(pairs_of(table)) == expected.num_pairs
    mined = table.negative >= 0
    for to, d2 in zip((table.to_positive, table.to_negative), expected.distances, strict=True):
        assert (to[mined].double() - d2.cpu()).abs().max() < 2e-6 if len(d2) else True


@pytest.mark.parametrize("strategy", ["all-violating-random", "semihard"])
@pytest.mark.parametrize(("rows", "people", "dim"), SHAPES)
def test_a_drawn_negative_is_one_of_the_violators_and_there_is_one_where_any_is(
    rows: int, people: int, dim: int, strategy: str
) -> None:
    embeddings, labels = batch(rows, people, dim)
    margin = 0.3
    distances = squared_distances(embeddings.double(), embeddings.double()).cpu()
    others = labels.cpu()[:, None] != labels.cpu()[None, :]
    for (a, p), n in pairs_of(table_of(embeddings, labels, strategy, "all", margin, rows, rows)).items():
        violators = others[a] & (distances[a] < distances[a, p] + margin)
        if strategy == "semihard":
            violators &= distances[a] > distances[a, p]
        assert bool(violators[n]) if n >= 0 else not bool(violators.any())


def test_the_draw_is_uniform_and_pairs_of_an_anchor_draw_apart() -> None:
    # One anchor's eleven violators at a time; many seeds.
    rows, violators, draws = 16, 11, 1000
    embeddings = F.normalize(torch.randn(rows, 32, generator=torch.Generator().manual_seed(0)), dim=1).to(
        DEVICE
    )
    labels = torch.tensor([0] * (rows - violators) + list(range(1, violators + 1)), device=DEVICE)
    counts, together = torch.zeros(rows), 0
    for seed in range(draws):
        table = table_of(embeddings, labels, "all-violating-random", "all", math.inf, rows, rows, seed=seed)
        pairs = pairs_of(table)
        counts[pairs[0, 1]] += 1
        together += pairs[0, 1] == pairs[0, 2]
    assert counts[:5].sum() == 0
    assert chisquare(counts[5:].numpy()).pvalue > 1e-3
    # Two that chose independently would agree in one of eleven.
    assert abs(together / draws - 1 / violators) < 4 * math.sqrt(1 / violators / draws)


def test_a_seed_repeats_its_draw_and_another_does_not() -> None:
    embeddings, labels = batch(90, 6, 32)
    one, same, other = (
        table_of(embeddings, labels, "all-violating-random", "all", 0.5, 90, 90, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(one.negative, same.negative)
    assert not torch.equal(one.negative, other.negative)


def test_of_equally_close_ones_the_first_is_taken() -> None:
    rows = torch.zeros(300, 32, device=DEVICE)
    rows[:, 0] = 1
    rows[4:, 1] = 1  # from there on all alike, over several tiles
    labels = torch.arange(300, device=DEVICE) // 2
    distance, column = closest_others(rows[None], labels[None], 3, "ieee")
    assert column[0].tolist() == [2, 2, 0]
    assert distance[0].tolist() == [0, 0, 0]
    low, high = torch.full((1, 1, 2), 0.5, device=DEVICE), torch.full((1, 1, 2), 9.0, device=DEVICE)
    found = one_in_each_window(rows[None], labels[None], low, high, seed=None, precision="ieee")
    assert found.flatten().tolist() == [4, 4]


def test_several_batches_at_once_are_as_each_alone() -> None:
    parts = [batch(70, 6, 40, seed=seed) for seed in range(3)]
    rows, labels = (torch.stack(part) for part in zip(*parts, strict=True))
    how = {"num_anchors": 60, "num_rows": 70, "margin": 0.4, "positives": "all", "precision": "ieee"}
    seed = torch.tensor(3, dtype=torch.int32, device=DEVICE)
    most = max(most_alike(own) for own in labels)
    for strategy in ONE_EACH:
        together = mine_table(rows, labels, strategy=strategy, seed=seed, most_alike=most, **how)
        for number, (own, own_labels) in enumerate(parts):
            alone = mine_table(
                own[None], own_labels[None], strategy=strategy, seed=seed, most_alike=most, **how
            )
            assert torch.equal(together.positive[number], alone.positive[0])
            if strategy in ("hardest", "closest-semihard"):
                assert torch.equal(together.negative[number], alone.negative[0])
            else:
                assert torch.equal(together.negative[number] >= 0, alone.negative[0] >= 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_as_exact_as_its_rows(dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16")
    embeddings, labels = batch(70, 6, 100)
    rounded = embeddings.to(dtype)
    distance, column = closest_others(rounded[None], labels[None], 70, "ieee")
    exact = squared_distances(rounded.double(), rounded.double())
    exact[labels[:, None] == labels[None, :]] = math.inf
    assert (distance[0].double() - exact.min(1).values).abs().max() < 3e-6
    assert (exact.gather(1, column[0][:, None])[:, 0] - exact.min(1).values).abs().max() < 3e-6


def test_the_error_is_no_worse_than_torchs_own() -> None:
    embeddings, _ = batch(64, 6, 1024)
    exact = squared_distances(embeddings.double(), embeddings.double())
    listed = torch.arange(64, device=DEVICE).expand(64, 64)[None].contiguous()
    ours = (listed_distances(embeddings[None], listed)[0].double() - exact).abs().max()
    torchs = (squared_distances(embeddings, embeddings).double() - exact).abs().max()
    assert ours <= torchs + 1e-7


@pytest.mark.parametrize(("rows", "dim", "pairs"), [(30, 33, 200), (5, 300, 40), (7, 16, 0)])
def test_the_gradient_of_listed_pairs(rows: int, dim: int, pairs: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, dim, generator=generator).to(DEVICE)
    first, second = (torch.randint(rows, (pairs,), generator=generator).to(DEVICE) for _ in "ab")
    weight = torch.randn(pairs, generator=generator).to(DEVICE)
    exact = x.double().requires_grad_()
    (pair_distances(exact, first, second) * weight.double()).sum().backward()
    found = pair_gradient(x, first, second, weight)
    assert exact.grad is not None
    assert (found.double() - exact.grad).abs().max() < 1e-4
    none = torch.full_like(first, -1)
    assert not pair_gradient(x, none, second, weight).any()


@pytest.mark.parametrize("strategy", ["semihard", "closest-semihard"])
def test_copies_of_the_positive_under_another_name_are_not_further_away(strategy: str) -> None:
    embeddings, labels = batch(60, 15, 64)
    rows, labels = embeddings.repeat(2, 1), torch.cat([labels, labels + 100])
    table = table_of(rows, labels, strategy, "all", 0.5, 60, 120)
    mined = table.negative >= 0
    assert mined.any()
    anchors = torch.arange(60)[:, None].expand_as(mined)[mined]
    assert bool((table.negative[mined] != table.positive[mined] + 60).all())
    assert bool((table.negative[mined] != anchors + 60).all())


def test_labels_and_rows_may_lie_scattered_in_memory() -> None:
    embeddings, labels = batch(80, 6, 40)
    scattered = torch.stack([labels, 1 - labels], 1)[:, 0]
    columns = embeddings.T.contiguous().T
    assert not scattered.is_contiguous() and not columns.is_contiguous()
    for strategy in ("hardest", "all-violating-random"):
        table, other = (
            mine_table(
                rows[None], of[None], num_anchors=80, num_rows=80, most_alike=most_alike(labels), margin=0.5,
                strategy=strategy, positives="all", seed=torch.tensor(0, dtype=torch.int32, device=DEVICE), precision="ieee",
            )
            for rows, of in ((embeddings, labels), (columns, scattered))
        )  # fmt: skip
        assert torch.equal(table.negative, other.negative)


def test_a_row_that_is_no_number_is_nobodys_negative() -> None:
    embeddings, labels = batch(40, 6, 32)
    embeddings[7] = math.nan
    for strategy in ONE_EACH:
        table = table_of(embeddings, labels, strategy, "all", 0.5, 40, 40)
        assert not bool((table.negative == 7).any())
