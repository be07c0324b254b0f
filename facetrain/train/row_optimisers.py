"""SGD and AdamW whose step over a sparse gradient touches its rows alone: weights, momenta and all.

A head of a million people has as many numbers as a large network; sweeping over all of them in each step costs more
than the step's matrix products. Rows that a step does not touch are neither decayed nor moved by their momentum, which
stands still until their turn comes: An et al., "Partial FC", 2021, do the same. Dense gradients are left to PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

ROWS_AT_ONCE = 1 << 14  # what is gathered for a step, 32 MiB of 512 float32 each


class RowSGD(torch.optim.SGD):
    """`torch.optim.SGD` with momentum; gradients may be sparse over their first dimension."""

    def __init__(self, params: Any, **how: Any) -> None:
        if how.get("nesterov") or how.get("dampening") or how.get("maximize"):
            raise ValueError("RowSGD knows momentum and weight decay: no nesterov, dampening or maximize")
        super().__init__(params, **how)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _of(closure)
        with _sparse_aside(self.param_groups) as sparse:
            super().step()
            for parameter, rows, gradient, group in sparse:
                state = self.state[parameter]
                weight = parameter[rows]
                moved = gradient.add(weight, alpha=group["weight_decay"])
                if group["momentum"]:
                    if state.get("momentum_buffer") is None:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                    moved.add_(state["momentum_buffer"][rows], alpha=group["momentum"])
                    state["momentum_buffer"][rows] = moved
                parameter[rows] = weight.sub_(moved, alpha=group["lr"])
        return loss


class RowAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW`; gradients may be sparse over their first dimension. Steps are counted for all rows together."""

    def __init__(self, params: Any, **how: Any) -> None:
        if how.get("amsgrad") or how.get("maximize"):
            raise ValueError("RowAdamW knows neither amsgrad nor maximize")
        super().__init__(params, **how)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _of(closure)
        with _sparse_aside(self.param_groups) as sparse:
            super().step()
            counted: set[Tensor] = set()
            for parameter, rows, gradient, group in sparse:
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                    state["exp_avg"], state["exp_avg_sq"] = (
                        torch.zeros_like(parameter),
                        torch.zeros_like(parameter),
                    )
                if parameter not in counted:
                    state["step"] += 1
                    counted.add(parameter)
                beta1, beta2 = group["betas"]
                mean = state["exp_avg"][rows].lerp_(gradient, 1 - beta1)
                square = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
                step = state["step"].to(parameter.device)
                scale = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
                weight = parameter[rows].mul_(1 - group["lr"] * group["weight_decay"])
                parameter[rows] = weight.sub_(mean.div_(1 - beta1**step).div_(scale), alpha=group["lr"])
        return loss


def _of(closure: Callable[[], Any] | None) -> Any:
    """What the closure, which does the backward pass, returns."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


@contextmanager
def _sparse_aside(
    groups: list[dict[str, Any]],
) -> Iterator[Iterable[tuple[Tensor, Tensor, Tensor, dict[str, Any]]]]:
    """The sparse gradients (parameter, rows, values, group), some rows at a time, while they are out of sight."""
    aside = [
        (parameter, parameter.grad.coalesce(), group)
        for group in groups
        for parameter in group["params"]
        if parameter.grad is not None and parameter.grad.is_sparse
    ]
    for parameter, _, _ in aside:
        parameter.grad = None
    try:
        yield (
            (parameter, rows, values, group)
            for parameter, gradient, group in aside
            for rows, values in zip(
                gradient.indices()[0].split(ROWS_AT_ONCE), gradient.values().split(ROWS_AT_ONCE), strict=True
            )
        )
    finally:
        for parameter, gradient, _ in aside:
            parameter.grad = gradient


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> None:
    """Scale all gradients together so that their norm is ``max_norm`` at most; those of sparse ones by their values."""
    values = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            values.append(parameter.grad.values())
        elif parameter.grad is not None:
            values.append(parameter.grad)
    total = torch.nn.utils.get_total_norm(values)
    share = (max_norm / (total + 1e-6)).clamp_max(1.0)
    for part in values:
        part.mul_(share.to(part.device))
