"""Who is measured: a checkpoint, or an embedder by name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from facetrain.datasets.loader import scaled
from facetrain.errors import UserError
from facetrain.evaluate.embedders.base import Embedder
from facetrain.files import file_fingerprint
from facetrain.plugins import make
from facetrain.progress import Progress
from facetrain.train.checkpoint import NetworkInfo, load_network
from facetrain.workspace import Dataset, Workspace


@dataclass(frozen=True)
class Subject:
    """An embedder, its name for people, and what is written beside its figures; ``run``: the folder of its run."""

    embedder: Embedder
    name: str
    facts: dict[str, Any]
    run: Path | None = None

    @property
    def what(self) -> str:
        """For messages: ``checkpoint runs/first/checkpoints/best.safetensors``."""
        kind = "checkpoint" if "checkpoint" in self.facts else "embedder"
        return f"{kind} {self.facts[kind]}"

    def embed(
        self, batches: Iterable[NDArray[np.uint8]], count: int, *, flip: bool = False
    ) -> NDArray[np.float32]:
        """Unit embeddings of ``count`` crops, see `Embedder.embed`, with their progress shown."""
        with Progress("embedding", "photographs") as bar:
            bar.begin(count)
            return self.embedder.embed(counted(batches, bar), flip=flip)

    def trained_on(self) -> set[str]:
        """Names of the people it was trained on, as far as they are known."""
        people = None if self.run is None else self.run / "people.txt"
        return set() if people is None or not people.is_file() else set(people.read_text().splitlines())

    def dataset(self, workspace: Workspace, aligned: Path | None) -> Dataset:
        """The dataset that is named, else the one that its run was trained on, else the current one."""
        config = None if self.run is None else self.run / "config.json"
        if (
            aligned is None
            and config is not None
            and config.is_file()
            and config.is_relative_to(workspace.folder)
        ):
            try:
                folder = workspace.folder / "datasets" / str(json.loads(config.read_text())["dataset"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{config} is damaged ({error}): name the dataset, --dataset ALIGNED, or another run"
                ) from None
            if folder.is_dir():
                return Dataset(workspace, folder)
        return workspace.dataset(aligned)


class CheckpointEmbedder(Embedder):
    """The network of a checkpoint."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.info: NetworkInfo
        self.network, self.info = load_network(path, device)
        self.spec, self.device = self.info.image_spec, device

    @torch.inference_mode()
    def of(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        images = scaled(torch.from_numpy(crops).to(self.device), self.spec)
        embeddings: NDArray[np.float32] = self.network(images).float().cpu().numpy()
        return embeddings


def open_subject(
    workspace: Workspace,
    checkpoint: str | None,
    embedder: str | None,
    embedder_args: dict[str, Any],
    device: torch.device,
) -> Subject:
    """What ``checkpoint`` names (see `find_checkpoint`), or an embedder of that family, or an .onnx file."""
    if embedder is None:
        path = find_checkpoint(workspace, checkpoint)
        network = CheckpointEmbedder(path, device)
        facts = {
            "checkpoint": str(path),
            "content": file_fingerprint(path),
            "network": json.loads(network.info.to_json()),
        }
        run = path.parent.parent if path.parent.name == "checkpoints" else None
        return Subject(network, network.info.run or path.stem, facts, run)
    name, arguments = embedder, embedder_args
    if embedder.endswith(".onnx"):
        name, arguments = "onnx", {"path": embedder, **embedder_args}
    made = make("embedders", name, arguments)
    if not isinstance(made, Embedder):
        raise UserError(
            f"'{embedder}' cannot be used as an embedder: it makes a {type(made).__name__}, no Embedder"
        )
    facts = {"embedder": embedder, "embedder_args": embedder_args}
    if embedder.endswith(".onnx"):
        facts["content"] = file_fingerprint(Path(embedder))
    return Subject(made, Path(embedder).stem, facts)


def find_checkpoint(workspace: Workspace, which: str | None) -> Path:
    """The checkpoint that a run's name, a run's folder or a file stands for; by default the latest run's best."""
    if which is not None and Path(which).is_file():
        return Path(which)
    if which is not None and (Path(which) / "checkpoints").is_dir():
        folder = Path(which)
    elif which is not None and (os.sep in which or which.endswith(".safetensors")):
        raise UserError(f"no checkpoint {which}: name a run, or a .safetensors file of one")
    elif which is not None:
        folder = workspace.run_folder(which)
    else:
        trained = [run for run in workspace.runs() if (run / "checkpoints" / "best.safetensors").is_file()]
        if not trained:
            raise UserError("no run has finished an epoch yet: run `ft train` first")
        folder = trained[-1]
    best = folder / "checkpoints" / "best.safetensors"
    if not best.is_file():
        known = ", ".join(run.name for run in workspace.runs())
        raise UserError(f"no run or checkpoint '{which}': there are the runs {known or '(none)'}")
    return best


def counted(batches: Iterable[NDArray[np.uint8]], bar: Progress) -> Iterator[NDArray[np.uint8]]:
    """The batches; when the next one is asked for, the last one is done."""
    for batch in batches:
        yield batch
        bar.advance(len(batch))
