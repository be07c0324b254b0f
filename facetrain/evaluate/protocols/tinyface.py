"""TinyFace (Cheng et al., 2018): faces of some 20 pixels, looked for in a gallery among strangers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.evaluate.identification import RANKS
from facetrain.evaluate.mates import RankedMates, rank_mates
from facetrain.evaluate.protocols.base import Figure, Measured, Photographs, Protocol, without_face
from facetrain.evaluate.protocols.files import find_files, first_there
from facetrain.evaluate.protocols.named_lists import check_mates, names_below, read_labelled
from facetrain.evaluate.search import Embeddings

WITHOUT = "_without_distractors"


class TinyFace(Protocol):
    """Closed-set identification: every probe has a mate in the gallery, and the distractors are nobody's.

    data: the folder with ``Testing_Set/``, or that. distractors: False leaves ``Gallery_Distractor/`` alone, and measures
    without it only. lists: the folder of the two lists where they are not beside the photographs.

    A photograph in which no face was found (in an aligned tree) is never found: a probe misses, a mate of it counts as
    missed, a distractor disturbs nobody.
    """

    def __init__(self, data: Path, *, distractors: bool = True, lists: str | None = None) -> None:
        folders = ("Testing_Set/Probe", "tinyface/Testing_Set/Probe", "Probe")
        root = first_there(data, folders, "test set of TinyFace").parent
        where = Path(lists) if lists else root
        probes = read_labelled(where, "probe_img_ID_pairs", ("probe_set", "probe_ids"), root, "Probe")
        names = ("gallery_set", "gallery_ids")
        gallery = read_labelled(where, "gallery_match_img_ID_pairs", names, root, "Gallery_Match")
        check_mates(probes, gallery)
        found = find_files(root, {**probes.lines, **gallery.lines})
        folder = "Gallery_Distractor"
        strangers = [f"{folder}/{name}" for name in names_below(root / folder)] if distractors else []

        self.photographs = Photographs(root, [*found.values(), *strangers], kind="faces")
        kinds, codes = np.unique([*probes.labels, *gallery.labels], return_inverse=True)
        self.probe_labels, self.gallery_labels = np.split(codes, [len(probes.labels)])
        self.num_people, self.num_distractors = len(kinds), len(strangers)
        self.notes = list(dict.fromkeys(probes.notes + gallery.notes))
        self.figures = (_figures("", "") if distractors else {}) | _figures(WITHOUT, ", no distractors")
        self.facts = {"data": str(root), "distractors": distractors}

    def measure(self, embeddings: Embeddings, found: NDArray[np.bool_], *, device: Any = None) -> Measured:
        probes, gallery = len(self.probe_labels), len(self.gallery_labels)
        ends = [probes, probes + gallery]
        there = np.split(found, ends)
        q, g, d = (np.flatnonzero(part) + start for part, start in zip(there, [0, *ends], strict=True))
        ranking = rank_mates(
            embeddings[q],
            self.probe_labels[there[0]],
            embeddings[g],
            self.gallery_labels[there[1]],
            distractors=embeddings[d],
            num_distractors=[len(d), 0],
            device=device,
        )
        # Mates without a face count among those that a probe has.
        mates = np.bincount(self.gallery_labels, minlength=self.num_people)[self.probe_labels]
        mates_of_pair = mates[q][ranking.query_rows]
        values = _values("", ranking, 0, mates_of_pair, probes) if self.num_distractors else {}
        values |= _values(WITHOUT, ranking, 1, mates_of_pair, probes)
        notes = list(self.notes)
        if not found.all():
            notes.append(f"{without_face(found)}: probes and mates among them count as missed")
        return Measured(
            values=values,
            counts={
                "probes": probes,
                "people": self.num_people,
                "gallery / distractors": f"{gallery:,} / {self.num_distractors:,}",
            },
            details={
                "probes": probes,
                "people": self.num_people,
                "gallery": gallery,
                "num_distractors": self.num_distractors,
            },
            notes=notes,
        )


def _figures(ending: str, label: str) -> dict[str, Figure]:
    return {
        **{f"rank_{rank}{ending}": Figure(f"rank {rank}{label}") for rank in RANKS},
        f"map{ending}": Figure(f"mAP{label}"),
        f"map_trapezoid{ending}": Figure(f"mAP by trapezoids{label}"),
    }


def _values(
    ending: str, ranking: RankedMates, column: int, mates: NDArray[np.int64], probes: int
) -> dict[str, float | None]:
    """Of all ``probes``, those that are not in the ranking missing. mates: int [P], of the probe of each pair."""
    positions, place = ranking.positions[:, column], ranking.place
    best = positions[place == 1]
    precision = place / positions
    # One row before the mate: the curve's start has a precision of 1.
    before = np.where(positions == 1, 1.0, (place - 1) / np.maximum(positions - 1, 1))
    return {
        **{f"rank_{rank}{ending}": float((best <= rank).sum() / probes) for rank in RANKS},
        f"map{ending}": float((precision / mates).sum() / probes),
        f"map_trapezoid{ending}": float(((precision + before) / 2 / mates).sum() / probes),
    }
