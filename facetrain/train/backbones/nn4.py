"""OpenFace's networks: FaceNet's NN4 and NN2, and the smaller nn4.small1 and nn4.small2.

Legend of shapes: N images, C channels, H and W pixels, D embedding dimensions.

Faithful to the published Torch networks in what changes their numbers: learned biases under batch-norm; pooling
branches that stride by 2 (max) or 3 (L2) even where the convolutions beside them do not, and are zero-padded,
centred, to the others' size; cross-channel LRN around the second convolution. The published nets end in an L2
normalisation; ours return what enters it, as every backbone here does.

Source: Amos et al., "OpenFace", CMU-CS-16-118, 2016, and its models/openface/*.def.lua; Schroff et al., "FaceNet",
CVPR 2015.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facetrain.train.backbones.size import check_size

MIN_SIZE_PX = 65  # five halvings; the 3×3 pooling of the last two blocks needs 3×3 to look at


class L2Pool(nn.Module):
    """Square root of the sum of squares of each k×k window, stride k (Torch's SpatialLPPooling with p = 2).

    `torch.nn.LPPool2d` has a NaN gradient where a whole window is zero, common behind a ReLU; here it is 0.
    """

    def __init__(self, kernel_px: int) -> None:
        super().__init__()
        self.kernel_px = kernel_px

    def forward(self, x_NCHW: Tensor) -> Tensor:
        k = self.kernel_px
        wide = x_NCHW.to(torch.promote_types(x_NCHW.dtype, torch.float32))  # squares overflow float16
        sums = F.avg_pool2d(wide.square(), k, k) * (k * k)
        return sums.clamp_min(1e-12).sqrt().to(x_NCHW.dtype)


def conv_bn_relu(in_channels: int, out_channels: int, kernel_px: int, stride: int = 1) -> nn.Sequential:
    """Convolution with bias and "same" padding, batch-norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_px, stride, padding=kernel_px // 2),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class Inception(nn.Module):
    """Branches joined along channels: (1×1, k×k) per kernel size, pooling (then 1×1), perhaps a plain 1×1.

    ``convs``: (kernel_px, reduced channels, out channels) of each k×k branch, all with ``stride``.
    ``pool_channels``: width of the 1×1 behind the pooling; None passes the pooled input on.
    ``point_channels``: width of the plain 1×1 branch; None leaves it out. The output has the height and width
    of the k×k branches, to which the others are padded.
    """

    def __init__(
        self,
        in_channels: int,
        convs: list[tuple[int, int, int]],
        stride: int,
        pool: nn.Module,
        pool_channels: int | None,
        point_channels: int | None,
    ) -> None:
        super().__init__()
        branches: list[nn.Module] = [
            nn.Sequential(
                conv_bn_relu(in_channels, reduced, 1), conv_bn_relu(reduced, out, kernel_px, stride)
            )
            for kernel_px, reduced, out in convs
        ]
        point_after_pool = (
            nn.Identity() if pool_channels is None else conv_bn_relu(in_channels, pool_channels, 1)
        )
        branches.append(nn.Sequential(pool, point_after_pool))
        if point_channels is not None:
            branches.append(conv_bn_relu(in_channels, point_channels, 1))
        self.branches = nn.ModuleList(branches)
        self.out_channels = (
            sum(out for _, _, out in convs) + (pool_channels or in_channels) + (point_channels or 0)
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        outputs = [branch(x_NCHW) for branch in self.branches]
        height, width = outputs[0].shape[2:]
        return torch.cat([_pad_centred(out, height, width) for out in outputs], dim=1)


def _pad_centred(x_NCHW: Tensor, height: int, width: int) -> Tensor:
    """Zeros around, the odd row and column to the bottom and right (Torch's DepthConcat)."""
    missing_h, missing_w = height - x_NCHW.shape[2], width - x_NCHW.shape[3]
    if missing_h == 0 and missing_w == 0:
        return x_NCHW
    top, left = missing_h // 2, missing_w // 2
    return F.pad(x_NCHW, (left, missing_w - left, top, missing_h - top))


def _narrowing(in_channels: int, three: tuple[int, int], five: tuple[int, int]) -> Inception:
    """The blocks that halve the size, 3c and 4e: each (reduced, out) of the 3×3 and the 5×5, and the pooled input."""
    return Inception(in_channels, [(3, *three), (5, *five)], 2, nn.MaxPool2d(3, 2), None, None)


def _fourth(three: tuple[int, int], point_channels: int) -> Inception:
    """4a to 4d, which differ in how the 3×3 takes over from the 1×1."""
    return Inception(640, [(3, *three), (5, 32, 64)], 1, L2Pool(3), 128, point_channels)


def _third_and_fourth(letters: str) -> dict[str, Inception]:
    """Blocks 3a to 4e; ``letters``: those of the blocks 4a to 4d that are there."""
    fourth = {"a": ((96, 192), 256), "b": ((112, 224), 224), "c": ((128, 256), 192), "d": ((144, 288), 160)}
    return {
        "3a": Inception(192, [(3, 96, 128), (5, 16, 32)], 1, nn.MaxPool2d(3, 2), 32, 64),
        "3b": Inception(256, [(3, 96, 128), (5, 32, 64)], 1, L2Pool(3), 64, 64),
        "3c": _narrowing(320, (128, 256), (32, 64)),
        **{f"4{letter}": _fourth(*fourth[letter]) for letter in letters},
        "4e": _narrowing(640, (160, 256), (64, 128)),
    }


def _fifth(
    convs: list[tuple[int, int, int]], pool_channels: int, point_channels: int
) -> dict[str, Inception]:
    """Blocks 5a and 5b, which differ in what they pool by."""
    first = Inception(1024, convs, 1, L2Pool(3), pool_channels, point_channels)
    second = Inception(first.out_channels, convs, 1, nn.MaxPool2d(3, 2), pool_channels, point_channels)
    return {"5a": first, "5b": second}


class NN4(nn.Module):
    """Images [N, 3, H, W], float, H = W ≥ 65 → raw embeddings [N, D]. ``blocks``: by name, in order."""

    def __init__(self, blocks: dict[str, Inception], embedding_dim: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_bn_relu(3, 64, 7, stride=2),
            nn.MaxPool2d(3, 2, 1),
            nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75),
            conv_bn_relu(64, 64, 1),
            conv_bn_relu(64, 192, 3),
            nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75),
            nn.MaxPool2d(3, 2, 1),
        )
        self.names = [f"inception_{name}" for name in blocks]
        for name, block in zip(self.names, blocks.values(), strict=True):
            self.add_module(name, block)
            out_channels = block.out_channels
        self.linear = nn.Linear(out_channels, embedding_dim)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        x = self.stem(images_NCHW)
        for name in self.names:
            x = getattr(self, name)(x)
        return self.linear(
            x.mean(dim=(2, 3))
        )  # the published 3×3 average pooling (nn2: 7×7) at the published size


def nn4_small2(embedding_dim: int = 128, size_px: int = 96) -> nn.Module:
    """OpenFace's nn4.small2, NN4 without 4b, 4c, 4d and with smaller 5a, 5b: 3,733,968 parameters at 128 dimensions.

    Raises UserError below 65 px.
    """
    check_size("nn4.small2", size_px, MIN_SIZE_PX)
    return NN4(_third_and_fourth("a") | _fifth([(3, 96, 384)], 96, 256), embedding_dim)


def nn4_small1(embedding_dim: int = 128, size_px: int = 96) -> nn.Module:
    """OpenFace's nn4.small1, NN4 without 4c and 4d: 5,579,520 parameters at 128 dimensions.

    Raises UserError below 65 px.
    """
    check_size("nn4.small1", size_px, MIN_SIZE_PX)
    return NN4(_third_and_fourth("ab") | _fifth([(3, 192, 384)], 128, 384), embedding_dim)


def nn4(embedding_dim: int = 128, size_px: int = 96) -> nn.Module:
    """FaceNet's NN4 as OpenFace has it: 6,959,088 parameters at 128 dimensions.

    Raises UserError below 65 px.
    """
    check_size("nn4", size_px, MIN_SIZE_PX)
    return NN4(_third_and_fourth("abcd") | _fifth([(3, 192, 384)], 128, 384), embedding_dim)


def nn2(embedding_dim: int = 128, size_px: int = 96) -> nn.Module:
    """FaceNet's NN2 as OpenFace has it, made for 224 px: 7,472,144 parameters at 128 dimensions.

    Raises UserError below 65 px.
    """
    check_size("nn2", size_px, MIN_SIZE_PX)
    return NN4(_third_and_fourth("abcd") | _fifth([(3, 192, 384), (5, 48, 128)], 128, 384), embedding_dim)
