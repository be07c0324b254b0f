"""Vectors scaled to length 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SHORTEST = 1e-12  # of a vector with a direction


def unit(vectors: Tensor) -> Tensor:
    """The vectors [..., D] scaled to length 1. One of all zeros has no direction: it stays, with a gradient of zeros."""
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / norm.masked_fill(norm <= SHORTEST, math.inf)
