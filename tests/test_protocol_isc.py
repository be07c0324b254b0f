"""The image-similarity challenge: predictions against all pairs by plain loops, both ways in, and every wrong file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from facetrain.errors import UserError
from facetrain.evaluate.protocols import isc_file, isc_predictions
from facetrain.evaluate.protocols.isc import ImageSimilarity
from facetrain.evaluate.protocols.isc_predictions import predict
from facetrain.image_spec import SPEC_FILE, ImageSpec

h5py = pytest.importorskip("h5py")


NAMED = ["--embedder", "mean_colours:Means", "--embedder-arg", "cells=4", "-j", 1]


def lattice(rng: np.random.Generator, count: int, dim: int = 4) -> NDArray[np.float32]:
    """Vectors of many lengths, with many equal distances."""
    return rng.integers(-2, 3, (count, dim)).astype(np.float32)


def write_h5(path: Path, query: Any, reference: Any, **others: Any) -> Path:
    with h5py.File(path, "w") as file:
        names = {
            "query": query,
            "reference": reference,
            "query_ids": [f"Q{i:05d}" for i in range(len(query))],
            "reference_ids": [f"R{i:06d}" for i in range(len(reference))],
            **others,
        }
        for name, value in names.items():
            if value is not None:
                file[name] = value
    return path


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def by_hand(
    query: NDArray[np.float32],
    reference: NDArray[np.float32],
    counted: list[int],
    true: set[tuple[int, int]],
    number: int,
    per_query: int | None,
) -> tuple[list[tuple[int, int]], float, float]:
    """(predictions in order, micro average precision, recall at precision 0.9), of all pairs one by one."""
    pairs = []
    for q in counted:
        of_query = []
        for r in range(len(reference)):
            distance = sum((float(a) - float(b)) ** 2 for a, b in zip(query[q], reference[r], strict=True))
            of_query.append((distance, (q, r) in true, q, r))
        pairs += sorted(of_query)[:per_query]
    pairs = sorted(pairs)[:number]
    right, total, recall = 0, 0.0, 0.0
    for i, (_, is_right, _, _) in enumerate(pairs, start=1):
        right += is_right
        total += is_right * right / i
        if right / i >= 0.9:
            recall = right / len(true)
    return [(q, r) for _, _, q, r in pairs], total / len(true), recall


@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_figures_by_hand(seed: int, per_query: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isc_predictions, "BLOCK", 7)
    rng = np.random.default_rng(seed)
    query, reference = lattice(rng, 9), lattice(rng, 14)
    for q in range(0, 9, 2):
        reference[q] = query[q]  # some are found first
    true = {(q, q) for q in range(0, 9, 2)} | {(1, int(rng.integers(14))), (0, 13)}
    counted = [0, 1, 2, 4, 5, 6, 8]
    lines = [f"Q{q:05d},R{r:06d}\n" for q, r in sorted(true)] + ["Q00005,\n"]
    truth = write(tmp_path / "gt.csv", "query_id,reference_id\n" + "".join(lines))
    file = write_h5(tmp_path / "x.h5", query, reference)
    for k, limit in ((1, 0), (3, 0), (3, 10), (50, 0)):
        protocol = ImageSimilarity(truth, embeddings=str(file), k=k, per_query=per_query, limit=limit)
        measured = protocol.measure(np.zeros((0, 1)), np.zeros(0, bool))
        number = min(k * len(counted), limit or 10**6)
        pairs, precision, recall = by_hand(query, reference, counted, true, number, k if per_query else None)
        text = "".join(measured.files["predictions.csv"]).splitlines()[1:]
        assert [line.rpartition(",")[0] for line in text] == [f"Q{q:05d},R{r:06d}" for q, r in pairs]
        assert measured.values["micro_average_precision"] == pytest.approx(precision, abs=1e-12)
        assert measured.values["recall_at_p90"] == pytest.approx(recall, abs=1e-12)
        assert any("2 of 9 queries are not in the ground truth" in note for note in measured.notes)
        assert any("limit says so" in note for note in measured.notes) == (0 < limit < k * len(counted))


@pytest.mark.parametrize("per_query", [None, 4])
def test_nearly_equal_distances_are_exact(per_query: int | None) -> None:
    """Vectors that float32 products cannot tell apart, of lengths far from 1, and one query to which most belong."""
    rng = np.random.default_rng(0)
    reference = (100 + 1e-4 * rng.normal(size=(300, 8))).astype(np.float32)
    query = np.concatenate([reference[:1], (90 + rng.normal(size=(6, 8))).astype(np.float32)])
    distances = ((query[:, None].astype(np.float64) - reference[None]) ** 2).sum(axis=2)
    rows = np.arange(len(query)), np.arange(len(reference))
    found = predict(
        query, rows[0], reference, rows[1], np.zeros((0, 2), np.int64), number=70, per_query=per_query
    )
    if per_query is not None:
        cut = np.sort(distances, axis=1)[:, per_query - 1 : per_query]
        distances = np.where(distances <= cut, distances, np.inf)
    order = np.argsort(distances, axis=None, kind="stable")[: len(found.scores)]
    assert len(found.scores) == (70 if per_query is None else 28)
    np.testing.assert_allclose(-found.scores, distances.reshape(-1)[order], rtol=1e-12)
    np.testing.assert_array_equal(found.queries * len(reference) + found.references, order)


def test_photographs_without_a_face_are_not_predicted(tmp_path: Path) -> None:
    for folder, names in (("queries", ("Q0", "Q1", "Q2", "Q3")), ("references", ("R1", "R2"))):
        (tmp_path / folder).mkdir()
        for name in names:
            write(tmp_path / folder / f"{name}.jpg", "")
    write(tmp_path / "ground_truth.csv", "Q1,R1\nQ2,R2\nQ3,\n")
    protocol = ImageSimilarity(tmp_path)
    assert list(protocol.photographs.paths) == [
        *(f"queries/Q{i}.jpg" for i in (1, 2, 3)),
        *(f"references/R{i}.jpg" for i in (1, 2)),
    ]
    embeddings = np.eye(5, dtype=np.float32)
    embeddings[3], embeddings[4] = embeddings[0], 0
    found = np.array([True, True, True, True, False])
    measured = protocol.measure(embeddings, found)
    lines = "".join(measured.files["predictions.csv"]).splitlines()
    assert lines == ["query_id,reference_id,score", "Q1,R1,-0.0", "Q2,R1,-2.0", "Q3,R1,-2.0"]
    assert measured.values["micro_average_precision"] == 0.5
    assert any("nothing is predicted" in note for note in measured.notes)
    assert any("1 of 4 queries are not in the ground truth" in note for note in measured.notes)
    nobody = protocol.measure(np.zeros((5, 4), np.float32), np.zeros(5, bool))
    assert nobody.values == {"micro_average_precision": 0.0, "recall_at_p90": 0.0}
    assert ImageSimilarity(tmp_path, whole=True).photographs.kind == "faces"

    (tmp_path / SPEC_FILE).write_text(
        ImageSpec().to_json()
    )  # in a tree of crops, one that is absent has no face
    (tmp_path / "references" / "R2.jpg").unlink()
    (tmp_path / "queries" / "Q1.jpg").rename(tmp_path / "queries" / "Q1.png.jpg")
    crops = ImageSimilarity(tmp_path)
    assert crops.query_ids == ["Q1", "Q2", "Q3"]
    measured = crops.measure(np.eye(4, dtype=np.float32), np.ones(4, bool))
    assert any("0 queries and 1 references of the ground truth are missing" in n for n in measured.notes)
    assert measured.counts["true matches, predicted / all"] == "1 / 2"


@pytest.mark.usefixtures("in_process")
def test_both_ways_end_to_end(tmp_path: Path, ft: Callable, wrong: Callable) -> None:
    """Photographs embedded by the command, and embeddings that `ft embed` wrote of them: the same figures."""
    folder = tmp_path / "set"
    ft(tmp_path, "synth", folder, "--layout", "isc", "--identities", 4, "--images", 3, "-j", 1)
    how = ["--protocol", "isc", "--protocol-arg", "k=2"]
    text = ft(tmp_path, "evaluate", *how, "--data", folder, *NAMED, "--out", tmp_path / "one").output
    one = json.loads((tmp_path / "one.json").read_text())
    assert "micro average precision" in text and one["photographs"] == 9
    assert one["counts"]["queries / references"] == "6 / 3" and one["similarity"]["true_matches"] == 4
    assert one["counts"]["predictions"] == 12 and one["photographs_without_face"] == 0

    file = tmp_path / "x.h5"
    for name in ("queries", "references"):  # `ft embed` wants photographs in a folder in the tree
        shutil.copytree(folder / name, tmp_path / f"tree-of-{name}" / name)
    trees = tmp_path / "tree-of-references", "--query", tmp_path / "tree-of-queries"
    ft(tmp_path, "embed", *trees, "--out", file, *NAMED)
    how += ["--data", folder / "ground_truth.csv", "--protocol-arg", f"embeddings={file}"]
    how += ["--protocol-arg", "allow_missing=true"]
    ft(tmp_path, "evaluate", *how, "--out", tmp_path / "two")
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["values"] == one["values"] and two["photographs"] == 0
    predictions = [(tmp_path / f"{name}.predictions.csv").read_text() for name in ("one", "two")]
    assert predictions[0] == predictions[1]
    assert "leave out the checkpoint" in wrong(tmp_path, "evaluate", *how, *NAMED)

    (folder / "queries" / "Q00003002.jpg").unlink()
    line = wrong(tmp_path, "evaluate", "--protocol", "isc", "--data", folder, *NAMED)
    assert "ground_truth.csv, line 4: there is no query Q00003002 in" in line


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", r"gt\.csv: the ground truth is empty"),
        ("query_id,reference_id\n", r"gt\.csv: the ground truth has no true match"),
        ("Q00000,\n", r"the ground truth has no true match"),
        (
            "query_id,reference_id\nQ00000\n",
            r"gt\.csv, line 2: expected 'query_id,reference_id', or .* found 'Q00000'",
        ),
        ("Q00000,R000000,1\n", r"line 1: expected 'query_id,reference_id'"),
        (",R000000\n", r"line 1: expected 'query_id,reference_id'"),
        ("Q00000,R000000\nQ00000,R000000\n", r"line 2: query Q00000 is listed in line 1 already"),
        ("Q00000,R000000\nQ00000,\n", r"line 2: query Q00000 is listed in line 1 already"),
        ("Q00000,\nQ00000,R000000\n", r"line 2: query Q00000 is listed in line 1 already"),
        ("Q00000,R000000\nQ9,\n", r"line 2: there is no query Q9 in .*x\.h5; allow_missing=true"),
        ("Q00000,R9\nQ9,R9\n", r"line 1: there is no reference R9 in .*x\.h5 \(1 more are missing\)"),
    ],
)
def test_wrong_ground_truths(text: str, why: str, tmp_path: Path) -> None:
    file = write_h5(tmp_path / "x.h5", np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32))
    with pytest.raises(UserError, match=why):
        ImageSimilarity(write(tmp_path / "gt.csv", text), embeddings=str(file))


def test_no_query_at_all(tmp_path: Path) -> None:
    file = write_h5(tmp_path / "x.h5", np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32))
    with pytest.raises(UserError, match=r"none of the 1 queries of .*gt\.csv is in"):
        ImageSimilarity(write(tmp_path / "gt.csv", "Q9,R9\n"), embeddings=str(file), allow_missing=True)


EYE = np.eye(2, dtype=np.float32)


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ({"query": None}, r"has no query: .* `ft embed --query FOLDER` writes both"),
        ({"reference_ids": None}, r"has no reference_ids"),
        ({"reference": np.zeros((2, 3), np.float32)}, "queries have 2 dimensions and references 3"),
        ({"query": np.zeros(2, np.float32)}, r"query is float32 \[2\]: float32 \[n, D\] is needed"),
        ({"query": np.zeros((2, 2), np.int64)}, r"query is int64 \[2, 2\]"),
        ({"query_ids": ["Q00000"]}, "2 rows of query and 1 query_ids"),
        ({"query_ids": ["a", "a"]}, "a is twice among the query_ids"),
        ({"query": EYE[:0], "query_ids": np.array([], "S1")}, "query is empty"),
    ],
)
def test_wrong_files_of_embeddings(others: dict[str, Any], why: str, tmp_path: Path) -> None:
    truth = write(tmp_path / "gt.csv", "Q00000,R000000\n")
    values = {"query": EYE, "reference": EYE, **others}
    extra = {name: value for name, value in others.items() if name.endswith("ids")}
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name in ("query", "reference"):
            if values[name] is not None:
                file[name] = values[name]
            ids = extra.get(
                f"{name}_ids", [f"{name[0].upper()}{i:0{5 + (name == 'reference')}d}" for i in range(2)]
            )
            if ids is not None:
                file[f"{name}_ids"] = ids
    with pytest.raises(UserError, match=why):
        ImageSimilarity(truth, embeddings=str(tmp_path / "x.h5"))


def test_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isc_file, "ROWS", 2)
    truth = write(tmp_path / "gt.csv", "Q00000,R000000\n")
    with pytest.raises(UserError, match="there is no such file of embeddings"):
        ImageSimilarity(truth, embeddings=str(tmp_path / "x.h5"))
    write(tmp_path / "x.h5", "nonsense")
    with pytest.raises(UserError, match="is no HDF5 file, or damaged"):
        ImageSimilarity(truth, embeddings=str(tmp_path / "x.h5"))
    reference = np.ones((5, 2), np.float32)
    reference[3, 1] = np.nan
    file = str(write_h5(tmp_path / "x.h5", EYE, reference))
    protocol = ImageSimilarity(truth, embeddings=file)
    with pytest.raises(UserError, match="the embedding of reference R000003 is not finite"):
        protocol.measure(np.zeros((0, 1)), np.zeros(0, bool))
    with pytest.raises(UserError, match="is a folder: with embeddings, --data is the ground truth"):
        ImageSimilarity(tmp_path, embeddings=file)
    with pytest.raises(UserError, match=r"gt\.csv is a file: say embeddings=FILE\.h5, or name the folder"):
        ImageSimilarity(truth)
    with pytest.raises(UserError, match="whole is of photographs"):
        ImageSimilarity(truth, embeddings=file, whole=True)
    with pytest.raises(UserError, match="k is at least 1"):
        ImageSimilarity(truth, embeddings=file, k=0)
    with pytest.raises(UserError, match=r"holds no queries: looked for queries, query_images, query"):
        ImageSimilarity(tmp_path)
    for folder in ("queries", "references"):
        (tmp_path / folder).mkdir()
    with pytest.raises(UserError, match="queries holds no photographs"):
        ImageSimilarity(tmp_path)
    for name in ("Q1.jpg", "Q1.png"):
        write(tmp_path / "queries" / name, "")
    with pytest.raises(UserError, match=r"Q1\.jpg and Q1\.png are both queries Q1: leave one"):
        ImageSimilarity(tmp_path)
