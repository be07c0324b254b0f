"""What the checks share: how a part is made, what is said of one that breaks its contract, numbers that never change."""

from __future__ import annotations

import functools
import inspect
import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from facetrain.train.metrics_log import BASE_COLUMNS

# Columns that the loop writes itself: a statistic of such a name would take the place of one.
TAKEN_NAMES = (*BASE_COLUMNS, "val_accuracy", "val_standard_error", "val_auc")


def expect(holds: bool, says: str) -> None:
    """Raise AssertionError with this message where something does not hold (under ``python -O`` too)."""
    if not holds:
        raise AssertionError(says)


def name_of(part: Any) -> str:
    """What messages call a class, a function, or a partial of one."""
    while isinstance(part, functools.partial):
        part = part.func
    return str(getattr(part, "__qualname__", part))


def parameters_of(part: Any) -> Mapping[str, inspect.Parameter]:
    """What a class, or a function that makes one, takes; AssertionError where it is neither."""
    expect(
        callable(part) and not isinstance(part, nn.Module),
        f"give the class, or a function that makes one, not {_shown(part)}",
    )
    return inspect.signature(part).parameters


def made(part: Callable[..., Any], **given: Any) -> Any:
    """What ``part`` makes of those of the arguments that its signature names, as `facetrain.plugins.make` does.

    Raises AssertionError where it makes nothing.
    """
    who, parameters = name_of(part), parameters_of(part)
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    try:
        one = part(**{key: value for key, value in given.items() if anything or key in parameters})
    except Exception as error:
        raise AssertionError(f"{who} cannot be made: {type(error).__name__}: {error}") from error
    expect(
        not isinstance(one, nn.Module) or hasattr(one, "_modules"),
        f"{who}: its __init__ does not call super().__init__()",
    )
    return one


def seeded(seed: int, device: torch.device) -> torch.Generator:
    """A generator on the device, at the start of this seed."""
    return torch.Generator(device).manual_seed(seed)


def normal(*shape: int, seed: int, device: torch.device) -> Tensor:
    """Standard normal float32 numbers, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def expect_loss(who: str, loss: Any, stats: Any, dtype: torch.dtype | None = None) -> None:
    """The loss is a finite scalar that can be differentiated, the statistics are finite, detached scalars."""
    expect(
        isinstance(loss, Tensor) and loss.shape == (),
        f"{who}: the loss is {_shown(loss)}, not a scalar tensor",
    )
    expect(loss.is_floating_point(), f"{who}: the loss is of {loss.dtype}")
    expect(
        dtype in (None, loss.dtype), f"{who}: the loss is of {loss.dtype} where the embeddings are of {dtype}"
    )
    expect(
        bool(loss.isfinite()),
        f"{who}: the loss is {loss.item()}; it must be finite for any finite embeddings",
    )
    expect(
        loss.requires_grad,
        f"{who}: the loss is not connected with the embeddings: it cannot be differentiated",
    )
    expect(isinstance(stats, dict), f"{who}: the statistics are {_shown(stats)}, not a dict")
    for name, value in stats.items():
        expect(
            isinstance(name, str) and name.isidentifier(),
            f"{who}: a statistic is called {name!r}: it becomes a column, choose a name like 'train_accuracy'",
        )
        expect(
            name not in TAKEN_NAMES, f"{who}: a statistic is called '{name}', which the loop writes itself"
        )
        scalar = isinstance(value, Tensor) and value.shape == ()
        expect(scalar, f"{who}: the statistic '{name}' is {_shown(value)}, not a scalar tensor")
        expect(not value.requires_grad, f"{who}: the statistic '{name}' carries a gradient: detach it")
        expect(bool(value.isfinite()), f"{who}: the statistic '{name}' is {value.item()}")


def expect_gradients(who: str, named: Iterable[tuple[str, Tensor]]) -> None:
    """Each of these tensors has got a gradient, and it is finite."""
    for name, tensor in named:
        expect(tensor.grad is not None, f"{who}: no gradient reaches {name}")
        expect(bool(tensor.grad.isfinite().all()), f"{who}: the gradient of {name} is not finite")  # type: ignore[union-attr]


def expect_finite_state(who: str, module: nn.Module) -> None:
    """No parameter and no buffer holds inf or NaN."""
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor) and value.is_floating_point():
            expect(bool(value.isfinite().all()), f"{who}: '{name}' of the state is no longer finite")


def through_file(who: str, state: dict[str, Any]) -> dict[str, Any]:
    """A state as it comes back from a file that is read with ``weights_only=True``, as runs are resumed."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    try:
        back: dict[str, Any] = torch.load(file, weights_only=True)
    except Exception as error:
        raise AssertionError(f"{who}: the state holds more than tensors and plain values: {error}") from error
    return back


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    return "None" if value is None else f"{type(value).__name__} {value!r}"
