"""MobileFaceNet: bottlenecks of depthwise convolutions, ending in one weight for each place of the last map.

Legend of shapes: N images, C channels, H and W pixels, D embedding dimensions.

The layout of the paper's table 1, which is FaceX-Zoo's too: the paper's 0.99 million parameters are this network at 128
dimensions, FaceX-Zoo's 1.19 million at 512, both at 112 px. (insightface's ``mobilefacenet`` is another, wider one.)

Source: Chen et al., "MobileFaceNets", CCBR 2018; FaceX-Zoo's backbone/MobileFaceNets.py.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from facetrain.train.backbones.iresnet import ACTIVATIONS, check_activation
from facetrain.train.backbones.size import check_size

MIN_SIZE_PX = 16  # four halvings


def conv_bn(
    in_channels: int, out_channels: int, kernel_px: int = 1, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution with "same" padding, batch-norm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_px, stride, kernel_px // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class Bottleneck(nn.Module):
    """1×1 up to ``inner_channels``, depthwise 3×3, 1×1 down without activation; plus the input if it is ``residual``."""

    def __init__(
        self,
        in_channels: int,
        inner_channels: int,
        out_channels: int,
        stride: int,
        residual: bool,
        activation: str = "prelu",
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_bn(in_channels, inner_channels),
            ACTIVATIONS[activation](inner_channels),
            conv_bn(inner_channels, inner_channels, 3, stride, groups=inner_channels),
            ACTIVATIONS[activation](inner_channels),
            conv_bn(inner_channels, out_channels),
        )
        self.residual = residual

    def forward(self, x_NCHW: Tensor) -> Tensor:
        out: Tensor = self.layers(x_NCHW)
        return x_NCHW + out if self.residual else out


class MobileFaceNet(nn.Module):
    """Images [N, 3, size_px, size_px], float → raw embeddings [N, D]."""

    def __init__(self, embedding_dim: int = 128, size_px: int = 96, activation: str = "prelu") -> None:
        super().__init__()
        check_size("mobilefacenet", size_px, MIN_SIZE_PX)
        check_activation(activation)

        def series(repeats: int, channels: int, inner_channels: int) -> list[nn.Module]:
            return [
                Bottleneck(channels, inner_channels, channels, 1, True, activation) for _ in range(repeats)
            ]

        self.stem = nn.Sequential(
            conv_bn(3, 64, 3, 2),
            ACTIVATIONS[activation](64),
            conv_bn(64, 64, 3, 1, groups=64),
            ACTIVATIONS[activation](64),
        )
        self.blocks = nn.Sequential(
            Bottleneck(64, 128, 64, 2, False, activation),
            *series(4, 64, 128),
            Bottleneck(64, 256, 128, 2, False, activation),
            *series(6, 128, 256),
            Bottleneck(128, 512, 128, 2, False, activation),
            *series(2, 128, 256),
        )
        last_px = math.ceil(size_px / 16)
        self.head = nn.Sequential(
            conv_bn(128, 512),
            ACTIVATIONS[activation](512),
            nn.Conv2d(512, 512, last_px, groups=512, bias=False),  # a weighted mean of the places, by channel
            nn.BatchNorm2d(512),
            nn.Flatten(),
            nn.Linear(512, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim),
        )

    def forward(self, images_NCHW: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(images_NCHW)))
        return out


def mobilefacenet(embedding_dim: int = 128, size_px: int = 96, activation: str = "prelu") -> nn.Module:
    """MobileFaceNet for telephones: 0.99 million parameters at 128 dimensions, 1.19 at 512 (112 px).

    activation: ``prelu``, ``leaky_relu`` or ``relu``. Raises UserError below 16 px, or for an unknown activation.
    """
    return MobileFaceNet(embedding_dim, size_px, activation)
