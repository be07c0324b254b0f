"""The loader: the cache's pixels in the sampler's order, whatever the shards, the threads and where it begins."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from facetrain.batch import Batch
from facetrain.datasets.cache import shards
from facetrain.datasets.cache.manifest import read_manifest
from facetrain.datasets.loader import TrainingBatches, gathered, in_order, plain_batches
from facetrain.datasets.photo_set import Memory, PhotoSet, select_rows
from facetrain.datasets.samplers import Draw, PeopleSampler, ShuffledSampler
from facetrain.index import read_index
from facetrain.workspace import Workspace

CPU = torch.device("cpu")
ROW_BYTES = 32 * 32 * 3


def photos_of(root: Path, ft: Callable) -> PhotoSet:
    ft(root, "cache")
    store = Workspace.find(root).dataset().folder
    index, manifest = read_index(store), read_manifest(store)
    assert manifest is not None
    return PhotoSet(index, manifest, root / ".ft" / "cache", select_rows(index, None))


@pytest.fixture
def photos(root: Path, ft: Callable) -> PhotoSet:
    return photos_of(root, ft)


def people(photos: PhotoSet, **options: int) -> PeopleSampler:
    return PeopleSampler(photos.labels, seed=0, people_per_batch=3, images_per_person=2, **options)


def training(photos: PhotoSet, threads: int = 1, augment: float = 1.0, **options: int) -> TrainingBatches:
    return TrainingBatches(
        photos, people(photos, **options), seed=0, augment=augment, threads=threads, device=CPU
    )


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images)
        and torch.equal(x.labels, y.labels)
        and torch.equal(x.rows, y.rows)
        and x.num_anchors == y.num_anchors
        for x, y in zip(a, b, strict=True)
    )


class TestGathered:
    @pytest.mark.parametrize("threads", [1, 2, 5])
    def test_pixels_as_they_lie_in_the_cache(self, photos: PhotoSet, threads: int) -> None:
        everything = photos.gather(np.arange(len(photos)))
        seen = []
        sampler = ShuffledSampler(photos.labels, seed=3, batch_size=7)
        for draw, images in gathered(photos, sampler.epoch(0), threads):
            assert (images.dtype, images.shape) == (np.uint8, (len(draw.positions), 32, 32, 3))
            np.testing.assert_array_equal(images, everything[draw.positions])
            seen += draw.positions.tolist()
        assert sorted(seen) == list(range(30)), "every row once an epoch"

    def test_its_memory_is_used_again(self, photos: PhotoSet) -> None:
        sampler = ShuffledSampler(photos.labels, seed=3, batch_size=3)
        places = {images.ctypes.data for _, images in gathered(photos, sampler.epoch(0), 1)}
        assert len(places) < len(sampler)

    def test_into_memory_that_is_there(self, photos: PhotoSet) -> None:
        out = np.zeros((4, 32, 32, 3), np.uint8)
        positions = np.array([5, 0, 29, 5])
        assert photos.gather(positions, out) is out
        np.testing.assert_array_equal(out, photos.gather(positions))


class TestTrainingBatches:
    def test_contract(self, photos: PhotoSet) -> None:
        batches = training(photos, extra_negatives=2)
        made = list(batches.epoch(0))
        assert len(made) == len(batches) == 5
        for batch in made:
            n = len(batch.rows)
            assert batch.images.dtype == torch.float32
            assert batch.images.shape == (n, 3, 32, 32)
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert batch.labels.dtype == batch.rows.dtype == torch.int64
            assert batch.num_anchors == 6 <= n <= 8
            assert batch.images.abs().max() <= 1

    def test_strength_zero_is_the_crop_or_its_mirror_image_scaled(self, photos: PhotoSet) -> None:
        where = {row: position for position, row in enumerate(photos.rows.tolist())}
        for batch in training(photos, augment=0).epoch(0):
            positions = np.array([where[row] for row in batch.rows.tolist()])
            assert batch.labels.tolist() == photos.labels[positions].tolist()
            for image, pixels in zip(batch.images, photos.gather(positions), strict=True):
                expected = (torch.from_numpy(pixels).permute(2, 0, 1).double() - 127.5) / 128
                assert any(torch.allclose(image.double(), x, atol=1e-6) for x in (expected, expected.flip(2)))

    def test_seed_epoch_and_position_decide(self, photos: PhotoSet) -> None:
        first = list(training(photos).epoch(1))
        assert same(first, list(training(photos).epoch(1)))
        assert same(first, list(training(photos, threads=4).epoch(1))), "threads change nothing"
        used = training(photos)
        list(used.epoch(0))
        assert same(first, list(used.epoch(1))), "nor what came before"
        assert not same(first, list(training(photos).epoch(2)))

    def test_resumed_at_any_batch(self, photos: PhotoSet) -> None:
        whole = list(training(photos, extra_negatives=2).epoch(3))
        for start in range(len(whole) + 1):
            assert same(whole[start:], list(training(photos, extra_negatives=2).epoch(3, start)))

    def test_the_size_of_the_shards_changes_nothing(
        self, photos: PhotoSet, root: Path, ft: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = list(training(photos).epoch(0))
        store = Workspace.find(root).dataset().folder
        assert (manifest := read_manifest(store)) is not None
        assert len(manifest.shards) == 1
        monkeypatch.setattr(shards, "SHARD_BYTES", 8 * ROW_BYTES)
        others = photos_of(root, ft)
        assert (manifest := read_manifest(store)) is not None
        assert len(manifest.shards) >= 4
        assert same(expected, list(training(others).epoch(0)))

    def test_leaving_an_epoch_early_leaves_no_thread(self, photos: PhotoSet) -> None:
        before = threading.active_count()
        batches = training(photos, threads=3).epoch(0)
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        deadline = time.monotonic() + 20
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.01)  # the one that reads ahead may still be at work
        assert threading.active_count() <= before


LEAVES_EARLY = """
import sys
from pathlib import Path

import numpy as np

from facetrain.datasets.cache.manifest import read_manifest
from facetrain.datasets.loader import gathered
from facetrain.datasets.photo_set import PhotoSet, select_rows
from facetrain.datasets.samplers import Draw
from facetrain.index import read_index
from facetrain.workspace import Workspace

root = Path(sys.argv[1])
store = Workspace.find(root).dataset().folder
index = read_index(store)
photos = PhotoSet(index, read_manifest(store), root / ".ft" / "cache", select_rows(index, None))
draws = (Draw(np.random.default_rng(i).integers(0, 30, 20000), 20000) for i in range(10**6))
for batch in gathered(photos, draws, 2):
    break
kept = gathered(photos, draws, 2)
next(kept)
"""


def test_a_program_that_ends_while_batches_are_made_ends_well(root: Path, ft: Callable) -> None:
    ft(root, "cache")
    done = subprocess.run([sys.executable, "-c", LEAVES_EARLY, str(root)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_augmentation_follows_from_seed_epoch_and_position(photos: PhotoSet) -> None:
    """Not from the photographs: the same ones, drawn at each position of each epoch, come out otherwise each time."""

    class SameEveryTime:
        max_batch = 8

        def __len__(self) -> int:
            return 2

        def epoch(self, epoch: int, start: int = 0) -> Iterator[Draw]:
            return (Draw(np.arange(8), 8) for _ in range(start, 2))

    def images(seed: int, epoch: int) -> list[torch.Tensor]:
        batches = TrainingBatches(photos, SameEveryTime(), seed=seed, augment=1, threads=2, device=CPU)
        return [batch.images for batch in batches.epoch(epoch)]

    seen = [*images(0, 0), *images(0, 1), *images(1, 0)]
    for i, one in enumerate(seen):
        for other in seen[i + 1 :]:
            assert not torch.equal(one, other)


def test_of_what_does_not_fit_into_memory_each_batch_is_asked_for(
    photos: PhotoSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(photos.shards, "will_need", lambda slots: asked.extend(slots.tolist()))
    photos.gather(np.arange(5))
    assert asked == []
    photos.shards.read_ahead(fits=False)
    photos.gather(np.arange(5))
    assert asked == photos._slot[:5].tolist()


def test_labels_are_counted_among_the_anchors(photos: PhotoSet) -> None:
    """For the triplet loss, which would have to ask the GPU for it."""
    shuffled = ShuffledSampler(photos.labels, seed=3, batch_size=7)
    for sampler in (people(photos, extra_negatives=9), shuffled):
        batches = TrainingBatches(photos, sampler, seed=0, augment=0.0, threads=1, device=CPU)
        for batch in batches.epoch(0):
            assert batch.most_alike == torch.bincount(batch.labels[: batch.num_anchors]).max()


def test_plain_batches_are_all_images_in_order(photos: PhotoSet) -> None:
    for threads in (1, 3):
        batches = list(plain_batches(photos, CPU, batch_size=8, threads=threads))
        assert [len(batch) for batch in batches] == [8, 8, 8, 6]
        pixels = (torch.cat(batches) * 128 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
        np.testing.assert_array_equal(pixels.numpy(), photos.gather(np.arange(30)))


class TestInOrder:
    @pytest.mark.parametrize("threads", [1, 2, 8])
    def test_order_and_how_far_ahead(self, threads: int) -> None:
        asked = 0

        def items() -> Iterator[int]:
            nonlocal asked
            while asked < 100:
                asked += 1
                yield asked

        def slow_at_first(item: int) -> int:
            time.sleep(0.01 if item < 5 else 0)
            return item

        for number, made in enumerate(in_order(slow_at_first, items(), threads), start=1):
            assert made == number
            assert asked <= number + 2 * threads
        assert asked == 100

    def test_an_error_comes_in_its_turn(self) -> None:
        def make(item: int) -> int:
            if item == 3:
                raise KeyError(item)
            return item

        made = in_order(make, range(10), 4)
        assert [next(made) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(KeyError):
            next(made)

    def test_nothing(self) -> None:
        assert list(in_order(str, [], 2)) == []


def test_memory_is_lent_once_until_it_is_back() -> None:
    memory = Memory((2, 2, 3))
    a, b = memory.take(4), memory.take(4)
    assert not np.shares_memory(a, b)
    memory.give_back(a)
    assert np.shares_memory(memory.take(3), a), "a smaller batch lies in a larger one's memory"
    assert not np.shares_memory(memory.take(3), a)
    memory.give_back(b[:1])
    assert np.shares_memory(memory.take(4), b), "all of it comes back"
    memory.give_back(memory.take(2))
    assert memory.take(9).shape == (9, 2, 2, 3)
