"""MegaFace, challenge 1 (Kemelmacher-Shlizerman et al., 2016): FaceScrub's people found among up to a million strangers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.evaluate.identification import megaface
from facetrain.evaluate.mates import mate_pairs
from facetrain.evaluate.protocols.base import Figure, Measured, Photographs, Protocol, without_face
from facetrain.evaluate.protocols.files import fault, find_files, first_there, read_lines
from facetrain.evaluate.protocols.named_lists import names_below
from facetrain.evaluate.search import Embeddings, scores_of_pairs, top_k

RANKS = (1, 10)
FAR_TARGETS = (1e-5, 1e-6)
PROBE_FOLDERS = ("facescrub_images", "facescrub", "FaceScrub", "probes")
DISTRACTOR_FOLDERS = ("megaface_images", "megaface", "MegaFace", "FlickrFinal2", "distractors")
SEED = 0  # of the order of distractors that come without lists

Kind = Literal["photographs", "faces", "crops"]
Lines = dict[str, tuple[Path, int]]  # by path below the data: the list that names it, and the number in it


class MegaFace(Protocol):
    """Rank of the mate among 10, 100, … distractors, and verification against them.

    data: the folder of both kinds of photographs, and of the dev-kit's ``templatelists/``. Without lists, all photographs
    in ``probes/<person>/`` and below ``distractors/`` are taken. probes, distractors: the folders below ``data`` where
    they are called something else. lists: the folder of the lists, wherever it is. distractor_set: which of the
    dev-kit's, 1 to 3. probe_noise, distractor_noise: lists of photographs that are left out. kind: of the
    photographs, see `Photographs`.

    A photograph in which no face was found is refused: searches with a probe of that kind miss, pairs are told apart, and
    a distractor disturbs nobody.
    """

    def __init__(
        self,
        data: Path,
        *,
        probes: str | None = None,
        distractors: str | None = None,
        lists: str | None = None,
        distractor_set: int = 1,
        probe_noise: str | None = None,
        distractor_noise: str | None = None,
        kind: str = "photographs",
    ) -> None:
        kinds: tuple[Kind, ...] = get_args(Kind)
        if kind not in kinds:
            raise UserError(f"kind = '{kind}': choose {', '.join(kinds[:2])} or {kinds[2]}")
        of_probes = _folder(data, probes, PROBE_FOLDERS, "probes")
        of_distractors = _folder(data, distractors, DISTRACTOR_FOLDERS, "distractors")
        where = Path(lists) if lists else data / "templatelists"
        if lists is None and not where.is_dir() and (data / "devkit" / "templatelists").is_dir():
            where = data / "devkit" / "templatelists"
        if lists is not None or where.is_dir():
            probe_lines, people = _read_probes(where, of_probes)
            sets = _read_sets(where, of_distractors, distractor_set)
        else:
            probe_lines, people = _probes_in(data, of_probes)
            sets = _sets_in(data, of_distractors)
        kept = _without_noise(probe_lines, probe_noise)
        sizes = sorted(sets, reverse=True)
        kept_sets = {size: _without_noise(sets[size], distractor_noise) for size in sizes}
        self.left_out = len(probe_lines) + len(sets[sizes[0]]) - len(kept) - len(kept_sets[sizes[0]])
        for size, lines in kept_sets.items():
            if not lines:
                raise UserError(f"{distractor_noise} leaves none of the {size:,} distractors")

        # The largest set comes right after the probes: it is one piece of the embeddings, and need not be copied.
        wanted = dict(kept)
        for lines in kept_sets.values():
            for path, line in lines.items():
                wanted.setdefault(path, line)
        row_of = {path: row for row, path in enumerate(wanted)}
        self.photographs = Photographs(data, list(find_files(data, wanted).values()), kind=kind)
        self.sets = {
            size: np.array([row_of[path] for path in lines], np.int64) for size, lines in kept_sets.items()
        }
        self.people = frozenset(people[path] for path in kept)
        self.labels = np.unique([people[path] for path in kept], return_inverse=True)[1]
        # Every pair of two photographs of a person, once: each is a search from either side.
        first, second = mate_pairs(self.labels, self.labels, exclude_self=True)
        self.first, self.second = first[first < second], second[first < second]
        if not len(self.first):
            raise UserError(
                f"{data / of_probes}: MegaFace needs a person with at least two probes; each has one"
            )
        self.figures = _figures(list(self.sets))
        self.facts = {
            "data": str(data),
            "lists": str(where) if lists is not None or where.is_dir() else None,
            "kind": kind,
            "probe_noise": probe_noise,
            "distractor_noise": distractor_noise,
        }

    def measure(self, embeddings: Embeddings, found: NDArray[np.bool_], *, device: Any = None) -> Measured:
        there = found[: len(self.labels)]
        probes, labels = _take(embeddings, np.flatnonzero(there)), self.labels[there]
        pairs = there[self.first] & there[self.second]
        possible = pairs.sum() / len(pairs)  # share of the searches
        values: dict[str, float | None] = {}
        for size, rows in self.sets.items():
            rates = dict.fromkeys(RANKS, 0.0)
            if pairs.any():
                distractors = _take(embeddings, rows[found[rows]])
                rates = megaface(probes, labels, distractors, ranks=RANKS, device=device)[0].rank_rates
            values |= {f"rank_{rank}_at_{size}": float(rate * possible) for rank, rate in rates.items()}
        values |= self._verify(embeddings, found, pairs, device)
        largest = next(iter(self.sets.values()))
        notes = []
        if not found.all():
            notes.append(f"{without_face(found)}: they are refused")
        counts: dict[str, int | str] = {
            "probes / people": f"{len(self.labels):,} / {len(self.people):,}",
            "searches": 2 * len(pairs),
            "distractors": len(largest),
        }
        if self.left_out:
            counts["left out as noise"] = self.left_out
        details = {
            "searches": 2 * len(pairs),
            "distractors": {str(n): len(rows) for n, rows in self.sets.items()},
        }
        return Measured(values, counts, details, notes=notes)

    def _verify(
        self, embeddings: Embeddings, found: NDArray[np.bool_], pairs: NDArray[np.bool_], device: Any
    ) -> dict[str, float | None]:
        """TAR at FAR: pairs of a person's probes against all pairs of a probe and a distractor of the largest set."""
        rows = next(iter(self.sets.values()))
        total = len(self.labels) * len(rows)
        scores = np.full(len(pairs), -np.inf, np.float32)
        scores[pairs] = scores_of_pairs(
            embeddings, embeddings, self.first[pairs], self.second[pairs], device=device
        )
        accepted = {far: _most_within(far, total) for far in FAR_TARGETS}
        probes = _take(embeddings, np.flatnonzero(found[: len(self.labels)]))
        distractors = _take(embeddings, rows[found[rows]])
        most = max(accepted.values()) + 1
        highest = highest_scores(probes, distractors, most, device=device)
        values: dict[str, float | None] = {}
        for far, count in accepted.items():
            # A threshold may accept `count` of the different pairs: it lies above the next one.
            above = highest[count] if count < len(highest) else -np.inf
            values[f"tar_at_far_{far:g}"] = float(np.mean(scores > above)) if count else None
        return values


def highest_scores(
    queries: Embeddings, gallery: Embeddings, count: int, *, device: Any = None
) -> NDArray[np.float32]:
    """The ``count`` highest of the exact scores of all pairs of a query and a gallery row, the highest first; all of them
    where there are fewer. Memory grows with ``count``, not with the number of pairs.
    """
    most = min(count, len(gallery))  # of one query
    k = min(most, max(16, 4 * count // max(1, len(queries))))
    rows = np.arange(len(queries))
    kept = np.empty(0, np.float32)
    while k and len(rows):
        best = top_k(queries[rows], gallery, k, device=device)[0]
        pool = np.concatenate([kept, best.reshape(-1)])
        limit = np.partition(pool, -count)[-count] if len(pool) >= count else -np.inf
        # What a query has beyond its k is at or below the k-th: of no use unless that is above the limit.
        more = (best[:, -1] > limit) & (k < most)
        done = best[~more].reshape(-1)
        kept = np.concatenate([kept, done[done >= limit]])
        rows, k = rows[more], min(most, 4 * k)
    return np.sort(kept)[::-1][:count]


def _most_within(far: float, total: int) -> int:
    """The largest number of ``total`` whose share is at or below ``far``."""
    count = int(far * total) + 1
    while count and count / total > far:
        count -= 1
    return count


def _take(embeddings: Embeddings, rows: NDArray[np.int64]) -> Embeddings:
    """These rows: a view where they lie side by side, since a million are gigabytes."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all()):
        return embeddings[int(rows[0]) : int(rows[-1]) + 1]
    return embeddings[rows]


def _folder(data: Path, given: str | None, usual: tuple[str, ...], what: str) -> str:
    """Its name below ``data``."""
    folder = first_there(data, usual if given is None else (given,), f"folder of {what}")
    if not folder.is_relative_to(data):
        raise UserError(f"{what} = '{given}': name a folder below {data}")
    return folder.relative_to(data).as_posix()


def _figures(sizes: Sequence[int]) -> dict[str, Figure]:
    ranks = {
        f"rank_{rank}_at_{size}": Figure(f"rank {rank}, {size:,} distractors")
        for size in sizes
        for rank in RANKS
    }
    return ranks | {f"tar_at_far_{far:g}": Figure(f"TAR at FAR {far:g}") for far in FAR_TARGETS}


def _read_probes(lists: Path, folder: str) -> tuple[Lines, dict[str, str]]:
    """The probes, and the person on each."""
    path = first_there(lists, ("facescrub_features_list.json",), "list of probes")
    names, ids = _read_list(path)
    if ids is None:
        raise UserError(f'{path}: there is no "id", the list of the probes\' people')
    lines = _lines_of(path, names, folder)
    return lines, dict(zip(lines, ids, strict=True))


def _read_sets(lists: Path, folder: str, number: int) -> dict[int, Lines]:
    """The distractors of each size, of one of the dev-kit's sets."""
    name = re.compile(rf"megaface_features_list\.json_(\d+)_{number}")
    matches = [(name.fullmatch(path.name), path) for path in lists.iterdir()]
    by_size = {int(match[1]): path for match, path in matches if match}
    if not by_size:
        raise UserError(
            f"{lists} holds no distractors: looked for megaface_features_list.json_<number>_{number}"
        )
    sets = {}
    for size in sorted(by_size):
        path = by_size[size]
        names, _ = _read_list(path)
        if len(names) != size:
            raise UserError(f"{path}: {len(names):,} photographs, where its name says {size:,}")
        sets[size] = _lines_of(path, names, folder)
    return sets


def _read_list(path: Path) -> tuple[list[str], list[str] | None]:
    """("path", "id") of one of the dev-kit's lists; None where there is no "id"."""
    try:
        read = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot read the list: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise fault(path, error.lineno, f"no JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: no list: it is not UTF-8 text") from None
    names = read.get("path") if isinstance(read, dict) else None
    ids = read.get("id") if isinstance(read, dict) else None
    if not isinstance(names, list) or not isinstance(ids, list | None):
        raise UserError(f'{path}: no list of photographs: expected {{"path": […], "id": […]}}')
    if not names:
        raise UserError(f"{path}: the list is empty")
    if ids is not None and len(ids) != len(names):
        raise UserError(f'{path}: {len(names):,} in "path", and {len(ids):,} in "id"')
    for number, name in enumerate(names, start=1):
        if not isinstance(name, str) or not name:
            raise fault(path, number, "expected the path of a photograph", str(name))
    return names, None if ids is None else [str(person) for person in ids]


def _lines_of(path: Path, names: list[str], folder: str) -> Lines:
    lines: Lines = {}
    for number, name in enumerate(names, start=1):
        if lines.setdefault(f"{folder}/{name}", (path, number))[1] != number:
            raise fault(path, number, "the photograph is in the list already", name)
    return lines


def _probes_in(data: Path, folder: str) -> tuple[Lines, dict[str, str]]:
    names = names_below(data / folder)
    for name in names:
        if "/" not in name:
            raise UserError(f"{data / folder / name}: a probe lies in the folder of its person")
    lines = _lines_of(data / folder, names, folder)
    return lines, {path: name.partition("/")[0] for path, name in zip(lines, names, strict=True)}


def _sets_in(data: Path, folder: str) -> dict[int, Lines]:
    """Powers of ten, and all: the first ones in an order drawn by lot, since neighbours in a folder are alike."""
    names = names_below(data / folder)
    names = [names[i] for i in np.random.default_rng(SEED).permutation(len(names))]
    sizes = sorted({*(10**n for n in range(1, 8) if 10**n < len(names)), len(names)})
    lines = list(_lines_of(data / folder, names, folder).items())
    return {size: dict(lines[:size]) for size in sizes}


def _without_noise(lines: Lines, noise: str | None) -> Lines:
    """Those that the list of noise does not name. It names a photograph by the end of its path, whole names of folders;
    what stands before a tab in a line, and after a # at its start, is for people."""
    if noise is None:
        return lines
    texts = [text for _, text in read_lines(Path(noise), "list of noise") if not text.startswith("#")]
    wrong = {text.split("\t")[1] if "\t" in text else text for text in texts}
    depths = {name.count("/") + 1 for name in wrong}

    def is_wrong(path: str) -> bool:
        parts = path.split("/")
        return any("/".join(parts[-depth:]) in wrong for depth in depths)

    return {path: line for path, line in lines.items() if not is_wrong(path)}
