"""The contract checks: sound parts pass, and each way to break a contract is found and named."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facetrain.datasets.samplers import Draw, PeopleSampler, ShuffledSampler
from facetrain.datasets.synth import draw_face
from facetrain.errors import UserError
from facetrain.kernels.mining import Triplets, mine_triplets
from facetrain.preprocess.detectors import Face
from facetrain.testing import (
    check_backbone,
    check_detector,
    check_loss,
    check_miner,
    check_sampler,
    check_trainer,
)
from facetrain.train.losses.base import Loss
from facetrain.train.losses.head import Targets
from facetrain.train.losses.heads.cosface import CosFace
from facetrain.train.miners.base import Miner
from facetrain.train.trainers.base import Trainer


def test_the_checks_are_named() -> None:
    import facetrain.testing

    families = ("backbone", "detector", "embedder", "loss", "miner", "protocol", "sampler", "trainer")
    assert facetrain.testing.__all__ == [f"check_{family}" for family in families]
    assert all(getattr(facetrain.testing, name).__doc__ for name in facetrain.testing.__all__)


def test_they_need_no_test_framework_and_no_assert_statement() -> None:
    code = """
import sys
from facetrain.testing import check_sampler
assert False, "python -O"
from facetrain.datasets.samplers import ShuffledSampler
check_sampler(ShuffledSampler)
try:
    check_sampler(lambda labels, **given: [])
except AssertionError as error:
    print(error)
print([name for name in ("pytest", "dlib", "nvidia.dali") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "an epoch has no batches" in done.stdout


# -- losses ----------------------------------------------------------------------------------------------------------


class Pairs(Loss):
    """A sound loss over pairs: the squared distance of those of one person, against that of different people."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, embeddings, labels, generator=None, num_anchors=None):  # type: ignore[no-untyped-def]
        unit = F.normalize(embeddings)
        distance = 2 - 2 * unit @ unit.T
        rows = torch.arange(len(labels), device=labels.device)
        anchors = rows < (len(labels) if num_anchors is None else num_anchors)
        same = (labels[:, None] == labels) & (rows[:, None] != rows) & anchors[:, None] & anchors
        other = (labels[:, None] != labels) & anchors[:, None]
        near = (distance * same).sum() / same.sum().clamp_min(1)
        far = ((self.margin_share * 1.0 - distance).clamp_min(0) * other).sum() / other.sum().clamp_min(1)
        return near + far, {"near": near.detach(), "far": far.detach()}


class Head(Loss):
    """A sound loss with class weights and a running mean."""

    def __init__(self, num_classes: int, embedding_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, embedding_dim))
        self.register_buffer("mean_norm", torch.ones(()))

    def forward(self, embeddings, labels, generator=None, num_anchors=None):  # type: ignore[no-untyped-def]
        logits = 8 * F.normalize(embeddings) @ F.normalize(self.weight).T
        loss = F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1)
        if len(labels):
            self.mean_norm = 0.9 * self.mean_norm + 0.1 * embeddings.detach().norm(dim=1).mean()
        return loss + 0 * self.mean_norm, {"mean_norm": self.mean_norm}


class Chance(Head):
    """A sound loss that draws."""

    def forward(self, embeddings, labels, generator=None, num_anchors=None):  # type: ignore[no-untyped-def]
        loss, stats = super().forward(embeddings, labels, generator, num_anchors)
        noise = torch.rand(len(labels), generator=generator, device=loss.device, dtype=loss.dtype)
        return loss + (noise * embeddings.square().sum(1) * 1e-3).sum() / max(len(labels), 1), stats


@pytest.mark.parametrize("make", [Pairs, Head, Chance, partial(Head)])
def test_sound_losses_pass(make: Callable[..., Loss]) -> None:
    check_loss(make, gradcheck=True)


def after(base: type[Loss], change: Callable[..., Any], name: str = "Broken") -> type[Loss]:
    """The loss ``base`` with what it returns changed: change(loss, stats, embeddings, labels, generator, anchors, self)."""

    class Broken(base):  # type: ignore[misc, valid-type]
        def forward(self, embeddings, labels, generator=None, num_anchors=None):  # type: ignore[no-untyped-def]
            loss, stats = super().forward(embeddings, labels, generator, num_anchors)
            return change(loss, stats, embeddings, labels, generator, num_anchors, self)

    Broken.__qualname__ = name
    return Broken


def with_stats(**stats: Any) -> type[Loss]:
    return after(Pairs, lambda loss, old, *_: (loss, old | stats))


class Remembers(Pairs):
    """What it has seen is no buffer."""

    seen = 0.0

    def forward(self, embeddings, labels, generator=None, num_anchors=None):  # type: ignore[no-untyped-def]
        loss, stats = super().forward(embeddings, labels, generator, num_anchors)
        self.seen += 0.1
        return loss * (1 + self.seen), stats


class Unused(Head):
    def __init__(self, num_classes: int, embedding_dim: int) -> None:
        super().__init__(num_classes, embedding_dim)
        self.unused = nn.Parameter(torch.zeros(3))


class LogOfClasses(Head):
    """Divides by log(C − 1), which is 0 for two classes."""

    def __init__(self, num_classes: int, embedding_dim: int) -> None:
        super().__init__(num_classes, embedding_dim)
        self.scale = float(torch.tensor(num_classes - 1.0).log())

    def forward(self, embeddings, labels, generator=None, num_anchors=None):  # type: ignore[no-untyped-def]
        loss, stats = super().forward(embeddings, labels, generator, num_anchors)
        return loss / torch.tensor(self.scale, dtype=loss.dtype), stats


class OddState(Pairs):
    def get_extra_state(self) -> Any:
        return {"of": Pairs}

    def set_extra_state(self, state: Any) -> None:
        pass


class OtherShape(Head):
    """Its state changes shape as it goes on."""

    def forward(self, embeddings, labels, generator=None, num_anchors=None):  # type: ignore[no-untyped-def]
        result = super().forward(embeddings, labels, generator, num_anchors)
        self.register_buffer("kept", torch.zeros(len(labels)))
        return result


class Poisoned(Head):
    """The standard deviation of one row is none."""

    def forward(self, embeddings, labels, generator=None, num_anchors=None):  # type: ignore[no-untyped-def]
        loss, _ = super().forward(embeddings, labels, generator, num_anchors)
        spread = embeddings.detach().norm(dim=1).sub(1)
        self.mean_norm = self.mean_norm + (spread.square().sum() / (len(labels) - 1)).sqrt() * (
            len(labels) > 0
        )
        return loss, {"mean_norm": torch.zeros(())}


class InPlace(Pairs):
    def forward(self, embeddings, labels, generator=None, num_anchors=None):  # type: ignore[no-untyped-def]
        embeddings.data.mul_(0.5)
        return super().forward(embeddings, labels, generator, num_anchors)


class Half(Pairs):
    """float32 inside is not float32."""

    def forward(self, embeddings, labels, generator=None, num_anchors=None):  # type: ignore[no-untyped-def]
        if embeddings.dtype == torch.float32:
            embeddings = embeddings.clamp(-50, 50).to(torch.float8_e4m3fn).float()
        return super().forward(embeddings, labels, generator, num_anchors)


def root_distance(loss: Tensor, stats: Any, embeddings: Tensor, *_: Any) -> Any:
    """√ of a distance that is 0 has no gradient."""
    return loss + (embeddings[1:] - embeddings[:-1]).square().sum(1).sqrt().sum() * 1e-9, stats


def by_position(loss: Tensor, stats: Any, embeddings: Tensor, *_: Any) -> Any:
    places = torch.arange(len(embeddings), dtype=embeddings.dtype)
    return loss + (places * F.normalize(embeddings)[:, 0]).sum() * (loss != 0), stats


def global_chance(loss: Tensor, stats: Any, *_: Any) -> Any:
    return loss * (1 + torch.rand(())), stats


def anchors_matter(
    loss: Tensor, stats: Any, embeddings: Tensor, labels: Any, gen: Any, anchors: Any, _: Any
) -> Any:
    return loss * (2 if anchors is None else 1), stats


def no_extras(
    loss: Tensor, stats: Any, embeddings: Tensor, labels: Any, gen: Any, anchors: Any, _: Any
) -> Any:
    if anchors is not None and anchors < len(labels):
        raise IndexError("extra negatives are not thought of")
    return loss, stats


class MixesExtras(Pairs):
    """Extra negatives of one person pull each other."""

    def forward(self, embeddings, labels, generator=None, num_anchors=None):  # type: ignore[no-untyped-def]
        loss, stats = super().forward(embeddings, labels, generator, num_anchors)
        if num_anchors:
            loss = loss + super().forward(embeddings[num_anchors:], labels[num_anchors:])[0]
        return loss, stats


BROKEN_LOSSES = {
    "no loss": (lambda: nn.Linear(2, 2), "makes Linear, not a facetrain Loss"),
    "vector": (
        after(Pairs, lambda loss, stats, e, *_: (e[:, 0], stats)),
        r"the loss is a tensor \[20\], not a scalar",
    ),
    "number": (
        after(Pairs, lambda loss, stats, *_: (loss.item(), stats)),
        "the loss is float .*, not a scalar tensor",
    ),
    "mean of nothing": (
        after(Head, lambda loss, stats, e, *_: (e.square().sum(1).mean(), stats)),
        r"Broken on an empty batch \(float32\): the loss is nan",
    ),
    "dtype": (
        after(Head, lambda loss, stats, *_: (loss.float(), stats)),
        r"\(float64\): the loss is of torch.float32 where the embeddings are of torch.float64",
    ),
    "constant": (
        after(Pairs, lambda loss, stats, *_: (loss.detach(), stats)),
        "not connected with the embeddings",
    ),
    "zero gradient": (
        after(Pairs, lambda loss, stats, *_: (0 * loss, stats)),
        "gradient of the embeddings is zero",
    ),
    "statistics": (after(Pairs, lambda loss, stats, *_: (loss, list(stats))), "the statistics are list"),
    "statistic with gradient": (
        after(Pairs, lambda loss, stats, *_: (loss, {"x": loss})),
        "the statistic 'x' carries a gradient: detach it",
    ),
    "vector statistic": (with_stats(x=torch.zeros(2)), r"the statistic 'x' is a tensor \[2\], not a scalar"),
    "number as statistic": (with_stats(x=0.5), "the statistic 'x' is float 0.5"),
    "taken name": (with_stats(lr=torch.zeros(())), "called 'lr', which the loop writes itself"),
    "undefined statistic": (with_stats(x=torch.tensor(torch.nan)), "the statistic 'x' is nan"),
    "changing statistics": (
        after(Pairs, lambda loss, stats, e, *_: (loss, stats if len(e) > 1 else {})),
        r"the statistics are \[\], and \['far', 'near'\] elsewhere",
    ),
    "root": (
        after(Pairs, root_distance),
        "Broken on rows of zeros .* the gradient of the embeddings is not finite",
    ),
    "margin of nothing": (
        after(Pairs, lambda loss, stats, *_: (loss + 0.2, stats)),
        "on an empty batch .* the loss is 0.2; it must be 0",
    ),
    "margin of one": (
        after(Pairs, lambda loss, stats, e, *_: (loss + 0.2 * (len(e) > 0), stats)),
        "on one photograph .* nothing can be compared, but the loss is 0.2; it must be 0",
    ),
    "in place": (InPlace, "embeddings or labels were changed in place"),
    "extra negatives": (
        after(Pairs, no_extras),
        "on extra negatives .* IndexError: extra negatives are not thought of",
    ),
    "poisoned": (Poisoned, "on one photograph .* 'mean_norm' of the state is no longer finite"),
    "unused": (Unused, "no gradient reaches its 'unused'"),
    "two classes": (LogOfClasses, "with 2 classes on 20 photographs: the loss is inf"),
    "half": (Half, "in float32 and .* in float64"),
    "global chance": (after(Pairs, global_chance), "all chance must come from it"),
    "order": (after(Pairs, by_position), "with the rows in another order"),
    "order on average": (after(Chance, by_position), "the mean over 200 draws changes by"),
    "anchors": (after(Pairs, anchors_matter), "num_anchors = 20 of 20 rows gives .* both mean all"),
    "extras": (MixesExtras, "rows behind num_anchors must be nobody's anchor and nobody's positive"),
    "margin share": (
        after(Pairs, lambda loss, stats, *rest: (loss / rest[-1].margin_share, stats)),
        "with margin_share 0: ",
    ),
    "memory": (Remembers, "what it remembers must be in parameters or buffers"),
    "odd state": (OddState, "the state holds more than tensors and plain values"),
    "state of another shape": (OtherShape, "its state does not fit one made anew"),
}


@pytest.mark.parametrize("what", BROKEN_LOSSES)
def test_broken_losses_are_found(what: str) -> None:
    make, says = BROKEN_LOSSES[what]
    with pytest.raises(AssertionError, match=says):
        check_loss(make)


class NoSuper(Pairs):
    def __init__(self) -> None:
        pass


class NeedsMore(Pairs):
    def __init__(self, something: int) -> None:
        super().__init__()


@pytest.mark.parametrize(
    "part, says",
    [
        (None, "give the class, or a function that makes one, not None"),
        (Pairs(), "give the class, or a function that makes one, not Pairs"),
        (NoSuper, "NoSuper: its __init__ does not call super"),
        (NeedsMore, "NeedsMore cannot be made: TypeError: .*something"),
    ],
)
def test_what_cannot_be_made_is_said(part: Any, says: str) -> None:
    for check in (check_loss, check_miner, check_trainer, check_backbone):
        with pytest.raises(AssertionError, match=says):
            check(part)


def test_a_wrong_gradient_is_found_when_asked_for() -> None:
    straight = after(Head, lambda loss, stats, *_: (2 * loss - loss.detach(), stats))
    check_loss(straight)
    with pytest.raises(AssertionError, match="the gradient is not that of finite differences"):
        check_loss(straight, gradcheck=True)


# -- miners ----------------------------------------------------------------------------------------------------------


class Mine(Miner):
    """A sound miner, to be broken: ``strategy`` of `mine_triplets`."""

    def __init__(self, strategy: Any = "all-violating-random") -> None:
        super().__init__()
        self.strategy = strategy

    def __call__(self, embeddings, labels, *, margin, generator=None, num_anchors=None):  # type: ignore[no-untyped-def]
        how = {"margin": margin, "generator": generator, "num_anchors": num_anchors}
        return mine_triplets(embeddings, labels, **how, strategy=self.strategy)


@pytest.mark.parametrize("strategy", ["all-violating-random", "semihard", "hardest"])
def test_sound_miners_pass(strategy: str) -> None:
    check_miner(partial(Mine, strategy))


def mined(change: Callable[..., Any], **given: Any) -> type[Miner]:
    """A miner that finds other triplets: change(triplets, labels)."""

    class Broken(Mine):
        def __call__(self, embeddings, labels, **how):  # type: ignore[no-untyped-def]
            return change(super().__call__(embeddings, labels, **(how | given)), labels)

    Broken.__qualname__ = "Broken"
    return Broken


class Positional(Mine):
    """The first negative in the batch."""

    def __call__(self, embeddings, labels, **how):  # type: ignore[no-untyped-def]
        found = Mine("hardest")(embeddings, labels, **how)
        first = (labels[found.anchor][:, None] != labels).int().argmax(1) if len(found) else found.negative
        return Triplets(found.anchor, found.positive, first, found.num_pairs)


class OnNumPy(Mine):
    def __call__(self, embeddings, labels, **how):  # type: ignore[no-untyped-def]
        return super().__call__(torch.from_numpy(embeddings.numpy()), labels, **how)


class Normalises(Mine):
    def __call__(self, embeddings, labels, **how):  # type: ignore[no-untyped-def]
        embeddings.data.add_(1)
        return super().__call__(embeddings, labels, **how)


class Needs(Mine):
    def __call__(self, embeddings, labels, **how):  # type: ignore[no-untyped-def]
        torch.rand(1, generator=torch.Generator().set_state(how.get("generator").get_state()))
        return super().__call__(embeddings, labels, **how)


def swapped(t: Triplets, labels: Tensor) -> Triplets:
    return Triplets(t.anchor, t.negative, t.positive, t.num_pairs)


BROKEN_MINERS = {
    "no miner": (lambda: mine_triplets, "makes function, not a facetrain Miner"),
    "no triplets": (
        mined(lambda t, labels: (t.anchor, t.positive, t.negative)),
        "returns tuple, not Triplets",
    ),
    "dtype": (
        mined(lambda t, labels: Triplets(t.anchor.int(), t.positive, t.negative, t.num_pairs)),
        "'anchor' is torch.int32",
    ),
    "lengths": (
        mined(lambda t, labels: Triplets(t.anchor, t.positive, t.negative[:1], t.num_pairs)),
        "'negative' is torch.int64 .* the three must be",
    ),
    "positive": (mined(swapped), "on a batch of 6 people .* a positive is of another person"),
    "negative": (
        mined(lambda t, labels: Triplets(t.anchor, t.positive, t.positive, t.num_pairs)),
        "a negative is of the anchor's person",
    ),
    "own positive": (
        mined(lambda t, labels: Triplets(t.anchor, t.anchor, t.negative, t.num_pairs)),
        "a photograph is its own positive",
    ),
    "range": (
        mined(lambda t, labels: Triplets(t.anchor, t.positive, t.negative + len(labels), t.num_pairs)),
        "'negative' is not always from 0 to 23",
    ),
    "extra negatives": (
        mined(lambda t, labels: t, num_anchors=None),
        "on extra negatives .* 'anchor' is not always from 0 to 14: rows behind num_anchors are negatives only",
    ),
    "pairs": (
        mined(lambda t, labels: Triplets(t.anchor, t.positive, t.negative, 0)),
        "num_pairs is 0, with .* pairs among the triplets",
    ),
    "nothing": (
        mined(lambda t, labels: Triplets(t.anchor[:0], t.anchor[:0], t.anchor[:0], 0)),
        "finds no triplet in",
    ),
    "empty": (
        mined(lambda t, labels: t if len(labels) else t.anchor.max()),
        "on an empty batch .* RuntimeError",
    ),
    "chance": (mined(lambda t, labels: t, generator=None), "all chance must come from it"),
    "order": (Positional, "other triplets are found where the rows are in another order"),
    "gradient": (OnNumPy, "RuntimeError: Can't call numpy"),
    "in place": (Normalises, "embeddings or labels were changed in place"),
    "generator": (Needs, "without a generator: AttributeError"),
}


@pytest.mark.parametrize("what", BROKEN_MINERS)
def test_broken_miners_are_found(what: str) -> None:
    make, says = BROKEN_MINERS[what]
    with pytest.raises(AssertionError, match=says):
        check_miner(make)


# -- backbones -------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A sound network."""

    def __init__(self, embedding_dim: int = 8, size_px: int = 32) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 5, stride=4)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4 * ((size_px - 1) // 4) ** 2, embedding_dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(F.relu(self.norm(self.conv(images))).flatten(1))


def test_sound_backbones_pass() -> None:
    check_backbone(Net)
    check_backbone(lambda embedding_dim=8, size_px=96: Net(embedding_dim, size_px))


def net(change: Callable[..., Any]) -> type[nn.Module]:
    """A network whose embeddings are others: change(embeddings, images, network)."""

    class Broken(Net):
        def forward(self, images: Tensor) -> Any:
            return change(super().forward(images), images, self)

    return Broken


class Dead(Net):
    def __init__(self, embedding_dim: int, size_px: int) -> None:
        super().__init__(embedding_dim, size_px)
        self.dead = nn.Linear(2, 2)


class Frozen(Net):
    def __init__(self, embedding_dim: int, size_px: int) -> None:
        super().__init__(embedding_dim, size_px)
        self.requires_grad_(False)


class Own(Net):
    """Weights from chance of its own."""

    made = itertools.count()

    def __init__(self, embedding_dim: int, size_px: int) -> None:
        torch.manual_seed(next(self.made))
        super().__init__(embedding_dim, size_px)


class Shared(Net):
    """Two names for the same weights: safetensors takes no such."""

    def __init__(self, embedding_dim: int, size_px: int) -> None:
        super().__init__(embedding_dim, size_px)
        self.register_buffer("again", self.linear.weight.data[1:])


class Hidden(Net):
    """A running mean that is no buffer."""

    mean: Any = 0.0

    def forward(self, images: Tensor) -> Tensor:
        embeddings = super().forward(images)
        if self.training:
            self.mean = 0.5 * embeddings.detach().mean(0)
        return embeddings - self.mean


class Fixed(Net):
    """Reads rows as if pixels lay plane by plane."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.view(len(images), -1).view(images.shape))


class Looks(Net):
    """Reads its own weights."""

    def __init__(self, embedding_dim: int, size_px: int = 96) -> None:
        super().__init__(embedding_dim, size_px)
        self.largest = self.linear.weight.max().item()


class NeedsSize(Net):
    def __init__(self, embedding_dim: int, size_px: int) -> None:
        super().__init__(embedding_dim, size_px)


class Lazy(Net):
    def load_state_dict(self, *state: Any, **how: Any) -> Any:
        raise RuntimeError("size mismatch")


BROKEN_BACKBONES = {
    "arguments": (lambda embedding_dim, depth: Net(embedding_dim), "cannot be made: TypeError: .* 'depth'"),
    "no module": (lambda embedding_dim, size_px: abs, "makes builtin_function_or_method, not a module"),
    "one size": (lambda embedding_dim, size_px=96: Net(embedding_dim, 96), "at 112 px, train, a batch of 3: RuntimeError"),
    "shape": (net(lambda e, *_: e[:, :-1]), r"it returns \[3, 31\], not \[3, 32\]"),
    "no tensor": (net(lambda e, *_: [e]), "it returns list, not a tensor"),
    "dtype": (net(lambda e, *_: e.double()), "it returns torch.float64"),
    "not finite": (net(lambda e, *_: e / 0), "an embedding is not finite"),
    "normalised": (net(lambda e, *_: F.normalize(e)), "all embeddings have the norm 1; they must be raw"),
    "constant": (net(lambda e, i, n: 0 * e + torch.arange(3)[: len(e), None] * 0 + n.linear.bias), "have the norm|same embed"),
    "one at a time": (net(lambda e, *_: e.squeeze(0)), "eval, a batch of 1: it returns"),
    "company": (net(lambda e, *_: e - e.mean(0)), "in eval mode an embedding changes by"),
    "company of others": (net(lambda e, i, n: e + i.std() * 0.2), "in eval mode an embedding changes by"),
    "memory format": (Fixed, "in channels_last: RuntimeError"),
    "half": (net(lambda e, *_: e * (1 if e.dtype == torch.float32 else torch.nan)), "under bf16 autocast"),
    "dead": (Dead, "no gradient reaches 'dead.weight'"),
    "frozen": (Frozen, "it has nothing to train"),
    "own chance": (Own, "made twice from the same torch.manual_seed, its weights differ"),
    "shared": (Shared, "cannot be written as safetensors"),
    "hidden": (Hidden, "in one made anew, embeddings are others"),
    "values": (Looks, "on torch's meta device, where tensors have no values: Looks cannot be made: RuntimeError"),
    "no default": (NeedsSize, "with embedding_dim alone.* missing 1 required positional argument: 'size_px'"),
    "state": (Lazy, "its state does not fit one made anew"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN_BACKBONES)
def test_broken_backbones_are_found(what: str) -> None:
    make, says = BROKEN_BACKBONES[what]
    with pytest.raises(AssertionError, match=says):
        check_backbone(make)


# -- trainers --------------------------------------------------------------------------------------------------------


class Softmax(Trainer):
    """A sound trainer with a head, a moving average, and a draw."""

    sampler = "shuffled"

    def __init__(self, num_classes: int, embedding_dim: int) -> None:
        super().__init__()
        self.head = nn.Linear(embedding_dim, num_classes)
        self.register_buffer("steps", torch.zeros(()))

    def sampler_args(self) -> dict[str, Any]:
        return {"batch_size": 32, "drop_last": True}

    def forward(self, embeddings, batch, generator):  # type: ignore[no-untyped-def]
        keep = torch.rand(embeddings.shape, generator=generator, device=embeddings.device) > 0.1
        loss = F.cross_entropy(self.head(embeddings * keep), batch.labels) * (1 + 0.01 * self.steps)
        return loss, {"steps": self.steps.clone()}

    def after_step(self, backbone: nn.Module) -> None:
        self.steps += 1


def test_sound_trainers_pass() -> None:
    check_trainer(Softmax)
    check_trainer(partial(Softmax), people=6, images=10, embedding_dim=4, steps=2)


def trainer(change: Callable[..., Any]) -> type[Trainer]:
    """A trainer that returns something else: change(loss, stats, embeddings, batch, trainer)."""

    class Broken(Softmax):
        def forward(self, embeddings, batch, generator):  # type: ignore[no-untyped-def]
            return change(*super().forward(embeddings, batch, generator), embeddings, batch, self)

    return Broken


class Counts(Softmax):
    """Its step number is no buffer."""

    count = 0

    def forward(self, embeddings, batch, generator):  # type: ignore[no-untyped-def]
        self.count += 1
        loss, stats = super().forward(embeddings, batch, generator)
        return loss * self.count, stats


class Late(Softmax):
    """A momentum that begins again at a resume: the last embeddings are no buffer."""

    last: Any = None

    def embed(self, backbone: nn.Module, batch: Any) -> Tensor:
        embeddings = super().embed(backbone, batch)
        mixed = embeddings if self.last is None else embeddings + 0.5 * self.last
        self.last = embeddings.detach()
        return mixed


class NoSampler(Softmax):
    sampler = "suffled"


class WrongArguments(Softmax):
    def sampler_args(self) -> dict[str, Any]:
        return {"batchsize": 32}


class NoBatch(Softmax):
    def sampler_args(self) -> dict[str, Any]:
        return {"batch_size": 0}


class ThreeClasses(Softmax):
    def __init__(self, num_classes: int, embedding_dim: int) -> None:
        super().__init__(num_classes, embedding_dim)
        if num_classes < 3:
            raise ValueError("three at least")


class Embeds(Softmax):
    def embed(self, backbone: nn.Module, batch: Any) -> Tensor:
        return super().embed(backbone, batch).detach()


class Clamps(Softmax):
    def embed(self, backbone: nn.Module, batch: Any) -> Tensor:
        batch.images.clamp_(-1, 1)
        return super().embed(backbone, batch)


class Says(Softmax):
    def trouble(self, stats: dict[str, float]) -> Any:
        return 3 if stats["loss"] > 0 else None


class OwnChance(Softmax):
    made = itertools.count()

    def __init__(self, num_classes: int, embedding_dim: int) -> None:
        torch.manual_seed(next(self.made))
        super().__init__(num_classes, embedding_dim)


class Grows(Softmax):
    def after_step(self, backbone: nn.Module) -> None:
        self.steps = torch.zeros(len(self.steps.flatten()) + 1)

    def forward(self, embeddings, batch, generator):  # type: ignore[no-untyped-def]
        return F.cross_entropy(self.head(embeddings), batch.labels), {}


class Overflows(Softmax):
    def after_step(self, backbone: nn.Module) -> None:
        self.steps += torch.inf

    def forward(self, embeddings, batch, generator):  # type: ignore[no-untyped-def]
        return F.cross_entropy(self.head(embeddings), batch.labels), {}


BROKEN_TRAINERS = {
    "no trainer": (lambda num_classes, embedding_dim: nn.Linear(1, 1), "makes Linear, not a facetrain Trainer"),
    "no sampler": (NoSampler, "no batches from sampler 'suffled'.*did you mean 'shuffled'"),
    "arguments": (WrongArguments, "no batches from sampler 'shuffled' with {'batchsize': 32}.*batchsize"),
    "batch": (NoBatch, "for 40 people × 8 photographs: 0 photographs in a batch"),
    "two classes": (ThreeClasses, "with num_classes = 2, ThreeClasses cannot be made: ValueError: three at least"),
    "detached": (Embeds, r"step 0: embed must return embeddings \[32, 16\]"),
    "raises": (trainer(lambda *_: {}["thing"]), "step 0: KeyError: 'thing'"),
    "vector": (trainer(lambda loss, stats, e, *_: (e.square().sum(1), stats)), "not a scalar tensor"),
    "not finite": (trainer(lambda loss, stats, *_: (loss * torch.inf, stats)), "step 0: the loss is inf"),
    "constant": (trainer(lambda loss, stats, *_: (loss.detach(), stats)), "not connected with the embeddings"),
    "no gradient": (trainer(lambda loss, stats, *_: (loss * 0, stats)), "the gradient of the whole network is zero"),
    "in place": (Clamps, "the batch was changed in place"),
    "statistic": (trainer(lambda loss, stats, *_: (loss, {"right": 0.5})), "the statistic 'right' is float"),
    "taken": (trainer(lambda loss, stats, *_: (loss, {"loss": loss.detach()})), "which the loop writes itself"),
    "changing": (
        trainer(lambda loss, stats, e, b, self: (loss, stats if self.steps % 2 else {})),
        r"step 1: the statistics are \['steps'\], and \[\] at first",
    ),
    "trouble": (Says, "trouble returns 3, neither None nor one line"),
    "own chance": (OwnChance, "made twice from the same torch.manual_seed, its weights differ"),
    "global chance": (
        trainer(lambda loss, stats, *_: (loss * (1 + torch.rand(())), stats)),
        "two equal copies part at step 0",
    ),
    "memory": (Counts, "resumed from its state, the loss of step 4 is"),
    "memory of embeddings": (Late, "resumed from its state, the loss of step 4 is"),
    "state": (Grows, "its state does not fit one made anew"),
    "overflow": (Overflows, "step 0: 'steps' of the state is no longer finite"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN_TRAINERS)
def test_broken_trainers_are_found(what: str) -> None:
    make, says = BROKEN_TRAINERS[what]
    with pytest.raises(AssertionError, match=says):
        check_trainer(make)


# -- samplers --------------------------------------------------------------------------------------------------------


def test_sound_samplers_pass() -> None:
    check_sampler(ShuffledSampler)
    check_sampler(partial(ShuffledSampler, batch_size=7, drop_last=True))
    check_sampler(
        partial(PeopleSampler, people_per_batch=4, images_per_person=3, extra_negatives=2), people=15
    )


class Shuffled(ShuffledSampler):
    """A sound sampler, to be broken."""

    def __init__(self, labels: np.ndarray, *, seed: int, batches_per_epoch: int | None = None) -> None:
        super().__init__(labels, seed=seed, batch_size=16, batches_per_epoch=batches_per_epoch)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Draw]:
        for draw in super().epoch(epoch, start):
            yield self.changed(*draw)

    def changed(self, positions: np.ndarray, num_anchors: int) -> Any:
        return Draw(positions, num_anchors)


def drawn(change: Callable[[np.ndarray, int], Any]) -> type[Shuffled]:
    class Broken(Shuffled):
        def changed(self, positions: np.ndarray, num_anchors: int) -> Any:
            return change(positions, num_anchors)

    return Broken


class OneMore(Shuffled):
    def __len__(self) -> int:
        return super().__len__() + 1


class FromTheStart(Shuffled):
    def epoch(self, epoch: int, start: int = 0) -> Iterator[Draw]:
        return itertools.islice(super().epoch(epoch), len(self) - start)


class AlwaysTheSame(Shuffled):
    def epoch(self, epoch: int, start: int = 0) -> Iterator[Draw]:
        return super().epoch(0, start)


class NoSeed(Shuffled):
    def __init__(self, labels: np.ndarray, *, seed: int, batches_per_epoch: int | None = None) -> None:
        super().__init__(labels, seed=0, batches_per_epoch=batches_per_epoch)


class GoesOn(Shuffled):
    """What an epoch is depends on those before it."""

    def __init__(self, labels: np.ndarray, *, seed: int, batches_per_epoch: int | None = None) -> None:
        super().__init__(labels, seed=seed, batches_per_epoch=batches_per_epoch)
        self.asked = 0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Draw]:
        self.asked += 1
        return super().epoch(self.asked, start)


class AllBatches(Shuffled):
    def __init__(self, labels: np.ndarray, *, seed: int, batches_per_epoch: int | None = None) -> None:
        super().__init__(labels, seed=seed)


class Sorts(Shuffled):
    def __init__(self, labels: np.ndarray, *, seed: int, batches_per_epoch: int | None = None) -> None:
        labels.sort()
        super().__init__(labels, seed=seed, batches_per_epoch=batches_per_epoch)


BROKEN_SAMPLERS = {
    "arguments": (lambda labels, seed: Shuffled(labels, seed=seed), "cannot be called with labels, seed and"),
    "in place": (Sorts, "changes the labels in place"),
    "no draw": (drawn(lambda positions, anchors: (positions, anchors)), "it yields tuple, not a Draw"),
    "list": (drawn(lambda positions, anchors: Draw(positions.tolist(), anchors)), "positions are list, not int64"),
    "dtype": (drawn(lambda positions, anchors: Draw(positions.astype(np.int32), anchors)), "positions are int32"),
    "empty": (drawn(lambda positions, anchors: Draw(positions[:0], 0)), "0 photographs, with max_batch 16"),
    "too many": (drawn(lambda positions, anchors: Draw(np.tile(positions, 2), anchors)), "32 photographs, with max"),
    "range": (drawn(lambda positions, anchors: Draw(positions - 1, anchors)), "positions from -1 to|of .* photographs"),
    "anchors": (drawn(lambda positions, anchors: Draw(positions, 17)), "num_anchors is 17, of 16 photographs"),
    "no whole number": (drawn(lambda positions, anchors: Draw(positions, np.int64(1))), r"num_anchors is np.int64\(1\)"),
    "length": (OneMore, r"batches or more in epoch 0, where its len\(\) is"),
    "start": (FromTheStart, r"epoch\(2, 1\) is not the rest of epoch\(2\) from batch 1 on"),
    "epochs": (AlwaysTheSame, "epochs 0 and 3 are the same"),
    "seeds": (NoSeed, "epochs of different seeds are the same"),
    "state": (GoesOn, "it must follow from seed and epoch alone|another when asked again"),
    "chance": (
        drawn(lambda positions, anchors: Draw(np.random.permutation(positions), anchors)),
        "it must follow from seed and epoch alone",
    ),
    "batches": (AllBatches, "batches with batches_per_epoch = 1"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN_SAMPLERS)
def test_broken_samplers_are_found(what: str) -> None:
    make, says = BROKEN_SAMPLERS[what]
    with pytest.raises(AssertionError, match=says):
        check_sampler(make)


# -- detectors -------------------------------------------------------------------------------------------------------


class Bright:
    """A sound detector: the bright half of a photograph is a face."""

    def __call__(self, images: Any) -> list[list[Face]]:
        return [self.faces(image) for image in images]

    def faces(self, image: np.ndarray) -> list[Face]:
        height, width = image.shape[:2]
        if min(height, width) < 20:
            return []
        level = float(image.mean())
        return [Face((0, 0, width // 2, height), level), Face((0, 0, width, height // 2), level - 1)]


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    return [draw_face(1, person, 1, size_px=64) for person in (1, 2, 3)]


def test_sound_detectors_pass(photographs: list[np.ndarray]) -> None:
    check_detector(Bright, photographs=photographs)
    check_detector(lambda: Bright())


def found(change: Callable[[list[list[Face]], Any], Any]) -> type[Bright]:
    class Broken(Bright):
        def __call__(self, images: Any) -> Any:
            return change(super().__call__(images), images)

    return Broken


class Learns(Bright):
    """Surer from one call to the next."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Any) -> list[list[Face]]:
        self.calls += 1
        return [
            [Face(face.box, face.score + self.calls) for face in faces] for faces in super().__call__(images)
        ]


class Unlike(Bright):
    """No two are alike."""

    made = itertools.count()

    def __init__(self) -> None:
        self.number = next(self.made)

    def faces(self, image: np.ndarray) -> list[Face]:
        return [Face(face.box, face.score + self.number) for face in super().faces(image)]


class Paints(Bright):
    def faces(self, image: np.ndarray) -> list[Face]:
        image[0] = 0
        return super().faces(image)


class Large(Bright):
    def faces(self, image: np.ndarray) -> list[Face]:
        if min(image.shape[:2]) < 2:
            raise ValueError("too small")
        return super().faces(image)


BROKEN_DETECTORS = {
    "raises": (found(lambda faces, images: faces[99]), "IndexError"),
    "too few": (found(lambda faces, images: faces[1:]), "a list with a list of Face for each of the 3"),
    "no list": (found(lambda faces, images: [None for _ in faces]), "for one it returns None, not a list"),
    "no face": (found(lambda faces, images: [[(0, 0, 1, 1)] for _ in faces]), r"\(0, 0, 1, 1\) is no Face"),
    "box": (found(lambda faces, images: [[Face((0, 0, 5), 1.0)] for _ in faces]), "must hold left, top"),  # type: ignore[arg-type]
    "score": (found(lambda faces, images: [[Face((0, 0, 5, 5), np.nan)] for _ in faces]), "must hold left, top"),
    "extent": (found(lambda faces, images: [[Face((5, 0, 5, 9), 1.0)] for _ in faces]), "has no extent"),
    "order": (found(lambda faces, images: [f[::-1] for f in faces]), "not the surest face first"),
    "blind": (found(lambda faces, images: [[] for _ in faces]), "finds no face in any of 3 photographs"),
    "company": (
        found(lambda faces, images: [[Face(f[0].box, float(len(faces)))] if f else [] for f in faces]),
        "in photographs shown alone it finds other faces",
    ),
    "the order of photographs": (
        found(lambda faces, images: [[Face(f[0].box, float(i))] if f else [] for i, f in enumerate(faces)]),
        "in photographs shown in another order it finds other faces",
    ),
    "learns": (Learns, "it finds other faces"),
    "unlike": (Unlike, "in photographs shown by one made anew it finds other faces"),
    "in place": (Paints, "changes photographs in place"),
    "small": (Large, "on a photograph of 1 × 1 pixels: ValueError: too small"),
    "nothing": (found(lambda faces, images: faces or images[0]), "on no photographs: IndexError"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN_DETECTORS)
def test_broken_detectors_are_found(what: str, photographs: list[np.ndarray]) -> None:
    make, says = BROKEN_DETECTORS[what]
    with pytest.raises(AssertionError, match=says):
        check_detector(make, photographs=photographs)


class CentredOthers(CosFace):
    def others(self, cos_BC: Tensor, targets: Targets, target_B: Tensor) -> Tensor:
        return cos_BC - cos_BC.mean(1, keepdim=True)


class OthersOfOneClass(CosFace):
    def others(self, cos_BC: Tensor, targets: Targets, target_B: Tensor) -> Tensor:
        return cos_BC[:, :1]


class HalfCosines(CosFace):
    def cosines(self, unit_BD: Tensor, unit_weight: Tensor) -> Tensor:
        return super().cosines(unit_BD, unit_weight) / 2


class LearnedScale(CosFace):
    def __init__(self, num_classes: int, embedding_dim: int) -> None:
        super().__init__(num_classes, embedding_dim)
        del self.scale
        self.scale = nn.Parameter(torch.tensor(20.0))


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (CentredOthers, "classes in blocks of three"),
        (OthersOfOneClass, "classes in blocks of three"),
        (HalfCosines, "override both, or none"),
        (LearnedScale, "learns its scale, which a Head cannot: make it a DenseHead"),
    ],
)
def test_heads_that_cannot_be_cut_into_blocks(head: type, says: str) -> None:
    with pytest.raises((AssertionError, UserError), match=says):
        check_loss(head)
