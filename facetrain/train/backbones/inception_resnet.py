"""Inception-ResNet-v1, the network of the widely used FaceNet ports.

Legend of shapes: N images, C channels, H and W pixels, D embedding dimensions.

Convolutions of the stem and of the blocks that halve the size are not padded, as published: what is 17 × 17 places at
299 px is 4 × 4 at 96. The ports' networks end in an L2 normalisation; ours returns what enters it.

Source: Szegedy et al., "Inception-v4, Inception-ResNet", AAAI 2017; D. Sandberg's facenet and facenet-pytorch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from facetrain.train.backbones.size import check_size

MIN_SIZE_PX = 75  # what the unpadded convolutions leave one place of

Kernel = int | tuple[int, int]


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel_px: Kernel, stride: int = 1, padding: str | int = "same"
) -> nn.Sequential:
    """Convolution without bias, batch-norm, ReLU; ``padding`` 0 is for what is published as "valid"."""
    if padding == "same":
        height, width = (kernel_px, kernel_px) if isinstance(kernel_px, int) else kernel_px
        pad = (height // 2, width // 2)
    else:
        pad = (0, 0)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_px, stride, pad, bias=False),
        nn.BatchNorm2d(out_channels, eps=1e-3),
        nn.ReLU(inplace=True),
    )


class InceptionResidual(nn.Module):
    """relu(x + scale · conv(branches of x joined along channels)), [N, C, H, W] → the same shape.

    ``branches``: of each, (kernel, out channels) of its convolutions. ``relu``: the last block has none.
    """

    def __init__(
        self, channels: int, branches: list[list[tuple[Kernel, int]]], scale: float, relu: bool = True
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_branch(channels, convs) for convs in branches)
        self.conv = nn.Conv2d(sum(convs[-1][1] for convs in branches), channels, 1)
        self.scale = scale
        self.relu: nn.Module = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        change = self.conv(torch.cat([branch(x_NCHW) for branch in self.branches], dim=1))
        out: Tensor = self.relu(x_NCHW + self.scale * change)
        return out


def _branch(channels: int, convs: list[tuple[Kernel, int]]) -> nn.Sequential:
    layers = []
    for kernel_px, out_channels in convs:
        layers.append(conv_bn_relu(channels, out_channels, kernel_px))
        channels = out_channels
    return nn.Sequential(*layers)


class Reduction(nn.Module):
    """Convolutions of stride 2 and a pooling side by side, joined along channels, [N, C, H, W] → [N, C', ~H/2, ~W/2].

    ``branches``: of each, (kernel, out channels) of its convolutions, of which the last is unpadded and strides.
    """

    def __init__(self, channels: int, branches: list[list[tuple[Kernel, int]]]) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        for *first, (kernel_px, out_channels) in branches:
            last = conv_bn_relu(first[-1][1] if first else channels, out_channels, kernel_px, 2, padding=0)
            self.branches.append(nn.Sequential(*_branch(channels, first), last))
        self.branches.append(nn.MaxPool2d(3, 2))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return torch.cat([branch(x_NCHW) for branch in self.branches], dim=1)


class InceptionResNetV1(nn.Module):
    """Images [N, 3, H, W], float, H = W ≥ 75 → raw embeddings [N, D]."""

    def __init__(self, embedding_dim: int = 512, dropout: float = 0.6) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_bn_relu(3, 32, 3, 2, padding=0),
            conv_bn_relu(32, 32, 3, padding=0),
            conv_bn_relu(32, 64, 3),
            nn.MaxPool2d(3, 2),
            conv_bn_relu(64, 80, 1),
            conv_bn_relu(80, 192, 3, padding=0),
            conv_bn_relu(192, 256, 3, 2, padding=0),
        )
        block35: list[list[tuple[Kernel, int]]] = [[(1, 32)], [(1, 32), (3, 32)], [(1, 32), (3, 32), (3, 32)]]
        block17: list[list[tuple[Kernel, int]]] = [[(1, 128)], [(1, 128), ((1, 7), 128), ((7, 1), 128)]]
        block8: list[list[tuple[Kernel, int]]] = [[(1, 192)], [(1, 192), ((1, 3), 192), ((3, 1), 192)]]
        self.blocks = nn.Sequential(
            *(InceptionResidual(256, block35, 0.17) for _ in range(5)),
            Reduction(256, [[(3, 384)], [(1, 192), (3, 192), (3, 256)]]),
            *(InceptionResidual(896, block17, 0.10) for _ in range(10)),
            Reduction(896, [[(1, 256), (3, 384)], [(1, 256), (3, 256)], [(1, 256), (3, 256), (3, 256)]]),
            *(InceptionResidual(1792, block8, 0.20) for _ in range(5)),
            InceptionResidual(1792, block8, 1.0, relu=False),
        )
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(1792, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim, eps=1e-3),
        )

    def forward(self, images_NCHW: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(images_NCHW)))
        return out


def inception_resnet_v1(embedding_dim: int = 512, size_px: int = 160, dropout: float = 0.6) -> nn.Module:
    """Inception-ResNet-v1, made for 160 px: 23,482,624 parameters at 512 dimensions, whatever the image size.

    dropout: probability in front of the linear layer. Raises UserError below 75 px.
    """
    check_size("inception-resnet-v1", size_px, MIN_SIZE_PX)
    return InceptionResNetV1(embedding_dim, dropout)
