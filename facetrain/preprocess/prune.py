"""Pruning: leave out people with too few photographs. A column of the index; nothing is moved or deleted."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from facetrain.errors import UserError


def prune(identity: pa.ChunkedArray, usable: pa.ChunkedArray, min_photographs: int) -> pa.ChunkedArray:
    """bool per row: of a person with at least ``min_photographs`` usable photographs."""
    if min_photographs < 1:
        raise UserError(f"--min {min_photographs}: ask for at least 1 photograph per person")
    counts = (
        pa.table([identity.filter(usable)], ["identity"]).group_by("identity").aggregate([([], "count_all")])
    )
    enough = counts["identity"].filter(pc.greater_equal(counts["count_all"], min_photographs))
    return pc.is_in(identity, enough.combine_chunks())
