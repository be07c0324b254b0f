"""From draws to batches on the training device: gather, augment, scale; one batch ahead, in a thread."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Protocol

import numpy as np
import torch

from facetrain.batch import Batch
from facetrain.datasets.augment import Augment
from facetrain.datasets.photo_set import PhotoSet
from facetrain.datasets.samplers import Draw
from facetrain.image_spec import ImageSpec

AHEAD = 2  # batches made ready while the network works


class Sampler(Protocol):
    """What decides on the batches of an epoch."""

    @property
    def max_batch(self) -> int: ...

    def __len__(self) -> int: ...

    def epoch(self, epoch: int) -> Iterator[Draw]: ...


class TrainingBatches:
    """Augmented batches, deterministic in (seed, epoch, position); see `facetrain.batch.Batches`."""

    def __init__(
        self,
        photos: PhotoSet,
        sampler: Sampler,
        *,
        seed: int,
        augment: float,
        threads: int,
        device: torch.device,
    ) -> None:
        self.photos, self.sampler, self.seed, self.device = photos, sampler, seed, device
        self._augment = Augment(photos.spec.size_px, augment, max_batch=sampler.max_batch, threads=threads)

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches from position ``start`` on."""
        draws = enumerate(self.sampler.epoch(epoch))
        with ThreadPoolExecutor(1) as pool:
            ready = [pool.submit(self._pixels, epoch, *item) for item in islice(draws, start, start + AHEAD)]
            while ready:
                draw, images = ready.pop(0).result()
                for position, following in islice(draws, 1):
                    ready.append(pool.submit(self._pixels, epoch, position, following))
                yield self._batch(draw, images)

    def _pixels(self, epoch: int, position: int, draw: Draw) -> tuple[Draw, np.ndarray]:
        rng = np.random.Generator(np.random.Philox(key=[self.seed + 1, (epoch << 32) + position]))
        return draw, self._augment(self.photos.gather(draw.positions), rng)

    def _batch(self, draw: Draw, images: np.ndarray) -> Batch:
        return Batch(
            images=to_device(images, self.photos.spec, self.device),
            labels=torch.from_numpy(self.photos.labels[draw.positions]).to(self.device),
            rows=torch.from_numpy(self.photos.rows[draw.positions]),
            num_anchors=draw.num_anchors,
        )


def plain_batches(photos: PhotoSet, device: torch.device, batch_size: int = 256) -> Iterator[torch.Tensor]:
    """All images in order, not augmented, as float32 NCHW on the device: for embedding them."""
    for start in range(0, len(photos), batch_size):
        positions = np.arange(start, min(start + batch_size, len(photos)))
        yield to_device(photos.gather(positions), photos.spec, device)


def to_device(images: np.ndarray, spec: ImageSpec, device: torch.device) -> torch.Tensor:
    """uint8 NHWC → float32 NCHW (channels last in memory) on ``device``, scaled by the spec."""
    tensor = torch.from_numpy(images)
    if device.type == "cuda":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor.permute(0, 3, 1, 2).float().sub_(spec.subtract).div_(spec.divide)
