"""Contract checks for plug-ins: plain functions for the tests of whoever writes one. Our own parts are held to them too.

Each takes what makes the part (a class, a `functools.partial` of it, a function) and raises AssertionError with a line
that says what the part did, on which input, and what the contract is. They need no test framework.
"""

from facetrain.testing.backbone import check_backbone
from facetrain.testing.detector import check_detector
from facetrain.testing.embedder import check_embedder
from facetrain.testing.loss import check_loss
from facetrain.testing.miner import check_miner
from facetrain.testing.protocol import check_protocol
from facetrain.testing.sampler import check_sampler
from facetrain.testing.trainer import check_trainer

__all__ = [
    "check_backbone",
    "check_detector",
    "check_embedder",
    "check_loss",
    "check_miner",
    "check_protocol",
    "check_sampler",
    "check_trainer",
]
