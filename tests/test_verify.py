"""`ft cache --verify`: no flipped bit escapes it, it names the file, and what it advises brings every byte back."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from facetrain import tables
from facetrain.cli import main
from facetrain.image_spec import ImageSpec
from facetrain.pipeline import checking, data
from facetrain.preprocess.aligner import AlignSettings
from facetrain.workspace import Workspace

pytestmark = pytest.mark.usefixtures("in_process", "small_shards")

MADE_AGAIN = ("cache.arrow", "cached.arrow", "crops.files.arrow", "shard")
LOST = ("rows.arrow", "kept.arrow", "split.arrow")


@pytest.fixture
def finished(root: Path, ft: Callable) -> Path:
    """A workspace in which every stage has run."""
    ft(root, "prune", "--min", 2)
    ft(root, "split", 0.3, "--seed", 3)
    ft(root, "cache", "-j", 1)
    assert len(list((root / ".ft" / "cache").iterdir())) > 1
    return root


def store_of(root: Path) -> Path:
    return Workspace.find(root).dataset().folder


def file_of(root: Path, name: str) -> Path:
    return min((root / ".ft" / "cache").iterdir()) if name == "shard" else store_of(root) / name


def arrow_files(root: Path) -> list[Path]:
    return sorted((root / ".ft").rglob("*.arrow"))


def state(root: Path) -> dict[str, object]:
    """Every byte that the stages made; of the file tables what does not tell when and where a file lay."""
    found: dict[str, object] = {}
    for path in arrow_files(root):
        if path.name.endswith(".files.arrow"):
            found[path.name] = pa.ipc.open_file(path).read_all().select(["path", "content"]).to_pydict()
        else:
            found[path.name] = path.read_bytes()
    found |= {str(path): path.read_bytes() for path in (root / "aligned").rglob("*.jpg")}
    return found


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def verify(root: Path) -> Result:
    result = CliRunner().invoke(main, ["-C", str(root), "cache", "--verify", "-j", "1"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (0, 2), result.output
    if result.exit_code == 2:
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1
    return result


def named(root: Path, result: Result) -> set[str]:
    """The Arrow files that a result names."""
    names = {path.name for path in arrow_files(root)} | {
        file for file in result.output.split() if "/" in file
    }
    return {path for path in names if Path(path).name in result.output and path.endswith(".arrow")}


def damaged_lines(result: Result) -> list[str]:
    return [line for line in result.stdout.splitlines() if line.startswith("damaged")]


def positions_in(path: Path, seed: int, count: int) -> Iterator[tuple[int, int]]:
    """(position, bit): the first and last bytes, and some between."""
    size = path.stat().st_size
    rng = np.random.default_rng(seed)
    inside = rng.integers(0, size, count).tolist()
    for position in (0, size - 1, *inside):
        yield position, int(rng.integers(8))


def follow(root: Path, ft: Callable, message: str) -> None:
    """Do what the line says, and nothing else."""
    for path in re.findall(r"(\S+) is damaged: remove it and run", message):
        Path(path).unlink()
    for command in re.findall(r"run `ft (.*?)`", message):
        ft(root, *shlex.split(command))


@pytest.mark.parametrize("name", [*MADE_AGAIN, "raw.files.arrow", *LOST])
def test_no_flipped_bit_escapes(finished: Path, name: str) -> None:
    path = file_of(finished, name)
    whole = path.read_bytes()
    assert tables.is_intact(path)
    for position, bit in positions_in(path, 1, 150):
        flip(path, position, bit)
        assert not tables.is_intact(path), (position, bit)
        path.write_bytes(whole)
    for size in (0, 1, 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert not tables.is_intact(path), size
    path.write_bytes(whole + b"\0")
    assert not tables.is_intact(path)


@pytest.mark.parametrize("name", MADE_AGAIN)
def test_what_the_cache_makes_it_makes_again(finished: Path, name: str) -> None:
    path, before = file_of(finished, name), state(finished)
    assert damaged_lines(verify(finished)) == []
    for position, bit in positions_in(path, 2, 4):
        flip(path, position, bit)
        result = verify(finished)
        assert damaged_lines(result) == [f"damaged, and made again now: {path.name}"], (position, bit)
        assert state(finished) == before
    assert damaged_lines(verify(finished)) == []


@pytest.mark.parametrize("name", LOST)
def test_what_it_cannot_make_it_says_how_to(finished: Path, ft: Callable, name: str) -> None:
    path, before = file_of(finished, name), state(finished)
    for position, bit in positions_in(path, 3, 1 if name == "rows.arrow" else 3):
        flip(path, position, bit)
        result = verify(finished)
        assert result.exit_code == 2
        assert f"{path} is damaged: " in result.stderr
        assert [file for file in arrow_files(finished) if file.name in result.stderr] == [path]
        follow(finished, ft, result.stderr)
        assert damaged_lines(verify(finished)) == []
        assert state(finished) == before


def test_hashes_of_photographs_are_made_again_by_align(finished: Path, ft: Callable) -> None:
    path, before = store_of(finished) / "raw.files.arrow", state(finished)
    flip(path, 700, 3)
    assert damaged_lines(verify(finished)) == [
        "damaged, and made again by the next `ft align`: raw.files.arrow"
    ]
    assert not path.exists()
    ft(finished, "align", finished / "raw", finished / "aligned", "--size", 32)
    assert state(finished) == before


def test_all_that_is_damaged_is_named_at_once(finished: Path, ft: Callable) -> None:
    before = state(finished)
    for name in ("split.arrow", "kept.arrow", "cached.arrow", "shard"):
        flip(file_of(finished, name), 400, 0)
    shard = file_of(finished, "shard").name
    said = verify(finished).stderr
    store = store_of(finished)
    assert f"{store / 'kept.arrow'} is damaged: run `ft prune --min 2`" in said
    assert f"{store / 'split.arrow'} is damaged: run `ft split 0.3 --seed 3`" in said
    assert f"also damaged, and made again by the next `ft cache`: cached.arrow, {shard}" in said
    follow(finished, ft, said.partition("; also damaged")[0])
    ft(finished, "cache", "-j", 1)
    assert state(finished) == before
    assert damaged_lines(verify(finished)) == []


def test_the_list_of_the_undecodable_is_made_again(finished: Path, ft: Callable) -> None:
    (finished / "aligned" / "ann" / "1.jpg").write_bytes(b"no picture")
    assert "crops that cannot be decoded, left out: 1, see" in ft(finished, "cache", "-j", 1).stdout
    path = store_of(finished) / "undecodable.arrow"
    before, whole = path.read_bytes(), state(finished)
    for command in (["cache", "--verify"], ["cache"]):
        flip(path, len(before) // 2, 5)
        assert damaged_lines(ft(finished, *command)) == ["damaged, and made again now: undecodable.arrow"]
        assert state(finished) == whole


def test_crops_other_than_align_wrote_them_are_counted(finished: Path, ft: Callable) -> None:
    crop, before = finished / "aligned" / "bob" / "2.jpg", state(finished)
    Image.open(crop).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(crop)
    assert "1 crop changed since they were aligned" in verify(finished).stdout
    assert "1 crop changed since they were aligned" in ft(finished, "cache", "-j", 1).stdout
    ft(finished, "align", finished / "raw", finished / "aligned", "--size", 32)
    assert "changed" not in ft(finished, "cache", "-j", 1).stdout
    ft(finished, "cache", "--gc")
    assert state(finished) == before


def test_crops_that_went_bad_behind_the_back_of_their_times(finished: Path, ft: Callable) -> None:
    """A flip on the disk shows in no time of the file: the table of crops is believed, unless one verifies."""
    table = store_of(finished) / "crops.files.arrow"
    known = tables.read_table(table)
    crop = finished / "aligned" / "bob" / "2.jpg"
    flip(crop, crop.stat().st_size // 2, 0)
    found = crop.stat()
    row = known["path"].to_pylist().index("bob/2.jpg")
    columns = {
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
        "inode": found.st_ino,
        "hashed_ns": found.st_ctime_ns + 10**10,
    }
    for name, value in columns.items():
        number = known.schema.get_field_index(name)
        values = known[name].to_pylist()
        values[row] = value
        known = known.set_column(number, known.field(number), pa.array(values, known.field(number).type))
    tables.write_table(table, known)
    assert "changed" not in ft(finished, "cache", "-j", 1).stdout
    assert "1 crop changed since they were aligned" in verify(finished).stdout


@pytest.mark.parametrize("name", MADE_AGAIN[:3])
def test_every_cache_reads_its_own_tables_whole(
    finished: Path, ft: Callable, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Those too that are too large to be checked whenever they are read."""
    monkeypatch.setattr(tables, "CHECKED_BYTES", 0)
    path, before = file_of(finished, name), state(finished)
    flip(path, path.stat().st_size // 2, 1)
    assert damaged_lines(ft(finished, "cache", "-j", 1)) == [f"damaged, and made again now: {name}"]
    assert state(finished) == before


def test_without_its_list_all_shards_are_checked(finished: Path) -> None:
    before = state(finished)
    flip(file_of(finished, "cache.arrow"), 500, 2)
    shard = file_of(finished, "shard")
    flip(shard, shard.stat().st_size // 2, 2)
    assert damaged_lines(verify(finished)) == [
        "damaged, and made again now: cache.arrow",
        f"damaged, and made again now: {shard.name}",
    ]
    assert state(finished) == before


@pytest.mark.parametrize("stage", ["align", "prune", "split", "cache"])
def test_damaged_records(finished: Path, ft: Callable, stage: str) -> None:
    """No flip in a record is a crash; one that cannot be read, or is another output's, is named with the command."""
    path, before = store_of(finished) / "stages" / f"{stage}.json", state(finished)
    whole = path.read_bytes()
    for position, bit in positions_in(path, 4, 4):
        flip(path, position, bit)
        result = verify(finished)
        if result.exit_code == 2:
            assert f"{path} is damaged: " in result.stderr
        path.write_bytes(whole)
    record = json.loads(whole)
    for broken in (b"", whole[:-20], json.dumps(record | {"output": "0" * 64}).encode()):
        path.write_bytes(broken)
        result = verify(finished)
        if stage == "cache":
            assert result.exit_code == 0
        else:
            assert f"{path} is damaged: " in result.stderr
            if "--min N" not in result.stderr and "ft split`" not in result.stderr:
                follow(finished, ft, result.stderr)
            else:
                ft(finished, *(["prune", "--min", 2] if stage == "prune" else ["split", 0.3, "--seed", 3]))
        again = json.loads(path.read_text())
        same = ("stage", "parameters", "inputs", "output", "counts", "version")
        assert [again[name] for name in same] == [record[name] for name in same]
        assert verify(finished).exit_code == 0
        assert state(finished) == before


def test_a_record_of_other_settings_than_the_rows(finished: Path, ft: Callable) -> None:
    path = store_of(finished) / "stages" / "align.json"
    record = json.loads(path.read_text())
    record["parameters"]["spec"]["size_px"] = 96
    path.write_text(json.dumps(record))
    said = verify(finished).stderr
    assert f"{path} is damaged: remove it and run `ft align " in said
    assert "--size 32" in said
    follow(finished, ft, said)
    assert json.loads(path.read_text())["parameters"]["spec"]["size_px"] == 32
    assert verify(finished).exit_code == 0


def test_where_the_crops_lie_is_checked(finished: Path, ft: Callable) -> None:
    path = store_of(finished) / "dataset.json"
    whole = path.read_text()
    path.write_text(whole.replace("aligned", "alignad").replace('"alignad"', '"aligned"', 1))
    said = verify(finished).stderr
    assert f"{path} is damaged: run `ft align " in said
    ft(finished, "align", finished / "raw", finished / "aligned", "--size", 32)
    assert path.read_text() == whole


def test_a_dataset_that_cannot_be_read_at_all_is_made_known_again(finished: Path, ft: Callable) -> None:
    path = store_of(finished) / "dataset.json"
    whole = path.read_text()
    crops = {p: p.stat().st_mtime_ns for p in (finished / "aligned").rglob("*.jpg")}
    path.write_text("{")
    said = verify(finished).stderr
    assert "is no dataset of this workspace" in said
    assert "run `ft align` again" in said
    ft(finished, "align", finished / "raw", finished / "aligned", "--size", 32)
    assert path.read_text() == whole
    assert {p: p.stat().st_mtime_ns for p in (finished / "aligned").rglob("*.jpg")} == crops, (
        "none was made again"
    )


def test_crops_made_elsewhere(root: Path, ft: Callable) -> None:
    """Their rows are indexed again, with what was declared of them."""
    (root / "aligned" / "imagespec.json").unlink()
    shutil.rmtree(root / ".ft")
    ft(root, "index", root / "aligned", "--size", 32, "--landmarks", "other", "--detector", "our own")
    ft(root, "cache", "-j", 1)
    before = state(root)
    flip(store_of(root) / "rows.arrow", 900, 0)
    said = verify(root).stderr
    assert "--size 32 --landmarks other --detector 'our own'" in said
    follow(root, ft, said)
    assert state(root) == before


@pytest.mark.parametrize(
    "settings",
    [
        AlignSettings(ImageSpec()),
        AlignSettings(ImageSpec(size_px=112, landmarks="outer-eyes-nose", format="png", quality=0), "skip"),
        AlignSettings(ImageSpec(landmarks="inner-eyes-bottom-lip", predictor=68, quality=80), "centre"),
        AlignSettings(ImageSpec(landmarks="outer-eyes-nose", predictor=68), max_pixels=50_000_000),
    ],
)
def test_the_command_advised_has_the_settings_of_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: AlignSettings
) -> None:
    asked: list[AlignSettings] = []

    class Stop(Exception):
        pass

    def align(workspace: Workspace, raw: Path, aligned: Path, settings: AlignSettings, **how: object) -> None:
        asked.append(settings)
        raise Stop

    monkeypatch.setattr(data, "align", align)
    words = checking._options(settings.to_dict(), "align")
    with pytest.raises(Stop):
        CliRunner().invoke(
            main, ["-C", str(tmp_path), "align", "raw", "aligned", *words], catch_exceptions=False
        )
    assert asked == [settings]
