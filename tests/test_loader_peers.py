"""The peers of the loader benchmark, at a tiny size: those that tests have are measured, the others say why not."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "loader_peers.py"
spec = importlib.util.spec_from_file_location("loader_peers", SCRIPT)
assert spec is not None
assert spec.loader is not None
loader_peers = importlib.util.module_from_spec(spec)
sys.modules["loader_peers"] = loader_peers  # dataclasses look their module up
spec.loader.exec_module(loader_peers)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> object:
    return loader_peers.write_source(tmp_path_factory.mktemp("peers") / "source", 300, size_px=16)


def test_a_source_holds_the_same_crops_twice(source: object, tmp_path: Path) -> None:
    from PIL import Image

    assert len(source) == len(source.files) == len(source.labels) == 300
    assert source.labels[:11] == [0] * 10 + [1]
    np.testing.assert_array_equal(source.pixels[17], np.asarray(Image.open(source.files[17])))
    own = loader_peers.write_source(tmp_path / "own", 20, source.folder / "crops")
    np.testing.assert_array_equal(own.pixels, source.pixels[:20])


def test_peers_are_measured_or_say_why_not(tmp_path: Path) -> None:
    names = ["np-take", "webdataset-pil", "ffcv-raw"]
    command = [sys.executable, str(SCRIPT), *names, "--images", "300", "--size", "16", "--json"]
    command += ["--workers", "0", "--epochs", "1", "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {row["peer"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert list(rows) == names
    for name in names[:-1]:
        assert "skipped" not in rows[name], rows[name]
        assert rows[name]["images"] == 300
        assert rows[name]["images_per_s"] > 0
    ffcv = rows["ffcv-raw"]
    assert "images_per_s" in ffcv or ffcv["skipped"] == "not installed"


def test_an_interpreter_that_is_not_there(source: object, tmp_path: Path) -> None:
    found = loader_peers.run("np-take", source, tmp_path, workers=1, pythons=[str(tmp_path / "python")])
    assert found["skipped"] == f"no interpreter {tmp_path / 'python'}"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda pixels: [pixels], "not shuffled"),
        (lambda pixels: [pixels[::-1][:200]], "200 images of 300"),
        (lambda pixels: [pixels[::-1].astype(np.float32)], "batches are float32"),
        (lambda pixels: [pixels[::-1].transpose(0, 3, 1, 2)], "batches are uint8"),
        (lambda pixels: [255 - pixels[::-1] // 2], "other images"),
    ],
)
def test_what_a_peer_gives_is_checked(source: object, wrong: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        loader_peers._check(iter(wrong(np.asarray(source.pixels))), source)


def test_what_is_right_passes(source: object) -> None:
    order = np.random.default_rng(3).permutation(300)
    loader_peers._check(iter([source.pixels[order[:256]], source.pixels[order[256:]]]), source)
