"""Telling that a training has collapsed: every photograph gets the same embedding."""

from __future__ import annotations

SPREAD_OF_COLLAPSE = 0.05


def collapse_line(stats: dict[str, float], embedding_dim: int, remedy: str, at: str = "") -> str | None:
    """What to tell the user where `is_collapsed`, else None. ``at``: what else the loss depends on."""
    if not is_collapsed(stats, embedding_dim):
        return None
    return (
        f"training has collapsed: every photograph gets the same embedding (loss {stats['loss']:.3f}{at}): start again "
        f"with a lower --lr, or {remedy}"
    )


def is_collapsed(stats: dict[str, float], embedding_dim: int) -> bool:
    """Whether unit embeddings spread so little; False where ``embedding_std`` is not among the statistics.

    Spread in all directions, they have an ``embedding_std`` of 1/√embedding_dim.
    """
    return stats.get("embedding_std", 1.0) * embedding_dim**0.5 < SPREAD_OF_COLLAPSE
