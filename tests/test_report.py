"""ft report as a user has it: a page about real runs, whatever they are called and whatever is missing."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from facetrain.evaluate.protocols.base import Photographs
from facetrain.evaluate.protocols.pairwise import PairRows, measure_pairs
from facetrain.evaluate.report.evaluations import PAIRS_SHOWN, read_evaluation
from facetrain.evaluate.report.texts import breakable
from facetrain.evaluate.trial_files import write_trials

# What a folder may be called, and what a careless page would make of it.
HOSTILE = [
    '<img src=x onerror="x()">',
    "<style><script>x()<",
    "{{ 7 * 191 }}",
    "\"q\" & 'a' `b`",
    "eve",
    "fay",
]
SPLIT = [0.5, "--seed", 171]  # those with such names are for validation
TRAIN = ["--epochs", 1, "--people", 2, "--images", 2, "-j", 1, "--set", "validation_pairs=20"]


@pytest.fixture(scope="module")
def made(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of people with such names: two runs, the first measured, and an embedder in other.json. Not to be
    changed."""
    from conftest import InProcess, people_of, run

    root = tmp_path_factory.mktemp("report")
    for person, name in zip(people_of(drawn), HOSTILE, strict=True):
        shutil.copytree(person, root / "raw" / name)
    (root / "raw" / "eve" / "broken.jpg").write_bytes(b"no photograph")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("facetrain.preprocess.row_update.process_pool", lambda jobs: InProcess())
        run(root, "align", root / "raw", root / "aligned", "--size", 32)
    run(root, "split", *SPLIT)
    for name in ("first", "second"):
        run(root, "train", "--name", name, *TRAIN)
    run(root, "evaluate", "first", "-j", 1)
    means = ["--embedder", "mean_colours:Means", "-j", 1]
    run(root, "evaluate", *means, "--out", root / "other")
    return root


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The same, to be changed at will."""
    shutil.copytree(made, tmp_path / "root", symlinks=True)
    return tmp_path / "root"


class Parsed(HTMLParser):
    """tags: (name, attributes) of all. text: what a reader sees, spaces made one."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.parts: list[str] = []
        self.style = ""
        self.feed(html)
        self.close()
        self.text = " ".join("".join(self.parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "wbr"):
            self.open.append(tag)
        if tag in ("td", "th", "br", "p"):
            self.parts.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.parts.append(data)

    def of(self, tag: str) -> Iterator[dict[str, str | None]]:
        yield from (attrs for name, attrs in self.tags if name == tag)


def report(ft: Callable, root: Path, *arguments: object) -> Parsed:
    ft(root, "report", *arguments, "--out", root / "page.html", "-j", 1)
    page = Parsed((root / "page.html").read_text(encoding="utf-8"))
    assert page.open == []  # every element is closed
    return page


def test_a_page_about_two_runs(made: Path, ft: Callable, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "root")
    root = tmp_path / "root"
    page = report(ft, root, "first", "second", "--with", root / "other.json")
    assert "2 runs compared" in page.text
    for file, name in ((".ft/runs/first/evaluation/validation.json", "first"), ("other.json", "Means")):
        found = json.loads((root / file).read_text())
        assert name in page.text
        for figure in ("accuracy", "auc", "eer", "map_at_r"):
            assert f"{found['values'][figure]:.4f}" in page.text, (name, figure)
    assert "Nothing was measured of second yet: ft evaluate second measures it" in page.text
    for section in (
        "measured",
        "training",
        "verification",
        "hardest",
        "labels",
        "map",
        "data",
        "configuration",
    ):
        assert any(attrs.get("id") == section for attrs in page.of("section"))
    assert "ROC" in page.text and "t-SNE" in page.text
    assert re.search(r"unreadable 1 3\.23%", page.text)  # of 31 photographs
    assert "with a face, aligned 30 96.77%" in page.text


def test_it_is_complete_in_itself(copy: Path, ft: Callable) -> None:
    page = report(ft, copy, "first", "--with", copy / "other.json")
    assert {tag for tag, _ in page.tags} & {
        "script",
        "link",
        "iframe",
        "object",
        "base",
        "form",
        "video",
    } == set()
    policy = next(a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not re.search(r"url\(|@import|https?:|//[a-z]", page.style)
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")], tag
        for name in ("src", "href"):
            assert (attrs.get(name) or "#").startswith(("data:image/jpeg;base64,", "#")), (tag, name)
    images = list(page.of("img"))
    assert len(images) > 40 and all(attrs.get("alt") for attrs in images)
    charts = [attrs for attrs in page.of("svg") if "chart" in (attrs.get("class") or "")]
    assert charts and all(attrs["role"] == "img" and attrs["aria-label"] for attrs in charts)
    assert all(attrs.get("scope") for attrs in page.of("th"))


def test_names_are_shown_as_they_are(copy: Path, ft: Callable) -> None:
    """Run as the folder it is called by, people, photographs, an embedder: nothing of it is taken for HTML or a template."""
    other = json.loads((copy / "other.json").read_text())
    other["name"], other["notes"] = "<b>them</b> & us", ["<u>look</u> at `{{ 1 }}`"]
    other["labels"]["odd"], other["values"]["odd"] = "A<i>uc</i>", 0.5
    (copy / "other.json").write_text(json.dumps(other))
    run = copy / '<marquee class="r">'
    shutil.copytree(copy / ".ft/runs/first", run)
    page = report(ft, copy, run, "--with", copy / "other.json")
    assert {"marquee", "b>them", "u", "i", "script"} & {tag for tag, _ in page.tags} == set()
    for text in (run.name, "<b>them</b> & us", "<u>look</u> at {{ 1 }}", "A<i>uc</i>"):
        assert text in page.text, text

    page = report(ft, copy, "first")
    shown = page.text + "".join(f"{attrs.get('alt')}" for attrs in page.of("img"))
    for name in HOSTILE[:4]:
        assert f"{name}/1.jpg" in shown
    assert not re.search(r"(?<![.\d])1337", shown)


def test_the_best_is_marked(copy: Path, ft: Callable) -> None:
    """By text too, and the lowest where lower is better."""
    one = json.loads((copy / ".ft/runs/first/evaluation/validation.json").read_text())
    assert one["lower_is_better"] == ["standard_error", "population_deviation", "eer"]
    for name, values in (
        ("worse", {"accuracy": 0.1111, "eer": 0.8888}),
        ("better", {"accuracy": 0.9999, "eer": 0.0002}),
    ):
        (copy / f"{name}.json").write_text(
            json.dumps({**one, "name": name, "values": {**one["values"], **values}})
        )
    page = report(ft, copy, "first", "--with", copy / "worse.json", "--with", copy / "better.json")
    mine = one["values"]
    assert f"Accuracy, mean of folds {mine['accuracy']:.4f} 0.1111 0.9999 ★, best" in page.text
    assert f"EER lower is better {mine['eer']:.4f} 0.8888 0.0002 ★, best" in page.text
    error = f"{mine['standard_error']:.4f}"
    assert f"Standard error {error} {error} {error} Population" in page.text  # no merit of a network
    assert f"AUC {mine['auc']:.4f} ★, best {mine['auc']:.4f} ★, best" in page.text


def test_one_run_has_its_page_in_its_folder(copy: Path, ft: Callable) -> None:
    text = ft(copy, "report", "-j", 1).output
    page = copy / ".ft/runs/second/report.html"  # the latest
    assert (
        page.is_file()
        and "1 run, 0 evaluations" in text
        and text.splitlines()[-1].endswith("second/report.html")
    )
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path != page}
    ft(copy, "report", "first", "second", "--out", copy / "new" / "both.html", "-j", 1)
    after = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path != page}
    assert {path for path in after if after[path] != before.get(path)} == {copy / "new" / "both.html"}


def test_what_is_missing_is_said(copy: Path, ft: Callable) -> None:
    run = copy / ".ft/runs/first"
    (run / "checkpoints/best.safetensors").unlink()
    (run / "metrics.csv").write_text("")
    for file in (run / "evaluation").glob("*.parquet"):
        file.unlink()
    page = report(ft, copy, "first")
    assert "no run or checkpoint" in page.text
    assert "no metrics yet" in page.text
    assert "There are no comparisons one by one yet: ft evaluate leaves them" in page.text
    assert "There are no pictures of pairs yet" in page.text

    (run / "config.json").write_text("{")
    page = report(ft, copy, run)
    assert "Its config.json cannot be read" in page.text

    shutil.copytree(run, copy / "elsewhere")
    page = report(ft, copy, copy / "elsewhere")
    assert "lies outside of a workspace" in page.text


def test_no_split_no_cache_no_dataset(copy: Path, ft: Callable) -> None:
    ft(copy, "split", "--undo")
    page = report(ft, copy, "first")
    assert "the photographs are not split yet: run ft split 0.1 first" in page.text
    assert "The dataset is no longer what it was trained on: ft split changed it since" in page.text
    ft(copy, "split", *SPLIT)
    (manifest,) = copy.glob(".ft/datasets/*/cache.arrow")
    manifest.unlink()
    page = report(ft, copy, "first")
    assert "ft cache" in page.text and "People under two names" not in page.text
    shutil.rmtree(manifest.parent)
    page = report(ft, copy, "first")
    assert "Its dataset is gone" in page.text


def test_people_who_were_trained_on_are_told(copy: Path, ft: Callable) -> None:
    ft(copy, "split", 0.5, "--seed", 4)
    people = set((copy / ".ft/runs/first/people.txt").read_text().splitlines())
    page = report(ft, copy, "first")
    found = re.search(r"(\d) of its people were trained on", page.text)
    assert found is not None
    ft(copy, "evaluate", "second", "-j", 1)
    said = json.loads((copy / ".ft/runs/second/evaluation/validation.json").read_text())["notes"]
    assert int(found[1]) == int(said[-1][0]) <= len(people)


def test_a_large_split_is_cut(copy: Path, ft: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facetrain.pipeline.report.MOST_EMBEDDED", 11)
    page = report(ft, copy, "first")
    assert "10 of its 20 photographs were looked at, of people drawn at random" in page.text
    assert "10 photographs of 2 people" in page.text


def test_embeddings_that_are_no_numbers(copy: Path, ft: Callable) -> None:
    best = copy / ".ft/runs/first/checkpoints/best.safetensors"
    with safe_open(best, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    broken = {
        name: value * math.nan if value.is_floating_point() else value for name, value in tensors.items()
    }
    best.unlink()  # it is a link to that of its epoch
    save_file(broken, best, metadata)
    page = report(ft, copy, "first")
    assert (
        page.text.count("the network gives embeddings that are not finite") == 2
    )  # for label errors, and for the map


def rewrite(best: Path, **said: object) -> None:
    """Let a checkpoint say something else of itself."""
    with safe_open(best, "pt") as file:
        metadata = json.loads(file.metadata()["facetrain"]) | said
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    best.unlink()  # it is a link to that of its epoch
    save_file(tensors, best, {"facetrain": json.dumps(metadata)})


METRICS = """kind,epoch,step,images,seconds,loss,lr,val_accuracy,val_standard_error,val_auc,m_hter,m_dev_auc
step,0.5,10,80,1,0.9,0.1,,,,,
epoch,1,20,160,2,0.8,0.1,0.91,0.01,0.95,0.30,0.7
validation,1.5,30,240,3,,0.1,0.94,0.01,0.97,,
epoch,2,40,320,4,0.6,0.1,0.95,0.02,0.98,0.10,0.8
epoch,3,60,480,5,0.5,0.1,0.93,0.03,0.96,0.20,0.9
"""


def with_metrics(root: Path, *validators: dict[str, bool]) -> Path:
    run = root / ".ft/runs/first"
    (run / "metrics.csv").write_text(METRICS)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "validators": validators}))
    return run


VAL = {"val_accuracy": False, "val_standard_error": True, "val_auc": False}
BOB = {"m_hter": True, "m_dev_auc": False}


def test_the_headline_is_of_the_network_that_is_kept(copy: Path, ft: Callable) -> None:
    run = with_metrics(copy, VAL, BOB)
    best = run / "checkpoints/best.safetensors"
    last = {"loss": 0.5, "val_accuracy": 0.93, "val_standard_error": 0.03, "m_hter": 0.2}
    rewrite(best, epoch=3, step=60, metrics=last)
    page = report(ft, copy, "first")
    assert "kept: epoch 3, validation accuracy 0.9300 ± 0.0300; best seen 0.9500, epoch 2" in page.text

    rewrite(best, epoch=2, step=40, metrics={"val_accuracy": 0.95, "val_standard_error": 0.02})
    page = report(ft, copy, "first")
    assert "kept: epoch 2, validation accuracy 0.9500 ± 0.0200" in page.text and "best seen" not in page.text

    rewrite(best, epoch=1, step=30, metrics={"val_accuracy": 0.94, "val_standard_error": math.nan})
    page = report(ft, copy, "first")  # within an epoch
    assert "kept: epoch 1.5, validation accuracy 0.9400 best seen 0.9500, epoch 2" in page.text

    with_metrics(copy, BOB, VAL)
    rewrite(best, epoch=3, step=60, metrics=last)
    page = report(ft, copy, "first")
    assert "kept: epoch 3, m hter 0.2000 best seen 0.1000, epoch 2" in page.text

    rewrite(best, epoch=3, step=60, metrics={"loss": 0.5})
    assert "kept: epoch 3, training loss 0.5000" in report(ft, copy, "first").text

    best.write_bytes(b"nothing")
    page = report(ft, copy, "first")
    assert "best m hter 0.1000 epoch 2" in page.text and "kept:" not in page.text


def test_a_validator_is_drawn_by_what_ranks_it(copy: Path, ft: Callable) -> None:
    """The lowest is the best where lower is better, and the AUC is beside an accuracy alone."""
    with_metrics(copy, dict(reversed(VAL.items())), BOB)
    text = report(ft, copy, "first").text
    assert "Validation AUC best 0.9800, epoch 2" in text and "Validation accuracy" not in text
    assert "m, hter best 0.1000, epoch 2" in text and "m, dev auc" not in text
    with_metrics(copy, VAL, {"m_dev_auc": False})
    text = report(ft, copy, "first").text
    assert "Validation accuracy best 0.9500, epoch 2" in text and "Validation AUC best 0.9800" in text
    assert "m, dev auc best 0.9000, epoch 3" in text and "m, hter" not in text
    assert "Faint lines" not in text  # there is one row of steps
    run = copy / ".ft/runs/first"
    config = json.loads((run / "config.json").read_text())
    del config["validators"]  # as older versions wrote it
    (run / "config.json").write_text(json.dumps(config))
    text = report(ft, copy, "first").text
    assert "Validation accuracy best 0.9500, epoch 2" in text and "m, hter" not in text


@pytest.mark.parametrize("part", ["trials", "hardest"])
def test_damaged_files_are_told_from_missing_ones(copy: Path, ft: Callable, part: str) -> None:
    file = copy / f".ft/runs/first/evaluation/validation.{part}.parquet"
    data = file.read_bytes()
    for broken in (b"", b"PAR1 but nothing more", data[: len(data) // 2]):
        file.write_bytes(broken)
        text = report(ft, copy, "first").text
        assert f"validation.{part}.parquet is damaged: run ft evaluate again" in text
        assert "There are no comparisons" not in text and "There are no pictures" not in text
        assert ("ROC" in text) == (part == "hardest")
    table = pq.read_table(io.BytesIO(data))
    for other in (
        table.drop_columns(["same"]),
        table.set_column(0, table.column_names[0], [[None] * len(table)]),
    ):
        pq.write_table(other, file)
        assert f"validation.{part}.parquet is damaged" in report(ft, copy, "first").text


def test_trials_of_another_evaluation_are_not_drawn(copy: Path, ft: Callable) -> None:
    file = copy / ".ft/runs/first/evaluation/validation.trials.parquet"
    table = pq.read_table(file)
    pq.write_table(table.slice(1), file)
    page = report(ft, copy, "first")
    assert "validation.trials.parquet does not belong to validation.json: run ft evaluate again" in page.text
    assert "ROC" not in page.text
    same = table["same"].to_numpy()
    pq.write_table(table.set_column(table.column_names.index("same"), "same", [~same]), file)
    found = read_evaluation(file.with_name("validation.json"))
    assert ("trials" in found.damaged) == (same.mean() != 0.5) and found.threshold is not None

    json_file = file.with_name("validation.json")
    said = json.loads(json_file.read_text())
    json_file.write_text(json.dumps({k: v for k, v in said.items() if not k.endswith("_pairs")}))
    assert read_evaluation(json_file).scores is not None  # nothing is known of how many there were


def test_dropped_pairs_are_not_missed(tmp_path: Path) -> None:
    """Counts of a JSON file are of the pairs that were kept, as are the trials."""
    pairs = PairRows(
        np.array([0, 1, 2, 0]), np.array([1, 2, 3, 3]), np.array([1, 0, 1, 0], bool), np.zeros(4, int)
    )
    embeddings = np.eye(4, 8, dtype=np.float32)
    measured = measure_pairs(pairs, embeddings, np.array([1, 1, 0, 1], bool), no_face="drop")
    assert measured.trials is not None and measured.details["pairs_dropped"] == 2
    write_trials(tmp_path / "x", measured.trials, Photographs(tmp_path, list("abcd")))
    facts = {"name": "x", "protocol": "lfw", "labels": {}, "values": {}, "counts": {}, "notes": []}
    (tmp_path / "x.json").write_text(json.dumps({**measured.details, **facts}))
    found = read_evaluation(tmp_path / "x.json")
    assert not found.damaged and found.scores is not None and len(found.scores) == 2


def test_other_options_are_another_test(copy: Path, ft: Callable) -> None:
    file = copy / ".ft/runs/first/evaluation/validation.json"
    one = json.loads(file.read_text()) | {"protocol": "survface", "multi": "centre"}
    file.write_text(json.dumps(one))
    for name, more in (
        ("images", {"protocol_args": {"gallery": "images"}}),
        ("none", {"protocol_args": {}}),
        ("largest", {"protocol_args": {}, "multi": "largest"}),
    ):
        (copy / name).mkdir()
        stem = "survface-gallery=images" if name == "images" else "survface"
        (copy / name / f"{stem}.json").write_text(json.dumps({**one, **more, "name": name}))
    others = [
        part
        for name in ("images", "none", "largest")
        for file in (copy / name).iterdir()
        for part in ("--with", file)
    ]
    page = report(ft, copy, "first", *others)
    mine = f"{one['values']['accuracy']:.4f}"
    row = "Accuracy, mean of folds"
    assert f"{row} {mine} ★, best – {mine} ★, best –" in page.text  # an older file, and one without options
    assert f"{row} – {mine} – –" in page.text and f"{row} – – – {mine}" in page.text
    for title in ("survface · gallery=images", "survface · multi=largest"):
        assert f" {title} Accuracy" in page.text


def test_a_frozen_threshold(copy: Path) -> None:
    file = copy / ".ft/runs/first/evaluation/validation.json"
    said = json.loads(file.read_text())
    for thresholds, expected in (([0.25], 0.25), ([0.1, None, 0.3], 0.2), ([None], None)):
        file.write_text(json.dumps({**said, "thresholds": thresholds}))
        assert read_evaluation(file).threshold == pytest.approx(expected)
    file.write_text(json.dumps({name: value for name, value in said.items() if name != "thresholds"}))
    found = read_evaluation(file)
    assert found.threshold is not None and found.scores is not None and found.threshold in found.scores


def test_the_page_takes_no_other_place(
    copy: Path, ft: Callable, wrong: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it was begun")

    (copy / "letter.html").write_text("<p>Dear Ann</p>")
    (copy / "folder.html").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("facetrain.pipeline.report.read_run", never)
        for out, line in (
            (copy, f"{copy} is a folder: name a file"),
            (copy / "folder.html", "folder.html is a folder"),
            (copy / "page", "page does not end in .html or .htm"),
            (copy / "page.pdf", "page.pdf does not end in .html or .htm"),
            (copy / "letter.html", "letter.html is there already and is no report of facetrain"),
            (copy / "letter.html" / "page.html", "letter.html is no folder"),
        ):
            assert line in wrong(copy, "report", "first", "--out", out)
    assert (copy / "letter.html").read_text() == "<p>Dear Ann</p>"
    for _ in range(2):  # a report takes the place of a report
        ft(copy, "report", "first", "--out", copy / "PAGE.HTM", "-j", 1)
    default = copy / ".ft/runs/first/report.html"
    default.write_text("mine")
    assert "is no report of facetrain" in wrong(copy, "report", "first") and default.read_text() == "mine"


def test_several_runs_of_which_nothing_was_measured(copy: Path, ft: Callable) -> None:
    shutil.rmtree(copy / ".ft/runs/first/evaluation")
    text = report(ft, copy, "first", "second", "--with", copy / "other.json").text
    assert text.count("Nothing was measured of") == 1
    assert "Nothing was measured of first, second yet: ft evaluate RUN measures one" in text


def test_names_are_broken_where_they_can_be_read() -> None:
    assert breakable("a_b/Abdullah_Gul_0013.jpg") == (
        'a_<wbr>b/<wbr>Abdullah_<wbr>Gul_<wbr><span class="whole">0013.jpg</span>'
    )
    assert breakable("<x>/a-long-name&.jpeg") == (
        '&lt;x&gt;/<wbr>a-long-name&amp;<span class="whole">.jpeg</span>'
    )
    assert breakable("J. K. Rowling") == "J. K. Rowling"


def test_how_many_photographs_each(copy: Path, ft: Callable) -> None:
    text = report(ft, copy, "first").text
    assert "6 people with 5 to 5 photographs each, median 5" in text and "half of them" not in text


def test_many_runs(copy: Path, ft: Callable) -> None:
    names = [f"run{number}" for number in range(9)]
    for name in names:
        shutil.copytree(copy / ".ft/runs/first", copy / ".ft/runs" / name)
    page = report(ft, copy, *names)
    keys = [attrs["class"] for attrs in page.of("path") if attrs.get("d") == "M1 5H27"]
    assert len(set(keys)) == len(names)  # colour and dashes together
    assert all(page.text.count(name) > 5 for name in names)


def test_evaluations_of_older_versions_are_told(copy: Path, ft: Callable) -> None:
    file = copy / ".ft/runs/first/evaluation/validation.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in found.items() if name != "labels"}))
    page = report(ft, copy, "first")
    assert "is no evaluation as this version writes them: run ft evaluate again" in page.text


BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
HEADLESS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
]
HEADLESS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("width_px", [390, 1280])
def test_a_browser_draws_it_light_and_dark(copy: Path, ft: Callable, tmp_path: Path, width_px: int) -> None:
    """Light on dark or dark on light, and no wider than the window: its right edge is empty."""
    assert BROWSER is not None
    ft(copy, "report", "first", "--out", tmp_path / "page.html")
    for scheme, dark in (("0", True), ("1", False)):
        shot = tmp_path / f"{scheme}.png"
        looks = [f"--blink-settings=preferredColorScheme={scheme}", f"--window-size={width_px},900"]
        files = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}"]
        page = (tmp_path / "page.html").as_uri()
        subprocess.run(
            [BROWSER, *HEADLESS, *looks, *files, page], capture_output=True, timeout=120, check=True
        )
        pixels = np.asarray(Image.open(shot).convert("L"), float)
        assert pixels.shape[1] == width_px
        paper = float(np.median(pixels))
        assert paper < 60 if dark else paper > 200
        assert (np.abs(pixels - paper) > 100).mean() > 0.003, "there is text on it"
        below = pixels[260:, -3:]  # the list of sections: on a phone it is moved sideways
        assert (np.abs(below - paper) < 40).all(), "nothing is cut by the right edge"


def test_wrong_files_and_runs(copy: Path, wrong: Callable) -> None:
    assert "no run 'third': there are first, second" in wrong(copy, "report", "third")
    missing = copy / "none.json"
    assert f"cannot read {missing}: No such file" in wrong(copy, "report", "first", "--with", missing)
    (copy / "bad.json").write_text("[1,")
    line = wrong(copy, "report", "first", "--with", copy / "bad.json")
    assert "bad.json is no valid JSON" in line and "name a file that `ft evaluate` wrote" in line
    for text in ("[]", "{}", '{"labels": {"a": 1}, "values": {"a": "b"}}'):
        (copy / "bad.json").write_text(text)
        assert "is no evaluation as this version writes them" in wrong(
            copy, "report", "first", "--with", copy / "bad.json"
        )


def test_an_evaluation_is_read_whole(made: Path) -> None:
    file = made / ".ft/runs/first/evaluation/validation.json"
    found, said = read_evaluation(file), json.loads(file.read_text())
    assert dict(found.values) == said["values"] and found.epoch == said["network"]["epoch"] == 1
    assert found.threshold == np.median([t for t in said["thresholds"] if t is not None])
    trials = pq.read_table(file.with_name("validation.trials.parquet"))
    assert found.scores is not None and found.same is not None
    np.testing.assert_array_equal(found.scores, trials["score"].to_numpy())
    for same in (True, False):
        scores = sorted(
            (s for s, is_same in zip(found.scores, found.same, strict=True) if is_same == same),
            reverse=not same,
        )
        shown = [pair.score for pair in found.hardest if pair.same == same]
        assert shown == scores[:PAIRS_SHOWN] and shown
