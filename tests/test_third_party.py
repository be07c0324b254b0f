"""A package from outside, tests/third_party: installed by pip, found by name, trained, resumed, measured, checked.

It is the package of docs/how-to/write-a-plug-in.md, to the letter.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

HERE = Path(__file__).parent / "third_party"
PAGE = HERE.parent.parent / "docs" / "how-to" / "write-a-plug-in.md"
FILES = sorted(
    path.relative_to(HERE).as_posix()
    for path in HERE.rglob("*")
    if path.suffix in (".py", ".toml") and path.name != "conftest.py"
)
SMALL = ["--epochs", 1, "--backbone", "depthwise", "--embedding-dim", 16, "--augment", 0, "--device", "cpu"]
SMALL += ["-j", 1, "--set", "validation_pairs=20", "--set", "schedule=constant", "--set", "precision=fp32"]

# Runs several commands in one process, which takes seconds to import what they need.
SCRIPT = """
import json, sys
from click.testing import CliRunner
from facetrain.cli import main
results = []
for arguments in json.load(sys.stdin):
    result = CliRunner().invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    results.append([result.exit_code, result.stdout, result.stderr])
json.dump(results, sys.stdout)
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package; a build leaves files behind."""
    folder = tmp_path_factory.mktemp("third_party") / "package"
    shutil.copytree(HERE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def site(package: Path) -> Path:
    """A folder that the package is installed in: to be put on PYTHONPATH."""
    folder = package.parent / "site"
    how = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *how, "--target", str(folder), str(package)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def python(site: Path, *arguments: str, cwd: Path, stdin: str = "") -> str:
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ft(site: Path, root: Path, *commands: list[object]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each command, where the package is installed."""
    todo = json.dumps([["-C", str(root), *map(str, command)] for command in commands])
    return [tuple(result) for result in json.loads(python(site, "-c", SCRIPT, cwd=root, stdin=todo))]


def train(name: str, *more: object) -> list[object]:
    return ["train", "--name", name, *SMALL, *more]


def settings(root: Path, run: str) -> dict[str, object]:
    return json.loads((root / ".ft" / "runs" / run / "config.json").read_text())["config"]


def test_its_parts_are_trained_by_name(site: Path, root: Path, wrong: Callable[..., str]) -> None:
    center = ["--trainer", "center", "--set", "trainer_args.batch_size=6"]
    (root / "raw" / "threes.txt").write_text("ann/1.jpg ann/2.jpg bob/1.jpg\nbob/1.jpg bob/2.jpg cat/1.jpg\n")
    results = ft(
        site,
        root,
        ["split", 0.4],
        train("straight", *center, "--epochs", 2),
        train("resumed", *center),
        train("loss", "--trainer", "softmax", "--loss", "proxy-nca", "--set", "trainer_args.batch_size=6"),
        train("miner", "--trainer", "triplet", "--miner", "distance-weighted", "--people", 3, "--images", 2),
        train("full", "--trainer", "small_parts.trainer:CenterTrainer", "--set", "trainer_args.batch_size=6"),
        train("typo", "--backbone", "depthwide"),
        train("argument", "--set", "backbone_args.widht=8"),
        ["evaluate", "straight", "--json"],
        ["evaluate", "straight", "--protocol", "odd-one-out", "--data", root / "raw", "-j", 1],
    )
    assert [code for code, _, _ in results] == [0, 0, 0, 0, 0, 0, 2, 2, 0, 0], results
    assert settings(root, "loss")["trainer_args"] == {"loss": "proxy-nca", "batch_size": 6}
    assert settings(root, "miner")["trainer_args"]["miner"] == "distance-weighted"  # type: ignore[index]
    header = (root / ".ft" / "runs" / "straight" / "metrics.csv").read_text().splitlines()[0]
    assert "distance_centre" in header.split(",")
    assert "did you mean 'depthwise'?" in results[6][2]
    assert "backbone 'depthwise' takes no 'widht': it takes width" in results[7][2]
    measured = json.loads(results[8][1])
    assert measured["network"]["backbone"] == "depthwise"
    assert 0 <= measured["accuracy_mean"] <= 1
    assert re.search(r"odd one found +[01]\.\d{4}\n +threes +2\n", results[9][1])

    # A run that was to have one epoch gets a second one: as the run that had two from the start.
    config = root / ".ft" / "runs" / "resumed" / "config.json"
    facts = json.loads(config.read_text())
    facts["config"]["epochs"] = 2
    config.write_text(json.dumps(facts))
    ((code, _, text),) = ft(site, root, ["train", "--resume", "resumed", "-j", 1])
    assert code == 0, text
    straight, resumed = (
        load_file(root / ".ft" / "runs" / run / "checkpoints" / "epoch-0002.safetensors")
        for run in ("straight", "resumed")
    )
    assert straight.keys() == resumed.keys()
    assert all((straight[name] == resumed[name]).all() for name in straight)

    # Here, where it is not installed, its network is not known.
    assert "no 'depthwise' among the backbones" in wrong(root, "evaluate", "straight")


def test_its_own_tests_hold_it_to_the_contracts(site: Path, package: Path, tmp_path: Path) -> None:
    shutil.copy(package / "test_small_parts.py", tmp_path)
    text = python(
        site, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(tmp_path), cwd=tmp_path
    )
    assert re.search(r"\b6 passed", text), text


@pytest.mark.parametrize("file", FILES)
def test_the_page_shows_it_to_the_letter(file: str) -> None:
    language = {".py": "python", ".toml": "toml"}[Path(file).suffix]
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert (HERE / file).read_text() in blocks


def test_the_page_shows_nothing_else() -> None:
    blocks = re.findall(r"^```(?:python|toml)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert sorted(blocks) == sorted((HERE / file).read_text() for file in FILES)


def test_what_the_page_says_of_a_forgotten_batch() -> None:
    from facetrain.testing import check_loss

    code = (HERE / "small_parts" / "loss.py").read_text()
    assert "max(len(labels), 1)" in code
    names: dict[str, object] = {}
    exec(compile(code.replace("max(len(labels), 1)", "len(labels)"), "loss.py", "exec"), names)
    with pytest.raises(AssertionError) as error:
        check_loss(names["ProxyNCA"])  # type: ignore[arg-type]
    said = re.findall(r"^```text\n(.*?)\n```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert said == [str(error.value)]
