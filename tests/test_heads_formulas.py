"""Each head's loss and gradients beside its formula, written out row by row with Python's math."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call

from facetrain.plugins import BUILT_IN, resolve
from facetrain.train.losses.head import Head

CLASSES, DIM = 7, 5
LABELS = [0, 1, 2, 3, 3, 1]  # nobody of 4, 5, 6
HEADS = {name for name, target in BUILT_IN["losses"].items() if ".heads." in target}


def make_case(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and weights; of the rows one is near its own class, one opposite to it, one short, one long."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(CLASSES, DIM))
    embeddings = rng.normal(size=(len(LABELS), DIM)) * 12
    embeddings[2] = 20 * weight[2] + rng.normal(size=DIM)
    embeddings[4] = -20 * weight[3] + rng.normal(size=DIM)
    embeddings[0] *= 5 / np.linalg.norm(embeddings[0])
    embeddings[5] *= 130 / np.linalg.norm(embeddings[5])
    return embeddings, weight


# -- the formulas: the loss of one row ---------------------------------------------------------------------------------
# cos: cosines to all classes; y: the own one; norm: length of the embedding. cos0, norm0: the same where the head does
# not let a gradient through.


def cross_entropy(logits: list[float], y: int) -> float:
    largest = max(logits)
    return largest + math.log(sum(math.exp(v - largest) for v in logits)) - logits[y]


def with_own(scale: float, others: list[float], y: int, own: float) -> float:
    return cross_entropy([scale * (own if j == y else c) for j, c in enumerate(others)], y)


def arc(c: float, m: float) -> float:
    angle = math.acos(c)
    return math.cos(angle + m) if angle + m <= math.pi else c - m * math.sin(m)


def softplus(v: float) -> float:
    return math.log1p(math.exp(v))


def normface(cos, y, norm, cos0, norm0):
    return with_own(32, cos, y, cos[y])


def sphereface(cos, y, norm, cos0, norm0, m=1.35):
    angle = m * math.acos(cos[y])
    k = math.floor(angle / math.pi)
    return with_own(64, cos, y, (-1) ** k * math.cos(angle) - 2 * k)


def cosface(cos, y, norm, cos0, norm0):
    return with_own(32, cos, y, cos[y] - 0.35)


def arcface(cos, y, norm, cos0, norm0):
    return with_own(64, cos, y, arc(cos[y], 0.5))


def curricularface(cos, y, norm, cos0, norm0):
    own, t = arc(cos[y], 0.5), 0.3
    return with_own(64, [c * (t + c) if c > own else c for c in cos], y, own)


def mv(cos, y, own):
    return with_own(32, [1.12 * c + 0.12 if c > own else c for c in cos], y, own)


def mv_am_softmax(cos, y, norm, cos0, norm0):
    return mv(cos, y, cos[y] - 0.35)


def mv_arc_softmax(cos, y, norm, cos0, norm0):
    return mv(cos, y, arc(cos[y], 0.35))


def arcnegface(cos, y, norm, cos0, norm0):
    weights = [1.2 * math.exp(-((c - arc(cos0[y], 0.5)) ** 2) / 2) for c in cos0]
    return with_own(64, [w * c + w - 1 for w, c in zip(weights, cos, strict=True)], y, arc(cos[y], 0.5))


def npcface(cos, y, norm, cos0, norm0):
    hard = [j for j, c in enumerate(cos0) if j != y and c > arc(cos0[y], 0.35)]
    m = 0.4 + 0.2 * (sum(cos0[j] for j in hard) / len(hard) if hard else 0)
    return with_own(32, [1.1 * c + 0.2 if j in hard else c for j, c in enumerate(cos)], y, arc(cos[y], m))


def magface(cos, y, norm, cos0, norm0):
    a = min(max(norm, 10), 110)
    m = 0.45 + (0.8 - 0.45) * (a - 10) / (110 - 10)
    return with_own(64, cos, y, arc(cos[y], m)) + 20 * (a / 110**2 + 1 / a)


def adaface(cos, y, norm, cos0, norm0):
    z = min(max(0.333 * (min(norm0, 100) - 25) / (10 + 1e-3), -1), 1)
    angle = min(max(math.acos(cos[y]) - 0.4 * z, 0), math.pi)
    return with_own(64, cos, y, math.cos(angle) - (0.4 + 0.4 * z))


def adacos(cos, y, norm, cos0, norm0):
    return with_own(17, cos, y, cos[y])


def adacos_fixed(cos, y, norm, cos0, norm0):
    return with_own(math.sqrt(2) * math.log(CLASSES - 1), cos, y, cos[y])


def adam_softmax(cos, y, norm, cos0, norm0):
    margins = [0.1 * c for c in range(CLASSES)]
    return with_own(30, cos, y, cos[y] - margins[y]) + 70 * (1 - sum(margins) / CLASSES)


def sphereface2(cos, y, norm, cos0, norm0):
    g = [2 * ((c + 1) / 2) ** 3 - 1 for c in cos]
    own = 0.7 / 40 * softplus(-(40 * (g[y] - 0.4) + 2.5))
    others = sum(0.3 / 40 * softplus(40 * (g[j] + 0.4) + 2.5) for j in range(CLASSES) if j != y)
    return 50 * (own + others)


def uniface(cos, y, norm, cos0, norm0):
    b = math.log(10 * CLASSES)
    own = softplus(-(64 * (cos[y] - 0.4) - b))
    return own + sum(softplus(64 * cos[j] - b) for j in range(CLASSES) if j != y)


# What each head is told, what its state is set to, and the formula.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], Callable[..., float]]] = {
    "normface": ("normface", {}, {}, normface),
    "sphereface": ("sphereface", {}, {}, sphereface),
    "sphereface, 4": (
        "sphereface",
        {"margin": 4.0},
        {},
        lambda *row: sphereface(*row, m=4),
    ),
    "cosface": ("cosface", {}, {}, cosface),
    "am-softmax": ("am-softmax", {}, {}, cosface),
    "arcface": ("arcface", {}, {}, arcface),
    "curricularface": ("curricularface", {}, {"t": 0.3}, curricularface),
    "mv-am-softmax": ("mv-am-softmax", {}, {}, mv_am_softmax),
    "mv-arc-softmax": ("mv-arc-softmax", {}, {}, mv_arc_softmax),
    "arcnegface": ("arcnegface", {}, {}, arcnegface),
    "npcface": ("npcface", {}, {}, npcface),
    "magface": ("magface", {}, {}, magface),
    "adaface": ("adaface", {}, {"norm_mean": 25.0, "norm_std": 10.0}, adaface),
    "adacos": ("adacos", {}, {"scale": 17.0}, adacos),
    "adacos, fixed": ("adacos", {"fixed": True}, {}, adacos_fixed),
    "adam-softmax": ("adam-softmax", {}, {"margins": [0.1 * c for c in range(CLASSES)]}, adam_softmax),
    "sphereface2": ("sphereface2", {}, {"bias": [2.5]}, sphereface2),
    "uniface": ("uniface", {}, {}, uniface),
}
BY_OTHER_TESTS = {"softmax", "subcenter-arcface", "elastic-arcface", "elastic-cosface"}  # further down
DETACHED = {
    "arcnegface",
    "npcface",
    "adaface",
}  # by definition their gradient is not the loss's whole derivative


def build(name: str, arguments: dict[str, Any], state: dict[str, Any]) -> Head:
    torch.manual_seed(0)
    head: Head = resolve("losses", name)(CLASSES, DIM, **arguments).double().eval()
    with torch.no_grad():
        for key, value in state.items():
            getattr(head, key).copy_(torch.tensor(value, dtype=torch.float64))
        # In float32 these were rounded; the formulas are not.
        if name == "uniface":
            head.bias.fill_(math.log(10 * CLASSES))
        if name == "adacos" and not state:
            head.scale.fill_(math.sqrt(2) * math.log(CLASSES - 1))
    return head


def plain_loss(
    formula: Callable[..., float],
    embeddings: np.ndarray,
    weight: np.ndarray,
    at: tuple[np.ndarray, np.ndarray] | None = None,
) -> float:
    """Mean over the rows; ``at``: where the parts without gradient are taken."""

    def cosines(x: np.ndarray, weight: np.ndarray) -> list[float]:
        return [float(np.dot(x, w) / math.sqrt(np.dot(x, x) * np.dot(w, w))) for w in weight]

    embeddings0, weight0 = at or (embeddings, weight)
    total = 0.0
    for x, x0, y in zip(embeddings, embeddings0, LABELS, strict=True):
        norm, norm0 = float(np.linalg.norm(x)), float(np.linalg.norm(x0))
        total += formula(cosines(x, weight), y, norm, cosines(x0, weight0), norm0)
    return total / len(LABELS)


def head_loss(head: Head, embeddings: np.ndarray, weight: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The loss and its gradients by embeddings and weight."""
    x = torch.tensor(embeddings, requires_grad=True)
    head.weight.data = torch.tensor(weight)
    loss, _ = head(x, torch.tensor(LABELS), torch.Generator().manual_seed(3))
    gradients = torch.autograd.grad(loss, [x, head.weight])
    return float(loss.detach()), gradients[0].numpy(), gradients[1].numpy()


def differences(f: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences."""
    slopes = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        moved = x.copy()
        moved[place] = x[place] + step
        above = f(moved)
        moved[place] = x[place] - step
        slopes[place] = (above - f(moved)) / (2 * step)
    return slopes


def test_every_head_is_here() -> None:
    assert {name for name, *_ in CASES.values()} | BY_OTHER_TESTS == HEADS


@pytest.mark.parametrize("case", CASES)
def test_equals_its_formula(case: str) -> None:
    name, arguments, state, formula = CASES[case]
    head = build(name, arguments, state)
    for seed in range(3):
        embeddings, weight = make_case(seed)
        at = (embeddings, weight)
        loss, by_embeddings, by_weight = head_loss(head, embeddings, weight)
        assert loss == pytest.approx(plain_loss(formula, embeddings, weight), rel=1e-9)
        expected = differences(lambda x: plain_loss(formula, x, weight, at), embeddings)  # noqa: B023
        np.testing.assert_allclose(by_embeddings, expected, rtol=1e-5, atol=1e-7)
        expected = differences(lambda w: plain_loss(formula, embeddings, w, at), weight)  # noqa: B023
        np.testing.assert_allclose(by_weight, expected, rtol=1e-5, atol=1e-7)
        assert (
            np.abs(by_weight[4:]).max() > 1e-9
        )  # classes that are absent from the batch are pushed away too


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][0] not in DETACHED])
def test_gradcheck(case: str) -> None:
    name, arguments, state, _ = CASES[case]
    check_gradients(build(name, arguments, state))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("softmax", {}),
        ("subcenter-arcface", {}),
        ("elastic-arcface", {"std_rad": 0.1}),
        ("elastic-cosface", {"plus": True}),
        ("arcface", {"margin_rad": 1.2}),
    ],
)
def test_gradcheck_further(name: str, arguments: dict[str, Any]) -> None:
    check_gradients(build(name, arguments, {}))


def check_gradients(head: Head) -> None:
    """By the embeddings and all the head's parameters."""
    embeddings, weight = make_case()
    head.weight.data = torch.tensor(weight) if head.weight.dim() == 2 else head.weight.data
    names, values = zip(*head.named_parameters(), strict=True)

    def loss(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        given = (x, torch.tensor(LABELS), torch.Generator().manual_seed(3))
        return functional_call(head, dict(zip(names, values, strict=True)), given)[0]

    values = tuple(value.detach().clone().requires_grad_() for value in values)
    x = torch.tensor(embeddings, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (x, *values))


# -- heads that are not of the above form --------------------------------------------------------------------------------


def test_softmax() -> None:
    head = build("softmax", {}, {"bias": [0.1 * c for c in range(CLASSES)]})
    embeddings, weight = make_case()
    embeddings /= 20
    loss, *_ = head_loss(head, embeddings, weight)
    rows = [
        cross_entropy([float(np.dot(w, x)) + 0.1 * c for c, w in enumerate(weight)], y)
        for x, y in zip(embeddings, LABELS, strict=True)
    ]
    assert loss == pytest.approx(sum(rows) / len(rows), rel=1e-9)


def test_sub_centres() -> None:
    """The nearest of three counts, of each class; the others get no gradient."""
    head = build("subcenter-arcface", {}, {})
    rng = np.random.default_rng(1)
    embeddings, weight = rng.normal(size=(len(LABELS), DIM)), rng.normal(size=(CLASSES, 3, DIM))
    loss, _, by_weight = head_loss(head, embeddings, weight)
    total, nearest = 0.0, set()
    for x, y in zip(embeddings, LABELS, strict=True):
        cos = np.array([[np.dot(x, w) / np.linalg.norm(x) / np.linalg.norm(w) for w in c] for c in weight])
        nearest |= set(enumerate(cos.argmax(1).tolist()))
        total += arcface([float(row.max()) for row in cos], y, 1, [], 1)
    assert loss == pytest.approx(total / len(LABELS), rel=1e-9)
    moved = {(c, k) for c, k in np.ndindex(CLASSES, 3) if np.abs(by_weight[c, k]).max() > 0}
    assert moved == nearest


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("name", ["elastic-arcface", "elastic-cosface"])
def test_elastic_margins(name: str, plus: bool) -> None:
    """The draws come from the generator, and go to the rows by rank of their cosine; sorted, with ``plus``."""
    head = build(name, {"plus": plus}, {})
    embeddings, weight = make_case()
    loss, *_ = head_loss(head, embeddings, weight)
    mean = 0.5 if name == "elastic-arcface" else 0.35
    generator = torch.Generator().manual_seed(3)
    draws = torch.empty(len(LABELS), dtype=torch.float64).normal_(mean, 0.05, generator=generator).tolist()
    assert len({round(draw, 9) for draw in draws}) == len(LABELS)
    if plus:
        draws.sort()
    units, centres = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (embeddings, weight))
    cosines = units @ centres.T
    ranked = sorted(range(len(LABELS)), key=lambda i: -cosines[i, LABELS[i]])
    total = 0.0
    for draw, i in zip(draws, ranked, strict=True):
        cos, y = cosines[i].tolist(), LABELS[i]
        total += with_own(64, cos, y, arc(cos[y], draw) if name == "elastic-arcface" else cos[y] - draw)
    assert loss == pytest.approx(total / len(LABELS), rel=1e-9)


def test_elastic_margins_are_spread_as_asked() -> None:
    from facetrain.train.losses.head import Targets
    from facetrain.train.losses.heads.elasticface import draw_margins

    cos_B = torch.linspace(-1, 1, 20_000)
    targets = Targets(cos_B, cos_B, cos_B.long(), torch.Generator().manual_seed(0))
    margins = draw_margins(targets, 0.5, 0.05, largest_to_farthest=False)
    assert float(margins.mean()) == pytest.approx(0.5, abs=0.002)
    assert float(margins.std()) == pytest.approx(0.05, abs=0.002)
    assert abs(float(torch.corrcoef(torch.stack([margins, cos_B]))[0, 1])) < 0.03
    margins = draw_margins(targets, 0.5, 0.05, largest_to_farthest=True)
    assert bool((margins.diff() <= 0).all())


def test_straight_through_is_the_softmax_gradient() -> None:
    """∂loss/∂cos θ_j = scale · (p_j − [j = y]) / n, p from the logits with the margin; the loss is ArcFace's."""
    head = build("arcface", {"gradient": "straight-through"}, {})
    embeddings, weight = make_case()
    loss, by_embeddings, by_weight = head_loss(head, embeddings, weight)
    assert loss == pytest.approx(plain_loss(arcface, embeddings, weight), rel=1e-9)
    expected_x, expected_w = np.zeros_like(embeddings), np.zeros_like(weight)
    for i, (x, y) in enumerate(zip(embeddings, LABELS, strict=True)):
        norm, norms = np.linalg.norm(x), np.linalg.norm(weight, axis=1)
        cos = (weight @ x / norm / norms).tolist()
        logits = [64 * (arc(c, 0.5) if j == y else c) for j, c in enumerate(cos)]
        for j in range(CLASSES):
            p = math.exp(-cross_entropy(logits, j))
            slope = 64 * (p - (j == y)) / len(LABELS)
            expected_x[i] += slope * (weight[j] / norms[j] - cos[j] * x / norm) / norm
            expected_w[j] += slope * (x / norm - cos[j] * weight[j] / norms[j]) / norms[j]
    np.testing.assert_allclose(by_embeddings, expected_x, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(by_weight, expected_w, rtol=1e-7, atol=1e-12)


# -- what follows the training -------------------------------------------------------------------------------------------


def test_curriculum_follows_the_mean_own_cosine() -> None:
    head = build("curricularface", {}, {"t": 0.3}).train()
    embeddings, weight = make_case()
    head_loss(head, embeddings, weight)
    units, centres = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (embeddings, weight))
    own = np.mean([units[i] @ centres[y] for i, y in enumerate(LABELS)])
    assert float(head.t) == pytest.approx(0.99 * 0.3 + 0.01 * own)


def test_adaface_follows_the_norms() -> None:
    head = build("adaface", {}, {}).train()
    assert (float(head.norm_mean), float(head.norm_std)) == (20, 100)
    embeddings, weight = make_case()
    head_loss(head, embeddings, weight)
    norms = np.linalg.norm(embeddings, axis=1).clip(max=100)
    assert float(head.norm_mean) == pytest.approx(0.99 * 20 + 0.01 * norms.mean())
    assert float(head.norm_std) == pytest.approx(0.99 * 100 + 0.01 * norms.std(ddof=1))


def test_adacos_follows_the_median_angle() -> None:
    head = build("adacos", {}, {"scale": 5.0}).train()
    embeddings, weight = make_case()
    units, centres = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (embeddings[:5], weight))
    cosines, labels = units @ centres.T, LABELS[:5]
    angles = sorted(math.acos(cosines[i, y]) for i, y in enumerate(labels))
    b = sum(math.exp(5 * cosines[i, j]) for i, y in enumerate(labels) for j in range(CLASSES) if j != y) / 5
    expected = math.log(b) / math.cos(min(math.pi / 4, angles[2]))
    head.weight.data = torch.tensor(weight)
    loss, stats = head(torch.tensor(embeddings[:5]), torch.tensor(labels))
    assert expected > 1
    assert float(stats["scale"]) == pytest.approx(expected, rel=1e-6)
    rows = [with_own(expected, cosines[i].tolist(), y, cosines[i, y]) for i, y in enumerate(labels)]
    assert float(loss.detach()) == pytest.approx(sum(rows) / 5, rel=1e-6)  # already with the new scale


def test_learned_margins_are_kept_between_0_and_1() -> None:
    head = build("adam-softmax", {}, {"margins": [-1.0, 2.0, 0.5, 0.5, 0.5, 0.5, 0.5]}).train()
    head_loss(head, *make_case())
    assert head.margins.tolist() == [0, 1, 0.5, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("classes", "margin_cos"), [(2, 0.4), (5, 0.4), (10_000_000, 0.4), (3, 0.0), (2, 1.0)]
)
def test_sphereface2_begins_where_the_bias_has_no_gradient(classes: int, margin_cos: float) -> None:
    head = resolve("losses", "sphereface2")(2, 4, margin_cos=margin_cos)
    b, g = head._first_bias(classes), 2 * 0.5**3 - 1

    def sigmoid(v: float) -> float:
        return 1 / (1 + math.exp(-v))

    own = 0.7 * sigmoid(-(40 * (g - margin_cos) + b))
    others = 0.3 * (classes - 1) * sigmoid(40 * (g + margin_cos) + b)
    assert own == pytest.approx(others, rel=1e-6)
