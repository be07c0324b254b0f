"""Which format a packed dataset has, by its name and its first bytes; and the reader for it."""

from __future__ import annotations

from pathlib import Path

from facetrain.datasets.importers.record import Source
from facetrain.errors import UserError

FORMATS = ("recordio", "bin", "webdataset", "parquet")
_BY_SUFFIX = {
    ".rec": "recordio",
    ".idx": "recordio",
    ".bin": "bin",
    ".tar": "webdataset",
    ".tgz": "webdataset",
    ".tar.gz": "webdataset",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_NAME_IT = f"name the format with --format {'|'.join(FORMATS)}"


def open_source(
    paths: list[Path], *, format: str = "auto", image: str | None = None, label: str | None = None
) -> Source:
    """Open a packed dataset and check what can be checked without reading it all.

    ``image`` and ``label`` say where the image and the identity are: columns of Parquet, members or keys of WebDataset.
    Raises UserError.
    """
    if format == "auto":
        formats = {recognise(path) for path in paths}
        if len(formats) > 1:
            raise UserError(
                f"SOURCE mixes formats ({', '.join(sorted(formats))}): import each into a folder of its own"
            )
        format = formats.pop()
    if format in ("recordio", "bin"):
        if len(paths) > 1:
            raise UserError(
                f"one SOURCE at a time of the format {format}: import each into a folder of its own"
            )
        if image is not None or label is not None:
            raise UserError(f"--image and --label are for webdataset and parquet; {format} needs neither")
    if format == "recordio":
        from facetrain.datasets.importers.recordio import open_recordio

        return open_recordio(paths[0])
    if format == "bin":
        from facetrain.datasets.importers.verification_bin import open_bin

        return open_bin(paths[0])
    if format == "webdataset":
        from facetrain.datasets.importers.webdataset import open_webdataset

        return open_webdataset(paths, label=label, image=image)
    if format == "parquet":
        from facetrain.datasets.importers.parquet import open_parquet

        return open_parquet(paths, label=label, image=image)
    raise UserError(f"no format {format!r}: {_NAME_IT}")


def recognise(path: Path) -> str:
    """One of FORMATS. Raises UserError where it cannot be told."""
    if path.is_dir():
        return _of_folder(path)
    found = _by_name(path.name)
    if found is None and path.is_file():
        with open(path, "rb") as file:
            found = _by_magic(file.read(512))
    if found is None:
        if not path.exists():
            raise UserError(f"there is no {path}: name a packed dataset, or a folder that holds one")
        raise UserError(f"{path} is in no format that we know: {_NAME_IT}")
    return found


def _of_folder(folder: Path) -> str:
    """RecordIO first: insightface puts its verification sets (.bin) beside it."""
    found = {_by_name(path.name) for path in folder.rglob("*")}
    if any(folder.glob("*.rec")):
        return "recordio"
    packed = [format for format in ("webdataset", "parquet") if format in found]
    if len(packed) == 1:
        return packed[0]
    if packed:
        raise UserError(f"{folder} holds tars and Parquet files: {_NAME_IT}, or name the files")
    if "bin" in found:
        raise UserError(f"{folder} holds .bin files: name the one to import")
    raise UserError(f"nothing to import in {folder}: it must hold .rec, .tar or .parquet files")


def _by_name(name: str) -> str | None:
    return next((format for suffix, format in _BY_SUFFIX.items() if name.lower().endswith(suffix)), None)


def _by_magic(head: bytes) -> str | None:
    if head.startswith(b"\x0a\x23\xd7\xce"):
        return "recordio"
    if head.startswith(b"PAR1"):
        return "parquet"
    if head[257:262] == b"ustar" or head.startswith(b"\x1f\x8b"):
        return "webdataset"
    if head[:1] == b"\x80" or head[:2] in (b"((", b"(l"):  # a pickle of protocol 2 and above, or 0
        return "bin"
    return None
