"""Small trees of drawn photographs, and the means to run commands on them. Nothing here needs a network or a GPU."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from click.testing import CliRunner, Result

# Test processes share the cores: threads that wait for each other by spinning would make them ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test asks a network. Packages that could read this when they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"

# Triton kernels run on the processor where there is no GPU: asked when they are imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Installed, and run, by test_third_party.py; not collected from where it lies.
collect_ignore = ["third_party"]

# Tests are no place for timings: a busy machine is no failure.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")

PEOPLE, IMAGES = 6, 5


# What a camera held at each EXIF orientation stores, from the upright picture.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, drawn once: ``ann … fay`` with ``1.jpg … 5.jpg`` each. Not to be changed."""
    from facetrain.datasets.synth import synthesise

    folder = tmp_path_factory.mktemp("drawn")
    synthesise(folder / "synth", identities=PEOPLE, images=IMAGES, seed=7)
    for name, person in zip(
        ("ann", "bob", "cat", "dan", "eve", "fay"), people_of(folder / "synth"), strict=True
    ):
        (folder / "raw" / name).mkdir(parents=True)
        for number, photograph in enumerate(sorted(person.iterdir()), start=1):
            photograph.rename(folder / "raw" / name / f"{number}.jpg")
    return folder / "raw"


def people_of(tree: Path) -> list[Path]:
    return sorted(path for path in tree.iterdir() if path.is_dir())


@pytest.fixture
def raw(drawn: Path, tmp_path: Path) -> Path:
    """A copy of the drawn photographs, to be changed at will: ``tmp_path / "raw"``."""
    shutil.copytree(drawn, tmp_path / "raw")
    return tmp_path / "raw"


@pytest.fixture
def one_person(drawn: Path, tmp_path: Path) -> Path:
    """The same with two photographs of ann and one of bob only: ``tmp_path / "raw"``."""
    for path in ("ann/1.jpg", "ann/2.jpg", "bob/1.jpg"):
        (tmp_path / "raw" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(drawn / path, tmp_path / "raw" / path)
    return tmp_path / "raw"


class InProcess(concurrent.futures.Executor):
    """An executor that does the work at once, in this process: worker processes take a second to start."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Align without worker processes."""
    monkeypatch.setattr("facetrain.preprocess.row_update.process_pool", lambda jobs: InProcess())


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of two people of `root`, whose crops are of 32 pixels."""
    monkeypatch.setattr("facetrain.datasets.cache.shards.SHARD_BYTES", 12 * 32 * 32 * 3)


@pytest.fixture(scope="session")
def aligned_once(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with ``raw/`` and ``aligned/`` in it, after `ft align`. Not to be changed."""
    root = tmp_path_factory.mktemp("aligned")
    shutil.copytree(drawn, root / "raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("facetrain.preprocess.row_update.process_pool", lambda jobs: InProcess())
        run(root, "align", root / "raw", root / "aligned", "--size", 32)
    return root


@pytest.fixture
def root(aligned_once: Path, tmp_path: Path) -> Path:
    """A copy of that workspace, to be changed at will; further aligns in it run in this process."""
    shutil.copytree(aligned_once, tmp_path / "root")
    return tmp_path / "root"


def run(root: Path, *arguments: object, code: int = 0) -> Result:
    from facetrain.cli import main

    result = CliRunner().invoke(main, ["-C", str(root), *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def ft() -> Callable[..., Result]:
    """``ft(root, "prune", "--min", 2, code=0)``: run a command in the workspace ``root``, as a user does."""
    return run


@pytest.fixture
def wrong() -> Callable[..., str]:
    """``wrong(root, "prune")``: the command must fail with one clear line on stderr, which is returned."""

    def run_wrong(root: Path, *arguments: object) -> str:
        result = run(root, *arguments, code=2)
        assert result.stdout == ""
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        assert result.stderr.endswith("\n")
        return result.stderr

    return run_wrong
