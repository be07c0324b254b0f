"""Protocols measured while a network is trained: the settings `[[validate]]`, as a user writes them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from facetrain.config import train_config
from facetrain.datasets.synth import synthesise
from facetrain.errors import UserError
from facetrain.pipeline.validation import over_ranks
from facetrain.terminal import measured_texts

RANKS = 2
SMALL = ["--people", "4", "--images", "3", "-j", "1", "--set", "precision=fp32"]


def pairs_of(people: range) -> str:
    """Ten folds of LFW's format: person by person three pairs of one, and as many of two."""
    names = [f"person_{number:05d}" for number in people]
    lines = [f"{len(names)}\t2"]
    for i, name in enumerate(names):
        other = names[(i + 1) % len(names)]
        lines += [f"{name}\t{a}\t{a + 1}" for a in (1, 2)]
        lines += [f"{name}\t{a}\t{other}\t{a}" for a in (1, 2)]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that is split, with others' photographs beside it: ``others/`` and ``others/pairs.txt``."""
    from click.testing import CliRunner

    from facetrain.cli import main

    folder = tmp_path_factory.mktemp("validation")
    synthesise(folder / "raw", identities=8, images=5, seed=3)
    synthesise(folder / "others" / "images", identities=14, images=3, seed=4)
    (folder / "others" / "pairs.txt").write_text(pairs_of(range(9, 15)))
    (folder / "known.txt").write_text(pairs_of(range(1, 9)))
    for command in (["align", "raw", "aligned", "-j", "1"], ["prune", "--min", "2"], ["split", "0.3"]):
        arguments = [str(folder / word) if word in ("raw", "aligned") else word for word in command]
        assert CliRunner().invoke(main, ["-C", str(folder), *arguments]).exit_code == 0
    return folder


def config_file(work: Path, tmp_path: Path, text: str) -> Path:
    (tmp_path / "t.toml").write_text(text.replace("DATA", str(work / "others")))
    return tmp_path / "t.toml"


def rows_of(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_protocol_is_measured_as_the_command_measures_it(work: Path, ft: Callable, tmp_path: Path) -> None:
    """The checkpoint that is best by it is the best; its figures are those of `ft evaluate` on that checkpoint."""
    config = config_file(
        work,
        tmp_path,
        """
        epochs = 3
        batches_per_epoch = 4
        best = "lfw_auc"
        validation_pairs = 20
        [[validate]]
        protocol = "lfw"
        data = "DATA"
        flip = true
        every_steps = 3
        keep_scores = true
        """,
    )
    text = ft(work, "train", "--name", "by-lfw", "--config", config, *SMALL).output
    assert "step 3  lfw " in text and "validation " in text
    run = work / ".ft" / "runs" / "by-lfw"
    rows = rows_of(run)
    measured = {
        f"step-{int(row['step']):08d}" if row["kind"] == "validation" else f"epoch-{row['epoch']:0>4}": row
        for row in rows
        if row.get("lfw_auc")
    }
    assert list(measured) == ["step-00000003", "step-00000006", "step-00000009", "epoch-0003"]
    assert [bool(row["val_accuracy"]) for row in rows if row["kind"] == "epoch"] == [True] * 3
    aucs = {moment: float(row["lfw_auc"]) for moment, row in measured.items()}
    best = max(aucs, key=lambda moment: aucs[moment])
    checkpoints = run / "checkpoints"
    assert (checkpoints / "best.safetensors").samefile(checkpoints / f"{best}.safetensors")

    ft(work, "evaluate", "by-lfw", "--protocol", "lfw", "--data", work / "others", "--flip", "-j", 1)
    found = json.loads((run / "evaluation" / "lfw-others-flip.json").read_text())
    for figure in ("accuracy", "auc", "eer", "standard_error", "tar_at_far_0.1"):
        assert float(measured[best][f"lfw_{figure}"]) == pytest.approx(found["values"][figure], abs=1e-6), (
            figure
        )
    kept = pq.read_table(run / "validation" / "lfw" / f"{best}.trials.parquet")
    again = pq.read_table(run / "evaluation" / "lfw-others-flip.trials.parquet")
    assert kept.drop_columns("score") == again.drop_columns("score")
    np.testing.assert_allclose(kept["score"].to_numpy(), again["score"].to_numpy(), atol=1e-5)


def test_the_split_is_measured_when_it_is_asked_for(work: Path, ft: Callable, tmp_path: Path) -> None:
    config = config_file(
        work,
        tmp_path,
        'epochs = 3\nbatches_per_epoch = 2\n[[validate]]\nprotocol = "split"\nname = "mine"\nevery_epochs = 2\n'
        "[validate.protocol_args]\nnum_pairs = 20\n",
    )
    ft(work, "train", "--name", "mine", "--config", config, *SMALL)
    rows = rows_of(work / ".ft" / "runs" / "mine")
    assert "val_accuracy" not in rows[0]
    assert [bool(row["mine_accuracy"]) for row in rows if row["kind"] == "epoch"] == [False, True, True]


def test_people_that_are_trained_on_are_said(work: Path, ft: Callable, tmp_path: Path) -> None:
    args = f'protocol_args = {{pairs = "{work}/known.txt", images = "{work}/raw"}}'
    text = f'epochs = 1\nbatches_per_epoch = 1\n[[validate]]\nprotocol = "lfw"\ndata = "DATA"\n{args}\n'
    config = config_file(work, tmp_path, text)
    said = ft(
        work, "train", "--name", "known", "--config", config, *SMALL, "--set", "validation_pairs=0"
    ).output
    assert "of the 8 people of lfw are trained on (person_0000" in said
    run = work / ".ft" / "runs" / "known"
    assert {row["kind"] for row in rows_of(run)} == {"step", "epoch"}
    assert "val_accuracy" not in rows_of(run)[0] and float(rows_of(run)[-1]["lfw_accuracy"]) > 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[validate]]\nprotocol = "lfw"\nname = "val"\ndata = "DATA"\n', "two entries are called 'val'"),
        ('[[validate]]\nprotocol = "lfw"\nname = "train"\ndata = "DATA"\n', "cannot be called 'train'"),
        ('[[validate]]\nprotocol = "lfw"\ndata = "DATA"\nmulti = "skip"\n', "validate.0.multi = 'skip'"),
        ('[validate]\nprotocol = "lfw"\n', "write [[validate]], with two brackets"),
        ('[[validate]]\nprotocol = "lfw"\ndata = "DATA"\nprotocol_args = {data = "x"}\n', "'data' follows from"),
        ('[[validate]]\nprotocol = "lfw"\n', "lfw needs data, its folder"),
        ('[[validate]]\ndata = "DATA"\n', "split takes no data"),
        ('[[validate]]\nprotocol = "lwf"\ndata = "DATA"\n', "no 'lwf' among the protocols: did you mean 'lfw'?"),
        ('[[validate]]\nprotocol = "lfw"\ndata = "none"\n', "none: no such folder"),
        ('[[validate]]\nevery_epoch = 2\n', "no setting 'validate.0.every_epoch': there are protocol, data, "),
        ("[[validate]]\nevery_epochs = 1\nevery_steps = 1\n", "choose every_epochs or every_steps"),
        ("[[validate]]\n[[validate]]\n", "two entries are called 'val' (the split is 'val'): give them a name each"),
        ('[[validate]]\nname = "a b"\n', "string should match pattern"),
        ('[[validate]]\nprotocol_args = {pears = 3}\n', "protocol 'split' takes no 'pears'"),
        ('best = "lfw_accuracy"\n', "best = 'lfw_accuracy' is measured by nothing here: choose one of loss, last, val_"),
        ('[[validate]]\nprotocol = "lfw"\ndata = "DATA"\nprotocol_args = {view = "x"}\n', "view"),
    ],
)  # fmt: skip
def test_wrong_entries(work: Path, wrong: Callable, tmp_path: Path, text: str, says: str) -> None:
    line = wrong(work, "train", "--name", "no", "--config", config_file(work, tmp_path, text), *SMALL)
    assert says in line
    assert not (work / ".ft" / "runs" / "no").exists()


def test_what_is_said_of_a_figure() -> None:
    values = {
        "val_accuracy": 0.9,
        "val_standard_error": 0.01,
        "m_hter": 0.2,
        "lfw_accuracy": 0.8,
        "my-accuracy_eer": 0.3,
    }
    said = measured_texts(values, ["val_accuracy", "m_hter", "lfw_accuracy", "my-accuracy_eer"])
    assert said == ["validation 0.9000 ± 0.0100", "m hter 0.2000", "lfw 0.8000", "my-accuracy eer 0.3000"]


def test_files_are_found_wherever_a_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pairs.txt").touch()
    (tmp_path / "FF").mkdir()
    monkeypatch.chdir(tmp_path)
    entry = {
        "protocol": "lfw",
        "data": "set",
        "protocol_args": {"pairs": "pairs.txt", "kind": "FF", "view": 1},
    }
    (made,) = train_config({"validate": [entry]}).validation
    assert made.data == str(tmp_path / "set")
    assert made.protocol_args == {"pairs": str(tmp_path / "pairs.txt"), "kind": "FF", "view": 1}


def test_a_split_of_its_own_takes_the_place_of_the_usual_one() -> None:
    def names(**settings: object) -> list[str]:
        return [entry.prefix for entry in train_config(dict(settings)).validators]

    lfw = {"protocol": "lfw", "data": "x"}
    assert names() == ["val"]
    assert names(validate=[lfw]) == ["val", "lfw"]
    assert names(validate=[lfw], validation_pairs=0) == ["lfw"]
    assert names(validate=[lfw, {"protocol": "split", "name": "other"}]) == ["lfw", "other"]
    assert names(validate=[{"protocol": "my.module:MyProtocol", "data": "x"}], validation_pairs=0) == [
        "MyProtocol"
    ]
    with pytest.raises(UserError, match="two entries are called 'lfw'"):
        names(validate=[lfw, lfw])


def embedded(rows: np.ndarray) -> np.ndarray:
    """Of a row a vector that says which it is."""
    return np.stack([rows, rows**2, -rows], axis=1).astype(np.float32)


def rank(number: int, folder: str) -> None:
    """One process of RANKS; runs in a process of its own."""
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=number, world_size=RANKS)
    asked: list[np.ndarray] = []

    def embed(rows: np.ndarray) -> np.ndarray:
        asked.append(rows)
        return embedded(rows)

    found = [over_ranks(np.arange(3, 3 + count), embed) for count in (1, 2, 7)]
    torch.save(
        ([torch.from_numpy(part) for part in found], [len(rows) for rows in asked]), f"{folder}/{number}.pt"
    )
    dist.destroy_process_group()


def test_ranks_share_the_photographs(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(rank, (str(tmp_path),), nprocs=RANKS)  # type: ignore[attr-defined]
    for number in range(RANKS):
        found, asked = torch.load(tmp_path / f"{number}.pt")
        assert asked == [1, 1, 4], "each its share"
        for part, count in zip(found, (1, 2, 7), strict=True):
            np.testing.assert_array_equal(part, embedded(np.arange(3, 3 + count)))
    np.testing.assert_array_equal(over_ranks(np.arange(5), embedded), embedded(np.arange(5)))
