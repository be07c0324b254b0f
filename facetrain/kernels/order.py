"""The numbers of each row in ascending order, of equal ones the first first; and where a value would go in it.

Legend of shapes: A rows, C columns, K values looked for in each row, T places.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class RowOrder(Protocol):
    """The order within each row of a matrix [A, C] of numbers from 0 to +inf."""

    def count_below(self, values_AK: Tensor) -> Tensor:
        """int64 [A, K]: how many of the row are less than the value."""

    def count_up_to(self, values_AK: Tensor) -> Tensor:
        """int64 [A, K]: how many of the row are less than or equal to the value."""

    def at(self, row_T: Tensor, place_T: Tensor) -> tuple[Tensor, Tensor]:
        """Column (int64) and value of what stands at these places of these rows."""


def row_order(matrix_AC: Tensor) -> RowOrder:
    """The order of this matrix, which may be overwritten."""
    if matrix_AC.device.type == "cpu" and matrix_AC.dtype == torch.float32:
        return _Packed(matrix_AC)
    return _Sorted(matrix_AC)


class _Sorted:
    def __init__(self, matrix_AC: Tensor) -> None:
        self.values_AC, self.columns_AC = matrix_AC.sort(dim=1, stable=True)

    def count_below(self, values_AK: Tensor) -> Tensor:
        return torch.searchsorted(self.values_AC, values_AK)

    def count_up_to(self, values_AK: Tensor) -> Tensor:
        return torch.searchsorted(self.values_AC, values_AK, right=True)

    def at(self, row_T: Tensor, place_T: Tensor) -> tuple[Tensor, Tensor]:
        return self.columns_AC[row_T, place_T], self.values_AC[row_T, place_T]


class _Packed:
    """Value and column in one int64: the bits of floats from 0 on are ordered as the floats are. NumPy sorts integers
    with vector instructions, seven times as fast as torch sorts floats with their columns."""

    def __init__(self, matrix_AC: Tensor) -> None:
        keys_AC = matrix_AC.contiguous().view(torch.int32).to(torch.int64)
        keys_AC <<= 32
        keys_AC += torch.arange(matrix_AC.shape[1])
        keys_AC.numpy().sort(axis=1)
        self.keys_AC = keys_AC

    def count_below(self, values_AK: Tensor) -> Tensor:
        return torch.searchsorted(self.keys_AC, _bits(values_AK) << 32)

    def count_up_to(self, values_AK: Tensor) -> Tensor:
        return torch.searchsorted(self.keys_AC, (_bits(values_AK) + 1) << 32)

    def at(self, row_T: Tensor, place_T: Tensor) -> tuple[Tensor, Tensor]:
        keys_T = self.keys_AC[row_T, place_T]
        return keys_T & 0xFFFFFFFF, (keys_T >> 32).to(torch.int32).view(torch.float32)


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.int32).to(torch.int64)


def first_smallest(matrix_AC: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest of each row and its column, of equal ones the first. There must be a column."""
    return _first(matrix_AC, np.argmin, torch.min)


def first_largest(matrix_AC: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row and its column, of equal ones the first. There must be a column."""
    return _first(matrix_AC, np.argmax, torch.max)


def _first(
    matrix_AC: Tensor, numpys: Callable[..., Any], torchs: Callable[..., Any]
) -> tuple[Tensor, Tensor]:
    if _is_numpys(matrix_AC):
        column_A = torch.from_numpy(numpys(matrix_AC.detach().numpy(), axis=1))
        return matrix_AC.gather(1, column_A[:, None])[:, 0], column_A
    values_A, column_A = torchs(matrix_AC, dim=1)
    return values_A, column_A


def _is_numpys(matrix: Tensor) -> bool:
    """Whether NumPy can look at it, which finds extremes with vector instructions and torch does not."""
    plain = type(matrix) in (Tensor, torch.nn.Parameter) and matrix.device.type == "cpu"
    return plain and matrix.dtype in (torch.float32, torch.float64)
