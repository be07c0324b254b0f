"""A small network of depthwise-separable convolutions."""

from torch import nn


def depthwise(embedding_dim: int = 128, size_px: int = 96, *, width: int = 16) -> nn.Module:
    """Five halvings of the picture, twice as many channels after each, their means → linear → batch-norm.

    Images float32 [n, 3, size_px, size_px] in, raw embeddings [n, embedding_dim] out. Any size will do.
    """
    layers = [nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    for channels in (width, 2 * width, 4 * width, 8 * width):
        layers += [
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
        ]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(16 * width, embedding_dim), nn.BatchNorm1d(embedding_dim))
