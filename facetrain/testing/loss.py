"""The contract of a loss, checked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from facetrain.kernels import over_classes
from facetrain.kernels.unit import unit
from facetrain.testing.expect import (
    expect,
    expect_finite_state,
    expect_gradients,
    expect_loss,
    made,
    name_of,
    normal,
    parameters_of,
    seeded,
    through_file,
)
from facetrain.train.losses.base import Loss
from facetrain.train.losses.dense_head import DenseHead
from facetrain.train.losses.head import Head

DRAWS = 200  # of a loss with chance in it, to see whether its mean depends on the order of the rows


class Case(NamedTuple):
    """A batch to show to a loss. ``silent``: a loss over pairs has nothing to compare in it, and is 0."""

    name: str
    embeddings: Tensor
    labels: Tensor
    num_anchors: int | None = None
    silent: bool = False


def check_loss(
    make_loss: Callable[..., Loss],
    *,
    embedding_dim: int = 16,
    num_classes: int = 8,
    gradcheck: bool = False,
    device: torch.device | str = "cpu",
) -> None:
    """Hold a loss to the contract of `facetrain.train.losses.base.Loss`.

    ``make_loss`` is the class, a `functools.partial` of it, or a function that makes one; it is given ``num_classes``
    and ``embedding_dim`` where its signature names them, and is called many times. num_classes: at least 8.
    gradcheck: compare the gradient with finite differences too, in float64; not for losses whose gradient is meant to
    be another one (straight-through, detached scales). Raises AssertionError, which says on which batch what went
    wrong.
    """
    check = _LossCheck(make_loss, embedding_dim, num_classes, torch.device(device))
    check.every_batch()
    check.gradient_reaches_everything()
    check.two_classes()
    check.precisions_agree()
    check.chance_comes_from_the_generator()
    check.order_plays_no_part()
    check.blocks_of_classes_do_not_show()
    check.num_anchors_of_all_is_none()
    check.extra_negatives_are_no_positives()
    check.margin_share()
    check.state_round_trip()
    if gradcheck:
        check.gradcheck()


class _LossCheck:
    def __init__(
        self, make_loss: Callable[..., Loss], embedding_dim: int, num_classes: int, device: torch.device
    ) -> None:
        if num_classes < 8:
            raise ValueError(f"num_classes is {num_classes}: the batches need 8 or more")
        self.make_loss, self.name = make_loss, name_of(make_loss)
        self.embedding_dim, self.num_classes, self.device = embedding_dim, num_classes, device
        self.is_head = "num_classes" in parameters_of(make_loss)
        people = torch.tensor([1, 2, 4, 5, num_classes - 1])  # some classes are absent
        labels = people.repeat_interleave(4)[torch.randperm(20, generator=torch.Generator().manual_seed(1))]
        self.labels = labels.to(device)
        centres = normal(num_classes, embedding_dim, seed=2, device=device)
        self.embeddings = centres[self.labels] + normal(20, embedding_dim, seed=3, device=device)

    def loss(self, num_classes: int | None = None, dtype: torch.dtype = torch.float32, seed: int = 0) -> Loss:
        torch.manual_seed(seed)
        num_classes = self.num_classes if num_classes is None else num_classes
        loss = made(self.make_loss, num_classes=num_classes, embedding_dim=self.embedding_dim)
        expect(isinstance(loss, Loss), f"{self.name} makes {type(loss).__name__}, not a facetrain Loss")
        return loss.to(self.device, dtype).train()

    # -- batches -------------------------------------------------------------------------------------------------

    def cases(self) -> Iterator[Case]:
        plain, labels = self.embeddings, self.labels
        centres = normal(self.num_classes, self.embedding_dim, seed=4, device=self.device)
        yield Case("a batch of 5 people", plain, labels)
        yield Case("an empty batch", plain[:0], labels[:0], silent=True)
        yield Case("one photograph", plain[:1], labels[:1], silent=True)
        yield Case("one person", plain[:4], torch.full_like(labels[:4], 3))
        yield Case("a photograph of each class", centres, torch.arange(self.num_classes, device=self.device))
        yield Case("rows of zeros", torch.zeros_like(plain), labels)
        yield Case("one row of zeros", plain * (torch.arange(20, device=self.device) > 0)[:, None], labels)
        yield Case("equal rows", plain[:1].expand(20, -1), labels)
        yield Case("people whose rows are equal", centres[labels], labels)
        yield Case("opposite rows", torch.cat([plain[:10], -plain[:10]]), labels)
        yield Case("long rows", 1e4 * plain, labels)
        yield Case("short rows", 1e-4 * plain, labels)
        yield Case("rows as bf16 rounds them", plain.bfloat16().float(), labels)
        yield Case("extra negatives", plain, labels, num_anchors=14)
        yield Case("extra negatives alone", plain, labels, num_anchors=0, silent=True)
        for parameter in self.loss().parameters():
            weights = parameter.detach()
            if weights.ndim >= 2 and self.embedding_dim in (weights.shape[0], weights.shape[-1]):
                across = weights.shape[-1] != self.embedding_dim
                rows = (weights.flatten(1).T if across else weights.reshape(-1, self.embedding_dim))[:20]
                labels_of_rows = torch.arange(len(rows), device=self.device) % self.num_classes
                yield Case("rows that are class weights", rows, labels_of_rows)
                yield Case("rows opposite to class weights", -rows, labels_of_rows)

    def every_batch(self) -> None:
        names: set[str] | None = None
        for case in self.cases():
            for dtype in (torch.float32, torch.float64):
                who = f"{self.name} on {case.name} ({str(dtype).removeprefix('torch.')})"
                loss, embeddings = self.loss(dtype=dtype), leaf(case.embeddings, dtype)
                before, labels = embeddings.detach().clone(), case.labels.clone()
                value, stats = self.call(
                    who, loss, embeddings, labels, seeded(0, self.device), case.num_anchors
                )
                expect_loss(who, value, stats, dtype)
                names = set(stats) if names is None else names
                expect(
                    set(stats) == names,
                    f"{who}: the statistics are {sorted(stats)}, and {sorted(names)} elsewhere; they must be the same",
                )
                value.backward()
                expect_gradients(who, [("the embeddings", embeddings)])
                trained = [(f"its '{name}'", p) for name, p in loss.named_parameters() if p.grad is not None]
                expect_gradients(who, trained)
                if len(embeddings) == 0 or (case.silent and not self.is_head):
                    nothing = value.item() == 0 and not embeddings.grad.any()  # type: ignore[union-attr]
                    expect(
                        nothing,
                        f"{who}: nothing can be compared, but the loss is {value.item():g}; it must be 0, with a "
                        f"gradient of zeros",
                    )
                same = torch.equal(before, embeddings.detach()) and torch.equal(labels, case.labels)
                expect(same, f"{who}: embeddings or labels were changed in place")
                expect_finite_state(who, loss)
                self.next_is_sound(who, loss, dtype)

    def call(
        self,
        who: str,
        loss: Loss,
        embeddings: Tensor,
        labels: Tensor,
        generator: torch.Generator | None,
        num_anchors: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss's answer; what it raises becomes an AssertionError that names the batch."""
        try:
            value, stats = loss(embeddings, labels, generator, num_anchors)
        except Exception as error:
            raise AssertionError(f"{who}: {type(error).__name__}: {error}") from error
        return value, stats

    def next_is_sound(self, who: str, loss: Loss, dtype: torch.dtype) -> None:
        embeddings = leaf(self.embeddings, dtype)
        value, stats = self.call(who, loss, embeddings, self.labels, seeded(1, self.device))
        expect_loss(f"{who}, an ordinary batch after it", value, stats, dtype)

    # -- rules ---------------------------------------------------------------------------------------------------

    def gradient_reaches_everything(self) -> None:
        who = f"{self.name} on a batch of 5 people"
        loss, embeddings = self.loss(), leaf(self.embeddings)
        self.call(who, loss, embeddings, self.labels, seeded(0, self.device))[0].backward()
        expect_gradients(
            who, [(f"its '{name}'", p) for name, p in loss.named_parameters() if p.requires_grad]
        )
        expect(bool(embeddings.grad.any()), f"{who}: the gradient of the embeddings is zero")  # type: ignore[union-attr]

    def two_classes(self) -> None:
        if not self.is_head:
            return
        for count in (20, 1, 0):
            who = f"{self.name} with 2 classes on {count} photographs"
            embeddings = leaf(self.embeddings[:count])
            loss = self.loss(num_classes=2)
            value, stats = self.call(who, loss, embeddings, self.labels[:count] % 2, seeded(0, self.device))
            expect_loss(who, value, stats)
            value.backward()
            expect_gradients(who, [("the embeddings", embeddings)])

    def plain_value(self, loss: Loss, seed: int, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Value and gradient on the ordinary batch, its rows in this order; the loss's own state is left alone."""
        order = torch.arange(20, device=self.device) if order is None else order
        dtype = next((p.dtype for p in loss.parameters()), torch.float64)
        embeddings = leaf(self.embeddings[order], dtype)
        value, _ = copy.deepcopy(loss)(embeddings, self.labels[order], seeded(seed, self.device), None)
        return value.detach(), torch.autograd.grad(value, embeddings)[0]

    def is_random(self) -> bool:
        loss = self.loss(dtype=torch.float64)
        values = torch.stack([self.plain_value(loss, seed)[0] for seed in range(6)])
        return bool((values != values[0]).any())

    def precisions_agree(self) -> None:
        if self.is_random():  # float32 and float64 draw other numbers
            return
        values = []
        for dtype in (torch.float32, torch.float64):
            loss, embeddings = self.loss(), leaf(self.embeddings, dtype)
            loss = loss.to(dtype)  # the same weights in both
            values.append(loss(embeddings, self.labels, seeded(0, self.device), None)[0].item())
        close = abs(values[0] - values[1]) <= 1e-3 * max(1.0, abs(values[1]))
        expect(close, f"{self.name}: the loss is {values[0]:.7g} in float32 and {values[1]:.7g} in float64")

    def chance_comes_from_the_generator(self) -> None:
        loss, results = self.loss(), []
        for noise in (1, 2):
            torch.manual_seed(noise)
            embeddings = leaf(self.embeddings)
            value, _ = copy.deepcopy(loss)(embeddings, self.labels, seeded(7, self.device), None)
            results.append((value.detach(), torch.autograd.grad(value, embeddings)[0]))
        same = all(torch.equal(one, other) for one, other in zip(*results, strict=True))
        expect(
            same,
            f"{self.name}: generators in the same state give different results: all chance must come from it",
        )
        who = f"{self.name} without a generator"
        expect_loss(who, *self.call(who, loss, leaf(self.embeddings), self.labels, None))

    def order_plays_no_part(self) -> None:
        order = torch.randperm(20, generator=torch.Generator().manual_seed(5)).to(self.device)
        loss = self.loss(dtype=torch.float64)
        if self.is_random():
            draws = torch.stack([self.plain_value(loss, seed)[0] for seed in range(DRAWS)])
            permuted = torch.stack([self.plain_value(loss, DRAWS + seed, order)[0] for seed in range(DRAWS)])
            deviation = ((draws.var() + permuted.var()) / DRAWS).sqrt()
            apart, mean = (draws.mean() - permuted.mean()).abs(), draws.mean()
            expect(
                bool(apart <= 6 * deviation + 1e-9 * mean.abs()),
                f"{self.name}: the mean over {DRAWS} draws changes by {apart:g} (standard error {deviation:g}) with "
                f"the order of the rows",
            )
            return
        (value, gradient), (permuted, its) = self.plain_value(loss, 0), self.plain_value(loss, 0, order)
        expect(
            bool((value - permuted).abs() <= 1e-8 * max(1.0, value.abs().item())),
            f"{self.name}: the loss is {value:.9g}, and {permuted:.9g} with the rows in another order",
        )
        difference = (gradient[order] - its).abs().max()
        expect(
            bool(difference <= 1e-6 * max(1.0, gradient.abs().max().item())),
            f"{self.name}: with the rows in another order, gradients of rows change by up to {difference:g}",
        )

    def blocks_of_classes_do_not_show(self) -> None:
        """Of heads that go through the classes in blocks, and see some of them at a time."""
        loss = self.loss(dtype=torch.float64).eval()
        if not isinstance(loss, Head) or isinstance(loss, DenseHead) or self.is_random():
            return
        whole = self.plain_value(loss, 0)
        least, elements = over_classes.LEAST_CLASSES, over_classes.BLOCK_ELEMENTS
        try:
            over_classes.LEAST_CLASSES, over_classes.BLOCK_ELEMENTS = 3, dict.fromkeys(elements, 1)
            parts = self.plain_value(loss, 0)
        finally:
            over_classes.LEAST_CLASSES, over_classes.BLOCK_ELEMENTS = least, elements
        for what, one, other in zip(("loss", "gradient"), whole, parts, strict=True):
            expect(
                torch.allclose(one, other, rtol=1e-8, atol=1e-10),
                f"{self.name}: the {what} is another one with the classes in blocks of three: 'others' and 'cosines' may "
                f"look at each class alone, and must return a number for each; or make it a DenseHead",
            )
        if type(loss).forward is not Head.forward:
            return
        unit_BD, weight = unit(leaf(self.embeddings, torch.float64).detach()), unit(loss.weight.detach())
        own_B = loss.own_cosines(unit_BD, weight[self.labels])
        among_B = loss.cosines(unit_BD, weight).gather(1, self.labels[:, None])[:, 0]
        expect(
            torch.allclose(own_B, among_B, rtol=1e-8, atol=1e-10),
            f"{self.name}: own_cosines says other than cosines of the rows' own classes: override both, or none",
        )

    def num_anchors_of_all_is_none(self) -> None:
        loss, values = self.loss(), []
        for num_anchors in (None, 20):
            value, _ = copy.deepcopy(loss)(self.embeddings, self.labels, seeded(0, self.device), num_anchors)
            values.append(value.item())
        expect(
            values[0] == values[1],
            f"{self.name}: num_anchors = 20 of 20 rows gives {values[1]:g}, and None {values[0]:g}; both mean all",
        )

    def extra_negatives_are_no_positives(self) -> None:
        """To a loss over pairs it is all the same whether extra negatives are of one person or of several."""
        if self.is_head or self.is_random():
            return
        loss, values = self.loss(dtype=torch.float64), []
        for others in ([5] * 8, [0, 3, 5, 5, 6, 6, 6, 7]):
            labels = torch.tensor([1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, *others], device=self.device)
            embeddings = leaf(self.embeddings, torch.float64)
            values.append(copy.deepcopy(loss)(embeddings, labels, seeded(0, self.device), 12)[0].item())
        expect(
            abs(values[0] - values[1]) <= 1e-9 * max(1.0, abs(values[0])),
            f"{self.name}: the loss is {values[0]:.9g} where the extra negatives are of one person, and {values[1]:.9g} "
            f"where they are of several: rows behind num_anchors must be nobody's anchor and nobody's positive",
        )

    def margin_share(self) -> None:
        for share in (0.0, 0.5, 1.0):
            who = f"{self.name} with margin_share {share:g}"
            loss, embeddings = self.loss(), leaf(self.embeddings)
            loss.margin_share = share
            value, stats = self.call(who, loss, embeddings, self.labels, seeded(0, self.device))
            expect_loss(who, value, stats)
            value.backward()
            expect_gradients(who, [("the embeddings", embeddings)])

    def state_round_trip(self) -> None:
        first, second = self.loss(), self.loss(seed=1)
        for step in range(3):
            self.train_step(first, step)
        try:
            second.load_state_dict(through_file(self.name, first.state_dict()))
        except RuntimeError as error:
            raise AssertionError(f"{self.name}: its state does not fit one made anew: {error}") from error
        for step in range(3, 6):
            values = [self.train_step(loss, step) for loss in (first, second)]
            expect(
                values[0] == values[1],
                f"{self.name}: with its state in one made anew, the loss {step - 2} batches on is {values[1]:.9g} "
                f"instead of {values[0]:.9g}: what it remembers must be in parameters or buffers",
            )

    def train_step(self, loss: Loss, step: int) -> float:
        noise = normal(20, self.embedding_dim, seed=10 + step, device=self.device)
        embeddings = leaf(self.embeddings + noise)
        value, _ = loss(embeddings, self.labels, seeded(step, self.device), None)
        loss.zero_grad()
        value.backward()
        with torch.no_grad():
            for parameter in loss.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=0.01)
        return value.item()

    def gradcheck(self) -> None:
        loss, labels = self.loss(dtype=torch.float64), self.labels[:8]

        def value(embeddings: Tensor) -> Tensor:
            scalar: Tensor = copy.deepcopy(loss)(embeddings, labels, seeded(0, self.device), None)[0]
            return scalar

        try:
            torch.autograd.gradcheck(value, leaf(self.embeddings[:8], torch.float64))
        except RuntimeError as error:
            raise AssertionError(
                f"{self.name}: the gradient is not that of finite differences: {error}"
            ) from error


def leaf(rows: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A copy that gradients are gathered for."""
    return rows.detach().to(dtype, copy=True).requires_grad_()
