"""Less memory for more time: a block's activations are dropped after the forward pass and computed again when needed.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016; `torch.utils.checkpoint`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from facetrain.errors import UserError

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def checkpoint_activations(backbone: nn.Module) -> int:
    """Let every repeated block of ``backbone`` compute its forward pass again in the backward pass; their number.

    Embeddings, gradients, running statistics and the names of all weights stay as they are. Blocks are found by
    `repeated_blocks`. Raises UserError for a network that has none.
    """
    blocks = list(repeated_blocks(backbone))
    if not blocks:
        raise UserError(
            f"{type(backbone).__name__} has no repeated blocks whose activations could be checkpointed"
        )
    for block in blocks:
        if not isinstance(block, _Recomputed):
            block.__class__ = _recomputing(type(block))
    return len(blocks)


def repeated_blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules of several layers whose class occurs more than once, lists aside.

    A stage that itself holds a list of blocks is passed over in favour of these.
    """
    kinds = Counter(type(module) for module in network.modules())

    def walk(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if _has_layers(child) and kinds[type(child)] > 1 and not _holds_blocks(child):
                yield child
            else:
                yield from walk(child)

    return walk(network)


def _has_layers(module: nn.Module) -> bool:
    """Whether a module has two convolutions or linear maps in it (one: nothing is saved), and is no list."""
    matrices = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    return not isinstance(module, _LISTS) and len(matrices) > 1


def _holds_blocks(module: nn.Module) -> bool:
    """Whether a list in ``module`` holds several such modules of one class."""
    lists = (inner for inner in module.modules() if isinstance(inner, _LISTS))
    return any(
        count > 1
        for inner in lists
        for count in Counter(type(child) for child in inner.children() if _has_layers(child)).values()
    )


class _Recomputed(nn.Module):
    """Mixed into the class of a block, in front of it. A class rather than a wrapper: names, copies and loading stay."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)

        if torch.compiler.is_compiling():  # what a compiled graph computes again has no side effects
            return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            return nullcontext(), _own_buffers(self)

        args = tuple(
            list(value) if isinstance(value, list) else value for value in args
        )  # DenseNet's grow later on
        return checkpoint(super().forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


_KINDS: dict[type[nn.Module], type[nn.Module]] = {}


def _recomputing(kind: type[nn.Module]) -> type[nn.Module]:
    """The class ``kind`` with `_Recomputed` mixed in, always the same one."""
    if kind not in _KINDS:
        _KINDS[kind] = type(kind.__name__, (_Recomputed, kind), {"__module__": kind.__module__})
    return _KINDS[kind]


@contextmanager
def _own_buffers(block: nn.Module) -> Iterator[None]:
    """Running statistics are moved on copies in here: the forward pass has moved them already."""
    kept = [(module, dict(module._buffers)) for module in block.modules() if module._buffers]
    for module, buffers in kept:
        for name, buffer in buffers.items():
            module._buffers[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for module, buffers in kept:
            module._buffers.update(buffers)
