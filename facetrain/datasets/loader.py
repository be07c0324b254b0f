"""From draws to batches on the training device: gather, augment, scale; some batches ahead, in threads.

No worker processes: a batch is one copy out of mapped memory, which threads do as well as processes, and nothing has to
be sent from one to another.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

from facetrain.batch import Batch
from facetrain.datasets.augment import Augment
from facetrain.datasets.photo_set import PhotoSet
from facetrain.datasets.samplers import Draw
from facetrain.image_spec import ImageSpec

MOST_AHEAD = 4  # batches at a time: more would only fill the memory

Item = TypeVar("Item")
Made = TypeVar("Made")


class Sampler(Protocol):
    """What decides on the batches of an epoch. Positions are those of the PhotoSet."""

    @property
    def max_batch(self) -> int: ...

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Draw]: ...


class TrainingBatches:
    """Augmented batches, deterministic in (seed, epoch, position); see `facetrain.batch.Batches`.

    threads: of the augmentation; up to MOST_AHEAD batches are made ready at the same time, while the network works.
    """

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
        self.threads = min(threads, MOST_AHEAD)
        self._feed = Feed(photos, device)
        self._augment = Augment(
            photos.spec.size_px, augment, max_batch=sampler.max_batch, threads=threads, device=device
        )
        self._augmenting = (
            threading.Lock()
        )  # a DALI pipeline runs one batch at a time, with threads of its own

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches from position ``start`` on."""

        def prepare(item: tuple[int, Draw]) -> tuple[Draw, Ready]:
            position, draw = item
            rng = np.random.Generator(np.random.Philox(key=[self.seed + 1, (epoch << 32) + position]))
            return draw, self._feed.prepare(draw.positions, lambda images: self._augmented(images, rng))

        draws = enumerate(self.sampler.epoch(epoch, start), start)
        for draw, ready in in_order(prepare, draws, self.threads):
            labels = self.photos.labels[draw.positions]
            counts = np.unique(labels[: draw.num_anchors], return_counts=True)[1]
            yield Batch(
                images=self._feed.take(ready),
                labels=self._feed.to_device(labels),
                rows=torch.from_numpy(self.photos.rows[draw.positions]),
                num_anchors=draw.num_anchors,
                most_alike=int(counts.max(initial=0)),
            )

    def _augmented(self, images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        with self._augmenting:
            return self._augment(images, rng)


def plain_crops(photos: PhotoSet, batch_size: int = 256, threads: int = 1) -> Iterator[np.ndarray]:
    """All images in order, as they lie in the cache: see `gathered`."""
    everything = np.arange(len(photos))
    parts = (everything[start : start + batch_size] for start in range(0, len(photos), batch_size))
    for _, images in gathered(photos, (Draw(part, len(part)) for part in parts), threads):
        yield images


def plain_batches(
    photos: PhotoSet,
    device: torch.device,
    positions: np.ndarray | None = None,
    batch_size: int = 256,
    threads: int = 1,
) -> Iterator[torch.Tensor]:
    """Images at these positions (None: all) in order, not augmented, as float32 NCHW on the device: for embedding them."""
    feed = Feed(photos, device)
    wanted = np.arange(len(photos)) if positions is None else positions
    batches = (wanted[start : start + batch_size] for start in range(0, len(wanted), batch_size))
    for ready in in_order(feed.prepare, batches, min(threads, MOST_AHEAD)):
        yield feed.take(ready)


def gathered(photos: PhotoSet, draws: Iterable[Draw], threads: int = 1) -> Iterator[tuple[Draw, np.ndarray]]:
    """Each draw with its images, uint8 [n, H, W, C], as they lie in the cache: for programs other than our trainers.

    The array's memory is used again: it is valid until the next one is asked for.
    """
    photos.shards.read_ahead()

    def gather(draw: Draw) -> tuple[Draw, np.ndarray]:
        return draw, photos.gather(draw.positions, photos.memory.take(len(draw.positions)))

    for draw, images in in_order(gather, draws, threads):
        yield draw, images
        photos.memory.give_back(images)


@dataclass(frozen=True)
class Ready:
    """Images that wait to be used: on the processor, still as they are stored; on a GPU, ready when ``done`` is."""

    images: torch.Tensor
    done: torch.cuda.Event | None = None
    borrowed: np.ndarray | None = None  # the images' memory, to be given back


class Feed:
    """Brings images of a PhotoSet to the device: `prepare` in any thread, `take` in the one that uses them.

    For a GPU they are gathered into pinned memory, and copied, augmented and scaled on a stream beside the network's,
    which waits for just this batch.
    """

    def __init__(self, photos: PhotoSet, device: torch.device) -> None:
        self.photos, self.device = photos, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        photos.shards.read_ahead()

    def prepare(
        self, positions: np.ndarray, augment: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> Ready:
        """Gather images and augment them."""
        if self._stream is not None:
            return self._prepare_on(self._stream, positions, augment)
        memory = self.photos.memory
        images = self.photos.gather(positions, memory.take(len(positions)))
        if augment is None:
            return Ready(torch.from_numpy(images), borrowed=images)
        augmented = augment(torch.from_numpy(images))
        memory.give_back(images)
        return Ready(augmented)

    def _prepare_on(
        self,
        stream: torch.cuda.Stream,
        positions: np.ndarray,
        augment: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> Ready:
        # PyTorch keeps freed pinned memory for the next batch, once the copies out of it are done.
        pinned = torch.empty((len(positions), *self.photos.image_shape), dtype=torch.uint8, pin_memory=True)
        self.photos.gather(positions, pinned.numpy())
        with torch.cuda.stream(stream):
            images = pinned.to(self.device, non_blocking=True)
            images = scaled(images if augment is None else augment(images), self.photos.spec)
            done = torch.cuda.Event()
            done.record()
        return Ready(images, done)

    def to_device(self, values: np.ndarray) -> torch.Tensor:
        """Copy a few numbers to the device; never waits for what the device is at."""
        tensor = torch.from_numpy(values)
        return tensor if self._stream is None else tensor.pin_memory().to(self.device, non_blocking=True)

    def take(self, ready: Ready) -> torch.Tensor:
        """float32 NCHW (channels last in memory) on the device, scaled by the spec."""
        if ready.done is None:
            images = scaled(ready.images, self.photos.spec)
            if ready.borrowed is not None:
                self.photos.memory.give_back(ready.borrowed)
            return images
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(ready.done)
        ready.images.record_stream(stream)
        return ready.images


def in_order(make: Callable[[Item], Made], items: Iterable[Item], threads: int) -> Iterator[Made]:
    """``make(item)`` of each item in order; ``threads`` are made at a time, and one more waits ready.

    The threads take turns, so that results come in order by themselves: an executor's futures cost more than they give.
    """
    lanes = [_Lane(make) for _ in range(threads)]
    waiting: deque[_Lane[Item, Made]] = deque()
    try:
        for item, lane in zip(items, cycle(lanes), strict=False):
            lane.todo.put((item,))
            waiting.append(lane)
            if len(waiting) > threads:
                yield waiting.popleft().next()
        while waiting:
            yield waiting.popleft().next()
    finally:
        for lane in lanes:
            lane.end()


class _Lane(Generic[Item, Made]):
    """A thread, what it has still to make, and what it has made: (result, None) or (None, error)."""

    def __init__(self, make: Callable[[Item], Made]) -> None:
        self.todo: SimpleQueue[tuple[Item] | None] = SimpleQueue()
        self._done: SimpleQueue[Any] = SimpleQueue()
        self._ended = False
        self._thread = threading.Thread(target=self._work, args=(make,), daemon=True)
        self._thread.start()

    def _work(self, make: Callable[[Item], Made]) -> None:
        while (todo := self.todo.get()) and not self._ended:
            try:
                self._done.put((make(todo[0]), None))
            except BaseException as error:
                self._done.put((None, error))

    def next(self) -> Made:
        """What was made of the next item, waited for; or the error that it was."""
        made, error = self._done.get()
        if error is not None:
            raise error
        return made

    def end(self) -> None:
        """Let it finish what it is at, and no more."""
        self._ended = True
        self.todo.put(None)
        self._thread.join()


def scaled(images: torch.Tensor, spec: ImageSpec) -> torch.Tensor:
    """uint8 NHWC → float32 NCHW (channels last in memory), as ``(x - subtract) / divide`` of the spec."""
    return images.permute(0, 3, 1, 2).float().sub_(spec.subtract).div_(spec.divide)
