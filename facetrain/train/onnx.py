"""A network as an ONNX file."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from facetrain.errors import UserError
from facetrain.files import replacing

OPSET = 18  # ONNX Runtime 1.14 and later
INPUT, OUTPUT = "images", "embeddings"


def export_onnx(
    backbone: nn.Module, size_px: int, path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``backbone`` in eval mode to ``path``, one self-contained ONNX file, whole or not at all.

    Input ``images``, float32 [n, 3, size_px, size_px] for any n, already scaled by the ImageSpec; output ``embeddings``,
    float32 [n, D], raw. ``metadata``: texts that go with it. The network itself is left as it is.

    By torch.export and onnxscript (torch's ``dynamo=True`` exporter). Raises UserError where onnxscript is missing.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"exporting needs {package}: pip install 'facetrain[onnx]'")
    network = copy.deepcopy(backbone).cpu().float().eval()
    with warnings.catch_warnings(), torch.no_grad():
        # torch 2.13 against its own torch.utils._pytree.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, size_px, size_px),),  # a batch of one would be taken for a fixed one
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata or {})
    with replacing(path) as temp:
        program.save(temp, external_data=False)
