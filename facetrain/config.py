"""What a training is made of: one typed configuration, read from TOML or JSON, written into every run.

Imports neither torch nor any part of the pipeline: reading a configuration must be instant, and possible anywhere.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from facetrain.errors import UserError, did_you_mean

_Decay = Annotated[float, Field(ge=0, lt=1)]


def _is_file(value: Any) -> bool:
    """Whether an argument is the path of something that is there, and not a word that a folder happens to have."""
    if not isinstance(value, str) or not (os.sep in value or os.path.splitext(value)[1]):
        return False
    return os.path.exists(value)


class Validation(BaseModel):
    """One entry of ``[[validate]]``: a protocol that is measured while a network is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    protocol: str = Field("split", description="as of `ft evaluate --protocol`")
    data: str | None = Field(None, description="the protocol's folder or file; none for split")
    protocol_args: dict[str, Any] = Field(default_factory=dict)
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z][A-Za-z0-9-]{0,39}$",
        description="what its columns begin with; default: the protocol's name, val for split",
    )
    every_epochs: int | None = Field(None, ge=1, description="default: 1")
    every_steps: int | None = Field(None, ge=1, description="instead, also within epochs")
    flip: bool = Field(False, description="of each photograph and its mirror image the sum")
    multi: Literal["largest", "centre"] = Field(
        "centre", description="of several faces in a raw photograph that one"
    )
    keep_scores: bool = Field(
        False, description="keep the score of every trial, each time, in the run's folder"
    )

    @property
    def prefix(self) -> str:
        """What its columns begin with, without the underscore."""
        return self.name or (
            "val" if self.protocol == "split" else self.protocol.replace(":", ".").rpartition(".")[2]
        )

    @field_validator("data")
    @classmethod
    def _wherever_it_is_resumed(cls, data: str | None) -> str | None:
        return None if data is None else os.path.abspath(data)

    @field_validator("protocol_args")
    @classmethod
    def _files_too(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        return {
            name: os.path.abspath(value) if _is_file(value) else value for name, value in arguments.items()
        }

    @model_validator(mode="after")
    def _whole(self) -> Validation:
        if self.prefix == "train":
            raise ValueError("an entry cannot be called 'train': give it another name")
        if self.every_epochs is not None and self.every_steps is not None:
            raise ValueError("choose every_epochs or every_steps")
        if (self.data is None) != (self.protocol == "split"):
            raise ValueError(
                "split takes no data"
                if self.protocol == "split"
                else f"{self.protocol} needs data, its folder"
            )
        return self


class TrainConfig(BaseModel):
    """One training. ``*_args`` go to the part that is named beside them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    trainer: str = Field("triplet", description="what is trained, and by which loss")
    trainer_args: dict[str, Any] = Field(default_factory=dict)
    backbone: str = Field("iresnet.small", description="the network")
    backbone_args: dict[str, Any] = Field(default_factory=dict)
    embedding_dim: int = Field(128, ge=2, le=8192)

    epochs: int = Field(60, ge=1, description="passes over the training photographs")
    batches_per_epoch: int | None = Field(
        None, ge=1, description="default: as many as show about every photograph"
    )
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(2e-3, gt=0, description="the peak learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    betas: tuple[_Decay, _Decay] = Field((0.9, 0.99), description="of adamw")
    weight_decay: float = Field(0.05, ge=0, description="on weights; not on biases, norms and PReLU slopes")
    schedule: Literal["one-cycle", "constant"] = Field(
        "one-cycle", description="warm-up, then cosine to zero; or none"
    )
    warmup: float = Field(0.15, ge=0, le=1, description="share of the steps in which lr rises to its peak")
    average: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of a moving average of the weights, which is what is kept; 0: none",
    )
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the gradient")

    augment: float = Field(1.0, ge=0, le=5, description="strength of the augmentation; 0: flips only")
    validation_pairs: int = Field(
        6000,
        ge=0,
        description="pairs of validation people, half of them same, measured after every epoch unless an entry of "
        "`validate` is of the protocol split; 0: none",
    )
    validation: tuple[Validation, ...] = Field(
        (), alias="validate", description="protocols that are measured now and then: see below"
    )
    seed: int = Field(0, ge=0, lt=2**62)
    best: str | None = Field(
        None,
        description='which checkpoint is called the best: by a column of the metrics (`"lfw_accuracy"`), `"loss"` or '
        '`"last"`; default: the first column of the first validator',
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="auto: bf16 where the hardware is made for it; heads and losses in float32, on a GPU then in TF32",
    )
    channels_last: bool = Field(True, description="images and weights in NHWC order in memory")
    compile: bool = Field(False, description="the network through torch.compile; needs a C++ compiler")
    checkpoint_activations: bool = Field(
        False, description="compute a block's activations again in the backward pass: less memory, more time"
    )
    save_every_minutes: float = Field(10.0, gt=0, description="how much an unexpected end can cost")

    @model_validator(mode="after")
    def _told_apart(self) -> TrainConfig:
        names = [entry.prefix for entry in self.validators]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"validate: two entries are called {twice!r} (the split is 'val'): give them a name each"
            )
        return self

    @property
    def validators(self) -> list[Validation]:
        """What is measured: the entries, and the validation split first unless one of them is of it."""
        if not self.validation_pairs or any(entry.protocol == "split" for entry in self.validation):
            return list(self.validation)
        return [Validation.model_validate({}), *self.validation]

    @field_validator("validation_pairs")
    @classmethod
    def _enough_for_ten_folds(cls, pairs: int) -> int:
        if 0 < pairs < 20:
            raise ValueError("choose 20 or more, two for each of ten folds, or 0 for no validation")
        return pairs


def setting_names(model: type[BaseModel]) -> list[str]:
    """What the settings are called in a file, in their order."""
    return [field.alias or name for name, field in model.model_fields.items()]


PRESETS = Path(__file__).parent / "presets"


def load_preset(name: str) -> dict[str, Any]:
    """The settings of one of our presets; UserError for an unknown name."""
    names = sorted(path.stem for path in PRESETS.glob("*.toml"))
    if name not in names:
        hint = did_you_mean(name, names)
        raise UserError(f"no preset '{name}': {hint}there are {', '.join(names)}")
    return load_config(PRESETS / f"{name}.toml")


def lay_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two layers of settings as one: ``above`` wins, tables are merged. Where it names another part (a trainer, a loss),
    the arguments that ``below`` had for the old one go."""
    replaced = {f"{part}_args" for part in above if part in below and below[part] != above[part]}
    kept = {name: value for name, value in below.items() if name not in replaced}
    return merged(kept, above, lay_over)


def merged(
    one: dict[str, Any],
    other: dict[str, Any],
    tables: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Settings of both, where both have one that of ``other``; tables are merged likewise, or by ``tables``."""
    both = {
        name: (tables or merged)(one[name], other[name])
        for name in one.keys() & other.keys()
        if isinstance(one[name], dict) and isinstance(other[name], dict)
    }
    return one | other | both


def load_config(path: Path) -> dict[str, Any]:
    """The settings of a TOML or JSON file, not validated yet, so that command-line options can be laid over them."""
    try:
        text = path.read_text()
        values: dict[str, Any] = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(
            f"{path} is no valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings: write name and value of each")
    return values


def train_config(values: dict[str, Any]) -> TrainConfig:
    """A validated configuration; UserError names the first setting that is wrong."""
    try:
        return TrainConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            model: type[BaseModel] = Validation if name.startswith("validate.") else TrainConfig
            raise UserError(f"no setting '{name}': there are {', '.join(setting_names(model))}") from None
        if first["type"] == "tuple_type" and name == "validate":
            raise UserError(
                "validate holds a list of tables: write [[validate]], with two brackets"
            ) from None
        why = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{name} = {first['input']!r}: {why[0].lower() + why[1:]}") from None
