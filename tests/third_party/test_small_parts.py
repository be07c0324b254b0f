"""Held to facetrain's contracts."""

from functools import partial
from pathlib import Path

from small_parts.backbone import depthwise
from small_parts.embedder import Thumbnails
from small_parts.loss import ProxyNCA
from small_parts.miner import DistanceWeighted
from small_parts.protocol import OddOneOut
from small_parts.trainer import CenterTrainer

from facetrain.testing import (
    check_backbone,
    check_embedder,
    check_loss,
    check_miner,
    check_protocol,
    check_trainer,
)


def test_loss() -> None:
    check_loss(ProxyNCA, gradcheck=True)
    check_loss(partial(ProxyNCA, scale=1.0))


def test_miner() -> None:
    check_miner(DistanceWeighted)


def test_backbone() -> None:
    check_backbone(depthwise)


def test_trainer() -> None:
    check_trainer(partial(CenterTrainer, batch_size=32))


def test_embedder() -> None:
    check_embedder(Thumbnails)


def test_protocol(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.jpg").touch()
    (tmp_path / "threes.txt").write_text("a.jpg b.jpg c.jpg\nb.jpg a.jpg d.jpg\n")
    check_protocol(partial(OddOneOut, tmp_path))
