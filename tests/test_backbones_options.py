"""What can be asked of every backbone: activation checkpointing, torch.compile."""

from __future__ import annotations

import copy
import shutil
from collections import Counter

import pytest
import torch
from torch import nn

from facetrain.errors import UserError
from facetrain.plugins import BUILT_IN, resolve
from facetrain.train.activation_checkpointing import checkpoint_activations, repeated_blocks
from facetrain.train.backbones.iresnet import IResNet

BLOCKS = {
    "iresnet.small": {"IRBlock": 6},
    "iresnet18": {"IRBlock": 8},
    "iresnet34": {"IRBlock": 16},
    "iresnet50": {"IRBlock": 24},
    "iresnet100": {"IRBlock": 49},
    "mobilefacenet": {"Bottleneck": 15},
    "inception-resnet-v1": {"InceptionResidual": 21, "Reduction": 2},
    "nn4.small2": {"Inception": 7},
    "nn4.small1": {"Inception": 8},
    "nn4": {"Inception": 10},
    "nn2": {"Inception": 10},
}


def small() -> IResNet:
    torch.manual_seed(0)
    return IResNet((3,), (4, 4), 6, 16)


def step(net: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Embeddings, and the gradients by name, of one step whose chance is fixed."""
    torch.manual_seed(1)
    embeddings = net(images)
    weights = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(2))
    (embeddings.float().square() * weights).sum().backward()
    grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return embeddings.detach(), grads


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(theirs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


# -- activation checkpointing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN["backbones"])
def test_the_blocks_that_are_computed_again(name: str) -> None:
    with torch.device("meta"):
        net = resolve("backbones", name)()
    assert Counter(type(block).__name__ for block in repeated_blocks(net)) == BLOCKS[name]


@pytest.mark.parametrize("name", ["iresnet.small", "mobilefacenet", "inception-resnet-v1", "nn4.small2"])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_checkpointing_changes_no_value(name: str, autocast: bool) -> None:
    torch.manual_seed(0)
    plain = resolve("backbones", name)(embedding_dim=16, size_px=96).train()
    checkpointed = copy.deepcopy(plain)
    assert checkpoint_activations(checkpointed) == sum(BLOCKS[name].values())
    images = torch.randn(3, 3, 96, 96)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for _ in range(2):  # the second with running statistics that the first has moved
            expected, grads = step(plain, images)
            found, our_grads = step(checkpointed, images)
            assert torch.equal(found, expected)
            assert_same(our_grads, grads)
            assert_same(dict(checkpointed.state_dict()), dict(plain.state_dict()))
    counts = [
        value for key, value in checkpointed.state_dict().items() if key.endswith("num_batches_tracked")
    ]
    assert counts and all(count == 2 for count in counts)
    images = images[:2]
    assert torch.equal(checkpointed.eval()(images), plain.eval()(images))
    with torch.no_grad():
        assert torch.equal(checkpointed(images), plain(images))


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(torch.dropout(self.first(x), 0.5, self.training))


def test_what_was_dropped_is_dropped_again() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(Dropping(), Dropping())
    checkpointed = copy.deepcopy(plain)
    assert checkpoint_activations(checkpointed) == 2
    x = torch.randn(5, 8)
    (expected, grads), (found, our_grads) = step(plain, x), step(checkpointed, x)
    assert torch.equal(found, expected)
    assert_same(our_grads, grads)


def test_activations_are_dropped() -> None:
    held = []
    for checkpointing in (False, True):
        net = IResNet((6,), (8, 8), 4, 16)
        if checkpointing:
            checkpoint_activations(net)
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        images = torch.randn(4, 3, 16, 16)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            net(images)
        held.append(sum(sizes.values()))
    assert held[1] < 0.5 * held[0]


def test_a_checkpointed_network_is_copied_and_loaded_like_any() -> None:
    net = small()
    checkpoint_activations(net)
    assert checkpoint_activations(net) == 3, "asking twice is asking once"
    twin = copy.deepcopy(net)
    images = torch.randn(2, 3, 16, 16)
    (expected, grads), (found, our_grads) = step(net, images), step(twin, images)
    assert torch.equal(found, expected)
    assert_same(our_grads, grads)
    plain = small()
    plain.load_state_dict(net.state_dict())
    net.load_state_dict(plain.state_dict())
    assert torch.equal(plain.eval()(images), net.eval()(images))


def test_a_network_without_blocks() -> None:
    with pytest.raises(UserError, match="Sequential has no repeated blocks"):
        checkpoint_activations(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))


# -- torch.compile ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings(
    r"ignore:`torch\.jit\.script_method` is deprecated:DeprecationWarning"
)  # torch's own code
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("checkpointing", "backend"), [(False, "inductor"), (True, "aot_eager")], ids=["plain", "checkpointed"]
)  # g++ takes a minute for the first, and has nothing to do with checkpointing
def test_a_compiled_network_agrees(checkpointing: bool, backend: str) -> None:
    torch.manual_seed(0)
    plain = IResNet((2 if checkpointing else 1,), (4, 4), 6, 8)
    compiled = copy.deepcopy(plain)
    if checkpointing:
        assert checkpoint_activations(compiled) == 2
    compiled.compile(backend=backend)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    (expected, grads), (found, our_grads) = step(plain, images), step(compiled, images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert list(our_grads) == list(grads)
    for name, grad in grads.items():
        torch.testing.assert_close(our_grads[name], grad, rtol=1e-3, atol=1e-3, msg=name)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-4, atol=1e-4, msg=name)

    plain.load_state_dict(compiled.state_dict())  # both ways
    compiled.load_state_dict(plain.state_dict())
    assert copy.deepcopy(compiled)._compiled_call_impl is None, "a copy is an ordinary network"
    with torch.inference_mode():  # as evaluation runs it: compiled once more
        torch.testing.assert_close(compiled.eval()(images), plain.eval()(images), rtol=1e-4, atol=1e-5)
