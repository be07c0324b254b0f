"""Detectors: what they return, that they do not mind company, odd shapes or threads, and those of one's own."""

from __future__ import annotations

import concurrent.futures
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import SimpleNamespace

import cv2
import dlib
import numpy as np
import pytest
from PIL import Image

from facetrain import plugins
from facetrain.errors import UserError
from facetrain.image_spec import ImageSpec
from facetrain.index import read_table
from facetrain.preprocess import aligner, detectors
from facetrain.preprocess.aligner import AlignSettings, Task, align_block, models
from facetrain.preprocess.detectors import (
    CnnDetector,
    Detector,
    Face,
    HogDetector,
    choose,
    detect_faces,
    detector_factory,
)


def photograph(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture(scope="module")
def photographs(drawn: Path) -> list[np.ndarray]:
    """Six of 250 × 250 pixels, with a face each."""
    return [photograph(drawn / name / "1.jpg") for name in ("ann", "bob", "cat", "dan", "eve", "fay")]


@pytest.fixture(scope="module")
def cnn() -> CnnDetector:
    return CnnDetector()


def sky(height: int = 120, width: int = 160) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([80 + x % 100, 120 + y % 100, np.full_like(x, 200)], -1).astype(np.uint8)


def overlap(a: Face, b: Face) -> float:
    """Intersection over union."""
    (l1, t1, r1, b1), (l2, t2, r2, b2) = a.box, b.box
    both = max(0, min(r1, r2) - max(l1, l2)) * max(0, min(b1, b2) - max(t1, t2))
    return both / ((r1 - l1) * (b1 - t1) + (r2 - l2) * (b2 - t2) - both)


class TestHog:
    def test_boxes_and_scores_are_dlibs(self, photographs: list[np.ndarray]) -> None:
        crowd = np.concatenate(photographs[:3], axis=1)
        found = HogDetector()([*photographs, crowd])
        plain = dlib.get_frontal_face_detector()
        assert len(found[-1]) >= 2
        for image, faces in zip([*photographs, crowd], found, strict=True):
            boxes = plain(image, 0)
            assert [face.box for face in faces] == [(b.left(), b.top(), b.right(), b.bottom()) for b in boxes]
            scores = [face.score for face in faces]
            assert scores == sorted(scores, reverse=True)
            assert all(score > 0 for score in scores), "beyond the SVM's threshold"
            # A threshold just above a face's score loses that face: the score is that face's.
            for k, face in enumerate(faces):
                assert len(plain.run(image, 0, face.score + 1e-6)[0]) == k

    def test_the_second_look_is_upsampled(self, photographs: list[np.ndarray]) -> None:
        small = cv2.resize(photographs[0], (84, 84), interpolation=cv2.INTER_AREA)
        plain = dlib.get_frontal_face_detector()
        assert len(plain(small, 0)) == 0
        (box,) = plain(small, 1)
        ((face,),) = HogDetector()([small])
        assert face.box == (box.left(), box.top(), box.right(), box.bottom())

    def test_a_large_photograph_is_shrunk(self, photographs: list[np.ndarray]) -> None:
        large = cv2.resize(photographs[0], (2048, 2048), interpolation=cv2.INTER_CUBIC)
        (((large_face,),), ((face,),)) = (HogDetector()([image]) for image in (large, photographs[0]))
        scaled = Face(tuple(round(side * 2048 / 250) for side in face.box), face.score)  # type: ignore[arg-type]
        assert overlap(large_face, scaled) > 0.6


class TestCnn:
    def test_it_finds_what_hog_finds(self, photographs: list[np.ndarray], cnn: CnnDetector) -> None:
        found = 0
        for mine, theirs in zip(cnn(photographs[:3]), HogDetector()(photographs[:3]), strict=True):
            if mine and theirs:
                found += overlap(mine[0], theirs[0]) > 0.3
        assert found >= 2

    def test_a_batch_finds_what_single_photographs_do(
        self, photographs: list[np.ndarray], cnn: CnnDetector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """To the bit: where blocks begin and end must not show."""
        images = [cv2.resize(i, (150, 150), interpolation=cv2.INTER_AREA) for i in photographs[:3]]
        images.insert(1, cv2.resize(photographs[1], (160, 140)))
        images.insert(3, sky(60, 90))
        alone = [cnn([image])[0] for image in images]
        assert sum(map(bool, alone)) >= 3
        assert cnn(images) == alone
        monkeypatch.setattr(detectors, "CNN_BATCH_PIXELS", 2 * 150 * 150)
        assert cnn(images[::-1]) == alone[::-1]

    def test_batches_are_bounded_and_the_second_look_is_for_what_was_not_found(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[tuple[list[tuple[int, ...]], int, int]] = []

        def network(images: Sequence[np.ndarray], upsample: int, batch_size: int) -> list[list]:
            calls.append(([image.shape[:2] for image in images], upsample, batch_size))
            rect = SimpleNamespace(left=lambda: 1, top=lambda: 2, right=lambda: 31, bottom=lambda: 32)
            return [
                [SimpleNamespace(rect=rect, confidence=0.5)] if i.any() or upsample else [] for i in images
            ]

        monkeypatch.setattr(dlib, "cnn_face_detection_model_v1", lambda path: network)
        monkeypatch.setattr(detectors, "CNN_BATCH_PIXELS", 25_000)
        white, black, wide = np.ones((100, 100, 3)), np.zeros((100, 100, 3)), np.ones((50, 100, 3))
        large = np.ones((2000, 1000, 3), np.uint8)
        found = CnnDetector()([white, black, wide, white, white, large, black])
        assert calls == [
            ([(50, 100)], 0, 1),
            ([(100, 100)] * 2, 0, 2),
            ([(100, 100)] * 2, 0, 2),
            ([(100, 100)], 0, 1),
            ([(905, 453)], 0, 1),
            ([(100, 100)], 1, 1),
            ([(100, 100)], 1, 1),
        ]
        assert [len(faces) for faces in found] == [1] * 7
        assert found[0] == [Face((1, 2, 31, 32), 0.5)]
        assert found[5] == [Face((2, 4, 69, 71), 0.5)], "in pixels of the photograph"

    def test_several_faces_the_surest_first(self, photographs: list[np.ndarray], cnn: CnnDetector) -> None:
        (faces,) = cnn([np.concatenate(photographs[:3], axis=1)])
        assert len(faces) >= 2
        scores = [face.score for face in faces]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("make", [HogDetector, CnnDetector])
def test_odd_photographs_harm_nothing(make: Callable[[], Detector]) -> None:
    sizes = [(1, 1), (1, 300), (300, 1), (2, 2), (3, 900), (300, 4), (4, 4), (10, 10), (31, 33), (33, 40)]
    images = [np.full((*size, 3), 128, np.uint8) for size in sizes]
    images += [sky(3, 5000), sky(40, 45)[::-1, ::2], np.zeros((60, 60, 3), np.uint8)]
    images[-1].flags.writeable = False
    assert make()(images) == [[] for _ in images]
    assert make()([]) == []


class TestContract:
    """What is asked of detectors of one's own."""

    IMAGES = (np.zeros((50, 60, 3), np.uint8), np.zeros((50, 60, 3), np.uint8))

    def found(self, result: object) -> list[list[Face]]:
        return detect_faces(lambda images: result, "mine", self.IMAGES)  # type: ignore[arg-type,return-value]

    def test_boxes_become_whole_pixels_with_an_extent(self) -> None:
        box = np.array([1.4, 2.6, 30.2, 40.0], np.float32)
        good, empty = Face(box, np.float32(0.5)), Face((9, 9, 9, 20), 1.0)  # type: ignore[arg-type]
        (faces, nothing) = self.found(((good, empty), ()))
        assert (faces, nothing) == ([Face((1, 3, 30, 40), 0.5)], [])
        assert {type(side) for side in faces[0].box} == {int}
        assert type(faces[0].score) is float

    @pytest.mark.parametrize(
        ("result", "says"),
        [
            ([[]], "returned 1 lists for 2 photographs: it must return a list of Face for each photograph"),
            (None, "returned something else .*NoneType"),
            ([None, []], "returned something else .*NoneType"),
            ([[(1, 2, 3, 4)], []], "returned something else .*box"),
            ([[Face((1, 2, 3), 0.5)], []], "returned something else .*unpack"),  # type: ignore[arg-type]
            ([[Face((float("nan"), 2, 3, 4), 0.5)], []], "returned something else .*NaN"),  # type: ignore[arg-type]
        ],
    )
    def test_anything_else_is_named(self, result: object, says: str) -> None:
        with pytest.raises(UserError, match=f"^detector 'mine' {says}") as error:
            self.found(result)
        assert "\n" not in str(error.value)


class TestByName:
    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("hogg", r"no 'hogg' among the detectors: did you mean 'hog'\? there are cnn, hog \(or module"),
            ("no_such_module:X", "cannot load no_such_module:X of detectors: No module named"),
            ("string:digits", "detector 'string:digits' is '0123456789': it must be a class or a function"),
        ],
    )
    def test_unknown_ones_are_refused_with_the_settings(self, name: str, says: str) -> None:
        with pytest.raises(UserError, match=f"^{says}"):
            AlignSettings(ImageSpec(detector=name))

    def test_an_installed_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = EntryPoints(
            [EntryPoint("mine", f"{HogDetector.__module__}:HogDetector", "facetrain.detectors")]
        )
        monkeypatch.setattr(plugins.importlib.metadata, "entry_points", lambda **which: found.select(**which))
        assert AlignSettings(ImageSpec(detector="mine")).spec.detector == "mine"
        assert detector_factory("mine") is HogDetector
        with pytest.raises(UserError, match=r"did you mean 'mine'.* there are cnn, hog, mine"):
            AlignSettings(ImageSpec(detector="mien"))

    def test_one_that_cannot_be_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(aligner, "detector_factory", lambda name: Path("/nowhere/model.onnx").read_bytes)
        with pytest.raises(UserError, match=r"^detector 'mine' cannot be made: .*No such file.*model\.onnx"):
            models("mine", 5)

    @pytest.mark.parametrize(
        "spec",
        [
            ImageSpec(detector="mtcnn", predictor=0, quality=0),
            ImageSpec(detector="mtcnn", landmarks="other", predictor=68),
        ],
    )
    def test_crops_made_elsewhere_cannot_be_made_here(self, spec: ImageSpec) -> None:
        with pytest.raises(
            UserError, match=r"^crops of this kind were made elsewhere \(detector mtcnn\): ft can"
        ):
            AlignSettings(spec)


class TestModels:
    def test_they_are_loaded_once_and_stay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[str] = []
        real = detectors.HogDetector

        def factory() -> HogDetector:
            made.append("hog")
            return real()

        monkeypatch.setattr(aligner, "_of_this_thread", threading.local())
        monkeypatch.setattr(aligner, "detector_factory", lambda name: factory)
        assert models("hog", 5) is models("hog", 5)
        assert made == ["hog"]
        assert cv2.getNumThreads() == 1

    def test_no_two_threads_share_them(self) -> None:
        seen: list[tuple[Detector, object]] = [models("hog", 5)]
        for _ in range(2):
            thread = threading.Thread(target=lambda: seen.append(models("hog", 5)))
            thread.start()
            thread.join()
        assert len({id(part) for pair in seen for part in pair}) == 6

    def test_threads_side_by_side_make_the_same(self, drawn: Path, tmp_path: Path) -> None:
        barrier = threading.Barrier(2)

        def work(number: int) -> list[tuple]:
            barrier.wait()
            paths = [f"{name}/{i}.jpg" for name in ("ann", "bob", "cat") for i in (1, 2)]
            out = tmp_path / str(number)
            rows = align_block(drawn, out, AlignSettings(ImageSpec(size_px=64)), [Task(p) for p in paths])
            return [(row.path, row.status, row.box, row.detector_score, row.aligned_content) for row in rows]

        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            one, two = threads.map(work, range(2))
        assert one == two


def test_the_score_of_the_chosen_face_is_in_its_row(drawn: Path, tmp_path: Path) -> None:
    left, right = photograph(drawn / "ann" / "1.jpg"), photograph(drawn / "bob" / "1.jpg")
    small = cv2.resize(right, (190, 190), interpolation=cv2.INTER_AREA)
    image = np.full((250, 440, 3), 128, np.uint8)
    image[:, :250], image[:190, 250:] = left, small
    (tmp_path / "raw" / "ann").mkdir(parents=True)
    Image.fromarray(image).save(tmp_path / "raw" / "ann" / "1.png")
    Image.fromarray(sky()).save(tmp_path / "raw" / "ann" / "2.png")
    (faces,) = HogDetector()([image])
    assert len(faces) == 2
    tasks = [Task("ann/1.png"), Task("ann/2.png")]
    chosen, nobody = align_block(tmp_path / "raw", tmp_path / "out", AlignSettings(), tasks)
    face = choose(faces, "largest", 440, 250)
    assert (chosen.box, chosen.detector_score, chosen.faces) == (face.box, face.score, 2)
    assert (nobody.status, nobody.detector_score) == ("no-face", None)


MINE = """
import os
from facetrain.preprocess.detectors import Face


class Middle:
    '''Takes the middle of every photograph for a face.'''

    def __call__(self, images):
        with open(os.path.join(os.environ["SEEN"], str(os.getpid())), "a") as file:
            file.write(f"{len(images)}\\n")
        return [
            [Face((i.shape[1] // 4, i.shape[0] // 4, 3 * i.shape[1] // 4, 3 * i.shape[0] // 4), 0.25)]
            if i.max() > 0
            else []
            for i in images
        ]
"""


class TestThroughTheCommandLine:
    """`ft align --detector`, in real processes."""

    def align(self, root: Path, detector: str, path: Path | str = "") -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "facetrain.cli", "align", "raw", "aligned", "--detector", detector]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")]),
            "SEEN": str(root / "seen"),
        }
        return subprocess.run(
            [*command, "-j", "2"], cwd=root, capture_output=True, text=True, env=environment
        )

    def test_one_of_ones_own(self, raw: Path, tmp_path: Path) -> None:
        root = raw.parent
        Image.fromarray(np.zeros((90, 80, 3), np.uint8)).save(raw / "ann" / "black.png")
        (root / "seen").mkdir()
        (tmp_path / "parts").mkdir()
        (tmp_path / "parts" / "my_detector.py").write_text(MINE)
        done = self.align(root, "my_detector:Middle", tmp_path / "parts")
        assert (done.returncode, done.stderr) == (0, "")
        counts = {path.name: path.read_text().split() for path in (root / "seen").iterdir()}
        assert sum(int(count) for lines in counts.values() for count in lines) == 31, "each was shown once"
        assert str(os.getpid()) not in counts
        (rows,) = root.glob(".ft/**/rows.arrow")
        table = read_table(rows)
        for row in table.to_pylist():
            if row["path"] == "ann/black.png":
                assert (row["status"], row["detector_score"]) == ("no-face", None)
            else:
                assert row["detector_score"] == 0.25
                assert row["box"] == [62, 62, 187, 187]
        spec = ImageSpec.from_json((root / "aligned" / "imagespec.json").read_text())
        assert spec.detector == "my_detector:Middle"

        done = self.align(root, "hog")
        assert done.returncode == 2
        assert "was aligned with detector my_detector:Middle, asked for is hog" in done.stderr

    def test_the_package_of_the_documentation(self, one_person: Path, tmp_path: Path) -> None:
        """Not installed, but found as if it were: by what pip would have written beside it."""
        page = Path(__file__).parent.parent / "docs" / "how-to" / "detectors.md"
        ((toml,), (code,)) = (
            re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
            for language in ("toml", "python")
        )
        project = tomllib.loads(toml)["project"]
        ((name, target),) = project["entry-points"]["facetrain.detectors"].items()
        (tmp_path / "site" / "bright_faces-1.0.dist-info").mkdir(parents=True)
        (tmp_path / "site" / "bright_faces.py").write_text(code)
        for file, text in (
            ("METADATA", f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n"),
            ("entry_points.txt", f"[facetrain.detectors]\n{name} = {target}\n"),
        ):
            (tmp_path / "site" / "bright_faces-1.0.dist-info" / file).write_text(text)
        dark = (photograph(one_person / "ann" / "1.jpg") // 12).astype(np.uint8)
        Image.fromarray(dark).save(one_person / "ann" / "dark.png")
        done = self.align(one_person.parent, name, tmp_path / "site")
        assert (done.returncode, done.stderr) == (0, "")
        (rows,) = one_person.parent.glob(".ft/**/rows.arrow")
        table = {row["path"]: row for row in read_table(rows).to_pylist()}
        assert table["ann/1.jpg"]["status"] == table["ann/dark.png"]["status"] == "aligned"
        done = self.align(one_person.parent, "brigth", tmp_path / "site")
        assert "did you mean 'bright'? there are bright, cnn, hog" in done.stderr

    def test_an_unknown_one_starts_nothing(self, one_person: Path) -> None:
        done = self.align(one_person.parent, "my_detector:Middle")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            "Error: cannot load my_detector:Middle of detectors: No module named 'my_detector'\n"
        )
        assert {path.name for path in one_person.parent.iterdir()} == {"raw"}, "nothing was written"

    def test_one_that_workers_cannot_make(self, one_person: Path, tmp_path: Path) -> None:
        (tmp_path / "parts").mkdir()
        (tmp_path / "parts" / "my_detector.py").write_text(
            "def Broken():\n    raise OSError('no model here')\n"
        )
        done = self.align(one_person.parent, "my_detector:Broken", tmp_path / "parts")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "Error: detector 'my_detector:Broken' cannot be made: no model here\n"


def test_cnn_through_the_whole_alignment(drawn: Path, tmp_path: Path) -> None:
    """Small photographs, since the network is slow here; the crops land where those of hog do."""
    for name in ("ann", "bob"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        Image.open(drawn / name / "1.jpg").resize((200, 200)).save(
            tmp_path / "raw" / name / "1.jpg", quality=95
        )
    tasks = [Task("ann/1.jpg"), Task("bob/1.jpg")]
    points = {}
    for detector in ("hog", "cnn"):
        settings = AlignSettings(ImageSpec(detector=detector))
        rows = align_block(tmp_path / "raw", tmp_path / detector, settings, tasks)
        assert [row.status for row in rows] == ["aligned", "aligned"]
        assert all(row.detector_score is not None for row in rows)
        points[detector] = np.array([row.landmarks for row in rows])
    assert np.abs(points["hog"] - points["cnn"]).mean() < 8
