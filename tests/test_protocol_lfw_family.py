"""LFW and the sets in its manner: figures against plain loops over the lists, and each through the command."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve
from test_verification import plain_auc, plain_best_threshold, plain_eer, plain_folds, plain_tar_at_far

from facetrain.datasets.synth.layouts import layout_named
from facetrain.errors import UserError
from facetrain.evaluate.protocols.agedb import MATLAB, AgeDb30
from facetrain.evaluate.protocols.base import Measured, Protocol
from facetrain.evaluate.protocols.cfp import CfpFp
from facetrain.evaluate.protocols.cross_lfw import Calfw, Cplfw
from facetrain.evaluate.protocols.lfw import Lfw
from facetrain.evaluate.protocols.rfw import RACES, Rfw, skewed_error_ratio
from facetrain.testing import check_protocol

CLOSE = 1e-12
DIM = 16
Pair = tuple[str, str, bool, int]  # two paths, the same person?, fold


def laid_out(folder: Path, layout: str, identities: int = 12, images: int = 5) -> Path:
    """The lists of a layout, with files of no content for its photographs: protocols open none."""
    plan = layout_named(layout)(identities, images, 0, 64)
    for drawing in plan.drawings:
        (folder / drawing.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / drawing.path).touch()
    plan.write_lists(folder)
    return folder


def embeddings(count: int, seed: int) -> NDArray[np.float32]:
    """Of length 1, with cosines that are multiples of 1/8 exactly: ties abound, however a sum is done."""
    return np.random.default_rng(seed).choice([-0.25, 0.25], (count, DIM)).astype(np.float32)


# The lists, read once more, as plainly as can be; folds by what each set says of them.


def lfw_pairs(file: Path, root: str) -> list[Pair]:
    head, *rest = file.read_text().splitlines()
    half = int(head.split()[-1])
    pairs = []
    for i, line in enumerate(rest):
        fields = line.split("\t")
        person = fields[0] if len(fields) == 3 else fields[2]
        first = f"{root}{fields[0]}/{fields[0]}_{fields[1].zfill(4)}.jpg"
        second = f"{root}{person}/{person}_{fields[-1].zfill(4)}.jpg"
        pairs.append((first, second, len(fields) == 3, i // (2 * half)))
    return pairs


def cfp_pairs(data: Path, kind: str) -> list[Pair]:
    lists = {}
    for letter in "FP":
        lines = (data / f"Protocol/Pair_list_{letter}.txt").read_text().splitlines()
        lists[letter] = {line.split()[0]: line.split("Images/")[1] for line in lines}
    pairs = []
    for fold in sorted((data / "Protocol/Split" / kind).iterdir()):
        for name in ("same", "diff"):
            for line in (fold / f"{name}.txt").read_text().split():
                a, b = line.split(",")
                pairs.append((lists[kind[0]][a], lists[kind[1]][b], name == "same", int(fold.name)))
    return pairs


def in_tenths(pairs: Sequence[tuple[str, str, bool]], folds: int = 10) -> list[Pair]:
    """Pairs of either kind cut, in their order, into runs of equal length."""
    total = {same: sum(pair[2] == same for pair in pairs) for same in (True, False)}
    folds, seen, dealt = min(folds, *total.values()), {True: 0, False: 0}, []
    for first, second, same in pairs:
        dealt.append((first, second, same, seen[same] * folds // total[same]))
        seen[same] += 1
    return dealt


def cross_pairs(file: Path) -> list[tuple[str, str, bool, int]]:
    lines = [line.split() for line in file.read_text().splitlines()]
    return [
        (f"images/{a[0]}", f"images/{b[0]}", a[1] != "0", int(a[1]))
        for a, b in zip(lines[::2], lines[1::2], strict=True)
    ]


def calfw_pairs(data: Path) -> list[Pair]:
    pairs = cross_pairs(data / "pairs_CALFW.txt")
    folds = max(pair[3] for pair in pairs)
    of_different = iter(in_tenths([pair[:3] for pair in pairs], folds)[sum(pair[2] for pair in pairs) :])
    return [(*pair[:3], pair[3] - 1) if pair[2] else next(of_different) for pair in pairs]


def agedb_pairs(data: Path) -> list[Pair]:
    lines = [line.split() for line in (data / "agedb_30_pair.txt").read_text().splitlines()]
    return in_tenths(
        [(f"03_Protocol_Images/{a}", f"03_Protocol_Images/{b}", label == "1") for a, b, label in lines]
    )


def rfw_pairs(data: Path, race: str) -> list[Pair]:
    pairs = []
    for line in (data / f"txts/{race}/{race}_pairs.txt").read_text().splitlines():
        fields = line.split()
        other = fields[0] if len(fields) == 3 else fields[2]
        first = f"{race}/{fields[0]}/{fields[0]}_{int(fields[1]):04d}.jpg"
        pairs.append((first, f"{race}/{other}/{other}_{int(fields[-1]):04d}.jpg", len(fields) == 3))
    return in_tenths(pairs)


PLAIN: dict[str, tuple[str, Callable[..., Protocol], Callable[[Path], list[Pair]]]] = {
    "lfw": ("lfw", Lfw, lambda data: lfw_pairs(data / "pairs.txt", "")),
    "cfp-fp": ("cfp-fp", CfpFp, lambda data: cfp_pairs(data, "FP")),
    "cfp-ff": (
        "cfp-fp",
        lambda data, **how: CfpFp(data, kind="FF", **how),
        lambda data: cfp_pairs(data, "FF"),
    ),
    "agedb-30": ("agedb-30", AgeDb30, agedb_pairs),
    "calfw": ("calfw", Calfw, calfw_pairs),
    "cplfw": (
        "cplfw",
        Cplfw,
        lambda data: in_tenths([pair[:3] for pair in cross_pairs(data / "pairs_CPLFW.txt")]),
    ),
}


def plain_scores(
    protocol: Protocol, pairs: Sequence[Pair], vectors: NDArray[np.float32], found: NDArray[np.bool_]
) -> list[float]:
    row_of = {path: row for row, path in enumerate(protocol.photographs.paths)}
    scores = []
    for first, second, _, _ in pairs:
        a, b = row_of[first], row_of[second]
        cosine = sum(float(x) * float(y) for x, y in zip(vectors[a], vectors[b], strict=True))
        scores.append(cosine if found[a] and found[b] else -math.inf)
    return scores


def check_rates(values: Any, scores: list[float], same: list[bool]) -> None:
    assert values["auc"] == pytest.approx(plain_auc(scores, same), abs=CLOSE)
    assert values["eer"] == pytest.approx(plain_eer(scores, same), abs=CLOSE)
    for far in (1e-1, 1e-2, 1e-3, 1e-6):
        expected = plain_tar_at_far(scores, same, far)
        assert values[f"tar_at_far_{far:g}"] == (
            None if expected is None else pytest.approx(expected, abs=CLOSE)
        )


def check_folds(measured: Measured, scores: list[float], pairs: Sequence[Pair]) -> None:
    accuracies, thresholds = plain_folds(scores, [pair[2] for pair in pairs], [pair[3] for pair in pairs])
    count, mean = len(accuracies), sum(accuracies) / len(accuracies)
    squares = sum((accuracy - mean) ** 2 for accuracy in accuracies)
    assert count > 1
    assert measured.details["accuracies"] == pytest.approx(accuracies, abs=CLOSE)
    assert measured.details["thresholds"] == [t if math.isfinite(t) else None for t in thresholds]
    values = measured.values
    assert values["accuracy"] == pytest.approx(mean, abs=CLOSE)
    assert values["standard_error"] == pytest.approx(math.sqrt(squares / (count - 1) / count), abs=CLOSE)
    assert values["population_deviation"] == pytest.approx(math.sqrt(squares / count), abs=CLOSE)


@pytest.mark.parametrize("no_face", ["different", "drop"])
@pytest.mark.parametrize("name", PLAIN)
def test_figures_equal_the_plain_ones(name: str, no_face: str, tmp_path: Path) -> None:
    layout, make, read = PLAIN[name]
    protocol = make(laid_out(tmp_path, layout), no_face=no_face)
    pairs = read(tmp_path)
    for seed in range(3):
        vectors = embeddings(len(protocol.photographs), seed)
        found = np.random.default_rng(seed).random(len(vectors)) > 0.1 * seed
        vectors[~found] = 0
        measured = protocol.measure(vectors, found)
        scores = plain_scores(protocol, pairs, vectors, found)
        kept = [i for i, score in enumerate(scores) if no_face == "different" or score > -math.inf]
        pairs_kept, scores = [pairs[i] for i in kept], [scores[i] for i in kept]
        same = [pair[2] for pair in pairs_kept]
        check_folds(measured, scores, pairs_kept)
        check_rates(measured.values, scores, same)
        assert measured.details["pairs_dropped"] == len(pairs) - len(kept)
        assert measured.trials is not None
        assert measured.trials.scores.tolist() == scores
        assert measured.trials.same.tolist() == same
        assert len(measured.notes) == (0 if found.all() else 1)


@pytest.mark.parametrize("name", PLAIN)
def test_rates_equal_scikit_learns(name: str, tmp_path: Path) -> None:
    layout, make, _ = PLAIN[name]
    protocol = make(laid_out(tmp_path, layout, identities=20, images=9))
    vectors = embeddings(len(protocol.photographs), 5)
    measured = protocol.measure(vectors, np.ones(len(vectors), bool))
    trials = measured.trials
    assert trials is not None
    far, tar, _ = roc_curve(trials.same, trials.scores, drop_intermediate=False)
    assert measured.values["auc"] == pytest.approx(roc_auc_score(trials.same, trials.scores), abs=CLOSE)
    for target in (0.1, 0.01):
        assert measured.values[f"tar_at_far_{target:g}"] == pytest.approx(tar[far <= target].max(), abs=CLOSE)


@pytest.mark.parametrize("no_face", ["different", "drop"])
def test_view_1_takes_its_threshold_from_the_training_pairs(no_face: str, tmp_path: Path) -> None:
    protocol = Lfw(laid_out(tmp_path, "lfw"), view=1, no_face=no_face)
    train, test = (lfw_pairs(tmp_path / f"pairsDev{part}.txt", "") for part in ("Train", "Test"))
    assert protocol.people == frozenset(f"person_{i:05d}" for i in range(1, 13))
    for seed in range(3):
        vectors = embeddings(len(protocol.photographs), seed)
        found = np.random.default_rng(seed).random(len(vectors)) > 0.1 * seed
        measured = protocol.measure(vectors, found)
        scored = []
        for pairs in (train, test):
            scores = plain_scores(protocol, pairs, vectors, found)
            kept = [i for i, score in enumerate(scores) if no_face == "different" or score > -math.inf]
            scored.append(([scores[i] for i in kept], [pairs[i][2] for i in kept]))
        threshold = plain_best_threshold(*scored[0])
        scores, same = scored[1]
        right = sum((score >= threshold) == is_same for score, is_same in zip(scores, same, strict=True))
        assert measured.values["accuracy"] == pytest.approx(right / len(same), abs=CLOSE)
        assert set(measured.values) == set(protocol.figures)
        check_rates(measured.values, scores, same)
        assert measured.details["thresholds"] == [threshold if math.isfinite(threshold) else None]
        assert measured.details["accuracies"] == [measured.values["accuracy"]]
        assert measured.details["threshold_on_itself"] is False
        assert "accuracy_mean" not in measured.details
        assert measured.details["training_pairs"]["same_pairs"] == sum(scored[0][1])
        assert list(measured.counts) == ["training pairs, same / different", "test pairs, same / different"]
        if not found.all():
            lost = [len(pairs) - sum(s > -math.inf for s in scores) for pairs, (scores, _) in zip((train, test), scored, strict=True)]  # fmt: skip
            assert f"the {lost[0]} training pairs and {lost[1]} test pairs with one are" in measured.notes[0]


def test_view_1_of_perfect_and_of_useless_embeddings(tmp_path: Path) -> None:
    """Where no threshold helps, accepting none is one: its place is among all that are as good."""
    protocol = Lfw(laid_out(tmp_path, "lfw"), view=1)
    people = [path.split("/")[0] for path in protocol.photographs.paths]
    perfect = np.eye(13, dtype=np.float32)[[int(person[-5:]) for person in people]]
    every = np.ones(len(people), bool)
    assert protocol.measure(perfect, every).values["accuracy"] == 1
    nothing = protocol.measure(perfect * 0, ~every)
    assert nothing.values["accuracy"] == 0.5
    assert nothing.details["thresholds"] == [None]


def test_view_1_is_one_fold_whatever_its_lists_say(tmp_path: Path) -> None:
    of_one = Lfw(laid_out(tmp_path, "lfw"), view=1)
    vectors, every = embeddings(len(of_one.photographs), 2), np.ones(len(of_one.photographs), bool)
    expected = of_one.measure(vectors, every)
    for name in ("pairsDevTrain.txt", "pairsDevTest.txt"):
        head, *lines = (tmp_path / name).read_text().splitlines()
        half = int(head) // 2
        quarters = [lines[at * half : (at + 1) * half] for at in (0, 2, 1, 3)]
        kept = [line for quarter in quarters for line in quarter]
        (tmp_path / name).write_text("\n".join([f"2\t{half}", *kept]))
        assert len(kept) == len(lines), "an even number of pairs"
    of_two = Lfw(tmp_path, view=1)
    row_of = {path: row for row, path in enumerate(of_one.photographs.paths)}
    again = of_two.measure(vectors[[row_of[path] for path in of_two.photographs.paths]], every)
    assert again.values == pytest.approx(expected.values, abs=CLOSE)
    assert again.details["thresholds"] == expected.details["thresholds"]


def test_rfw_equals_the_plain_version(tmp_path: Path) -> None:
    protocol = Rfw(laid_out(tmp_path, "rfw", identities=24))
    vectors = embeddings(len(protocol.photographs), 1)
    found = np.random.default_rng(1).random(len(vectors)) > 0.05
    measured = protocol.measure(vectors, found)
    accuracies, all_scores, groups = [], [], []
    for at, race in enumerate(RACES):
        pairs = rfw_pairs(tmp_path, race)
        scores = plain_scores(protocol, pairs, vectors, found)
        same = [pair[2] for pair in pairs]
        of_folds, _ = plain_folds(scores, same, [pair[3] for pair in pairs])
        assert measured.details["races"][race]["accuracies"] == pytest.approx(of_folds, abs=CLOSE)
        of_race = {name: value for name, value in measured.values.items() if name.endswith(race.lower())}
        accuracies.append(sum(of_folds) / len(of_folds))
        assert of_race[f"accuracy_{race.lower()}"] == pytest.approx(accuracies[-1], abs=CLOSE)
        assert of_race[f"auc_{race.lower()}"] == pytest.approx(plain_auc(scores, same), abs=CLOSE)
        assert of_race[f"eer_{race.lower()}"] == pytest.approx(plain_eer(scores, same), abs=CLOSE)
        assert of_race[f"tar_at_far_0.01_{race.lower()}"] == plain_tar_at_far(scores, same, 0.01)
        all_scores += scores
        groups += [at] * len(scores)
    mean = sum(accuracies) / 4
    deviation = math.sqrt(sum((accuracy - mean) ** 2 for accuracy in accuracies) / 3)
    assert measured.values["accuracy"] == pytest.approx(mean, abs=CLOSE)
    assert measured.values["accuracy_deviation"] == pytest.approx(deviation, abs=CLOSE)
    ratio = (1 - min(accuracies)) / (1 - max(accuracies))
    assert measured.values["skewed_error_ratio"] == pytest.approx(ratio, abs=1e-9)
    assert set(measured.values) == set(protocol.figures)
    assert measured.trials is not None and measured.trials.groups is not None
    assert measured.trials.scores.tolist() == all_scores
    assert measured.trials.groups.tolist() == groups
    assert "African, " in measured.notes[0] and "counted as different people" in measured.notes[0]


def test_the_skewed_error_ratio() -> None:
    assert skewed_error_ratio([0.9618, 0.9467, 0.9372, 0.9398]) == pytest.approx(0.0628 / 0.0382)
    assert skewed_error_ratio([0.9] * 4) == 1
    assert skewed_error_ratio([1.0, 0.9, 0.9, 0.9]) is None


def test_rfws_landmarks(tmp_path: Path) -> None:
    protocol = Rfw(laid_out(tmp_path, "rfw", identities=8, images=2))
    points = protocol.photographs.landmarks
    assert points is not None and points.shape == (16, 5, 2)
    for path, five in zip(protocol.photographs.paths, points, strict=True):
        race = path.split("/")[0]
        lines = (tmp_path / f"txts/{race}/{race}_lmk.txt").read_text().splitlines()
        (line,) = [line for line in lines if path in line]
        assert [float(field) for field in line.split()[2:]] == five.ravel().tolist()
        assert five[0, 0] < five[1, 0] and five[0, 1] < five[3, 1]
    assert Rfw(tmp_path, landmarks=False).photographs.landmarks is None
    (tmp_path / "txts/Asian/Asian_lmk.txt").unlink()
    assert Rfw(tmp_path).photographs.landmarks is None


@pytest.mark.parametrize(
    ("layout", "make"),
    [("lfw", lambda data: Lfw(data, view=1)), ("cfp-fp", lambda data: CfpFp(data, kind="FF"))],
)
def test_other_kinds_keep_the_contract(layout: str, make: Callable[[Path], Protocol], tmp_path: Path) -> None:
    laid_out(tmp_path, layout)
    check_protocol(lambda: make(tmp_path))


@pytest.mark.parametrize(("identities", "images"), [(4, 2), (5, 3), (23, 9), (40, 30)])
def test_layouts_of_any_size(identities: int, images: int, tmp_path: Path) -> None:
    """As many pairs of either kind in each fold, no person in two folds, none twice, none with itself."""
    write = layout_named("lfw")(identities, images, 0, 64).write_lists
    write(tmp_path)
    pairs = lfw_pairs(tmp_path / "pairs.txt", "")
    folds: dict[int, set[str]] = {}
    for first, second, same, fold in pairs:
        assert first != second
        assert (first.split("/")[0] == second.split("/")[0]) == same
        folds.setdefault(fold, set()).update(path.split("/")[0] for path in (first, second))
    assert len({frozenset(pair[:2]) for pair in pairs}) == len(pairs)
    assert len(folds) == min(10, identities // 2)
    assert sum(len(people) for people in folds.values()) == len(set().union(*folds.values()))
    head = (tmp_path / "pairs.txt").read_text().splitlines()[0].split()
    assert int(head[1]) <= 300 and len(pairs) == 2 * int(head[0]) * int(head[1])


@pytest.mark.parametrize("layout", ["lfw", "cfp-fp", "agedb-30", "calfw", "cplfw", "rfw", "bin"])
def test_layouts_of_too_few(layout: str) -> None:
    with pytest.raises(
        UserError, match=f"the layout {layout} needs .* identities of .* images or more, not 1 of 9"
    ):
        layout_named(layout)(1, 9, 0, 64)


def test_a_larger_set_has_the_same_photographs() -> None:
    """So that `ft synth` goes on where it was."""
    for layout in ("lfw", "cfp-fp", "agedb-30", "calfw", "cplfw", "rfw", "bin"):
        small, large = (set(layout_named(layout)(n, n, 0, 64).drawings) for n in (8, 11))
        assert small < large
        assert len({drawing.path for drawing in large}) == len(large)


# -- through the command, on photographs that are aligned for it -----------------------------------------------------------


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sets")


def evaluated(
    ft: Callable, sets: Path, layout: str, *arguments: object, size_px: int = 250
) -> dict[str, Any]:
    """What `ft evaluate` says of a set, which is drawn the first time."""
    if not (sets / layout).exists():
        numbers = ("--identities", 8, "--images", 3, "--size", size_px, "--seed", 3)
        ft(sets, "synth", sets / layout, "--layout", layout, *numbers, "-j", 1)
    name = f"{layout}-{len(list(sets.iterdir()))}"
    chosen = ("--embedder", "mean_colours:Means", "--out", sets / name, "-j", 1)
    ft(sets, "evaluate", *chosen, *arguments)
    return json.loads((sets / f"{name}.json").read_text()) | {"name": name}


@pytest.mark.parametrize("layout", ["lfw", "cfp-fp", "agedb-30", "calfw", "cplfw", "rfw"])
def test_through_the_command(layout: str, sets: Path, ft: Callable, in_process: None) -> None:
    said = evaluated(ft, sets, layout, "--protocol", layout, "--data", sets / layout)
    trials = pq.read_table(sets / f"{said['name']}.trials.parquet").to_pydict()
    assert len(trials["score"]) == 2 * sum(trials["same"]) > 10
    assert said["photographs"] == len({*trials["first"], *trials["second"]})
    assert said["photographs_without_face"] < said["photographs"] / 4
    groups = trials["group"]
    if layout != "rfw":
        accuracies, _ = plain_folds(trials["score"], trials["same"], groups)
        assert said["values"]["accuracy"] == pytest.approx(sum(accuracies) / len(accuracies), abs=CLOSE)
        return
    for at, race in enumerate(RACES):
        rows = [i for i, group in enumerate(groups) if group == at]
        area = plain_auc([trials["score"][i] for i in rows], [trials["same"][i] for i in rows])
        assert said["values"][f"auc_{race.lower()}"] == pytest.approx(area, abs=CLOSE)
    assert said["photographs_without_face"] == 0  # the landmarks come with the set: no face is looked for


def test_view_1_and_frontal_pairs_through_the_command(sets: Path, ft: Callable, in_process: None) -> None:
    data = ("--data", sets / "lfw", "--protocol-arg", "view=1")
    said = evaluated(ft, sets, "lfw", "--protocol", "lfw", *data)
    assert said["view"] == 1
    assert next(iter(said["values"])) == "accuracy" and "standard_error" not in said["values"]
    assert said["pairs"].endswith("pairsDevTest.txt")
    data = ("--data", sets / "cfp-fp", "--protocol-arg", "kind=FF")
    said = evaluated(ft, sets, "cfp-fp", "--protocol", "cfp-fp", *data)
    trials = pq.read_table(sets / f"{said['name']}.trials.parquet").to_pydict()
    assert all("/frontal/" in path for path in (*trials["first"], *trials["second"]))


def test_a_tree_that_is_aligned_already(sets: Path, ft: Callable, in_process: None) -> None:
    """Photographs that lie right in one folder: aligned, they lie in a folder of its name."""
    by_itself = evaluated(ft, sets, "calfw", "--protocol", "calfw", "--data", sets / "calfw")
    ft(sets, "align", sets / "calfw", sets / "crops", "--size", 32, "--multi", "centre", "-j", 1)
    for images in (sets / "crops", sets / "crops" / "images"):
        data = ("--data", sets / "calfw", "--protocol-arg", f"images={images}")
        said = evaluated(ft, sets, "calfw", "--protocol", "calfw", *data)
        assert said["values"] == by_itself["values"]


def test_insightfaces_file(sets: Path, ft: Callable, in_process: None) -> None:
    data = ("--data", sets / "bin" / "pairs.bin", "--embedder-arg", "side_px=64")
    said = evaluated(ft, sets, "bin", "--protocol", "cplfw", *data, size_px=64)
    assert said["same_pairs"] == said["different_pairs"] == 24
    assert said["photographs"] == 24


def test_agedbs_own_list(sets: Path, tmp_path: Path, ft: Callable, in_process: None) -> None:
    """Its MATLAB file gives what the same pairs in text give."""
    data = sets / "agedb-30"
    from_text = evaluated(ft, sets, "agedb-30", "--protocol", "agedb-30", "--data", data)
    pairs = in_tenths([(*line.split()[:2], line.endswith("1")) for line in (data / "agedb_30_pair.txt").read_text().splitlines()])  # fmt: skip
    save_matlab(tmp_path / MATLAB, pairs)
    arguments = ("--protocol-arg", f"pairs={tmp_path / MATLAB}")
    said = evaluated(ft, sets, "agedb-30", "--protocol", "agedb-30", "--data", data, *arguments)
    assert said["pairs"].endswith(".mat")
    assert said["values"] == pytest.approx(from_text["values"])
    assert [said[name] for name in ("accuracies", "thresholds")] == [
        from_text[name] for name in ("accuracies", "thresholds")
    ]


def save_matlab(path: Path, pairs: Sequence[Pair]) -> None:
    """As AgeDB's own file is nested: cells of structures of cells of structures."""
    io = pytest.importorskip("scipy.io")
    numbers = sorted({pair[3] for pair in pairs})
    splits = np.empty((len(numbers), 1), object)
    for at, number in enumerate(numbers):
        inside = [pair for pair in pairs if pair[3] == number]
        names = np.empty((2, len(inside)), object)
        for column, pair in enumerate(inside):
            for row in (0, 1):
                names[row, column] = {"name": pair[row].removesuffix(".jpg"), "age": 30.0}
        labels = np.array([[1.0 if pair[2] else -1.0 for pair in inside]])
        splits[at, 0] = {"pairs": names, "labels": labels}
    io.savemat(str(path), {"splits": splits})


def test_agedbs_own_list_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [("a_1_20", "a_2_60", True, 1), ("a_1_20", "b_1_50", False, 1), ("b_1_50", "b_2_80", True, 2), ("a_2_60", "b_2_80", False, 2)]  # fmt: skip
    save_matlab(tmp_path / MATLAB, pairs)
    (tmp_path / "03_Protocol_Images").mkdir()
    for name in ("a_1_20", "a_2_60", "b_1_50", "b_2_80"):
        (tmp_path / f"03_Protocol_Images/{name}.jpg").touch()
    protocol = AgeDb30(tmp_path)
    assert list(protocol.photographs.paths) == [
        f"03_Protocol_Images/{name}.jpg" for name in ("a_1_20", "b_1_50", "a_2_60", "b_2_80")
    ]
    assert protocol.pairs.same.tolist() == [True, False, True, False]
    assert protocol.pairs.folds.tolist() == [0, 0, 1, 1]
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match="is a MATLAB file, which scipy reads: pip install scipy"):
        AgeDb30(tmp_path)
