"""The loader on an NVIDIA GPU: the same batches as on the processor. Needs DALI; skipped where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("nvidia.dali")

from facetrain.datasets.cache.manifest import read_manifest
from facetrain.datasets.loader import TrainingBatches, plain_batches
from facetrain.datasets.photo_set import PhotoSet, select_rows
from facetrain.datasets.samplers import PeopleSampler
from facetrain.index import read_index
from facetrain.workspace import Workspace

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")]


@pytest.fixture
def photos(drawn: Path, tmp_path: Path, ft: Callable) -> PhotoSet:
    """The drawn photographs as crops: needs no face detector."""
    from PIL import Image

    for path in drawn.glob("*/*.jpg"):
        crop = tmp_path / "crops" / path.parent.name / path.name
        crop.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("RGB").resize((64, 64)).save(crop, quality=95)
    ft(tmp_path, "index", tmp_path / "crops", "--size", 64)
    ft(tmp_path, "cache", "--device", "cpu")
    store = Workspace.find(tmp_path).dataset().folder
    index, manifest = read_index(store), read_manifest(store)
    assert manifest is not None
    return PhotoSet(index, manifest, tmp_path / ".ft" / "cache", select_rows(index, None))


def batches(photos: PhotoSet, device: str, augment: float, threads: int = 2) -> TrainingBatches:
    sampler = PeopleSampler(photos.labels, seed=0, people_per_batch=3, images_per_person=3)
    return TrainingBatches(
        photos, sampler, seed=0, augment=augment, threads=threads, device=torch.device(device)
    )


def test_plain_batches_are_those_of_the_cpu(photos: PhotoSet) -> None:
    on_cpu = plain_batches(photos, torch.device("cpu"), batch_size=7)
    on_gpu = plain_batches(photos, torch.device("cuda"), batch_size=7, threads=2)
    for expected, found in zip(on_cpu, on_gpu, strict=True):
        assert found.device.type == "cuda"
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(expected, found.cpu())


@pytest.mark.parametrize(("augment", "mean"), [(0, 0.0), (1, 0.02)])
def test_training_batches_are_about_those_of_the_cpu(photos: PhotoSet, augment: float, mean: float) -> None:
    for expected, found in zip(
        batches(photos, "cpu", augment).epoch(0), batches(photos, "cuda", augment).epoch(0), strict=True
    ):
        assert torch.equal(expected.labels, found.labels.cpu())
        assert torch.equal(expected.rows, found.rows.cpu())
        assert (expected.images - found.images.cpu()).abs().mean() <= mean


def test_they_are_the_same_at_every_run_and_from_the_middle(photos: PhotoSet) -> None:
    whole = [batch.images for batch in batches(photos, "cuda", 1).epoch(3)]
    again = [batch.images for batch in batches(photos, "cuda", 1, threads=1).epoch(3, 1)]
    assert len(whole) == len(again) + 1 >= 3
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], again, strict=True))


def test_a_batch_stays_as_it_is_while_others_come(photos: PhotoSet) -> None:
    kept = []
    for batch in batches(photos, "cuda", 1).epoch(0):
        kept.append((batch.images, batch.images.clone()))
    assert all(torch.equal(a, b) for a, b in kept)
