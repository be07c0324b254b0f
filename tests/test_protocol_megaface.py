"""MegaFace's protocol: against plain loops, through the command, and with lists that are wrong."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mean_colours import Means
from numpy.typing import NDArray

from facetrain.datasets.synth import synthesise_layout
from facetrain.errors import UserError
from facetrain.evaluate.protocols import megaface
from facetrain.evaluate.protocols.megaface import MegaFace, highest_scores
from facetrain.preprocess.photograph import read_photograph

FARS = (0.1, 0.01, 0.001, 1e-6)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("megaface") / "set"
    synthesise_layout(out, "megaface", identities=3, images=3, seed=3, size_px=64)
    return out


@pytest.fixture
def data(drawn: Path, tmp_path: Path) -> Path:
    """A copy, to be changed at will."""
    return shutil.copytree(drawn, tmp_path / "set")


PROBES = [f"P{person}/P{person}_{image}.png" for person in range(9) for image in range(1 + person % 4)]
STRANGERS = [f"{i // 50}/{i // 10}/{i}.jpg" for i in range(150)]


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No photograph is looked at, so there is nothing in them. The sets lie across each other, as the dev-kit's do."""
    root = tmp_path_factory.mktemp("lists")
    for folder, names in (("facescrub_images", PROBES), ("megaface_images", STRANGERS)):
        for name in names:
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (root / folder / name).touch()
    write_list(root, "facescrub_features_list.json", PROBES, [name.split("/")[0] for name in PROBES])
    rng = np.random.default_rng(0)
    for size in (10, 100):
        names = [STRANGERS[i] for i in rng.permutation(150)[:size]]
        write_list(root, f"megaface_features_list.json_{size}_1", names, list(range(size)))
    return root


def write_list(root: Path, name: str, paths: list[str], ids: list[Any]) -> None:
    (root / "templatelists").mkdir(exist_ok=True)
    (root / "templatelists" / name).write_text(json.dumps({"path": paths, "id": ids}, indent=0))


def read_set(root: Path, size: int) -> list[str]:
    text = (root / "templatelists" / f"megaface_features_list.json_{size}_1").read_text()
    return json.loads(text)["path"]


def tied(rows: int, seed: int) -> NDArray[np.float32]:
    """Vectors of length 1 whose products are all exact, and mostly equal to others."""
    rng = np.random.default_rng(seed)
    halves = rng.choice([-0.5, 0.5], (rows, 8)) * rng.permuted(np.arange(8) < 4 * np.ones((rows, 1)), axis=1)
    axes = np.eye(8)[rng.integers(8, size=rows)] * rng.choice([-1, 1], (rows, 1))
    return np.where(rng.random((rows, 1)) < 0.5, halves, axes).astype(np.float32)


def drawn_at_random(rows: int, seed: int) -> NDArray[np.float32]:
    x = np.random.default_rng(seed).standard_normal((rows, 8))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def score(a: NDArray, b: NDArray) -> float:
    return float(np.float32(a.astype(np.float64) @ b.astype(np.float64)))


def by_hand(
    probes: list[tuple[str, NDArray | None]], sets: dict[int, list[NDArray | None]]
) -> dict[str, float | None]:
    """Plain loops. None: no face was found."""
    values: dict[str, float | None] = {}
    pairs = [
        (i, j)
        for i in range(len(probes))
        for j in range(len(probes))
        if i != j and probes[i][0] == probes[j][0]
    ]

    def of_pair(i: int, j: int) -> float:
        a, b = probes[i][1], probes[j][1]
        return -math.inf if a is None or b is None else score(a, b)

    for size, distractors in sets.items():
        ranks = []
        for i, j in pairs:
            mate = of_pair(i, j)
            above = [
                d
                for d in distractors
                if d is not None and mate > -math.inf and score(probes[i][1], d) >= mate
            ]
            ranks.append(1 + len(above) if mate > -math.inf else math.inf)
        values |= {f"rank_{r}_at_{size}": sum(rank <= r for rank in ranks) / len(pairs) for r in (1, 10)}
    same = [of_pair(i, j) for i, j in pairs]
    largest = sets[max(sets)]
    different = [-math.inf if a is None or d is None else score(a, d) for _, a in probes for d in largest]
    for target in FARS:
        rates = [
            sum(s >= t for s in same) / len(same)
            for t in {*same, *different, math.inf} - {-math.inf}
            if sum(d >= t for d in different) / len(different) <= target
        ]
        values[f"tar_at_far_{target:g}"] = max(rates) if target >= 1 / len(different) else None
    return values


def check(
    protocol: MegaFace,
    people: list[str],
    sets: dict[int, list[str]],
    seed: int,
    missing: int,
    draw: Callable[[int, int], NDArray[np.float32]] = tied,
) -> None:
    """sets: paths as the protocol's photographs have them."""
    paths = list(protocol.photographs.paths)
    embeddings, found = draw(len(paths), seed), np.ones(len(paths), bool)
    found[np.random.default_rng(seed).permutation(len(paths))[:missing]] = False
    embeddings[~found] = 0
    of = {path: row if there else None for path, row, there in zip(paths, embeddings, found, strict=True)}
    probes = list(zip(people, list(of.values())[: len(people)], strict=True))
    expected = by_hand(probes, {size: [of[path] for path in names] for size, names in sets.items()})
    values = protocol.measure(embeddings, found).values
    assert set(values) == set(protocol.figures) == set(expected)
    for name, value in expected.items():
        assert values[name] == (value if value is None else pytest.approx(value, abs=1e-12)), name


@pytest.mark.parametrize("missing", [0, 30])
@pytest.mark.parametrize("draw", [tied, drawn_at_random])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_plain_loops(
    seed: int, draw: Callable, missing: int, lists: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(megaface, "FAR_TARGETS", FARS)
    people = [name.split("/")[0] for name in PROBES]
    sets = {size: [f"megaface_images/{name}" for name in read_set(lists, size)] for size in (100, 10)}
    protocol = MegaFace(lists)
    assert next(iter(protocol.figures)) == "rank_1_at_100"
    assert protocol.people == frozenset(people)
    check(protocol, people, sets, seed, missing, draw)


def test_noise_is_left_out(lists: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megaface, "FAR_TARGETS", FARS)
    (tmp_path / "probes.txt").write_text("# FaceScrub\nP3_1.png\nP6_0.png\nP99_1.png\n")
    sets = {size: read_set(lists, size) for size in (100, 10)}
    wrong = [sets[100][3], sets[100][50], sets[10][0]]
    (tmp_path / "strangers.txt").write_text(f"{wrong[0]}\nno face\t{wrong[1]}\n{wrong[2]}\n")
    noise = {"probe_noise": str(tmp_path / "probes.txt"), "distractor_noise": str(tmp_path / "strangers.txt")}
    protocol = MegaFace(lists, **noise)
    people = [name.split("/")[0] for name in PROBES if name.split("/")[1] not in ("P3_1.png", "P6_0.png")]
    assert len(people) == len(PROBES) - 2
    kept = {
        size: [f"megaface_images/{name}" for name in names if name not in wrong]
        for size, names in sets.items()
    }
    check(protocol, people, kept, 2, 5)
    counts = protocol.measure(
        np.zeros((len(protocol.photographs), 4)), np.zeros(len(protocol.photographs), bool)
    ).counts
    assert counts["left out as noise"] == 2 + 100 - len(kept[100])
    assert counts["distractors"] == len(kept[100])
    (tmp_path / "strangers.txt").write_text("\n".join(sets[10]) + "\n")
    with pytest.raises(UserError, match=r"strangers\.txt leaves none of the 10 distractors"):
        MegaFace(lists, **noise)


def test_without_lists(lists: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megaface, "FAR_TARGETS", FARS)
    shutil.copytree(lists / "facescrub_images", tmp_path / "probes")
    shutil.copytree(lists / "megaface_images", tmp_path / "distractors")
    protocol = MegaFace(tmp_path)
    paths = list(protocol.photographs.paths)
    people = [path.split("/")[1] for path in paths if path.startswith("probes/")]
    strangers = paths[len(people) :]
    assert sorted(people) == sorted(name.split("/")[0] for name in PROBES)
    assert len(strangers) == 150 and strangers != sorted(strangers)
    check(protocol, people, {size: strangers[:size] for size in (150, 100, 10)}, 3, 4)
    named = {"probes": "a/facescrub", "distractors": "a/distractors"}
    (tmp_path / "a").mkdir()
    (tmp_path / "probes").rename(tmp_path / "a" / "facescrub")
    (tmp_path / "distractors").rename(tmp_path / "a" / "distractors")
    assert len(MegaFace(tmp_path, **named).photographs) == len(paths)
    with pytest.raises(UserError, match=r"probes = '.*': name a folder below"):
        MegaFace(tmp_path / "a", probes=str(lists / "facescrub_images"))


def test_a_threshold_may_accept_a_tenth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 pairs of a probe and a distractor, two are above the probes' own score, and a third is not."""
    monkeypatch.setattr(megaface, "FAR_TARGETS", (0.1, 0.06, 0.05))
    for name in ("probes/a/1.png", "probes/a/2.png", *(f"distractors/{i}.png" for i in range(10))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    cosines = np.array([0.75, 0.6, 0.4, *[-1.0] * 7])
    strangers = np.stack([cosines, -np.sqrt(1 - cosines**2)], axis=1)
    embeddings = np.concatenate([[[1, 0], [0.5, 0.75**0.5]], strangers]).astype(np.float32)
    values = MegaFace(tmp_path).measure(embeddings, np.ones(12, bool)).values
    assert values["rank_1_at_10"] == 0.5  # from the other side nobody is above
    assert [values[f"tar_at_far_{far:g}"] for far in (0.1, 0.06, 0.05)] == [1, 0, 0]


@pytest.mark.parametrize("draw", [tied, drawn_at_random])
@pytest.mark.parametrize("kind", ["all alike", "one query has the highest", "all the same"])
@pytest.mark.parametrize("count", [1, 40, 2999, 10**6])
def test_the_highest_scores_of_all(kind: str, draw: Callable, count: int) -> None:
    queries, gallery = draw(30, 1), draw(100, 2)
    if kind == "one query has the highest":
        queries[1:] *= np.float32(2**-10)
    if kind == "all the same":
        queries[:], gallery[:] = queries[0], queries[0]
    expected = sorted((score(q, g) for q in queries for g in gallery), reverse=True)[:count]
    assert highest_scores(queries, gallery, count).tolist() == pytest.approx(expected, abs=1e-7)


def test_through_the_command(drawn: Path, ft: Callable, tmp_path: Path) -> None:
    named = ["--embedder", "mean_colours:Means", "-j", 1, "--protocol", "megaface", "--data", drawn]
    ft(tmp_path, "evaluate", *named, "--protocol-arg", "kind=faces", "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out.json").read_text())
    protocol = MegaFace(drawn)
    assert protocol.photographs.kind == "photographs"
    paths = list(protocol.photographs.paths)
    files = [drawn / path for path in paths]
    faces = [
        cv2.resize(read_photograph(f.read_bytes()), (32, 32), interpolation=cv2.INTER_AREA) for f in files
    ]
    embeddings = Means().embed([np.stack(faces)])
    people = [path.split("/")[1] for path in paths if path.startswith("facescrub_images")]
    probes = list(zip(people, embeddings[: len(people)], strict=True))
    expected = by_hand(probes, {10: list(embeddings[len(people) :])})
    values = found["values"]
    assert {name: values[name] for name in ("rank_1_at_10", "rank_10_at_10")} == {
        name: pytest.approx(expected[name], abs=1e-12) for name in ("rank_1_at_10", "rank_10_at_10")
    }
    assert values["tar_at_far_1e-06"] is None
    assert found["counts"]["searches"] == 3 * 3 * 2
    assert found["kind"] == "faces"


@pytest.mark.usefixtures("in_process")
def test_photographs_are_aligned(data: Path, ft: Callable, tmp_path: Path) -> None:
    named = ["--embedder", "mean_colours:Means", "-j", 1, "--protocol", "megaface", "--data", data]
    text = ft(tmp_path, "evaluate", *named, "--out", tmp_path / "out").output
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["photographs"] == 19
    if found["photographs_without_face"]:
        assert "have no face that was found: they are refused" in text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("facescrub_features_list.json", "{", r"list\.json, line 1: no JSON: "),
        ("facescrub_features_list.json", '{\n"path": [\n"a", ]}', r"list\.json, line 3: no JSON: "),
        ("facescrub_features_list.json", "[]", r"list\.json: no list of photographs: expected \{"),
        ("facescrub_features_list.json", '{"path": [], "id": []}', r"list\.json: the list is empty"),
        ("facescrub_features_list.json", '{"path": ["a"]}', r'there is no "id"'),
        (
            "facescrub_features_list.json",
            '{"path": ["a", "b"], "id": ["a"]}',
            r'json: 2 in "path", and 1 in "id"',
        ),
        (
            "facescrub_features_list.json",
            '{"path": [3], "id": ["a"]}',
            r"line 1: expected the path of a photograph",
        ),
        (
            "facescrub_features_list.json",
            '{"path": ["Person_1/Person_1_1.png", "b/b.png"], "id": ["a", "a"]}',
            r"list\.json, line 2: there is no photograph facescrub_images/b/b\.png in ",
        ),
        (
            "facescrub_features_list.json",
            '{"path": ["Person_1/Person_1_1.png", "Person_1/Person_1_1.png"], "id": ["a", "a"]}',
            r"line 2: the photograph is in the list already, found 'Person_1/Person_1_1\.png'",
        ),
        (
            "facescrub_features_list.json",
            '{"path": ["Person_1/Person_1_1.png", "Person_1/Person_1_2.png"], "id": ["a", "b"]}',
            r"needs a person with at least two probes; each has one",
        ),
        (
            "megaface_features_list.json_10_1",
            '{"path": ["a"]}',
            r"_10_1: 1 photographs, where its name says 10",
        ),
    ],
)
def test_wrong_lists(name: str, text: str, message: str, data: Path) -> None:
    (data / "templatelists" / name).write_text(text)
    with pytest.raises(UserError, match=message):
        MegaFace(data)


def test_wrong_files(data: Path, wrong: Callable, tmp_path: Path) -> None:
    named = ["--embedder", "mean_colours:Means", "-j", 1, "--protocol", "megaface", "--data", data]
    given = [*named, "--protocol-arg"]
    assert "kind = 'face': choose photographs, faces or crops" in wrong(
        tmp_path, "evaluate", *given, "kind=face"
    )
    line = wrong(tmp_path, "evaluate", *given, "distractor_set=2")
    assert "holds no distractors: looked for megaface_features_list.json_<number>_2" in line
    assert "noise.txt: cannot read the list of noise" in wrong(
        tmp_path, "evaluate", *given, f"probe_noise={tmp_path / 'noise.txt'}"
    )
    assert "away: no such folder; name the one that holds the list of probes" in wrong(
        tmp_path, "evaluate", *given, f"lists={tmp_path / 'away'}"
    )
    shutil.rmtree(data / "templatelists")
    (data / "facescrub_images" / "alone.png").touch()
    assert "alone.png: a probe lies in the folder of its person" in wrong(tmp_path, "evaluate", *named)
    shutil.rmtree(data / "megaface_images")
    assert "holds no folder of distractors: looked for megaface_images" in wrong(tmp_path, "evaluate", *named)


def test_the_layout(drawn: Path, tmp_path: Path) -> None:
    """A larger set extends a smaller one, and too small a one is refused."""
    with pytest.raises(UserError, match="needs two probes of each person"):
        synthesise_layout(tmp_path / "few", "megaface", identities=2, images=1)
    assert not (tmp_path / "few").exists()
    small = synthesise_layout(tmp_path / "set", "megaface", identities=2, images=2, seed=3, size_px=64)
    before = {path: path.read_bytes() for path in (tmp_path / "set").rglob("*.jpg")}
    large = synthesise_layout(tmp_path / "set", "megaface", identities=3, images=3, seed=3, size_px=64)
    assert large.drawn == large.photographs - small.photographs > 0
    synthesise_layout(tmp_path / "new", "megaface", identities=3, images=3, seed=3, size_px=64)
    for path, content in before.items():
        again = tmp_path / "new" / path.relative_to(tmp_path / "set")
        assert again.read_bytes() == content == path.read_bytes()
