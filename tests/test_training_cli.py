"""Training and measuring as a user does: commands on real files, drawn for the test."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from facetrain.cli import main
from facetrain.datasets.synth import synthesise
from facetrain.image_spec import ImageSpec

PEOPLE, IMAGES = 8, 5
SMALL = ["--epochs", "2", "--people", "4", "--images", "3", "-j", "1", "--set", "validation_pairs=20"]


def ft(workspace: Path, *arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["-C", str(workspace), *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs") / "raw"
    synthesise(folder, identities=PEOPLE, images=IMAGES, seed=3)
    return folder


@pytest.fixture(scope="session")
def trained(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after the five commands. Tests may add to it, and must not change what is there."""
    workspace = tmp_path_factory.mktemp("workspace")
    ft(workspace, "align", str(raw), str(workspace / "aligned"), "-j", "1")
    ft(workspace, "prune", "--min", "2")
    ft(workspace, "split", "0.3")
    ft(workspace, "train", "--name", "first", *SMALL)
    return workspace


def test_a_run_holds_what_it_should(trained: Path) -> None:
    run = trained / ".ft" / "runs" / "first"
    config = json.loads((run / "config.json").read_text())
    assert config["config"]["epochs"] == 2
    assert config["config"]["trainer_args"] == {"people": 4, "images": 3}
    people = (run / "people.txt").read_text().splitlines()
    assert config["people"] == len(people) < PEOPLE
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "best.safetensors",
        "epoch-0001.safetensors",
        "epoch-0002.safetensors",
    ]
    text = ft(trained, "status").output
    assert "first" in text
    assert "2 of 2 epochs" in text


def test_evaluate_and_plot(trained: Path) -> None:
    text = ft(trained, "evaluate", "first").output
    run = trained / ".ft" / "runs" / "first"
    written = json.loads((run / "evaluation" / "validation.json").read_text())
    assert f"{written['accuracy_mean']:.4f}" in text
    assert 0.3 <= written["accuracy_mean"] <= 1
    assert written["network"]["backbone"] == "iresnet.small"
    found = written["retrieval"]
    assert 0 < found["map_at_r"] <= found["r_precision"] <= 1 and found["queries_without_mate"] == 0
    assert re.search(rf"MAP@R +{found['map_at_r']:.4f}", text)
    assert (run / "evaluation" / "validation.png").stat().st_size > 5000
    as_json = json.loads(ft(trained, "evaluate", "first", "--json").stdout)
    assert as_json["accuracy_mean"] == written["accuracy_mean"], "the same pairs, the same figures"
    ft(trained, "plot-loss", "first")
    assert (run / "loss.png").is_file()
    assert (run / "loss.svg").is_file()


def write_pairs(path: Path, raw: Path) -> list[tuple[str, int, str, int]]:
    """Two folds of four and four pairs over everybody."""
    people = sorted(folder.name for folder in raw.iterdir() if folder.is_dir())
    lines, pairs = ["2\t4"], []
    for fold in range(2):
        for i in range(4):
            person = people[4 * fold + i]
            lines.append(f"{person}\t1\t{2 + fold}")
            pairs.append((person, 1, person, 2 + fold))
        for i in range(4):
            one, other = people[i], people[(i + 1 + fold) % len(people)]
            lines.append(f"{one}\t2\t{other}\t3")
            pairs.append((one, 2, other, 3))
    path.write_text("\n".join(lines) + "\n")
    return pairs


def test_pairs_on_raw_and_on_aligned_photographs_agree(trained: Path, raw: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.txt", raw)
    how = ["evaluate", "first", "--pairs", str(tmp_path / "pairs.txt"), "-j", "1"]
    text = ft(
        trained, *how, "--images", str(raw), "--multi", "largest", "--out", str(tmp_path / "raw")
    ).output
    assert "were trained on" in text
    ft(trained, *how, "--images", str(trained / "aligned"), "--out", str(tmp_path / "aligned"))
    results = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("raw", "aligned")]
    for key in ("accuracy_mean", "accuracies", "auc", "eer", "photographs_without_face"):
        assert results[0][key] == results[1][key]
    assert results[0]["same_pairs"] == 8


def test_a_photograph_without_a_face_is_counted_and_refused(trained: Path, raw: Path, tmp_path: Path) -> None:
    import shutil

    import cv2

    photographs = tmp_path / "photographs"
    shutil.copytree(raw, photographs)
    write_pairs(tmp_path / "pairs.txt", raw)
    first = sorted(folder for folder in photographs.iterdir() if folder.is_dir())[0]
    cv2.imwrite(str(first / f"{first.name}_0001.jpg"), np.full((250, 250, 3), 128, np.uint8))
    how = [
        "evaluate",
        "first",
        "--pairs",
        str(tmp_path / "pairs.txt"),
        "--images",
        str(photographs),
        "-j",
        "1",
    ]
    text = ft(trained, *how, "--out", str(tmp_path / "refused")).output
    assert "have no face that was found" in text
    refused = json.loads((tmp_path / "refused.json").read_text())
    assert refused["photographs_without_face"] >= 1
    assert refused["refused_same_pairs"] >= 1
    ft(trained, *how, "--no-face", "drop", "--out", str(tmp_path / "dropped"))
    dropped = json.loads((tmp_path / "dropped.json").read_text())
    assert dropped["pairs_dropped"] >= 1
    assert dropped["same_pairs"] + dropped["different_pairs"] == 16 - dropped["pairs_dropped"]


def test_crops_of_another_kind_are_refused_by_name(trained: Path, raw: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "imagespec.json").write_text(ImageSpec(size_px=112).to_json())
    write_pairs(tmp_path / "pairs.txt", raw)
    how = ["evaluate", "first", "--pairs", str(tmp_path / "pairs.txt"), "--images", str(other)]
    text = ft(trained, *how, code=2).output
    assert text.startswith("Error: ")
    assert "size_px 96 against 112" in text


@pytest.mark.parametrize(
    "extra", [["--extra-negatives", "6"], ["--backbone", "nn4.small2", "--augment", "0"]]
)
def test_other_settings_train_too(trained: Path, extra: list[str]) -> None:
    name = extra[0].strip("-")
    ft(trained, "train", "--name", name, *SMALL, "--epochs", "1", *extra)
    assert (trained / ".ft" / "runs" / name / "checkpoints" / "epoch-0001.safetensors").is_file()


def test_what_is_said_of_the_network_reaches_it(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch import nn

    from facetrain.train import activation_checkpointing, loop

    seen: list[nn.Module] = []
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    step = loop._Run._step
    monkeypatch.setattr(
        loop._Run, "_step", lambda self, batch: (seen.append(self.backbone), step(self, batch))[1]
    )
    settings = [*SMALL, "--epochs", "1", "--batches-per-epoch", "1"]
    ft(trained, "train", "--name", "usual", *settings)
    asked = ["channels_last=false", "compile=true", "checkpoint_activations=true"]
    ft(trained, "train", "--name", "unusual", *settings, *(x for name in asked for x in ("--set", name)))

    def blocks(network: nn.Module) -> int:
        return sum(isinstance(m, activation_checkpointing._Recomputed) for m in network.modules())

    usual, unusual = seen
    assert compiled == [unusual]
    assert (blocks(usual), blocks(unusual)) == (0, 6)
    weights = [network.stages[0][0].residual[1].weight for network in seen]
    assert [w.is_contiguous() for w in weights] == [False, True]


@pytest.mark.parametrize(
    "settings",
    [
        ["--trainer", "arcface", "--loss", "curricularface", "--batch-size", "16"],
        ["--trainer", "softmax", "--set", "average=0.9", "--batch-size", "8"],
        ["--trainer", "metric", "--loss", "circle"],
        ["--miner", "batch-hard", "--set", "trainer_args.soft_margin=true"],
        ["--trainer", "simclr", "--batch-size", "8"],
        ["--trainer", "semi-siamese"],
    ],
    ids=lambda settings: settings[1],
)
def test_every_trainer_trains_is_drawn_and_measured(trained: Path, settings: list[str]) -> None:
    name = f"every-{settings[1]}"
    short = ["--epochs", "1", "-j", "1", "--set", "validation_pairs=20"]
    ft(trained, "train", "--name", name, *short, *settings)
    ft(trained, "plot-loss", name)
    assert (trained / ".ft" / "runs" / name / "loss.png").stat().st_size > 5000
    assert "accuracy" in ft(trained, "evaluate", name).output


def test_a_configuration_file_is_obeyed(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        'backbone = "iresnet.small"\nembedding_dim = 32\nepochs = 5\nvalidation_pairs = 20\n'
        "[trainer_args]\npeople = 4\nimages = 2\n"
    )
    ft(
        trained,
        "train",
        "--name",
        "toml",
        "--config",
        str(tmp_path / "run.toml"),
        "--epochs",
        "1",
        "--images",
        "3",
    )
    config = json.loads((trained / ".ft" / "runs" / "toml" / "config.json").read_text())["config"]
    assert (config["embedding_dim"], config["epochs"]) == (32, 1)
    assert config["trainer_args"] == {"people": 4, "images": 3}


def test_a_run_that_diverged_is_not_advised_to_go_on(trained: Path) -> None:
    ft(trained, "train", "--name", "wild", *SMALL, "--epochs", "1", "--set", "schedule=constant")
    config = trained / ".ft" / "runs" / "wild" / "config.json"
    facts = json.loads(config.read_text())
    facts["config"] |= {"epochs": 3, "lr": 1e30}
    config.write_text(json.dumps(facts))
    assert "ft train --resume wild" in ft(trained, "status").output
    text = ft(trained, "train", "--resume", code=2).output
    assert "no longer a number" in text and "lower --lr" in text
    text = ft(trained, "status").output
    assert "diverged" in text and "--resume wild" not in text
    text = ft(trained, "train", "--resume", code=2).output
    assert "no run to resume" in text and "wild" not in text


def test_training_without_validation(trained: Path) -> None:
    text = ft(trained, "train", "--name", "blind", *SMALL, "--set", "validation_pairs=0").output
    assert "best checkpoint" in text and "validation" not in text
    metrics = (trained / ".ft" / "runs" / "blind" / "metrics.csv").read_text()
    assert "val_accuracy" not in metrics
    text = ft(trained, "train", *SMALL, "--set", "validation_pairs=5", code=2).output
    assert "validation_pairs = 5: choose 20 or more" in text


def test_ctrl_c_and_resume(trained: Path) -> None:
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "facetrain.cli", "-C", str(trained)]
    settings = ["--name", "stopped", *SMALL, "--epochs", "40", "--batches-per-epoch", "10"]
    log = trained / "stopped.log"
    with open(log, "w") as file:
        process = subprocess.Popen([*command, "train", *settings], stderr=file, stdout=file, env=environment)
        metrics = trained / ".ft" / "runs" / "stopped" / "metrics.csv"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (metrics.is_file() and metrics.read_text().count("\n") > 2):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, log.read_text()
    assert "ft train --resume stopped" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert "unfinished" in ft(trained, "status").output
    text = ft(trained, "train", "--resume", "stopped", "--epochs", "3", code=2).output
    assert "keeps its settings" in text
    # Shorten what is left, so that the test ends: the loop reads the run's own configuration.
    config = trained / ".ft" / "runs" / "stopped" / "config.json"
    facts = json.loads(config.read_text())
    done = len(list((config.parent / "checkpoints").glob("epoch-*")))
    facts["config"]["epochs"] = done + 1
    config.write_text(json.dumps(facts))
    ft(trained, "train", "--resume", "stopped")
    assert (config.parent / "checkpoints" / f"epoch-{done + 1:04d}.safetensors").is_file()
    assert "has finished" in ft(trained, "train", "--resume", "stopped", code=2).output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--name", "first"], "there is a run 'first'"),
        (["train", "--name", "a/b"], "cannot name a run"),
        (["train", "--backbone", "iresnet.smal"], "did you mean 'iresnet.small'"),
        (["train", "--trainer", "triplets"], "did you mean 'triplet'"),
        (["train", "--loss", "cosface"], "--loss cosface needs a trainer that takes one: --trainer arcface"),
        (["train", "--trainer", "arcface", "--set", "trainer_args.loss_args=5"], "should be of type table"),
        (
            ["train", "--trainer", "arcface", "--loss", "torch.nn:CrossEntropyLoss"],
            "it makes a CrossEntropyLoss",
        ),
        (["train", "--miner", "builtins:object"], "'builtins:object' cannot be used as a miner"),
        (["train", "--backbone", "torch.nn:Identity"], "not embeddings [1, 128]"),
        (
            ["train", "--trainer", "arcface", "--batch-size", "1"],
            "1 photographs in a batch: choose 2 or more",
        ),
        (["train", "--trainer", "arcface", "--batch-size", "0"], "0 photographs in a batch"),
        (
            ["train", "--trainer", "simclr", "--loss", "arcface"],
            "'arcface' cannot be used here: it needs num_classes",
        ),
        (["train", "--trainer", "arcface", "--loss", "arcfase"], "did you mean 'arcface'"),
        (["train", "--trainer", "arcface", "--set", "trainer_args.loss_args.margin=1"], "takes no 'margin'"),
        (["train", "--trainer", "arcface", "--set", "trainer_args.loss_args.scale=-1"], "scale = -1"),
        (["train", "--miner", "hardes"], "did you mean 'hardest'"),
        (["train", "--preset", "lfw-gpu"], "did you mean 'lfw-cpu'"),
        (["train", "--backbone", "timm/resnet19"], "timm/resnet18"),
        (["train", "--backbone", "timm/vit_tiny_patch16_224", "--set", "backbone_args.patch_size=7"], "7 px"),
        (["train", "--trainer", "no.such:thing"], "cannot load no.such:thing"),
        (["train", "--set", "trainer_args.peple=3"], "takes no 'peple'"),
        (["train", "--set", "trainer_args.people=2.5"], "should be of type int"),
        (["train", "--set", "trainer_args.margin=foo"], "should be of type float"),
        (["train", "--set", "trainer=3", "--set", "trainer.x=2"], "holds no settings"),
        (["train", "--trainer", ":"], "cannot load"),
        (["train", "--backbone", "os:getcwd"], "cannot be used"),
        (["train", "--device", "meta"], "device"),
        (["train", "--set", "lr=1e999"], "lr"),
        (["train", "--set", "learning_rate=3"], "no setting 'learning_rate'"),
        (["train", "--set", "lr"], "NAME=VALUE"),
        (["train", "--lr", "-1"], "lr = -1.0"),
        (["train", "--margin", "9"], "margin"),
        (["train", "--people", "1"], "people in a batch: at least 2 are needed"),
        (["train", "--images", "1"], "photographs of a person in a batch"),
        (["train", "--augment", "9"], "augment"),
        (["train", "--device", "cuda:77"], "device"),
        (["train", "--config", "nothing.toml"], "cannot read"),
        (["train", "--resume", "nobody"], "no run 'nobody'"),
        (["evaluate", "nobody"], "nobody"),
        (["evaluate", "--pairs", "x.txt"], "go together"),
        (["evaluate", "first", "--pairs", "x.txt", "--images", "nowhere"], "x.txt"),
        (["plot-loss", "nobody"], "no run 'nobody'"),
    ],
)
def test_wrong_use_is_one_line(trained: Path, arguments: list[str], words: str) -> None:
    result = ft(trained, *arguments, code=2)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.output
    assert lines[0].startswith("Error: ")
    assert words in lines[0]
    runs = {path.name for path in (trained / ".ft" / "runs").iterdir()}
    assert not any(name.startswith("triplet-") for name in runs), "a refused training leaves no run behind"


def test_the_defaults_in_the_help_are_the_configurations() -> None:
    import inspect

    from facetrain.config import TrainConfig
    from facetrain.train.trainers.classification import ClassificationTrainer
    from facetrain.train.trainers.triplet import TripletTrainer

    trainer = {
        name: p.default
        for part in (ClassificationTrainer, TripletTrainer)
        for name, p in inspect.signature(part).parameters.items()
    }
    config = {name: field.default for name, field in TrainConfig.model_fields.items()}
    for option in main.commands["train"].params:
        text = getattr(option, "help", None) or ""
        if "[default: " in text:
            said = text.split("[default: ")[1].rstrip("]")
            assert option.name is not None
            expected = config[option.name] if option.name in config else trainer[option.name]
            assert said == (expected if isinstance(expected, str) else f"{expected:g}"), option.name


@pytest.fixture
def stopped(trained: Path, tmp_path: Path) -> Path:
    """A copy of the workspace with a run "half" that has one of its two epochs behind it."""
    root = tmp_path / "workspace"
    shutil.copytree(trained, root)
    log = root / "log"
    process = training(root, "half", log)
    while process.poll() is None and "epoch 1/400" not in log.read_text():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    return root


def training(root: Path, name: str, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "facetrain.cli", "-C", str(root), "train", "--name", name]
    with open(log, "w") as out:
        return subprocess.Popen([*command, *SMALL, "--epochs", "400"], stdout=out, stderr=out)


def test_a_run_goes_on_only_on_the_same_crops(stopped: Path) -> None:
    people = (stopped / ".ft" / "runs" / "half" / "people.txt").read_text().splitlines()
    crops = sorted((stopped / "aligned" / people[0]).iterdir())
    for crop in crops:
        crop.unlink()
    text = ft(stopped, "train", "--resume", "half", code=2).output
    assert "run 'half' was started on other crops" in text
    assert text.count("Error:") == 1


def test_a_training_keeps_its_shards_from_being_dropped(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    shutil.copytree(trained, root)
    log = root / "log"
    process = training(root, "long", log)
    try:
        while process.poll() is None and "epoch 1/400" not in log.read_text():
            time.sleep(0.02)
        before = {path.name for path in (root / ".ft" / "cache").iterdir()}
        crop = next(path for path in sorted((root / "aligned").rglob("*.jpg")))
        crop.unlink()
        ft(root, "cache", "-j", "1")
        text = ft(root, "cache", "--gc").output
        assert before <= {path.name for path in (root / ".ft" / "cache").iterdir()}
        assert "run 'long'" in text
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    ft(root, "cache", "--gc")
    assert not before <= {path.name for path in (root / ".ft" / "cache").iterdir()}
