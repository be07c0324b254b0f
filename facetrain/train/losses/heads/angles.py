"""Functions of an angle θ in [0, π] that is known by its cosine: float, of any shape, without NaN at cos θ = ±1."""

from __future__ import annotations

import torch
from torch import Tensor


def sine(cos: Tensor) -> Tensor:
    """sin θ from cos θ, θ in [0, π]. At cos θ = ±1, where its slope is infinite, the gradient is 0."""
    return ((1 - cos) * (1 + cos)).clamp_min(torch.finfo(cos.dtype).tiny).sqrt()


def angle_rad(cos: Tensor) -> Tensor:
    """θ in [0, π] from cos θ. At cos θ = ±1, where its slope is infinite, the gradient is 0."""
    return torch.atan2(sine(cos), cos)


def cos_of_sum(cos: Tensor, margin_rad: float | Tensor) -> Tensor:
    """cos(θ + margin) from cos θ, falling in θ throughout: where θ + margin > π, cos θ − margin · sin(margin) instead.

    The continuation is ArcFace's own code's (Deng et al.); it lies below for margins up to π/2. margin_rad: one for all
    or one each.
    """
    margin = margin_rad if isinstance(margin_rad, Tensor) else cos.new_full((), margin_rad)
    return torch.where(cos >= -margin.cos(), _turned(cos, margin), cos - margin * margin.sin())


def cos_shifted(cos: Tensor, shift_rad: Tensor) -> Tensor:
    """cos(clip(θ + shift, 0, π)) from cos θ. shift_rad: from −π to π; the gradient is 0 where it is clipped."""
    shifted = _turned(cos, shift_rad)
    shifted = torch.where((shift_rad > 0) & (cos < -shift_rad.cos()), -1, shifted)
    return torch.where((shift_rad < 0) & (cos > shift_rad.cos()), 1, shifted)


def _turned(cos: Tensor, angle_rad: Tensor) -> Tensor:
    return cos * angle_rad.cos() - sine(cos) * angle_rad.sin()
