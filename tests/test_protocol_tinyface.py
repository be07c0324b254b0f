"""TinyFace's protocol: against plain loops, through the command, and with lists that are wrong."""

from __future__ import annotations

import json
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
from facetrain.evaluate.identification import RANKS, closed_set
from facetrain.evaluate.protocols.tinyface import TinyFace
from facetrain.preprocess.photograph import read_photograph

PEOPLE, IMAGES = 4, 4


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tinyface") / "set"
    synthesise_layout(out, "tinyface", identities=PEOPLE, images=IMAGES, seed=3, size_px=160)
    return out


@pytest.fixture
def data(drawn: Path, tmp_path: Path) -> Path:
    """A copy, to be changed at will."""
    return shutil.copytree(drawn, tmp_path / "set")


def tied(rows: int, seed: int) -> NDArray[np.float32]:
    """Vectors of length 1 whose products are all exact, and mostly equal to others."""
    rng = np.random.default_rng(seed)
    halves = rng.choice([-0.5, 0.5], (rows, 4))
    axes = np.eye(4)[rng.integers(4, size=rows)] * rng.choice([-1, 1], (rows, 1))
    return np.where(rng.random((rows, 1)) < 0.5, halves, axes).astype(np.float32)


def by_hand(
    probes: NDArray, labels: list[str], gallery: NDArray, gallery_labels: list[str], alive: NDArray
) -> dict[str, float]:
    """Plain loops. gallery_labels: "" for a distractor. alive: of the probes and then of the gallery."""
    hits = dict.fromkeys(RANKS, 0)
    ap, trapezoid = [], []
    for i, label in enumerate(labels):
        mates = gallery_labels.count(label)
        if not alive[i]:
            ap.append(0.0)
            trapezoid.append(0.0)
            continue
        rows = [
            (-float(probes[i].astype(np.float64) @ gallery[j].astype(np.float64)), gallery_labels[j] == label)
            for j in range(len(gallery))
            if alive[len(labels) + j]
        ]
        rows.sort()  # of equal scores those of others come first
        found, total, old_recall, old_precision, area, rank = 0, 0.0, 0.0, 1.0, 0.0, None
        for position, (_, is_mate) in enumerate(rows, start=1):
            found += is_mate
            precision, recall = found / position, found / mates
            area += (recall - old_recall) * (old_precision + precision) / 2  # as the authors' code has it
            old_recall, old_precision = recall, precision
            if is_mate:
                total += precision
                rank = rank or position
        ap.append(total / mates)
        trapezoid.append(area)
        for limit in RANKS:
            hits[limit] += rank is not None and rank <= limit
    rates = {f"rank_{limit}": count / len(labels) for limit, count in hits.items()}
    return {**rates, "map": float(np.mean(ap)), "map_trapezoid": float(np.mean(trapezoid))}


def whole(protocol: TinyFace) -> tuple[list[str], list[str]]:
    """Labels of the probes, and of the gallery with its distractors, from the names of the files."""
    folders = {"Probe": [], "Gallery_Match": [], "Gallery_Distractor": []}
    for path in protocol.photographs.paths:
        folder, name = path.split("/")
        folders[folder].append("" if folder == "Gallery_Distractor" else name.split("_")[0])
    return folders["Probe"], folders["Gallery_Match"] + folders["Gallery_Distractor"]


@pytest.mark.parametrize("missing", [0, 5, 9])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_plain_loops(seed: int, missing: int, drawn: Path) -> None:
    protocol = TinyFace(drawn)
    count = len(protocol.photographs)
    found = np.ones(count, bool)
    found[np.random.default_rng(seed).permutation(count)[:missing]] = False
    embeddings = tied(count, seed)
    embeddings[~found] = 0
    values = protocol.measure(embeddings, found).values
    labels, gallery_labels = whole(protocol)
    for ending, drop in (("", 0), ("_without_distractors", gallery_labels.count(""))):
        last = count - drop
        expected = by_hand(
            embeddings[: len(labels)],
            labels,
            embeddings[len(labels) : last],
            gallery_labels[: len(gallery_labels) - drop],
            found[:last],
        )
        for name, value in expected.items():
            assert values[name + ending] == pytest.approx(value, abs=1e-12), name + ending
    assert set(values) == set(protocol.figures)


def test_the_figures_are_those_of_closed_set(drawn: Path) -> None:
    protocol = TinyFace(drawn)
    embeddings = tied(len(protocol.photographs), 7)
    labels, gallery_labels = whole(protocol)
    mates = len(gallery_labels) - gallery_labels.count("")
    parts = np.split(embeddings, [len(labels), len(labels) + mates])
    result = closed_set(parts[0], labels, parts[1], gallery_labels[:mates], distractors=parts[2])[0]
    values = protocol.measure(embeddings, np.ones(len(embeddings), bool)).values
    assert values["map"] == pytest.approx(result.mean_average_precision, abs=1e-12)
    assert [values[f"rank_{rank}"] for rank in RANKS] == list(result.rank_rates.values())


def test_a_network_that_gives_the_same_to_all_finds_nobody(drawn: Path) -> None:
    protocol = TinyFace(drawn)
    same = np.tile(np.array([1, 0], np.float32), (len(protocol.photographs), 1))
    values = protocol.measure(same, np.ones(len(same), bool)).values
    assert values["rank_5"] == 0


def test_through_the_command(drawn: Path, ft: Callable, tmp_path: Path) -> None:
    named = ["--embedder", "mean_colours:Means", "-j", 1, "--protocol", "tinyface", "--data", drawn]
    text = ft(tmp_path, "evaluate", *named, "--out", tmp_path / "out").output
    values = json.loads((tmp_path / "out.json").read_text())["values"]
    protocol = TinyFace(drawn)
    files = [drawn / "Testing_Set" / path for path in protocol.photographs.paths]
    faces = [
        cv2.resize(read_photograph(f.read_bytes()), (32, 32), interpolation=cv2.INTER_LINEAR) for f in files
    ]
    embeddings = Means().embed([np.stack(faces)])
    labels, gallery_labels = whole(protocol)
    probes, gallery = embeddings[: len(labels)], embeddings[len(labels) :]
    expected = by_hand(probes, labels, gallery, gallery_labels, np.ones(len(files), bool))
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert f"gallery / distractors {PEOPLE * 2} / {PEOPLE * 2}" in " ".join(text.split())

    ft(tmp_path, "evaluate", *named, "--protocol-arg", "distractors=false", "--out", tmp_path / "few")
    few = json.loads((tmp_path / "few.json").read_text())["values"]
    assert few == {name: value for name, value in values.items() if name.endswith("_without_distractors")}


def write_mat(path: Path, kind: str, rows: list[tuple[str, int]]) -> None:
    io = pytest.importorskip("scipy.io")
    names = np.empty((len(rows), 1), object)
    names[:, 0] = [name for name, _ in rows]
    ids = np.array([[number] for _, number in rows], float)
    io.savemat(path, {f"{kind}_set": names, f"{kind}_ids": ids})


def test_matlab_lists_and_names_say_the_same(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data / "Testing_Set"
    plain = TinyFace(data)
    for stem, kind in (("gallery_match_img_ID_pairs", "gallery"), ("probe_img_ID_pairs", "probe")):
        rows = [line.split(",") for line in (folder / f"{stem}.csv").read_text().split()]
        write_mat(folder / f"{stem}.mat", kind, [(name, int(label)) for name, label in rows])
        (folder / f"{stem}.csv").unlink()
    of_mat = TinyFace(folder)  # the folder itself will do
    assert not of_mat.notes
    assert list(of_mat.photographs.paths) == list(plain.photographs.paths)
    assert np.array_equal(of_mat.probe_labels, plain.probe_labels)
    assert np.array_equal(of_mat.gallery_labels, plain.gallery_labels)

    monkeypatch.setitem(sys.modules, "scipy.io", None)
    of_names = TinyFace(data)
    assert sorted(of_names.photographs.paths) == sorted(plain.photographs.paths)
    assert "needs scipy" in of_names.notes[0] and "names of the files" in of_names.notes[0]
    embeddings = dict(zip(plain.photographs.paths, tied(len(plain.photographs), 5), strict=True))
    values = [
        p.measure(
            np.stack([embeddings[path] for path in p.photographs.paths]), np.ones(len(embeddings), bool)
        ).values
        for p in (plain, of_names)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-12)


def wrong_list(folder: Path, line: int, text: str) -> None:
    path = folder / "probe_img_ID_pairs.csv"
    lines = path.read_text().split("\n")
    lines[line - 1] = text
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9_9.jpg,1", r"probe_img_ID_pairs\.csv, line 3: there is no photograph Probe/9_9\.jpg in "),
        ("2_2.jpg", r"csv, line 3: expected two texts with a comma between them, found '2_2\.jpg'"),
        ("1_2.jpg,1", r"csv, line 3: the photograph is in line 1 already, found '1_2\.jpg'"),
        (
            "2_2.jpg,77",
            r"csv, line 3: Probe/2_2\.jpg is of a person without a photograph in the gallery, found '77'",
        ),
    ],
)
def test_wrong_lines(text: str, message: str, data: Path) -> None:
    wrong_list(data / "Testing_Set", 3, text)
    with pytest.raises(UserError, match=message):
        TinyFace(data)


def test_wrong_files(data: Path, wrong: Callable, tmp_path: Path) -> None:
    named = ["--embedder", "mean_colours:Means", "-j", 1, "--protocol", "tinyface", "--data"]
    folder = data / "Testing_Set"
    assert "holds no test set of TinyFace: looked for" in wrong(tmp_path, "evaluate", *named, tmp_path)
    shutil.move(folder / "Gallery_Distractor", tmp_path / "away")
    line = wrong(tmp_path, "evaluate", *named, data)
    assert "Gallery_Distractor: no such folder of photographs" in line
    (folder / "Gallery_Distractor").mkdir()
    assert "Gallery_Distractor holds no photographs" in wrong(tmp_path, "evaluate", *named, data)
    (folder / "probe_img_ID_pairs.csv").write_text("\n")
    assert "probe_img_ID_pairs.csv: the list of photographs and people is empty" in wrong(
        tmp_path, "evaluate", *named, data
    )
    assert "takes no 'ranks'" in wrong(tmp_path, "evaluate", *named, data, "--protocol-arg", "ranks=3")


def test_names_without_a_label(data: Path) -> None:
    folder = data / "Testing_Set"
    (folder / "probe_img_ID_pairs.csv").unlink()
    shutil.copy(folder / "Probe" / "1_2.jpg", folder / "Probe" / "someone.jpg")
    with pytest.raises(
        UserError, match=r"someone\.jpg: there is no list, and the name is not <person>_<number>"
    ):
        TinyFace(data)
    (folder / "Probe" / "someone.jpg").rename(folder / "Probe" / "77_1.jpg")
    with pytest.raises(UserError, match=r"Probe: Probe/77_1\.jpg is of a person without a photograph"):
        TinyFace(data)


def test_damaged_matlab_lists(data: Path) -> None:
    io = pytest.importorskip("scipy.io")
    folder = data / "Testing_Set"
    (folder / "probe_img_ID_pairs.csv").unlink()
    path = folder / "probe_img_ID_pairs.mat"
    path.write_bytes(b"no matlab")
    with pytest.raises(UserError, match=r"pairs\.mat: no list of photographs and people that can be read"):
        TinyFace(data)
    io.savemat(path, {"other": np.ones(3)})
    with pytest.raises(UserError, match="there is no probe_set in it"):
        TinyFace(data)
    cells = np.empty((2, 1), object)
    cells[:, 0] = ["1_2.jpg", "2_2.jpg"]
    io.savemat(path, {"probe_set": cells, "probe_ids": np.ones((3, 1))})
    with pytest.raises(UserError, match="2 of probe_set, and 3 of probe_ids"):
        TinyFace(data)
    cells[1, 0] = ""
    io.savemat(path, {"probe_set": cells, "probe_ids": np.ones((2, 1))})
    with pytest.raises(UserError, match=r"pairs\.mat, line 2: an empty cell"):
        TinyFace(data)


def test_the_layout(drawn: Path, tmp_path: Path) -> None:
    """A larger set extends a smaller one, and too small a one is refused."""
    with pytest.raises(UserError, match="needs a gallery photograph and a probe of each person"):
        synthesise_layout(tmp_path / "few", "tinyface", identities=2, images=1)
    assert not (tmp_path / "few").exists()
    small = synthesise_layout(tmp_path / "set", "tinyface", identities=2, images=2, seed=3, size_px=64)
    before = {path: path.read_bytes() for path in (tmp_path / "set").rglob("*.jpg")}
    large = synthesise_layout(tmp_path / "set", "tinyface", identities=3, images=3, seed=3, size_px=64)
    assert large.drawn == large.photographs - small.photographs > 0
    synthesise_layout(tmp_path / "new", "tinyface", identities=3, images=3, seed=3, size_px=64)
    for path, content in before.items():
        again = tmp_path / "new" / path.relative_to(tmp_path / "set")
        assert again.read_bytes() == content == path.read_bytes()
