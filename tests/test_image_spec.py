"""ImageSpec: what it accepts, how it travels, how two of them differ."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from facetrain.errors import SpecMismatch, UserError
from facetrain.image_spec import LANDMARK_SETS, ImageSpec, require_same

OTHERS = {
    "size_px": 112,
    "landmarks": "outer-eyes-nose",
    "predictor": 68,
    "detector": "other",
    "format": "png",
    "quality": 90,
    "channels": "BGR",
    "subtract": 0.0,
    "divide": 255.0,
}


def test_others_names_every_field() -> None:
    assert set(OTHERS) == {field.name for field in dataclasses.fields(ImageSpec)}


@pytest.mark.parametrize("name", OTHERS)
def test_every_field_counts(name: str) -> None:
    spec, other = ImageSpec(), ImageSpec(**{name: OTHERS[name]})
    assert ImageSpec.from_json(other.to_json()) == other
    assert other.to_json() != spec.to_json()
    with pytest.raises(
        SpecMismatch, match=rf"^A and B hold .*{name} {getattr(spec, name)} against {OTHERS[name]}"
    ) as e:
        require_same(spec, "A", other, "B")
    assert "\n" not in str(e.value)


def test_equal_specs_pass() -> None:
    require_same(ImageSpec(), "A", ImageSpec.from_json(ImageSpec().to_json()), "B")
    assert ImageSpec().differences(ImageSpec()) == ""


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            {"landmarks": "ears"},
            "unknown landmark set 'ears': choose one of inner-eyes-bottom-lip, outer-eyes-nose",
        ),
        ({"predictor": 12}, "choose 5 or 68"),
        ({"predictor": 0, "quality": -1}, "choose 1 to 100"),
        ({"predictor": 0, "quality": 101}, "choose 1 to 100"),
        (
            {"landmarks": "inner-eyes-bottom-lip", "predictor": 5},
            "needs points that only --predictor 68 finds",
        ),
        ({"size_px": 15}, "choose a size from 16 to 1024"),
        ({"size_px": 1025}, "choose a size from 16 to 1024"),
        ({"format": "gif"}, "choose jpg or png"),
        ({"quality": 0}, "choose 1 to 100"),
        ({"quality": 101}, "choose 1 to 100"),
    ],
)
def test_what_it_refuses(wrong: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ImageSpec(**wrong)


@pytest.mark.parametrize(
    "fields",
    [
        {"predictor": 0},
        {"predictor": 0, "quality": 0, "detector": "RetinaFace, 2021"},
        {"predictor": 0, "landmarks": "inner-eyes-bottom-lip"},
        {"landmarks": "other"},
        {"landmarks": "other", "quality": 0, "detector": "mtcnn", "predictor": 0, "size_px": 112},
    ],
)
def test_crops_made_elsewhere(fields: dict) -> None:
    spec = ImageSpec(**fields)
    assert not spec.made_here
    assert ImageSpec.from_json(spec.to_json()) == spec
    if spec.landmarks == "other":
        for what in ("template_px", "transform"):
            with pytest.raises(UserError, match=rf"lie is not known \(detector {spec.detector}\)"):
                getattr(spec, what)
    else:
        with_68 = dataclasses.replace(spec, predictor=68, quality=95)
        assert with_68.made_here
        assert (spec.template_px, spec.transform) == (with_68.template_px, with_68.transform)


OF_68 = [name for name in LANDMARK_SETS if name != "dlib-chip"]


@pytest.mark.parametrize("landmarks", OF_68)
def test_crops_made_here(landmarks: str) -> None:
    assert ImageSpec(landmarks=landmarks, predictor=68).made_here


def test_dlibs_chips_are_of_its_5_points() -> None:
    assert ImageSpec(landmarks="dlib-chip").made_here
    with pytest.raises(UserError, match="choose --predictor 5"):
        ImageSpec(landmarks="dlib-chip", predictor=68)


def test_the_text_of_a_spec_is_as_it_was() -> None:
    """It is hashed, compared and stored: new kinds of specs must not change that of old ones."""
    assert ImageSpec().to_json() == (
        '{"channels": "RGB", "detector": "hog", "divide": 128.0, "format": "jpg", "landmarks": "five-point", '
        '"predictor": 5, "quality": 95, "size_px": 96, "subtract": 127.5}'
    )


def test_a_spec_of_another_version() -> None:
    fields = json.loads(ImageSpec().to_json()) | {"mood": "happy"}
    with pytest.raises(UserError, match=r"another version of facetrain.*align again"):
        ImageSpec.from_json(json.dumps(fields))


def test_templates_scale_with_the_crop() -> None:
    for name in OF_68:
        small, large = (
            ImageSpec(size_px=size, landmarks=name, predictor=68).template_px for size in (50, 100)
        )
        np.testing.assert_allclose(2 * np.array(small), large)
