"""Decoding crops with DALI: a pipeline for all, dynamic mode for a batch in which one cannot be decoded.

After an error a pipeline is dead, and does not say which sample it was; dynamic mode stays usable, but costs more.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simplejpeg

from facetrain.errors import UserError

BATCH = 256  # on the CPU: more is no faster, and takes more memory
LANES = (
    4  # pipelines at once on the CPU, at most: threads of one wait for each other at the end of every batch
)
OUTPUTS = 2  # batches of pixels that DALI holds: while one is decoded, the one before it is stored
SMALLEST_GPU_BATCH, LARGEST_GPU_BATCH = 256, 16384
GPU_SHARE = 0.5  # of the free memory; the rest is for nvJPEG's own buffers and whoever else uses the GPU


@dataclass
class DecodeBatch:
    """Encoded crops (bytes or uint8 arrays) and where their pixels go: ``out[rows]``, uint8 [n, H, W, 3].

    When it is ``done``: ``failed``, why a crop has no pixels, by its position in the batch, its row of ``out`` being left
    as it was; and what decoded the others, "cpu", "mixed".
    """

    encoded: Sequence[bytes | np.ndarray]
    out: np.ndarray
    rows: np.ndarray
    done: bool = False
    failed: dict[int, str] = field(default_factory=dict)
    decoders: set[str] = field(default_factory=set)


class Decoder:
    """JPEG and PNG to uint8 RGB [size_px, size_px, 3], in batches of up to ``batch_size``.

    ``device``: "cpu", or "cuda", "cuda:1", … for nvJPEG ("mixed" decoding). What the GPU cannot decode, for whatever
    reason, the CPU tries.
    """

    def __init__(self, size_px: int, threads: int, device: str = "cpu") -> None:
        device_id = device_number(device)
        lanes = min(threads, LANES) if device_id is None else 1
        shares = [threads // lanes + (lane < threads % lanes) for lane in range(lanes)]
        self._lanes = deque(_Lane(size_px, share, device_id) for share in shares)

    @property
    def batch_size(self) -> int:
        """Crops at a time; it shrinks when a GPU has less memory left than it seemed."""
        return min(lane.batch_size for lane in self._lanes)

    def submit(self, batch: DecodeBatch) -> None:
        """Begin to decode up to ``batch_size`` crops. Batches are done in an order of their own."""
        self._lanes[0].submit(batch)
        self._lanes.rotate(-1)

    def finish(self) -> None:
        """Wait until all that was begun is done."""
        for lane in self._lanes:
            lane.finish()

    def decode(self, encoded: Sequence[bytes | np.ndarray], out: np.ndarray) -> dict[int, str]:
        """Decode crops into ``out``, uint8 [n, size_px, size_px, 3].

        Returns {position: reason} for those that cannot be decoded or have another size; their rows of ``out`` are
        left as they were.
        """
        with quiet_stderr():
            return self.decode_rows(encoded, out, np.arange(len(encoded)))

    def decode_rows(
        self, encoded: Sequence[bytes | np.ndarray], out: np.ndarray, rows: np.ndarray
    ) -> dict[int, str]:
        """The same into some rows of ``out``, ascending; the codecs may write to stderr."""
        size = self.batch_size
        parts = [slice(start, start + size) for start in range(0, len(encoded), size)]
        batches = [DecodeBatch(encoded[part], out, rows[part]) for part in parts]
        for batch in batches:
            self.submit(batch)
        self.finish()
        pairs = zip(parts, batches, strict=True)
        return {part.start + i: why for part, batch in pairs for i, why in batch.failed.items()}


class _Lane:
    """A pipeline with threads of its own."""

    def __init__(self, size_px: int, threads: int, device_id: int | None) -> None:
        self.size_px, self.threads, self.device_id = size_px, threads, device_id
        self.batch_size = BATCH if device_id is None else gpu_batch(size_px, free_memory(device_id))
        self._pipeline: Any = None
        self._begun: tuple[DecodeBatch, list[int]] | None = (
            None  # and the positions that the pipeline decodes
        )

    def submit(self, batch: DecodeBatch) -> None:
        """Begin with a batch; waits for the one before it, which is done then."""
        fed = []
        for i, data in enumerate(batch.encoded):
            size = size_in_header(data)
            if size is None:
                self._decode_one(batch, i)
            elif size != (self.size_px, self.size_px):
                batch.failed[i] = self._other_size(*size)
            else:
                fed.append(i)
        self._begin(batch, fed)

    def _begin(self, batch: DecodeBatch, fed: list[int]) -> None:
        try:
            self._feed(batch, fed)
        except RuntimeError as error:
            begun = self._begun
            self._give_up(error)
            for each in (begun, (batch, fed)):
                if each is not None:
                    self._decode_alone(*each)
        else:
            self._advance((batch, fed))

    def finish(self) -> None:
        """Wait until all that was begun is done."""
        self._advance(None)

    def _feed(self, batch: DecodeBatch, fed: list[int]) -> None:
        """Hand crops to DALI, which begins with them when it is told to."""
        if not fed:
            return
        if self._pipeline is None:
            from nvidia.dali.tensors import TensorCPU

            self._tensor = TensorCPU  # as DALI would make of an array, after some looking
            self._pipeline = _build(self.batch_size, self.threads, self.device_id)
        arrays = (np.frombuffer(batch.encoded[i], np.uint8) for i in fed)
        self._pipeline.feed_input("encoded", [self._tensor(array) for array in arrays])

    def _advance(self, following: tuple[DecodeBatch, list[int]] | None) -> None:
        """Wait for the batch that is being decoded, begin with the following, then store the pixels of the first.

        So DALI has always something to do, and yet no batch is on its way behind one that fails.
        """
        current, self._begun = self._begun, None
        images = None
        try:
            if current is not None and current[1]:
                (images,) = self._pipeline.share_outputs()
            if following is not None and following[1]:
                self._pipeline.schedule_run()
            self._begun = following
            if images is not None:
                assert current is not None
                self._store(*current, images if self.device_id is None else images.as_cpu())
                self._pipeline.release_outputs()
        except RuntimeError as error:
            self._give_up(error)
            if current is not None:
                self._decode_alone(*current)
            if following is not None:
                self._begin(*following)
        if current is not None:
            current[0].done = True

    def _give_up(self, error: RuntimeError) -> None:
        """After an error a pipeline is dead."""
        self._pipeline = self._begun = None
        if self.device_id is not None and "memory" in str(error).lower():
            self.batch_size = max(SMALLEST_GPU_BATCH, self.batch_size // 2)

    def _store(self, batch: DecodeBatch, fed: list[int], images: Any) -> None:
        batch.decoders.add("cpu" if self.device_id is None else "mixed")
        rows = batch.rows[fed]
        if images.is_dense_tensor():
            pixels = np.asarray(images.as_tensor())
            if pixels.shape[1:] == batch.out.shape[1:]:
                first, last = int(rows[0]), int(rows[-1])
                in_a_row = last - first + 1 == len(rows)  # rows ascend
                batch.out[slice(first, last + 1) if in_a_row else rows] = pixels
                return
        for i, (position, row) in enumerate(zip(fed, rows, strict=True)):
            self._store_one(np.asarray(images[i]), batch, position, row)

    def _store_one(self, image: np.ndarray, batch: DecodeBatch, position: int, row: int) -> None:
        if image.shape == batch.out.shape[1:]:
            batch.out[row] = image
        else:
            batch.failed[position] = self._other_size(image.shape[0], image.shape[1])

    def _other_size(self, height_px: int, width_px: int) -> str:
        return f"it is {width_px}×{height_px} pixels, not {self.size_px}×{self.size_px}"

    def _decode_alone(self, batch: DecodeBatch, fed: list[int]) -> None:
        """A batch that failed: what a GPU failed at is decoded by the CPU, and what that fails at one by one."""
        if self.device_id is None:
            for i in fed:
                self._decode_one(batch, i)
        else:
            on_cpu = Decoder(self.size_px, self.threads)
            failed = on_cpu.decode_rows([batch.encoded[i] for i in fed], batch.out, batch.rows[fed])
            batch.failed |= {fed[i]: why for i, why in failed.items()}
            batch.decoders.add("cpu")
        batch.done = True

    def _decode_one(self, batch: DecodeBatch, i: int) -> None:
        import nvidia.dali.experimental.dynamic as ndd
        from nvidia.dali import types

        encoded = ndd.as_tensor(np.frombuffer(batch.encoded[i], np.uint8))
        try:
            image = np.asarray(ndd.decoders.image(encoded, device="cpu", output_type=types.RGB))
        except RuntimeError as error:
            batch.failed[i] = why_undecodable(bytes(batch.encoded[i]), error)
        else:
            batch.decoders.add("cpu")
            self._store_one(image, batch, i, int(batch.rows[i]))


def size_in_header(data: bytes | np.ndarray) -> tuple[int, int] | None:
    """(height, width) by the header of a JPEG or PNG; None when it is another format, or seen to be damaged.

    What a pipeline is given must have been through this: on a JPEG whose header it cannot parse, on most damaged PNGs
    and on what is no picture, DALI 2.4 does not raise but ends the process, in batches of some tens.
    """
    start = bytes(data[:8])
    if start.startswith(b"\xff\xd8"):
        try:
            height_px, width_px, *_ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return None
        return height_px, width_px
    if start == b"\x89PNG\r\n\x1a\n":
        return _png_size(bytes(data))
    return None


def _png_size(data: bytes) -> tuple[int, int] | None:
    """The same of a PNG, if all of its chunks are there with the checksums that they carry."""
    if data[8:16] != b"\0\0\0\rIHDR":
        return None
    at = 8
    while at + 12 <= len(data):
        stop = at + 12 + int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : stop - 4]
        if stop > len(data) or zlib.crc32(body) != int.from_bytes(data[stop - 4 : stop], "big"):
            return None
        if body == b"IEND":
            return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
        at = stop
    return None


def _build(batch_size: int, threads: int, device_id: int | None) -> Any:  # DALI's types are not public
    from nvidia.dali import fn, pipeline_def, types

    # Not pipelined: or DALI wants OUTPUTS batches before it begins with the first.
    @pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=batch_size,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=OUTPUTS,
        exec_pipelined=False,
        exec_dynamic=True,
    )
    def pipeline() -> Any:
        encoded = fn.external_source(name="encoded", device="cpu", no_copy=True, dtype=types.UINT8, ndim=1)
        return fn.decoders.image(
            encoded, device="cpu" if device_id is None else "mixed", output_type=types.RGB
        )

    built = pipeline()
    built.build()
    return built


def device_number(device: str) -> int | None:
    """None for "cpu", the number of the GPU for "cuda" and "cuda:1"."""
    kind, _, number = device.partition(":")
    if device == "cpu":
        return None
    if kind != "cuda" or not (number or "0").isdecimal() or device.endswith(":"):
        raise UserError(f"unknown device '{device}': choose cpu, cuda or cuda:1")
    return int(number or 0)


def free_memory(device_id: int) -> int:
    """Bytes that are free on a GPU. Raises UserError when there is none of that number."""
    import torch

    if device_id >= torch.cuda.device_count():
        raise UserError(f"there is no GPU cuda:{device_id} here: choose --device cpu")
    return int(torch.cuda.mem_get_info(device_id)[0])


def gpu_batch(size_px: int, free_bytes: int) -> int:
    """Crops that a GPU with so much free memory decodes at once.

    Each takes its pixels in the OUTPUTS that there are at a time, and as much again for the planes and
    coefficients (16 bits a value) that nvJPEG has on the way.
    """
    pixels = size_px * size_px * 3
    each = pixels * OUTPUTS + 3 * pixels
    return int(np.clip(free_bytes * GPU_SHARE // each, SMALLEST_GPU_BATCH, LARGEST_GPU_BATCH))


def why_undecodable(data: bytes, error: Exception) -> str:
    """What is wrong with a crop that DALI could not decode, in words. DALI itself has codes; Pillow says more."""
    from PIL import Image, UnidentifiedImageError

    if not data:
        return "the file is empty"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                form = image.format
                image.load()
    except UnidentifiedImageError:
        return "it is no picture, or a damaged one"
    except Exception as found:  # whatever it is that a decoder stumbles over, it is the reason
        return f"it is damaged: {' '.join(str(found).split())}"
    return f"it is a {form} file that DALI cannot decode ({' '.join(str(error).split()).rstrip(' :')})"


@contextmanager
def quiet_stderr() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """The codecs write to the terminal what the caller reports better. Yields a context in which it is heard again."""
    sys.stderr.flush()
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)

    @contextmanager
    def aloud() -> Iterator[None]:
        os.dup2(kept, 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(null, 2)

    try:
        os.dup2(null, 2)
        yield aloud
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
