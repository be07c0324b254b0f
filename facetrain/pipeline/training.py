"""ft train: from the current dataset to a run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from facetrain import __version__
from facetrain.config import TrainConfig, train_config
from facetrain.datasets.cache.leases import open_manifest
from facetrain.datasets.loader import TrainingBatches
from facetrain.datasets.photo_set import PhotoSet, select_rows
from facetrain.errors import MissingStage, UserError
from facetrain.files import write_bytes, write_json
from facetrain.index import read_index
from facetrain.pipeline.caching import cache
from facetrain.pipeline.validation import open_protocols, validators
from facetrain.plugins import make
from facetrain.tables import table_fingerprint
from facetrain.train.activation_checkpointing import checkpoint_activations
from facetrain.train.checkpoint import NetworkInfo, build_backbone, load_state, without_download
from facetrain.train.loop import Reporter, uses_bf16
from facetrain.train.loop import train as run_loop
from facetrain.train.memory import keep_freed_memory
from facetrain.train.trainers.base import Trainer
from facetrain.train.validator import Validator
from facetrain.workspace import DIVERGED, Dataset, Workspace, locked

# What a run is of: the tables of its dataset, and the stages that write them.
INPUTS = {"rows": "align", "clean": "clean", "kept": "prune", "split": "split"}


@dataclass(frozen=True)
class TrainSummary:
    """How a training ended."""

    run: str
    folder: Path
    finished: bool
    best: Path | None


def device_of(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda``; UserError where there is no GPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: PyTorch sees no GPU here: use --device cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda") or (device.index or 0) >= max(torch.cuda.device_count(), 1):
        raise UserError(f"--device {name}: choose auto, cpu, cuda or cuda:N of a GPU that is there")
    return device


def start(
    workspace: Workspace,
    aligned: Path | None,
    name: str | None,
    config: TrainConfig,
    *,
    device: str,
    threads: int,
    reporter: Reporter,
    say: Callable[[str], None],
) -> TrainSummary:
    """A new run. Everything that can be wrong with the request is found before data are read."""
    dataset = workspace.dataset(aligned)
    check_parts(config, read_index(dataset.folder).spec.size_px)
    torch_device = device_of(device)
    folder = workspace.run_folder(name or _free_name(workspace, config))
    if folder.exists():
        raise UserError(
            f"there is a run '{folder.name}' already: choose another --name, or go on with it, --resume {folder.name}"
        )
    with _prepared(dataset, folder.name, config, torch_device, threads, say) as parts:
        photos = parts.photos
        folder.mkdir(parents=True)
        store = dataset.folder
        inputs = {part: table_fingerprint(store / f"{part}.arrow") for part in INPUTS}
        facts = {
            "config": config.model_dump(by_alias=True),
            "dataset": store.name,
            "people": len(photos.identities),
            "photographs": len(photos),
            "image_spec": json.loads(photos.spec.to_json()),
            "inputs": inputs,
            "pixels": parts.photos.fingerprint,
            "validators": [dict(validator.columns) for validator in parts.validators],
            "versions": {"facetrain": __version__, "torch": torch.__version__},
        }
        write_bytes(folder / "people.txt", "".join(f"{person}\n" for person in photos.identities).encode())
        write_json(folder / "config.json", facts)
        try:
            return _run(folder, config, parts, torch_device, reporter, say)
        except Exception:
            if not (folder / "state.pt").is_file():
                shutil.rmtree(folder)  # failed at once: nothing to go on from, and the name is free again
            raise


def resume(
    workspace: Workspace,
    name: str | None,
    *,
    device: str,
    threads: int,
    reporter: Reporter,
    say: Callable[[str], None],
) -> TrainSummary:
    """Go on with an interrupted run, the latest one by default, on the data that it was started on."""
    runs = workspace.runs()
    if name is not None:
        folder = workspace.run_folder(name)
    else:  # reading a state is not for nothing: stop at the first that fits
        waiting = next((run for run in reversed(runs) if _can_go_on(run)), None)
        if waiting is None:
            ended = f": {len(runs)} have finished or diverged" if runs else ""
            raise UserError(f"no run to resume{ended}; start one with `ft train`")
        folder = waiting
    if not (folder / "config.json").is_file():
        known = ", ".join(run.name for run in runs) or "none"
        raise UserError(f"no run '{folder.name}': there are {known}")
    facts = json.loads((folder / "config.json").read_text())
    config = train_config(facts["config"])
    if epochs_done(folder) >= config.epochs:
        raise UserError(
            f"run '{folder.name}' has finished its {config.epochs} epochs: start a new one with `ft train`"
        )
    dataset = Dataset(workspace, workspace.folder / "datasets" / facts["dataset"])
    changed = [
        part
        for part, was in facts["inputs"].items()
        if table_fingerprint(dataset.folder / f"{part}.arrow") != was
    ]
    if changed:
        stage = INPUTS[changed[0]]
        raise UserError(
            f"run '{folder.name}' was started on other data (`ft {stage}` has run since): "
            f"start a new run with `ft train`"
        )
    torch_device = device_of(device)
    if (folder / "state.pt").is_file():
        config = config.model_copy(update={"backbone_args": without_download(config.backbone_args)})
    with _prepared(dataset, folder.name, config, torch_device, threads, say) as parts:
        if facts.get("pixels", parts.photos.fingerprint) != parts.photos.fingerprint:
            raise UserError(
                f"run '{folder.name}' was started on other crops (some have changed or gone since): `ft align` makes "
                f"them again; or start a new run with `ft train`"
            )
        return _run(folder, config, parts, torch_device, reporter, say)


def _can_go_on(folder: Path) -> bool:
    """Whether a run stopped before its end, for another reason than that it led nowhere."""
    epochs = int(json.loads((folder / "config.json").read_text())["config"]["epochs"])
    return not (folder / DIVERGED).is_file() and epochs_done(folder) < epochs


def epochs_done(folder: Path) -> int:
    """Epochs that a run's state has behind it: what a resume would go on from."""
    path = folder / "state.pt"
    return int(load_state(path, mmap=True)["position"]["epoch"]) if path.is_file() else 0


def check_parts(config: TrainConfig, size_px: int) -> None:
    """Names and arguments of the plug-ins against what they take, and their own checks, without any data."""
    dim = config.embedding_dim
    given = {"num_classes": 2, "embedding_dim": dim}
    trainer = _tried("trainers", config.trainer, config.trainer_args, given)
    with torch.device("meta"):  # the network without its weights
        given = {"embedding_dim": dim, "size_px": size_px}
        backbone = _tried("backbones", config.backbone, config.backbone_args, given)
    for name, part, kind in ((config.trainer, trainer, Trainer), (config.backbone, backbone, nn.Module)):
        if not isinstance(part, kind):
            raise UserError(f"'{name}' cannot be used: it makes a {type(part).__name__}, no {kind.__name__}")
    if not isinstance(getattr(trainer, "sampler", None), str):
        raise UserError(
            f"trainer '{config.trainer}' names no sampler: set its `sampler`, \"shuffled\" for example"
        )
    somebody = {"labels": np.arange(1000) // 2, "seed": 0, "batches_per_epoch": None}
    _tried("samplers", trainer.sampler, trainer.sampler_args(), somebody)
    if config.checkpoint_activations:
        checkpoint_activations(backbone)
    if config.compile and not any(
        shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++")
    ):
        raise UserError("compile = true needs a C++ compiler: install g++, or leave it out")


def _tried(family: str, name: str, arguments: dict[str, Any], given: dict[str, Any]) -> Any:
    """`make`, whose errors are the user's here: whatever goes wrong without data follows from the settings."""
    try:
        return make(family, name, arguments, **given)
    except UserError:
        raise
    except Exception as error:
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"'{name}' cannot be used with these settings: {said}") from error


def _free_name(workspace: Workspace, config: TrainConfig) -> str:
    stem = config.trainer.replace(":", ".")
    taken = {folder.name for folder in workspace.runs_folder.glob(f"{stem}-*")}
    return next(name for n in range(1, len(taken) + 2) if (name := f"{stem}-{n}") not in taken)


@contextmanager
def _photographs(
    dataset: Dataset, run: str, device: torch.device, threads: int, say: Callable[[str], None]
) -> Iterator[tuple[PhotoSet, PhotoSet]]:
    """Training and validation photographs, decoded now where they are not yet; their shards stay while the block runs."""
    workspace = dataset.workspace
    index = read_index(dataset.folder)
    if index.split is None:
        raise MissingStage("the photographs are not split yet: run `ft split 0.1` first")
    report = cache(workspace, dataset.aligned, threads=threads, device=str(device))
    if report.shards_written:
        say(f"cached {report.images:,} crops ({report.decoded:,} decoded) in {report.seconds:.1f} s")
    if report.undecodable:
        say(f"{report.undecodable:,} crops cannot be decoded and are left out: see {report.undecodable_list}")
    if report.absent:
        say(
            f"crops that are gone from {dataset.aligned} and left out: {report.absent:,} (`ft {dataset.first_stage}` "
            f"{'makes them again' if dataset.first_stage == 'align' else 'takes note of it'})"
        )
    if report.changed:
        say(
            f"crops other than `ft {dataset.first_stage}` left them, used as they are: {report.changed:,} "
            f"(`ft cache` says more)"
        )
    index = read_index(dataset.folder)  # the cache may have rejected some
    shards = workspace.folder / "cache"
    with open_manifest(dataset.folder, shards, f"run '{run}'") as manifest:
        train = PhotoSet(index, manifest, shards, select_rows(index, "train"))
        yield train, PhotoSet(index, manifest, shards, select_rows(index, "val"), train.shards)


@dataclass(frozen=True)
class _Parts:
    """What a training is put together from."""

    photos: PhotoSet
    backbone: nn.Module
    trainer: Trainer
    batches: TrainingBatches
    validators: list[Validator]


@contextmanager
def _prepared(
    dataset: Dataset,
    run: str,
    config: TrainConfig,
    device: torch.device,
    threads: int,
    say: Callable[[str], None],
) -> Iterator[_Parts]:
    opened = open_protocols(dataset.workspace, config)
    notes: list[str] = []  # said once nothing can be wrong any more
    with _photographs(dataset, run, device, threads, notes.append) as (photos, val):
        parts = _build(config, photos, device, threads)
        folder = dataset.workspace.run_folder(run)
        validate = validators(
            dataset.workspace, folder, config, opened, photos, val, device, threads, notes.append
        )
        for note in notes:
            say(note)
        yield replace(parts, validators=validate)


def _build(config: TrainConfig, photos: PhotoSet, device: torch.device, threads: int) -> _Parts:
    torch.set_num_threads(threads)
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.seed)
    backbone = build_backbone(
        config.backbone, config.backbone_args, config.embedding_dim, photos.spec.size_px
    )
    if config.channels_last:
        backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _check_embeddings(backbone, config, photos.spec.size_px)
    if config.checkpoint_activations:
        checkpoint_activations(backbone)
    if config.compile:
        backbone.compile()
    trainer = make(
        "trainers",
        config.trainer,
        config.trainer_args,
        num_classes=len(photos.identities),
        embedding_dim=config.embedding_dim,
    )
    sampler = make(
        "samplers",
        trainer.sampler,
        trainer.sampler_args(),
        labels=photos.labels,
        seed=config.seed,
        batches_per_epoch=config.batches_per_epoch,
    )
    batches = TrainingBatches(
        photos, sampler, seed=config.seed, augment=config.augment, threads=threads, device=device
    )
    return _Parts(photos, backbone, trainer, batches, [])


@torch.no_grad()
def _check_embeddings(backbone: nn.Module, config: TrainConfig, size_px: int) -> None:
    """One black image through the network: what a plug-in gets wrong is said before the first step."""
    try:
        out = backbone.eval()(torch.zeros(1, 3, size_px, size_px))
    except Exception as error:
        raise UserError(
            f"backbone '{config.backbone}' fails on an image of {size_px} px: {str(error).partition(chr(10))[0]}"
        ) from error
    if not isinstance(out, torch.Tensor) or out.shape != (1, config.embedding_dim):
        what = f"a tensor {list(out.shape)}" if isinstance(out, torch.Tensor) else f"a {type(out).__name__}"
        raise UserError(
            f"backbone '{config.backbone}' makes {what} of one image, not embeddings [1, {config.embedding_dim}]"
        )


def _run(
    folder: Path,
    config: TrainConfig,
    parts: _Parts,
    device: torch.device,
    reporter: Reporter,
    say: Callable[[str], None],
) -> TrainSummary:
    photos = parts.photos
    parameters = sum(p.numel() for p in parts.backbone.parameters())
    bf16 = uses_bf16(config.precision, device)
    say(
        f"run '{folder.name}': {config.trainer} on {config.backbone} ({parameters:,} parameters, "
        f"{config.embedding_dim}-d), {len(photos):,} photographs of {len(photos.identities):,} people, "
        f"{len(parts.batches):,} batches an epoch, {device.type}{', bf16' if bf16 else ''}"
    )
    info = NetworkInfo(
        config.backbone,
        config.backbone_args,
        config.embedding_dim,
        photos.spec,
        run=folder.name,
        people=len(photos.identities),
    )
    with locked(folder / "lock", f"run '{folder.name}'"):
        finished = run_loop(
            folder,
            config,
            parts.backbone,
            parts.trainer,
            parts.batches,
            parts.validators,
            info,
            device,
            reporter=reporter,
        )
    best = folder / "checkpoints" / "best.safetensors"
    return TrainSummary(folder.name, folder, finished, best if best.is_file() else None)
