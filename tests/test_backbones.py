from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from facetrain.errors import UserError
from facetrain.plugins import BUILT_IN, resolve
from facetrain.train.backbones.gem import GeM
from facetrain.train.backbones.iresnet import ACTIVATIONS, IResNet
from facetrain.train.backbones.nn4 import Inception, L2Pool, nn4_small2
from facetrain.train.backbones.prelu import PReLU

SMALLEST_PX = {
    "iresnet.small": 24,
    **dict.fromkeys(("iresnet18", "iresnet34", "iresnet50", "iresnet100", "mobilefacenet"), 16),
    "inception-resnet-v1": 75,
    **dict.fromkeys(("nn4.small2", "nn4.small1", "nn4", "nn2"), 65),
}
# Of insightface, OpenFace and facenet-pytorch; of mobilefacenet below.
PUBLISHED = [
    ("nn4.small2", 128, 3_733_968),
    ("nn4.small1", 128, 5_579_520),
    ("nn4", 128, 6_959_088),
    ("nn2", 128, 7_472_144),
    ("iresnet18", 512, 24_025_600),
    ("iresnet34", 512, 34_139_328),
    ("iresnet50", 512, 43_590_848),
    ("iresnet100", 512, 65_156_160),
    ("inception-resnet-v1", 512, 23_482_624),
]


def random_images(count: int, size_px: int) -> torch.Tensor:
    return torch.rand(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(0)) * 2 - 1


def on_meta(name: str, embedding_dim: int, size_px: int) -> nn.Module:
    with torch.device("meta"):
        return resolve("backbones", name)(embedding_dim=embedding_dim, size_px=size_px)


def num_parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# -- every one -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "embedding_dim", "published"), PUBLISHED)
def test_the_published_number_of_parameters(name: str, embedding_dim: int, published: int) -> None:
    assert num_parameters(on_meta(name, embedding_dim, 112)) == published


def test_mobilefacenet_has_the_numbers_of_parameters_of_paper_and_zoo_at_their_dimensions() -> None:
    for embedding_dim, millions in ((128, 0.99), (512, 1.19)):
        net = on_meta("mobilefacenet", embedding_dim, 112)
        slopes = sum(module.weight.numel() for module in net.modules() if isinstance(module, PReLU))
        assert (num_parameters(net) - slopes) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("size_px", [96, 112])
@pytest.mark.parametrize("name", BUILT_IN["backbones"])
def test_the_contract(name: str, size_px: int) -> None:
    torch.manual_seed(0)
    net = resolve("backbones", name)(embedding_dim=32, size_px=size_px).to(memory_format=torch.channels_last)
    images = random_images(3, size_px).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=size_px == 112):
        embeddings = net.train()(images)
    assert embeddings.shape == (3, 32)
    weights = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    (embeddings.float() * weights).sum().backward()
    for parameter_name, parameter in net.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert torch.isfinite(parameter.grad).all(), parameter_name

    net.eval()
    with torch.no_grad():
        embeddings = net(images)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(net(images)).all()
    assert embeddings.dtype == torch.float32
    assert torch.isfinite(embeddings).all()
    norms = embeddings.norm(dim=1)
    assert not torch.allclose(norms, torch.ones_like(norms), atol=1e-3), "raw, not normalised"
    assert not torch.equal(embeddings[0], embeddings[1])


@pytest.mark.parametrize("name", BUILT_IN["backbones"])
def test_the_smallest_images(name: str) -> None:
    smallest_px = SMALLEST_PX[name]
    net = on_meta(name, 8, smallest_px).train()
    images = torch.empty(2, 3, smallest_px, smallest_px, device="meta")
    assert net(images).shape == (2, 8)
    with pytest.raises(UserError, match=f"^{name} needs images of at least {smallest_px} px, not"):
        resolve("backbones", name)(size_px=smallest_px - 1)


@pytest.mark.parametrize("name", BUILT_IN["backbones"])
@pytest.mark.parametrize("size_px", [97, 160, 224])
def test_other_sizes(name: str, size_px: int) -> None:
    assert on_meta(name, 8, size_px)(torch.empty(2, 3, size_px, size_px, device="meta")).shape == (2, 8)


@pytest.mark.parametrize("name", ["iresnet.small", "mobilefacenet", "nn4.small2"])
def test_weights_survive_a_round_trip(name: str) -> None:
    torch.manual_seed(0)
    first, second = (resolve("backbones", name)(size_px=96) for _ in range(2))
    images = random_images(4, 96)
    first.train()(images)  # moves the running statistics
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.eval()(images), second.eval()(images))


# -- their parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 6, 7)])
def test_prelu_is_that_of_torch(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    ours, theirs = PReLU(3).to(dtype), nn.PReLU(3).to(dtype)
    with torch.no_grad():
        for module in (ours, theirs):
            module.weight.copy_(torch.tensor([0.25, -0.5, 1.5]))
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=generator).to(dtype)
    values[0] = 0.0
    grad = torch.randn(shape, generator=generator).to(dtype)
    results = []
    for module in (ours, theirs):
        x = values.clone().requires_grad_()
        out = module(x)
        out.backward(grad)
        results.append((out, x.grad, module.weight.grad))
    for mine, reference in zip(*results, strict=True):
        assert mine.dtype == reference.dtype == dtype
        torch.testing.assert_close(mine, reference)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert list(ours.state_dict()) == ["weight"]


def test_prelu_with_one_weight_for_all_channels() -> None:
    ours, x = PReLU(), random_images(2, 4)
    ours(x).sum().backward()
    assert ours.weight.grad.item() == pytest.approx(x.clamp(max=0).sum().item(), rel=1e-5)


def test_prelu_is_differentiable_twice() -> None:
    prelu = PReLU(2).double()
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(prelu, x.requires_grad_())
    assert torch.autograd.gradgradcheck(prelu, x)


def test_gem_is_its_formula() -> None:
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.2
    for p in (1.0, 3.0, 7.5):
        gem = GeM(p).double()
        expected = x.clamp(min=1e-6).pow(p).mean((2, 3)).pow(1 / p)
        torch.testing.assert_close(gem(x), expected)
    assert torch.autograd.gradcheck(GeM(3.0).double(), x.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda power: torch.func.functional_call(GeM(), {"p": power}, (x,)), gem.p
    )


@pytest.mark.parametrize("p", [1.0, 3.0, 50.0])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e4])
def test_gem_stays_finite(p: float, scale: float) -> None:
    gem = GeM(p)
    x = (random_images(2, 6) * scale).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        pooled = gem(x.bfloat16())
    assert pooled.dtype == torch.float32
    pooled.sum().backward()
    for tensor in (pooled, x.grad, gem.p.grad):
        assert torch.isfinite(tensor).all()


def test_l2_pool_values_and_gradient_at_zero() -> None:
    pool = L2Pool(3)
    images = torch.zeros(1, 2, 6, 6)
    images[0, 0, :3, :3] = 2.0
    images.requires_grad_()
    pooled = pool(images)
    assert pooled.shape == (1, 2, 2, 2)
    assert pooled[0, 0, 0, 0].item() == pytest.approx(6.0)  # √(9 · 2²)
    assert pooled.sum().item() == pytest.approx(6.0, abs=1e-4)
    pooled.sum().backward()
    assert torch.isfinite(images.grad).all()
    assert images.grad[0, 0, 0, 0].item() == pytest.approx(1 / 3)  # x / √Σx²
    assert images.grad[0, 1].abs().sum().item() == 0


def test_l2_pool_is_differentiable_to_machine_precision() -> None:
    images = torch.rand(
        1, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    assert torch.autograd.gradcheck(L2Pool(3), images)


def test_inception_pads_pooling_branches_around_their_centre() -> None:
    block = Inception(4, [(3, 2, 8)], stride=1, pool=nn.MaxPool2d(3, 2), pool_channels=None, point_channels=6)
    images = torch.rand(2, 4, 12, 12, generator=torch.Generator().manual_seed(0)) + 1
    out = block(images)
    assert out.shape == (2, 8 + 4 + 6, 12, 12) == (2, block.out_channels, 12, 12)
    pooled = out[:, 8:12]
    assert torch.equal(pooled[:, :, 3:8, 3:8], nn.functional.max_pool2d(images, 3, 2))
    assert pooled[:, :, :3].abs().sum() == 0
    assert pooled[:, :, 8:].abs().sum() == 0


def test_the_blocks_of_the_openface_networks_are_named_as_published() -> None:
    names = {
        name: [block.removeprefix("inception_") for block, _ in on_meta(name, 8, 96).named_children()][1:-1]
        for name in ("nn4.small2", "nn4.small1", "nn4", "nn2")
    }
    full = ["3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b"]
    assert names["nn4"] == names["nn2"] == full
    assert names["nn4.small1"] == [name for name in full if name not in ("4c", "4d")]
    assert names["nn4.small2"] == [name for name in full if name not in ("4b", "4c", "4d")]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("stem_stride", "stem_kernel_px", "size_px"), [(1, 3, 33), (2, 3, 36), (3, 5, 32)])
def test_iresnet_is_general(activation: str, stem_stride: int, stem_kernel_px: int, size_px: int) -> None:
    net = IResNet(
        (1, 2),
        (8, 8, 16),
        embedding_dim=5,
        size_px=size_px,
        stem_stride=stem_stride,
        stem_kernel_px=stem_kernel_px,
        activation=activation,
        dropout=0.1,
    )
    assert net.train()(random_images(3, size_px)).shape == (3, 5)
    last_px = math.ceil(size_px / (4 * stem_stride))
    assert net.head[3].in_features == 16 * last_px**2


def test_iresnet_refuses_what_does_not_fit() -> None:
    with pytest.raises(UserError, match="one width more"):
        IResNet((2, 2), (16, 32))
    with pytest.raises(UserError, match="activation 'tanh'"):
        IResNet((2,), (16, 32), activation="tanh")
    with pytest.raises(UserError, match="activation 'tanh'"):
        resolve("backbones", "mobilefacenet")(activation="tanh")


def test_images_too_small_for_nn4_are_refused() -> None:
    with pytest.raises(UserError, match="at least 65 px"):
        nn4_small2(size_px=64)
    assert nn4_small2(size_px=65).eval()(random_images(1, 65)).shape == (1, 128)
