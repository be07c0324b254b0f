"""The Triton kernels against torch, under Triton's interpreter where there is no GPU.

The interpreter's time goes with the number of tiles: most tests take tiles of 16, many of few rows.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.nn import functional as F

from facetrain.kernels.distances import pair_distances, squared_distances
from facetrain.kernels.launch import Precision
from facetrain.kernels.mining import STRATEGIES, mine_triplets

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
BLOCKS, ONE_PROGRAM, ONE_TILE_EACH = mining_triton._blocks, 1, 256


def cut(monkeypatch: pytest.MonkeyPatch, programs: int, tile: int | None = 16) -> None:
    """All columns in one program, a tile after another, or each tile in a program of its own. None: the real tiles."""
    monkeypatch.setattr(mining_triton, "PROGRAMS", programs)
    own = {} if tile is None else {"BLOCK_A": tile, "BLOCK_C": tile}
    monkeypatch.setattr(mining_triton, "_blocks", lambda *args, **how: BLOCKS(*args, **how) | own)


def batch(rows: int, people: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit vectors, float32, and labels in no order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(people, (rows,), generator=generator)
    centres = torch.randn(people, dim, generator=generator)
    embeddings = F.normalize(centres[labels] + 0.8 * torch.randn(rows, dim, generator=generator), dim=1)
    return embeddings.to(DEVICE), labels.to(DEVICE)


def most_alike(labels: Tensor) -> int:
    return int(torch.unique(labels, return_counts=True)[1].max())


def seed_of(number: int) -> Tensor:
    return torch.tensor(number, dtype=torch.int32, device=DEVICE)


def table_of(embeddings: Tensor, labels: Tensor, strategy: str, positives: str, margin: float, num_anchors: int, num_rows: int, seed: int = 0) -> Table:  # fmt: skip
    table = mine_table(
        embeddings[None],
        labels[None],
        num_anchors=num_anchors,
        num_rows=num_rows,
        most_alike=most_alike(labels),
        margin=margin,
        strategy=strategy,
        positives=positives,
        seed=seed_of(seed),
        precision="ieee",
    )
    return Table(*(part[0].cpu() for part in table))


def pairs_of(table: Table) -> dict[tuple[int, int], int]:
    """{(anchor, positive): negative, −1 for none}"""
    anchor, k = (table.positive >= 0).nonzero(as_tuple=True)
    triples = torch.stack([anchor, table.positive[anchor, k], table.negative[anchor, k]], 1).tolist()
    return {(a, p): n for a, p, n in triples}


RAGGED, ONE_PERSON, ALL_DISTINCT, DEEP = (37, 5, 32), (21, 1, 48), (40, 400, 128), (20, 3, 1024)
SHAPES = [RAGGED, (51, 15, 70), ONE_PERSON, ALL_DISTINCT, DEEP]


@pytest.mark.parametrize(
    ("positives", "margin", "extra", "banked", "programs"),
    [
        ("all", 0.2, 0, 0, ONE_TILE_EACH),
        ("closest", math.inf, 3, 6, ONE_PROGRAM),
        ("furthest", 0.2, 4, 0, ONE_PROGRAM),
        ("all", math.inf, 0, 9, ONE_PROGRAM),
    ],
)
@pytest.mark.parametrize("strategy", ["hardest", "closest-semihard"])
@pytest.mark.parametrize(("rows", "people", "dim"), SHAPES)
def test_a_table_holds_what_torch_mines_in_double_precision(
    rows: int, people: int, dim: int, strategy: str, positives: str, margin: float, extra: int, banked: int,
    programs: int, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    cut(monkeypatch, programs)
    assert_as_torch(batch(rows, people, dim), strategy, positives, margin, extra, banked)


@pytest.mark.parametrize("programs", [ONE_PROGRAM, ONE_TILE_EACH])
@pytest.mark.parametrize("strategy", ["hardest", "closest-semihard"])
def test_tiles_of_their_real_size_do_too(
    strategy: str, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch, programs, tile=None)
    embeddings, labels = batch(150, 40, 70)
    lengths = torch.linspace(0.8, 1.2, 150, device=DEVICE)[:, None]
    assert_as_torch((lengths * embeddings, labels), strategy, "all", 0.2, 5, 12)


def assert_as_torch(
    of: tuple[Tensor, Tensor], strategy: str, positives: str, margin: float, extra: int, banked: int
) -> None:
    embeddings, labels = of
    num_rows = len(labels) - banked
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
    assert expected.distances is not None
    for to, d2 in zip((table.to_positive, table.to_negative), expected.distances, strict=True):
        torch.testing.assert_close(to[mined].double(), d2.cpu(), rtol=0, atol=2e-6)
    assert not table.to_negative[~mined].any() and not table.to_positive[table.positive < 0].any()


@pytest.mark.parametrize("programs", [ONE_PROGRAM, ONE_TILE_EACH])
@pytest.mark.parametrize("strategy", ["all-violating-random", "semihard"])
@pytest.mark.parametrize(("rows", "people", "dim"), SHAPES)
def test_a_drawn_negative_is_one_of_the_violators_and_there_is_one_where_any_is(
    rows: int, people: int, dim: int, strategy: str, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch, programs)
    embeddings, labels = batch(rows, people, dim)
    margin = 0.3
    distances = squared_distances(embeddings.double(), embeddings.double()).cpu()
    others = labels.cpu()[:, None] != labels.cpu()[None, :]
    for (a, p), n in pairs_of(table_of(embeddings, labels, strategy, "all", margin, rows, rows)).items():
        violators = others[a] & (distances[a] < distances[a, p] + margin)
        if strategy == "semihard":
            violators &= distances[a] > distances[a, p]
        assert bool(violators[n]) if n >= 0 else not bool(violators.any())


def draws(num_anchors: int, violators: int, pairs: int, seed: int, batches: int = 1) -> Tensor:
    """Which of its violators each pair of each anchor drew: [B, A, K], from 0. All anchors have the same ones."""
    labels = torch.tensor([0] * num_anchors + list(range(1, violators + 1)), device=DEVICE)
    rows = F.normalize(torch.randn(len(labels), 16, generator=torch.Generator().manual_seed(0)), dim=1)
    window = torch.full((batches, num_anchors, pairs), math.inf, device=DEVICE)
    drawn = one_in_each_window(
        rows.to(DEVICE).expand(batches, -1, -1), labels.expand(batches, -1), torch.full_like(window, -1), window,
        seed=seed_of(seed), precision="ieee",
    )  # fmt: skip
    return drawn.cpu() - num_anchors


@pytest.mark.parametrize("violators", [11, 300], ids=["in one tile", "over several tiles"])
def test_the_draw_is_uniform(violators: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, ONE_PROGRAM, tile=None)
    drawn = torch.cat([draws(256, violators, 8, seed).flatten() for seed in (-1639257485, 733495021)])
    assert int(drawn.min()) >= 0
    counts = torch.bincount(drawn, minlength=violators)
    assert chisquare(counts.numpy()).pvalue > 1e-3


def test_pairs_anchors_batches_and_seeds_draw_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, ONE_PROGRAM, tile=None)
    one, other = (draws(128, 11, 8, seed, batches=2) for seed in (987654321, -87654321))
    apart = {
        "pairs": (one[:, :, :-1], one[:, :, 1:]),
        "anchors": (one[:, :-1], one[:, 1:]),
        "batches": (one[0], one[1]),
        "an anchor and the next batch's first": (one[0, 1:], one[1, :-1]),
        "seeds": (one, other),
    }
    for what, (first, second) in apart.items():
        # Two that choose independently agree in one of eleven.
        chance = 1 / 11
        spread = math.sqrt(chance * (1 - chance) / first.numel())
        assert abs(float((first == second).double().mean()) - chance) < 4 * spread, what


@pytest.mark.parametrize("violators", [11, 300])
def test_how_columns_are_cut_does_not_show_in_a_draw(violators: int, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for programs, tile in [(ONE_PROGRAM, None), (ONE_TILE_EACH, None), (3, 32)]:
        cut(monkeypatch, programs, tile)
        results.append(draws(20, violators, 3, 9))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_a_seed_repeats_its_draw_and_another_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, ONE_PROGRAM, tile=None)
    embeddings, labels = batch(60, 12, 32)
    one, same, other = (
        table_of(embeddings, labels, "all-violating-random", "all", 0.5, 60, 60, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(one.negative, same.negative)
    assert not torch.equal(one.negative, other.negative)


@pytest.mark.parametrize("programs", [ONE_PROGRAM, ONE_TILE_EACH])
def test_of_equally_close_ones_the_first_is_taken(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, programs)
    rows = torch.zeros(70, 32, device=DEVICE)
    rows[:2, 0] = 1
    rows[2:, 1] = 1  # from there on all alike, over several tiles
    rows[20:60, 1] = 1.5  # and some further away between
    labels = torch.arange(70, device=DEVICE) // 2
    distance, column = closest_others(rows[None], labels[None], 3, "ieee")
    assert column[0].tolist() == [2, 2, 4]
    assert distance[0].tolist() == [2, 2, 0]
    low, high = torch.full((1, 3, 2), 0.5, device=DEVICE), torch.full((1, 3, 2), 9.0, device=DEVICE)
    low[:, :, 1] = 2.5
    found = one_in_each_window(rows[None], labels[None], low, high, seed=None, precision="ieee")
    assert found[0].tolist() == [[2, 20], [2, 20], [0, -1]]


@pytest.mark.parametrize("seed", [None, 0])
def test_the_ends_of_a_window_are_outside_it(seed: int | None) -> None:
    rows = torch.eye(16, device=DEVICE)[None]  # all 2 apart, exactly
    labels = torch.arange(16, device=DEVICE)[None]
    low, high = (torch.tensor([ends], device=DEVICE).expand(1, 16, 3) for ends in ([2.0, 1, 1], [3.0, 2, 3]))
    found = one_in_each_window(
        rows, labels, low, high, seed=None if seed is None else seed_of(seed), precision="ieee"
    )
    assert bool((found[:, :, :2] == -1).all()) and bool((found[:, :, 2] >= 0).all())


@pytest.mark.parametrize("strategy", ONE_EACH)
def test_a_negative_just_at_the_margin_or_as_far_as_the_positive(strategy: str) -> None:
    corners = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1], [0, -2], [0, 3]], device=DEVICE)
    rows, labels = F.pad(corners, (0, 30)), torch.tensor([0, 0, 1, 2, 3, 4], device=DEVICE)

    def mined(margin: float) -> bool:
        table = table_of(rows, labels, strategy, "all", margin, 2, 6)
        return pairs_of(table)[0, 1] >= 0

    # From the first: its positive at 1, others at 1, 2, 4 and 9.
    further = "semihard" in strategy
    assert not mined(0.0)
    assert mined(1.0) == (not further)
    assert mined(1.5)


def test_several_batches_at_once_are_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, programs=8)
    parts = [batch(35, 12, 20, seed=seed) for seed in range(3)]
    rows, labels = (torch.stack(part) for part in zip(*parts, strict=True))
    rows = rows * torch.linspace(0.8, 1.2, 105, device=DEVICE).view(3, 35, 1)  # each of its own length
    how = {"num_anchors": 30, "num_rows": 35, "margin": 0.4, "positives": "all", "precision": "ieee"}
    most = max(most_alike(own) for own in labels)
    for strategy in ONE_EACH:
        together = mine_table(rows, labels, strategy=strategy, seed=seed_of(3), most_alike=most, **how)
        for number, (own, own_labels) in enumerate(zip(rows, labels, strict=True)):
            alone = mine_table(
                own[None], own_labels[None], strategy=strategy, seed=seed_of(3), most_alike=most, **how
            )
            assert torch.equal(together.positive[number], alone.positive[0])
            if strategy in ("hardest", "closest-semihard"):
                assert torch.equal(together.negative[number], alone.negative[0])
            else:
                assert torch.equal(together.negative[number] >= 0, alone.negative[0] >= 0)


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(torch.float32, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "tf32"), (torch.float16, "tf32")],
)
def test_half_precision_is_as_exact_as_its_rows(dtype: torch.dtype, precision: Precision) -> None:
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16")
    embeddings, labels = batch(150, 40, 100)
    rounded = embeddings.to(dtype)
    distance, column = closest_others(rounded[None], labels[None], 150, precision)
    exact = squared_distances(rounded.double(), rounded.double())
    exact[labels[:, None] == labels[None, :]] = math.inf
    bound = (
        4e-3 if dtype == torch.float32 and precision == "tf32" else 3e-6
    )  # tf32 keeps ten bits of each factor
    assert (distance[0].double() - exact.min(1).values).abs().max() < bound
    assert (exact.gather(1, column[0][:, None])[:, 0] - exact.min(1).values).abs().max() < 2 * bound


def test_the_error_is_no_worse_than_torchs_own() -> None:
    embeddings, _ = batch(24, 6, 1024)
    exact = squared_distances(embeddings.double(), embeddings.double())
    listed = torch.arange(24, device=DEVICE).expand(24, 24)[None].contiguous()
    ours = (listed_distances(embeddings[None], listed)[0].double() - exact).abs().max()
    torchs = (squared_distances(embeddings, embeddings).double() - exact).abs().max()
    assert ours <= torchs + 1e-7
    apart = torch.arange(24, device=DEVICE)
    closest = closest_others(embeddings[None], apart[None], 24, "ieee")[0][0].double()
    nearest = (exact + torch.diag(torch.full((24,), math.inf, device=DEVICE))).min(1).values
    assert (closest - nearest).abs().max() <= torchs + 1e-6


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


@pytest.mark.parametrize("strategy", ONE_EACH)
def test_a_copy_of_the_anchor_under_another_name_violates_any_margin(strategy: str) -> None:
    rows = torch.eye(16, device=DEVICE)[[0, 1, 0]]
    labels = torch.tensor([0, 0, 1], device=DEVICE)
    pairs = pairs_of(table_of(rows, labels, strategy, "all", 0.0, 2, 3))
    assert pairs == {(0, 1): -1 if "semihard" in strategy else 2, (1, 0): -1}


def test_rounding_takes_no_distance_below_zero() -> None:
    rows = 1000 + 100 * torch.randn(20, 40, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    twice = rows.repeat(2, 1)[None]
    distance, _ = closest_others(twice, torch.arange(40, device=DEVICE)[None], 40, "ieee")
    assert bool((distance >= 0).all())


def test_labels_and_rows_may_lie_scattered_in_memory() -> None:
    embeddings, labels = batch(40, 9, 40)
    scattered = torch.stack([labels, 1 - labels], 1)[:, 0]
    columns = embeddings.T.contiguous().T
    assert not scattered.is_contiguous() and not columns.is_contiguous()
    for strategy in ("hardest", "all-violating-random"):
        table, other = (
            mine_table(
                rows[None], of[None], num_anchors=40, num_rows=40, most_alike=most_alike(labels), margin=0.5,
                strategy=strategy, positives="all", seed=seed_of(0), precision="ieee",
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
