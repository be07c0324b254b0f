"""Protocols by name, with what only the pipeline can give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.datasets.importers.verification_bin import read_bin
from facetrain.errors import UserError
from facetrain.evaluate.protocols.base import Measured, Photographs, Protocol
from facetrain.evaluate.protocols.pairwise import FIGURES, PairRows, measure_pairs, unique_rows
from facetrain.evaluate.search import Embeddings
from facetrain.evaluate.verification import NUM_FOLDS
from facetrain.pipeline.crop_trees import spec_of_crops
from facetrain.plugins import make
from facetrain.workspace import Workspace


class BinFile(Protocol):
    """LFW's protocol on one of insightface's verification sets, a .bin file with the crops in it.

    Ten folds, cut from the pairs in the file's order, as insightface cuts them. Which crops the file holds it does not
    say: they are taken to be of the network's kind if they are of its size.
    """

    figures = FIGURES

    def __init__(self, data: Path) -> None:
        pairs = read_bin(data)
        images = [image for first, second, _ in pairs.pairs() for image in (first, second)]
        unique, rows = unique_rows(images)  # equal images are embedded once
        first = np.unique(rows, return_index=True)[1]
        names = [f"image {i + 1} of {len(images):,}" for i in first.tolist()]
        self.photographs = Photographs(data, names, kind="crops", read=unique.__getitem__)
        same = np.array(pairs.same)
        parts = np.array_split(same, min(NUM_FOLDS, len(same)))
        folds = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        self.pairs = PairRows(rows[::2], rows[1::2], same, folds)
        self.facts = {"pairs": str(data)}

    def measure(self, embeddings: Embeddings, found: NDArray[np.bool_], *, device: Any = None) -> Measured:
        return measure_pairs(self.pairs, embeddings, found)


def open_protocol(workspace: Workspace, name: str, data: Path, arguments: dict[str, Any]) -> Protocol:
    """A protocol of the family "protocols" on ``data``; UserError for what is wrong with its files or arguments.

    A ``data`` that ends in .bin is one of insightface's files whatever the set it is made of is called.
    """
    if data.suffix == ".bin":
        name = "bin"
    elif name == "lfw" and spec_of_crops(workspace, Path(arguments.get("images", data))) is not None:
        arguments = {
            "allow_missing": True,
            **arguments,
        }  # a crop that is not there is a face that was not found
    made = make("protocols", name, arguments, data=data)
    if not isinstance(made, Protocol):
        raise UserError(
            f"'{name}' cannot be used as a protocol: it makes a {type(made).__name__}, no Protocol"
        )
    return made
