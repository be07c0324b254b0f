"""Improved residual networks for faces ("IR" blocks), written by depths and widths.

Legend of shapes: N images, C channels, H and W pixels, D embedding dimensions.

A stem, stages that each halve the size, and a head that keeps the places of the last map (flatten →
linear → batch-norm) rather than averaging them away. iresnet18 to iresnet100 go by insightface's names.

Source: Deng et al., "ArcFace", CVPR 2019, section 3.1 and its reference code (insightface); He et al., "Identity
mappings", 2016.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from facetrain.errors import UserError
from facetrain.train.backbones.prelu import PReLU
from facetrain.train.backbones.size import check_size

ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "prelu": PReLU,
    "leaky_relu": lambda channels: nn.LeakyReLU(0.25, inplace=True),  # where PReLU starts
    "relu": lambda channels: nn.ReLU(inplace=True),
}


def check_activation(name: str) -> None:
    """Raise UserError for an unknown activation."""
    if name not in ACTIVATIONS:
        raise UserError(f"unknown activation {name!r}: one of {', '.join(ACTIVATIONS)}")


class IRBlock(nn.Module):
    """BN-conv-BN-act-conv-BN plus the input, [N, C, H, W] → [N, C', ⌈H/s⌉, ⌈W/s⌉]; the last conv strides."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, activation: str = "prelu") -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, out_channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            ACTIVATIONS[activation](out_channels),
            nn.Conv2d(out_channels, out_channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        out: Tensor = self.residual(x_NCHW) + self.shortcut(x_NCHW)
        return out


class IResNet(nn.Module):
    """Images [N, 3, size_px, size_px], float → raw embeddings [N, D].

    ``depths``: blocks in each stage. ``widths``: channels of the stem and then of each stage, so one longer.
    ``stem_stride``, ``stem_kernel_px``: 1 and 3 as published; a stride of s divides the cost of all that follows
    by s². ``activation``: a key of ACTIVATIONS. ``dropout``: probability in front of the linear layer.

    ``name``: what messages call it.

    Raises UserError for widths that do not fit the depths, an unknown activation, or images that are smaller than what
    one place of the last map stands for.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        embedding_dim: int = 128,
        size_px: int = 96,
        *,
        stem_stride: int = 1,
        stem_kernel_px: int = 3,
        activation: str = "prelu",
        dropout: float = 0.0,
        name: str = "iresnet",
    ) -> None:
        super().__init__()
        if len(widths) != len(depths) + 1:
            raise UserError(
                f"iresnet needs one width more than stages, the stem's: not {widths} for {depths}"
            )
        check_activation(activation)
        stride = stem_stride * 2 ** len(depths)
        check_size(name, size_px, stride)
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], stem_kernel_px, stem_stride, stem_kernel_px // 2, bias=False),
            nn.BatchNorm2d(widths[0]),
            ACTIVATIONS[activation](widths[0]),
        )
        stages, in_channels = [], widths[0]
        for depth, out_channels in zip(depths, widths[1:], strict=True):
            blocks = [IRBlock(in_channels, out_channels, 2, activation)]
            blocks += [IRBlock(out_channels, out_channels, 1, activation) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
            in_channels = out_channels
        self.stages = nn.Sequential(*stages)
        last_px = math.ceil(size_px / stride)
        self.head = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(in_channels * last_px**2, embedding_dim),
            nn.BatchNorm1d(embedding_dim),
        )
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.1)  # any scale will do, a batch-norm follows each
        # The embedding's own scale is not learned: losses see its direction, weight decay would shrink it.
        embedding_norm = self.head[-1]
        assert isinstance(embedding_norm, nn.BatchNorm1d)
        embedding_norm.weight.requires_grad = False

    def forward(self, images_NCHW: Tensor) -> Tensor:
        out: Tensor = self.head(self.stages(self.stem(images_NCHW)))
        return out


def iresnet_small(
    embedding_dim: int = 128, size_px: int = 96, dropout: float = 0.0, activation: str = "leaky_relu"
) -> nn.Module:
    """Three stages of two blocks, widths 32, 64, 128, 256, a 5×5 stem of stride 3: trains on a laptop's CPU.

    Spares what a CPU is slow at, which is not the convolutions but memory traffic at full resolution and
    PReLU's backward pass.

    Raises UserError below 24 px, or for an unknown activation.
    """
    return IResNet(
        (2, 2, 2),
        (32, 64, 128, 256),
        embedding_dim,
        size_px,
        stem_stride=3,
        stem_kernel_px=5,
        activation=activation,
        dropout=dropout,
        name="iresnet.small",
    )


def iresnet18(
    embedding_dim: int = 128, size_px: int = 96, dropout: float = 0.0, activation: str = "prelu"
) -> nn.Module:
    """Two blocks in each of four stages: 24,025,600 parameters at 512 dimensions and 112 px.

    dropout: probability in front of the linear layer. activation: ``prelu``, ``leaky_relu`` or ``relu``.

    Raises UserError below 16 px, or for an unknown activation; likewise the deeper ones.
    """
    return _published("iresnet18", (2, 2, 2, 2), embedding_dim, size_px, dropout, activation)


def iresnet34(
    embedding_dim: int = 128, size_px: int = 96, dropout: float = 0.0, activation: str = "prelu"
) -> nn.Module:
    """`iresnet18` of depths 3, 4, 6, 3: 34,139,328 parameters at 512 dimensions and 112 px."""
    return _published("iresnet34", (3, 4, 6, 3), embedding_dim, size_px, dropout, activation)


def iresnet50(
    embedding_dim: int = 128, size_px: int = 96, dropout: float = 0.0, activation: str = "prelu"
) -> nn.Module:
    """`iresnet18` of depths 3, 4, 14, 3, ArcFace's R50: 43,590,848 parameters at 512 dimensions and 112 px."""
    return _published("iresnet50", (3, 4, 14, 3), embedding_dim, size_px, dropout, activation)


def iresnet100(
    embedding_dim: int = 128, size_px: int = 96, dropout: float = 0.0, activation: str = "prelu"
) -> nn.Module:
    """`iresnet18` of depths 3, 13, 30, 3, ArcFace's R100: 65,156,160 parameters at 512 dimensions and 112 px."""
    return _published("iresnet100", (3, 13, 30, 3), embedding_dim, size_px, dropout, activation)


def _published(
    name: str, depths: Sequence[int], embedding_dim: int, size_px: int, dropout: float, activation: str
) -> nn.Module:
    widths = (64, 64, 128, 256, 512)
    return IResNet(depths, widths, embedding_dim, size_px, activation=activation, dropout=dropout, name=name)
