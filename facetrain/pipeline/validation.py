"""Protocols that are measured while a network is trained: what the settings ``[[validate]]`` name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from facetrain.config import TrainConfig, Validation
from facetrain.datasets.loader import plain_batches, scaled
from facetrain.datasets.photo_set import PhotoSet
from facetrain.errors import UserError
from facetrain.evaluate.protocols.base import Measured, Protocol
from facetrain.evaluate.protocols.pairwise import column_value
from facetrain.evaluate.protocols.split import Split
from facetrain.evaluate.trial_files import write_texts, write_trials
from facetrain.pipeline.protocol_crops import protocol_crops, with_rows_of_none
from facetrain.pipeline.protocols import open_protocol
from facetrain.train.validator import Embed, Validator
from facetrain.workspace import Workspace

SPREAD = ("_standard_error", "_deviation")  # of a measurement, and no merit of a network

Batches = Callable[
    [NDArray[np.int64]], Iterator[torch.Tensor]
]  # images of these rows, on the training device


def validators(
    workspace: Workspace,
    run_folder: Path,
    config: TrainConfig,
    opened: list[Protocol | None],
    train: PhotoSet,
    val: PhotoSet,
    device: torch.device,
    threads: int,
    say: Callable[[str], None],
) -> list[Validator]:
    """One for each entry and the protocol that `open_protocols` made of it; photographs are aligned now, so that nothing is
    left to do but to embed them.

    UserError for a split that cannot be measured, and for a ``best`` that none of them measures.
    """
    made = []
    for entry, files in zip(config.validators, opened, strict=True):
        protocol, batches, found = (
            _of_split(entry, config, val, device, threads)
            if files is None
            else _of_files(workspace, entry, files, val, device, threads, say)
        )
        trained_on = protocol.people & set(train.identities)
        if trained_on:
            say(
                f"warning: {len(trained_on):,} of the {len(protocol.people):,} people of {entry.prefix} are trained on "
                f"({min(trained_on)}, …): `ft clean --exclude-people` keeps them out"
            )
        made.append(_validator(entry, protocol, batches, found, run_folder, device))
    _check_best(config, made)
    return made


def open_protocols(workspace: Workspace, config: TrainConfig) -> list[Protocol | None]:
    """The protocols of the entries, their lists read and checked; None for the validation split."""
    return [
        None if entry.data is None else _opened(workspace, entry, entry.data) for entry in config.validators
    ]


def _opened(workspace: Workspace, entry: Validation, data: str) -> Protocol:
    protocol = open_protocol(workspace, entry.protocol, Path(data), entry.protocol_args)
    if len(protocol.photographs) == 0:
        raise UserError(
            f"{data} holds scores or embeddings already: nothing in it is of the network that is trained"
        )
    return protocol


def _of_split(
    entry: Validation, config: TrainConfig, val: PhotoSet, device: torch.device, threads: int
) -> tuple[Protocol, Batches, NDArray[np.bool_]]:
    arguments = {"num_pairs": config.validation_pairs or 6000, "seed": config.seed, "retrieval": False}
    unknown = entry.protocol_args.keys() - arguments.keys()
    if unknown:
        raise UserError(f"protocol 'split' takes no '{min(unknown)}': it takes {', '.join(arguments)}")
    paths = [str(row) for row in val.rows.tolist()]
    try:
        protocol = Split(Path(), paths, val.labels, val.identities, **(arguments | entry.protocol_args))
    except UserError as error:
        raise UserError(
            f"the validation split cannot be measured ({error}): set more people apart, `ft split 0.3` for "
            f"example, or train without validation, `--set validation_pairs=0`"
        ) from None

    def batches(rows: NDArray[np.int64]) -> Iterator[torch.Tensor]:
        return plain_batches(val, device, rows, threads=threads)

    return protocol, batches, np.ones(len(val), bool)


def _of_files(
    workspace: Workspace,
    entry: Validation,
    protocol: Protocol,
    val: PhotoSet,
    device: torch.device,
    threads: int,
    say: Callable[[str], None],
) -> tuple[Protocol, Batches, NDArray[np.bool_]]:
    spec = val.spec
    crops = protocol_crops(workspace, protocol.photographs, spec, "the dataset", entry.multi, threads)
    for note in crops.notes:
        say(f"{entry.prefix}: {note}")

    def batches(rows: NDArray[np.int64]) -> Iterator[torch.Tensor]:
        for images in crops.batches(rows):
            yield scaled(torch.from_numpy(images).to(device), spec)

    return protocol, batches, crops.found


def _validator(
    entry: Validation,
    protocol: Protocol,
    batches: Batches,
    found: NDArray[np.bool_],
    run_folder: Path,
    device: torch.device,
) -> Validator:
    rows = np.flatnonzero(found)

    def measure(embed: Embed, moment: str) -> dict[str, float]:
        there = over_ranks(rows, lambda part: embed(batches(part), flip=entry.flip))
        measured = protocol.measure(with_rows_of_none(there, found), found, device=device)
        if entry.keep_scores and _is_first_rank():
            _keep(run_folder / "validation" / entry.prefix / moment, protocol, measured)
        return {f"{entry.prefix}_{name}": column_value(measured.values[name]) for name in protocol.figures}

    columns = {f"{entry.prefix}_{name}": figure.lower_is_better for name, figure in protocol.figures.items()}
    every_epochs = entry.every_epochs or (None if entry.every_steps else 1)
    return Validator(measure, columns, every_epochs, entry.every_steps)


def over_ranks(rows: NDArray[np.int64], embed: Callable[[NDArray[np.int64]], np.ndarray]) -> np.ndarray:
    """``embed(rows)``, float32 [n, D]; where several processes train together each embeds its share, and all get all.

    Row i is of rank i modulo their number; the first rows stand in where shares would differ in length.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return embed(rows)
    ranks, rank = dist.get_world_size(), dist.get_rank()
    padded = np.resize(rows, -(-len(rows) // ranks) * ranks)
    on = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    share = torch.from_numpy(np.ascontiguousarray(embed(padded[rank::ranks]))).to(on)
    shares = [torch.empty_like(share) for _ in range(ranks)]
    dist.all_gather(shares, share)
    together: np.ndarray = torch.stack(shares, dim=1).flatten(0, 1)[: len(rows)].cpu().numpy()
    return together


def _is_first_rank() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _keep(out: Path, protocol: Protocol, measured: Measured) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_texts(out, measured.files)
    if measured.trials is not None:
        write_trials(out, measured.trials.to_show(), protocol.photographs)


def _check_best(config: TrainConfig, made: list[Validator]) -> None:
    measured = [name for validator in made for name in validator.columns]
    known = ["loss", "last", *(name for name in measured if not name.endswith(SPREAD))]
    if config.best is not None and config.best not in known:
        raise UserError(
            f"best = '{config.best}' is measured by nothing here: choose one of {', '.join(known)}"
        )
