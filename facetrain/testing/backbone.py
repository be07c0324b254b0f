"""The contract of a backbone, checked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from safetensors.torch import save
from torch import Tensor, nn

from facetrain.testing.expect import expect, expect_gradients, made, name_of, normal, through_file

BATCH = 3


def check_backbone(
    make_backbone: Callable[..., nn.Module],
    *,
    sizes_px: Sequence[int] = (96, 112),
    embedding_dim: int = 32,
    device: torch.device | str = "cpu",
) -> None:
    """Hold a network to the contract of backbones: images float32 [n, 3, size, size] in, raw float32 [n, D] out.

    ``make_backbone`` is called as facetrain calls it, with ``embedding_dim`` and ``size_px``. Raises AssertionError,
    which says at which size what went wrong.
    """
    for size_px in sizes_px:
        check = _BackboneCheck(make_backbone, size_px, embedding_dim, torch.device(device))
        check.embeddings()
        check.backward()
        if size_px == sizes_px[0]:
            check.rows_are_independent()
            check.channels_last()
            check.bf16()
            check.state_round_trip()
            check.weights_come_from_the_seed()
            check.can_be_made_without_memory()


class _BackboneCheck:
    def __init__(
        self, make_backbone: Callable[..., nn.Module], size_px: int, embedding_dim: int, device: torch.device
    ) -> None:
        self.make_backbone, self.size_px, self.embedding_dim, self.device = (
            make_backbone,
            size_px,
            embedding_dim,
            device,
        )
        self.who = f"{name_of(make_backbone)} at {size_px} px"
        self.images = normal(BATCH, 3, size_px, size_px, seed=1, device=device)
        self.fresh = self.make(seed=0)
        self.network = copy.deepcopy(self.fresh)
        # With the running statistics that it begins with, a deep network may overflow in eval mode, or embed all images
        # alike: one pass in train mode is to replace them.
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0

    def make(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        network = made(self.make_backbone, embedding_dim=self.embedding_dim, size_px=self.size_px)
        expect(isinstance(network, nn.Module), f"{self.who}: it makes {type(network).__name__}, not a module")
        return network.to(self.device)

    @torch.no_grad()
    def embed(self, images: Tensor, network: nn.Module | None = None) -> Tensor:
        embeddings: Tensor = (self.network if network is None else network).eval()(images)
        return embeddings

    def embeddings(self) -> None:
        for mode, images in (("train", self.images), ("eval", self.images), ("eval", self.images[:1])):
            who = f"{self.who}, {mode}, a batch of {len(images)}"
            try:
                with torch.no_grad():
                    found = self.network.train(mode == "train")(images)
            except Exception as error:
                raise AssertionError(f"{who}: {type(error).__name__}: {error}") from error
            expect(isinstance(found, Tensor), f"{who}: it returns {type(found).__name__}, not a tensor")
            shape, dim = list(found.shape), self.embedding_dim
            expect(shape == [len(images), dim], f"{who}: it returns {shape}, not {[len(images), dim]}")
            expect(found.dtype == torch.float32, f"{who}: it returns {found.dtype} for images of float32")
            expect(bool(found.isfinite().all()), f"{who}: an embedding is not finite")
        norms = self.embed(self.images).norm(dim=1)
        expect(
            bool(((norms - norms[0]).abs() > 1e-5 * norms[0]).any()),
            f"{self.who}: all embeddings have the norm {norms[0]:g}; they must be raw: losses normalise them",
        )

    def rows_are_independent(self) -> None:
        together = self.embed(self.images)
        apart = together.std(dim=0).mean()
        expect(bool(apart > 0), f"{self.who}: different images get the same embedding")
        others = torch.cat([self.images[:1], 3 * self.images[1:].flip(0)])
        for company, position in ((self.images[:1], 0), (self.images[1:2], 1), (others, 0)):
            difference = (self.embed(company)[0] - together[position]).abs().max()
            expect(
                bool(difference <= 1e-2 * apart),
                f"{self.who}: in eval mode an embedding changes by {difference:g} with the other images of the "
                f"batch (images are {apart:g} apart)",
            )

    def channels_last(self) -> None:
        """facetrain trains in this memory format."""
        network = copy.deepcopy(self.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        plain = self.embed(self.images)
        for images in (self.images, self.images.contiguous(memory_format=torch.channels_last)):
            try:
                difference = (self.embed(images, network) - plain).abs().max()
            except Exception as error:
                raise AssertionError(
                    f"{self.who} in channels_last: {type(error).__name__}: {error}"
                ) from error
            expect(
                bool(difference <= 1e-2 * plain.std(dim=0).mean()),
                f"{self.who}: embeddings change by {difference:g} where the memory format is channels_last",
            )

    def bf16(self) -> None:
        with torch.autocast(self.device.type, torch.bfloat16):
            found = self.embed(self.images)
        expect(bool(found.isfinite().all()), f"{self.who}: under bf16 autocast an embedding is not finite")

    def backward(self) -> None:
        network = copy.deepcopy(self.network).train()
        trained = [(f"'{name}'", p) for name, p in network.named_parameters() if p.requires_grad]
        expect(bool(trained), f"{self.who}: it has nothing to train")
        embeddings = network(self.images)
        # No plain sum: behind a batch-norm its gradient is zero.
        (embeddings * normal(*embeddings.shape, seed=2, device=self.device)).sum().backward()
        expect_gradients(self.who, trained)

    def state_round_trip(self) -> None:
        trained, other = (
            self.network,
            self.make(seed=1),
        )  # its running statistics are not those of a fresh one
        state = through_file(self.who, trained.state_dict())
        try:
            save({name: tensor.cpu().contiguous() for name, tensor in self.fresh.state_dict().items()})
        except Exception as error:
            raise AssertionError(
                f"{self.who}: its weights cannot be written as safetensors: {error}"
            ) from error
        try:
            other.load_state_dict(state)
        except RuntimeError as error:
            raise AssertionError(f"{self.who}: its state does not fit one made anew: {error}") from error
        expect(
            torch.equal(self.embed(self.images, trained), self.embed(self.images, other)),
            f"{self.who}: with its state in one made anew, embeddings are others: what it has learned must be in "
            f"parameters or buffers",
        )

    def weights_come_from_the_seed(self) -> None:
        one, other = self.fresh.state_dict(), self.make(seed=0).state_dict()
        same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        expect(same, f"{self.who}: made twice from the same torch.manual_seed, its weights differ")

    def can_be_made_without_memory(self) -> None:
        """facetrain makes one so, to have its arguments checked before data are read."""
        try:
            with torch.device("meta"):
                made(self.make_backbone, embedding_dim=self.embedding_dim)
        except AssertionError as error:
            raise AssertionError(
                f"{self.who}: with embedding_dim alone, on torch's meta device, where tensors have no values: {error}"
            ) from error
