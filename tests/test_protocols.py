"""The contract of protocols: every one is held to it on a set that `ft synth` has laid out."""

# ruff: noqa: RUF012

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facetrain.datasets.synth import synthesise_layout
from facetrain.datasets.synth.layouts import NAMES
from facetrain.errors import UserError
from facetrain.evaluate.protocols.base import Figure, Measured, Photographs, Protocol, Trials
from facetrain.evaluate.protocols.files import find_files, first_there, read_lines
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
    assert set(BUILT_IN["protocols"]) == set(NAMES) - {"bin"}


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


def test_one_of_several_names(tmp_path: Path) -> None:
    (tmp_path / "b").touch()
    assert first_there(tmp_path, ("a", "b"), "list") == tmp_path / "b"
    with pytest.raises(UserError, match="holds no list: looked for a, c"):
        first_there(tmp_path, ("a", "c"), "list")
    with pytest.raises(UserError, match="no such folder; name the one that holds the list"):
        first_there(tmp_path / "none", ("a",), "list")
