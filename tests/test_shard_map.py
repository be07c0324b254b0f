"""All shards as one array: every image where it is said to be, nothing copied, damage told before it is touched."""

from __future__ import annotations

import gc
import mmap
import os
import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facetrain.datasets import shard_map
from facetrain.datasets.cache import shards
from facetrain.datasets.cache.shards import DecodeSpec, write_shard
from facetrain.datasets.shard_map import ShardMap
from facetrain.errors import UserError


def write(
    folder: Path, counts: list[int], size_px: int, seed: int = 0
) -> tuple[list[Path], list[np.ndarray]]:
    """Shards of so many random images each."""
    rng = np.random.default_rng(seed)
    spec = DecodeSpec(size_px, "RGB")
    paths, images = [], []
    for number, count in enumerate(counts):
        paths.append(folder / f"{number}.arrow")
        images.append(rng.integers(0, 256, (count, size_px, size_px, 3), np.uint8))
        write_shard(
            paths[-1], spec, images[-1], [bytes([i % 256] * 32) for i in range(count)], ["ann"] * count
        )
    return paths, images


def rows_of(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(shard, row, pixels) of every image, one after another."""
    shard = np.repeat(np.arange(len(images)), [len(part) for part in images])
    row = np.concatenate([np.arange(len(part)) for part in images])
    return shard, row, np.concatenate([part.reshape(len(part), -1) for part in images])


def maps_of(folder: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(folder))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    size_px=st.sampled_from([1, 2, 7, 16, 31, 32, 48]),
    batch_rows=st.sampled_from([3, 17, 10**9]),
)
def test_every_image_lies_where_it_is_said_to(
    counts: list[int], size_px: int, batch_rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:  # several record batches, as a huge shard has
        patch.setattr(shards, "MAX_BATCH_VALUES", batch_rows * size_px * size_px * 3)
        paths, images = write(folder, counts, size_px)
    mapped = ShardMap(paths, size_px * size_px * 3)
    shard, row, pixels = rows_of(images)
    slots = mapped.slots(shard, row)
    assert slots.dtype == np.int64
    assert len(set(slots.tolist())) == len(slots)
    np.testing.assert_array_equal(np.take(mapped.images, slots, axis=0), pixels)
    assert mapped.nbytes == pixels.nbytes


def test_nothing_is_copied_and_nothing_can_be_written(tmp_path: Path) -> None:
    paths, images = write(tmp_path, [5], 32)
    mapped = ShardMap(paths, 32 * 32 * 3)
    assert maps_of(tmp_path) == 1
    assert not mapped.images.flags.writeable
    with open(paths[0], "r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        at = data.find(images[0][3].tobytes()[:64])
        data[at] ^= 255
    changed = mapped.images[mapped.slots(np.array([0]), np.array([3]))[0]]
    assert changed[0] == images[0][3].reshape(-1)[0] ^ 255


def test_the_map_outlives_the_files_and_goes_with_its_last_user(tmp_path: Path) -> None:
    paths, images = write(tmp_path, [5, 3], 32)
    mapped = ShardMap(paths, 32 * 32 * 3)
    slot = mapped.slots(np.array([1]), np.array([2]))
    for path in paths:
        path.unlink()
    view = mapped.images[int(slot[0])]
    del mapped
    gc.collect()
    np.testing.assert_array_equal(view, images[1][2].reshape(-1))
    assert maps_of(tmp_path) == 2
    del view
    gc.collect()
    assert maps_of(tmp_path) == 0


def test_no_file_stays_open(tmp_path: Path) -> None:
    paths, _ = write(tmp_path, [2] * 5, 16)
    before = len(os.listdir("/proc/self/fd"))
    mapped = ShardMap(paths, 16 * 16 * 3)
    assert len(os.listdir("/proc/self/fd")) == before, "a large set would need more than a process may have"
    assert len(mapped.images)


@pytest.mark.parametrize("fits", [True, False])
def test_reading_ahead_changes_nothing(tmp_path: Path, fits: bool) -> None:
    paths, images = write(tmp_path, [30, 7, 30], 32)
    shard, row, pixels = rows_of(images)
    mapped = ShardMap(paths, 32 * 32 * 3)
    mapped.read_ahead(fits=fits)
    mapped.read_ahead()
    assert mapped.fits == fits, "it is done once"
    slots = mapped.slots(shard, row)
    mapped.will_need(slots)
    mapped.will_need(slots[:0])
    np.testing.assert_array_equal(np.take(mapped.images, slots, axis=0), pixels)


def test_whether_it_fits_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, images = write(tmp_path, [30], 32)
    for available, fits in ((2 * images[0].nbytes, True), (images[0].nbytes, False)):
        monkeypatch.setattr(shard_map, "_available_bytes", lambda available=available: available)
        mapped = ShardMap(paths, 32 * 32 * 3)
        mapped.read_ahead()
        assert mapped.fits == fits
    monkeypatch.undo()
    assert 2**20 < shard_map._available_bytes() < 2**45


def test_a_limit_on_addresses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, _ = write(tmp_path, [2000], 32)
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + 5_000_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be mapped: .* too few addresses .*: raise the limit"):
            ShardMap(paths, 32 * 32 * 3)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_mapping_for_each_shard_and_no_more(tmp_path: Path) -> None:
    """The kernel allows 65,530 of them."""
    paths, images = write(tmp_path, [3, 5, 1, 7, 2, 11, 4, 9], 31)
    before = len(Path("/proc/self/maps").read_text().splitlines())
    mapped = ShardMap(paths, 31 * 31 * 3)
    gc.collect()
    assert len(Path("/proc/self/maps").read_text().splitlines()) <= before + len(paths) + 2
    mapped.read_ahead(fits=True)
    shard, row, pixels = rows_of(images)
    np.testing.assert_array_equal(np.take(mapped.images, mapped.slots(shard, row), axis=0), pixels)


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/user/job_3/step_0", "user/job_3/memory.max"),
        ("0::/user/job_3/step_0", "memory.max"),
        ("9:cpu:/x\n4:memory:/user/job_3", "memory/user/job_3/memory.limit_in_bytes"),
        ("4:cpu,memory:/user/job_3/a/b", "memory/user/memory.limit_in_bytes"),
    ],
)
def test_limits_of_control_groups(tmp_path: Path, line: str, file: str) -> None:
    """A job's limit often stands at a group above the process's own."""
    (tmp_path / "cgroup").write_text(f"{line}\n")
    (tmp_path / "fs" / file).parent.mkdir(parents=True)
    (tmp_path / "fs" / file).write_text("4000000\n")
    (tmp_path / "fs" / "user").mkdir(exist_ok=True)
    (tmp_path / "fs" / "user" / "memory.max").write_text("max\n")
    assert list(shard_map._group_limits(tmp_path / "cgroup", tmp_path / "fs")) == [4_000_000]
    assert list(shard_map._group_limits(tmp_path / "none", tmp_path / "fs")) == []


def test_no_shards() -> None:
    mapped = ShardMap([], 12)
    nothing = np.zeros(0, np.int64)
    assert np.take(mapped.images, mapped.slots(nothing, nothing), axis=0).shape == (0, 12)
    assert mapped.nbytes == 0


class TestWrongFiles:
    def message(self, paths: list[Path]) -> str:
        with pytest.raises(UserError) as error:
            ShardMap(paths, 32 * 32 * 3)
        assert "\n" not in str(error.value)
        return str(error.value)

    def test_gone(self, tmp_path: Path) -> None:
        paths, _ = write(tmp_path, [2, 2], 32)
        paths[1].unlink()
        assert self.message(paths) == f"{paths[1]} is gone: `ft cache` makes it again"

    @pytest.mark.parametrize("keep", [0, 10, 5000, -1])
    def test_cut_short(self, tmp_path: Path, keep: int) -> None:
        paths, _ = write(tmp_path, [2, 2], 32)
        os.truncate(paths[0], keep if keep >= 0 else paths[0].stat().st_size - 1)
        assert f"{paths[0]} is damaged" in self.message(paths)

    def test_of_other_images(self, tmp_path: Path) -> None:
        paths, _ = write(tmp_path, [2], 16)
        assert "no shard of this version" in self.message(paths)

    def test_pixels_that_do_not_begin_at_a_page(self, tmp_path: Path) -> None:
        image = pa.fixed_shape_tensor(pa.uint8(), [32, 32, 3])
        values = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(3072, np.uint8)), 3072)
        table = pa.table({"image": pa.ExtensionArray.from_storage(image, values)})
        with pa.ipc.new_file(str(tmp_path / "old.arrow"), table.schema) as writer:
            writer.write_table(table)
        assert "no shard of this version" in self.message([tmp_path / "old.arrow"])
