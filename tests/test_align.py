"""Aligning a tree: what becomes of every photograph, and what a second run does and does not do again."""

from __future__ import annotations

import csv
import io
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
from blake3 import blake3
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from facetrain.errors import SpecMismatch, UserError
from facetrain.file_table import FileTable, file_system_now_ns, walk
from facetrain.files import TEMP_PREFIX
from facetrain.image_spec import ImageSpec
from facetrain.index import ROWS, STATUSES
from facetrain.preprocess import align_tree as align_tree_module
from facetrain.preprocess import aligner, detectors
from facetrain.preprocess import row_update as module
from facetrain.preprocess.align_tree import align_tree, folded
from facetrain.preprocess.aligner import AlignSettings, crop_path, identity_of
from facetrain.preprocess.crop import crop_transform, template_landmarks
from facetrain.preprocess.journal import JOURNAL, Journal
from facetrain.preprocess.row_update import UpdateReport, Work
from facetrain.tables import read_table

SPEC = ImageSpec(size_px=64, landmarks="outer-eyes-nose", predictor=5)
SETTINGS = AlignSettings(SPEC)

pytestmark = pytest.mark.usefixtures("in_process")


@dataclass(frozen=True)
class Report(UpdateReport):
    """All that an align reports, in one place."""

    ignored: dict[str, int]
    alike: list[tuple[str, ...]]


def align(root: Path, settings: AlignSettings = SETTINGS, **options: object) -> Report:
    (root / "store").mkdir(exist_ok=True)
    how = {name: options.pop(name) for name in ("jobs", "pool", "on_progress") if name in options}
    report = align_tree(
        root / "raw",
        root / "aligned",
        root / "store",
        settings,
        Work(**how),
        **options,  # type: ignore[arg-type]
    )
    return Report(**vars(report.rows), ignored=report.ignored, alike=report.alike)


def rows(root: Path) -> dict[str, dict]:
    table = read_table(root / "store" / "rows.arrow")
    assert table.schema.equals(ROWS)
    assert table["path"].to_pylist() == sorted(table["path"].to_pylist())
    return {row["path"]: row for row in table.to_pylist()}


def statuses(root: Path) -> dict[str, str]:
    return {path: row["status"] for path, row in rows(root).items()}


def state(root: Path) -> dict[str, bytes]:
    """What two runs that come to the same must agree on: the rows, the list of rejects, every file under ALIGNED."""
    files = [*(root / "aligned").rglob("*"), root / "store" / "rows.arrow", root / "store" / "rejected.csv"]
    return {str(path.relative_to(root)): path.read_bytes() for path in files if path.is_file()}


def times(root: Path) -> dict[str, int]:
    files = [*(root / "aligned").rglob("*"), root / "store" / "rows.arrow"]
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in files if path.is_file()}


def faceless(path: Path, seed: int = 0) -> None:
    """A photograph of nobody: a sky with a gradient."""
    y, x = np.mgrid[0:120, 0:160]
    pixels = np.stack([80 + x // 2, 120 + y // 2, np.full_like(x, 200 - seed)], -1).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def detected(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the photographs in which faces were looked for, from now on."""
    seen: list[tuple[int, ...]] = []
    real = detectors.HogDetector.__call__

    def look(self: detectors.HogDetector, images: list[np.ndarray]) -> list:
        seen.extend(image.shape for image in images)
        return real(self, images)

    monkeypatch.setattr(detectors.HogDetector, "__call__", look)
    return seen


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The photographs that are read, from now on."""
    seen: list[Path] = []
    real = aligner.read_whole

    def read_whole(path: Path) -> object:
        seen.append(path)
        return real(path)

    monkeypatch.setattr(aligner, "read_whole", read_whole)
    return seen


@pytest.fixture
def a_minute_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs that are there now will be old enough to be trusted by what `stat` says."""
    for place in (module, __import__("facetrain.file_table", fromlist=["x"])):
        monkeypatch.setattr(
            place, "file_system_now_ns", lambda folder: file_system_now_ns(folder) + 60 * 10**9
        )


class TestWhatARowHolds:
    @pytest.fixture
    def root(self, raw: Path) -> Path:
        report = align(raw.parent)
        assert report.looked_at == 30
        assert report.counts["aligned"] >= 28, "the drawn faces are found"
        return raw.parent

    def test_the_photograph(self, root: Path) -> None:
        table = rows(root)
        assert list(table) == [
            f"{name}/{i}.jpg" for name in ("ann", "bob", "cat", "dan", "eve", "fay") for i in range(1, 6)
        ]
        for path, row in table.items():
            data = (root / "raw" / path).read_bytes()
            assert row["identity"] == path[:3]
            assert row["content"] == blake3(data).digest()
            assert row["size_bytes"] == len(data)
            assert (row["width_px"], row["height_px"]) == Image.open(io.BytesIO(data)).size

    def test_the_crop(self, root: Path) -> None:
        for path, row in rows(root).items():
            if row["status"] != "aligned":
                continue
            data = (root / "aligned" / row["aligned"]).read_bytes()
            assert row["aligned"] == path
            assert row["aligned_content"] == blake3(data).digest()
            assert Image.open(io.BytesIO(data)).size == (64, 64)
            assert row["reason"] is None

    def test_landmarks_lie_on_the_template(self, root: Path) -> None:
        for row in rows(root).values():
            if row["status"] != "aligned":
                continue
            left, top, right, bottom = row["box"]
            points = np.array(row["landmarks"], np.float32).reshape(-1, 2)
            assert len(points) == 5
            inside = (points > (left - 20, top - 20)) & (points < (right + 20, bottom + 20))
            assert inside.all(), "landmarks are in the face's box, more or less"
            matrix = crop_transform(points, SPEC)
            landed = template_landmarks(points, SPEC) @ matrix[:, :2].T + matrix[:, 2]
            np.testing.assert_allclose(landed, SPEC.template_px, atol=0.01)

    def test_the_crop_is_that_warp_of_that_photograph(self, raw: Path) -> None:
        """Against another implementation: Pillow's."""
        spec = replace(SPEC, format="png", quality=0)
        align(raw.parent, AlignSettings(spec), only=["ann/1.jpg", "bob/2.jpg", "cat/3.jpg"])
        for path, row in rows(raw.parent).items():
            matrix = crop_transform(np.array(row["landmarks"], np.float32).reshape(-1, 2), spec)
            back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
            back[:2, 2] += 0.5 - back[:2, :2] @ (0.5, 0.5)  # Pillow counts from corners, not from centres
            # Antialiasing apart, of which neither has any, bilinear sampling is the same.
            photograph = Image.open(raw / path).convert("RGB")
            warped = photograph.transform(
                (64, 64), Image.Transform.AFFINE, back[:2].ravel(), Image.Resampling.BILINEAR
            )
            crop = np.asarray(Image.open(raw.parent / "aligned" / row["aligned"]))
            inner = np.abs(crop.astype(int) - np.asarray(warped))[2:-2, 2:-2]
            assert inner.mean() < 1.0

    def test_the_aligned_tree_says_what_it_holds(self, root: Path) -> None:
        assert ImageSpec.from_json((root / "aligned" / "imagespec.json").read_text()) == SPEC
        metadata = read_table(root / "store" / "rows.arrow").schema.metadata
        assert ImageSpec.from_json(metadata[b"image_spec"]) == SPEC


@pytest.mark.parametrize(
    ("landmarks", "predictor"), [("inner-eyes-bottom-lip", 68), ("five-point", 68), ("five-point", 5)]
)
def test_other_landmark_sets(one_person: Path, landmarks: str, predictor: int) -> None:
    spec = ImageSpec(size_px=112, landmarks=landmarks, predictor=predictor)
    align(one_person.parent, AlignSettings(spec))
    for row in rows(one_person.parent).values():
        points = np.array(row["landmarks"], np.float32).reshape(-1, 2)
        assert len(points) == predictor
        matrix = crop_transform(points, spec)
        landed = template_landmarks(points, spec) @ matrix[:, :2].T + matrix[:, 2]
        # Three points exactly; five as well as a similarity can, which for a face is a few pixels of 112.
        np.testing.assert_allclose(landed, spec.template_px, atol=0.02 if landmarks != "five-point" else 12)


class TestNames:
    def test_every_format_in_any_case(self, one_person: Path) -> None:
        photograph = Image.open(one_person / "ann" / "1.jpg")
        names = [
            "a.jpg",
            "b.JPG",
            "c.jpeg",
            "d.JPEG",
            "e.png",
            "f.PnG",
            "g.webp",
            "h.WEBP",
            "i.bmp",
            "j.BMP",
            "k.tif",
            "l.TIFF",
        ]
        folder = one_person / "carl"
        folder.mkdir()
        for name in names:
            photograph.save(folder / name, quality=95)
        align(one_person.parent)
        assert {statuses(one_person.parent)[f"carl/{name}"] for name in names} == {"aligned"}
        crops = {rows(one_person.parent)[f"carl/{name}"]["aligned"] for name in names}
        assert len(crops) == len(names)

    def test_equal_stems_are_kept_apart(self, raw: Path, drawn: Path) -> None:
        """Each crop is of its own photograph, whatever the others are called."""
        names = {
            "a.jpg": 1,
            "a.JPG": 2,
            "a.png": 3,
            "a.png.jpg": 4,
            "a.jpg.jpg": 5,
            "a.PNG": 1,
            "a.JPG.jpg": 2,
        }
        shutil.rmtree(raw)
        (raw / "ann").mkdir(parents=True)
        (raw / "alone").mkdir()
        for number, (name, source) in enumerate(names.items()):
            person = ("ann", "bob", "cat")[number % 3]
            Image.open(drawn / person / f"{source}.jpg").save(raw / "ann" / name, quality=95)
        align(raw.parent)
        together = {name: rows(raw.parent)[f"ann/{name}"] for name in names}
        assert len({row["aligned"] for row in together.values()}) == len(names)
        assert len({row["aligned_content"] for row in together.values()}) == len(names)
        for name in names:
            shutil.rmtree(raw / "ann")
            (raw / "ann").mkdir()
            number = list(names).index(name)
            person = ("ann", "bob", "cat")[number % 3]
            Image.open(drawn / person / f"{names[name]}.jpg").save(raw / "ann" / name, quality=95)
            align(raw.parent, redo=True)
            alone = rows(raw.parent)[f"ann/{name}"]
            assert (alone["aligned"], alone["aligned_content"]) == (
                together[name]["aligned"],
                together[name]["aligned_content"],
            )

    def test_spaces_unicode_and_nested_folders(self, one_person: Path) -> None:
        names = [
            "Ann Lee/my face (1).jpg",
            "李小龙/😀.jpg",
            "Øre/a\nb.jpg",
            "ann/2019/summer/x.jpg",
            "ann/x.jpg/x.jpg",
            "n\u0303/1.jpg",
            "\xf1/1.jpg",
            "x" * 255 + "/" + "y" * 251 + ".jpg",
            "z/" + "ü" * 125 + ".JPEG",
            "z/" + "ü" * 125 + ".jpeg",
        ]
        for name in names:
            (one_person / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(one_person / "ann" / "1.jpg", one_person / name)
        align(one_person.parent)
        table = rows(one_person.parent)
        for name in names:
            assert table[name]["status"] == "aligned"
            assert table[name]["identity"] == name.split("/")[0]
            assert (one_person.parent / "aligned" / table[name]["aligned"]).is_file()
        assert len({row["aligned"] for row in table.values()}) == len(table)
        assert align(one_person.parent).looked_at == 0

    NAMES = st.text(st.sampled_from("aB.é "), min_size=1, max_size=4).filter(
        lambda name: not name.startswith(".")
    )
    SUFFIXES = st.sampled_from([".jpg", ".JPG", ".jpeg", ".png", ".PNG", ".webp", ".bmp", ".tiff"])
    PATHS = st.builds(
        lambda folders, name, more, suffix: "/".join([*folders, name + "".join(more) + suffix]),
        st.lists(NAMES, max_size=2),
        NAMES | st.sampled_from(["x" * 248, "x" * 244, "é" * 124]),
        st.lists(SUFFIXES, max_size=2),
        SUFFIXES,
    )

    @example({"a.jpg", "a.png", "a.png.jpg", "a.png.jpg.jpg", "a.JPG.jpg", "a.JPG", "a.jpg.jpg"}, "jpg")
    @given(st.sets(PATHS, min_size=2, max_size=30), st.sampled_from(["jpg", "png"]))
    def test_crop_paths_are_one_to_one(self, paths: set[str], image_format: str) -> None:
        paths = {path for path in paths if all(len(part.encode()) <= 255 for part in path.split("/"))}
        crops = {crop_path(path, image_format) for path in paths}
        assert len(crops) == len(paths)
        for path in paths:
            crop = crop_path(path, image_format)
            assert crop.endswith(f".{image_format}")
            assert os.path.dirname(crop) == os.path.dirname(path)
            assert len(os.path.basename(crop).encode()) <= 255
            assert not os.path.basename(crop).startswith("."), "a walk would pass it over"

    def test_plain_names_stay(self) -> None:
        assert crop_path("ann/1.jpg", "jpg") == "ann/1.jpg"
        assert crop_path("ann/1.v2.jpg", "jpg") == "ann/1.v2.jpg"
        assert crop_path("ann/1.png", "png") == "ann/1.png"
        assert crop_path("ann/1.png", "jpg") == "ann/1.png.jpg"

    def test_identity_is_the_first_folder(self) -> None:
        assert identity_of("ann/2019/1.jpg") == "ann"
        assert identity_of("1.jpg") is None


class TestRejected:
    def test_every_reject_is_a_row_with_a_reason(
        self, one_person: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = one_person.parent
        jpeg = (one_person / "ann" / "1.jpg").read_bytes()
        files = {
            "ann/empty.jpg": b"",
            "ann/half.jpg": jpeg[: len(jpeg) // 2],
            "ann/letter.png": b"dear ann",
            "ann/sound.webp": b"RIFF\x00\x00\x00\x00WAVEfmt ",
            "loose.jpg": jpeg,
        }
        for name, data in files.items():
            (one_person / name).write_bytes(data)
        faceless(one_person / "sky" / "1.png")
        Image.fromarray(np.zeros((2000, 2000, 3), np.uint8)).save(one_person / "ann" / "huge.png")
        Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(one_person / "ann" / "dot.png")
        Image.fromarray(np.zeros((3, 900, 3), np.uint8)).save(one_person / "ann" / "line.png")
        (one_person / "ann" / "lost.jpg").symlink_to(root / "nowhere.jpg")
        (one_person / "ann" / "up").symlink_to(one_person)
        (one_person / "ann" / "notes.txt").write_text("not a photograph")
        report = align(root, AlignSettings(SPEC, max_pixels=3_999_999))
        reasons = {
            path: (row["status"], row["reason"])
            for path, row in rows(root).items()
            if row["status"] != "aligned"
        }
        assert reasons == {
            "ann/dot.png": ("no-face", "no face found"),
            "ann/empty.jpg": ("unreadable", "the file is empty"),
            "ann/half.jpg": ("unreadable", reasons["ann/half.jpg"][1]),
            "ann/huge.png": ("unreadable", "2000×2000 is over the limit of 3,999,999 pixels"),
            "ann/letter.png": ("unreadable", "no image format that we know"),
            "ann/line.png": ("no-face", "no face found"),
            "ann/lost.jpg": ("unreadable", "No such file or directory"),
            "ann/sound.webp": ("unreadable", "no image format that we know"),
            "ann/up": ("unreadable", "a link back to a folder above it"),
            "loose.jpg": ("no-identity", "not in a person's folder under RAW"),
            "sky/1.png": ("no-face", "no face found"),
        }
        assert reasons["ann/half.jpg"][1].startswith("damaged: ")
        counts = {"aligned": 3, "no-face": 3, "unreadable": 7, "no-identity": 1}
        assert report.counts == dict.fromkeys(STATUSES, 0) | counts
        assert report.ignored == {".txt": 1}
        assert rows(root)["ann/empty.jpg"]["size_bytes"] == 0
        assert {p.name for p in (root / "aligned").rglob("*") if p.is_file()} == {
            "1.jpg",
            "2.jpg",
            "imagespec.json",
        }
        with open(report.rejected_list, newline="") as file:
            assert [tuple(line) for line in csv.reader(file)] == [
                ("path", "status", "reason"),
                *((path, *reason) for path, reason in reasons.items()),
            ]

    def test_they_are_not_looked_at_again(self, one_person: Path, detected: list, read: list) -> None:
        root = one_person.parent
        faceless(one_person / "sky" / "1.png")
        (one_person / "sky" / "empty.jpg").touch()
        align(root)
        before, looks = state(root), len(detected)
        report = align(root)
        assert (report.looked_at, report.unchanged, len(detected)) == (0, 5, looks)
        assert state(root) == before

    @pytest.fixture
    def crowd(self, one_person: Path, drawn: Path) -> Path:
        """ann/1.jpg: a large face at the left; a smaller one, of bob, in the middle of the photograph."""
        pixels = np.full((300, 640, 3), 128, np.uint8)
        large = Image.open(drawn / "ann" / "2.jpg").resize((300, 300))
        small = Image.open(drawn / "bob" / "1.jpg").resize((170, 170))
        pixels[:, :300] = np.asarray(large)
        pixels[60:230, 310:480] = np.asarray(small)
        Image.fromarray(pixels).save(one_person / "ann" / "1.jpg", quality=97)
        return one_person

    def test_several_faces(self, crowd: Path) -> None:
        root = crowd.parent
        boxes = {}
        for rule in ("largest", "centre", "skip"):
            align(root, AlignSettings(SPEC, rule), redo=True)
            row = rows(root)["ann/1.jpg"]
            assert row["faces"] == 2
            boxes[rule] = row["box"]
            if rule == "skip":
                assert (row["status"], row["reason"]) == ("several-faces", "2 faces found")
                assert not (root / "aligned" / "ann" / "1.jpg").exists()
                assert rows(root)["bob/1.jpg"]["status"] == "aligned"
            else:
                assert row["status"] == "aligned"
        left, _, right, _ = boxes["largest"]
        assert right < 310
        assert right - left > boxes["centre"][2] - boxes["centre"][0]
        assert boxes["centre"][0] > 300
        assert boxes["skip"] is None

    def test_a_large_photograph_is_shrunk_for_detection_only(self, one_person: Path) -> None:
        Image.open(one_person / "ann" / "1.jpg").resize((2200, 2200)).save(
            one_person / "ann" / "3.jpg", quality=95
        )
        align(one_person.parent)
        small, large = (rows(one_person.parent)[f"ann/{i}.jpg"] for i in (1, 3))
        assert (large["status"], large["width_px"]) == ("aligned", 2200)
        np.testing.assert_allclose(np.array(large["landmarks"]) / 8.8, small["landmarks"], atol=6)


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_orientation_is_applied(one_person: Path, suffix: str, orientation: int) -> None:
    upright = Image.open(one_person / "ann" / "1.jpg").convert("RGB")
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[
        orientation
    ]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    upright.transpose(turn).save(one_person / "ann" / f"turned.{suffix}", exif=exif, **options)
    align(one_person.parent)
    table = rows(one_person.parent)
    assert table[f"ann/turned.{suffix}"]["status"] == "aligned"
    np.testing.assert_allclose(
        table[f"ann/turned.{suffix}"]["landmarks"], table["ann/1.jpg"]["landmarks"], atol=2
    )


class TestASecondRun:
    def test_changes_nothing_and_reads_nothing(
        self, one_person: Path, a_minute_later: None, detected: list, read: list
    ) -> None:
        root = one_person.parent
        faceless(one_person / "sky" / "1.png")
        first = align(root)
        assert (first.looked_at, first.unchanged, len(read)) == (4, 0, 4)
        before, at = state(root), times(root)
        second = align(root)
        assert (second.looked_at, second.unchanged) == (0, 4)
        assert (second.fingerprint, second.counts) == (first.fingerprint, first.counts)
        assert state(root) == before
        assert times(root) == at
        assert (len(read), len(detected)) == (4, 4)
        store = {path: path.stat() for path in (root / "store").iterdir()}
        align(root)
        assert {path: path.stat().st_ino for path in (root / "store").iterdir()} == {
            path: stat.st_ino for path, stat in store.items()
        }, "no file is written for nothing"

    def test_a_touched_photograph_is_read_but_not_looked_at(
        self, one_person: Path, a_minute_later: None, detected: list, read: list
    ) -> None:
        root = one_person.parent
        align(root)
        before, at = state(root), times(root)
        read.clear()
        detected.clear()
        (one_person / "ann" / "1.jpg").touch()
        report = align(root)
        assert (report.looked_at, report.unchanged) == (0, 3)
        assert read == [one_person / "ann" / "1.jpg"]
        assert detected == []
        assert (state(root), times(root)) == (before, at)
        read.clear()
        align(root)
        assert read == [], "its new times are remembered"

    def test_a_rewrite_of_the_same_size_and_mtime_is_noticed(
        self, one_person: Path, drawn: Path, a_minute_later: None
    ) -> None:
        root, path = one_person.parent, one_person / "ann" / "1.jpg"
        data = path.read_bytes()
        path.write_bytes(data + bytes(1))  # bytes behind a JPEG's end mean nothing
        align(root)
        before, stat = rows(root), path.stat()
        time.sleep(0.02)
        path.write_bytes(data + b"\x01")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        report = align(root)
        assert report.looked_at == 1
        assert rows(root)["ann/1.jpg"]["content"] == blake3(data + b"\x01").digest()
        assert rows(root)["ann/2.jpg"] == before["ann/2.jpg"]

    def test_a_changed_photograph_is_aligned_again(
        self, one_person: Path, drawn: Path, detected: list
    ) -> None:
        root = one_person.parent
        align(root)
        before = rows(root)
        detected.clear()
        shutil.copy(drawn / "ann" / "3.jpg", one_person / "ann" / "1.jpg")
        report = align(root)
        assert (report.looked_at, report.unchanged, len(detected)) == (1, 2, 1)
        after = rows(root)
        assert after["ann/1.jpg"]["aligned_content"] != before["ann/1.jpg"]["aligned_content"]
        assert {path: after[path] for path in ("ann/2.jpg", "bob/1.jpg")} == {
            path: before[path] for path in ("ann/2.jpg", "bob/1.jpg")
        }

    @pytest.mark.parametrize("kind", ["faceless", "unreadable"])
    def test_a_photograph_that_shows_nobody_any_more_loses_its_crop(
        self, one_person: Path, kind: str
    ) -> None:
        root, path = one_person.parent, one_person / "ann" / "1.jpg"
        align(root)
        if kind == "faceless":
            faceless(path)
        else:
            path.write_bytes(b"torn")
        assert align(root).looked_at == 1
        assert rows(root)["ann/1.jpg"]["status"] == {"faceless": "no-face", "unreadable": "unreadable"}[kind]
        assert rows(root)["ann/1.jpg"]["aligned"] is None
        assert not (root / "aligned" / "ann" / "1.jpg").exists()

    def test_a_new_photograph(self, one_person: Path, drawn: Path, detected: list) -> None:
        root = one_person.parent
        align(root)
        detected.clear()
        shutil.copy(drawn / "bob" / "2.jpg", one_person / "bob" / "2.jpg")
        assert align(root).looked_at == len(detected) == 1
        assert statuses(root)["bob/2.jpg"] == "aligned"

    def test_one_that_disappears_and_comes_back(self, one_person: Path) -> None:
        root, path = one_person.parent, one_person / "ann" / "1.jpg"
        align(root)
        before = state(root)
        path.rename(root / "away.jpg")
        report = align(root)
        assert (report.disappeared, report.counts["missing"], report.counts["aligned"]) == (1, 1, 2)
        row = rows(root)["ann/1.jpg"]
        assert (row["status"], row["reason"]) == ("missing", "no longer in RAW")
        assert "ann/1.jpg,missing,no longer in RAW" in report.rejected_list.read_text()
        report = align(root)
        assert (report.disappeared, report.counts["missing"]) == (0, 1), (
            "reported once, marked as long as it is so"
        )
        (root / "away.jpg").rename(path)
        report = align(root)
        assert (report.looked_at, report.counts["missing"]) == (1, 0)
        assert state(root) == before

    @pytest.mark.parametrize("harm", ["deleted", "tampered", "emptied"])
    def test_a_crop_that_is_not_as_it_was_is_made_again(self, one_person: Path, harm: str) -> None:
        root, path = one_person.parent, one_person.parent / "aligned" / "ann" / "1.jpg"
        align(root)
        before = state(root)
        data = path.read_bytes()
        if harm == "deleted":
            path.unlink()
        else:
            path.write_bytes(b"" if harm == "emptied" else data[:-9] + bytes(9))
        assert align(root).looked_at == 1
        assert state(root) == before

    def test_what_killed_workers_left_is_removed(self, one_person: Path) -> None:
        root = one_person.parent
        align(root)
        before = state(root)
        (root / "aligned" / "ann" / f"{TEMP_PREFIX}1-abc").write_bytes(b"half a crop")
        align(root)
        assert state(root) == before

    def test_a_folder_that_cannot_be_entered_for_a_while(
        self, one_person: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = one_person.parent
        align(root)
        before = state(root)
        real = os.open

        def refuse(path: str, *arguments: int, **options: int) -> int:
            if path == "ann" or str(path).endswith("/ann"):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr("facetrain.file_table.os.open", refuse)
            report = align(root)
        assert report.disappeared == 2
        reasons = {
            path: (row["status"], row["reason"])
            for path, row in rows(root).items()
            if row["status"] != "aligned"
        }
        gone = ("missing", "its folder could not be entered: Permission denied")
        assert reasons == {"ann": ("unreadable", "Permission denied"), "ann/1.jpg": gone, "ann/2.jpg": gone}
        align(root)
        assert state(root) == before, "nothing remains of it"

    def test_a_link_that_breaks(self, one_person: Path, drawn: Path) -> None:
        root, path = one_person.parent, one_person / "ann" / "1.jpg"
        path.rename(root / "elsewhere.jpg")
        path.symlink_to(root / "elsewhere.jpg")
        align(root)
        before = state(root)
        (root / "elsewhere.jpg").rename(root / "away.jpg")
        align(root)
        assert rows(root)["ann/1.jpg"]["status"] == "unreadable"
        assert not (root / "aligned" / "ann" / "1.jpg").exists()
        (root / "away.jpg").rename(root / "elsewhere.jpg")
        align(root)
        assert state(root) == before
        (root / "elsewhere.jpg").unlink()
        align(root)
        path.unlink()
        align(root)
        assert rows(root)["ann/1.jpg"]["status"] == "missing", "it was a photograph once"


class TestOnly:
    def test_only_these_are_looked_at(self, one_person: Path, detected: list) -> None:
        root = one_person.parent
        report = align(root, only={"ann/1.jpg", "ann/9.jpg"})
        assert (report.looked_at, report.disappeared, statuses(root)) == (1, 0, {"ann/1.jpg": "aligned"})
        align(root, only={"bob/1.jpg"})
        assert statuses(root) == {"ann/1.jpg": "aligned", "bob/1.jpg": "aligned"}
        assert len(detected) == 2

    def test_one_of_them_that_is_gone_is_marked(self, one_person: Path) -> None:
        root = one_person.parent
        align(root)
        (one_person / "ann" / "1.jpg").unlink()
        (one_person / "ann" / "2.jpg").unlink()
        align(root, only={"ann/1.jpg", "bob/1.jpg"})
        assert statuses(root) == {"ann/1.jpg": "missing", "ann/2.jpg": "aligned", "bob/1.jpg": "aligned"}


class TestVerify:
    """A disk that lies about times, or a backup that restored all of them."""

    @pytest.fixture
    def frozen(self, one_person: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """``stat`` of ann/1.jpg and of its crop say from now on what they said when they were hashed."""
        root = one_person.parent
        align(root)
        later = file_system_now_ns(root) + 60 * 10**9
        for place in (module, __import__("facetrain.file_table", fromlist=["x"])):
            monkeypatch.setattr(place, "file_system_now_ns", lambda folder: later)
        align(root)  # now all are old enough to be trusted
        return root

    def restore(self, root: Path, name: str, table: str) -> None:
        """Let the table of known files hold the state that the file has now: as if nothing had shown."""
        known = FileTable(root / "store" / table)
        row = walk(root / name.partition("/")[0]).files.to_pylist()
        state = next(r for r in row if r["path"] == name.partition("/")[2])
        rows = [r | state if r["path"] == state["path"] else r for r in known.table.to_pylist()]
        known.table = pa.Table.from_pylist(rows, schema=known.table.schema)
        known.save()

    def test_a_photograph_that_changed_unseen(self, frozen: Path) -> None:
        shutil.copy(frozen / "raw" / "ann" / "2.jpg", frozen / "raw" / "ann" / "1.jpg")
        self.restore(frozen, "raw/ann/1.jpg", "raw.files.arrow")
        assert align(frozen).looked_at == 0, "nothing shows it"
        assert align(frozen, verify=True).looked_at == 1
        found = rows(frozen)
        assert found["ann/1.jpg"]["aligned_content"] == found["ann/2.jpg"]["aligned_content"]

    def test_a_crop_that_changed_unseen(self, frozen: Path) -> None:
        before = state(frozen)
        crop = frozen / "aligned" / "ann" / "1.jpg"
        crop.write_bytes(crop.read_bytes()[:-1] + b"x")
        self.restore(frozen, "aligned/ann/1.jpg", "crops.files.arrow")
        assert align(frozen).looked_at == 0, "nothing shows it"
        assert align(frozen, verify=True).looked_at == 1
        assert state(frozen) == before

    def test_one_that_changed_as_it_was_read_is_read_again(self, one_person: Path) -> None:
        """Git's racy rule: a write in the same tick as the hash shows in no time, so young files are not trusted."""
        root = one_person.parent
        align(root)
        shutil.copy(root / "raw" / "ann" / "2.jpg", root / "raw" / "ann" / "1.jpg")
        crop = root / "aligned" / "ann" / "2.jpg"
        before = crop.read_bytes()
        crop.write_bytes(b"x" * len(before))
        self.restore(root, "raw/ann/1.jpg", "raw.files.arrow")
        align(root)  # takes in the crops, too young to be trusted
        self.restore(root, "raw/ann/1.jpg", "raw.files.arrow")
        found = rows(root)
        assert found["ann/1.jpg"]["aligned_content"] == found["ann/2.jpg"]["aligned_content"]
        assert crop.read_bytes() == before

    def test_everything_is_read_and_nothing_done_again(
        self, frozen: Path, read: list, detected: list
    ) -> None:
        align(frozen)
        assert read == []
        before = state(frozen)
        assert align(frozen, verify=True).looked_at == 0
        assert (len(read), detected) == (3, [])
        assert state(frozen) == before


class TestCropsOfThoseThatAreGone:
    def test_they_go_too_and_nothing_else(self, one_person: Path) -> None:
        root = one_person.parent
        align(root)
        (root / "aligned" / "ann" / "notes.txt").write_text("mine")
        shutil.copy(root / "aligned" / "bob" / "1.jpg", root / "aligned" / "ann" / "someone's.jpg")
        (one_person / "ann" / "1.jpg").unlink()
        assert align(root).disappeared == 1
        row = rows(root)["ann/1.jpg"]
        assert (row["status"], row["aligned"], row["aligned_content"]) == ("missing", None, None)
        there = sorted(path.name for path in (root / "aligned" / "ann").iterdir())
        assert there == ["2.jpg", "notes.txt", "someone's.jpg"], "what is no crop of ours stays"

    def test_one_that_comes_back_is_aligned_again(self, one_person: Path, tmp_path: Path) -> None:
        root = one_person.parent
        align(root)
        before = state(root)
        (one_person / "ann" / "1.jpg").rename(tmp_path / "1.jpg")
        align(root)
        (tmp_path / "1.jpg").rename(one_person / "ann" / "1.jpg")
        align(root)
        assert state(root) == before


class TestWhatDoesNotFit:
    """Numbers beyond what the index holds, and files beyond what is read."""

    def test_a_photograph_that_claims_to_be_billions_of_pixels_wide(self, one_person: Path) -> None:
        (one_person / "ann" / "x.ppm").write_bytes(b"P6\n9999999999 9\n255\n")
        align(one_person.parent)
        row = rows(one_person.parent)["ann/x.ppm"]
        assert (row["status"], row["width_px"]) == ("unreadable", 2**31 - 1)
        assert "9999999999×9 is over the limit" in row["reason"]

    def test_a_file_that_is_no_photograph_by_its_size(self, one_person: Path) -> None:
        with open(one_person / "ann" / "x.jpg", "wb") as file:
            file.truncate(3 * 10**12)  # takes no room on the disk
        align(one_person.parent)
        row = rows(one_person.parent)["ann/x.jpg"]
        assert (row["status"], row["reason"]) == ("unreadable", "a file of 3,000.0 GB is no photograph")

    def test_a_date_beyond_the_year_2262(self, one_person: Path) -> None:
        os.utime(one_person / "ann" / "1.jpg", (99999999999, 99999999999))
        align(one_person.parent)
        assert align(one_person.parent).looked_at == 0
        assert statuses(one_person.parent)["ann/1.jpg"] == "aligned"

    def test_a_shortage_of_memory_is_not_for_ever(
        self, one_person: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def short(*arguments: object) -> None:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr("facetrain.preprocess.photograph._plain_jpeg", short)
            align(one_person.parent)
        assert {row["reason"] for row in rows(one_person.parent).values()} == {
            "not enough memory to decode it"
        }
        align(one_person.parent)
        assert set(statuses(one_person.parent).values()) == {"aligned"}


class TestNameClashes:
    def test_a_folder_called_like_a_crop(self, one_person: Path) -> None:
        root = one_person.parent
        Image.open(one_person / "ann" / "1.jpg").save(one_person / "ann" / "x.png")
        align(root)
        assert statuses(root)["ann/x.png"] == "aligned"
        (one_person / "ann" / "x.png.jpg").mkdir()
        shutil.copy(one_person / "bob" / "1.jpg", one_person / "ann" / "x.png.jpg" / "1.jpg")
        align(root)
        found = rows(root)
        assert found["ann/x.png.jpg/1.jpg"]["status"] == "aligned"
        assert (root / "aligned" / "ann" / "x.png.jpg" / "1.jpg").is_file()
        assert (found["ann/x.png"]["status"], found["ann/x.png"]["reason"]) == (
            "name-clash",
            "its crop would be called like the folder ann/x.png.jpg: rename one of them",
        )
        shutil.rmtree(one_person / "ann" / "x.png.jpg")
        align(root)
        found = rows(root)["ann/x.png"]
        reason = "no place for ALIGNED/ann/x.png.jpg: Is a directory"
        assert (found["status"], found["reason"]) == ("name-clash", reason), (
            "the crop of before is still there"
        )
        shutil.rmtree(root / "aligned" / "ann" / "x.png.jpg")
        align(root)
        assert statuses(root)["ann/x.png"] == "aligned"

    def test_a_person_called_like_our_own_file(self, one_person: Path) -> None:
        shutil.copytree(one_person / "bob", one_person / "imagespec.json")
        align(one_person.parent)
        row = rows(one_person.parent)["imagespec.json/1.jpg"]
        assert (row["status"], row["reason"]) == (
            "name-clash", "ALIGNED/imagespec.json is a file of ours: rename the folder"
        )  # fmt: skip
        assert (one_person.parent / "aligned" / "imagespec.json").is_file()

    def test_a_disk_that_knows_no_capitals(self, one_person: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Only one of the crops can be there. (Such a disk is made up: its answer, and what it removes.)"""
        root = one_person.parent
        monkeypatch.setattr(align_tree_module, "_folds_names", lambda folder: True)

        def remove(path: Path) -> None:
            for other in path.parent.parent.rglob("*"):
                if folded(str(other)) == folded(str(path)) and other.is_file():
                    other.unlink()

        monkeypatch.setattr(align_tree_module, "_remove_file", remove)
        for name in ("Ann", "caf\u00e9", "cafe\u0301"):
            shutil.copytree(one_person / "ann", one_person / name)
        for run in range(3):
            report = align(root)
            assert report.counts["name-clash"] == 4
            assert run == 0 or report.looked_at == 0
            found = rows(root)
            for winner in ("Ann/1.jpg", "cafe\u0301/1.jpg"):
                assert found[winner]["status"] == "aligned"
                assert (root / "aligned" / winner).is_file(), "nor does a later run remove it"
            for path, other in (("ann/1.jpg", "Ann/1.jpg"), ("caf\u00e9/2.jpg", "cafe\u0301/2.jpg")):
                assert found[path]["status"] == "name-clash"
                assert found[path]["reason"].startswith(
                    f"on the disk of ALIGNED its crop would overwrite that of {other}"
                )
                assert not (root / "aligned" / path).exists()

    def test_a_problem_that_is_called_like_a_photograph(self, one_person: Path) -> None:
        """A link ``ann/1`` that cannot be followed has nothing to do with the crop ``ann/1.jpg``."""
        root = one_person.parent
        (one_person / "ann" / "1").symlink_to(one_person)
        for run in range(3):
            report = align(root)
            assert run == 0 or report.looked_at == 0
            assert (root / "aligned" / "ann" / "1.jpg").is_file()
            assert statuses(root)["ann/1"] == "unreadable"

    def test_names_alike_are_kept_apart_and_reported(self, one_person: Path) -> None:
        for name in ("Ann", "ANN", "caf\u00e9", "cafe\u0301"):
            shutil.copytree(one_person / "ann", one_person / name)
        report = align(one_person.parent)
        assert report.alike == [("ANN", "Ann", "ann"), ("cafe\u0301", "caf\u00e9")]
        assert set(statuses(one_person.parent).values()) == {"aligned"}

    def test_this_disk_is_asked(self, tmp_path: Path) -> None:
        (tmp_path / "a").touch()
        assert align_tree_module._folds_names(tmp_path) == (tmp_path / "A").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["a"]


class TestSettings:
    OTHERS: ClassVar = {
        "size_px 64, asked for is 80": AlignSettings(replace(SPEC, size_px=80)),
        "quality 95, asked for is 90": AlignSettings(replace(SPEC, quality=90)),
        "multi largest, asked for is skip": AlignSettings(SPEC, "skip"),
        "predictor 5, asked for is 68": AlignSettings(replace(SPEC, predictor=68)),
    }

    @pytest.mark.parametrize("difference", OTHERS)
    def test_others_are_refused(self, one_person: Path, difference: str) -> None:
        root = one_person.parent
        align(root)
        before = state(root)
        with pytest.raises(SpecMismatch, match=difference) as error:
            align(root, self.OTHERS[difference])
        assert str(error.value).startswith(f"{root / 'aligned'} was aligned with ")
        assert "name another folder, or add --redo to do it all again" in str(error.value)
        assert state(root) == before

    def test_redo_makes_every_crop_anew_and_leaves_none_behind(
        self, one_person: Path, tmp_path: Path
    ) -> None:
        root = one_person.parent
        align(root)
        png = AlignSettings(replace(SPEC, size_px=80, format="png", quality=0))
        assert align(root, png, redo=True).looked_at == 3
        other = tmp_path / "other"
        shutil.copytree(one_person, other / "raw")
        align(other, png)
        assert state(root) == state(other)
        assert align(root, png).looked_at == 0

    def test_redo_that_is_killed_while_it_removes_the_old_crops(
        self, one_person: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = one_person.parent
        align(root)
        png = AlignSettings(replace(SPEC, format="png", quality=0))
        with monkeypatch.context() as patch:
            patch.setattr(align_tree_module, "_remove_other_crops", lambda *arguments: raise_stop())
            with pytest.raises(Stop):
                align(root, png, redo=True)
        with pytest.raises(SpecMismatch, match="add --redo"):
            align(root, png)
        report = align(root, png, redo=True)
        shutil.copytree(one_person, tmp_path / "other" / "raw")
        align(tmp_path / "other", png)
        assert state(root) == state(tmp_path / "other")
        assert report.looked_at <= 3

    def test_redo_remembers_what_is_missing(self, one_person: Path) -> None:
        root = one_person.parent
        align(root)
        (one_person / "ann" / "1.jpg").unlink()
        report = align(root, AlignSettings(replace(SPEC, size_px=80)), redo=True)
        assert (report.looked_at, report.disappeared) == (2, 1)
        row = rows(root)["ann/1.jpg"]
        assert (row["status"], row["aligned"]) == ("missing", None)
        assert not (root / "aligned" / "ann" / "1.jpg").exists(), "no crop of another kind remains"

    @pytest.mark.parametrize("rule", ["biggest", ""])
    def test_an_unknown_rule(self, rule: str) -> None:
        with pytest.raises(UserError, match="choose one of largest, centre, skip"):
            AlignSettings(multi=rule)


class Stop(BaseException):
    """Ends an align in the middle, as Ctrl-C does."""


def raise_stop() -> None:
    raise Stop


class TestInterrupted:
    """A run that ends in the middle, and one after it: together they do what one would have done."""

    @pytest.fixture
    def many(self, raw: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(module, "BLOCK", 2)
        shutil.rmtree(raw / "fay")
        faceless(raw / "eve" / "1.jpg")
        return raw

    @pytest.fixture
    def expected(self, many: Path, tmp_path: Path) -> Callable[[AlignSettings], dict[str, bytes]]:
        def undisturbed(settings: AlignSettings) -> dict[str, bytes]:
            other = tmp_path / "other"
            shutil.rmtree(other, ignore_errors=True)
            shutil.copytree(many, other / "raw")
            align(other, settings)
            return state(other)

        return undisturbed

    def interrupt(
        self, root: Path, after: int, settings: AlignSettings = SETTINGS, **options: object
    ) -> None:
        def stop(count: int) -> None:
            nonlocal after
            after -= count
            if after <= 0:
                raise Stop

        with pytest.raises(Stop):
            align(root, settings, on_progress=stop, **options)

    @pytest.mark.usefixtures("a_minute_later")
    def test_what_is_done_is_not_done_again(self, many: Path, detected: list, expected: Callable) -> None:
        self.interrupt(many.parent, after=10)
        self.interrupt(many.parent, after=6)
        detected.clear()
        report = align(many.parent)
        assert report.looked_at == len(detected) == 25 - 16
        assert state(many.parent) == expected(SETTINGS)

    def test_the_journal_is_in_its_file_as_the_work_goes_on(self, many: Path) -> None:
        journal, done, there = Journal(many.parent / "store" / JOURNAL), [0], []

        def look(count: int) -> None:
            done.append(done[-1] + count)
            there.append(sum(found.num_rows for _, found in journal.parts()))

        align(many.parent, on_progress=look)
        assert there == done[1:]

    @pytest.mark.parametrize("torn", [1, 5, 2000])
    def test_a_torn_journal(self, many: Path, expected: Callable, torn: int) -> None:
        root = many.parent
        self.interrupt(root, after=10)
        journal = root / "store" / JOURNAL
        journal.write_bytes(journal.read_bytes()[:-torn])
        whole = [found.num_rows for _, found in Journal(journal).parts()]
        assert whole == [8 if torn < 2000 else 6]
        self.interrupt(root, after=4)
        assert [found.num_rows for _, found in Journal(journal).parts()] == [*whole, 4]
        align(root)
        assert state(root) == expected(SETTINGS)

    @pytest.mark.parametrize("where", [0.01, 0.3, 0.6, 0.99])
    def test_a_damaged_journal(self, many: Path, expected: Callable, where: float) -> None:
        """A flipped bit ends the reading there; what follows is looked at again."""
        root = many.parent
        self.interrupt(root, after=10)
        journal = root / "store" / JOURNAL
        data = bytearray(journal.read_bytes())
        data[int(where * len(data))] ^= 4
        journal.write_bytes(data)
        left = sum(found.num_rows for _, found in Journal(journal).parts())
        assert left < 10
        assert align(root).looked_at == 25 - left
        assert state(root) == expected(SETTINGS)

    def test_photographs_that_change_meanwhile(self, many: Path, drawn: Path, expected: Callable) -> None:
        root = many.parent
        self.interrupt(root, after=10)
        shutil.copy(drawn / "fay" / "1.jpg", many / "ann" / "1.jpg")
        (many / "ann" / "2.jpg").write_bytes(b"torn")
        (root / "aligned" / "ann" / "3.jpg").write_bytes(b"tampered with")
        (root / "aligned" / "ann" / "4.jpg").unlink()
        assert align(root).looked_at == 25 - 10 + 4
        assert state(root) == expected(SETTINGS)

    def test_one_that_disappears_meanwhile_is_marked(self, many: Path) -> None:
        self.interrupt(many.parent, after=10)
        (many / "ann" / "1.jpg").unlink()
        assert align(many.parent).disappeared == 1
        assert statuses(many.parent)["ann/1.jpg"] == "missing"

    def test_other_settings_are_refused(self, many: Path, expected: Callable) -> None:
        self.interrupt(many.parent, after=10)
        other = AlignSettings(replace(SPEC, size_px=80))
        with pytest.raises(
            SpecMismatch, match="the interrupted run was aligned with size_px 64, asked for is 80"
        ):
            align(many.parent, other)
        assert align(many.parent, other, redo=True).looked_at == 25
        assert state(many.parent) == expected(other)

    def test_a_redo_goes_on_where_it_was(self, many: Path, detected: list, expected: Callable) -> None:
        root = many.parent
        png = AlignSettings(replace(SPEC, size_px=80, format="png", quality=0))
        self.interrupt(root, after=4)  # leaves crops that only its journal knows
        align(root)
        self.interrupt(root, after=10, settings=png, redo=True)
        with pytest.raises(SpecMismatch, match="add --redo"):
            align(root, png)
        detected.clear()
        assert align(root, png, redo=True).looked_at == len(detected) == 25 - 10
        assert state(root) == expected(png)

    def test_a_redo_that_is_given_up(self, many: Path, expected: Callable) -> None:
        root = many.parent
        png = AlignSettings(replace(SPEC, size_px=80, format="png", quality=0))
        align(root)
        self.interrupt(root, after=10, settings=png, redo=True)
        align(root, redo=True)
        assert state(root) == expected(SETTINGS)

    def test_a_first_run_that_is_given_up(self, many: Path, expected: Callable) -> None:
        root = many.parent
        png = AlignSettings(replace(SPEC, size_px=80, format="png", quality=0))
        self.interrupt(root, after=10)
        align(root, png, redo=True)
        assert state(root) == expected(png)


class TestFolders:
    def refuses(self, raw: Path, aligned: Path, says: str) -> None:
        (raw.parent / "store").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=says) as error:
            align_tree(raw, aligned, raw.parent / "store", SETTINGS, Work())
        assert "\n" not in str(error.value)

    def test_what_cannot_be_raw(self, one_person: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        self.refuses(tmp_path / "no", out, "no folder .*no: name the folder that holds")
        self.refuses(one_person / "ann" / "1.jpg", out, r"1\.jpg is a file")
        (tmp_path / "empty" / "ann").mkdir(parents=True)
        self.refuses(tmp_path / "empty", out, "no photographs in .*empty: it must hold a folder per person")
        (tmp_path / "empty" / "ann" / "notes.txt").touch()
        self.refuses(tmp_path / "empty", out, "no photographs in")
        self.refuses(
            one_person / "ann", out, "the photographs lie right in .*ann: put those of each person into"
        )
        assert not out.exists()

    def test_what_cannot_be_aligned(self, one_person: Path, tmp_path: Path) -> None:
        for aligned in (one_person, one_person / "crops", one_person.parent, one_person / ".." / "raw"):
            self.refuses(one_person, aligned, "must not be the same or lie in each other")
        (tmp_path / "link").symlink_to(one_person)
        self.refuses(one_person, tmp_path / "link" / "crops", "must not be the same or lie in each other")
        self.refuses(
            one_person, one_person / "ann" / "1.jpg", r"1\.jpg is a file: name a folder for the crops"
        )
        (tmp_path / "file").touch()
        self.refuses(
            one_person,
            tmp_path / "file" / "crops",
            r"cannot make the folder .*Not a directory.*: name another",
        )

    def test_crops_may_lie_where_no_walk_comes(self, one_person: Path, tmp_path: Path) -> None:
        """The workspace of someone who works in the very folder of the photographs."""
        (tmp_path / "store").mkdir()
        hidden = one_person / ".ft" / "evaluate" / "crops"
        report = align_tree(one_person, hidden, tmp_path / "store", SETTINGS, Work())
        assert report.rows.counts["aligned"] == 3
        assert align_tree(one_person, hidden, tmp_path / "store", SETTINGS, Work()).rows.looked_at == 0


def test_one_and_two_processes_make_the_same_bytes(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from facetrain.workers import process_pool

    monkeypatch.setattr(module, "process_pool", process_pool)
    faceless(raw / "fay" / "9.jpg")
    shutil.copytree(raw, tmp_path / "two" / "raw")
    shutil.copytree(raw, tmp_path / "none" / "raw")
    counts: list[int] = []
    align(tmp_path, jobs=1, on_progress=counts.append)
    assert sum(counts) == 31
    align(tmp_path / "two", jobs=2)
    assert state(tmp_path) == state(tmp_path / "two")
    monkeypatch.undo()
    align(tmp_path / "none")
    assert state(tmp_path) == state(tmp_path / "none")


def test_a_photograph_that_never_stands_still(one_person: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = one_person / "ann" / "1.jpg"
    real = os.fstat
    sizes = iter(range(10**6))

    def fstat(fd: int) -> SimpleNamespace:
        found = real(fd)
        state = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        return SimpleNamespace(**state | {"st_size": found.st_size + next(sizes)})

    monkeypatch.setattr(aligner.os, "fstat", fstat)
    with pytest.raises(OSError, match="kept changing"):
        aligner.read_whole(path)
