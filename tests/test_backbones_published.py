"""The layers of the networks, in order, against tables of what was published: counts of parameters do not see them all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from facetrain.plugins import make
from facetrain.train.backbones.inception_resnet import InceptionResidual
from facetrain.train.backbones.iresnet import IRBlock
from facetrain.train.backbones.mobilefacenet import Bottleneck
from facetrain.train.backbones.nn4 import Inception, L2Pool


def layers(module: nn.Module) -> list[str]:
    """Kind, channels, kernel, stride and padding of each layer, in order."""
    return [line for leaf in module.modules() if not list(leaf.children()) and (line := _line(leaf))]


def _line(leaf: nn.Module) -> str:
    match leaf:
        case nn.Conv2d():
            kernel = "×".join(str(k) for k in dict.fromkeys(leaf.kernel_size))
            depthwise = " depthwise" if leaf.groups == leaf.in_channels == leaf.out_channels else ""
            bias = "" if leaf.bias is None else " bias"
            assert leaf.groups == 1 or depthwise
            assert leaf.dilation == (1, 1)
            return (
                f"conv {leaf.out_channels} {kernel}/{leaf.stride[0]} pad {max(leaf.padding)}{depthwise}{bias}"
            )
        case nn.BatchNorm2d() | nn.BatchNorm1d():
            assert leaf.affine
            assert leaf.track_running_stats
            return f"bn {leaf.eps:g}"
        case nn.MaxPool2d():
            return f"max {leaf.kernel_size}/{leaf.stride} pad {leaf.padding}"
        case L2Pool():
            return f"l2 {leaf.kernel_px}"
        case nn.LocalResponseNorm():
            return f"lrn {leaf.size} {leaf.alpha:g} {leaf.beta:g} {leaf.k:g}"
        case nn.Identity():
            return ""
    return type(leaf).__name__.lower()


def backbone(name: str) -> nn.Module:
    return make("backbones", name, {}, embedding_dim=128, size_px=96).eval()


# -- iresnet, as insightface has it --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "depths"),
    [
        ("iresnet18", (2, 2, 2, 2)),
        ("iresnet34", (3, 4, 6, 3)),
        ("iresnet50", (3, 4, 14, 3)),
        ("iresnet100", (3, 13, 30, 3)),
    ],
)
def test_iresnet(name: str, depths: tuple[int, ...]) -> None:
    network = backbone(name)
    assert layers(network.stem) == ["conv 64 3/1 pad 1", "bn 1e-05", "prelu"]
    blocks = [block for block in network.modules() if isinstance(block, IRBlock)]
    expected = [
        (width, 2 if first else 1)
        for width, depth in zip((64, 128, 256, 512), depths, strict=True)
        for first in [True] + [False] * (depth - 1)
    ]
    assert len(blocks) == len(expected)
    for block, (width, stride) in zip(blocks, expected, strict=True):
        assert layers(block.residual) == [
            "bn 1e-05",
            f"conv {width} 3/1 pad 1",
            "bn 1e-05",
            "prelu",
            f"conv {width} 3/{stride} pad 1",
            "bn 1e-05",
        ]
        assert layers(block.shortcut) == ([f"conv {width} 1/2 pad 0", "bn 1e-05"] if stride == 2 else [])
    assert layers(network.head) == ["bn 1e-05", "dropout", "flatten", "linear", "bn 1e-05"]
    last = network.head[-1]
    assert not last.weight.requires_grad, "the scale of the last norm is not learned"
    assert torch.equal(last.weight, torch.ones(128))
    assert last.bias.requires_grad


# -- MobileFaceNet: table 1 of Chen et al. 2018 ----------------------------------------------------------------------


def test_mobilefacenet() -> None:
    network = backbone("mobilefacenet")
    bn = "bn 1e-05"
    stem = ["conv 64 3/2 pad 1", bn, "prelu", "conv 64 3/1 pad 1 depthwise", bn, "prelu"]
    assert layers(network.stem) == stem
    table = [(2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1)]  # t, c, n, s
    expected, channels = [], 64
    for factor, out, repeats, stride in table:
        for i in range(repeats):
            expected.append((factor * channels, out, stride if i == 0 else 1))
            channels = out
    blocks = [block for block in network.blocks if isinstance(block, Bottleneck)]
    assert len(blocks) == len(network.blocks) == len(expected)
    for block, (inner, out, stride) in zip(blocks, expected, strict=True):
        depthwise = f"conv {inner} 3/{stride} pad 1 depthwise"
        assert layers(block) == [
            f"conv {inner} 1/1 pad 0", bn, "prelu", depthwise, bn, "prelu", f"conv {out} 1/1 pad 0", bn
        ], "no activation behind the last: a linear bottleneck"  # fmt: skip
        assert block.residual == (stride == 1)
    head = ["conv 512 1/1 pad 0", bn, "prelu", "conv 512 6/1 pad 0 depthwise", bn, "flatten", "linear", bn]
    assert layers(network.head) == head


# -- Inception-ResNet-v1, as facenet-pytorch has it ------------------------------------------------------------------


def test_inception_resnet_v1() -> None:
    network = backbone("inception-resnet-v1")
    assert {m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)} == {1e-3}
    cbr = {
        line: [line, "bn 0.001", "relu"]
        for line in (
            "conv 32 3/2 pad 0",
            "conv 32 3/1 pad 0",
            "conv 64 3/1 pad 1",
            "conv 80 1/1 pad 0",
            "conv 192 3/1 pad 0",
            "conv 256 3/2 pad 0",
        )
    }
    lines = list(cbr)
    stem = [*cbr[lines[0]], *cbr[lines[1]], *cbr[lines[2]], "max 3/2 pad 0"]
    assert layers(network.stem) == stem + [layer for line in lines[3:] for layer in cbr[line]]
    residual = [block for block in network.blocks if isinstance(block, InceptionResidual)]
    assert [block.scale for block in residual] == [0.17] * 5 + [0.10] * 10 + [0.20] * 5 + [1.0]
    assert [isinstance(block.relu, nn.ReLU) for block in residual] == [True] * 20 + [False]
    seventeen = [line for line in layers(residual[5]) if line.startswith("conv")]
    assert seventeen == [
        "conv 128 1/1 pad 0",
        "conv 128 1/1 pad 0",
        "conv 128 1×7/1 pad 3",
        "conv 128 7×1/1 pad 3",
        "conv 896 1/1 pad 0 bias",
    ]
    head = ["adaptiveavgpool2d", "flatten", "dropout", "linear", "bn 0.001"]
    assert layers(network.head) == head


# -- NN4, as OpenFace's models/openface/nn4.def.lua has it -------------------------------------------------------------

POOLS = {"max": ["max 3/2 pad 0"], "l2": ["l2 3"]}
NN4 = {  # stride, (kernel, reduced, out) of the wide branches, pooling, its 1×1, the plain 1×1
    "3a": (1, [(3, 96, 128), (5, 16, 32)], "max", 32, 64),
    "3b": (1, [(3, 96, 128), (5, 32, 64)], "l2", 64, 64),
    "3c": (2, [(3, 128, 256), (5, 32, 64)], "max", None, None),
    "4a": (1, [(3, 96, 192), (5, 32, 64)], "l2", 128, 256),
    "4b": (1, [(3, 112, 224), (5, 32, 64)], "l2", 128, 224),
    "4c": (1, [(3, 128, 256), (5, 32, 64)], "l2", 128, 192),
    "4d": (1, [(3, 144, 288), (5, 32, 64)], "l2", 128, 160),
    "4e": (2, [(3, 160, 256), (5, 64, 128)], "max", None, None),
    "5a": (1, [(3, 192, 384)], "l2", 128, 384),
    "5b": (1, [(3, 192, 384)], "max", 128, 384),
}
SMALL2 = {"5a": (1, [(3, 96, 384)], "l2", 96, 256), "5b": (1, [(3, 96, 384)], "max", 96, 256)}


@pytest.mark.parametrize(
    ("name", "left_out", "other"),
    [("nn4", "", {}), ("nn4.small1", "4c 4d", {}), ("nn4.small2", "4b 4c 4d", SMALL2)],
)
def test_nn4(name: str, left_out: str, other: dict) -> None:
    network = backbone(name)

    def conv(channels: int, kernel: int, stride: int = 1) -> list[str]:
        return [f"conv {channels} {kernel}/{stride} pad {kernel // 2} bias", "bn 1e-05", "relu"]

    lrn = "lrn 5 0.0001 0.75 1"
    stem = [*conv(64, 7, 2), "max 3/2 pad 1", lrn, *conv(64, 1), *conv(192, 3), lrn, "max 3/2 pad 1"]
    assert layers(network.stem) == stem
    blocks = {n: b for n, b in network.named_children() if isinstance(b, Inception)}
    expected = {k: v for k, v in (NN4 | other).items() if k not in left_out.split()}
    assert list(blocks) == [f"inception_{key}" for key in expected]
    for block, (stride, convs, pool, pooled, point) in zip(blocks.values(), expected.values(), strict=True):
        wide = [layer for k, reduced, out in convs for layer in (*conv(reduced, 1), *conv(out, k, stride))]
        behind = [*POOLS[pool], *(conv(pooled, 1) if pooled else []), *(conv(point, 1) if point else [])]
        assert layers(block) == wide + behind
