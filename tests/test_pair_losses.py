"""Pair losses: each against its formula in plain loops, and against pytorch-metric-learning's."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from facetrain.errors import UserError
from facetrain.plugins import make
from facetrain.testing.loss import check_loss
from facetrain.train.losses.base import Loss
from facetrain.train.losses.circle import Circle
from facetrain.train.losses.contrastive import Contrastive
from facetrain.train.losses.infonce import InfoNCE, SupCon
from facetrain.train.losses.multi_similarity import MultiSimilarity
from facetrain.train.losses.n_pair import NPair, draw_pairs
from facetrain.train.losses.pairs import PairLoss

CASES: list[tuple[type[Loss], dict]] = [
    (Contrastive, {}),
    (Contrastive, {"pos_margin": 0.3, "neg_margin": 1.3, "power": 1}),
    (Contrastive, {"average": "all"}),
    (MultiSimilarity, {}),
    (MultiSimilarity, {"mining": False}),
    (MultiSimilarity, {"alpha": 4.0, "beta": 20.0, "base": 0.3, "epsilon": 0.4}),
    (NPair, {}),
    (NPair, {"l2_weight": 0.0}),
    (InfoNCE, {}),
    (InfoNCE, {"temperature": 0.5}),
    (SupCon, {}),
    (Circle, {}),
    (Circle, {"margin_cos": 0.4, "scale": 80.0}),
]
cases = pytest.mark.parametrize(
    ("kind", "settings"), CASES, ids=lambda value: str(getattr(value, "__name__", value))
)
kinds = pytest.mark.parametrize(
    "kind", [Contrastive, MultiSimilarity, NPair, InfoNCE, SupCon, Circle], ids=lambda kind: kind.__name__
)


def batch(seed: int = 0, extra: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """People with 1 to 4 photographs, and extra rows: raw embeddings [n, 6], labels [n]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(7).repeat_interleave(torch.tensor([1, 2, 4, 3, 2, 1, 3]))
    labels = torch.cat([labels[torch.randperm(16, generator=generator)], 7 + torch.arange(extra)])
    centres = torch.randn(7 + extra, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(labels), 6, generator=generator, dtype=torch.float64)
    return (centres[labels] + 0.7 * noise).to(dtype), labels


def loss_of(
    loss: Loss, embeddings: Tensor, labels: Tensor, num_anchors: int | None = None, seed: int = 0
) -> Tensor:
    return loss(embeddings, labels, torch.Generator().manual_seed(seed), num_anchors)[0]


# -- formulas, in plain loops ------------------------------------------------------------------------------------------

Anchor = tuple[list[float], list[float]]  # cosines of an anchor to its positives, and to its negatives


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def contrastive(anchors: list[Anchor], pos_margin=0.0, neg_margin=1.0, power=2, average="active") -> float:
    def distance(cos: float) -> float:
        return math.sqrt(max(0.0, 2 - 2 * cos))

    pull = [max(0.0, distance(s) - pos_margin) ** power for positives, _ in anchors for s in positives]
    push = [max(0.0, neg_margin - distance(s)) ** power for _, negatives in anchors for s in negatives]
    assert 0 in push
    if average == "active":
        pull, push = [v for v in pull if v > 0], [v for v in push if v > 0]
    return mean(pull) + mean(push)


def multi_similarity(
    anchors: list[Anchor], alpha=2.0, beta=50.0, base=0.5, mining=True, epsilon=0.1
) -> float:
    terms = []
    for positives, negatives in anchors:
        if mining:
            least, greatest = min(positives, default=math.inf), max(negatives, default=-math.inf)
            positives = [s for s in positives if s - epsilon < greatest]
            negatives = [s for s in negatives if s + epsilon > least]
        pull = math.log(1 + sum(math.exp(-alpha * (s - base)) for s in positives)) / alpha
        push = math.log(1 + sum(math.exp(beta * (s - base)) for s in negatives)) / beta
        terms.append(pull + push)
    return mean(terms)


def infonce(anchors: list[Anchor], temperature=0.07) -> float:
    return mean(
        [
            -math.log(math.exp(s / temperature) / sum(math.exp(t / temperature) for t in [s, *negatives]))
            for positives, negatives in anchors
            for s in positives
        ]
    )


def supcon(anchors: list[Anchor], temperature=0.1) -> float:
    terms = []
    for positives, negatives in anchors:
        total = sum(math.exp(s / temperature) for s in positives + negatives)
        if positives:
            terms.append(mean([-math.log(math.exp(s / temperature) / total) for s in positives]))
    return mean(terms)


def circle(anchors: list[Anchor], margin_cos=0.25, scale=256.0) -> float:
    terms = []
    for positives, negatives in anchors:
        pull = [-scale * max(0, 1 + margin_cos - s) * (s - (1 - margin_cos)) for s in positives]
        push = [scale * max(0, s + margin_cos) * (s - margin_cos) for s in negatives]
        if pull and push:
            # ln(1 + Σ exp · Σ exp), with the largest exponents taken out.
            most = max(pull) + max(push)
            rest = sum(math.exp(p - max(pull)) for p in pull) * sum(math.exp(n - max(push)) for n in push)
            terms.append(
                max(most, 0) + math.log(math.exp(-max(most, 0)) + rest * math.exp(most - max(most, 0)))
            )
    return mean(terms)


FORMULAS: dict[type[Loss], Callable[..., float]] = {
    Contrastive: contrastive,
    MultiSimilarity: multi_similarity,
    InfoNCE: infonce,
    SupCon: supcon,
    Circle: circle,
}


def cosines_of_anchors(embeddings: Tensor, labels: Tensor, num_anchors: int) -> list[Anchor]:
    rows, people = embeddings.tolist(), labels.tolist()

    def cos(i: int, j: int) -> float:
        dot, squares = (sum(x * y for x, y in zip(rows[i], rows[k], strict=True)) for k in (j, i))
        return dot / math.sqrt(squares * sum(x * x for x in rows[j]))

    return [
        (
            [cos(a, p) for p in range(num_anchors) if p != a and people[p] == people[a]],
            [cos(a, n) for n in range(len(rows)) if people[n] != people[a]],
        )
        for a in range(num_anchors)
    ]


@pytest.mark.parametrize("extra", [0, 5])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [case for case in CASES if case[0] in FORMULAS],
    ids=lambda value: str(getattr(value, "__name__", value)),
)
def test_equals_plain_loops(kind: type[Loss], settings: dict, extra: int) -> None:
    for seed in range(3):
        embeddings, labels = batch(seed, extra)
        expected = FORMULAS[kind](cosines_of_anchors(embeddings, labels, 16), **settings)
        assert expected > 0
        assert float(loss_of(kind(**settings), embeddings, labels, 16)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("extra", [0, 5])
@pytest.mark.parametrize("l2_weight", [0.0, 0.01])
def test_n_pair_equals_plain_loops(l2_weight: float, extra: int) -> None:
    for seed in range(3):
        embeddings, labels = batch(seed, extra)
        anchors, positives = (
            rows.tolist() for rows in draw_pairs(labels[:16], torch.Generator().manual_seed(seed))
        )
        assert labels[anchors].tolist() == labels[positives].tolist() == [1, 2, 3, 4, 6]
        rows = embeddings.tolist()

        def dot(i: int, j: int, rows: list[list[float]] = rows) -> float:
            return sum(x * y for x, y in zip(rows[i], rows[j], strict=True))

        terms = []
        for a, p in zip(anchors, positives, strict=True):
            others = [q for q in positives if q != p] + list(range(16, 16 + extra))
            terms.append(math.log(1 + sum(math.exp(dot(a, q) - dot(a, p)) for q in others)))
        lengths = [dot(a, a) + dot(p, p) for a, p in zip(anchors, positives, strict=True)]
        expected = mean(terms) + l2_weight * mean(lengths) / 4
        ours = loss_of(NPair(l2_weight=l2_weight), embeddings, labels, 16, seed)
        assert float(ours) == pytest.approx(expected, rel=1e-9)


def test_n_pair_draws_any_two_of_a_person() -> None:
    labels = torch.tensor([5, 2, 5, 5, 2, 9])
    drawn = set()
    for seed in range(100):
        anchors, positives = draw_pairs(labels, torch.Generator().manual_seed(seed))
        assert labels[anchors].tolist() == labels[positives].tolist() == [2, 5]
        drawn |= set(zip(anchors.tolist(), positives.tolist(), strict=True))
    of_five = {(a, p) for a in (0, 2, 3) for p in (0, 2, 3) if a != p}
    assert drawn == of_five | {(1, 4), (4, 1)}


# -- the contract, and gradients ---------------------------------------------------------------------------------------


@cases
def test_contract(kind: type[Loss], settings: dict) -> None:
    # Circle loss takes its weights as constants: its gradient is checked below.
    check_loss(functools.partial(kind, **settings), gradcheck=kind is not Circle)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [case for case in CASES if case[0] is not Circle],
    ids=lambda value: str(getattr(value, "__name__", value)),
)
def test_gradient(kind: type[Loss], settings: dict) -> None:
    embeddings, labels = batch(1, extra=3)
    loss = functools.partial(loss_of, kind(**settings), labels=labels, num_anchors=16)
    assert torch.autograd.gradcheck(loss, embeddings.requires_grad_())


def test_gradient_of_circle_with_its_weights_as_constants() -> None:
    """∂/∂s of ln(1 + Σₙ exp(γ αₙ (sₙ − m)) Σₚ exp(−γ αₚ (sₚ − 1 + m))) is γ α times a softmax, here written out."""
    embeddings, labels = batch(3)
    scale, margin = 16.0, 0.25
    cos = F.normalize(embeddings) @ F.normalize(embeddings).T
    same = labels[:, None] == labels
    positive, negative = same & ~torch.eye(16, dtype=torch.bool), ~same
    gradient = torch.zeros_like(cos)
    anchors = [a for a in range(16) if positive[a].any()]
    for a in anchors:
        alpha_p, alpha_n = (1 + margin - cos[a]).clamp_min(0), (cos[a] + margin).clamp_min(0)
        pull = torch.where(positive[a], torch.exp(-scale * alpha_p * (cos[a] - 1 + margin)), 0)
        push = torch.where(negative[a], torch.exp(scale * alpha_n * (cos[a] - margin)), 0)
        product = pull.sum() * push.sum()
        of_sum = product / (1 + product)
        gradient[a] = of_sum * scale * (alpha_n * push / push.sum() - alpha_p * pull / pull.sum())
    gradient /= len(anchors)

    embeddings.requires_grad_()
    ours = torch.autograd.grad(
        loss_of(Circle(margin_cos=margin, scale=scale), embeddings, labels), embeddings
    )
    unit = F.normalize(embeddings)
    expected = torch.autograd.grad((unit @ unit.T * gradient).sum(), embeddings)
    torch.testing.assert_close(ours, expected)
    assert ours[0].abs().max() > 1e-3


@kinds
def test_it_pulls_together_and_pushes_apart(kind: type[Loss]) -> None:
    embeddings, labels = batch(2)
    loss = kind()
    similarities = []
    for step in range(40):
        embeddings = embeddings.detach().requires_grad_()
        value, stats = loss(embeddings, labels, torch.Generator().manual_seed(step), None)
        similarities.append([float(stats[f"similarity_{side}"]) for side in ("positive", "negative")])
        (gradient,) = torch.autograd.grad(value, embeddings)
        embeddings = embeddings - 0.3 * gradient / gradient.norm().clamp_min(1e-6)
    (positive, negative), (later_positive, later_negative) = similarities[0], similarities[-1]
    assert later_positive - later_negative > positive - negative + 0.1


# -- edges -------------------------------------------------------------------------------------------------------------


@cases
@pytest.mark.parametrize(
    ("labels", "num_anchors"),
    [
        ([3], None),
        ([3, 3, 3, 3], None),
        ([0, 1, 2, 3], None),
        ([0, 1, 1, 1], 1),
        ([0, 0, 1, 1], 0),
        ([], None),
    ],
    ids=["one row", "one person", "all distinct", "one anchor without a positive", "no anchors", "no rows"],
)
def test_nothing_to_compare(
    kind: type[Loss], settings: dict, labels: list[int], num_anchors: int | None
) -> None:
    if kind is NPair and len(set(labels)) == 1 and len(labels) > 1:
        settings = settings | {"l2_weight": 0.0}  # its other term is about lengths, not pairs
    embeddings = batch()[0][: len(labels)].requires_grad_()
    value, stats = kind(**settings)(embeddings, torch.tensor(labels, dtype=torch.int64), None, num_anchors)
    value.backward()
    assert float(value.detach()) == 0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))
    assert all(stat.isfinite() for stat in stats.values())


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", ["equal", "zeros", "two zeros", "equal in pairs"])
def test_rows_that_are_alike(kind: type[Loss], settings: dict, dtype: torch.dtype, rows: str) -> None:
    embeddings, labels = batch()
    if rows == "equal":
        embeddings = embeddings[:1].expand(16, -1)
    elif rows == "zeros":
        embeddings = torch.zeros_like(embeddings)
    elif rows == "two zeros":
        embeddings[labels.argsort()[:3]] = 0
    else:
        embeddings = embeddings[labels]  # a person's photographs are all alike
    embeddings = embeddings.to(dtype).clone().requires_grad_()
    value, stats = kind(**settings)(embeddings, labels, torch.Generator().manual_seed(0), None)
    value.backward()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.isfinite()
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad.abs().max() < 1e4
    assert all(stat.isfinite() for stat in stats.values())


@kinds
def test_a_nan_among_the_embeddings_is_seen(kind: type[Loss]) -> None:
    embeddings, labels = batch()
    embeddings[3, 2] = torch.nan
    assert torch.isnan(loss_of(kind(), embeddings, labels))


@kinds
def test_half_precision_is_widened(kind: type[Loss]) -> None:
    embeddings, labels = batch(dtype=torch.bfloat16)
    torch.testing.assert_close(
        loss_of(kind(), embeddings, labels), loss_of(kind(), embeddings.float(), labels), rtol=0, atol=0
    )
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = loss_of(kind(), embeddings.float(), labels)
    torch.testing.assert_close(under_autocast, loss_of(kind(), embeddings.float(), labels), rtol=0, atol=0)


@kinds
def test_extra_negatives_are_columns_only(kind: type[Loss]) -> None:
    """They have no gradient from one another, and one of a label of the batch is nobody's positive."""
    embeddings, labels = batch(1, extra=2)
    embeddings.requires_grad_()
    loss = kind(**({"l2_weight": 0.0} if kind is NPair else {}))
    labels[17] = labels[0]  # the last row is of a person of the batch
    apart = labels[:16] != labels[0]
    rows = torch.cat([apart.nonzero()[:, 0], torch.tensor([16, 17])])
    num_anchors = int(apart.sum())
    with_it = loss_of(loss, embeddings[rows], labels[rows], num_anchors)
    without = loss_of(loss, embeddings[rows[:-1]], labels[rows[:-1]], num_anchors)
    assert not torch.isclose(with_it, without, rtol=1e-6), "to others it is a negative"
    only = labels[:16] == labels[0]
    rows = torch.cat([only.nonzero()[:, 0], torch.tensor([16, 17])])
    with_it = loss_of(loss, embeddings[rows], labels[rows], int(only.sum()))
    without = loss_of(loss, embeddings[rows[:-1]], labels[rows[:-1]], int(only.sum()))
    assert torch.isclose(with_it, without, rtol=1e-12), "to its own it is nothing"


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Contrastive, {"average": "all", "neg_margin": 0.5}),
        (Circle, {"margin_cos": 0.125}),
    ],
)
def test_half_a_share_is_half_the_margin(kind: type[Loss], settings: dict) -> None:
    embeddings, labels = batch()
    ramped = kind(**{name: 2 * value if "margin" in name else value for name, value in settings.items()})
    ramped.margin_share = 0.5
    values = [loss_of(loss, embeddings, labels) for loss in (ramped, kind(**settings))]
    assert torch.equal(*values)
    ramped.margin_share = 1.0
    assert not torch.isclose(loss_of(ramped, embeddings, labels), values[0], rtol=1e-3)


def test_infonce_and_supcon_agree_on_pairs() -> None:
    """With two of each the one positive is the sum over all positives."""
    embeddings, _ = batch()
    labels = torch.arange(8).repeat_interleave(2)
    ours = [loss_of(kind(temperature=0.2), embeddings, labels) for kind in (InfoNCE, SupCon)]
    torch.testing.assert_close(*ours)


# -- an independent implementation -------------------------------------------------------------------------------------


def all_pairs(labels: Tensor, num_anchors: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """pytorch-metric-learning's index tuple: anchors and positives, anchors and negatives."""
    rows = [(a, b) for a in range(num_anchors) for b in range(len(labels)) if a != b]
    positives = [(a, b) for a, b in rows if b < num_anchors and labels[a] == labels[b]]
    negatives = [(a, b) for a, b in rows if labels[a] != labels[b]]
    return (*torch.tensor(positives).T, *torch.tensor(negatives).T)  # type: ignore[return-value]


def theirs_of(kind: type[Loss], settings: dict) -> Callable[[Tensor, Tensor, int], Tensor]:
    from pytorch_metric_learning import distances, losses, miners, reducers

    if kind is Contrastive:

        class Squared(losses.ContrastiveLoss):
            def get_per_pair_loss(self, *args: object) -> Tensor:
                return super().get_per_pair_loss(*args) ** settings.get("power", 2)

        margins = {name: value for name, value in settings.items() if "margin" in name}
        mean_of_all = {"reducer": reducers.MeanReducer()} if settings.get("average") == "all" else {}
        loss = Squared(**margins, **mean_of_all)
    elif kind is MultiSimilarity:
        loss = losses.MultiSimilarityLoss(
            **{k: settings[k] for k in ("alpha", "beta", "base") if k in settings}
        )
        miner = miners.MultiSimilarityMiner(epsilon=settings.get("epsilon", 0.1))
        if settings.get("mining", True):
            return lambda embeddings, labels, _: loss(embeddings, labels, miner(embeddings, labels))
    elif kind is InfoNCE:
        loss = losses.NTXentLoss(**{"temperature": 0.07} | settings)
    elif kind is SupCon:
        loss = losses.SupConLoss(**{"temperature": 0.1} | settings)
    elif kind is Circle:
        loss = losses.CircleLoss(m=settings.get("margin_cos", 0.25), gamma=settings.get("scale", 256.0))
    else:
        loss = losses.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False))

        def n_pair(embeddings: Tensor, labels: Tensor, num_anchors: int) -> Tensor:
            a, p = draw_pairs(labels[:num_anchors], torch.Generator().manual_seed(0))
            none = torch.empty(0, dtype=torch.int64)
            return loss(embeddings, labels, (a, p, none, none))  # type: ignore[no-any-return]

        return n_pair
    return lambda embeddings, labels, num_anchors: loss(embeddings, labels, all_pairs(labels, num_anchors))


@pytest.mark.parametrize(
    ("kind", "settings", "extra"),
    [
        (kind, settings, extra)
        for kind, settings in CASES
        for extra in (0, 5)
        # It cannot leave rows out of these two's anchors; its regulariser is another one.
        if not (extra and kind in (MultiSimilarity, NPair)) and not (kind is NPair and not settings)
    ],
    ids=lambda value: str(getattr(value, "__name__", value)),
)
def test_equals_pytorch_metric_learning(kind: type[Loss], settings: dict, extra: int) -> None:
    theirs = theirs_of(kind, settings)
    for seed in range(4):
        embeddings, labels = batch(seed, extra)
        embeddings.requires_grad_()
        values = loss_of(kind(**settings), embeddings, labels, 16), theirs(embeddings, labels, 16)
        assert float(values[1].detach()) > 0
        torch.testing.assert_close(*values, rtol=1e-9, atol=1e-12)
        gradients = [torch.autograd.grad(value, embeddings)[0] for value in values]
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


# -- names and arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["contrastive", "multi-similarity", "infonce", "supcon", "circle"])
def test_names(name: str) -> None:
    assert isinstance(make("losses", name, {}, num_classes=5, embedding_dim=8), PairLoss)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("contrastive", {"neg_margin": 3.0}, "neg_margin = 3: choose a number from 0 to 2"),
        ("contrastive", {"power": 3}, "power = 3: choose 1 or 2"),
        ("contrastive", {"average": "none"}, "average = 'none': choose one of active, all"),
        ("multi-similarity", {"beta": 0.0}, "beta = 0: choose a number above 0"),
        ("infonce", {"temperature": -1.0}, "temperature = -1: choose a number above 0"),
        ("infonce", {"temperatur": 1.0}, "loss 'infonce' takes no 'temperatur': it takes temperature"),
        ("circle", {"margin_cos": 1.5}, "margin_cos = 1.5: choose a number from 0 to 1"),
        ("n-pair", {"l2_weight": -0.1}, "l2_weight = -0.1: choose a number from 0 to 1e"),
    ],
)
def test_wrong_arguments(name: str, arguments: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make("losses", name, arguments)
