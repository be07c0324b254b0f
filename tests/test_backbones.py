from __future__ import annotations

import pytest
import torch
from torch import nn

from facetrain.errors import UserError
from facetrain.train.backbones.iresnet import ACTIVATIONS, IResNet, iresnet_small
from facetrain.train.backbones.nn4 import Inception, L2Pool, nn4_small2

BACKBONES = [nn4_small2, iresnet_small]


def num_parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def random_images(count: int, size_px: int) -> torch.Tensor:
    return torch.rand(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_nn4_small2_has_the_published_number_of_parameters() -> None:
    assert num_parameters(nn4_small2(embedding_dim=128)) == 3_733_968
    assert num_parameters(nn4_small2(embedding_dim=128, size_px=112)) == 3_733_968


@pytest.mark.parametrize("make", BACKBONES)
@pytest.mark.parametrize(("size_px", "embedding_dim"), [(96, 128), (112, 64), (75, 32)])
def test_shapes(make, size_px: int, embedding_dim: int) -> None:
    embeddings = make(embedding_dim=embedding_dim, size_px=size_px).eval()(random_images(2, size_px))
    assert embeddings.shape == (2, embedding_dim)
    assert embeddings.dtype == torch.float32


@pytest.mark.parametrize("make", BACKBONES)
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_backward_reaches_every_parameter(make, autocast: bool) -> None:
    torch.manual_seed(0)
    net = make().train().to(memory_format=torch.channels_last)
    images = random_images(4, 96).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        embeddings = net(images)
    embeddings.float().square().sum(1).mean().add(embeddings.float()[0].sum()).backward()
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("make", BACKBONES)
def test_embeddings_are_raw_and_differ(make) -> None:
    torch.manual_seed(0)
    embeddings = make().train()(random_images(4, 96))
    norms = embeddings.norm(dim=1)
    assert not torch.allclose(norms, torch.ones_like(norms), atol=1e-3)
    assert (embeddings[0] - embeddings[1]).norm() > 1e-3


@pytest.mark.parametrize("make", BACKBONES)
def test_weights_survive_a_round_trip(make) -> None:
    torch.manual_seed(0)
    first, second = make(), make()
    images = random_images(4, 96)
    first.train()(images)  # moves the running statistics
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.eval()(images), second.eval()(images))


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


@pytest.mark.parametrize(("depths", "published"), [((2, 2, 2, 2), 24_025_600), ((3, 4, 6, 3), 34_139_328)])
def test_iresnet_18_and_34_have_the_published_number_of_parameters(depths, published: int) -> None:
    with torch.device("meta"):
        net = IResNet(depths, (64, 64, 128, 256, 512), embedding_dim=512, size_px=112)
    assert sum(p.numel() for p in net.parameters()) == published


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


def test_iresnet_refuses_what_does_not_fit() -> None:
    with pytest.raises(UserError, match="one width more"):
        IResNet((2, 2), (16, 32))
    with pytest.raises(UserError, match="activation 'tanh'"):
        IResNet((2,), (16, 32), activation="tanh")


def test_images_too_small_for_nn4_are_refused() -> None:
    with pytest.raises(UserError, match="at least 65 px"):
        nn4_small2(size_px=64)
    assert nn4_small2(size_px=65).eval()(random_images(1, 65)).shape == (1, 128)
