"""QMUL-SurvFace's protocol: against plain loops, through the command, and with lists that are wrong."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from mean_colours import Means
from numpy.typing import NDArray

from facetrain.datasets.synth import synthesise_layout
from facetrain.errors import UserError
from facetrain.evaluate.protocols.survface import SurvFace
from facetrain.preprocess.photograph import read_photograph

SEARCH, COMPARE = "Face_Identification_Test_Set", "Face_Verification_Test_Set"
FPIRS, FARS = (0.3, 0.2, 0.1, 0.01), (0.3, 0.1, 0.01, 0.001)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("survface") / "set"
    synthesise_layout(out, "survface", identities=4, images=4, seed=3, size_px=160)
    return out


@pytest.fixture
def data(drawn: Path, tmp_path: Path) -> Path:
    """A copy, to be changed at will."""
    return shutil.copytree(drawn, tmp_path / "set")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More people than a rank of 20 holds. No photograph is looked at, so there is nothing in them."""
    root = tmp_path_factory.mktemp("large")

    def put(folder: str, name: str) -> str:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).touch()
        return name

    lists: dict[str, list[str]] = {}
    for kind, images in (("gallery", (1, 2, 3)), ("mated_probe", (4, 5))):
        names = [
            put(f"{SEARCH}/{kind}", f"{p}_cam1_{i}.jpg") for p in range(40) for i in images if i <= 1 + p % 5
        ]
        lists[f"{SEARCH}/{kind}_img_ID_pairs"] = [f"{name},{name.split('_')[0]}" for name in names]
    for p in range(120):
        put(f"{SEARCH}/unmated_probe", f"{1000 + p}_cam1_1.jpg")
    for p in range(200):
        put(f"{COMPARE}/verification_images", f"{p}.jpg")
    rng = np.random.default_rng(0)
    pairs = [(i, i + 1) for i in range(0, 200, 2)], [rng.permutation(200)[:2] for _ in range(130)]
    for kind, ends in zip(("positive", "negative"), pairs, strict=True):
        lists[f"{COMPARE}/{kind}_pairs_names"] = [f"{a}.jpg,{b}.jpg" for a, b in ends]
    for stem, lines in lists.items():
        (root / f"{stem}.csv").write_text("\n".join(lines) + "\n")
    return root


def tied(rows: int, seed: int) -> NDArray[np.float32]:
    """Vectors of length 1 whose products are all exact, and mostly equal to others."""
    rng = np.random.default_rng(seed)
    halves = rng.choice([-0.5, 0.5], (rows, 16)) * (
        rng.permuted(np.arange(16) < 4 * np.ones((rows, 1)), axis=1)
    )
    axes = np.eye(16)[rng.integers(16, size=rows)] * rng.choice([-1, 1], (rows, 1))
    return np.where(rng.random((rows, 1)) < 0.7, halves, axes).astype(np.float32)


def drawn_at_random(rows: int, seed: int) -> NDArray[np.float32]:
    """Vectors of length 1, near a direction that all share: strangers look alike too."""
    x = np.random.default_rng(seed).standard_normal((rows, 16)) + 0.4
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def score(a: NDArray, b: NDArray) -> float:
    return float(np.float32(a.astype(np.float64) @ b.astype(np.float64)))


def identified(
    by_path: dict[str, NDArray], alive: dict[str, bool], *, together: bool
) -> tuple[dict[float, float | None], float]:
    """(TPIR20 by FPIR, rank 1) in plain loops over the paths of the photographs."""
    people: dict[str, list[NDArray]] = {}
    for path, embedding in by_path.items():
        if "/gallery/" in path and alive[path]:
            people.setdefault(path.split("/")[-1].split("_")[0], []).append(embedding)
    gallery = []
    for person, embeddings in people.items():
        if together:
            mean = np.sum(np.array(embeddings, np.float64), axis=0)
            embeddings = [(mean / np.linalg.norm(mean)).astype(np.float32)]
        gallery += [(person, embedding) for embedding in embeddings]
    hits, alarms, first = [], [], 0
    for path, embedding in by_path.items():
        if "probe" not in path:
            continue
        own = path.split("/")[-1].split("_")[0] if "/mated_probe/" in path else None
        rows = sorted((-score(embedding, g), person == own) for person, g in gallery) if alive[path] else []
        if own is None:
            alarms.append(-rows[0][0] if rows else -math.inf)
            continue
        wrong, mate = 0, None
        for negative, is_mate in rows:
            if is_mate:
                mate = -negative
                break
            wrong += 1
        hits.append(mate if mate is not None and wrong < 20 else -math.inf)
        first += mate is not None and wrong == 0
    tpir: dict[float, float | None] = {}
    for target in FPIRS:
        best = None
        for threshold in {*hits, *alarms, math.inf} - {-math.inf}:
            if sum(alarm >= threshold for alarm in alarms) / len(alarms) <= target:
                best = max(best or 0.0, sum(hit >= threshold for hit in hits) / len(hits))
        tpir[target] = best if target >= 1 / len(alarms) else None
    return tpir, first / len(hits)


def check_identification(protocol: SurvFace, embeddings: NDArray, found: NDArray[np.bool_]) -> None:
    values = protocol.measure(embeddings, found).values
    paths = list(protocol.photographs.paths)
    by_path, alive = dict(zip(paths, embeddings, strict=True)), dict(zip(paths, found.tolist(), strict=True))
    tpir, first = identified(by_path, alive, together=protocol.gallery == "templates")
    assert values["rank_1"] == pytest.approx(first, abs=1e-12)
    for target, rate in tpir.items():
        assert values[f"tpir20_at_fpir_{target:g}"] == (
            rate if rate is None else pytest.approx(rate, abs=1e-12)
        )


@pytest.mark.parametrize("missing", [0, 40])
@pytest.mark.parametrize("gallery", ["templates", "images"])
def test_identification_against_plain_loops(gallery: str, missing: int, large: Path) -> None:
    protocol = SurvFace(large, part="identification", gallery=gallery)
    count = len(protocol.photographs)
    found = np.ones(count, bool)
    found[np.random.default_rng(1).permutation(count)[:missing]] = False
    # A mean of exact vectors is not exact: ties of templates are tested where a person's photographs are one.
    embeddings = drawn_at_random(count, 2) if gallery == "templates" else tied(count, 2)
    check_identification(protocol, np.where(found[:, None], embeddings, np.float32(0)), found)


def test_ties_of_templates(large: Path) -> None:
    protocol = SurvFace(large, part="identification")
    embeddings = tied(len(protocol.photographs), 4)
    first: dict[str, int] = {}
    for row, path in enumerate(protocol.photographs.paths):
        if "/gallery/" in path:
            embeddings[row] = embeddings[first.setdefault(path.split("/")[-1].split("_")[0], row)]
    check_identification(protocol, embeddings, np.ones(len(embeddings), bool))


@pytest.mark.parametrize("draw", [tied, drawn_at_random])
def test_verification_against_plain_loops(draw: Callable, large: Path) -> None:
    protocol = SurvFace(large, part="verification")
    paths = list(protocol.photographs.paths)
    embeddings = dict(zip(paths, draw(len(paths), 3), strict=True))
    if draw is drawn_at_random:  # a pair is alike, but not so much that all are told apart
        for name, other in (
            (f"{COMPARE}/verification_images/{i}.jpg" for i in (j, j + 1)) for j in range(0, 200, 2)
        ):
            both = embeddings[name] + 2 * embeddings[other]
            embeddings[other] = both / np.linalg.norm(both)
    measured = protocol.measure(np.stack(list(embeddings.values())), np.ones(len(paths), bool))
    scores: dict[bool, list[float]] = {}
    for kind in ("positive", "negative"):
        lines = (large / COMPARE / f"{kind}_pairs_names.csv").read_text().split()
        pairs = [
            [embeddings[f"{COMPARE}/verification_images/{name}"] for name in line.split(",")]
            for line in lines
        ]
        scores[kind == "positive"] = [score(*pair) for pair in pairs]
    same, different = scores[True], scores[False]
    above = sum((s > d) + (s == d) / 2 for s in same for d in different)
    assert measured.values["auc"] == pytest.approx(above / len(same) / len(different), abs=1e-12)
    for target in FARS:
        rates = [
            sum(s >= t for s in same) / len(same)
            for t in {*same, *different, math.inf}
            if sum(d >= t for d in different) / len(different) <= target
        ]
        expected = None if target < 1 / len(different) else pytest.approx(max(rates), abs=1e-12)
        assert measured.values[f"tar_at_far_{target:g}"] == expected

    # Ten folds: each kind in ten runs, in the order of the lists; the threshold is the best one on the others.
    folds = [i * 10 // len(kind) for kind in (same, different) for i in range(len(kind))]
    pooled = [(s, True) for s in same] + [(d, False) for d in different]
    accuracies = []
    for fold in range(10):
        rest = [pair for pair, f in zip(pooled, folds, strict=True) if f != fold]
        candidates = [math.inf, *sorted({s for s, _ in rest}, reverse=True)]
        right = [sum((s >= t) == kind for s, kind in rest) for t in candidates]
        best = [t for t, r in zip(candidates, right, strict=True) if r == max(right)]
        threshold = best[len(best) // 2]
        mine = [pair for pair, f in zip(pooled, folds, strict=True) if f == fold]
        accuracies.append(sum((s >= threshold) == kind for s, kind in mine) / len(mine))
    assert measured.values["accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert measured.trials is not None and len(measured.trials.scores) == len(pooled)


def test_through_the_command(drawn: Path, ft: Callable, tmp_path: Path) -> None:
    named = ["--embedder", "mean_colours:Means", "-j", 1, "--protocol", "survface", "--data", drawn]
    ft(tmp_path, "evaluate", *named, "--out", tmp_path / "out")
    values = json.loads((tmp_path / "out.json").read_text())["values"]
    protocol = SurvFace(drawn)
    paths = list(protocol.photographs.paths)
    files = [drawn / path for path in paths]
    faces = [
        cv2.resize(read_photograph(f.read_bytes()), (32, 32), interpolation=cv2.INTER_LINEAR) for f in files
    ]
    embeddings = dict(zip(paths, Means().embed([np.stack(faces)]), strict=True))
    tpir, first = identified(embeddings, dict.fromkeys(paths, True), together=True)
    assert values["rank_1"] == first
    for target, rate in tpir.items():
        assert values[f"tpir20_at_fpir_{target:g}"] == rate
    assert values["tpir20_at_fpir_0.01"] is None
    assert (tmp_path / "out.trials.parquet").is_file()

    for part, count in (("identification", 5), ("verification", 6)):
        ft(tmp_path, "evaluate", *named, "--protocol-arg", f"part={part}", "--out", tmp_path / part)
        of_part = json.loads((tmp_path / f"{part}.json").read_text())["values"]
        assert len(of_part) == count
        assert of_part == {name: values[name] for name in of_part}


def test_matlab_lists_beside_the_evaluation_code(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io = pytest.importorskip("scipy.io")
    plain = SurvFace(data)
    for folder in (SEARCH, COMPARE):
        other = data / folder.replace("Test_Set", "Evaluation")
        other.mkdir()
        for path in sorted((data / folder).glob("*.csv")):
            rows = [line.split(",") for line in path.read_text().split()]
            names = np.array(rows, object)
            kind = path.stem.removesuffix("_img_ID_pairs")
            ids = np.array([row[1:] for row in rows], object)
            columns = {path.stem: names}
            if folder == SEARCH:
                columns = {f"{kind}_set": names[:, :1], f"{kind}_ids": ids.astype(np.uint16)}
            io.savemat(other / f"{path.stem}.mat", columns)
            path.unlink()
    of_mat = SurvFace(data.parent / data.name)
    assert not of_mat.notes
    assert list(of_mat.photographs.paths) == list(plain.photographs.paths)
    assert of_mat.pairs is not None and plain.pairs is not None
    assert np.array_equal(of_mat.pairs.first, plain.pairs.first)
    assert np.array_equal(of_mat.pairs.same, plain.pairs.same)

    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert "names of the files" in SurvFace(data, part="identification").notes[0]
    with pytest.raises(
        UserError, match=r"pairs_names\.mat is a MATLAB file, which scipy reads: pip install scipy"
    ):
        SurvFace(data, part="verification")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            f"{SEARCH}/gallery_img_ID_pairs.csv",
            "none.jpg,1",
            rf"ID_pairs\.csv, line 2: there is no photograph {SEARCH}/gallery/none\.jpg",
        ),
        (
            f"{SEARCH}/gallery_img_ID_pairs.csv",
            "1,2,3",
            r"csv, line 2: expected two texts with a comma .* '1,2,3'",
        ),
        (
            f"{SEARCH}/mated_probe_img_ID_pairs.csv",
            "1_cam2_4.jpg,50",
            r"line 2: .*1_cam2_4\.jpg is of a person without a photograph in the gallery, found '50'",
        ),
        (
            f"{COMPARE}/positive_pairs_names.csv",
            "2000001_cam2_1.jpg,x.jpg",
            rf"names\.csv, line 2: there is no photograph {COMPARE}/verification_images/x\.jpg",
        ),
        (f"{COMPARE}/negative_pairs_names.csv", "a.jpg,", r"names\.csv, line 2: expected two texts"),
        (
            f"{COMPARE}/negative_pairs_names.csv",
            "a.jpg,a.jpg",
            r"line 2: a photograph cannot be compared with itself, found 'a\.jpg'",
        ),
    ],
)
def test_wrong_lines(file: str, text: str, message: str, data: Path) -> None:
    lines = (data / file).read_text().split("\n")
    (data / file).write_text("\n".join([lines[0], text, *lines[2:]]))
    with pytest.raises(UserError, match=message):
        SurvFace(data)


def test_wrong_files(data: Path, wrong: Callable, tmp_path: Path) -> None:
    named = ["--embedder", "mean_colours:Means", "-j", 1, "--protocol", "survface", "--data", data]
    given = [*named, "--protocol-arg"]
    assert "part = 'all': choose both, identification or verification" in wrong(
        tmp_path, "evaluate", *given, "part=all"
    )
    assert "gallery = 'mean': choose templates or images" in wrong(
        tmp_path, "evaluate", *given, "gallery=mean"
    )
    (data / COMPARE / "positive_pairs_names.csv").write_text("")
    assert "positive_pairs_names.csv: the list of pairs is empty" in wrong(tmp_path, "evaluate", *named)
    (data / COMPARE / "positive_pairs_names.csv").unlink()
    line = wrong(tmp_path, "evaluate", *named)
    assert "holds no list of pairs: looked for positive_pairs_names.csv, positive_pairs_names.mat" in line
    shutil.rmtree(data / SEARCH / "unmated_probe")
    assert "unmated_probe: no such folder" in wrong(tmp_path, "evaluate", *named)
    shutil.rmtree(data / SEARCH)
    assert "holds no test set of QMUL-SurvFace" in wrong(tmp_path, "evaluate", *named)


def test_pairs_in_a_matlab_file_of_another_shape(data: Path) -> None:
    io = pytest.importorskip("scipy.io")
    (data / COMPARE / "positive_pairs_names.csv").unlink()
    cells = np.array([["a.jpg", "b.jpg", "c.jpg"]], object)
    io.savemat(data / COMPARE / "positive_pairs_names.mat", {"positive_pairs_names": cells})
    with pytest.raises(UserError, match="expected two columns, found 3"):
        SurvFace(data)


def test_the_layout(drawn: Path, tmp_path: Path) -> None:
    """A larger set extends a smaller one, and too small a one is refused."""
    with pytest.raises(UserError, match="needs a gallery photograph and a probe of each person"):
        synthesise_layout(tmp_path / "few", "survface", identities=2, images=1)
    assert not (tmp_path / "few").exists()
    small = synthesise_layout(tmp_path / "set", "survface", identities=2, images=2, seed=3, size_px=64)
    before = {path: path.read_bytes() for path in (tmp_path / "set").rglob("*.jpg")}
    large = synthesise_layout(tmp_path / "set", "survface", identities=3, images=3, seed=3, size_px=64)
    assert large.drawn == large.photographs - small.photographs > 0
    synthesise_layout(tmp_path / "new", "survface", identities=3, images=3, seed=3, size_px=64)
    for path, content in before.items():
        again = tmp_path / "new" / path.relative_to(tmp_path / "set")
        assert again.read_bytes() == content == path.read_bytes()
    with pytest.raises(UserError, match="compares people with each other"):
        synthesise_layout(tmp_path / "one", "survface", identities=1, images=2)
