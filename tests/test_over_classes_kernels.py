"""The Triton kernels of the heads against torch in float64, under Triton's interpreter where there is no GPU."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from facetrain.kernels import over_classes
from facetrain.kernels.over_classes import Block, Hard, Logits, own_and_others
from facetrain.plugins import make
from facetrain.train.losses.heads.cosface import CosFace

pytest.importorskip("triton")
from facetrain.kernels import over_classes_triton

pytestmark = pytest.mark.gpu  # there too; here under the interpreter
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Case(NamedTuple):
    """Rows of length 1, float32, near the weights of their own classes and of others; the second class is the first."""

    rows: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor
    logits: Logits


def case(rows: int, classes: int, dim: int, *, kind: str = "cosine", sub_centers: int = 1) -> Case:
    generator = torch.Generator().manual_seed(0)
    shape = (classes, dim) if sub_centers == 1 else (classes, sub_centers, dim)
    weight = torch.randn(shape, generator=generator)
    if classes > 2:
        weight[1] = weight[0]
    labels = torch.randint(classes, (rows,), generator=generator)
    near = weight.view(classes, -1, dim)[torch.stack([labels, labels.roll(1)])].mean(2).sum(0)
    x = F.normalize(near + torch.randn(rows, dim, generator=generator), dim=1)
    bias, logits = None, Logits(normalised=True, scale=20.0)
    if kind == "plain":
        x, bias, logits = 3 * x, torch.randn(classes, generator=generator), Logits(normalised=False)
    if kind == "hard":
        bound = 0.5 * torch.rand(rows, generator=generator) - 0.1
        hard = Hard(bound.to(DEVICE), (0.1, torch.tensor(0.8, device=DEVICE), 0.7))
        logits = Logits(True, torch.tensor(15.0, device=DEVICE), hard)
    return Case(
        x.to(DEVICE), weight.to(DEVICE), None if bias is None else bias.to(DEVICE), labels.to(DEVICE), logits
    )


def with_torch(logits: Logits, dtype: torch.dtype) -> Block:
    """The logits as one would write them down."""

    def of(rows: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        if logits.normalised:
            weight = F.normalize(weight, dim=-1)
        seen = torch.einsum("bd,ckd->bck", rows, weight.view(len(weight), -1, rows.shape[1])).amax(2)
        if bias is not None:
            seen = seen + bias
        changed = seen
        if logits.hard is not None:
            c0, c1, c2 = logits.hard.coefficients
            is_hard = seen > logits.hard.bound_B.to(dtype)[:, None]
            changed = torch.where(is_hard, c0 + c1 * seen + c2 * seen**2, seen)
        return seen, logits.scale * changed

    return Block(of)


def run(case: Case, block: Block, dtype: torch.dtype) -> list[Tensor]:
    """log-sum-exp, nearest class, and the gradients of rows, weight and bias."""
    inputs = [None if x is None else x.detach().to(dtype, copy=True).requires_grad_() for x in case[:3]]
    own, lse, nearest = own_and_others(*inputs, case.labels, lambda _: block)
    leaves = [leaf for leaf in inputs if leaf is not None]
    weights = torch.linspace(-1, 2, len(case.rows), dtype=dtype, device=DEVICE)
    grads = torch.autograd.grad((torch.where(lse.isfinite(), lse, 0) * weights).sum() + own.sum(), leaves)
    return [lse.detach(), nearest, *grads]


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels without a GPU too."""
    monkeypatch.setattr(over_classes, "has_kernels", lambda rows: True)


@pytest.mark.parametrize(("programs", "block_elements"), [(1, 1 << 24), (512, 1 << 24), (4, 3000)])
@pytest.mark.parametrize(("kind", "sub_centers"), [("cosine", 1), ("plain", 1), ("hard", 1), ("hard", 3), ("cosine", 4)])  # fmt: skip
@pytest.mark.parametrize(("rows", "classes", "dim"), [(37, 201, 70), (70, 131, 33), (3, 1, 32), (1, 2, 40), (9, 70, 1024)])  # fmt: skip
def test_as_exact_as_torch_in_the_same_precision(
    rows: int, classes: int, dim: int, kind: str, sub_centers: int, programs: int, block_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(over_classes_triton, "PROGRAMS", programs)
    monkeypatch.setitem(over_classes.BLOCK_ELEMENTS, "cuda", block_elements)
    batch = case(rows, classes, dim, kind=kind, sub_centers=sub_centers)
    found = run(batch, Block(with_torch(batch.logits, torch.float32).of, batch.logits), torch.float32)
    torchs = run(batch, with_torch(batch.logits, torch.float32), torch.float32)
    exact = run(batch, with_torch(batch.logits, torch.float64), torch.float64)
    assert torch.equal(found[1], exact[1])
    for ours, theirs, truth in zip(found, torchs, exact, strict=True):
        finite = truth.isfinite()
        assert torch.equal(ours.isfinite(), finite)
        if finite.any():
            error, torchs_error = (((x - truth)[finite]).abs().max() for x in (ours, theirs))
            assert error <= 1.5 * torchs_error + 3e-7 * (1 + truth[finite].abs().max())
            assert torch.allclose(ours[finite].double(), truth[finite].double(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "name",
    ["softmax", "normface", "cosface", "arcface", "magface", "adaface", "elastic-arcface", "elastic-cosface", "sphereface",
     "adam-softmax", "curricularface", "mv-am-softmax", "mv-arc-softmax", "subcenter-arcface"],
)  # fmt: skip
def test_the_heads_take_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, statistics and gradients of each head are those of its float64 self, which the kernels do not serve."""
    rows, classes, dim = 21, 150, 48
    launched = []
    others = over_classes_triton.Tiles.others
    monkeypatch.setattr(
        over_classes_triton.Tiles, "others", lambda tiles: launched.append(tiles) or others(tiles)
    )
    torch.manual_seed(0)
    head = make("losses", name, {}, num_classes=classes, embedding_dim=dim).to(DEVICE)
    with torch.no_grad():
        head.weight.normal_()
        if name == "curricularface":
            head.t.fill_(0.4)
    head.eval()
    labels = torch.randint(classes, (rows,), device=DEVICE)
    centres = head.weight.detach().view(classes, -1, dim)[labels, 0]
    embeddings = 15 * F.normalize(
        F.normalize(centres, dim=1) + 0.15 * torch.randn(rows, dim, device=DEVICE), dim=1
    )
    results = []
    for dtype in (torch.float32, torch.float64):
        head.to(dtype).zero_grad()
        given = embeddings.to(dtype, copy=True).requires_grad_()
        head.margin_share = 0.5
        monkeypatch.setattr(Tensor, "normal_", lambda out, mean, std, generator=None: out.copy_(torch.linspace(mean - std, mean + std, len(out))))  # fmt: skip
        loss, stats = head(given, labels, torch.Generator(DEVICE).manual_seed(0))
        loss.backward()
        results.append([loss, *stats.values(), given.grad, *(p.grad.clone() for p in head.parameters())])
        assert len(launched) == 1
    for ours, exact in zip(*results, strict=True):
        assert torch.allclose(ours.double(), exact.double(), rtol=2e-5, atol=2e-6)


def test_gradients_that_nobody_wants_are_not_made() -> None:
    batch = case(20, 90, 40, kind="plain")
    block = Block(with_torch(batch.logits, torch.float32).of, batch.logits)
    whole = run(batch, block, torch.float32)[2:]
    for wanted in range(3):
        inputs = [x.detach().clone().requires_grad_(place == wanted) for place, x in enumerate(batch[:3])]
        own, lse, _ = own_and_others(*inputs, batch.labels, lambda _: block)
        weights = torch.linspace(-1, 2, 20, device=DEVICE)
        ((lse * weights).sum() + own.sum()).backward()
        for place, leaf in enumerate(inputs):
            assert leaf.grad is None if place != wanted else torch.equal(leaf.grad, whole[place])


def test_a_weight_of_length_0_and_one_that_is_no_number() -> None:
    batch = case(20, 90, 40)
    batch.weight[5] = 0
    block = Block(with_torch(batch.logits, torch.float32).of, batch.logits)
    found = run(batch, block, torch.float32)
    assert all(x.isfinite().all() for x in found)
    learned = found[3] - torch.zeros_like(batch.weight).index_add_(
        0, batch.labels, torch.ones_like(batch.rows)
    )
    assert not learned[5].any()
    batch.weight[4] = math.nan
    _, lse, _ = own_and_others(batch.rows, batch.weight, None, batch.labels, lambda _: block)
    assert torch.equal(lse.isnan(), batch.labels != 4)


def test_rows_and_gradients_may_lie_scattered_in_memory() -> None:
    batch = case(33, 90, 40)
    block = Block(with_torch(batch.logits, torch.float32).of, batch.logits)
    grads = []
    for scattered in (False, True):
        rows = (batch.rows.T.contiguous().T if scattered else batch.rows.clone()).requires_grad_()
        weight = (batch.weight.T.contiguous().T if scattered else batch.weight.clone()).requires_grad_()
        _, lse, _ = own_and_others(rows, weight, None, batch.labels, lambda _: block)
        lse.backward(torch.ones((), device=DEVICE).expand(33) if scattered else torch.ones(33, device=DEVICE))
        grads.append((lse, rows.grad, weight.grad))
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*grads, strict=True))


def test_many_sub_centers_are_left_to_torch() -> None:
    batch = case(5, 7, 32, sub_centers=17)
    work = over_classes._work(*batch[:4], Block(with_torch(batch.logits, torch.float32).of, batch.logits), 64)
    assert isinstance(work, over_classes.Blocks)


def test_of_classes_as_near_the_first_counts() -> None:
    """Over several tiles in one program, and over several programs."""
    batch = case(5, 400, 32)
    weight = batch.weight[:1].expand(400, -1).contiguous()
    for programs in (1, 512):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(over_classes_triton, "PROGRAMS", programs)
            block = Block(with_torch(batch.logits, torch.float32).of, batch.logits)
            nearest = own_and_others(batch.rows, weight, None, batch.labels, lambda _, b=block: b)[2]
        assert not nearest.any()


def test_sub_centers_as_near_share_the_gradient() -> None:
    batch = case(9, 20, 32, sub_centers=3)
    batch.weight[:, 2] = batch.weight[:, 0]
    found = run(batch, Block(with_torch(batch.logits, torch.float32).of, batch.logits), torch.float32)
    exact = run(batch, with_torch(batch.logits, torch.float64), torch.float64)
    assert torch.allclose(found[3].double(), exact[3], atol=1e-5)


def test_a_bias_of_classes_with_sub_centers_is_left_to_torch() -> None:
    batch = case(5, 7, 32, sub_centers=2)
    block = Block(with_torch(batch.logits, torch.float32).of, batch.logits)
    bias = torch.zeros(7, device=DEVICE)
    assert isinstance(
        over_classes._work(batch.rows, batch.weight, bias, batch.labels, block, 64), over_classes.Blocks
    )


class OwnCosines(CosFace):
    def cosines(self, unit_BD: Tensor, unit_weight: Tensor) -> Tensor:
        return super().cosines(unit_BD, unit_weight) ** 3

    def own_cosines(self, unit_BD: Tensor, unit_weight: Tensor) -> Tensor:
        return super().own_cosines(unit_BD, unit_weight) ** 3


def test_heads_with_ways_of_their_own_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(over_classes_triton.Tiles, "others", lambda tiles: pytest.fail("went to the kernels"))
    labels = torch.arange(6, device=DEVICE)
    for head in (make("losses", "arcnegface", {}, num_classes=80, embedding_dim=32), OwnCosines(80, 32)):
        head.to(DEVICE)(torch.randn(6, 32, device=DEVICE), labels)[0].backward()


def test_two_forward_passes_before_a_backward_pass() -> None:
    """What a head follows of the training has moved on when the first one's tiles are made again."""
    torch.manual_seed(0)
    embeddings, labels = torch.randn(20, 32, device=DEVICE), torch.randint(70, (20,), device=DEVICE)

    def gradient(together: bool) -> Tensor:
        torch.manual_seed(1)
        head = make("losses", "curricularface", {"ema": 0.5}, num_classes=70, embedding_dim=32).to(DEVICE)
        losses = []
        for part in (slice(0, 10), slice(10, None)):
            losses.append(head(embeddings[part], labels[part])[0])
            if not together:
                losses.pop().backward()
        if together:
            torch.stack(losses).sum().backward()
        return head.weight.grad

    torch.testing.assert_close(gradient(True), gradient(False))
