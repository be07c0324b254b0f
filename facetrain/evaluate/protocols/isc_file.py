"""Embeddings in the image-similarity challenge's layout: HDF5 with query, query_ids, reference, reference_ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import UserError

ROWS = 65536  # read at a time


@dataclass(frozen=True)
class Descriptors:
    """A file that is as it should be, its numbers not yet read."""

    path: Path
    query_ids: list[str]
    reference_ids: list[str]

    def read(self, name: str) -> NDArray[np.float32]:
        """``query`` or ``reference``, float32 [n, D]; UserError for a row that is not finite."""
        with _opened(self.path) as file:
            data = file[name]
            values = np.empty(data.shape, np.float32)
            for start in range(0, len(values), ROWS):
                part = values[start : start + ROWS]
                data.read_direct(part, np.s_[start : start + len(part)])
                bad = ~np.isfinite(part).all(axis=1)
                if bad.any():
                    ids = self.query_ids if name == "query" else self.reference_ids
                    raise UserError(
                        f"{self.path}: the embedding of {name} {ids[start + int(bad.argmax())]} is not finite"
                    )
        return values


def open_descriptors(path: Path) -> Descriptors:
    """Check the file and read the names in it; UserError for whatever is wrong."""
    with _opened(path) as file:
        ids = {}
        for name in ("query", "reference"):
            for wanted in (name, f"{name}_ids"):
                if wanted not in file:
                    more = "; `ft embed --query FOLDER` writes both" if name == "query" else ""
                    raise UserError(
                        f"{path} has no {wanted}: query, query_ids, reference and reference_ids are needed{more}"
                    )
            if file[name].ndim != 2 or file[name].dtype.kind != "f":
                raise UserError(
                    f"{path}: {name} is {file[name].dtype} {list(file[name].shape)}: float32 [n, D] is needed"
                )
            ids[name] = [_text(value) for value in file[f"{name}_ids"][()].reshape(-1).tolist()]
            if len(ids[name]) != len(file[name]):
                raise UserError(
                    f"{path}: {len(file[name]):,} rows of {name} and {len(ids[name]):,} {name}_ids: one for each is needed"
                )
            if not ids[name]:
                raise UserError(f"{path}: {name} is empty")
            if len(set(ids[name])) < len(ids[name]):
                seen: set[str] = set()
                twice = next(one for one in ids[name] if one in seen or seen.add(one))  # type: ignore[func-returns-value]
                raise UserError(f"{path}: {twice} is twice among the {name}_ids")
        if file["query"].shape[1] != file["reference"].shape[1]:
            raise UserError(
                f"{path}: queries have {file['query'].shape[1]} dimensions and references {file['reference'].shape[1]}"
            )
    return Descriptors(path, ids["query"], ids["reference"])


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _opened(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise UserError("an .h5 file needs h5py: pip install 'facetrain[hdf5]'") from None
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of embeddings")
    try:
        return h5py.File(path, "r")
    except OSError:
        raise UserError(f"{path} is no HDF5 file, or damaged") from None
