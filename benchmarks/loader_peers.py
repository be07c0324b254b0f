"""Images a second that other loaders give: shuffled uint8 batches of decoded crops, from JPEG files and from pixels.

    python benchmarks/loader_peers.py                          all that are installed here, 10,000 made-up crops
    python benchmarks/loader_peers.py np-take torch-pil        these alone
    python benchmarks/loader_peers.py --crops ALIGNED          crops of your own, one folder a person
    python benchmarks/loader_peers.py --python OTHER/bin/python --python ANOTHER/bin/python

Each peer is measured in a process of its own, in the first of the interpreters that has its package (the peers do not all
fit into one environment; this file needs NumPy and Pillow alone). It writes its own format once, runs an epoch to warm up,
in which what it gives is checked, and then a few more, of which the median counts. Prints a Markdown table; with --json
one line of JSON for each. `run` is what other benchmarks call.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 256
Batches = Iterator[Any]  # uint8 [≤ BATCH, H, W, 3], NumPy or torch
Epoch = Callable[[int], Batches]  # seed → the batches of one epoch


@dataclass(frozen=True)
class Source:
    """The same crops twice: ``crops/<person>/<n>.jpg``, and decoded in ``pixels.npy``, uint8 [n, H, W, 3], in that order."""

    folder: Path

    @cached_property
    def files(self) -> list[Path]:
        return sorted((self.folder / "crops").glob("*/*.jpg"))

    @cached_property
    def labels(self) -> list[int]:
        people = {name: label for label, name in enumerate(sorted({file.parent.name for file in self.files}))}
        return [people[file.parent.name] for file in self.files]

    @cached_property
    def pixels(self) -> np.ndarray:
        return np.load(self.folder / "pixels.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.pixels)


def write_source(folder: Path, images: int, crops: Path | None = None, size_px: int = 96) -> Source:
    """Make a Source in ``folder`` of the first JPEGs of a tree of crops; or of made-up pictures, ten a person."""
    from PIL import Image

    if not (folder / "pixels.npy").is_file():
        shutil.rmtree(folder / "crops", ignore_errors=True)
        encoded: Iterator[tuple[str, bytes]]
        if crops is None:
            encoded = _made_up(images, size_px)
        else:
            encoded = ((path.parent.name, path.read_bytes()) for path in sorted(crops.glob("*/*.jpg")))
        decoded = []
        for number, (person, data) in enumerate(islice(encoded, images)):
            file = folder / "crops" / person / f"{number:08d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            decoded.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        np.save(folder / "unfinished.npy", np.stack(decoded))
        os.replace(folder / "unfinished.npy", folder / "pixels.npy")
    return Source(folder)


def _made_up(images: int, size_px: int) -> Iterator[tuple[str, bytes]]:
    """Smooth colours with some grain: as JPEGs of quality 95 about the size of a face's, and as long to decode."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(images):
        coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3), np.uint8))
        smooth = np.asarray(coarse.resize((size_px, size_px), Image.Resampling.BICUBIC)).astype(np.float32)
        grain = draw.normal(0, 4, (size_px, size_px, 1)).astype(np.float32)
        file = io.BytesIO()
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
        yield f"person_{number // 10:06d}", file.getvalue()


# -- floors: in this process, from the memory map --------------------------------------------------------------------


def open_np_take(source: Source, folder: Path, workers: int) -> Epoch:
    """Threads, each of which gathers a whole batch into one of a few buffers."""
    threads = max(1, workers)
    pixels = source.pixels.view(np.ndarray)  # np.memmap wraps every result
    ring = [np.empty((BATCH, *pixels.shape[1:]), np.uint8) for _ in range(threads + 2)]
    pool = ThreadPoolExecutor(threads)

    def gather(number: int, rows: np.ndarray) -> np.ndarray:
        out = ring[number % len(ring)][: len(rows)]
        return np.take(pixels, rows, axis=0, out=out, mode="clip")  # "raise" would go by way of a buffer

    def epoch(seed: int) -> Batches:
        parts = list(enumerate(_shuffled(len(source), seed)))
        if threads == 1:
            return (gather(*part) for part in parts)
        return _ahead(pool, gather, parts, threads)

    return epoch


def open_index_select(source: Source, folder: Path, workers: int) -> Epoch:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the map is read-only
        pixels = torch.from_numpy(source.pixels)
    out = torch.empty((BATCH, *pixels.shape[1:]), dtype=torch.uint8)

    def epoch(seed: int) -> Batches:
        for rows in _shuffled(len(source), seed):
            yield torch.index_select(pixels, 0, torch.from_numpy(rows), out=out[: len(rows)])

    return epoch


def _shuffled(count: int, seed: int) -> Iterator[np.ndarray]:
    order = np.random.default_rng(seed).permutation(count)
    return (order[start : start + BATCH] for start in range(0, count, BATCH))


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[..., Any], items: Sequence[tuple], ahead: int
) -> Batches:
    """``pool.map`` in order, with a bounded number of results waiting."""
    waiting = []
    for item in items:
        waiting.append(pool.submit(function, *item))
        if len(waiting) > ahead:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


# -- torch's DataLoader ----------------------------------------------------------------------------------------------


def decode_pil(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def decode_opencv(data: bytes) -> np.ndarray:
    import cv2

    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


@dataclass(frozen=True)
class JpegFiles:
    """A map-style data set, as anyone would write it."""

    files: list[Path]
    decode: Callable[[bytes], np.ndarray]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> np.ndarray:
        return self.decode(self.files[number].read_bytes())


@dataclass(frozen=True)
class Rows:
    """Rows of the memory map, a batch at a time."""

    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitems__(self, numbers: list[int]) -> Any:
        import torch

        return torch.from_numpy(self.pixels[numbers])


def data_loader(dataset: Any, workers: int, **options: Any) -> Epoch:
    """Epochs of a DataLoader that shuffles; its worker processes live on from one to the next."""
    from torch.utils.data import DataLoader

    options = {"batch_size": BATCH, "shuffle": True, **options}
    loader = DataLoader(dataset, num_workers=workers, persistent_workers=workers > 0, **options)

    def epoch(seed: int) -> Batches:
        import torch

        torch.manual_seed(seed)
        for batch in loader:
            yield batch["image"] if isinstance(batch, dict) else batch

    return epoch


def open_torch(decode: Callable[[bytes], np.ndarray]) -> Callable[[Source, Path, int], Epoch]:
    return lambda source, folder, workers: data_loader(JpegFiles(source.files, decode), workers)


def open_torch_rows(source: Source, folder: Path, workers: int) -> Epoch:
    return data_loader(Rows(source.pixels), workers, collate_fn=lambda batch: batch)


# -- WebDataset ------------------------------------------------------------------------------------------------------


def prepare_webdataset(source: Source, folder: Path) -> None:
    import webdataset

    per_shard = -(-len(source) // 16)  # a worker reads whole shards: enough of them for every worker
    with webdataset.ShardWriter(str(folder / "%04d.tar"), maxcount=per_shard, verbose=0) as writer:
        for number, (file, label) in enumerate(zip(source.files, source.labels, strict=True)):
            writer.write({"__key__": f"{number:08d}", "jpg": file.read_bytes(), "cls": label})


def open_webdataset(decode: Callable[[bytes], np.ndarray]) -> Callable[[Source, Path, int], Epoch]:
    def open_(source: Source, folder: Path, workers: int) -> Epoch:
        import torch
        import webdataset

        shards = [str(path) for path in sorted(folder.glob("*.tar"))]
        dataset = (
            webdataset.WebDataset(shards, shardshuffle=len(shards))
            .shuffle(1000)
            .map(lambda sample: decode(sample["jpg"]))
            .batched(BATCH, collation_fn=lambda images: torch.from_numpy(np.stack(images)))
        )
        return data_loader(dataset, workers, batch_size=None, shuffle=False)

    return open_


# -- MosaicML streaming ----------------------------------------------------------------------------------------------


def import_streaming() -> Any:
    """It imports torchvision, whose ordinary build does not load beside a CPU-only torch until two operators are known."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
    return importlib.import_module("streaming")


_KEPT: list[Any] = []  # what must live as long as the process


def prepare_mosaicml(pixels: bool) -> Callable[[Source, Path], None]:
    def prepare(source: Source, folder: Path) -> None:
        from PIL import Image

        streaming = import_streaming()
        shape = ",".join(map(str, source.pixels.shape[1:]))
        columns = {"image": f"ndarray:uint8:{shape}" if pixels else "jpeg", "label": "int"}
        with streaming.MDSWriter(out=str(folder / "mds"), columns=columns) as writer:
            for number, label in enumerate(source.labels):
                image = np.array(source.pixels[number]) if pixels else Image.open(source.files[number])
                writer.write({"image": image, "label": label})

    return prepare


def open_mosaicml(source: Source, folder: Path, workers: int) -> Epoch:
    streaming = import_streaming()
    streaming.base.util.clean_stale_shared_memory()

    class Images(streaming.StreamingDataset):  # type: ignore[name-defined,misc]
        def __getitem__(self, number: int) -> np.ndarray:
            return np.array(super().__getitem__(number)["image"])

    dataset = Images(local=str(folder / "mds"), shuffle=True, batch_size=BATCH)
    return data_loader(dataset, workers, shuffle=False)


# -- LitData ---------------------------------------------------------------------------------------------------------


def prepare_litdata(pixels: bool) -> Callable[[Source, Path], None]:
    def prepare(source: Source, folder: Path) -> None:
        import litdata

        def sample(number: int) -> dict[str, Any]:
            image = np.array(source.pixels[number]) if pixels else source.files[number].read_bytes()
            return {"image": image, "label": source.labels[number]}

        litdata.optimize(
            fn=sample,
            inputs=list(range(len(source))),
            output_dir=str(folder / "chunks"),
            chunk_bytes="64MB",
            num_workers=1,
            start_method="fork",
        )

    return prepare


def open_litdata(decode: Callable[[Any], np.ndarray]) -> Callable[[Source, Path, int], Epoch]:
    def open_(source: Source, folder: Path, workers: int) -> Epoch:
        import litdata

        dataset = litdata.StreamingDataset(
            str(folder / "chunks"), shuffle=True, transform=lambda sample: decode(sample["image"])
        )
        loader = litdata.StreamingDataLoader(
            dataset, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0
        )
        return lambda seed: iter(loader)  # it counts its epochs itself

    return open_


# -- Hugging Face datasets -------------------------------------------------------------------------------------------


def prepare_huggingface(pixels: bool) -> Callable[[Source, Path], None]:
    def prepare(source: Source, folder: Path) -> None:
        import datasets

        def rows() -> Iterator[dict[str, Any]]:
            for number, (file, label) in enumerate(zip(source.files, source.labels, strict=True)):
                image = source.pixels[number] if pixels else {"bytes": file.read_bytes(), "path": None}
                yield {"image": image, "label": label}

        kind = datasets.Array3D(source.pixels.shape[1:], "uint8") if pixels else datasets.Image()
        features = datasets.Features({"image": kind, "label": datasets.Value("int64")})
        datasets.disable_progress_bars()
        made = datasets.Dataset.from_generator(rows, features=features, cache_dir=str(folder / "cache"))
        made.save_to_disk(str(folder / "set"))

    return prepare


def open_huggingface(source: Source, folder: Path, workers: int) -> Epoch:
    import datasets
    import torch

    dataset = datasets.load_from_disk(str(folder / "set")).select_columns(["image"])
    dataset = dataset.with_format("numpy", dtype=np.uint8)

    def collate(rows: list[dict[str, np.ndarray]]) -> Any:
        return torch.from_numpy(np.stack([row["image"] for row in rows]))

    return data_loader(dataset, workers, collate_fn=collate)


# -- FFCV ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelledPixels:
    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
        return np.array(self.source.pixels[number]), self.source.labels[number]


def prepare_ffcv(write_mode: str) -> Callable[[Source, Path], None]:
    def prepare(source: Source, folder: Path) -> None:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter

        image = RGBImageField(write_mode=write_mode, jpeg_quality=95)
        fields = {"image": image, "label": IntField()}
        writer = DatasetWriter(str(folder / "set.beton"), fields, num_workers=1)
        writer.from_indexed_dataset(LabelledPixels(source))

    return prepare


def open_ffcv(source: Source, folder: Path, workers: int) -> Epoch:
    from ffcv.fields.decoders import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    loader = Loader(
        str(folder / "set.beton"),
        batch_size=BATCH,
        num_workers=max(1, workers),
        os_cache=True,
        order=OrderOption.RANDOM,
        seed=0,  # its epochs differ all the same
        drop_last=False,
        pipelines={"image": [SimpleRGBImageDecoder()], "label": None},
    )
    return lambda seed: (batch[0] for batch in loader)


# -- all of them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """A loader. ``unit``: what is counted, worker processes or threads; ``start``: from JPEGs, or from pixels."""

    title: str
    start: str
    unit: str
    packages: tuple[str, ...]
    open: Callable[[Source, Path, int], Epoch]
    prepare: Callable[[Source, Path], None] = lambda source, folder: None

    def available(self) -> str | None:
        """Why it cannot be measured here; None when it can."""
        for package in self.packages:
            try:
                import_streaming() if package == "streaming" else importlib.import_module(package)
            except ModuleNotFoundError:
                return "not installed"
            except Exception as error:
                return f"cannot be imported: {' '.join(str(error).split())[:200]}"
        return None


def _pixels(image: Any) -> np.ndarray:
    return np.asarray(image)


PEERS: dict[str, Peer] = {
    "np-take": Peer("np.take on a memory map", "pixels", "threads", (), open_np_take),
    "torch-index-select": Peer(
        "torch.index_select on a memory map", "pixels", "threads", ("torch",), open_index_select
    ),
    "torch-rows": Peer(
        "torch DataLoader, rows of a memory map", "pixels", "workers", ("torch",), open_torch_rows
    ),
    "torch-pil": Peer("torch DataLoader + PIL", "JPEG", "workers", ("torch", "PIL"), open_torch(decode_pil)),
    "torch-opencv": Peer(
        "torch DataLoader + OpenCV", "JPEG", "workers", ("torch", "cv2"), open_torch(decode_opencv)
    ),
    "webdataset-pil": Peer(
        "WebDataset + PIL",
        "JPEG",
        "workers",
        ("torch", "webdataset", "PIL"),
        open_webdataset(decode_pil),
        prepare_webdataset,
    ),
    "webdataset-opencv": Peer(
        "WebDataset + OpenCV",
        "JPEG",
        "workers",
        ("torch", "webdataset", "cv2"),
        open_webdataset(decode_opencv),
        prepare_webdataset,
    ),
    "mosaicml-jpeg": Peer(
        "MosaicML streaming, JPEG",
        "JPEG",
        "workers",
        ("torch", "streaming", "PIL"),
        open_mosaicml,
        prepare_mosaicml(False),
    ),
    "mosaicml-pixels": Peer(
        "MosaicML streaming, uint8",
        "pixels",
        "workers",
        ("torch", "streaming"),
        open_mosaicml,
        prepare_mosaicml(True),
    ),
    "litdata-jpeg": Peer(
        "LitData, JPEG + OpenCV",
        "JPEG",
        "workers",
        ("torch", "litdata", "cv2"),
        open_litdata(decode_opencv),
        prepare_litdata(False),
    ),
    "litdata-pixels": Peer(
        "LitData, uint8",
        "pixels",
        "workers",
        ("torch", "litdata"),
        open_litdata(_pixels),
        prepare_litdata(True),
    ),
    "huggingface-jpeg": Peer(
        "Hugging Face datasets, JPEG",
        "JPEG",
        "workers",
        ("torch", "datasets", "PIL"),
        open_huggingface,
        prepare_huggingface(False),
    ),
    "huggingface-array3d": Peer(
        "Hugging Face datasets, Array3D",
        "pixels",
        "workers",
        ("torch", "datasets"),
        open_huggingface,
        prepare_huggingface(True),
    ),
    "ffcv-jpeg": Peer("FFCV, JPEG", "JPEG", "threads", ("ffcv",), open_ffcv, prepare_ffcv("jpg")),
    "ffcv-raw": Peer("FFCV, raw", "pixels", "threads", ("ffcv",), open_ffcv, prepare_ffcv("raw")),
}


# -- measuring -------------------------------------------------------------------------------------------------------


def _facts(name: str, workers: int) -> dict[str, Any]:
    """What a result begins with."""
    peer = PEERS[name]
    return {
        "peer": name,
        "title": peer.title,
        "start": peer.start,
        "unit": peer.unit,
        "workers": workers,
    }


def measure(name: str, source: Source, work: Path, workers: int, epochs: int) -> dict[str, Any]:
    """In this process: the median of some epochs after one to warm up; or why not."""
    peer = PEERS[name]
    result = _facts(name, workers)
    if (reason := peer.available()) is not None:
        return result | {"skipped": reason}
    folder = work / name
    if not (folder / "prepared").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        peer.prepare(source, folder)
        (folder / "prepared").touch()
    _limit_threads(1 if peer.unit == "workers" else max(1, workers))
    epoch = peer.open(source, folder, workers)
    _check(epoch(0), source)
    rates = []
    for seed in range(1, epochs + 1):
        started = time.perf_counter()
        images = sum(len(batch) for batch in epoch(seed))
        rates.append(images / (time.perf_counter() - started))
    return result | {
        "images": len(source),
        "epochs": epochs,
        "images_per_s": statistics.median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
    }


def _check(batches: Batches, source: Source) -> None:
    """Raise ValueError unless these are the source's images, each once, in another order."""
    means, count = [], 0
    for batch in batches:
        images = np.asarray(batch)
        if images.dtype != np.uint8 or images.shape[1:] != source.pixels.shape[1:]:
            raise ValueError(f"batches are {images.dtype} {images.shape}")
        means.append(images.mean(axis=(1, 2, 3)))
        count += len(images)
    if not len(source) <= count <= 1.02 * len(source) + 8:  # some fill up, so that all workers have as many
        raise ValueError(f"{count} images of {len(source)}")
    found, expected = (
        np.concatenate(means),
        np.concatenate([part.mean(axis=(1, 2, 3)) for part in _slices(source.pixels)]),
    )
    if abs(found.mean() - expected.mean()) > 1 or np.abs(np.sort(found)[[0, -1]] - np.sort(expected)[[0, -1]]).max() > 2:  # fmt: skip
        raise ValueError("these are other images")
    if np.corrcoef(found[: len(source)], expected)[0, 1] > 0.9:
        raise ValueError("they are not shuffled")


def _slices(pixels: np.ndarray) -> Iterator[np.ndarray]:
    return (pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH))


THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
)


def _limit_threads(threads: int) -> None:
    """For libraries that are imported already; the others find it in their environment, see `run`."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0 if threads == 1 else threads)


def run(
    name: str,
    source: Source,
    work: Path,
    *,
    workers: int,
    epochs: int = 3,
    pythons: Sequence[str] = (sys.executable,),
    timeout_s: float = 600,
) -> dict[str, Any]:
    """Measure a peer in a process of the first interpreter that has it.

    Returns ``peer, title, start, unit, workers``, and either ``images, epochs, images_per_s, slowest, fastest`` or
    ``skipped``: why not. ``work``: where it keeps its own format of ``source`` from one call to the next.
    """
    peer = PEERS[name]
    result = _facts(name, workers)
    threads = str(max(1, workers) if peer.unit == "threads" else 1)
    temporary = work / "temporary"  # some leave things there
    temporary.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        **dict.fromkeys(THREAD_VARIABLES, threads),
        "TMPDIR": str(temporary),
        "HF_HOME": str(temporary / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    for python in pythons:
        command = [python, __file__, name, "--measure-here", "--epochs", str(epochs)]
        command += ["--source", str(source.folder), "--work", str(work), "--workers", str(workers)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return result | {"skipped": f"took more than {timeout_s:.0f} s"}
        except FileNotFoundError:
            return result | {"skipped": f"no interpreter {python}"}
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["?"])[-1]
            return result | {"skipped": f"failed: {last[:200]}"}
        result = json.loads(done.stdout.splitlines()[-1])  # libraries print too
        if "skipped" not in result:
            break
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "peers", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)}  [default: all]", default=[]
    )
    parser.add_argument("--crops", type=Path, help="a tree of JPEG crops of one size, one folder a person")
    parser.add_argument("--images", type=int, default=10_000, help="how many of them")
    parser.add_argument("--size", type=int, default=96, help="side of made-up crops in pixels")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="worker processes, or threads")
    parser.add_argument("--epochs", type=int, default=3, help="measured, after one to warm up")
    parser.add_argument("--work", type=Path, help="keep the formats of the peers here")
    parser.add_argument("--python", action="append", help="an interpreter to look for packages in")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each peer")
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure-here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.peers if name not in PEERS]:
        parser.error(f"unknown: {', '.join(unknown)}")
    names = arguments.peers or list(PEERS)

    if arguments.measure_here:
        for workers in arguments.workers:
            for name in names:
                found = measure(name, Source(arguments.source), arguments.work, workers, arguments.epochs)
                print(json.dumps(found), flush=True)
        sys.stdout.flush()
        os._exit(0)  # some peers' threads and processes do not end by themselves

    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        source = write_source(work / "source", arguments.images, arguments.crops, arguments.size)
        counts = arguments.workers
        if not arguments.json:
            size = source.pixels.shape[1]
            print(f"{len(source):,} crops of {size} × {size}, batches of {BATCH}, images/s\n")
            print(f"| loader | starts from | {' | '.join(f'{n} workers or threads' for n in counts)} |")
            print(f"|---|---|{'---|' * len(counts)}", flush=True)
        pythons = arguments.python or [sys.executable]
        for name in names:
            found = [
                run(name, source, work, workers=n, epochs=arguments.epochs, pythons=pythons) for n in counts
            ]
            if arguments.json:
                print("\n".join(json.dumps(one) for one in found), flush=True)
                continue
            cells = [
                f"{one['images_per_s']:,.0f}" if "images_per_s" in one else one["skipped"] for one in found
            ]
            print(f"| {PEERS[name].title} | {PEERS[name].start} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
