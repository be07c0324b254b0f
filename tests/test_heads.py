"""What holds for every head: edges, precision, order of rows, state, margins that are ramped, arguments."""

from __future__ import annotations

import copy
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from facetrain.batch import Batch
from facetrain.errors import UserError
from facetrain.kernels.unit import unit
from facetrain.plugins import BUILT_IN, make, resolve
from facetrain.train.losses.head import Head
from facetrain.train.losses.heads.angles import angle_rad, cos_of_sum, cos_shifted, sine
from facetrain.train.trainers.classification import ClassificationTrainer

HEADS = sorted(name for name, target in BUILT_IN["losses"].items() if ".heads." in target)
CLASSES, DIM = 6, 8
FOLLOWS = {"curricularface": {"t"}, "adaface": {"norm_mean", "norm_std"}, "adacos": {"scale"}}
BINARY = {"sphereface2", "uniface"}

every_head = pytest.mark.parametrize("name", HEADS)


def build(name: str, num_classes: int = CLASSES, **arguments: Any) -> Head:
    torch.manual_seed(0)
    return resolve("losses", name)(num_classes, DIM, **arguments)


def batch(rows: int = 12, num_classes: int = CLASSES, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        12 * torch.randn(rows, DIM, generator=generator),
        torch.randint(num_classes, (rows,), generator=generator),
    )


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def run(head: Head, x: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor, list[Tensor]]:
    """Loss, statistics, gradient by the embeddings, gradients by the parameters; all of it checked to be finite."""
    x = x.detach().clone().requires_grad_()
    loss, stats = head(x, labels, seeded())
    by_x, *by_parameters = torch.autograd.grad(loss, [x, *head.parameters()])
    assert loss.shape == () and loss.requires_grad
    assert {"train_accuracy", "cos_target"} <= set(stats)
    assert all(value.shape == () and not value.requires_grad for value in stats.values())
    for value in (loss, by_x, *by_parameters, *stats.values()):
        assert bool(torch.isfinite(value).all())
    return loss.detach(), stats, by_x, by_parameters


@every_head
def test_rows_at_their_own_weight_opposite_and_nowhere(name: str) -> None:
    head = build(name)
    centres = head.weight.detach().reshape(CLASSES, -1, DIM)[:, 0]
    x = torch.cat([centres, -centres, 20 * centres, 1e-6 * centres, 1e4 * centres, torch.zeros(CLASSES, DIM)])
    labels = torch.arange(CLASSES).repeat(6)
    _, _, by_x, _ = run(head, x, labels)
    if name != "softmax":  # whose logits do not know directions: a row of zeros has a slope there
        assert not by_x[-CLASSES:].any()
    unlike = (labels + 1) % CLASSES
    run(head, x, unlike)


@every_head
def test_float64_rows_exactly_at_their_weight(name: str) -> None:
    """Unit axes, where cosines are 1, −1 and 0 to the last bit."""
    head = build(name, num_classes=DIM).double()
    with torch.no_grad():
        head.weight.copy_(torch.eye(DIM) if head.weight.dim() == 2 else torch.eye(DIM)[:, None])
    x = torch.cat([torch.eye(DIM), -torch.eye(DIM)]).double()
    _, stats, _, _ = run(head, x, torch.arange(DIM).repeat(2))
    assert float(stats["cos_target"]) == 0
    assert float(stats["train_accuracy"]) == 0.5


def test_cosines_that_rounding_leads_beyond_1() -> None:
    head = build("sphereface2", 200, t=2.5)  # a fractional power: of a negative number it would be NaN
    with torch.no_grad():
        cosines = head.cosines(unit(-head.weight), unit(head.weight))
    assert float(cosines.min()) < -1
    run(head, -head.weight, torch.arange(200))


@every_head
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_few_rows_and_two_classes(name: str, rows: int, num_classes: int) -> None:
    head = build(name, num_classes)
    x, labels = batch(rows, num_classes)
    loss, _, by_x, _ = run(head, x, labels)
    assert float(loss) > 0
    if float(loss) > 1e-3:
        assert by_x.abs().max() > 0
    for _ in range(3):
        run(head, x, labels)


@every_head
def test_no_rows(name: str) -> None:
    head = build(name)
    before = copy.deepcopy(head.state_dict())
    loss, *_ = run(head, torch.zeros(0, DIM), torch.zeros(0, dtype=torch.int64))
    assert float(loss) == 0
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())


@every_head
def test_bf16_and_autocast_compute_in_float32(name: str) -> None:
    head = build(name).eval()
    x, labels = batch()
    rounded = x.bfloat16()
    loss, stats = head(rounded, labels, seeded())
    assert loss.dtype == torch.float32 and all(value.dtype == torch.float32 for value in stats.values())
    assert torch.equal(loss, head(rounded.float(), labels, seeded())[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(x, labels, seeded())[0], head(x.clone(), labels, seeded())[0])
        under_autocast, _ = head(x, labels, seeded())
    assert torch.equal(under_autocast, head(x, labels, seeded())[0])
    run(head, rounded, labels)


@every_head
def test_float32_is_near_float64(name: str) -> None:
    head = build(name).eval()
    x, labels = batch()
    loss, _ = head(x, labels, torch.Generator().manual_seed(5))
    if "elastic" not in name:  # whose draws differ between the two
        exact, _ = head.double()(x.double(), labels)
        assert exact.dtype == torch.float64
        assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=1e-5)


@every_head
def test_order_of_rows_does_not_matter(name: str) -> None:
    x, labels = batch()
    order = torch.randperm(len(x), generator=seeded())
    loss, stats, by_x, _ = run(build(name), x, labels)
    mixed, mixed_stats, mixed_by_x, _ = run(build(name), x[order], labels[order])
    torch.testing.assert_close(mixed, loss)
    torch.testing.assert_close(mixed_stats, stats)
    torch.testing.assert_close(mixed_by_x, by_x[order], rtol=1e-4, atol=1e-6)


@every_head
def test_extra_negatives_are_rows_like_others(name: str) -> None:
    x, labels = batch()
    losses = [build(name)(x, labels, seeded(), num_anchors)[0] for num_anchors in (None, 4)]
    assert torch.equal(*losses)


@every_head
def test_chance_comes_from_the_generator(name: str) -> None:
    x, labels = batch()
    head = build(name)
    before = torch.get_rng_state()
    first, again, other = (
        head.eval()(x, labels, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert torch.equal(first, other) == ("elastic" not in name)


@every_head
def test_nothing_waits_for_the_device(name: str) -> None:
    """Shapes and branches that depend on values are refused by tensors that have none."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        head = resolve("losses", name)(CLASSES, DIM)
        head.margin_share = 0.5
        loss, _ = head(torch.randn(5, DIM), torch.zeros(5, dtype=torch.int64))
        loss.backward()
    assert loss.shape == ()


@every_head
def test_state_goes_round(name: str) -> None:
    head = build(name)
    optimiser = torch.optim.SGD(head.parameters(), lr=0.1)
    for seed in range(3):
        optimiser.zero_grad()
        head(*batch(seed=seed), seeded())[0].backward()
        optimiser.step()
    torch.manual_seed(99)
    other = resolve("losses", name)(CLASSES, DIM)
    x, labels = batch(seed=9)
    assert not torch.equal(other(x, labels, seeded())[0], head(x, labels, seeded())[0])
    other.load_state_dict(head.state_dict())
    torch.testing.assert_close(other(x, labels, seeded())[0], head(x, labels, seeded())[0], rtol=0, atol=0)


@every_head
def test_state_follows_the_training_only(name: str) -> None:
    head = build(name)
    before = {key: value.clone() for key, value in head.state_dict().items()}

    def moved() -> set[str]:
        return {key for key, value in head.state_dict().items() if not torch.equal(value, before[key])}

    head.eval()(*batch(), seeded())
    assert moved() == set()
    head.train()(*batch(), seeded())
    assert moved() == FOLLOWS.get(name, set())


# -- margins -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name in HEADS if name not in {"softmax", "subcenter-arcface", *BINARY}]
)
def test_share_0_is_no_margin(name: str) -> None:
    head = build(name).eval()
    head.margin_share = 0.0
    plain = build("normface", scale=float(head.scale)).eval()
    plain.load_state_dict({"weight": head.weight})
    x, labels = batch()
    x[0] = -head.weight.detach()[labels[0]]
    x[1] = head.weight.detach()[labels[1]]
    torch.testing.assert_close(head(x, labels, seeded())[0], plain(x, labels)[0], rtol=3e-7, atol=0)


@pytest.mark.parametrize("name", ["sphereface2", "uniface", "subcenter-arcface"])
def test_share_0_is_no_margin_further(name: str) -> None:
    head = build(name)
    head.margin_share = 0.0
    plain = build(name, **{"margin_rad" if name == "subcenter-arcface" else "margin_cos": 0.0})
    plain.load_state_dict(head.state_dict())
    assert torch.equal(head(*batch())[0], plain(*batch())[0])


@pytest.mark.parametrize(
    ("name", "given", "half"),
    [
        ("cosface", {"margin_cos": 0.4}, {"margin_cos": 0.2}),
        ("arcface", {"margin_rad": 0.5}, {"margin_rad": 0.25}),
        ("subcenter-arcface", {"margin_rad": 0.5}, {"margin_rad": 0.25}),
        ("sphereface", {"margin": 3.0}, {"margin": 2.0}),
        ("mv-am-softmax", {"margin_cos": 0.4, "t": 1.5}, {"margin_cos": 0.2, "t": 1.25}),
        ("mv-arc-softmax", {"margin_rad": 0.5, "t": 1.5}, {"margin_rad": 0.25, "t": 1.25}),
        ("adaface", {"margin": 0.5}, {"margin": 0.25}),
        (
            "magface",
            {"margin_low_rad": 0.5, "margin_high_rad": 1.0, "regulariser": 20.0},
            {"margin_low_rad": 0.25, "margin_high_rad": 0.5, "regulariser": 10.0},
        ),
        (
            "npcface",
            {"margin_rad": 0.5, "m0_rad": 0.5, "m1_rad": 0.25, "t": 1.5, "a": 0.5},
            {"margin_rad": 0.25, "m0_rad": 0.25, "m1_rad": 0.125, "t": 1.25, "a": 0.25},
        ),
        ("elastic-cosface", {"margin_cos": 0.4, "std_cos": 0.1}, {"margin_cos": 0.2, "std_cos": 0.05}),
        ("elastic-arcface", {"margin_rad": 0.4, "std_rad": 0.1}, {"margin_rad": 0.2, "std_rad": 0.05}),
        ("adam-softmax", {"margin_cos": 0.4, "regulariser": 10.0}, None),
        ("uniface", {"margin_cos": 0.4}, {"margin_cos": 0.2}),
    ],
)
def test_half_a_share_is_half_the_margin(
    name: str, given: dict[str, float], half: dict[str, float] | None
) -> None:
    head = build(name, **given).eval()
    full, _ = head(*batch(), seeded())
    head.margin_share = 0.5
    loss, _ = head(*batch(), seeded())
    if half is None:  # its regulariser 5 · (1 − .4) is not of half a margin
        expected = build("cosface", margin_cos=0.2, scale=30.0)(*batch())[0] + 10 / 2 * (1 - 0.4)
    else:
        expected, _ = build(name, **half).eval()(*batch(), seeded())
    torch.testing.assert_close(loss, expected)
    assert not torch.allclose(full, expected)


def test_the_trainer_ramps_the_margin() -> None:
    trainer = ClassificationTrainer(CLASSES, DIM, loss="arcface", margin_ramp=0.4)
    shares = []
    for progress in (0.0, 0.1, 0.2, 0.4, 0.9):
        trainer.before_step(progress)
        shares.append(trainer.loss.margin_share)
    assert shares == [0.0, 0.25, 0.5, 1.0, 1.0]


@every_head
def test_training_brings_rows_to_their_weights(name: str) -> None:
    """Free embeddings and the head, through the trainer: every row ends nearest to its own class."""
    torch.manual_seed(0)
    trainer = ClassificationTrainer(CLASSES, DIM, loss=name, margin_ramp=0.3)
    x, labels = batch(48)
    x.requires_grad_()
    optimiser = torch.optim.Adam([{"params": [x], "lr": 1.0}, {"params": trainer.parameters(), "lr": 0.05}])
    given = Batch(x, labels, labels, len(x))
    history = []
    for step in range(60):
        trainer.before_step(step / 60)
        loss, stats = trainer(x, given, torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append({key: float(value) for key, value in stats.items()})
    assert history[0]["train_accuracy"] < 0.5
    assert history[-1]["train_accuracy"] == 1.0
    assert history[-1]["cos_target"] > history[0]["cos_target"] + 0.2


# -- parts ---------------------------------------------------------------------------------------------------------------


def test_sine_and_angle() -> None:
    theta = torch.linspace(0, torch.pi, 101, dtype=torch.float64)
    cos = theta.cos()
    torch.testing.assert_close(sine(cos), theta.sin(), rtol=0, atol=1e-12)
    torch.testing.assert_close(angle_rad(cos), theta, rtol=0, atol=1e-7)
    ends = torch.tensor([-1.0, 1.0], requires_grad=True)
    for function in (sine, angle_rad):
        (slope,) = torch.autograd.grad(function(ends).sum(), ends)
        assert float(slope.abs().max()) < 1e-18
    nearly = torch.tensor([1 - 2**-24, -1 + 2**-24], requires_grad=True)
    (slope,) = torch.autograd.grad(angle_rad(nearly).sum(), nearly)
    torch.testing.assert_close(slope, torch.full((2,), -(2.0**11.5)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("margin_rad", [0.0, 0.5, 1.5, torch.pi / 2])
def test_cos_of_sum_falls_throughout(margin_rad: float) -> None:
    theta = torch.linspace(0, torch.pi, 1001, dtype=torch.float64)
    turned = cos_of_sum(theta.cos(), margin_rad)
    assert bool((turned.diff() < 0).all())
    within = theta + margin_rad < torch.pi
    torch.testing.assert_close(turned[within], (theta + margin_rad).cos()[within])
    each = cos_of_sum(theta.cos(), torch.full_like(theta, margin_rad))
    assert torch.equal(each, turned)


def test_cos_shifted_clips_the_angle() -> None:
    theta = torch.linspace(0, torch.pi, 101, dtype=torch.float64)
    for shift in (-0.4, 0.0, 0.4):
        shifted = cos_shifted(theta.cos(), torch.full_like(theta, shift))
        torch.testing.assert_close(shifted, (theta + shift).clamp(0, torch.pi).cos(), rtol=0, atol=1e-12)


def test_unit() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-9, 4e-9]], requires_grad=True)
    units = unit(x)
    torch.testing.assert_close(units, torch.tensor([[0.6, 0.8], [0, 0], [0.6, 0.8]]))
    (slope,) = torch.autograd.grad(units[:2].sum(), x)
    assert not slope[1].any()
    assert slope[0].any()


@pytest.mark.parametrize("num_classes", [10, 3000])
def test_weights_begin_short_whatever_the_number_of_classes(num_classes: int) -> None:
    weight = resolve("losses", "arcface")(num_classes, 256).weight
    assert float(weight.detach().norm(dim=1).mean()) == pytest.approx(0.16, abs=0.01)


@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [
        ("arcface", {"margin_rad": -0.1}, "margin_rad = -0.1: choose a number from 0 to 1.5708"),
        ("arcface", {"scale": 0}, "scale = 0: choose a number above 0"),
        ("arcface", {"scale": float("inf")}, "scale = inf: choose a number above 0"),
        ("arcface", {"margin_rad": float("nan")}, "margin_rad = nan: choose a number from 0 to 1.5708"),
        ("arcface", {"gradient": "none"}, "gradient = 'none': choose exact or straight-through"),
        ("subcenter-arcface", {"sub_centers": 0}, "sub_centers = 0: choose 1 or more"),
        ("cosface", {"margin_cos": 1.5}, "margin_cos = 1.5: choose a number from 0 to 1"),
        ("sphereface", {"margin": 0.9}, "margin = 0.9: choose a number from 1 to 10"),
        ("mv-am-softmax", {"t": 0.5}, "t = 0.5: choose a number from 1 to 10"),
        ("magface", {"norm_high": 5.0}, "norm_high = 5: choose more than norm_low = 10"),
        ("magface", {"margin_high_rad": 0.2}, "margin_high_rad = 0.2: choose a number from 0.45 to 1.5708"),
        ("npcface", {"m1_rad": 0.5}, "m1_rad = 0.5: choose a number from 0 to 0.4"),
        ("curricularface", {"ema": 2.0}, "ema = 2: choose a number from 0 to 1"),
        ("sphereface2", {"balance": 1.0}, "balance = 1: choose a number from 0.001 to 0.999"),
        ("elastic-cosface", {"std_cos": -1.0}, "std_cos = -1: choose a number from 0 to 1"),
        ("cosface", {"margin_rad": 0.1}, "loss 'cosface' takes no 'margin_rad': it takes margin_cos, scale"),
    ],
)
def test_wrong_arguments_are_one_clear_line(name: str, arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as error:
        make("losses", name, arguments, num_classes=CLASSES, embedding_dim=DIM)
    assert str(error.value) == line


def test_the_documentation_has_every_head_with_its_defaults() -> None:
    page = (Path(__file__).parent.parent / "docs" / "explanation" / "heads.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `")]
    documented = {name: row[2].strip() for row in rows for name in re.findall(r"`([^`]+)`", row[0])}
    assert sorted(documented) == HEADS
    for name, defaults in documented.items():
        parameters = list(inspect.signature(resolve("losses", name)).parameters.values())[2:]
        shown = (p.default if isinstance(p.default, str | bool) else f"{p.default:g}" for p in parameters)
        assert defaults == ", ".join(f"{p.name} = {v}" for p, v in zip(parameters, shown, strict=True)), name
