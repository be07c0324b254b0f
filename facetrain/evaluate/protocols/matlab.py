"""MATLAB files, which some sets keep their lists in: read by scipy, where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from facetrain.errors import UserError


def has_scipy() -> bool:
    """Whether MATLAB files can be read here."""
    try:
        import_module("scipy.io")
    except ImportError:
        return False
    return True


def read_matlab(path: Path, what: str, variables: Sequence[str]) -> dict[str, Any]:
    """These variables of a MATLAB file. what: such as "list of pairs". UserError for a file that cannot be read, that
    lacks one of them, or where scipy is not installed."""
    if not has_scipy():
        raise UserError(f"{path} is a MATLAB file, which scipy reads: pip install scipy")
    try:
        found: dict[str, Any] = import_module("scipy.io").loadmat(str(path), variable_names=variables)
    except OSError as error:
        raise UserError(f"{path}: cannot read the {what}: {error.strerror or error}") from None
    except Exception as error:  # a damaged file raises whatever the reader stumbles over
        said = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path}: no {what} that can be read: {said}") from None
    missing = [name for name in variables if name not in found]
    if missing:
        raise UserError(f"{path}: no {what}: there is no {missing[0]} in it")
    return found
