"""Bob's protocol: lists of three generations, score files, and figures against plain loops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from facetrain.datasets.synth import synthesise_layout
from facetrain.errors import UserError
from facetrain.evaluate.protocols import bob_scores
from facetrain.evaluate.protocols.bob import Bob, measure_score_files
from facetrain.evaluate.score_files import read_scores
from facetrain.evaluate.search import scores_of_pairs
from facetrain.image_spec import SPEC_FILE, ImageSpec

PEOPLE, IMAGES = 5, 4


NAMED = ["--embedder", "mean_colours:Means", "--embedder-arg", "cells=4", "-j", 1]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def photographs(folder: Path, names: list[str], suffix: str = ".jpg") -> None:
    """Files that are only looked for: nothing is decoded before it is embedded."""
    for name in names:
        write(folder / f"{name}{suffix}", "")


def drawn(count: int, seed: int = 0, dim: int = 6) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Unit embeddings with many ties, of which some are missing."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-1, 2, (count, dim)).astype(np.float64)
    values[~values.any(axis=1), 0] = 1
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    found = rng.random(count) > 0.1
    values[~found] = 0
    return values.astype(np.float32), found


# Lists: people a, b, … in dev, others in eval; models of one to three photographs, probes of one or two.
MODELS = {
    "dev": {
        "ma": ("a", ["a1", "a2"]),
        "mb": ("b", ["b1"]),
        "mb2": ("b", ["b2", "b3"]),
        "mc": ("c", ["c1", "c2", "c3"]),
    },
    "eval": {"md": ("d", ["d1"]), "me": ("e", ["e1", "e2", "e3"]), "mf": ("f", ["f1", "f2"])},
}
PROBES = {
    group: {f"p{person}{i}": (person, [f"{person}{i}"]) for person in people for i in (4, 5, 6)}
    for group, people in (("dev", "abcx"), ("eval", "defy"))
}
ALL = sorted(
    {
        file
        for group in (MODELS, PROBES)
        for side in group.values()
        for _, files in side.values()
        for file in files
    }
)


def write_lst(folder: Path) -> None:
    for group in ("dev", "eval"):
        lines = [f"{f} {m} {p}" for m, (p, files) in MODELS[group].items() for f in files]
        write(folder / group / "for_models.lst", "# models\n" + "\n".join(lines) + "\n")
        lines = [f"{files[0]} {p}" for p, files in PROBES[group].values()]
        write(folder / group / "for_probes.lst", "\n".join(lines) + "\n")


def write_csv(folder: Path) -> None:
    for group in ("dev", "eval"):
        lines = [f"{f},{m},{p}" for m, (p, files) in MODELS[group].items() for f in files]
        write(folder / group / "for_models.csv", "PATH,REFERENCE_ID,SUBJECT_ID\n" + "\n".join(lines) + "\n")
        lines = [f"{files[0]},{p}" for p, files in PROBES[group].values()]
        write(folder / group / "for_probes.csv", "PATH,REFERENCE_ID\n" + "\n".join(lines) + "\n")


def write_templates(folder: Path) -> None:
    for group in ("dev", "eval"):
        for name, side in (("for_enrolling", MODELS[group]), ("for_probing", PROBES[group])):
            lines = [f"{f},{t},{p},old" for t, (p, files) in side.items() for f in files]
            write(
                folder / group / f"{name}.csv", "path,template_id,subject_id,age\n" + "\n".join(lines) + "\n"
            )


WRITERS = {"lst": write_lst, "csv": write_csv, "templates": write_templates}


def by_hand(
    names: list[str], embeddings: NDArray[np.float32], found: NDArray[np.bool_], group: str, models: str
) -> tuple[list[float], list[bool]]:
    """Scores model by model, probe by probe, and whether they are of one person."""
    row = {Path(name).stem: i for i, name in enumerate(names)}

    def faces(files: list[str]) -> list[NDArray[np.float64]]:
        return [embeddings[row[file]].astype(np.float64) for file in files if found[row[file]]]

    def mean(vectors: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        total = sum(vectors, np.zeros(embeddings.shape[1]))
        return (total / np.linalg.norm(total)).astype(np.float32).astype(np.float64)

    scores, same = [], []
    for person, files in MODELS[group].values():
        for other, probes in PROBES[group].values():
            a, b = faces(files), faces(probes)
            if not a or not b:
                score = -np.inf
            elif models == "mean":
                score = float(mean(a) @ mean(b))
            else:
                score = max(float(x @ y) for x in a for y in b)
            scores.append(float(np.float32(score)))
            same.append(person == other)
    return scores, same


def rates(scores: list[float], same: list[bool], threshold: float) -> tuple[float, float]:
    wrong = sum(score >= threshold for score, s in zip(scores, same, strict=True) if not s)
    missed = sum(score < threshold for score, s in zip(scores, same, strict=True) if s)
    return wrong / same.count(False), missed / same.count(True)


@pytest.mark.parametrize("models", ["mean", "max"])
@pytest.mark.parametrize("kind", WRITERS)
def test_figures_by_hand(kind: str, models: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bob_scores, "BLOCK", 2)
    photographs(tmp_path / "images", ALL)
    WRITERS[kind](tmp_path / "P")
    protocol = Bob(tmp_path, models=models)
    assert len(protocol.photographs) == len(ALL)
    assert protocol.people == frozenset("abcxdefy")
    embeddings, found = drawn(len(ALL))
    measured = protocol.measure(embeddings, found)
    names = list(protocol.photographs.paths)
    threshold = measured.details["dev"]["threshold"]
    dev = measured.trials.scores[measured.trials.groups == 0].tolist()
    dev_same = measured.trials.same[measured.trials.groups == 0].tolist()
    gaps = [abs(fmr - fnmr) for fmr, fnmr in (rates(dev, dev_same, t) for t in [np.inf, *dev])]
    fmr, fnmr = rates(dev, dev_same, threshold)
    assert abs(fmr - fnmr) == pytest.approx(min(gaps), abs=1e-12)
    for group, prefix in (("eval", ""), ("dev", "dev_")):
        scores, same = by_hand(names, embeddings, found, group, models)
        part = measured.trials.groups == (group == "eval")
        np.testing.assert_allclose(measured.trials.scores[part], scores, atol=3e-7)
        assert measured.trials.same[part].tolist() == same
        # Exact products of float32 may differ in the last place from these: the rates are of what was found.
        fmr, fnmr = rates(measured.trials.scores[part].tolist(), same, threshold)
        assert measured.values[f"{prefix}fmr"] == fmr
        assert measured.values[f"{prefix}fnmr"] == fnmr
        assert measured.values[f"{prefix}hter"] == pytest.approx((fmr + fnmr) / 2, abs=1e-15)
    assert next(iter(protocol.figures)) == "hter"
    assert set(protocol.figures) == set(measured.values)
    refused = int((measured.trials.scores == -np.inf).sum())
    assert refused and sum("are refused: not accepted" in note for note in measured.notes) > 0

    dropped = Bob(tmp_path, models=models, no_face="drop").measure(embeddings, found)
    assert len(dropped.trials.scores) == len(measured.trials.scores) - refused
    assert (dropped.trials.scores > -np.inf).all()


def test_scores_are_those_of_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, whatever the blocks, of models of one photograph; all against all and listed."""
    names = [f"{person}{i}" for person in "abcd" for i in range(1, 8)]
    photographs(tmp_path, names)
    for group, people in (("dev", "ab"), ("eval", "cd")):
        write(
            tmp_path / group / "for_models.lst",
            "".join(f"{p}{i} {p}{i} {p}\n" for p in people for i in (1, 2, 3)),
        )
        write(
            tmp_path / group / "for_probes.lst",
            "".join(f"{p}{i} {p}\n" for p in people for i in (4, 5, 6, 7)),
        )
        listed = [
            f"{q}{j} {p}{i} {p} {q}\n"
            for p in people
            for i in (1, 2, 3)
            for q in people
            for j in (4, 5, 6, 7)
        ]
        write(tmp_path / group / "for_scores.lst", "".join(listed))
    embeddings = np.random.default_rng(1).normal(size=(len(names), 64))
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)
    every = np.ones(len(names), bool)
    found = []
    for block, pairs in ((1024, 8192), (3, 5)):
        monkeypatch.setattr(bob_scores, "BLOCK", block)
        monkeypatch.setattr(bob_scores, "PAIRS", pairs)
        for comparisons in ("all", "listed"):
            protocol = Bob(tmp_path, models="max", comparisons=comparisons)
            trials = protocol.measure(embeddings, every).trials
            found.append((trials.scores, trials.same.tolist()))
            paths = list(protocol.photographs.paths)
            expected = scores_of_pairs(embeddings, embeddings, trials.first, trials.second)
            np.testing.assert_array_equal(trials.scores.astype(np.float32), expected)
            assert paths[trials.first[0]] == "a1.jpg" and paths[trials.second[0]] == "a4.jpg"
    for scores, same in found:
        np.testing.assert_array_equal(scores, found[0][0])
        assert same == found[0][1]


def test_listed_templates(tmp_path: Path) -> None:
    photographs(tmp_path / "images", ALL)
    write_templates(tmp_path)
    for group in ("dev", "eval"):
        pairs = [
            (m, p) for i, m in enumerate(MODELS[group]) for j, p in enumerate(PROBES[group]) if (i + j) % 2
        ]
        text = "enroll_template_id,probe_template_id\n" + "".join(f"{m},{p}\n" for m, p in reversed(pairs))
        write(tmp_path / group / "for_matching.csv", text)
    embeddings, found = drawn(len(ALL), seed=3)
    for models in ("mean", "max"):
        listed = Bob(tmp_path, models=models).measure(embeddings, found)
        every = Bob(tmp_path, models=models, comparisons="all").measure(embeddings, found)
        for group in (0, 1):
            all_of = every.trials.scores[every.trials.groups == group].reshape(
                len(MODELS[("dev", "eval")[group]]), -1
            )
            expected = [
                all_of[i, j] for i in range(len(all_of)) for j in range(all_of.shape[1]) if (i + j) % 2
            ][::-1]
            np.testing.assert_array_equal(listed.trials.scores[listed.trials.groups == group], expected)


def test_compare_reference_id(tmp_path: Path) -> None:
    photographs(tmp_path, ["a1", "b1", "a2", "b2"])
    for group in ("dev", "eval"):
        write(tmp_path / group / "for_models.csv", "PATH,TEMPLATE_ID\na1,a\nb1,b\n")
        text = "PATH,REFERENCE_ID,COMPARE_REFERENCE_ID\na2,a,a\nb2,b,a\na2,a,b\n"
        write(tmp_path / group / "for_probes.csv", text)
    found = Bob(tmp_path).measure(np.eye(4, dtype=np.float32), np.ones(4, bool))
    assert found.trials.same.tolist() == [True, False, False] * 2
    assert (
        len(
            Bob(tmp_path, comparisons="all")
            .measure(np.eye(4, dtype=np.float32), np.ones(4, bool))
            .trials.same
        )
        == 8
    )


def test_dev_alone_and_the_criteria(tmp_path: Path) -> None:
    photographs(tmp_path, ALL)
    write_lst(tmp_path)
    for file in (tmp_path / "eval").iterdir():
        file.unlink()
    (tmp_path / "eval").rmdir()
    embeddings, found = drawn(len(Bob(tmp_path).photographs), seed=2)
    for arguments in ({}, {"criterion": "min-hter"}, {"criterion": "far", "far": 0.1}):
        protocol = Bob(tmp_path, **arguments)
        measured = protocol.measure(embeddings, found)
        assert list(protocol.figures) == ["dev_hter", "dev_fmr", "dev_fnmr", "dev_eer", "dev_auc"]
        assert any("no eval group" in note for note in measured.notes)
        assert list(measured.files) == ["scores-dev"]
    assert measured.values["dev_fmr"] <= 0.1 and measured.details["far"] == 0.1


def test_crops_and_suffixes(tmp_path: Path) -> None:
    write_lst(tmp_path / "P")
    photographs(tmp_path / "crops", ALL[1:])
    (tmp_path / "crops" / SPEC_FILE).write_text(ImageSpec().to_json())
    assert Bob(tmp_path, images=str(tmp_path / "crops")).photographs.paths.count("") == 1
    photographs(tmp_path / "raw", ALL, ".png")
    assert set(Bob(tmp_path).photographs.paths) == {f"{name}.png" for name in ALL}
    photographs(tmp_path / "raw", ["a1"], ".bmp")
    with pytest.raises(UserError, match=r"for_models\.lst, line 2: which is it, a1\.bmp or a1\.png\?"):
        Bob(tmp_path)
    assert set(Bob(tmp_path, extension=".png").photographs.paths) == {f"{name}.png" for name in ALL}


def test_score_files(tmp_path: Path, ft: Callable, wrong: Callable) -> None:
    rng = np.random.default_rng(5)
    texts = {}
    for group in ("dev", "eval"):
        same = rng.random(400) < 0.3
        scores = np.round(rng.normal(size=400) + 2 * same, 1)
        lines = [
            f"a {'a' if s else 'b'} p{i} {x!r}\n"
            for i, (s, x) in enumerate(zip(same, scores.tolist(), strict=True))
        ]
        texts[group] = "".join(lines)
        write(tmp_path / "found" / f"scores-{group}", texts[group])
    how = ["--protocol", "bob", "--data", tmp_path / "found", "--out", tmp_path / "out"]
    text = ft(tmp_path, "evaluate", *how, "--protocol-arg", "criterion=min-hter").output
    said = json.loads((tmp_path / "out.json").read_text())
    measured = measure_score_files(
        tmp_path / "found" / "scores-dev", tmp_path / "found" / "scores-eval", "min-hter"
    )
    assert said["values"] == measured.values and "HTER, eval" in text
    dev = read_scores(tmp_path / "found" / "scores-dev")
    best = min(
        sum(rates(dev.scores.tolist(), dev.same.tolist(), t)) / 2 for t in [np.inf, *set(dev.scores.tolist())]
    )
    assert measured.values["dev_hter"] == pytest.approx(best, abs=1e-15)
    assert (tmp_path / "out.png").is_file() and said["photographs"] == 0

    assert "leave out the checkpoint, --embedder and --flip" in wrong(tmp_path, "evaluate", *how, *NAMED)
    assert "leave out the checkpoint" in wrong(tmp_path, "evaluate", "first", *how)
    assert "leave out" in wrong(tmp_path, "evaluate", "--flip", *how)
    assert "far = 0.1 is of criterion=far" in wrong(tmp_path, "evaluate", *how, "--protocol-arg", "far=0.1")
    far = ["--protocol-arg", "criterion=far", "--protocol-arg", "far=0.001"]
    assert "far = 0.001 cannot be told with" in wrong(tmp_path, "evaluate", *how, *far)
    for argument in ("protocol=P", "models=max"):
        line = wrong(tmp_path, "evaluate", *how, "--protocol-arg", argument)
        assert "is of lists, leave it out" in line
    write(tmp_path / "found" / "scores-dev", texts["dev"] + "a b\n")
    assert "scores-dev, line 401: expected 4 columns, as before, found 'a b'" in wrong(
        tmp_path, "evaluate", *how
    )
    write(tmp_path / "found" / "scores-dev", "a a p 1\n")
    assert "scores-dev: a threshold needs comparisons of one person and of two; these are 1 and 0" in wrong(
        tmp_path, "evaluate", *how
    )
    write(tmp_path / "found" / "scores-dev.csv", "")
    assert "holds scores-dev and scores-dev.csv" in wrong(tmp_path, "evaluate", *how)
    for name in ("scores-dev", "scores-dev.csv"):
        (tmp_path / "found" / name).unlink()
    assert "holds scores-eval without scores-dev" in wrong(tmp_path, "evaluate", *how)


@pytest.mark.usefixtures("in_process")
def test_end_to_end(tmp_path: Path, ft: Callable, wrong: Callable) -> None:
    ft(
        tmp_path,
        "synth",
        tmp_path / "set",
        "--layout",
        "bob",
        "--identities",
        PEOPLE,
        "--images",
        IMAGES,
        "-j",
        1,
    )
    how = ["--protocol", "bob", "--data", tmp_path / "set", *NAMED]
    text = ft(tmp_path, "evaluate", *how, "--out", tmp_path / "out").output
    said = json.loads((tmp_path / "out.json").read_text())
    assert said["photographs"] == (PEOPLE - 1) * IMAGES and "threshold (eer on dev)" in text
    files = [tmp_path / f"out.scores-{group}" for group in ("dev", "eval")]
    again = measure_score_files(*files)
    assert dict(again.values) == said["values"]
    dev, other = (read_scores(file) for file in files)
    assert len(dev) == 2 * 4 and len(other) == 2 * 4  # two people: a model of each, two probes of each
    fmr, fnmr = rates(other.scores.tolist(), other.same.tolist(), said["dev"]["threshold"])
    assert (said["values"]["fmr"], said["values"]["fnmr"]) == (fmr, fnmr)
    with pytest.raises(UserError, match="another layout"):
        synthesise_layout(tmp_path / "set", "isc", identities=5, images=4)

    first = tmp_path / "set" / "images" / "0004" / "001.jpg"
    first.unlink()
    assert "for_models.lst, line 1: there is no photograph 0004/001 in" in wrong(tmp_path, "evaluate", *how)


WRONG: list[tuple[str, str, str]] = [
    ("dev/for_models.lst", "", r"for_models\.lst: the list of models is empty"),
    ("dev/for_models.lst", "# nothing\n", r"for_models\.lst: the list of models is empty"),
    (
        "dev/for_models.lst",
        "a1 ma a\na2\n",
        r"for_models\.lst, line 2: expected 'filename model_id client_id', found 'a2'",
    ),
    (
        "dev/for_models.lst",
        "a1 ma a x\n",
        r"line 1: expected 'filename model_id or filename model_id client_id'",
    ),
    ("dev/for_models.lst", "a1 ma a\nb1 ma b\n", r"line 2: 'ma' is of 'a' in a line before, found 'b'"),
    ("dev/for_models.lst", "a1 ma a\nnone mb b\n", r"line 2: there is no photograph none in"),
    (
        "dev/for_probes.lst",
        "a4 a x\n",
        r"for_probes\.lst, line 1: expected 'filename client_id', found 'a4 a x'",
    ),
    ("dev/for_probes.lst", "\n", r"for_probes\.lst: the list of probes is empty"),
    (
        "dev/for_probes.lst",
        "a4 z\n",
        r"dev: a threshold needs comparisons of one person and of two; these are 0 and 4",
    ),
    (
        "dev/for_scores.lst",
        "a4 ma a a\n",
        r"holds for_probes\.lst and for_scores\.lst: choose with comparisons=all",
    ),
    ("eval/for_models.csv", "PATH,REFERENCE_ID\n", r"holds for_models\.lst and for_models\.csv"),
]


@pytest.mark.parametrize(("file", "text", "why"), WRONG)
def test_wrong_lists(file: str, text: str, why: str, tmp_path: Path) -> None:
    photographs(tmp_path, ALL)
    write_lst(tmp_path)
    write(tmp_path / file, text)
    with pytest.raises(UserError, match=why):
        Bob(tmp_path)


WRONG_SCORES = [
    ("a4 ma a a\na4 mz a a\n", r"for_scores\.lst, line 2: there is no model of this name, found 'mz'"),
    ("a4 ma b a\n", r"line 1: model 'ma' is of 'a', found 'b'"),
    ("a4 ma a a\na4 mb b b\n", r"line 2: 'a4' is of 'a' in a line before, found 'b'"),
    ("a4 ma a\n", r"line 1: expected 'filename model_id claimed_client_id client_id', found 'a4 ma a'"),
]


@pytest.mark.parametrize(("text", "why"), WRONG_SCORES)
def test_wrong_lists_of_comparisons(text: str, why: str, tmp_path: Path) -> None:
    photographs(tmp_path, ALL)
    write_lst(tmp_path)
    write(tmp_path / "dev/for_scores.lst", text)
    with pytest.raises(UserError, match=why):
        Bob(tmp_path, comparisons="listed")


WRONG_CSV = [
    ("for_enrolling.csv", "path,subject_id\na1,a\n", r"line 1: expected a header with PATH and TEMPLATE_ID"),
    (
        "for_enrolling.csv",
        "path,template_id\na1,a,b\n",
        r"line 2: expected 2 columns, as in the header, found 'a1,a,b'",
    ),
    ("for_enrolling.csv", "path,template_id\n,a\n", r"line 2: a column that is needed is empty, found ',a'"),
    ("for_enrolling.csv", "path,template_id\n", r"for_enrolling\.csv: the list of models is empty"),
    (
        "for_matching.csv",
        "enroll_template_id\nma\n",
        r"expected a header with ENROLL_TEMPLATE_ID and PROBE_TEMPLATE_ID",
    ),
    (
        "for_matching.csv",
        "enroll_template_id,probe_template_id\nma,pa4\nma,none\n",
        r"for_matching\.csv, line 3: there is no probe of this name, found 'none'",
    ),
]


@pytest.mark.parametrize(("file", "text", "why"), WRONG_CSV)
def test_wrong_templates(file: str, text: str, why: str, tmp_path: Path) -> None:
    photographs(tmp_path, ALL)
    write_templates(tmp_path)
    write(tmp_path / "dev" / file, text)
    with pytest.raises(UserError, match=why):
        Bob(tmp_path)


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Bob(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds no lists .* and no score files"):
        Bob(tmp_path)
    photographs(tmp_path, ALL)
    for name in ("P1", "P2"):
        write_lst(tmp_path / name)
    with pytest.raises(UserError, match="several protocols: choose with protocol=P1, or P2"):
        Bob(tmp_path)
    assert len(Bob(tmp_path, protocol="P2").photographs) == len(ALL)
    with pytest.raises(UserError, match="there is no folder"):
        Bob(tmp_path, protocol="P3")
    for arguments, why in (
        ({"models": "median"}, "choose mean or max"),
        ({"comparisons": "some"}, "choose all or listed"),
        ({"criterion": "hter"}, "choose eer, min-hter or far"),
        ({"no_face": "guess"}, "choose different or drop"),
        ({"criterion": "far", "far": 0.0001}, "far = 0.0001 cannot be told with"),
        ({"comparisons": "listed"}, "cannot read the list of comparisons"),
    ):
        with pytest.raises(UserError, match=why):
            Bob(tmp_path, protocol="P1", **arguments)
