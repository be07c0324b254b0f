"""Batches gathered from several ranks, each with extra negatives, as one batch: anchors first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from facetrain.batch import Batch
from facetrain.train.trainers import metric
from facetrain.train.trainers.metric import MetricTrainer, _anchors_first


@pytest.mark.parametrize(
    ("ranks", "num_anchors", "extra"), [(1, 4, 2), (2, 3, 1), (3, 2, 5), (3, 4, 0), (2, 0, 3)]
)
def test_anchors_of_all_ranks_come_first_and_each_kind_in_the_order_of_ranks(
    ranks: int, num_anchors: int, extra: int
) -> None:
    rows_a_rank = num_anchors + extra
    # Row 10·r + i is the i-th of rank r; its label is a hundred more.
    numbers = (10 * torch.arange(ranks)[:, None] + torch.arange(rows_a_rank)).flatten()
    embeddings, labels, anchors = _anchors_first(
        numbers[:, None].float().expand(-1, 3), numbers + 100, num_anchors, rows_a_rank
    )
    expected = [10 * r + i for r in range(ranks) for i in range(num_anchors)]
    expected += [10 * r + i for r in range(ranks) for i in range(num_anchors, rows_a_rank)]
    assert anchors == ranks * num_anchors
    assert labels.tolist() == [number + 100 for number in expected]
    assert torch.equal(embeddings, torch.tensor(expected).float()[:, None].expand(-1, 3))


def test_gradients_find_their_rows() -> None:
    rows = torch.arange(6.0)[:, None].requires_grad_()
    embeddings, _, _ = _anchors_first(rows, torch.arange(6), 2, 3)
    (embeddings[:, 0] * torch.tensor([1.0, 2, 3, 4, 5, 6])).sum().backward()  # type: ignore[no-untyped-call]
    assert rows.grad is not None
    assert rows.grad[:, 0].tolist() == [1, 2, 5, 3, 4, 6]


class Recorder(torch.nn.Module):
    """A loss that keeps what it was given."""

    def forward(
        self, embeddings: Tensor, labels: Tensor, generator: torch.Generator, num_anchors: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.labels, self.num_anchors = labels.tolist(), num_anchors
        self.first = embeddings[:, 0].tolist()
        return embeddings.sum(), {}


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_trainer_hands_its_loss_one_batch(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = MetricTrainer(9, 4, loss="triplet", extra_negatives=2)
    trainer.loss = recorder = Recorder()
    if ranks > 1:
        monkeypatch.setattr(metric, "gather", lambda part: torch.cat([part, part + 10]))
    labels = torch.tensor([0, 0, 1, 1, 5, 6])
    batch = Batch(torch.zeros(6, 3, 2, 2), labels, torch.arange(6), 4, most_alike=2)
    trainer(labels[:, None].float().expand(-1, 4), batch, torch.Generator())
    expected = [0, 0, 1, 1, 5, 6] if ranks == 1 else [0, 0, 1, 1, 10, 10, 11, 11, 5, 6, 15, 16]
    assert recorder.labels == recorder.first == expected
    assert recorder.num_anchors == 4 * ranks
    assert recorder.most_alike == (2 if ranks == 1 else None)  # other ranks may have the same people
