"""torchvision's and timm's architectures as backbones. Both libraries are optional."""

from __future__ import annotations

import copy
import importlib.util
import sys

import pytest
import torch
from torch import nn

from facetrain.errors import UserError
from facetrain.image_spec import ImageSpec
from facetrain.plugins import check_arguments, make, resolve
from facetrain.train.activation_checkpointing import checkpoint_activations
from facetrain.train.backbones import zoo
from facetrain.train.backbones.gem import GeM

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None,
    reason="needs the extra [zoo]",
)
NAMES = [
    "torchvision/resnet18",
    "torchvision/mobilenet_v3_small",
    "torchvision/efficientnet_b0",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/densenet121",
    "torchvision/swin_t",
    "timm/resnet18",
    "timm/vit_tiny_patch16_224",
    "timm/convnext_atto",
    "timm/mobilenetv3_small_050",
    "timm/swin_tiny_patch4_window7_224",
]


def random_images(count: int, size_px: int) -> torch.Tensor:
    return torch.rand(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(0)) * 2 - 1


def check_contract(net: nn.Module, size_px: int, embedding_dim: int) -> None:
    images = random_images(3, size_px)
    embeddings = net.train()(images)
    assert embeddings.shape == (3, embedding_dim)
    weights = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(1))
    (embeddings * weights).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    with torch.no_grad():
        embeddings = net.eval()(images)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(net(images)).all()
    assert embeddings.dtype == torch.float32
    assert torch.isfinite(embeddings).all()
    assert not torch.equal(embeddings[0], embeddings[1])


@pytest.mark.parametrize(("size_px", "head"), [(96, "gem"), (112, "flatten")])
@pytest.mark.parametrize("name", NAMES)
def test_the_contract(name: str, size_px: int, head: str) -> None:
    torch.manual_seed(0)
    net = resolve("backbones", name)(embedding_dim=24, size_px=size_px, head=head)
    check_contract(net, size_px, 24)
    tokens = "vit" in name
    assert isinstance(net.pool, GeM if head == "gem" and not tokens else nn.Flatten)


@pytest.mark.parametrize("size_px", [96, 112])
def test_a_vision_transformer_of_torchvision(size_px: int) -> None:
    torch.manual_seed(0)
    net = make("backbones", "torchvision/vit_b_16", {"dropout": 0.0}, embedding_dim=8, size_px=size_px)
    assert net.trunk.encoder.pos_embedding.shape[1] == 1 + (size_px // 16) ** 2
    net.trunk.encoder.layers = net.trunk.encoder.layers[:1]  # all twelve are alike, and take seconds
    check_contract(net, size_px, 8)


def trunk_of(name: str, **options: object) -> tuple[nn.Module, torch.Tensor]:
    """A torchvision network up to its pooling, and what its own pooling layer is given for the same image."""
    torch.manual_seed(0)
    model = zoo._library("torchvision").models.get_model(name, weights=None, **options).eval()
    given: list[torch.Tensor] = []
    layer = getattr(model, "avgpool", None) or getattr(model, "fc", None) or model.classifier
    layer.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    with torch.no_grad():
        model(random_images(1, 112))
    return zoo._up_to_pooling(model), given[0]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf", "swin_t",
                                  "shufflenet_v2_x0_5", "mnasnet0_5", "mobilenet_v2", "squeezenet1_1", "googlenet",
                                  "densenet121"])  # fmt: skip
def test_a_torchvision_network_is_cut_off_right_in_front_of_its_pooling(name: str) -> None:
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    trunk, given = trunk_of(name, **options)
    with torch.no_grad():
        last_map = trunk(random_images(1, 112))
    assert last_map.ndim == 4
    torch.testing.assert_close(last_map.mean((2, 3)) if given.ndim == 2 else last_map, given)


def test_googlenet_can_be_made() -> None:
    net = resolve("backbones", "torchvision/googlenet")(embedding_dim=8, size_px=96)
    assert not any("aux" in name for name, _ in net.named_parameters())
    assert net.eval()(random_images(1, 96)).shape == (1, 8)


def test_images_reach_the_network_on_the_scale_of_its_published_weights() -> None:
    spec, pixels = ImageSpec(), torch.tensor([0.0, 127.5, 255.0])
    fed = ((pixels - spec.subtract) / spec.divide).view(1, 1, 3, 1).expand(1, 3, 3, 1)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    scaled = resolve("backbones", "torchvision/resnet18")(8, 64).rescale(fed)
    for channel in range(3):
        expected = (pixels / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(scaled[0, channel, :, 0], expected)
    # timm's vision transformers were trained on values from -1 to 1
    scaled = resolve("backbones", "timm/vit_tiny_patch16_224")(8, 64).rescale(fed)
    torch.testing.assert_close(scaled[0, 0, :, 0], torch.tensor([-1.0, 0.0, 1.0]))


def test_all_tokens_side_by_side_or_what_the_network_makes_of_them() -> None:
    args = {"depth": 1, "embed_dim": 12, "num_heads": 2}
    widths = {
        head: resolve("backbones", "timm/vit_tiny_patch16_224")(8, 96, head=head, **args).linear.in_features
        for head in zoo.HEADS
    }
    assert widths == {"gem": 12, "flatten": 12 * (1 + 36)}


def test_options_go_to_the_architecture() -> None:
    net = make(
        "backbones", "torchvision/mobilenet_v3_small", {"reduced_tail": True}, embedding_dim=8, size_px=96
    )
    assert net.linear.in_features == 576 // 2
    arguments = {"output_stride": 8, "head": "flatten"}
    net = make("backbones", "timm/resnet18", arguments, embedding_dim=8, size_px=96)
    assert net.linear.in_features == 512 * 12**2


def test_weights_survive_a_round_trip_and_hold_no_more_than_they_must() -> None:
    torch.manual_seed(0)
    make_one = resolve("backbones", "torchvision/mobilenet_v3_small")
    first, second = make_one(16, 64), make_one(16, 64)
    images = random_images(2, 64)
    first.train()(images)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.eval()(images), second.eval()(images))
    assert {name.split(".")[0] for name in first.state_dict()} == {"trunk", "pool", "linear", "norm"}


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("torchvision/densenet121", 58), ("torchvision/googlenet", 9), ("timm/convnext_atto", 12)],
)
def test_activations_can_be_checkpointed(name: str, blocks: int) -> None:
    torch.manual_seed(0)
    plain = resolve("backbones", name)(embedding_dim=8, size_px=64).train()
    checkpointed = copy.deepcopy(plain)
    assert checkpoint_activations(checkpointed) == blocks
    images = random_images(2, 64)
    for net in (plain, checkpointed):
        torch.manual_seed(1)
        net(images).square().sum().backward()
    for (key, ours), theirs in zip(checkpointed.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), key
    for key, value in plain.state_dict().items():
        assert torch.equal(checkpointed.state_dict()[key], value), key


def test_arguments_can_be_checked_before_any_size_is_known() -> None:
    for name in ("torchvision/regnet_y_400mf", "timm/vit_tiny_patch16_224"):
        with torch.device("meta"):
            make("backbones", name, {"pretrained": True, "head": "flatten"}, embedding_dim=8)  # loads nothing


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "torchvision/resnet51",
            "torchvision has no architecture 'resnet51': did you mean torchvision/resnet50 or",
        ),
        ("torchvision/fasterrcnn_resnet50_fpn", "torchvision has no architecture"),
        (
            "timm/vit_tiny_patch15",
            "timm has no architecture 'vit_tiny_patch15': did you mean timm/vit_tiny_patch16_",
        ),
        ("timm/@", "timm has no architecture '@': timm.list_models\\(\\) in Python lists them"),
    ],
)
def test_unknown_architectures(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        resolve("backbones", name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "size_px", "arguments", "says"),
    [
        ("torchvision/vit_b_16", 100, {}, "torchvision/vit_b_16 cannot be built for images of 100 px .*indivisible"),
        ("timm/vit_tiny_patch16_224", 100, {}, "vit_tiny_patch16_224 cannot be built for images of 100 px .* patches are of 16 px"),
        ("torchvision/resnet18", 96, {"depth": 3}, "cannot be built .*unexpected keyword argument 'depth'"),
        ("timm/resnet18", 96, {"dept": 3}, "cannot be built .*unexpected keyword argument 'dept'"),
        ("torchvision/resnet18", 96, {"head": "max"}, "unknown head 'max': one of gem, flatten"),
    ],
)  # fmt: skip
def test_what_an_architecture_does_not_take(name: str, size_px: int, arguments: dict, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        make("backbones", name, arguments, embedding_dim=8, size_px=size_px)
    assert "\n" not in str(error.value)


def test_what_we_set_ourselves_is_no_argument() -> None:
    with pytest.raises(UserError, match="'size_px' follows from the data"):
        check_arguments(resolve("backbones", "timm/resnet18"), "backbone 'timm/resnet18'", {"size_px": 3})


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        zoo.importlib.util,
        "find_spec",
        lambda name: None if name in ("timm", "torchvision") else find_spec(name),
    )


@pytest.mark.usefixtures("not_installed")
@pytest.mark.parametrize("name", ["timm/resnet18", "torchvision/resnet18"])
def test_a_library_that_is_not_installed(name: str) -> None:
    with pytest.raises(UserError, match=r"is not installed: pip install 'facetrain\[zoo\]'"):
        resolve("backbones", name)


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    zoo._library("torchvision")
    monkeypatch.setattr(sys.modules["torchvision.models._api"], "load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"torchvision/resnet18 cannot be built .*no route to host"):
        make("backbones", "torchvision/resnet18", {"pretrained": True}, embedding_dim=8, size_px=64)
