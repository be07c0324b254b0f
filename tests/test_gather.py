"""Mining over ranks: several processes, each with its part of a batch, as one with all of it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from facetrain.kernels.gather import gather
from facetrain.train.losses.triplet import Triplet

RANKS, ROWS = 3, 8


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(RANKS * ROWS, 5, generator=generator, dtype=torch.float64), dim=1)
    return rows, torch.randint(4, (RANKS * ROWS,), generator=generator)


def loss_of(rows: Tensor, labels: Tensor) -> Tensor:
    return Triplet(miner="batch-hard", margin=0.5)(rows, labels)[0]


def rank(number: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=number, world_size=RANKS)
    rows, labels = (part[number * ROWS : (number + 1) * ROWS] for part in batch())
    rows.requires_grad_()
    loss = loss_of(gather(rows), gather(labels))
    loss.backward()  # type: ignore[no-untyped-call]
    torch.save((loss.detach(), rows.grad), f"{folder}/{number}.pt")
    dist.destroy_process_group()


def test_ranks_see_the_global_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(rank, (str(tmp_path),), nprocs=RANKS)  # type: ignore[attr-defined]
    rows, labels = batch()
    rows.requires_grad_()
    expected = loss_of(rows, labels)
    expected.backward()  # type: ignore[no-untyped-call]
    parts = [torch.load(tmp_path / f"{number}.pt") for number in range(RANKS)]
    for loss, _ in parts:
        torch.testing.assert_close(loss, expected.detach())
    assert rows.grad is not None
    torch.testing.assert_close(torch.cat([grad for _, grad in parts]), RANKS * rows.grad)


def test_without_ranks_nothing_is_done() -> None:
    rows, _ = batch()
    assert gather(rows) is rows
