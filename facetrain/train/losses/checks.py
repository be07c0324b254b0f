"""Checks of the values that a loss is made with."""

from __future__ import annotations

import math

from facetrain.errors import UserError


def positive(name: str, value: float) -> float:
    """``value``; UserError unless it is a number above 0."""
    if not (value > 0 and math.isfinite(value)):
        raise UserError(f"{name} = {value:g}: choose a number above 0")
    return value


def within(name: str, value: float, low: float, high: float) -> float:
    """``value``; UserError unless it is from ``low`` to ``high``."""
    if not low <= value <= high:
        raise UserError(f"{name} = {value:g}: choose a number from {low:g} to {high:g}")
    return value
