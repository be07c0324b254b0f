"""dlib's model files, as the package face_recognition_models brings them."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path


@lru_cache
def model_path(name: str) -> Path:
    """A model file of the package face_recognition_models (found, not imported: it needs the old pkg_resources)."""
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(
            "the package face_recognition_models is not installed: pip install face_recognition_models"
        )
    return Path(spec.submodule_search_locations[0]) / "models" / name
