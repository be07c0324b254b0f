"""From draws to batches on the training device: gather, augment, scale; some batches ahead, in threads.

No worker processes: a batch is one copy out of mapped memory, which threads do as well as processes, and nothing has to
be sent from one to another.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

from facetrain.batch import Batch
from facetrain.datasets.augment import Augment
from facetrain.datasets.photo_set import PhotoSet
from facetrain.datasets.samplers import Draw
from facetrain.image_spec import ImageSpec

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

    threads: batches that are made ready at the same time, while the network works.
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
        self.threads = threads
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
            yield Batch(
                images=self._feed.take(ready),
                labels=torch.from_numpy(self.photos.labels[draw.positions]).to(self.device),
                rows=torch.from_numpy(self.photos.rows[draw.positions]),
                num_anchors=draw.num_anchors,
            )

    def _augmented(self, images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        with self._augmenting:
            return self._augment(images, rng)


def plain_batches(
    photos: PhotoSet, device: torch.device, batch_size: int = 256, threads: int = 1
) -> Iterator[torch.Tensor]:
    """All images in order, not augmented, as float32 NCHW on the device: for embedding them."""
    feed = Feed(photos, device)
    everything = np.arange(len(photos))
    batches = (everything[start : start + batch_size] for start in range(0, len(photos), batch_size))
    for ready in in_order(feed.prepare, batches, threads):
        yield feed.take(ready)


def gathered(photos: PhotoSet, draws: Iterable[Draw], threads: int = 1) -> Iterator[tuple[Draw, np.ndarray]]:
    """Each draw with its images, uint8 [n, H, W, C], as they lie in the cache: for programs other than our trainers.

    The array's memory is used again: it is valid until the next one is asked for.
    """
    memory = Memory(photos.image_shape)
    photos.shards.read_ahead()

    def gather(draw: Draw) -> tuple[Draw, torch.Tensor]:
        return draw, _gather(photos, draw.positions, memory)

    for draw, images in in_order(gather, draws, threads):
        yield draw, images.numpy()
        memory.give_back(images)


@dataclass(frozen=True)
class Ready:
    """Images that wait to be used: on the processor, still as they are stored; on a GPU, ready when ``done`` is."""

    images: torch.Tensor
    done: torch.cuda.Event | None = None
    borrowed: bool = False  # the images' memory is to be given back


class Feed:
    """Brings images of a PhotoSet to the device: `prepare` in any thread, `take` in the one that uses them.

    For a GPU they are gathered into pinned memory, and copied, augmented and scaled on a stream beside the network's,
    which waits for just this batch.
    """

    def __init__(self, photos: PhotoSet, device: torch.device) -> None:
        self.photos, self.device = photos, device
        self._memory = Memory(photos.image_shape)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        photos.shards.read_ahead()

    def prepare(
        self, positions: np.ndarray, augment: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> Ready:
        """Gather images and augment them."""
        if self._stream is not None:
            return self._prepare_on(self._stream, positions, augment)
        images = _gather(self.photos, positions, self._memory)
        if augment is None:
            return Ready(images, borrowed=True)
        augmented = augment(images)
        self._memory.give_back(images)
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

    def take(self, ready: Ready) -> torch.Tensor:
        """float32 NCHW (channels last in memory) on the device, scaled by the spec."""
        if ready.done is None:
            images = scaled(ready.images, self.photos.spec)
            if ready.borrowed:
                self._memory.give_back(ready.images)
            return images
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(ready.done)
        ready.images.record_stream(stream)
        return ready.images


class Memory:
    """Memory for batches of images, used again: fresh memory costs page faults, a third of the time of gathering."""

    def __init__(self, image_shape: tuple[int, ...]) -> None:
        self.image_shape = image_shape
        self._free: deque[torch.Tensor] = deque()

    def take(self, count: int) -> torch.Tensor:
        """uint8 [count, *image_shape], of any content."""
        with suppress(IndexError):
            while (free := self._free.pop()).shape[0] < count:
                pass  # too small: let it go
            return free[:count]
        # NumPy asks for huge pages, PyTorch does not.
        return torch.from_numpy(np.empty((count, *self.image_shape), np.uint8))

    def give_back(self, images: torch.Tensor) -> None:
        """Let the memory of what `take` gave be used again."""
        self._free.append(images if images._base is None else images._base)


def _gather(photos: PhotoSet, positions: np.ndarray, memory: Memory) -> torch.Tensor:
    images = memory.take(len(positions))
    photos.gather(positions, images.numpy())
    return images


def in_order(make: Callable[[Item], Made], items: Iterable[Item], threads: int) -> Iterator[Made]:
    """``make(item)`` of each item in order; ``threads`` are made at a time, and twice as many wait ready at most.

    The threads take turns, so that results come in order by themselves: an executor's futures cost more than they give.
    """
    items = iter(items)
    lanes = [_Lane(make) for _ in range(threads)]
    turns = cycle(lanes)
    waiting: deque[_Lane[Item, Made]] = deque()
    try:
        for item in islice(items, 2 * threads):
            waiting.append(next(turns))
            waiting[-1].todo.put([item])
        while waiting:
            made, error = waiting.popleft().done.get()
            for item in islice(items, 1):
                waiting.append(next(turns))
                waiting[-1].todo.put([item])
            if error is not None:
                raise error
            yield made
    finally:
        for lane in lanes:
            lane.end()


class _Lane(Generic[Item, Made]):
    """A thread, what it has still to make, and what it has made: (result, None) or (None, error)."""

    def __init__(self, make: Callable[[Item], Made]) -> None:
        self.todo: SimpleQueue[list[Item]] = SimpleQueue()
        self.done: SimpleQueue[Any] = SimpleQueue()
        self._ended = False
        self._thread = threading.Thread(target=self._work, args=(make,), daemon=True)
        self._thread.start()

    def _work(self, make: Callable[[Item], Made]) -> None:
        while item := self.todo.get():
            if self._ended:
                return
            try:
                self.done.put((make(*item), None))
            except BaseException as error:
                self.done.put((None, error))

    def end(self) -> None:
        """Let it finish what it is at, and no more."""
        self._ended = True
        self.todo.put([])
        self._thread.join()


def scaled(images: torch.Tensor, spec: ImageSpec) -> torch.Tensor:
    """uint8 NHWC → float32 NCHW (channels last in memory), as ``(x - subtract) / divide`` of the spec."""
    return images.permute(0, 3, 1, 2).float().sub_(spec.subtract).div_(spec.divide)
