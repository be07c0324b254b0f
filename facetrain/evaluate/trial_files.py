"""What an evaluation leaves beside its JSON file, for a report or for other programs: every trial, and pictures of the
hardest ones.

    NAME.trials.parquet   score, same, group; first, second: the photographs (absent where templates were compared)
    NAME.hardest.parquet  first, second, same, score, rank (0: the hardest of its kind); first_image, second_image: the
                          crops, as PNG
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from facetrain.evaluate.protocols.base import Photographs, Trials
from facetrain.files import replacing

HARDEST = 24  # pairs of either kind

Shown = Callable[[NDArray[np.int64]], Iterable[NDArray[np.uint8]]]


def write_trials(out: Path, trials: Trials, photographs: Photographs) -> Path:
    """Write OUT.trials.parquet; scores are float64, -inf where a pair was refused."""
    columns: dict[str, pa.Array] = {"score": pa.array(trials.scores), "same": pa.array(trials.same)}
    if trials.groups is not None:
        columns["group"] = pa.array(trials.groups.astype(np.int32))
    if trials.first is not None and trials.second is not None:
        paths = pa.array(list(photographs.paths), pa.string())
        for name, rows in (("first", trials.first), ("second", trials.second)):
            columns[name] = pa.DictionaryArray.from_arrays(pa.array(rows.astype(np.int32)), paths)
    file = out.with_name(f"{out.name}.trials.parquet")
    with replacing(file) as temp:
        pq.write_table(pa.table(columns), temp, compression="zstd")
    return file


def write_texts(out: Path, files: Mapping[str, Iterable[str]]) -> list[Path]:
    """Write the texts of a protocol beside OUT: OUT.scores-dev.txt of "scores-dev.txt"."""
    written = []
    for ending, lines in files.items():
        file = out.with_name(f"{out.name}.{ending}")
        with replacing(file) as temp, open(temp, "w", encoding="utf-8") as handle:
            handle.writelines(lines)
        written.append(file)
    return written


def write_hardest(
    out: Path, trials: Trials, photographs: Photographs, show: Shown, count: int = HARDEST
) -> Path:
    """Write OUT.hardest.parquet: the same-person pairs with the lowest scores, the others with the highest.

    Refused pairs are left out: there is nothing to see. show: crops uint8 [n, size_px, size_px, 3], RGB, of rows of the
    photographs, in batches.
    """
    assert trials.first is not None and trials.second is not None
    rows = []
    for same, hardness in ((True, trials.scores), (False, -trials.scores)):
        of_kind = np.flatnonzero((trials.same == same) & np.isfinite(trials.scores))
        rows.append(of_kind[np.argsort(hardness[of_kind], kind="stable")[:count]])
    chosen = np.concatenate(rows)
    ends = np.stack([trials.first[chosen], trials.second[chosen]])
    wanted, at = np.unique(ends, return_inverse=True)
    images = [_png(crop) for batch in show(wanted) for crop in batch] if len(wanted) else []
    names = [photographs.paths[row] for row in wanted.tolist()]
    first, second = at.reshape(2, -1)
    table = pa.table(
        {
            "first": pa.array([names[i] for i in first.tolist()], pa.string()),
            "second": pa.array([names[i] for i in second.tolist()], pa.string()),
            "same": pa.array(trials.same[chosen]),
            "score": pa.array(trials.scores[chosen]),
            "rank": pa.array(np.concatenate([np.arange(len(part)) for part in rows]).astype(np.int32)),
            "first_image": pa.array([images[i] for i in first.tolist()], pa.binary()),
            "second_image": pa.array([images[i] for i in second.tolist()], pa.binary()),
        }
    )
    file = out.with_name(f"{out.name}.hardest.parquet")
    with replacing(file) as temp:
        pq.write_table(table, temp)
    return file


def _png(crop: NDArray[np.uint8]) -> bytes:
    done, data = cv2.imencode(".png", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))
    assert done
    return data.tobytes()
