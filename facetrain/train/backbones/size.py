"""The smallest images that a network can look at."""

from __future__ import annotations

from facetrain.errors import UserError


def check_size(name: str, size_px: int, min_size_px: int) -> None:
    """Raise UserError for images that are too small for the network ``name``."""
    if size_px < min_size_px:
        raise UserError(
            f"{name} needs images of at least {min_size_px} px, not {size_px}: align with --size {max(96, min_size_px)}"
        )
