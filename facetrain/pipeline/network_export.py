"""ft export of a network: ONNX, TorchScript or safetensors, checked on photographs before it is there."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from facetrain.datasets.crop_files import read_crops
from facetrain.datasets.photo_set import select_rows
from facetrain.errors import MissingStage, UserError
from facetrain.evaluate.embedders.base import Embedder
from facetrain.evaluate.embedders.onnx_file import OnnxFile
from facetrain.evaluate.verification import VerificationResult, make_pairs, verify
from facetrain.files import replacing
from facetrain.image_spec import ImageSpec
from facetrain.index import read_index
from facetrain.pipeline.subject import CheckpointEmbedder, Subject, find_checkpoint
from facetrain.train.checkpoint import save_network
from facetrain.train.onnx import export_onnx
from facetrain.workspace import Workspace

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}
LEAST_COSINE = 0.9999
MOST_PHOTOGRAPHS = 2000  # that a file is tried on
PAIRS = 6000


@dataclass(frozen=True)
class Exported:
    """What was written, and how it did on ``photographs`` beside the checkpoint: the least cosine of their embeddings,
    and the verification of both on pairs of them, where there are people enough."""

    file: Path
    photographs: int
    least_cosine: float
    before: VerificationResult | None
    after: VerificationResult | None


def export_network(
    workspace: Workspace, checkpoint: str | None, out: Path, form: str, *, int8: bool, jobs: int
) -> Exported:
    """Write the network of a checkpoint to ``out``, if it gives the same embeddings there as here.

    form: "onnx", "torchscript" or "safetensors". int8: of ONNX, weights and activations in 8 bits (ONNX Runtime's
    dynamic quantisation); embeddings are others then, and what that costs is measured, not judged. Tried on photographs
    of the validation split of the checkpoint's dataset, without one on all kept ones, without a dataset on noise.
    Raises UserError for a wrong suffix, a missing package, and for a file whose embeddings differ (there is none then).
    """
    if out.suffix != SUFFIXES[form]:
        raise UserError(f"{out}: a file of this kind is called NAME{SUFFIXES[form]}")
    if int8 and form != "onnx":
        raise UserError("--int8 is of --onnx")
    path = find_checkpoint(workspace, checkpoint)
    network = CheckpointEmbedder(path, torch.device("cpu"))
    run = path.parent.parent if path.parent.name == "checkpoints" else None
    crops, people = _photographs(workspace, Subject(network, "", {"checkpoint": str(path)}, run), jobs)
    out.parent.mkdir(parents=True, exist_ok=True)
    write: dict[str, Callable[[CheckpointEmbedder, Path], Embedder]] = {
        "onnx": _quantised if int8 else _onnx,
        "torchscript": _torchscript,
        "safetensors": _safetensors,
    }
    with replacing(out) as temp:
        there = write[form](network, temp)
        ours, theirs = network.embed([crops]), there.embed([crops])
        least = float((ours * theirs).sum(1).min())
        if least < LEAST_COSINE and not int8:
            raise UserError(
                f"{out} was not written: its embeddings are others (cosine {least:.6f} to those of {path} on one of "
                f"{len(crops)} photographs)"
            )
    return Exported(out, len(crops), least, _verified(ours, people), _verified(theirs, people))


def _onnx(network: CheckpointEmbedder, file: Path) -> Embedder:
    export_onnx(network.network, network.spec.size_px, file, {"facetrain": network.info.to_json()})
    return OnnxFile(str(file))


def _quantised(network: CheckpointEmbedder, file: Path) -> Embedder:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = file.with_name(file.name + ".float")
    try:
        _onnx(network, whole)
        logging.disable(logging.WARNING)  # of a preparation that is for other networks
        try:
            quantize_dynamic(str(whole), str(file), weight_type=QuantType.QUInt8)
        finally:
            logging.disable(logging.NOTSET)
        model = onnx.load(str(file))  # what says how to feed it is lost on the way
        onnx.helper.set_model_props(model, {"facetrain": network.info.to_json()})
        onnx.save(model, str(file))
    finally:
        whole.unlink(missing_ok=True)
    return OnnxFile(str(file))


def _torchscript(network: CheckpointEmbedder, file: Path) -> Embedder:
    size = network.spec.size_px
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch would rather have torch.export
        traced = torch.jit.trace(network.network, torch.zeros(2, 3, size, size))
        written = io.BytesIO()  # it takes no name that begins with a dot, as temporary ones do
        torch.jit.save(traced, written, _extra_files={"facetrain": network.info.to_json()})
        file.write_bytes(written.getvalue())
        loaded = torch.jit.load(io.BytesIO(file.read_bytes()))
    return _Module(loaded, network.spec)


def _safetensors(network: CheckpointEmbedder, file: Path) -> Embedder:
    save_network(file, network.network, network.info)
    return CheckpointEmbedder(file, torch.device("cpu"))


class _Module(CheckpointEmbedder):
    """A module that was loaded from elsewhere."""

    def __init__(self, module: torch.nn.Module, spec: ImageSpec) -> None:
        self.network, self.spec, self.device = module, spec, torch.device("cpu")


def _photographs(workspace: Workspace, subject: Subject, jobs: int) -> tuple[NDArray[np.uint8], list[str]]:
    """Crops to try a network on, and whose they are."""
    spec = subject.embedder.spec
    try:
        dataset = subject.dataset(workspace, None)
        index = read_index(dataset.folder)
    except (MissingStage, UserError):
        index = None
    if index is None or index.spec != spec:
        noise = np.random.default_rng(0).integers(0, 256, (64, spec.size_px, spec.size_px, 3), np.uint8)
        return noise, []
    try:
        rows = select_rows(index, "val")
    except (MissingStage, UserError):
        rows = select_rows(index, None)
    rows = rows[:: -(-len(rows) // MOST_PHOTOGRAPHS)]
    table = index.rows.take(rows)
    crops = read_crops(dataset.aligned, table["aligned"].to_pylist(), spec, threads=jobs)
    return np.concatenate(list(crops)), [name or "" for name in index.identities(rows)]


def _verified(embeddings: NDArray[np.float32], people: list[str]) -> VerificationResult | None:
    try:
        pairs = make_pairs(np.unique(people, return_inverse=True)[1], num_pairs=PAIRS, seed=0)
    except UserError:  # too few people
        return None
    return verify((embeddings[pairs.first] * embeddings[pairs.second]).sum(1), pairs.same, pairs.folds)
