"""The contract of protocols: every one is held to it on a set that `ft synth` has laid out."""

# ruff: noqa: RUF012

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from facetrain.datasets.synth import synthesise_layout
from facetrain.datasets.synth.layouts import NAMES
from facetrain.errors import UserError
from facetrain.evaluate.protocols.base import Figure, Measured, Photographs, Protocol, Trials
from facetrain.evaluate.protocols.files import find_files, first_there, read_lines
from facetrain.image_spec import ImageSpec
from facetrain.pipeline.evaluation import file_stem
from facetrain.pipeline.protocol_crops import protocol_crops
from facetrain.pipeline.protocols import open_protocol
from facetrain.plugins import BUILT_IN
from facetrain.testing import check_protocol
from facetrain.workspace import Workspace

ARGUMENTS: dict[str, dict[str, Any]] = {}  # of layouts whose protocol must be told something


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bin"])
def test_protocol(name: str, tmp_path: Path) -> None:
    """On photographs of a layout of the same name."""
    assert name in BUILT_IN["protocols"], f"no protocol for the layout {name}"
    synthesise_layout(tmp_path / "set", name, identities=12, images=5, size_px=64)
    workspace = Workspace(tmp_path)
    check_protocol(partial(open_protocol, workspace, name, tmp_path / "set", ARGUMENTS.get(name, {})))


def test_every_protocol_has_a_layout() -> None:
    assert set(BUILT_IN["protocols"]) == set(NAMES)


# -- the check itself ----------------------------------------------------------------------------------------------------


class Sound(Protocol):
    """The mean cosine of neighbours."""

    figures = {"mean": Figure("mean cosine")}
    facts: dict[str, Any] = {}

    def __init__(self) -> None:
        self.photographs = Photographs(Path(), ["a", "b", "c"])

    def measure(self, embeddings: Any, found: Any, *, device: Any = None) -> Measured:
        scores = (embeddings[:-1] * embeddings[1:]).sum(1).astype(float)
        trials = Trials(scores, np.array([True, False]), np.array([0, 1]), np.array([1, 2]))
        return Measured({"mean": float(scores.mean())}, {"pairs": 2}, trials=trials)


class Misnamed(Sound):
    figures = {"Mean cosine": Figure("mean cosine")}


class Silent(Sound):
    figures = {"mean": Figure("mean"), "other": Figure("other")}


class Twice(Sound):
    def __init__(self) -> None:
        self.photographs = Photographs(Path(), ["a", "b", "a"])


class NotANumber(Sound):
    def measure(self, embeddings: Any, found: Any, *, device: Any = None) -> Measured:
        return Measured({"mean": float(embeddings[found].mean() if found.all() else np.nan)}, {})


class Forgetful(Sound):
    last = 0.0

    def measure(self, embeddings: Any, found: Any, *, device: Any = None) -> Measured:
        self.last = self.last / 2 + float(embeddings[0, 0])
        return Measured({"mean": self.last}, {})


class Greedy(Sound):
    def measure(self, embeddings: Any, found: Any, *, device: Any = None) -> Measured:
        embeddings *= 2
        return super().measure(embeddings, found)


class Uneven(Sound):
    def measure(self, embeddings: Any, found: Any, *, device: Any = None) -> Measured:
        return Measured({"mean": 0.0}, {}, trials=Trials(np.zeros(3), np.ones(2, bool)))


class Beyond(Sound):
    def measure(self, embeddings: Any, found: Any, *, device: Any = None) -> Measured:
        trials = Trials(np.zeros(2), np.ones(2, bool), np.array([0, 1]), np.array([1, 3]))
        return Measured({"mean": 0.0}, {}, trials=trials)


class Arrays(Sound):
    facts = {"which": np.arange(3)}


class Fragile(Sound):
    def measure(self, embeddings: Any, found: Any, *, device: Any = None) -> Measured:
        raise KeyError("x")


@pytest.mark.parametrize(
    ("protocol", "says"),
    [
        (Misnamed, "a figure is called 'Mean cosine'"),
        (Silent, "it measures ['mean'], but has the figures ['mean', 'other']"),
        (Twice, "a photograph is named twice"),
        (NotANumber, "mean is nan where no face was found"),
        (Forgetful, "and the next time"),
        (Greedy, "changes embeddings in place"),
        (Uneven, "its trials are of different lengths: [2, 3]"),
        (Beyond, "a trial is of a photograph that it does not have"),
        (Arrays, "facts cannot be written as JSON"),
        (Fragile, "on random embeddings: KeyError: 'x'"),
        (dict, "dict makes a dict, no Protocol"),
    ],
)
def test_a_breach_is_noticed(protocol: Any, says: str) -> None:
    check_protocol(Sound)
    with pytest.raises(AssertionError) as caught:
        check_protocol(protocol)
    assert says in str(caught.value)


# -- lists and photographs -----------------------------------------------------------------------------------------------


def lines(path: Path) -> Iterator[tuple[int, str]]:
    return read_lines(path, "list of pairs")


def test_lists_are_read(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffa b\r\n\n  c\u2028d \n".encode())
    assert list(lines(path)) == [(1, "a b"), (3, "c\u2028d")]
    path.write_bytes(b"\n \n")
    with pytest.raises(UserError, match=r"list\.txt: the list of pairs is empty"):
        list(lines(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="no list of pairs: it is not UTF-8 text"):
        list(lines(path))
    with pytest.raises(UserError, match="cannot read the list of pairs: No such file"):
        list(lines(tmp_path / "none"))


def test_photographs_are_found(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/2.png", "top.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    wanted = {"a/2.png": (Path("l"), 1), "top.jpg": (Path("l"), 2), "a/1.jpg": (Path("l"), 2)}
    assert list(find_files(tmp_path, wanted).items()) == [(name, name) for name in wanted]
    wanted |= {"a/3.jpg": (Path("l"), 4), "b/1.jpg": (Path("l"), 5)}
    with pytest.raises(UserError, match=r"l, line 4: there is no photograph a/3.jpg in .* \(1 more of"):
        find_files(tmp_path, wanted)
    (tmp_path / "imagespec.json").touch()  # an aligned tree: the crop of a/2.png
    (tmp_path / "a" / "2.png").rename(tmp_path / "a" / "2.png.jpg")
    assert find_files(tmp_path, wanted) == {
        "a/2.png": "a/2.png.jpg", "top.jpg": "top.jpg", "a/1.jpg": "a/1.jpg", "a/3.jpg": "", "b/1.jpg": ""
    }  # fmt: skip
    with pytest.raises(UserError, match="none of the 1 photographs that are named is in"):
        find_files(tmp_path, {"c.jpg": (Path("l"), 1)})
    with pytest.raises(UserError, match="no such folder of photographs"):
        find_files(tmp_path / "none", wanted)


def test_crops_of_photographs_of_one_name(tmp_path: Path) -> None:
    """Each has its own, whatever suffix the list gives; what has none does not take another's."""
    for name in ("imagespec.json", "b.jpg", "b.png.jpg", "c.jpg", "d.png"):
        (tmp_path / name).touch()
    names = ["b.png", "b.jpg", "b.bmp", "c.png", "d.png"]
    found = find_files(tmp_path, {name: (Path("l"), 1) for name in names})
    assert found == {"b.png": "b.png.jpg", "b.jpg": "b.jpg", "b.bmp": "", "c.png": "c.jpg", "d.png": "d.png"}


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").touch()
    with pytest.raises(UserError, match=r"pairs\.txt is a file: name the folder that holds the list"):
        first_there(tmp_path / "pairs.txt", ("pairs.txt",), "list")


def test_only_trials_that_are_to_be_shown_are_written(tmp_path: Path) -> None:
    rows = np.arange(4)
    trials = Trials(rows / 4, rows % 2 == 0, rows, rows, rows // 2, shown=rows > 1)
    shown = trials.to_show()
    for column in (shown.first, shown.second):
        assert column is not None and column.tolist() == [2, 3]
    assert shown.scores.tolist() == [0.5, 0.75] and shown.same.tolist() == [True, False]
    assert shown.groups is not None and shown.groups.tolist() == [1, 1]
    assert Trials(rows / 4, rows > 0).to_show().scores.tolist() == [0, 0.25, 0.5, 0.75]


def test_a_face_is_scaled_smoothly(tmp_path: Path) -> None:
    """Smaller ones by bilinear interpolation, larger ones by the mean of what falls on a pixel."""
    spec, ramp = ImageSpec(size_px=32), np.linspace(0, 240, 8).astype(np.uint8)
    small = np.repeat(np.tile(ramp, (8, 1))[:, :, None], 3, axis=2)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for name, image in (("small.png", small), ("large.png", noise)):
        cv2.imwrite(str(tmp_path / name), image[:, :, ::-1])
    faces = Photographs(tmp_path, ["small.png", "large.png"], kind="faces")
    crops = protocol_crops(Workspace(tmp_path), faces, spec, "the network", "centre", 1)
    (batch,) = crops.batches(np.array([0, 1]))
    steps = np.diff(batch[0, 16, :, 0].astype(int))
    assert (steps[2:-2] >= 5).all() and (steps[2:-2] <= 12).all(), "no stairs"
    means = noise.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(batch[1] - means).max() <= 1


def test_another_option_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "last-set.txt").touch()
    data = Path("sets/IJBC")
    assert file_stem("ijb", data, {}, flip=False) == "IJBC"
    assert file_stem("ijb", data, {"task": "1:1"}, flip=True) == "IJBC-task=1-1-flip"
    assert file_stem("bob", Path("mobile"), {"far": 0.01}, flip=False) == "bob-mobile-far=0.01"
    assert file_stem("lfw", Path("set.bin"), {}, flip=False) == "set"
    assert file_stem("lfw", Path("raw"), {"pairs": str(tmp_path / "last-set.txt")}, flip=False) == "last-set"


def test_one_of_several_names(tmp_path: Path) -> None:
    (tmp_path / "b").touch()
    assert first_there(tmp_path, ("a", "b"), "list") == tmp_path / "b"
    with pytest.raises(UserError, match="holds no list: looked for a, c"):
        first_there(tmp_path, ("a", "c"), "list")
    with pytest.raises(UserError, match="no such folder; name the one that holds the list"):
        first_there(tmp_path / "none", ("a",), "list")
