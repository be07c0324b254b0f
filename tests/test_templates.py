"""Templates against plain loops, ties and faces that were not found included."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.evaluate import templates as module
from facetrain.evaluate.templates import Templates, identify, make_templates

FACES, COUNT, DIM = 400, 37, 12


def unit(rows: NDArray) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def some_faces(rng: np.random.Generator) -> tuple[NDArray, ...]:
    """Embeddings, found, faces (some in two templates), templates and media in no order."""
    embeddings = unit(rng.standard_normal((FACES, DIM)))
    found = rng.random(FACES) < 0.8
    embeddings[~found] = 0
    faces = rng.permutation(np.concatenate([np.arange(FACES), rng.integers(0, FACES, 50)]))
    return embeddings, found, faces, rng.integers(0, COUNT, len(faces)), rng.integers(-2, 4, len(faces))


def one_by_one(
    embeddings: NDArray, found: NDArray, faces: NDArray, rows: NDArray, media: NDArray, weights: NDArray
) -> list[NDArray | None]:
    made: list[NDArray | None] = []
    for template in range(COUNT):
        total = np.zeros(DIM)
        for medium in sorted(set(media[rows == template].tolist())):
            of_medium = [
                weights[i] * embeddings[faces[i]].astype(np.float64)
                for i in range(len(faces))
                if rows[i] == template and media[i] == medium and found[faces[i]]
            ]
            if of_medium:
                total = total + np.mean(of_medium, axis=0)
        made.append(total / np.linalg.norm(total) if total.any() else None)
    return made


@pytest.mark.parametrize("block", [1, 7, 64, 16384])
@pytest.mark.parametrize("weighted", [False, True])
def test_templates_are_means_in_media_and_sums_over_them(
    block: int, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(block)
    embeddings, found, faces, rows, media = some_faces(rng)
    found[faces[rows == 5]] = False  # and so a template without any face
    weights = rng.random(len(faces)) if weighted else np.ones(len(faces))
    monkeypatch.setattr(module, "BLOCK_FACES", block)
    made = make_templates(
        embeddings, found, faces, rows, media, count=COUNT, weights=weights if weighted else None
    )
    expected = one_by_one(embeddings, found, faces, rows, media, weights)
    assert made.embeddings.dtype == np.float32
    assert made.valid.tolist() == [template is not None for template in expected]
    assert not made.valid[5] and made.valid.sum() > 30
    for template, row in zip(expected, made.embeddings, strict=True):
        np.testing.assert_allclose(row, np.zeros(DIM) if template is None else template, rtol=1e-6, atol=1e-7)
    monkeypatch.setattr(module, "BLOCK_FACES", 100_000)
    again = make_templates(
        embeddings, found, faces, rows, media, count=COUNT, weights=weights if weighted else None
    )
    assert (again.embeddings == made.embeddings).all()  # to the bit, whatever the blocks


def test_what_a_template_is_in_numbers() -> None:
    """Two frames of a video, a still: the frames count as one."""
    embeddings = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    rows, media = np.zeros(3, np.int64), np.array([7, 7, 8])
    made = make_templates(embeddings, np.ones(3, bool), np.arange(3), rows, media, count=1)
    np.testing.assert_allclose(made.embeddings[0], np.array([1.1, 1.3]) / math.hypot(1.1, 1.3), rtol=1e-6)
    weights = np.array([0.5, 1.0, 0.2])
    made = make_templates(embeddings, np.ones(3, bool), np.arange(3), rows, media, count=1, weights=weights)
    np.testing.assert_allclose(made.embeddings[0], np.array([0.37, 0.66]) / math.hypot(0.37, 0.66), rtol=1e-6)


def test_a_template_of_nothing_is_not_valid() -> None:
    embeddings = np.array([[1, 0], [-1, 0], [0, 1]], np.float32)
    rows = np.array([0, 0, 1])
    found, faces, media = np.ones(3, bool), np.arange(3), np.arange(3)
    made = make_templates(embeddings, found, faces, rows, media, count=3)
    assert made.valid.tolist() == [False, True, False]  # opposite faces; one; none
    assert not made.embeddings[[0, 2]].any()
    assert not make_templates(embeddings, ~found, faces, rows, media, count=3).valid.any()
    none = make_templates(embeddings, found, faces, rows, media, count=3, weights=np.zeros(3))
    assert not none.valid.any()


RANKS, TARGETS = (1, 2, 5), (0.5, 0.1, 0.05, 0.001)


def plain_identification(
    templates: Templates,
    probes: NDArray,
    people: NDArray,
    gallery: NDArray,
    owners: NDArray,
    *,
    ranks: Sequence[int] = RANKS,
    targets: Sequence[float] = TARGETS,
) -> tuple[dict[int, float], dict[int, dict[float, float | None]]]:
    """Each search by itself: wrong templates before right ones of equal score; every threshold tried."""
    best_mate, places, alarms = [], [], []
    for probe, person in zip(probes, people, strict=True):
        scores = {
            row: float(templates.embeddings[probe].astype(np.float64) @ templates.embeddings[row])
            for row in gallery
            if templates.valid[probe] and templates.valid[row]
        }
        if person not in owners:
            alarms.append(max(scores.values(), default=-math.inf))
            continue
        mates = [scores[row] for row in gallery[owners == person] if row in scores]
        others = [scores[row] for row in gallery[owners != person] if row in scores]
        best_mate.append(max(mates, default=-math.inf))
        places.append(1 + sum(other >= best_mate[-1] for other in others) if mates else math.inf)
    rank_rates = {rank: sum(place <= rank for place in places) / len(places) for rank in ranks}
    tpir: dict[int, dict[float, float | None]] = {rank: {} for rank in ranks}
    for rank in ranks:
        for target in targets:
            allowed = [
                sum(p <= rank and s >= t for p, s in zip(places, best_mate, strict=True)) / len(places)
                for t in [*best_mate, *alarms, math.inf]
                if t > -math.inf and sum(alarm >= t for alarm in alarms) / len(alarms) <= target
            ]
            tpir[rank][target] = max(allowed) if target >= 1 / len(alarms) else None
    return rank_rates, tpir


@pytest.mark.parametrize("seed", range(5))
def test_identification_is_what_plain_loops_say(seed: int) -> None:
    """Few directions, of ±1/2 each: scores are exact, and most of them are ties."""
    rng = np.random.default_rng(seed)
    directions = rng.choice([-0.5, 0.5], (9, 4)).astype(np.float32)
    templates = Templates(directions[rng.integers(0, 9, 100)], rng.random(100) < 0.85)
    templates.embeddings[~templates.valid] = 0
    gallery, probes = np.arange(20), np.arange(20, 100)
    owners, people = rng.permutation(40)[:20], rng.integers(0, 40, 80)
    owners[1] = owners[0]  # a person with two templates
    result = identify(
        templates, probes, people, gallery, owners, ranks=RANKS, open_set_ranks=RANKS, fpir_targets=TARGETS
    )
    rank_rates, tpir = plain_identification(templates, probes, people, gallery, owners)
    assert result.rank_rates == rank_rates
    assert result.open_set is not None and result.open_set.tpir == tpir
    assert (result.mated, result.non_mated) == (
        np.isin(people, owners).sum(),
        (~np.isin(people, owners)).sum(),
    )
    assert result.gallery_size == 20
    lost = [owner for owner in set(owners.tolist()) if not templates.valid[gallery[owners == owner]].any()]
    assert result.refused == (~templates.valid[probes] | np.isin(people, lost)).sum() > 0


def test_galleries_in_which_nothing_can_be_found() -> None:
    templates = Templates(np.eye(4, dtype=np.float32), np.array([False, False, True, True]))
    how = {"ranks": (1, 4), "open_set_ranks": (1,), "fpir_targets": (0.5, 1.0)}
    gallery, probes = np.array([0, 1]), np.array([2, 3])
    nobody = identify(templates, probes, np.array([5, 7]), gallery, np.array([5, 6]), **how)
    assert nobody.rank_rates == {1: 0.0, 4: 0.0} and nobody.refused == 1
    assert nobody.open_set is not None and nobody.open_set.tpir == {1: {0.5: None, 1.0: 0.0}}
    closed = identify(templates, probes, np.array([5, 6]), gallery, np.array([5, 6]), **how)
    assert closed.open_set is None and closed.to_dict()["open_set"] is None
    with pytest.raises(UserError, match="none of 2 has"):
        identify(templates, probes, np.array([1, 2]), gallery, np.array([5, 6]), **how)


def test_a_search_that_fails_raises_no_alarm() -> None:
    """Of two probes without a mate one has no face: the other alone counts, and half of the two is allowed."""
    directions = np.array([[1, 0], [-0.6, 0.8], [1, 0], [0, 0]], np.float32)
    templates = Templates(directions, np.array([True, True, True, False]))
    result = identify(
        templates,
        np.array([1, 2, 3]),
        np.array([7, 8, 9]),
        np.array([0]),
        np.array([7]),
        ranks=(1,),
        open_set_ranks=(1,),
        fpir_targets=(0.5,),
    )
    assert result.open_set is not None and result.open_set.tpir == {1: {0.5: 1.0}}
    assert result.open_set.thresholds[0.5] == pytest.approx(-0.6)
    assert (result.mated, result.non_mated, result.refused) == (1, 2, 1)
