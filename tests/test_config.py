"""Layers of settings, and the presets that come with the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from facetrain.cli import main
from facetrain.commands.training import train_settings
from facetrain.config import PRESETS, TrainConfig, lay_over, load_preset, train_config
from facetrain.errors import UserError

NAMES = sorted(path.stem for path in PRESETS.glob("*.toml"))
OPTIONS = {parameter.name: None for parameter in main.commands["train"].params} | {"settings": ()}


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_a_configuration_whose_parts_exist(name: str) -> None:
    from facetrain.pipeline.training import check_parts

    config = train_config(load_preset(name))
    assert config != TrainConfig()
    check_parts(config, size_px=96)


def test_there_is_the_preset_for_lfw() -> None:
    assert "lfw-cpu" in NAMES


def test_an_unknown_preset_names_the_closest() -> None:
    with pytest.raises(UserError, match=r"no preset 'lfw': did you mean 'lfw-cpu'\? there are .*lfw-cpu"):
        load_preset("lfw")
    with pytest.raises(UserError, match=r"no preset '\.\./config': there are"):
        load_preset("../config")


def test_layers_preset_then_file_then_settings_then_options(tmp_path: Path) -> None:
    preset = load_preset("lfw-cpu")
    file = tmp_path / "run.toml"
    file.write_text('epochs = 7\nlr = 0.5\nbackbone = "nn4.small2"\n[trainer_args]\nbatch_size = 9\n')
    given = {"preset": "lfw-cpu", "config_file": file, "settings": ("lr=0.25", "seed=3"), "seed": 4}
    config = train_settings(OPTIONS | given)
    assert (config.epochs, config.lr, config.seed, config.backbone) == (7, 0.25, 4, "nn4.small2")
    assert config.backbone_args == {}, "those of the preset were for its own backbone"
    assert config.trainer == preset["trainer"]
    assert config.trainer_args == preset["trainer_args"] | {"batch_size": 9}


def test_options_and_set_are_one_layer() -> None:
    """A part that an option names and arguments that --set gives belong together."""
    for options, expected in (
        (
            {"loss": "arcface", "settings": ("trainer_args.loss_args.margin_rad=0.3",)},
            {"loss": "arcface", "loss_args": {"margin_rad": 0.3}},
        ),
        ({"trainer": "triplet", "settings": ("trainer_args.margin=0.7",)}, {"margin": 0.7}),
    ):
        config = train_settings(OPTIONS | {"preset": "lfw-cpu"} | options)
        assert config.trainer_args.items() >= expected.items()
    named = {"backbone": "iresnet18", "settings": ("backbone_args.dropout=0.5", "seed=1"), "seed": 2}
    config = train_settings(OPTIONS | {"preset": "lfw-cpu"} | named)
    assert (config.backbone_args, config.seed) == ({"dropout": 0.5}, 2)


def test_arguments_stay_with_the_part_that_they_are_for() -> None:
    below = {"trainer": "a", "trainer_args": {"loss": "x", "loss_args": {"m": 1}, "batch_size": 3}, "lr": 1}
    assert lay_over(below, {"lr": 2}) == below | {"lr": 2}
    assert lay_over(below, {"trainer": "a"}) == below
    assert lay_over(below, {"trainer": "b"}) == {"trainer": "b", "lr": 1}
    assert lay_over(below, {"trainer_args": {"loss": "y"}})["trainer_args"] == {"loss": "y", "batch_size": 3}
    args = lay_over(below, {"trainer_args": {"loss_args": {"s": 2}}})["trainer_args"]
    assert args == {"loss": "x", "loss_args": {"m": 1, "s": 2}, "batch_size": 3}
    assert lay_over({"trainer_args": {"m": 1}}, {"trainer": "b"}) == {
        "trainer": "b",
        "trainer_args": {"m": 1},
    }
