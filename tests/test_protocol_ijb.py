"""IJB-B and IJB-C: figures against plain loops, the whole way through the command, and lists that are wrong."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from test_templates import plain_identification, unit

from facetrain.datasets.crop_files import read_crops
from facetrain.datasets.synth import face_landmarks, synthesise_layout
from facetrain.errors import UserError
from facetrain.evaluate.embedders.base import Embedder
from facetrain.evaluate.protocols.ijb import Ijb
from facetrain.evaluate.protocols.ijb_files import FACES, PAIRS, POINTS, SUBJECTS, read_list
from facetrain.evaluate.templates import Templates
from facetrain.image_spec import ImageSpec
from facetrain.preprocess.crop import crop_on_five
from facetrain.preprocess.photograph import read_photograph

PEOPLE, IMAGES, SIDE_PX = 12, 5, 128
FARS = (0.1, 0.01, 0.001, 0.0001, 0.00001, 0.000001)


class Squares(Embedder):
    """The mean colour of each of 64 squares of a crop."""

    def __init__(self, *, landmarks: str = "five-point") -> None:
        self.spec = ImageSpec(size_px=32, landmarks=landmarks, predictor=5)

    def of(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        squares = crops.reshape(len(crops), 8, 4, 8, 4, 3).mean(axis=(2, 4), dtype=np.float32)
        return squares.reshape(len(crops), -1) - 110


@pytest.fixture(scope="module")
def drawn_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set in IJB-C's layout. Not to be changed."""
    folder = tmp_path_factory.mktemp("ijb") / "IJBC"
    synthesise_layout(folder, "ijb", identities=PEOPLE, images=IMAGES, seed=3, size_px=SIDE_PX)
    return folder


@pytest.fixture
def data(drawn_set: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed at will."""
    return Path(shutil.copytree(drawn_set, tmp_path / "IJBC"))


# Plain loops.


def plain_rates(scores: list[float], same: list[bool]) -> dict[str, float | None]:
    """Every threshold tried, every two pairs compared."""
    right = [s for s, is_same in zip(scores, same, strict=True) if is_same]
    wrong = [s for s, is_same in zip(scores, same, strict=True) if not is_same]
    curve = [
        (sum(s >= t for s in wrong) / len(wrong), sum(s >= t for s in right) / len(right), t)
        for t in sorted({*scores, math.inf}, reverse=True)
    ]
    values: dict[str, float | None] = {
        f"tar_at_far_{far:g}": max(tar for f, tar, t in curve if f <= far and t > -math.inf)
        if far >= 1 / len(wrong)
        else None
        for far in FARS
    }
    wins = sum((a > b) + (a == b) / 2 for a in right for b in wrong)
    values["auc"] = wins / len(right) / len(wrong)
    for (far0, tar0, _), (far1, tar1, _) in itertools.pairwise(curve):
        if far1 + tar1 >= 1:
            part = (1 - far0 - tar0) / (far1 + tar1 - far0 - tar0)
            values["eer"] = far0 + part * (far1 - far0)
            break
    return values


def plain_figures(
    templates: dict[int, NDArray | None],
    lists: Path,
    prefix: str = "ijbc",
    names: tuple[str, ...] = ("G1", "G2"),
) -> dict[str, float | None]:
    """What must come out, from templates by number (None: without a face) and the lists as they are."""
    pairs = np.loadtxt(lists / f"{prefix}_template_pair_label.txt", int)
    scores = [
        -math.inf if templates[a] is None or templates[b] is None else float(templates[a] @ templates[b])
        for a, b, _ in pairs.tolist()
    ]
    values = plain_rates(scores, [bool(label) for label in pairs[:, 2].tolist()])

    rows = {number: row for row, number in enumerate(sorted(templates))}
    width = next(len(template) for template in templates.values() if template is not None)
    made = Templates(
        np.array([np.zeros(width) if templates[n] is None else templates[n] for n in rows]),
        np.array([templates[n] is not None for n in rows]),
    )

    def subjects(name: str) -> tuple[NDArray, NDArray]:
        with open(lists / f"{prefix}_1N_{name}.csv", newline="") as file:
            owners = {int(line["TEMPLATE_ID"]): int(line["SUBJECT_ID"]) for line in csv.DictReader(file)}
        return np.array([rows[number] for number in owners]), np.array(list(owners.values()))

    probes, people = subjects("probe_mixed")
    results = [plain_open(made, probes, people, *subjects(f"gallery_{name}")) for name in names]
    for figure in results[0]:
        found = [result[figure] for result in results]
        values[figure] = None if None in found else sum(found) / len(found)
    return values


def plain_open(made: Templates, *sets: NDArray) -> dict[str, float | None]:
    ranks, targets = (1, 5, 10, 20), (0.1, 0.01, 0.001)
    rank_rates, tpir = plain_identification(made, *sets, ranks=ranks, targets=targets)
    return {
        **{f"rank_{rank}": rank_rates[rank] for rank in ranks[:3]},
        **{f"tpir_at_fpir_{target:g}": tpir[20][target] for target in targets},
    }


def plain_templates(
    lists: Path,
    embeddings: dict[str, NDArray | None],
    weights: dict[str, float] | None = None,
    prefix: str = "ijbc",
) -> dict[int, NDArray | None]:
    """By name of the face; None: not found."""
    media: dict[int, dict[str, list[NDArray]]] = {}
    for line in (lists / f"{prefix}_face_tid_mid.txt").read_text().splitlines():
        name, template, medium = line.split()
        of_medium = media.setdefault(int(template), {}).setdefault(medium, [])
        if embeddings[name] is not None:
            of_medium.append((1 if weights is None else weights[name]) * embeddings[name].astype(np.float64))
    made: dict[int, NDArray | None] = {}
    for template, of_template in media.items():
        total = sum(np.mean(faces, axis=0) for faces in of_template.values() if faces)
        made[template] = total / np.linalg.norm(total) if np.any(total) else None
    return made


def assert_same(found: dict[str, float | None], expected: dict[str, float | None]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        if value is None:
            assert found[name] is None, name
        else:
            assert found[name] == pytest.approx(value, abs=1e-12), name


def write_set(
    folder: Path, rng: np.random.Generator, *, prefix: str, galleries: tuple[str, str], shared: int = 20
) -> None:
    """Lists of 40 people, at random, and empty files for faces: what is measured of given embeddings needs no more."""
    meta, people, templates = folder / "meta", 40, 160
    meta.mkdir(parents=True)
    (folder / "loose_crop").mkdir()
    numbers = rng.permutation(1000)[:templates] + 1
    owners = np.concatenate([np.arange(people), rng.integers(0, people, templates - people)])
    of_face = rng.permutation(np.concatenate([numbers, rng.choice(numbers, 200)]))
    lines, points = [], []
    for face, template in enumerate(of_face.tolist(), start=1):
        (folder / "loose_crop" / f"{face}.jpg").touch()
        lines.append(f"{face}.jpg {template} {template * 10 + rng.integers(3)}\n")
        points.append(
            f"{face}.jpg " + " ".join(f"{x:.2f}" for x in rng.uniform(0, 99, 10)) + f" {rng.random():.4f}\n"
        )
    for face in range(1, shared + 1):  # in a second template
        lines.insert(int(rng.integers(len(lines))), f"{face}.jpg {rng.choice(numbers)} 5\n")
    (meta / f"{prefix}_face_tid_mid.txt").write_text("".join(lines))
    (meta / f"{prefix}_name_5pts_score.txt").write_text("".join(rng.permutation(points)))
    sets = {f"gallery_{galleries[0]}": slice(0, 20), f"gallery_{galleries[1]}": slice(20, 40)}
    for name, part in (sets | {"probe_mixed": slice(40, None)}).items():
        listed = zip(numbers[part].tolist(), owners[part].tolist(), strict=True)
        text = "".join(f"{template},{owner},img/1.png\n" * 2 for template, owner in listed)
        (meta / f"{prefix}_1N_{name}.csv").write_text("TEMPLATE_ID,SUBJECT_ID,FILENAME\n" + text)
    chosen = rng.integers(0, templates, (1500, 2))
    chosen[:300, 1] = [rng.choice(np.flatnonzero(owners == owners[first])) for first in chosen[:300, 0]]
    text = "".join(f"{numbers[a]} {numbers[b]} {int(owners[a] == owners[b])}\n" for a, b in chosen.tolist())
    (meta / f"{prefix}_template_pair_label.txt").write_text(text)
    matches = "".join(f"{numbers[a]},{numbers[b]}\n" for a, b in chosen.tolist())
    (meta / f"{prefix}_11_{galleries[0]}_{galleries[1]}_matches.csv").write_text(matches)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("prefix, galleries", [("ijbb", ("S1", "S2")), ("ijbc", ("G1", "G2"))])
def test_figures_are_what_plain_loops_say(
    prefix: str, galleries: tuple[str, str], weighted: bool, tmp_path: Path
) -> None:
    rng = np.random.default_rng(len(prefix) + weighted)
    write_set(tmp_path, rng, prefix=prefix, galleries=galleries)
    protocol = Ijb(tmp_path, detector_scores=weighted)
    assert protocol.facts["set"] == {"ijbb": "IJB-B", "ijbc": "IJB-C"}[prefix]
    embeddings = unit(rng.standard_normal((len(protocol.photographs), 6)))
    found = rng.random(len(embeddings)) < 0.6
    embeddings[~found] = 0
    names = [path.removeprefix("loose_crop/") for path in protocol.photographs.paths]
    by_name = {name: row if ok else None for name, row, ok in zip(names, embeddings, found, strict=True)}
    points = (tmp_path / "meta" / f"{prefix}_name_5pts_score.txt").read_text().splitlines()
    scores = {line.split()[0]: float(line.split()[-1]) for line in points}
    for name, five in zip(names, protocol.photographs.landmarks, strict=True):
        of_name = next(line.split() for line in points if line.split()[0] == name)
        np.testing.assert_allclose(five.ravel(), [float(x) for x in of_name[1:-1]], rtol=1e-6)
    made = plain_templates(tmp_path / "meta", by_name, scores if weighted else None, prefix)
    assert sum(template is None for template in made.values()) > 5

    measured = protocol.measure(embeddings, found)
    assert_same(dict(measured.values), plain_figures(made, tmp_path / "meta", prefix, galleries))
    assert set(measured.values) == set(protocol.figures)
    assert next(iter(protocol.figures)) == "tar_at_far_0.0001"
    assert measured.details["templates_without_face"] == sum(template is None for template in made.values())
    assert set(measured.details["galleries"]) == {*galleries, "+".join(galleries)}
    assert (
        measured.trials is not None and measured.trials.first is None and len(measured.trials.scores) == 1500
    )
    assert (
        "of 360 faces were not found" in measured.notes[0] and "templates have no face" in measured.notes[1]
    )

    # NIST's list of pairs, which leaves it to the subjects who is the same.
    (tmp_path / "meta" / f"{prefix}_template_pair_label.txt").unlink()
    again = Ijb(tmp_path, detector_scores=weighted).measure(embeddings, found)
    assert again.values == measured.values


def test_ties_count_against_the_system(tmp_path: Path) -> None:
    """Few directions, of ±1/2 each, one for all faces of a template: scores are exact, and many are equal."""
    rng = np.random.default_rng(0)
    write_set(tmp_path, rng, prefix="ijbc", galleries=("G1", "G2"), shared=0)
    protocol = Ijb(tmp_path)
    directions = rng.choice([-0.5, 0.5], (len(protocol.template_ids), 4)).astype(np.float32)
    found = rng.random(len(protocol.photographs)) < 0.9
    embeddings = directions[protocol.template_rows] * found[:, None]
    names = [path.removeprefix("loose_crop/") for path in protocol.photographs.paths]
    by_name = {name: row if ok else None for name, row, ok in zip(names, embeddings, found, strict=True)}
    measured = protocol.measure(embeddings, found)
    assert len(np.unique(measured.trials.scores)) == 6  # five values, and refused
    made = plain_templates(tmp_path / "meta", by_name)
    assert_same(dict(measured.values), plain_figures(made, tmp_path / "meta"))
    equal = protocol.measure(np.tile(directions[:1], (len(found), 1)), np.ones(len(found), bool))
    assert (
        equal.values["rank_10"] == 0 and equal.values["tpir_at_fpir_0.1"] == 0
    )  # all alike: nobody is found


def test_a_mate_among_the_first_twenty_is_found(tmp_path: Path) -> None:
    """People of one gallery look alike, those of the other different: mates are not first, but above all alarms."""
    rng = np.random.default_rng(5)
    write_set(tmp_path, rng, prefix="ijbc", galleries=("G1", "G2"))
    protocol = Ijb(tmp_path)
    first = set(protocol.galleries["G1"].subjects.tolist())
    owner = {}
    for templates in (*protocol.galleries.values(), protocol.probes):
        owner |= dict(zip(templates.rows.tolist(), templates.subjects.tolist(), strict=True))
    people = rng.standard_normal((40, 8))
    people[:, 0] = [8 if person in first else -8 for person in range(40)]
    embeddings = np.zeros((len(protocol.photographs), 8))
    for face, template in zip(protocol.faces, protocol.template_rows, strict=True):
        embeddings[face] = people[owner[template]] + rng.standard_normal(8)
    embeddings = unit(embeddings)
    names = [path.removeprefix("loose_crop/") for path in protocol.photographs.paths]
    measured = protocol.measure(embeddings, np.ones(len(embeddings), bool))
    made = plain_templates(tmp_path / "meta", dict(zip(names, embeddings, strict=True)))
    assert_same(dict(measured.values), plain_figures(made, tmp_path / "meta"))
    rates = measured.details["galleries"]["G1"]["open_set"]["tpir"]
    assert rates["1"]["0.1"] < rates["20"]["0.1"] > 0.9


# Through the command.


def embedded(data: Path) -> dict[str, NDArray]:
    embedder, embeddings = Squares(), {}
    for line in (data / "meta" / "ijbc_name_5pts_score.txt").read_text().splitlines():
        name, *numbers = line.split()
        image = read_photograph((data / "loose_crop" / name).read_bytes())
        five = np.array([float(x) for x in numbers[:-1]], np.float32).reshape(5, 2)
        embeddings[name] = embedder.embed([crop_on_five(image, five, embedder.spec)[None]])[0]
    return embeddings


def test_the_whole_way(drawn_set: Path, tmp_path: Path, ft: Callable) -> None:
    how = ["--embedder", f"{__name__}:Squares", "-j", 1, "--out", tmp_path / "out"]
    text = ft(tmp_path, "evaluate", *how, "--protocol", "ijb", "--data", drawn_set).output
    said = json.loads((tmp_path / "out.json").read_text())
    made = plain_templates(drawn_set / "meta", embedded(drawn_set))
    assert_same(said["values"], plain_figures(made, drawn_set / "meta"))
    assert said["values"]["tpir_at_fpir_0.1"] is not None and said["values"]["tar_at_far_0.01"] is not None
    assert said["set"] == "IJB-C" and said["templates"] == 3 * PEOPLE and said["detector_scores"] is False
    assert "G1: templates / probes with a mate / without" in text and "6 / 12 / 12" in text
    assert (tmp_path / "out.trials.parquet").is_file() and not (tmp_path / "out.hardest.parquet").exists()

    weighted = ["--protocol-arg", "detector_scores=true", "--protocol-arg", "task=1:1"]
    ft(tmp_path, "evaluate", *how, "--protocol", "ijb", "--data", drawn_set, *weighted)
    other = json.loads((tmp_path / "out.json").read_text())
    points = (drawn_set / "meta" / "ijbc_name_5pts_score.txt").read_text().splitlines()
    scores = {line.split()[0]: float(line.split()[-1]) for line in points}
    made = plain_templates(drawn_set / "meta", embedded(drawn_set), scores)
    expected = {
        name: value
        for name, value in plain_figures(made, drawn_set / "meta").items()
        if not name.startswith(("rank", "tpir"))
    }
    assert_same(other["values"], expected)
    assert "galleries" not in other and other["values"]["auc"] != said["values"]["auc"]

    named = ["--protocol-arg", "task=1:N", "--protocol-arg", f"images={drawn_set / 'loose_crop'}"]
    ft(tmp_path, "evaluate", *how, "--protocol", "ijb", "--data", drawn_set / "meta", *named)
    alone = json.loads((tmp_path / "out.json").read_text())
    assert alone["values"] == {k: v for k, v in said["values"].items() if k.startswith(("rank", "tpir"))}


def test_a_network_that_takes_other_crops(data: Path, tmp_path: Path, ft: Callable, in_process: None) -> None:
    """Faces are looked for, in a folder that holds them all."""
    args = ["--embedder", f"{__name__}:Squares", "--embedder-arg", "landmarks=outer-eyes-nose", "-j", 1]
    where = ["--protocol", "ijb", "--data", data, "--protocol-arg", "task=1:N", "--out", tmp_path / "out"]
    text = ft(tmp_path, "evaluate", *args, *where).output
    assert "its detector has looked for the faces" in text
    values = json.loads((tmp_path / "out.json").read_text())["values"]
    crops = next((tmp_path / ".ft").rglob("loose_crop"))
    assert values["rank_10"] > 0 and len(list(crops.iterdir())) > 0.8 * PEOPLE * IMAGES


def test_a_tree_of_crops(root: Path, drawn_set: Path, tmp_path: Path, ft: Callable, wrong: Callable) -> None:
    """Faces that `ft align` did not find have no crop, and do not count."""
    tree = tmp_path / "crops"
    ft(root, "align", drawn_set, tree, "--size", 32, "-j", 1)
    (tree / "loose_crop" / "1.jpg").unlink()
    crops = {path.name: path for path in (tree / "loose_crop").iterdir()}
    embedder = Squares()
    paths = [f"loose_crop/{name}" for name in crops]
    rows = embedder.embed(read_crops(tree, paths, embedder.spec, threads=1))
    embeddings = dict.fromkeys([f"{number}.jpg" for number in range(1, PEOPLE * IMAGES + 1)])
    embeddings |= dict(zip(crops, rows, strict=True))
    made = plain_templates(drawn_set / "meta", embeddings)
    expected = plain_figures(made, drawn_set / "meta")
    how = ["--protocol", "ijb", "--data", drawn_set, "--embedder", f"{__name__}:Squares", "-j", 1]
    for folder in (tree, tree / "loose_crop"):
        images = ["--protocol-arg", f"images={folder}", "--out", tmp_path / "out"]
        text = ft(root, "evaluate", *how, *images).output
        said = json.loads((tmp_path / "out.json").read_text())
        assert_same(said["values"], expected)
        assert said["photographs_without_face"] == PEOPLE * IMAGES - len(crops) >= 1
        assert "faces were not found: they do not count in their templates" in text
    other = ["--embedder-arg", "landmarks=outer-eyes-nose"]
    assert "outer-eyes-nose against five-point" in wrong(root, "evaluate", *how, *other, *images)


# The layout.


def test_the_layout_is_ijb_cs(drawn_set: Path) -> None:
    meta = drawn_set / "meta"
    faces = [line.split() for line in (meta / "ijbc_face_tid_mid.txt").read_text().splitlines()]
    points = [line.split() for line in (meta / "ijbc_name_5pts_score.txt").read_text().splitlines()]
    assert [face[0] for face in faces] == [point[0] for point in points]
    assert [face[0] for face in faces] == [f"{number}.jpg" for number in range(1, PEOPLE * IMAGES + 1)]
    assert {path.name for path in (drawn_set / "loose_crop").iterdir()} == {face[0] for face in faces}
    five, _ = face_landmarks(3, 2, 1, SIDE_PX)  # of the second person's first photograph
    np.testing.assert_allclose([float(x) for x in points[IMAGES][1:-1]], five.ravel(), atol=0.001)
    assert all(0 < float(point[-1]) <= 1 for point in points)
    media = [face[2] for face in faces]
    assert len(set(media)) == len(media) - PEOPLE  # one video of two frames each
    pairs = np.loadtxt(meta / "ijbc_template_pair_label.txt", int)
    assert len(pairs) == len({tuple(pair) for pair in pairs.tolist()}) == 2 * PEOPLE * PEOPLE
    assert pairs[:, 2].sum() == 2 * PEOPLE
    owner = {}
    for name in ("gallery_G1", "gallery_G2", "probe_mixed"):
        with open(meta / f"ijbc_1N_{name}.csv", newline="") as file:
            lines = list(csv.DictReader(file))
        owner |= {int(line["TEMPLATE_ID"]): int(line["SUBJECT_ID"]) for line in lines}
        assert all(line["FILENAME"].startswith(("img/", "frames/")) for line in lines)
    assert [bool(same) for same in pairs[:, 2]] == [owner[a] == owner[b] for a, b, _ in pairs.tolist()]


def test_numbers_that_are_too_small_for_the_set(tmp_path: Path, wrong: Callable) -> None:
    line = wrong(tmp_path, "synth", tmp_path / "s", "--layout", "ijb", "--identities", 3, "--images", 5)
    assert "needs at least 4 people with 5 photographs each, not 3 with 5" in line
    assert not (tmp_path / "s").exists()


# Lists in other shapes.


def test_lists_with_other_white_space_are_read(drawn_set: Path, data: Path) -> None:
    plain = Ijb(drawn_set)
    for name in ("face_tid_mid", "name_5pts_score", "template_pair_label"):
        path = data / "meta" / f"ijbc_{name}.txt"
        lines = path.read_text().replace(" ", "\t  ").splitlines()
        path.write_bytes(("\ufeff" + " \r\n\r\n".join(lines)).encode())
    path = data / "meta" / "ijbc_1N_gallery_G1.csv"
    swapped = [
        ",".join(f'" {cell}"' for cell in line.split(",")[1::-1]) for line in path.read_text().splitlines()
    ]
    path.write_text("\n\n".join(swapped))
    other = Ijb(data)
    assert other.photographs.paths == plain.photographs.paths
    assert (other.photographs.landmarks == plain.photographs.landmarks).all()
    embeddings = unit(np.random.default_rng(1).standard_normal((len(other.photographs), 8)))
    found = np.ones(len(embeddings), bool)
    assert other.measure(embeddings, found).values == plain.measure(embeddings, found).values


def test_empty_lines_are_counted(data: Path) -> None:
    path = data / "meta" / "ijbc_template_pair_label.txt"
    path.write_text("1 2 1\n\n1 5 0\n\n\n1 777 0\n")
    with pytest.raises(UserError, match="line 6: template 777 has no face"):
        Ijb(data)


def test_a_face_in_two_templates_is_embedded_once(data: Path) -> None:
    with open(data / "meta" / "ijbc_face_tid_mid.txt", "a") as file:
        file.write("1.jpg 2 1\n")
    protocol = Ijb(data)
    assert len(protocol.photographs) == PEOPLE * IMAGES
    assert len(protocol.faces) == PEOPLE * IMAGES + 1 and protocol.faces[-1] == 0


def test_what_there_are_lists_for_is_measured(data: Path) -> None:
    meta = data / "meta"
    assert {"auc", "rank_1"} < set(Ijb(data).figures) == set(Ijb(data, task="all").figures)
    assert "rank_1" not in Ijb(data, task="1:1").figures and "auc" not in Ijb(data, task="1:N").figures
    (meta / "ijbc_template_pair_label.txt").unlink()
    assert next(iter(Ijb(data).figures)) == "rank_1"
    for task in ("1:1", "all"):
        with pytest.raises(
            UserError, match=f"no lists for task {task}: looked for ijbc_template_pair_label.txt"
        ):
            Ijb(data, task=task)
    for path in meta.glob("ijbc_1N_*"):
        path.unlink()
    with pytest.raises(
        UserError, match=r"no lists for task all: looked for ijbc_template_pair_label\.txt, ijbc_1N"
    ):
        Ijb(data)


# What is wrong with the lists: one line each.

WRONG = [
    # list, line (None: at the end; 0: the whole text), what stands there, what is said
    ("face_tid_mid.txt", 0, "", "face_tid_mid.txt: the list of faces in templates is empty"),
    ("face_tid_mid.txt", 0, "\n \n", "face_tid_mid.txt: the list of faces in templates is empty"),
    ("face_tid_mid.txt", 3, "3.jpg 2", "face_tid_mid.txt, line 3: expected a file, a template and a medium"),
    (
        "face_tid_mid.txt",
        3,
        "3.jpg two 3",
        "line 3: expected a file, a template and a medium, as '1.jpg 1 69544'",
    ),
    ("face_tid_mid.txt", 3, "3.jpg 2 3 4", "line 3: expected a file, a template and a medium"),
    (
        "face_tid_mid.txt",
        3,
        "900.jpg 2 3",
        "tid_mid.txt, line 3: 900.jpg has no landmarks in ijbc_name_5pts_score.txt",
    ),
    ("name_5pts_score.txt", 0, "", "the list of landmarks is empty"),
    (
        "name_5pts_score.txt",
        2,
        "2.jpg 1 2 3 4 5 6 7 8 9 10",
        "score.txt, line 2: expected a file, x and y of five",
    ),
    (
        "name_5pts_score.txt",
        2,
        "2.jpg 1 2 3 4 5 6 7 8 9 nan 1",
        "line 2: expected a file, x and y of five landmarks",
    ),
    (
        "name_5pts_score.txt",
        2,
        "2.jpg 1 2 3 4 5 6 7 8 9 10 -1",
        "line 2: a detector's score is 0 or more, not -1.0",
    ),
    ("name_5pts_score.txt", 2, "1.jpg 1 2 3 4 5 6 7 8 9 10 1", "line 2: 1.jpg has landmarks further up"),
    ("name_5pts_score.txt", 2, "", "face_tid_mid.txt, line 2: 2.jpg has no landmarks"),
    (
        "name_5pts_score.txt",
        None,
        "900.jpg 1 2 3 4 5 6 7 8 9 10 1",
        "line 61: 900.jpg is in no template of ijbc_face",
    ),
    ("template_pair_label.txt", 0, "", "template_pair_label.txt: the list of pairs is empty"),
    (
        "template_pair_label.txt",
        5,
        "1 2",
        "pair_label.txt, line 5: expected two templates, and 1 for the same person",
    ),
    (
        "template_pair_label.txt",
        5,
        "1 2.5 1",
        "line 5: expected two templates, and 1 for the same person or 0",
    ),
    ("template_pair_label.txt", 5, "1 2 2", "pair_label.txt, line 5: expected 1 or 0, not 2"),
    (
        "template_pair_label.txt",
        5,
        "1 777 0",
        "label.txt, line 5: template 777 has no face in ijbc_face_tid_mid.txt",
    ),
    ("1N_gallery_G1.csv", 0, "", "1N_gallery_G1.csv: the list of templates is empty"),
    ("1N_gallery_G1.csv", 0, "TEMPLATE_ID,SUBJECT_ID\n", "1N_gallery_G1.csv: the list of templates is empty"),
    (
        "1N_gallery_G1.csv",
        1,
        "a,b",
        "G1.csv, line 1: expected a header that names TEMPLATE_ID and SUBJECT_ID, found",
    ),
    ("1N_gallery_G1.csv", 3, "7,2", "G1.csv, line 3: expected 9 columns, as the header names, found '7,2'"),
    (
        "1N_gallery_G1.csv",
        3,
        "7,x,,,,,,,",
        "G1.csv, line 3: expected columns TEMPLATE_ID and SUBJECT_ID, whole numbers",
    ),
    ("1N_gallery_G1.csv", 3, "777,5,,,,,,,", "line 3: template 777 has no face in ijbc_face_tid_mid.txt"),
    (
        "1N_probe_mixed.csv",
        3,
        "2,9,,,,,,,",
        "probe_mixed.csv, line 3: template 2 is of another subject further up",
    ),
]


@pytest.mark.parametrize("name, line, text, said", WRONG)
def test_wrong_lists_are_named_with_their_line(
    data: Path, tmp_path: Path, wrong: Callable, name: str, line: int | None, text: str, said: str
) -> None:
    path = data / "meta" / f"ijbc_{name}"
    lines = path.read_text().splitlines()
    if line is None:
        lines.append(text)
    elif line:
        lines[line - 1] = text
    path.write_text(text if line == 0 else "".join(f"{entry}\n" for entry in lines))
    how = ["--embedder", f"{__name__}:Squares", "--protocol", "ijb", "--data", data]
    assert said in wrong(tmp_path, "evaluate", *how)


def test_what_is_missing(data: Path, tmp_path: Path, wrong: Callable) -> None:
    how = ["evaluate", "--embedder", f"{__name__}:Squares", "--protocol", "ijb", "--data"]
    (data / "loose_crop" / "4.jpg").unlink()
    line = wrong(tmp_path, *how, data)
    assert "ijbc_face_tid_mid.txt, line 4: there is no photograph loose_crop/4.jpg" in line
    (data / "loose_crop" / "5.jpg").unlink()
    assert "(1 more of the photographs that are named are missing)" in wrong(tmp_path, *how, data)
    assert "no such folder" in wrong(tmp_path, *how, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    line = wrong(tmp_path, *how, tmp_path / "empty")
    assert "holds no list of faces in templates: looked for meta/ijbb_face_tid_mid.txt, meta/ijbc_" in line
    assert "choose 1:1, 1:N, all" in wrong(tmp_path, *how, data, "--protocol-arg", "task=2:2")
    (data / "meta" / "ijbc_1N_probe_mixed.csv").unlink()
    line = wrong(tmp_path, *how, data)
    assert "no list beside ijbc_1N_gallery_G1.csv: looked for ijbc_1N_probe_mixed.csv" in line
    (data / "meta" / "ijbc_name_5pts_score.txt").unlink()
    line = wrong(tmp_path, *how, data, "--protocol-arg", "detector_scores=true")
    assert "detector_scores needs" in line and "ijbc_name_5pts_score.txt: there is none" in line
    shutil.copy(data / "meta" / "ijbc_face_tid_mid.txt", data / "meta" / "ijbb_face_tid_mid.txt")
    assert "holds lists of two sets" in wrong(tmp_path, *how, data)
    shutil.rmtree(data / "loose_crop")
    (data / "meta" / "ijbb_face_tid_mid.txt").unlink()
    assert "holds no faces: looked for loose_crop" in wrong(tmp_path, *how, data)


def test_nists_pairs_of_unknown_people(data: Path) -> None:
    (data / "meta" / "ijbc_template_pair_label.txt").unlink()
    matches = data / "meta" / "ijbc_11_G1_G2_matches.csv"
    matches.write_text("1,2\n1,5\n1,200\n")
    with pytest.raises(
        UserError, match=r"matches\.csv, line 3: template 200 has no face in ijbc_face_tid_mid"
    ):
        Ijb(data)
    with open(data / "meta" / "ijbc_face_tid_mid.txt", "a") as file:
        file.write("1.jpg 200 1\n")
    with pytest.raises(UserError, match=r"line 3: template 200 is in none of the 1:N lists: whose is it\?"):
        Ijb(data)
    matches.write_text("1,2\n1;5\n")
    with pytest.raises(
        UserError, match=r"matches\.csv, line 2: expected two templates, as '1,11065', found '1;5'"
    ):
        Ijb(data)
    matches.write_text("1,2\n1,5\n")
    for name in ("G1", "G2"):
        lines = (data / "meta" / f"ijbc_1N_gallery_{name}.csv").read_text().splitlines()
        (data / "meta" / f"ijbc_1N_gallery_{name}.csv").write_text("\n".join(lines[:3]) + "\n")
    probes = data / "meta" / "ijbc_1N_probe_mixed.csv"
    probes.write_text("TEMPLATE_ID,SUBJECT_ID\n2,1\n5,90\n")
    assert Ijb(data, task="1:1").pairs.same.tolist() == [True, False]
    with pytest.raises(UserError, match="no probe is of anybody in gallery G2"):
        Ijb(data)


@pytest.mark.parametrize("form", [FACES, POINTS, PAIRS, SUBJECTS])
def test_files_that_are_no_lists(form: object, tmp_path: Path) -> None:
    path = tmp_path / "list"
    with pytest.raises(UserError, match=f"list: cannot read the {form.what}: No such file"):
        read_list(path, form)
    path.write_bytes(b"\xff\xfe\x00\x01 1 2\n")
    with pytest.raises(UserError, match=f"list: no {form.what}: it is not UTF-8 text"):
        read_list(path, form)


def test_numbers_that_are_too_long(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("1 2 1\n1 99999999999999999999 0\n")
    with pytest.raises(UserError, match="line 2: expected two templates"):
        read_list(tmp_path / "list", PAIRS)
