"""Long curves, drawn in few points that look the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def thinned(x: Floats, y: Floats, points: int) -> tuple[Floats, Floats]:
    """At most about so many points that look the same as a line: the lowest and highest of each short stretch."""
    size = -(-len(y) // (points // 2))
    if size <= 2:
        return x, y
    whole = len(y) // size * size
    stretches = y[:whole].reshape(-1, size)
    ends = np.stack([stretches.argmin(axis=1), stretches.argmax(axis=1)], axis=1)
    keep = (np.sort(ends, axis=1) + np.arange(0, whole, size)[:, None]).ravel()
    return np.concatenate([x[keep], x[whole:]]), np.concatenate([y[keep], y[whole:]])


def staircase(far: Floats, tar: Floats, left: float, points: int) -> tuple[Floats, Floats]:
    """The largest TAR at or below each FAR, from ``left`` to 1, in about so many steps at most."""
    targets = np.unique(far[far > left])
    if len(targets) > points:
        targets = np.geomspace(left, 1, points)
    targets = np.concatenate([[left], targets])
    return targets, tar[np.searchsorted(far, targets, side="right") - 1]
