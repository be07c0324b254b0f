"""QMUL-SurvFace (Cheng et al., 2018): faces from surveillance cameras, looked for on a watch list, and compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.evaluate.identification import FPIR_TARGETS
from facetrain.evaluate.protocols.base import Figure, Measured, Photographs, Protocol, Trials, without_face
from facetrain.evaluate.protocols.files import fault, find_files, first_there
from facetrain.evaluate.protocols.named_lists import (
    check_mates,
    names_below,
    read_labelled,
    read_two_columns,
)
from facetrain.evaluate.protocols.pairwise import PairRows, pair_scores, unique_rows
from facetrain.evaluate.search import Embeddings
from facetrain.evaluate.templates import GalleryResult, identify, make_templates
from facetrain.evaluate.verification import deal_folds, verify

PARTS = ("both", "identification", "verification")
GALLERIES = ("templates", "images")
RANK = 20
FAR_TARGETS = (0.3, 0.1, 0.01, 0.001)

IDENTIFICATION = {
    **{f"tpir{RANK}_at_fpir_{fpir:g}": Figure(f"TPIR{RANK} at FPIR {fpir:g}") for fpir in FPIR_TARGETS},
    "rank_1": Figure("rank 1, of mated probes"),
}
VERIFICATION = {
    **{f"tar_at_far_{far:g}": Figure(f"TAR at FAR {far:g}") for far in FAR_TARGETS},
    "auc": Figure("AUC"),
    "accuracy": Figure("accuracy, mean of folds"),
}


@dataclass(frozen=True, eq=False)
class Searches:
    """Rows int64 of the protocol's photographs; labels int64 of the two whose people are known."""

    gallery: NDArray[np.int64]
    gallery_labels: NDArray[np.int64]
    mated: NDArray[np.int64]
    mated_labels: NDArray[np.int64]
    unmated: NDArray[np.int64]


class SurvFace(Protocol):
    """Open-set identification, and verification of pairs.

    data: the folder with ``Face_Identification_Test_Set/`` and ``Face_Verification_Test_Set/``, or its parent.
    part: ``both``, or one of them. gallery: ``templates``, a person's gallery photographs as one, the mean of their
    embeddings; or ``images``, each on its own.

    A photograph in which no face was found (in an aligned tree) is refused: a probe gives no candidate, a pair is told
    apart, a gallery photograph is no part of its template.
    """

    def __init__(self, data: Path, *, part: str = "both", gallery: str = "templates") -> None:
        if part not in PARTS:
            raise UserError(f"part = '{part}': choose {', '.join(PARTS[:2])} or {PARTS[2]}")
        if gallery not in GALLERIES:
            raise UserError(f"gallery = '{gallery}': choose {' or '.join(GALLERIES)}")
        self.gallery = gallery
        self.figures = (IDENTIFICATION if part != "verification" else {}) | (
            VERIFICATION if part != "identification" else {}
        )
        needed = "Face_Verification" if part == "verification" else "Face_Identification"
        folders = (f"{needed}_Test_Set", f"QMUL-SurvFace/{needed}_Test_Set")
        root = first_there(data, folders, "test set of QMUL-SurvFace").parent
        paths: list[str] = []
        self.notes: list[str] = []
        self.searches = self._read_searches(root, paths) if part != "verification" else None
        self.pairs = self._read_pairs(root, paths) if part != "identification" else None
        self.photographs = Photographs(root, paths, kind="faces")
        self.facts = {"data": str(root), "part": part, "gallery": gallery}

    def _read_searches(self, root: Path, paths: list[str]) -> Searches:
        here = "Face_Identification_Test_Set"
        stem = "gallery_img_ID_pairs"
        lists = _folder_of(root, "Face_Identification", stem)
        gallery = read_labelled(lists, stem, ("gallery_set", "gallery_ids"), root, f"{here}/gallery")
        stem, names = "mated_probe_img_ID_pairs", ("mated_probe_set", "mated_probe_ids")
        mated = read_labelled(lists, stem, names, root, f"{here}/mated_probe")
        check_mates(mated, gallery)
        unmated = [f"{here}/unmated_probe/{name}" for name in names_below(root / here / "unmated_probe")]
        self.notes += dict.fromkeys(gallery.notes + mated.notes)

        start = len(paths)
        paths += [*find_files(root, {**gallery.lines, **mated.lines}).values(), *unmated]
        _, codes = np.unique([*gallery.labels, *mated.labels], return_inverse=True)
        ends = [len(gallery.labels), len(codes)]
        rows = np.split(np.arange(start, len(paths)), ends)
        return Searches(rows[0], codes[: ends[0]], rows[1], codes[ends[0] :], rows[2])

    def _read_pairs(self, root: Path, paths: list[str]) -> PairRows:
        here = "Face_Verification_Test_Set"
        ends: list[str] = []
        lines: dict[str, tuple[Path, int]] = {}
        counts = []
        for stem in ("positive_pairs_names", "negative_pairs_names"):
            folder = _folder_of(root, "Face_Verification", stem)
            path = first_there(folder, (f"{stem}.csv", f"{stem}.mat"), "list of pairs")
            rows = read_two_columns(path, "list of pairs", (stem,))
            counts.append(len(rows))
            for line, *names in rows:
                if names[0] == names[1]:
                    raise fault(path, line, "a photograph cannot be compared with itself", names[0])
                for name in (f"{here}/verification_images/{name}" for name in names):
                    lines.setdefault(name, (path, line))
                    ends.append(name)
        unique, rows_of = unique_rows(ends)
        found = find_files(root, lines)
        rows_of += len(paths)
        paths += [found[name] for name in unique]
        same = np.repeat([True, False], counts)
        return PairRows(rows_of[::2], rows_of[1::2], same, deal_folds(same))

    def measure(self, embeddings: Embeddings, found: NDArray[np.bool_], *, device: Any = None) -> Measured:
        values: dict[str, float | None] = {}
        counts: dict[str, int | str] = {}
        details: dict[str, Any] = {}
        trials = None
        if self.searches is not None:
            searches = self.searches
            result = _identify(searches, self.gallery, embeddings, found, device)
            assert result.open_set is not None  # there are unmated probes
            values |= {
                f"tpir{RANK}_at_fpir_{fpir:g}": rate for fpir, rate in result.open_set.tpir[RANK].items()
            }
            values["rank_1"] = result.rank_rates[1]
            people = len(np.unique(searches.gallery_labels))
            counts["probes, mated / unmated"] = f"{len(searches.mated):,} / {len(searches.unmated):,}"
            counts["gallery, people / photographs"] = f"{people:,} / {len(searches.gallery):,}"
            details["identification"] = result.to_dict()
        if self.pairs is not None:
            pairs = self.pairs
            scores = pair_scores(embeddings, found, pairs.first, pairs.second)
            verified = verify(scores, pairs.same, pairs.folds, far_targets=FAR_TARGETS)
            values |= {f"tar_at_far_{far:g}": tar for far, tar in verified.tar_at_far.items()}
            values |= {"auc": verified.auc, "accuracy": verified.accuracy_mean}
            counts["pairs, same / different"] = f"{verified.same_pairs:,} / {verified.different_pairs:,}"
            details["verification"] = verified.to_dict()
            trials = Trials(scores, pairs.same, pairs.first, pairs.second, pairs.folds)
        notes = list(self.notes)
        if not found.all():
            notes.append(f"{without_face(found)}: they are refused")
        return Measured(values, counts, details, trials, notes=notes)


def _folder_of(root: Path, part: str, stem: str) -> Path:
    """Where a list is: copies of the set have it beside the photographs, or beside the evaluation code."""
    other = root / f"{part}_Evaluation"
    if any((other / f"{stem}{suffix}").is_file() for suffix in (".csv", ".mat")):
        beside = root / f"{part}_Test_Set"
        if not any((beside / f"{stem}{suffix}").is_file() for suffix in (".csv", ".mat")):
            return other
    return root / f"{part}_Test_Set"


def _identify(
    searches: Searches, gallery: str, embeddings: Embeddings, found: NDArray[np.bool_], device: Any
) -> GalleryResult:
    """Every probe is a template of its own, and so is a person of the gallery, or each photograph of it."""
    together = gallery == "templates"
    labels = searches.gallery_labels
    of_gallery = labels if together else np.arange(len(labels))
    subjects = np.unique(labels) if together else labels  # 0, 1, …: every one has a photograph
    probes = np.arange(len(searches.mated) + len(searches.unmated)) + len(subjects)
    faces = np.concatenate([searches.gallery, searches.mated, searches.unmated])
    templates = make_templates(
        embeddings,
        found,
        faces,
        np.concatenate([of_gallery, probes]),
        np.arange(len(faces)),
        count=len(subjects) + len(probes),
    )
    return identify(
        templates,
        probes,
        np.concatenate([searches.mated_labels, np.full(len(searches.unmated), -1)]),
        np.arange(len(subjects)),
        subjects,
        ranks=(1,),
        open_set_ranks=(RANK,),
        fpir_targets=FPIR_TARGETS,
        device=device,
    )
