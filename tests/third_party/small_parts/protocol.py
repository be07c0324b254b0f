"""Of three photographs, which one is of somebody else?"""

from pathlib import Path

import numpy as np

from facetrain.evaluate.protocols.base import Figure, Measured, Photographs, Protocol
from facetrain.evaluate.protocols.files import fault, find_files, read_lines
from facetrain.evaluate.protocols.pairwise import unique_rows


class OddOneOut(Protocol):
    """`threes.txt`: three photographs a line, the last one being the odd one out."""

    def __init__(self, data: Path, *, threes: str = "threes.txt") -> None:
        path, names = data / threes, []
        wanted: dict[str, tuple[Path, int]] = {}
        for number, line in read_lines(path, "list of threes"):
            if len(line.split()) != 3:
                raise fault(path, number, "expected three photographs", line)
            names += line.split()
            wanted |= {name: (path, number) for name in line.split() if name not in wanted}
        paths = find_files(data, wanted)
        unique, rows = unique_rows(names)
        self.photographs = Photographs(data, [paths[name] for name in unique])
        self.threes = rows.reshape(-1, 3)
        self.figures = {"found": Figure("odd one found")}
        self.facts = {"threes": str(path)}

    def measure(self, embeddings: np.ndarray, found: np.ndarray, *, device: object = None) -> Measured:
        a, b, odd = (embeddings[rows] for rows in self.threes.T)
        pair, rest = (a * b).sum(1), np.maximum((a * odd).sum(1), (b * odd).sum(1))
        right = found[self.threes].all(1) & (pair > rest)
        return Measured({"found": float(right.mean())}, {"threes": len(right)})
