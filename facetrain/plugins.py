"""resolve(family, name): a built-in name, `module:attribute`, or an entry point of group `facetrain.<family>`."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
from typing import Any

from facetrain.errors import UserError

# Lazy `module:attribute` strings, so that naming a part never imports the others.
BUILT_IN: dict[str, dict[str, str]] = {
    "detectors": {
        "hog": "facetrain.preprocess.detectors:HogDetector",
        "cnn": "facetrain.preprocess.detectors:CnnDetector",
    },
    "trainers": {
        "triplet": "facetrain.train.trainers.triplet:TripletTrainer",
    },
    "samplers": {
        "people": "facetrain.datasets.samplers:PeopleSampler",
        "shuffled": "facetrain.datasets.samplers:ShuffledSampler",
    },
    "backbones": {
        "nn4.small2": "facetrain.train.backbones.nn4:nn4_small2",
        "iresnet.small": "facetrain.train.backbones.iresnet:iresnet_small",
    },
}


def available(family: str) -> dict[str, str]:
    """All names of a family and where each is found: built-ins, then installed entry points."""
    found = dict(BUILT_IN[family])
    for entry in importlib.metadata.entry_points(group=f"facetrain.{family}"):
        if entry.name in found and found[entry.name] != entry.value:
            raise UserError(
                f"two {family} are called '{entry.name}' ({found[entry.name]} and {entry.value}): uninstall one, "
                f"or name the one you mean as module:attribute"
            )
        found[entry.name] = entry.value
    return found


def resolve(family: str, name: str) -> Any:
    """The object behind ``name``: a name of `available`, or ``module:attribute``.

    Raises UserError for an unknown name (listing what exists, the closest match first) or a part that cannot be
    imported.
    """
    target = name if ":" in name else available(family).get(name)
    if target is None:
        raise UserError(_unknown(family, name))
    module_name, _, attribute = target.partition(":")
    try:
        value: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"cannot load {target} of {family}: {error}") from error
    return value


def _unknown(family: str, name: str) -> str:
    names = sorted(available(family))
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"no '{name}' among the {family}: {hint}there are {', '.join(names)} (or module:attribute)"


_KINDS: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool}
SET_BY_US = ("num_classes", "embedding_dim", "size_px")  # follow from the data and the configuration


def check_arguments(part: Any, name: str, arguments: dict[str, Any]) -> None:
    """Raise UserError when ``part`` does not accept these keyword arguments; nothing is called."""
    for argument in SET_BY_US:
        if argument in arguments:
            raise UserError(f"{name}: '{argument}' follows from the data and the configuration: leave it out")
    parameters = inspect.signature(part).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    names = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = [parameter for parameter in names if parameter not in SET_BY_US]
    for parameter in parameters:
        kinds = _KINDS.get(str(parameter.annotation))
        value = arguments.get(parameter.name)
        if (
            kinds
            and parameter.name in arguments
            and (not isinstance(value, kinds) or (value is True or value is False) != (kinds is bool))
        ):
            raise UserError(f"{name}: {parameter.name} = {value!r} should be of type {parameter.annotation}")
    for argument in arguments:
        if argument not in names:
            raise UserError(f"{name} takes no '{argument}': it takes {', '.join(names)}")
