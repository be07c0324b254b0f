"""What the report finds in embeddings: a map, and photographs that are worth a look."""

from __future__ import annotations

import base64
import sys

import cv2
import numpy as np
import pytest
from sklearn.decomposition import PCA

from facetrain.evaluate.report import embedding_map as maps
from facetrain.evaluate.report.content import EmbeddingMap, Missing
from facetrain.evaluate.report.pictures import LARGEST_PX, jpeg_uri, png_as_jpeg_uri
from facetrain.evaluate.report.validation import look_at


def faces(people: int = 12, photographs: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings float32 of people far apart, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(people), photographs)
    found = rng.normal(size=(people, 64))[labels] + 0.35 * rng.normal(size=(len(labels), 64))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32), labels


def test_principal_components_are_sklearns() -> None:
    embeddings, _ = faces()
    mine = maps.principal_components(embeddings, 10)
    theirs = PCA(10, svd_solver="full").fit_transform(embeddings.astype(np.float64))
    np.testing.assert_allclose(np.abs(mine), np.abs(theirs), atol=1e-8)
    assert maps.principal_components(np.ones((5, 3), np.float32), 2).shape == (5, 2)
    assert maps.principal_components(np.ones((5, 1), np.float32), 2).shape == (5, 2)


def test_a_map_keeps_people_together() -> None:
    embeddings, labels = faces()
    found = maps.embedding_map(embeddings, labels, [f"p{i}" for i in range(12)])
    assert isinstance(found, EmbeddingMap)
    assert "t-SNE (perplexity 10) of the first 50 principal components" in found.method
    np.testing.assert_array_equal(found.person, labels)
    distance = np.linalg.norm(found.points[:, None] - found.points, axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(axis=1)] == labels).mean() > 0.95
    again = maps.embedding_map(embeddings, labels, [f"p{i}" for i in range(12)])
    assert isinstance(again, EmbeddingMap)
    np.testing.assert_array_equal(again.points, found.points)


def test_without_scikit_learn_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    embeddings, labels = faces()
    found = maps.embedding_map(embeddings, labels, [f"p{i}" for i in range(12)])
    assert isinstance(found, EmbeddingMap)
    assert found.method.startswith("the first two principal components; `pip install 'facetrain[report]'`")
    expected = maps.principal_components(embeddings, 2)
    np.testing.assert_allclose(np.abs(found.points), np.abs(expected), atol=1e-9)


def test_few_photographs_and_many(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = faces()
    few = maps.embedding_map(embeddings[:9], labels[:9], ["p0", "p1"])
    assert isinstance(few, Missing) and few.why.startswith("9 photographs are too few")
    monkeypatch.setattr(maps, "MOST_POINTS", 50)
    names = [f"p{i}" for i in range(12)]
    found = maps.embedding_map(embeddings, labels, names)
    assert isinstance(found, EmbeddingMap)
    assert len(found.points) == 48 and len(found.names) == 6 and "48 of 96 photographs" in found.method


def test_whole_people() -> None:
    labels = np.random.default_rng(0).integers(0, 40, 1000)
    rows = maps.whole_people(labels, 300)
    assert 200 < len(rows) <= 300 and (np.diff(rows) > 0).all()
    for label in np.unique(labels[rows]):
        assert (labels[rows] == label).sum() == (labels == label).sum()
    np.testing.assert_array_equal(maps.whole_people(labels, 1000), np.arange(1000))
    assert len(maps.whole_people(np.zeros(50, int), 20)) == 20


def test_what_is_looked_at() -> None:
    """Two photographs have changed places, and a third is of nobody's: found, and held against the right people."""
    embeddings, labels = faces()
    embeddings[[3, 20]] = embeddings[[20, 3]]
    pixels = np.arange(96, dtype=np.uint8)
    paths = [f"p{label}/{row}.jpg" for row, label in enumerate(labels)]

    def show(rows: np.ndarray) -> np.ndarray:
        return np.broadcast_to(pixels[rows][:, None, None, None], (len(rows), 8, 8, 3)).copy()

    found = look_at(embeddings, labels, [f"p{i}" for i in range(12)], paths, show, ["a note"])
    assert (found.photographs, found.people, found.notes) == (96, 12, ["a note"])
    doubtful = {doubt.subject.pictures[0].caption: doubt for doubt in found.outliers.worst}
    assert {"p0/3.jpg", "p2/20.jpg"} <= set(doubtful)
    (_, own), (text, near) = doubtful["p0/3.jpg"].beside
    assert (own.name, near.name) == ("p0", "p2") and "nearest person, cosine" in text
    assert doubtful["p0/3.jpg"].subject.pictures[0] not in own.pictures
    assert found.outliers.total >= len(found.outliers.worst)

    cosines = []
    for row in range(96):
        others = (
            embeddings[[r for r in range(96) if labels[r] == labels[row] and r != row]]
            .astype(float)
            .sum(axis=0)
        )
        cosines.append(float(others @ embeddings[row] / np.linalg.norm(others)))
    worst = sorted(range(96), key=lambda row: cosines[row])[: len(found.farthest)]
    assert [picture.caption for picture, _, _ in found.farthest] == [paths[row] for row in worst]
    np.testing.assert_allclose(
        [cosine for _, _, cosine in found.farthest], sorted(cosines)[: len(worst)], atol=1e-5
    )
    shown = decoded(found.farthest[0][0].uri)
    assert abs(int(shown.mean()) - worst[0]) <= 2


def test_people_with_one_photograph() -> None:
    embeddings, labels = faces(20, 1)
    found = look_at(
        embeddings,
        labels,
        [f"p{i}" for i in range(20)],
        ["x"] * 20,
        lambda rows: np.zeros((len(rows), 8, 8, 3), np.uint8),
    )
    assert found.farthest == [] and not found.outliers.worst and not found.two_in_one.worst


def decoded(uri: str) -> np.ndarray:
    data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def test_pictures_keep_their_colours_and_shrink() -> None:
    crop = np.zeros((150, 300, 3), np.uint8)
    crop[..., 0], crop[..., 2] = 200, 40
    shown = decoded(jpeg_uri(crop))
    assert shown.shape == (LARGEST_PX // 2, LARGEST_PX, 3)
    np.testing.assert_allclose(shown.mean(axis=(0, 1)), [200, 0, 40], atol=4)
    assert decoded(jpeg_uri(crop[:50, :60])).shape == (50, 60, 3)
    png = cv2.imencode(".png", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))[1].tobytes()
    assert png_as_jpeg_uri(png) == jpeg_uri(crop)
    assert png_as_jpeg_uri(b"") is None and png_as_jpeg_uri(b"nonsense") is None
