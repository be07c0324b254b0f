"""IJB-B (Whitelam et al., 2017) and IJB-C (Maze et al., 2018), from the lists that insightface hands out with them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.evaluate.protocols.base import Figure, Measured, Photographs, Protocol, Trials
from facetrain.evaluate.protocols.files import find_files, first_there
from facetrain.evaluate.protocols.ijb_files import (
    FACES,
    MATCHES,
    PAIRS,
    POINTS,
    SUBJECTS,
    ListFile,
    read_list,
)
from facetrain.evaluate.protocols.pairwise import pair_scores, rate_figures, unique_rows
from facetrain.evaluate.search import Embeddings
from facetrain.evaluate.templates import GalleryResult, Templates, identify, make_templates
from facetrain.evaluate.verification import FAR_TARGETS, auc, eer, roc, tar_at_far
from facetrain.image_spec import SPEC_FILE

FACES_FOLDER = "loose_crop"
TASKS = ("1:1", "1:N", "all")
GALLERIES = {"ijbb": ("S1", "S2"), "ijbc": ("G1", "G2")}
RANKS = (1, 5, 10)
FPIR_TARGETS = (0.1, 0.01, 0.001)
CANDIDATES = 20  # of a search's list: a mate further down is not found, whatever its score
RANKED_BY = "tar_at_far_0.0001"

VERIFICATION = {RANKED_BY: rate_figures()[RANKED_BY]} | rate_figures()
IDENTIFICATION = {
    **{f"rank_{rank}": Figure(f"rank {rank} (mean of galleries)") for rank in RANKS},
    **{
        f"tpir_at_fpir_{target:g}": Figure(f"TPIR at FPIR {target:g} (mean of galleries)")
        for target in FPIR_TARGETS
    },
}

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Rows of templates, int64 [n] each; same bool [n]."""

    first: Ints
    second: Ints
    same: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Set:
    """A gallery or the probes: rows of templates, int64 [n], and the number of each one's person."""

    rows: Ints
    subjects: Ints


class Ijb(Protocol):
    """Verification and identification of templates.

    data: the folder with ``meta/`` (the lists, whose names begin with ijbb or ijbc) and ``loose_crop/`` (the faces);
    ``images`` names the latter where it is called something else. task: ``1:1``, ``1:N``, ``all``; by default
    whatever there are lists for. detector_scores: each face counts by the score that its detector gave it.
    """

    def __init__(
        self,
        data: Path,
        *,
        task: str | None = None,
        detector_scores: bool = False,
        images: str | None = None,
    ) -> None:
        if task is not None and task not in TASKS:
            raise UserError(f"task = '{task}': choose {', '.join(TASKS)}")
        folder, self.prefix = _lists_of(data)
        root, below = _photographs_in(Path(images) if images else data, named=images is not None)

        faces = read_list(folder / f"{self.prefix}_face_tid_mid.txt", FACES)
        names, self.faces = unique_rows(list(faces.names))
        self.template_ids, self.template_rows = np.unique(faces.numbers["template"], return_inverse=True)
        self.media = faces.numbers["medium"]
        landmarks, scores = _read_points(
            folder / f"{self.prefix}_name_5pts_score.txt", faces, names, self.faces
        )
        self.weights = None
        if detector_scores:
            if scores is None:
                raise UserError(
                    f"detector_scores needs {folder / self.prefix}_name_5pts_score.txt: there is none"
                )
            self.weights = scores[self.faces]

        self.pairs = None if task == "1:N" else self._read_pairs(folder, faces)
        self.galleries: dict[str, _Set] = {}
        self.probes: _Set | None = None
        if task != "1:1":
            self._read_sets(folder, faces)
        self._check_task(task, folder)

        first_row = np.unique(self.faces, return_index=True)[1]
        wanted = {
            below + name: (faces.path, faces.lines[row])
            for name, row in zip(names, first_row.tolist(), strict=True)
        }
        paths = list(find_files(root, wanted).values())
        self.photographs = Photographs(root, paths, landmarks=landmarks)
        self.figures = (VERIFICATION if self.pairs is not None else {}) | (
            IDENTIFICATION if self.probes is not None else {}
        )
        self.facts = {
            "set": {"ijbb": "IJB-B", "ijbc": "IJB-C"}[self.prefix],
            "lists": str(folder),
            "images": str(root),
            "detector_scores": detector_scores,
        }

    def _read_pairs(self, folder: Path, faces: ListFile) -> _Pairs | None:
        """From the list with labels; else from NIST's, in which the subjects of the 1:N lists say who is the same."""
        labelled = folder / f"{self.prefix}_template_pair_label.txt"
        first, second = GALLERIES[self.prefix]
        matches = folder / f"{self.prefix}_11_{first}_{second}_matches.csv"
        if labelled.is_file():
            pairs = read_list(labelled, PAIRS)
            label = pairs.numbers["same"]
            pairs.fault_of_first((label != 0) & (label != 1), "same", "expected 1 or 0, not {}")
            return _Pairs(self._rows(pairs, "first", faces), self._rows(pairs, "second", faces), label == 1)
        if not matches.is_file():
            return None
        pairs = read_list(matches, MATCHES)
        subjects = np.full(len(self.template_ids), -1, np.int64)
        for name in (*self._gallery_names(), self._probe_name()):
            templates = self._read_set(first_there(folder, (name,), "subjects of the templates"), faces)
            subjects[templates.rows] = templates.subjects
        rows = {column: self._rows(pairs, column, faces) for column in ("first", "second")}
        for column, of in rows.items():
            pairs.fault_of_first(
                subjects[of] == -1, column, "template {} is in none of the 1:N lists: whose is it?"
            )
        return _Pairs(rows["first"], rows["second"], subjects[rows["first"]] == subjects[rows["second"]])

    def _read_sets(self, folder: Path, faces: ListFile) -> None:
        names = (*self._gallery_names(), self._probe_name())
        there = [name for name in names if (folder / name).is_file()]
        if not there:
            return
        for name in names:
            first_there(folder, (name,), f"list beside {there[0]}")
        *galleries, probes = (self._read_set(folder / name, faces) for name in names)
        for name, gallery in zip(GALLERIES[self.prefix], galleries, strict=True):
            if not np.isin(probes.subjects, gallery.subjects).any():
                raise UserError(f"{folder / names[-1]}: no probe is of anybody in gallery {name}")
            self.galleries[name] = gallery
        self.probes = probes

    def _read_set(self, path: Path, faces: ListFile) -> _Set:
        """A line a face: each template once, with its subject."""
        listed = read_list(path, SUBJECTS)
        rows, subjects = self._rows(listed, "TEMPLATE_ID", faces), listed.numbers["SUBJECT_ID"]
        unique, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
        other = subjects != subjects[first][inverse]
        listed.fault_of_first(other, "TEMPLATE_ID", "template {} is of another subject further up")
        return _Set(unique.astype(np.int64), subjects[first])

    def _rows(self, listed: ListFile, column: str, faces: ListFile) -> Ints:
        """The rows of the templates that a column names."""
        ids = listed.numbers[column]
        rows = np.searchsorted(self.template_ids, ids).astype(np.int64)
        missing = self.template_ids[np.minimum(rows, len(self.template_ids) - 1)] != ids
        listed.fault_of_first(missing, column, f"template {{}} has no face in {faces.path.name}")
        return rows

    def _gallery_names(self) -> list[str]:
        return [f"{self.prefix}_1N_gallery_{name}.csv" for name in GALLERIES[self.prefix]]

    def _probe_name(self) -> str:
        return f"{self.prefix}_1N_probe_mixed.csv"

    def _check_task(self, task: str | None, folder: Path) -> None:
        wanted = {
            "1:1": (self.pairs is not None, f"{self.prefix}_template_pair_label.txt"),
            "1:N": (self.probes is not None, self._probe_name()),
        }
        tasks = list(wanted) if task in (None, "all") else [task]
        missing = [wanted[name][1] for name in tasks if name is not None and not wanted[name][0]]
        if len(missing) == len(tasks) or (missing and task == "all"):
            raise UserError(
                f"{folder} holds no lists for task {task or 'all'}: looked for {', '.join(missing)}"
            )

    def measure(self, embeddings: Embeddings, found: NDArray[np.bool_], *, device: Any = None) -> Measured:
        templates = make_templates(
            embeddings,
            found,
            self.faces,
            self.template_rows,
            self.media,
            count=len(self.template_ids),
            weights=self.weights,
        )
        values: dict[str, float | None] = {}
        counts: dict[str, int | str] = {"templates": len(templates.valid)}
        details: dict[str, Any] = {
            "templates": len(templates.valid),
            "templates_without_face": int((~templates.valid).sum()),
        }
        trials = None
        if self.pairs is not None:
            scores = pair_scores(templates.embeddings, templates.valid, self.pairs.first, self.pairs.second)
            trials = Trials(scores, self.pairs.same)
            same = int(self.pairs.same.sum())
            values |= _verified(scores, self.pairs.same)
            counts["pairs, same / different"] = f"{same:,} / {len(scores) - same:,}"
            details |= {
                "same_pairs": same,
                "different_pairs": len(scores) - same,
                "refused_pairs": int((scores == -np.inf).sum()),
            }
        if self.probes is not None:
            results = {
                name: _identified(templates, self.probes, [gallery], device)
                for name, gallery in self.galleries.items()
            }
            values |= _means(list(results.values()))
            counts["probes"] = len(self.probes.rows)
            for name, result in results.items():
                counts |= _lines_of(name, result)
            # Closed, and easier to compare with: insightface's 1:N figures are of this.
            results["+".join(results)] = _identified(
                templates, self.probes, list(self.galleries.values()), device
            )
            details["galleries"] = {name: result.to_dict() for name, result in results.items()}
        return Measured(values, counts, details, trials, notes=_notes(templates, found))


def _lists_of(data: Path) -> tuple[Path, str]:
    """The folder of the lists, and what their names begin with."""
    names = tuple(f"{folder}{prefix}_face_tid_mid.txt" for folder in ("meta/", "") for prefix in GALLERIES)
    there = [data / name for name in names if (data / name).is_file()]
    found = there[0] if there else first_there(data, names, "list of faces in templates")
    if len(there) > 1:
        raise UserError(
            f"{data} holds lists of two sets, {' and '.join(str(path) for path in there)}: name one's folder"
        )
    return found.parent, found.name.partition("_")[0]


def _photographs_in(folder: Path, *, named: bool) -> tuple[Path, str]:
    """The root of the photographs, and their folder below it, with its '/': photographs in which faces must be looked
    for lie in folders. ``named``: the folder may be that of the faces itself."""
    if (folder / FACES_FOLDER).is_dir() or not named:
        first_there(folder, (FACES_FOLDER,), "faces")
        return folder, f"{FACES_FOLDER}/"
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of photographs")
    return (folder, "") if (folder / SPEC_FILE).is_file() else (folder.parent, f"{folder.name}/")


def _read_points(
    path: Path, faces: ListFile, names: Sequence[str], face_rows: Ints
) -> tuple[NDArray[np.float32], NDArray[np.float64]] | tuple[None, None]:
    """Landmarks float32 [n, 5, 2] and scores float64 [n] of these names; None where there is no such list."""
    if not path.is_file():
        return None, None
    points = read_list(path, POINTS)
    _, rows = unique_rows(list(points.names))
    repeated = rows != np.arange(len(rows))
    if repeated.any():
        row = int(np.argmax(repeated))
        raise points.fault(row, f"{points.names[row]} has landmarks further up")
    row_of = {name: row for row, name in enumerate(points.names)}
    known = np.array([row_of.get(name, -1) for name in names], np.int64)
    if (known < 0).any():
        row = int(np.argmax(known[face_rows] < 0))
        raise faces.fault(row, f"{faces.names[row]} has no landmarks in {path.name}")
    if len(known) < len(points.names):
        row = int(np.argmin(np.isin(np.arange(len(points.names)), known)))
        raise points.fault(row, f"{points.names[row]} is in no template of {faces.path.name}")
    points.fault_of_first(points.numbers["score"] < 0, "score", "a detector's score is 0 or more, not {}")
    flat = np.stack([points.numbers[f"{axis}{i}"][known] for i in range(5) for axis in "xy"], axis=1)
    return flat.astype(np.float32).reshape(-1, 5, 2), points.numbers["score"][known]


def _verified(scores: NDArray[np.float64], same: NDArray[np.bool_]) -> dict[str, float | None]:
    """As `facetrain.evaluate.verification` has them, of all pairs together: IJB has no folds."""
    far, tar, thresholds = roc(scores, same)
    rates = tar_at_far(far, tar, thresholds, FAR_TARGETS, different_pairs=int((~same).sum()))
    tars = {f"tar_at_far_{target:g}": rate for target, rate in rates.items()}
    return {"auc": auc(far, tar), "eer": eer(far, tar), **tars}


def _identified(templates: Templates, probes: _Set, galleries: Sequence[_Set], device: Any) -> GalleryResult:
    return identify(
        templates,
        probes.rows,
        probes.subjects,
        np.concatenate([gallery.rows for gallery in galleries]),
        np.concatenate([gallery.subjects for gallery in galleries]),
        ranks=RANKS,
        open_set_ranks=(1, CANDIDATES),
        fpir_targets=FPIR_TARGETS,
        device=device,
    )


def _tpir(result: GalleryResult, target: float) -> float | None:
    return None if result.open_set is None else result.open_set.tpir[CANDIDATES][target]


def _means(results: Sequence[GalleryResult]) -> dict[str, float | None]:
    """Plain means over galleries, each with thresholds of its own; None where one cannot resolve it."""
    values: dict[str, float | None] = {
        f"rank_{rank}": sum(result.rank_rates[rank] for result in results) / len(results) for rank in RANKS
    }
    for target in FPIR_TARGETS:
        rates = [_tpir(result, target) for result in results]
        known = [rate for rate in rates if rate is not None]
        values[f"tpir_at_fpir_{target:g}"] = sum(known) / len(known) if len(known) == len(rates) else None
    return values


def _lines_of(name: str, result: GalleryResult) -> Mapping[str, str]:
    """What is printed of one gallery."""
    rates = [_tpir(result, target) for target in FPIR_TARGETS]
    return {
        f"{name}: templates / probes with a mate / without": f"{result.gallery_size:,} / {result.mated:,} / "
        f"{result.non_mated:,}",
        f"{name}: rank {' / '.join(str(rank) for rank in RANKS)}": " / ".join(
            f"{result.rank_rates[rank]:.4f}" for rank in RANKS
        ),
        f"{name}: TPIR at FPIR {' / '.join(f'{target:g}' for target in FPIR_TARGETS)}": " / ".join(
            "too few" if rate is None else f"{rate:.4f}" for rate in rates
        ),
    }


def _notes(templates: Templates, found: NDArray[np.bool_]) -> list[str]:
    notes = []
    if not found.all():
        notes.append(
            f"{int((~found).sum()):,} of {len(found):,} faces were not found: they do not count in their templates"
        )
    if not templates.valid.all():
        notes.append(
            f"{int((~templates.valid).sum()):,} of {len(templates.valid):,} templates have no face: pairs with one count as "
            f"told apart, probes as not found, and nobody is found in a gallery by one"
        )
    return notes
