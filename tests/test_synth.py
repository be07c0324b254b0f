"""Synthetic photographs: what they depend on, how a folder of them grows, whether dlib sees faces."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import cv2
import dlib
import numpy as np
import pytest

from facetrain.datasets.synth import draw_face, synthesise
from facetrain.errors import UserError
from facetrain.files import TEMP_PREFIX


def content(out: Path) -> dict[str, bytes]:
    """Every photograph under ``out``, by its path there."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.jpg"))}


def small(out: Path, **changes: int) -> None:
    synthesise(out, **({"identities": 2, "images": 2, "seed": 5, "size_px": 96} | changes))


def test_layout_and_report(tmp_path: Path) -> None:
    out, steps = tmp_path / "new" / "faces", []
    report = synthesise(out, identities=3, images=2, seed=1, size_px=96, on_progress=steps.append)
    expected = [f"person_{p:05d}/person_{p:05d}_{i:04d}.jpg" for p in (1, 2, 3) for i in (1, 2)]
    assert list(content(out)) == expected
    assert (report.people, report.photographs, report.drawn) == (3, 6, 6)
    assert report.seconds > 0 and sum(steps) == 6
    record = json.loads((out / ".synth.json").read_text())
    assert (record["seed"], record["size_px"], record["identities"], record["images"]) == (1, 96, 3, 2)
    assert [path.name for path in out.rglob("*") if path.name.startswith(TEMP_PREFIX)] == []


@pytest.mark.parametrize("size_px", [64, 101, 250])
def test_photographs_decode_at_the_size_asked_for(tmp_path: Path, size_px: int) -> None:
    small(tmp_path / "out", identities=1, images=1, size_px=size_px)
    pixels = cv2.imread(str(tmp_path / "out/person_00001/person_00001_0001.jpg"))
    assert pixels.shape == (size_px, size_px, 3) and pixels.dtype == np.uint8
    drawn = draw_face(5, 1, 1, size_px)
    assert drawn.shape == pixels.shape and drawn.dtype == np.uint8
    assert (
        np.abs(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(int) - drawn).mean() < 12
    )  # but for JPEG's losses


def test_processes_draw_the_same_bytes(tmp_path: Path) -> None:
    size = {"identities": 5, "images": 13, "seed": 2, "size_px": 64}  # 65 photographs: three tasks
    steps: list[int] = []
    alone = synthesise(tmp_path / "alone", **size, jobs=1)
    together = synthesise(tmp_path / "together", **size, jobs=2, on_progress=steps.append)
    assert content(tmp_path / "alone") == content(tmp_path / "together")
    assert alone.drawn == together.drawn == sum(steps) == 65


def test_seed_person_and_photograph_each_matter(tmp_path: Path) -> None:
    small(tmp_path / "a", seed=5)
    small(tmp_path / "b", seed=6)
    first, second = content(tmp_path / "a"), content(tmp_path / "b")
    assert len(set(first.values()) | set(second.values())) == 8


def test_a_larger_run_extends_a_smaller_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    small(out, identities=2, images=2)
    before = content(out)
    report = synthesise(out, identities=3, images=3, seed=5, size_px=96)
    after = content(out)
    assert report.drawn == 5 and len(after) == 9
    assert {name: after[name] for name in before} == before
    small(tmp_path / "at once", identities=3, images=3)
    assert content(tmp_path / "at once") == after
    small(out, identities=1, images=1)  # a smaller run takes nothing away
    assert content(out) == after
    assert json.loads((out / ".synth.json").read_text())["identities"] == 3


def test_an_interrupted_run_draws_only_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    small(out)
    before = content(out)
    lost, kept = out / "person_00002/person_00002_0001.jpg", out / "person_00002/person_00002_0002.jpg"
    lost.unlink()
    kept.write_bytes(b"left alone")
    litter = out / "person_00002" / f"{TEMP_PREFIX}{2**31 - 1}-dead"  # of a process that cannot be running
    litter.write_bytes(b"half")
    steps: list[int] = []
    report = synthesise(out, identities=2, images=2, seed=5, size_px=96, on_progress=steps.append)
    assert report.drawn == 1 and steps == [3, 1]
    assert lost.read_bytes() == before[str(lost.relative_to(out))]
    assert kept.read_bytes() == b"left alone"
    assert not litter.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"identities": 0},
        {"images": 0},
        {"images": -3},
        {"jobs": 0},
        {"size_px": 63},
        {"seed": -1},
        {"seed": 2**32},
    ],
)
def test_numbers_out_of_range(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=str(next(iter(wrong.values())))) as caught:
        small(tmp_path / "out", **wrong)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes, reason", [({"seed": 6}, "seed 5, not 6"), ({"size_px": 97}, "size 96, not 97")]
)
def test_a_folder_drawn_otherwise_is_refused(tmp_path: Path, changes: dict[str, int], reason: str) -> None:
    small(tmp_path)
    before = content(tmp_path)
    with pytest.raises(UserError, match=reason):
        small(tmp_path, **changes)
    assert content(tmp_path) == before


def test_another_version_of_the_generator_is_refused(tmp_path: Path) -> None:
    small(tmp_path)
    record = json.loads((tmp_path / ".synth.json").read_text())
    (tmp_path / ".synth.json").write_text(json.dumps(record | {"generator_version": 0}))
    with pytest.raises(UserError, match="generator version 0"):
        small(tmp_path)


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="not empty"):
        small(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        small(tmp_path / "holiday.jpg")
    (tmp_path / ".synth.json").write_text("not JSON")
    with pytest.raises(UserError, match="not a record"):
        small(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".synth.json", "holiday.jpg"]


def test_people_and_photographs_count_from_one() -> None:
    for identity, image in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="from 1"):
            draw_face(0, identity, image)


def landmark_model(name: str) -> str:
    spec = importlib.util.find_spec("face_recognition_models")
    assert spec is not None and spec.submodule_search_locations is not None
    return str(Path(spec.submodule_search_locations[0]) / "models" / name)


def test_dlib_finds_the_faces_and_their_parts() -> None:
    """On 60 photographs; ``View`` is asked where it has put eyes and mouth."""
    from facetrain.datasets.synth.person import make_person, stream
    from facetrain.datasets.synth.shot import make_shot
    from facetrain.datasets.synth.view import View

    detector = dlib.get_frontal_face_detector()
    predictor = dlib.shape_predictor(landmark_model("shape_predictor_5_face_landmarks.dat"))
    errors = []  # of the eye corners and the nose, in distances between the pupils
    for identity in range(1, 61):
        pixels = draw_face(3, identity, 1)
        boxes = detector(pixels, 0) or detector(pixels, 1)
        if not boxes:
            continue
        person, pose = make_person(3, identity), make_shot(stream(3, identity, 1)).pose
        view, eyes = View(pose, 250), person.eyes
        inner, outer = eyes.apart - eyes.half_width, eyes.apart + eyes.half_width
        corners = [(outer, -eyes.tilt), (inner, 0.02), (-outer, -eyes.tilt), (-inner, 0.02)]
        truth = view.place([*corners, (person.nose.skew, person.nose.tip_y + 0.03)])
        shape = predictor(pixels, max(boxes, key=lambda box: box.area()))
        found = np.array([(shape.part(i).x, shape.part(i).y) for i in range(5)])
        pupils = view.place([(-eyes.apart, 0.0), (eyes.apart, 0.0)])
        errors.append(np.linalg.norm(found - truth, axis=1).mean() / np.linalg.norm(pupils[1] - pupils[0]))
    assert len(errors) >= 54
    assert np.median(errors) < 0.10 and np.quantile(errors, 0.9) < 0.2
