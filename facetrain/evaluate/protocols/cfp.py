"""CFP (Sengupta et al., 2016): 500 people, ten photographs of each from the front and four in profile.

Protocol/Pair_list_F.txt, Pair_list_P.txt     1 ../Data/Images/001/frontal/01.jpg
Protocol/Split/FP/01/same.txt, diff.txt       7,3        photograph 7 of F and 3 of P; in Split/FF both are of F
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.evaluate.protocols.base import Measured, Photographs, Protocol
from facetrain.evaluate.protocols.files import fault, find_files, first_there, read_lines
from facetrain.evaluate.protocols.pairwise import FIGURES, PairRows, check_no_face, measure_pairs, unique_rows
from facetrain.evaluate.search import Embeddings

KINDS = {"FP": ("F", "P"), "FF": ("F", "F")}
Named = dict[int, tuple[str, int]]  # number → photograph below Data/Images, line


class CfpFp(Protocol):
    """CFP's ten folds: each is measured at the threshold that is best on the others.

    data: ``cfp-dataset``, or the folder above. kind: ``FP``, a photograph from the front with one in profile; ``FF``, both
    from the front. images: the folder of the photographs, ``Data/Images``, where it lies elsewhere (aligned ones, say).
    """

    figures = FIGURES

    def __init__(
        self, data: Path, *, kind: str = "FP", images: str | None = None, no_face: str = "different"
    ) -> None:
        self.no_face = check_no_face(no_face)
        if kind not in KINDS:
            raise UserError(f"kind = '{kind}': choose {' or '.join(KINDS)}")
        protocol = first_there(data, ("Protocol", "cfp-dataset/Protocol"), "protocol of CFP")
        files = [protocol / f"Pair_list_{letter}.txt" for letter in KINDS[kind]]
        named = {file: _read_list(file) for file in dict.fromkeys(files)}
        wanted: dict[str, tuple[Path, int]] = {}
        names: tuple[list[str], list[str]] = ([], [])
        same: list[bool] = []
        folds: list[int] = []
        for fold, folder in enumerate(_fold_folders(protocol / "Split" / kind)):
            for is_same, file in ((True, folder / "same.txt"), (False, folder / "diff.txt")):
                for line, numbers in _read_fold(file):
                    for ends, pair_list, number in zip(names, files, numbers, strict=True):
                        if number not in named[pair_list]:
                            raise fault(file, line, f"{pair_list.name} has no photograph {number}")
                        name, where = named[pair_list][number]
                        wanted.setdefault(name, (pair_list, where))
                        ends.append(name)
                    same.append(is_same)
                    folds.append(fold)
        root = Path(images) if images else protocol.parent / "Data" / "Images"
        found = find_files(root, wanted)
        keys, rows = unique_rows(names[0] + names[1])
        self.photographs = Photographs(root, [found[key] for key in keys])
        self.pairs = PairRows(rows[: len(same)], rows[len(same) :], np.array(same), np.array(folds, np.int64))
        self.facts = {"pairs": str(protocol / "Split" / kind), "images": str(root), "kind": kind}

    def measure(self, embeddings: Embeddings, found: NDArray[np.bool_], *, device: Any = None) -> Measured:
        return measure_pairs(self.pairs, embeddings, found, no_face=self.no_face)


def _read_list(path: Path) -> Named:
    """The photographs of a list, ``001/frontal/01.jpg``."""
    named: Named = {}
    for line, text in read_lines(path, "list of photographs"):
        number, _, name = text.partition(" ")
        parts = name.strip().split("/")[-3:]
        if (
            not (number.isascii() and number.isdecimal())
            or len(parts) < 3
            or any(part in ("", ".", "..") for part in parts)
        ):
            raise fault(path, line, "expected 'number ../Data/Images/person/kind/photograph'", text)
        if int(number) in named:
            raise fault(
                path, line, f"photograph {number} is here a second time, after line {named[int(number)][1]}"
            )
        named[int(number)] = ("/".join(parts), line)
    return named


def _fold_folders(split: Path) -> list[Path]:
    """The folders 01, 02, …; UserError unless all are there from the first to the last."""
    folders = sorted(split.iterdir(), key=lambda path: path.name) if split.is_dir() else []
    folders = [path for path in folders if path.name.isdecimal() and path.is_dir()]
    if not folders:
        raise UserError(f"{split} holds no folds: looked for the folders 01, 02, …")
    for expected, folder in enumerate(folders, start=1):
        if int(folder.name) != expected:
            raise UserError(f"{split}: there is no fold {expected:02d}, and there is a fold {folder.name}")
    return folders


def _read_fold(path: Path) -> list[tuple[int, list[int]]]:
    """(line, the two numbers) of each pair."""
    pairs = []
    for line, text in read_lines(path, "list of pairs"):
        fields = [field.strip() for field in text.split(",")]
        if len(fields) != 2 or not all(field.isascii() and field.isdecimal() for field in fields):
            raise fault(path, line, "expected the numbers of two photographs, '7,3'", text)
        pairs.append((line, [int(field) for field in fields]))
    return pairs
