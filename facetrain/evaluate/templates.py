"""Templates: several photographs and video frames of one person, compared as one.

IARPA's Janus benchmarks (IJB-A, Klare et al. 2015; IJB-B, Whitelam et al. 2017; IJB-C, Maze et al. 2018) verify and
identify templates. Made of embeddings as Crosswhite et al. do ("Template adaptation", 2017), and insightface after them:
the frames of one video count as one photograph.

Shapes: n embeddings, F faces in templates, T templates, D dimensions, Q probes, G gallery templates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.evaluate.identification import OpenSetResult, tpir_at_fpir
from facetrain.evaluate.mates import ranks_of_mates
from facetrain.evaluate.search import Embeddings, top_k

BLOCK_FACES = 16384  # of 512 dimensions: 64 MiB in float64
NO_RANK = np.iinfo(np.int64).max  # of a mate that cannot be found at all

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Templates:
    """embeddings: float32 [T, D] of length 1. valid: bool [T], False for a template without any; its row is zeros."""

    embeddings: Floats
    valid: Bools


@dataclass(frozen=True)
class GalleryResult:
    """What :func:`identify` measured; rates are fractions, 0 to 1.

    ``open_set`` is None where every probe has a mate. A probe is refused when its template is not valid, or its only mates'
    are not: it is found at no rank, and no threshold accepts it.
    """

    rank_rates: dict[int, float]  # share of mated probes whose best mate is within the rank
    open_set: OpenSetResult | None
    gallery_size: int
    mated: int
    non_mated: int
    refused: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ranks become text."""
        return {
            "rank_rates": {str(rank): rate for rank, rate in self.rank_rates.items()},
            "open_set": None if self.open_set is None else self.open_set.to_dict(),
            "gallery_size": self.gallery_size,
            "mated": self.mated,
            "non_mated": self.non_mated,
            "refused": self.refused,
        }


def make_templates(
    embeddings: Embeddings,
    found: Bools,
    faces: Ints,
    template_rows: Ints,
    media: Ints,
    *,
    count: int,
    weights: NDArray[np.floating[Any]] | None = None,
) -> Templates:
    """The embeddings of ``count`` templates, of faces in them, F: for each the row of its embedding (``faces``, int64 [F]),
    that of its template (``template_rows``, 0 to ``count`` - 1) and any number that tells a template's media apart.

    A template is Σ over its media of the mean over the medium's faces of weight · embedding, scaled to length 1; the
    divisor of the mean is the number of faces, not of weights, as insightface has it. ``weights`` float [F]: such as a
    detector's scores; None: all 1. Faces that were not ``found`` (bool [n]) do not count, in the mean neither. A
    template without any face, or whose sum is zero, is not valid.

    Sums are float64, in the order of template, media and face, whatever the size of blocks.
    """
    here = found[faces]
    faces, template_rows, media = faces[here], template_rows[here], media[here]
    factor = np.ones(len(faces)) if weights is None else np.asarray(weights, np.float64)[here]
    order = np.lexsort((media, template_rows))
    faces, template_rows, media, factor = faces[order], template_rows[order], media[order], factor[order]
    new_template = np.diff(template_rows, prepend=-1) != 0
    new_medium = new_template | (np.diff(media, prepend=0) != 0)
    sizes = np.diff(np.append(np.flatnonzero(new_medium), len(faces)))
    factor /= np.repeat(sizes, sizes)

    sums = np.zeros((count, embeddings.shape[1]), np.float32)
    valid = np.zeros(count, bool)
    first = np.flatnonzero(new_template)
    for templates, start, stop in _blocks(first, len(faces)):
        part = np.asarray(embeddings[faces[start:stop]], np.float64) * factor[start:stop, None]
        total = np.add.reduceat(part, first[templates] - start, axis=0)
        length = np.sqrt((total**2).sum(axis=1))
        rows = template_rows[first[templates]]
        valid[rows] = length > 0
        sums[rows] = total / np.where(length > 0, length, 1)[:, None]
    return Templates(sums, valid)


def _blocks(first: Ints, count: int) -> Iterator[tuple[slice, int, int]]:
    """(templates, their first face, the one after their last) of blocks of BLOCK_FACES faces or of one template."""
    bounds = np.append(first, count)
    begin = 0
    while begin < len(first):
        end = int(np.searchsorted(bounds, bounds[begin] + BLOCK_FACES, side="right")) - 1
        end = max(end, begin + 1)
        yield slice(begin, end), int(bounds[begin]), int(bounds[end])
        begin = end


def identify(
    templates: Templates,
    probe_rows: Ints,
    probe_subjects: NDArray[Any],
    gallery_rows: Ints,
    gallery_subjects: NDArray[Any],
    *,
    ranks: Sequence[int],
    open_set_ranks: Sequence[int],
    fpir_targets: Sequence[float],
    device: Any = None,
) -> GalleryResult:
    """Look for each probe, a row of ``templates``, in a gallery of such rows. Subjects are of any kind that NumPy can sort.

    - Probes with a mate in the gallery (a template of equal subject) are the mated searches: the share whose best mate is
      within each of ``ranks``, wrong templates before it where scores are equal.
    - The others are the non-mated ones: TPIR at FPIR as `facetrain.evaluate.identification.tpir_at_fpir` has it.

    A template that is not valid is in no gallery, and as a probe its search fails. Raises UserError when no probe has a
    mate.
    """
    mated = np.isin(probe_subjects, gallery_subjects)
    if not mated.any():
        raise UserError(f"identification needs probes with a mate in the gallery; none of {len(mated):,} has")
    able, enrolled = templates.valid[probe_rows], templates.valid[gallery_rows]
    queries = templates.embeddings[probe_rows[able]]
    gallery = templates.embeddings[gallery_rows[enrolled]]
    found_scores, found_ranks = ranks_of_mates(
        queries, probe_subjects[able], gallery, gallery_subjects[enrolled], device=device
    )
    scores = np.full(len(mated), -np.inf)
    places = np.full(len(mated), NO_RANK)
    scores[able] = found_scores
    places[able] = np.where(found_ranks > 0, found_ranks, NO_RANK)

    open_set = None
    if not mated.all():
        alarms = np.full(len(mated), -np.inf)
        alarms[able & ~mated] = top_k(queries[~mated[able]], gallery, 1, device=device)[0][:, 0]
        open_set = tpir_at_fpir(
            scores[mated], places[mated], alarms[~mated], ranks=open_set_ranks, fpir_targets=fpir_targets
        )
    return GalleryResult(
        rank_rates={int(rank): float(np.mean(places[mated] <= rank)) for rank in ranks},
        open_set=open_set,
        gallery_size=len(gallery_rows),
        mated=int(mated.sum()),
        non_mated=int((~mated).sum()),
        refused=int((~able | (mated & (places == NO_RANK))).sum()),
    )
