"""Splitting into training and validation: a column of the index, seeded and stable.

Whether a person (or a photograph) is for validation follows from a hash of its name (or content) and the seed alone,
so adding or removing others moves nobody. The share is met in expectation, not to the last person.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from blake3 import blake3

from facetrain.errors import UserError

WAYS = ("identity", "image")
MIN_PEOPLE = 2  # on each side: fewer give no pair of different people


def split(
    person: np.ndarray,
    names: pa.Array,
    content: pa.ChunkedArray,
    kept: np.ndarray,
    ratio: float,
    *,
    by: str,
    seed: int,
) -> np.ndarray:
    """bool [rows]: for validation; of use where ``kept``.

    person: int [rows], the code of each row's identity among ``names``, -1 where it has none. content: BLAKE3 [rows].
    by ``identity``: validation people are people that training never sees; at least two on either side, the lowest
    hashes first when chance gives fewer. by ``image``: every person keeps at least one photograph for training.
    Raises UserError for a ratio outside (0, 1), or too few people.
    """
    if not 0 < ratio < 1:
        raise UserError(f"a validation share of {ratio:g}: choose a number between 0 and 1, such as 0.1")
    if by == "identity":
        has_kept = np.zeros(len(names) + 1, bool)  # the last is for -1
        has_kept[person[kept]] = True
        return _validation_people(names, has_kept, ratio, seed)[person]
    if by == "image":
        return _validation_images(content, person, len(names), kept, ratio, seed)
    raise UserError(f"cannot split by '{by}': choose {' or '.join(WAYS)}")


def _validation_people(names: pa.Array, has_kept: np.ndarray, ratio: float, seed: int) -> np.ndarray:
    if has_kept.sum() < 2 * MIN_PEOPLE:
        raise UserError(
            f"{has_kept.sum()} people are too few to split: at least {2 * MIN_PEOPLE} are needed "
            f"(`ft prune --min` with a smaller number keeps more)"
        )
    digests = b"".join(blake3(f"{seed}/{name}".encode()).digest(8) for name in names.to_pylist())
    hashes = np.append(np.frombuffer(digests, "<u8"), np.uint64(0))
    chosen = hashes < _threshold(ratio)
    order = np.argsort(hashes, kind="stable")
    order = order[has_kept[order]]
    chosen[order[:MIN_PEOPLE]] = True
    chosen[order[-MIN_PEOPLE:]] = False
    return chosen


def _validation_images(
    content: pa.ChunkedArray, person: np.ndarray, people: int, keep: np.ndarray, ratio: float, seed: int
) -> np.ndarray:
    if not keep.any():
        raise UserError("no photographs to split: `ft prune --min` with a smaller number keeps more")
    hashes = _mix(_first_words(content) ^ np.uint64(int.from_bytes(blake3(b"%d" % seed).digest(8))))
    chosen = hashes < _threshold(ratio)
    # The photograph with a person's highest hash is always for training, and so are all copies of it.
    highest = np.zeros(people + 1, np.uint64)
    np.maximum.at(highest, person[keep], hashes[keep])
    return chosen & (hashes != highest[person])


def _first_words(content: pa.ChunkedArray) -> np.ndarray:
    """uint64 [rows]: the first eight bytes of each hash; 0 where there is none."""
    words = [np.zeros(0, np.uint64)]
    for chunk in content.chunks:
        digests = chunk.fill_null(bytes(32))
        stop = digests.offset + len(digests)
        all_words = np.frombuffer(digests.buffers()[1], "<u8", count=4 * stop).reshape(-1, 4)
        words.append(all_words[digests.offset :, 0])
    return np.concatenate(words)


def _threshold(ratio: float) -> np.uint64:
    return np.uint64(ratio * 2.0**64)


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele, Lea and Flood 2014): spreads every bit over all."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
