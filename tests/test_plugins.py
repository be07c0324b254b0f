"""Names of parts: built in, by module and attribute, or from an installed package."""

from __future__ import annotations

import inspect
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from facetrain import plugins
from facetrain.errors import UserError
from facetrain.plugins import BUILT_IN, available, check_arguments, resolve


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family in BUILT_IN for name in BUILT_IN[family]]
)
def test_every_built_in_part_is_there(family: str, name: str) -> None:
    part = resolve(family, name)
    assert callable(part)
    assert part.__doc__
    assert resolve(family, BUILT_IN[family][name]) is part


def test_module_and_attribute() -> None:
    assert resolve("backbones", "pathlib:Path.cwd").__name__ == "cwd"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nn4.small", r"no 'nn4.small' among the backbones: did you mean 'nn4.small2'\? there are "),
        ("iresnetsmall", "did you mean 'iresnet.small'"),
        (
            "zzz",
            r"no 'zzz' among the backbones: there are .*iresnet.small, .*nn4.small2.*module:attribute\)",
        ),
        (
            "no_such_module:thing",
            "cannot load no_such_module:thing of backbones: No module named 'no_such_module'",
        ),
        ("pathlib:Route", "cannot load pathlib:Route of backbones: .*Route"),
    ],
)
def test_unknown_parts(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        resolve("backbones", name)
    assert "\n" not in str(error.value)


def installed(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    everything = EntryPoints(points)
    monkeypatch.setattr(
        plugins.importlib.metadata, "entry_points", lambda **which: everything.select(**which)
    )


def test_an_installed_part(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(
        monkeypatch,
        EntryPoint("mine", "pathlib:PurePath", "facetrain.backbones"),
        EntryPoint("other", "pathlib:Path", "facetrain.trainers"),
    )
    assert resolve("backbones", "mine").__name__ == "PurePath"
    assert set(available("backbones")) == {*BUILT_IN["backbones"], "mine"}
    with pytest.raises(UserError, match="did you mean 'mine'"):
        resolve("backbones", "mien")


def test_two_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, EntryPoint("nn4.small2", "pathlib:Path", "facetrain.backbones"))
    with pytest.raises(UserError, match=r"two backbones are called 'nn4.small2' .*: uninstall one"):
        resolve("backbones", "nn4.small2")
    assert resolve("backbones", "pathlib:Path").__name__ == "Path", "a full name is not in doubt"


def test_arguments_are_checked_without_a_call() -> None:
    def part(size: int, *, depth: int = 3) -> None:
        pytest.fail("it was called")

    check_arguments(part, "backbone 'x'", {"depth": 4})
    with pytest.raises(UserError, match="backbone 'x' takes no 'dept': it takes size, depth"):
        check_arguments(part, "backbone 'x'", {"dept": 4})
    check_arguments(lambda **anything: None, "backbone 'y'", {"dept": 4})


def test_types_are_checked_whether_annotations_are_names_or_types() -> None:
    def named(width: int = 3, rate: float = 1.0) -> None: ...

    def typed() -> None: ...

    typed.__signature__ = inspect.Signature(  # as of a module without `from __future__ import annotations`
        [
            inspect.Parameter("width", inspect.Parameter.KEYWORD_ONLY, annotation=int, default=3),
            inspect.Parameter("rate", inspect.Parameter.KEYWORD_ONLY, annotation=float, default=1.0),
        ]
    )
    for part in (named, typed):
        check_arguments(part, "backbone 'x'", {"width": 4, "rate": 2})
        for wrong in ({"width": "wide"}, {"width": True}, {"width": 2.5}, {"rate": "x"}):
            with pytest.raises(UserError, match=r"should be of type (int|float)$"):
                check_arguments(part, "backbone 'x'", wrong)


def test_a_part_is_made_with_what_it_takes() -> None:
    built = plugins.make("losses", "cosface", {"scale": 16.0}, num_classes=3, embedding_dim=4, size_px=96)
    assert built.weight.shape == (3, 4)
    assert built.scale == 16
    assert plugins.make("losses", "circle", {}, num_classes=3, embedding_dim=4) is not None
    with pytest.raises(UserError, match="loss 'cosface' takes no 'margin': it takes margin_cos, scale"):
        plugins.make("losses", "cosface", {"margin": 0.3}, num_classes=3, embedding_dim=4)
    with pytest.raises(UserError, match="'num_classes' follows from the data"):
        plugins.make("losses", "cosface", {"num_classes": 3}, num_classes=3, embedding_dim=4)
