"""Optimiser and learning rate. The rate is a function of the step alone: nothing to save, nothing to resume wrongly."""

from __future__ import annotations

import math

import torch
from torch import nn

from facetrain.config import TrainConfig
from facetrain.train.row_optimisers import RowAdamW, RowSGD


def build_optimiser(config: TrainConfig, *modules: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of the configuration over the modules' parameters; vectors and scalars are not decayed.

    Fused: PyTorch's others hold a copy of all gradients while they step.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    parameters = list(dict.fromkeys(parameters))  # each once: a trainer may hold the network too
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return RowSGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    return RowAdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def lr_at(config: TrainConfig, step: int, total_steps: int) -> float:
    """The learning rate of step 0 … total_steps − 1.

    ``one-cycle``: linear from lr/25 to lr over the share ``warmup`` of the steps, then a half cosine to lr/1e4
    (Smith and Topin 2017, as PyTorch has it).
    """
    if config.schedule == "constant":
        return config.lr
    rise = config.warmup * total_steps
    if step < rise:
        return config.lr * (1 / 25 + (1 - 1 / 25) * step / rise)
    share = (step - rise) / max(total_steps - 1 - rise, 1)
    return config.lr * (1e-4 + (1 - 1e-4) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))
