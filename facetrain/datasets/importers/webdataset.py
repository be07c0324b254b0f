"""WebDataset: tars in which the files of a sample stand one after the other and share their name up to the first dot.

    n01/img7.jpg   n01/img7.cls   n01/img7.json        one sample, key `n01/img7`, members jpg, cls and json

Convention: https://github.com/webdataset/webdataset (its `base_plus_ext`). Read as a stream with Python's tarfile.
"""

from __future__ import annotations

import gzip
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from facetrain.datasets.importers.file_by_file import FileByFile, check_files, files_in
from facetrain.datasets.importers.record import MAX_RECORD_BYTES, At, Record
from facetrain.errors import UserError
from facetrain.files import PHOTOGRAPHS

SUFFIXES = (".tar", ".tar.gz", ".tgz")
LABEL_KEYS = (
    "identity",
    "label",
    "cls",
    "class",
    "class_id",
    "person",
    "person_id",
    "subject",
    "subject_id",
    "name",
)
MAX_LABEL_BYTES = 1 << 20  # of a .cls, .txt or .json
MAX_MEMBER_BYTES = (
    1 << 36
)  # of any file in a tar; what claims to be larger is damaged, and takes long to pass over
_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")  # as Python writes it: `007` and `7` are two labels
MAX_NAME_CHARACTERS = 100  # a .txt with more, or of several lines, is a caption and no name


@dataclass
class Sample:
    """The members of one sample that matter: images and small texts, by extension (`jpg`, `left.png`, `cls`)."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)  # extension → why its content is not there

    def images(self) -> list[str]:
        return [extension for extension in self.members | self.faults if is_image(extension)]


def split_name(name: str) -> tuple[str, str] | None:
    """`a.b/c.d.jpg` → (`a.b/c`, `d.jpg`); None where the file's name has no dot, or begins with one."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    return (folder + slash + stem, extension) if stem and dot and extension else None


def is_image(extension: str) -> bool:
    return "." + extension.rpartition(".")[2].lower() in PHOTOGRAPHS


class _Header(tarfile.TarInfo):
    """tarfile passes over blocks that are no header, and over the lack of an end, in silence: these keep count."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Header:
        assert isinstance(tar, _Tar)
        try:
            header: _Header = super().fromtarfile(tar)
            to_skip = (
                tar.offset - tar.fileobj.tell()
            )  # by the header's size, which a pax header may have changed
            if not 0 <= to_skip <= MAX_MEMBER_BYTES:
                raise ValueError(f"a file of {to_skip} bytes")
            int(header.pax_headers.get("size", 0))  # where it is no number, tarfile takes 0 for it
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tar.has_end = True
            raise
        except tarfile.SubsequentHeaderError as error:  # type: ignore[attr-defined]
            # A damaged header behind one of a long name or a pax header: the search goes on, as it does without.
            raise tarfile.InvalidHeaderError(str(error)) from None  # type: ignore[attr-defined]
        except (tarfile.InvalidHeaderError, ValueError) as error:  # type: ignore[attr-defined]
            # ValueError: pax headers have no checksum, and tarfile takes what stands in them for numbers.
            tar.bad_blocks += 1
            raise tarfile.InvalidHeaderError(str(error)) from None  # type: ignore[attr-defined]
        tar.has_end = False
        return header


class _Tar(tarfile.TarFile):
    tarinfo = _Header
    fileobj: IO[bytes]
    offset: int
    members: list[tarfile.TarInfo]
    bad_blocks = 0
    has_end = False


class WebDataset(FileByFile):
    """Shards, in the order given.

    ``label`` names the member or the key of the .json that says who it is; ``image`` the extension of the image, where
    samples have several.
    """

    format = "webdataset"

    def __init__(self, shards: list[Path], label: str | None, image: str | None) -> None:
        super().__init__(shards, {"label": label, "image": image})
        self.label, self.image = label, image

    def _file(self, number: int, first: int) -> Iterator[Record]:
        """All records: where in a tar one begins is not known before all in front of it have been read."""
        with open(self.files[number], "rb") as file:
            for count, item in enumerate(samples(file)):
                at = (number, count)
                self._done = self._ends[number] + file.tell()
                if isinstance(item, str):
                    yield self._rejected(at, item)
                else:
                    yield self._record(at, item)

    def _record(self, at: At, sample: Sample) -> Record:
        name = f"{self._name(at)}-{sample.key.rpartition('/')[2]}"
        images = sample.images()
        if self.image is not None:
            images = [extension for extension in images if extension == self.image]
        elif len(images) > 1:
            images = [extension for extension in images if "." not in extension] or images
        if len(images) != 1:
            there = ", ".join(images or sample.members) or "nothing that we read"
            why = "several images in the sample" if images else "no image in the sample"
            return Record(at, None, name, None, f"{why} ({there})")
        identity = self._identity(sample)
        if images[0] in sample.faults:
            return Record(at, identity, name, None, sample.faults[images[0]])
        if identity is None:
            return Record(at, None, name, None, self._no_label(sample))
        return Record(at, identity, name, sample.members[images[0]])

    def _identity(self, sample: Sample) -> str | int | None:
        """Who it is: what was asked for by name; else .cls, .json, .txt, the folder in the key, in this order."""
        keys = (self.label,) if self.label else LABEL_KEYS
        for extension in (self.label,) if self.label else ("cls",):
            if extension in sample.members and extension != "json":
                return _from_text(sample.members[extension])
        found = _from_json(sample.members.get("json", b""), keys)
        if found is not None or self.label:
            return found
        text = sample.members.get("txt", b"").decode(errors="surrogateescape").strip()
        if text and len(text) <= MAX_NAME_CHARACTERS and len(text.splitlines()) == 1:
            return text
        folder = sample.key.rpartition("/")[0].rpartition("/")[2]
        return folder if folder.strip(".") else None

    def _no_label(self, sample: Sample) -> str:
        there = ", ".join(sample.members)
        if self.label:
            return f"no label: no member .{self.label} and no key {self.label!r} in .json (members: {there})"
        return f"no label: no .cls, no name in .json or .txt, no folder in the key (members: {there})"


def samples(file: IO[bytes]) -> Iterator[Sample | str]:
    """The samples of a tar, gzipped or not; in place of what is damaged, the reason. Memory: one sample.

    Behind a damaged header it goes on with the next that is whole; a damaged gzip ends there.
    """
    zipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    source = gzip.GzipFile(fileobj=file) if zipped else file
    sample: Sample | None = None
    bad_blocks = 0
    try:
        # As a stream; behind zero blocks too (tars that were joined).
        with _Tar.open(fileobj=source, mode="r|", ignore_zeros=True, errors="surrogateescape") as tar:
            for member in tar:
                tar.members = []  # which would grow with the tar
                if tar.bad_blocks > bad_blocks:
                    if sample is not None:
                        yield sample
                    sample = None
                    yield _bad(tar.bad_blocks - bad_blocks)
                    bad_blocks = tar.bad_blocks
                if not member.isfile():
                    continue
                parts = split_name(member.name)
                if parts is None:
                    if is_image(member.name):
                        yield f"{member.name}: a name that begins with a dot is no key"
                    continue
                key, extension = parts
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    sample = Sample(key)
                _add(tar, member, sample, extension)
            if sample is not None:
                yield sample
            sample = None
            if tar.bad_blocks > bad_blocks:
                yield _bad(tar.bad_blocks - bad_blocks)
            if not tar.has_end:
                yield "the tar ends without its end mark: it may be cut off"
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        if sample is not None:
            yield sample
        yield f"the tar is damaged, what follows in it is lost: {error}"


def _bad(blocks: int) -> str:
    return f"{blocks:,} blocks of the tar are no header of a file: damaged, what they held is lost"


def _add(tar: tarfile.TarFile, member: tarfile.TarInfo, sample: Sample, extension: str) -> None:
    """Read a member into the sample, if it is an image or may hold the label."""
    limit = MAX_RECORD_BYTES if is_image(extension) else MAX_LABEL_BYTES
    if member.size > limit:
        sample.faults[extension] = f"{member.size:,} bytes are too many"
        return
    if extension in sample.members:
        sample.faults[extension] = f"two members .{extension} in one sample"
        return
    content = tar.extractfile(member)
    assert content is not None
    try:
        data = content.read()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile):
        data = b""
    if len(data) < member.size:
        sample.faults[extension] = "the tar ends within this file"
    else:
        sample.members[extension] = data


def _from_text(data: bytes) -> str | int | None:
    """A `.cls` holds a class number, or a name."""
    text = data.decode(errors="surrogateescape").strip()
    if _NUMBER.fullmatch(text):
        return int(text)
    return text or None


def _from_json(data: bytes, keys: tuple[str, ...]) -> str | int | None:
    try:
        values = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    for key in keys:
        value = values.get(key)
        if isinstance(value, str) and value.strip():
            return value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63:
            return value
    return None


# -- which shards ----------------------------------------------------------------------------------------------------


def expand_braces(pattern: str) -> list[str]:
    """`a-{000..002}.tar` → three names; `{x,y}` → two; several braces multiply. As bash does it."""
    head, brace, rest = pattern.partition("{")
    inside, end, tail = rest.partition("}")
    if not brace or not end:
        return [pattern]
    first, dots, last = inside.partition("..")
    if dots and first.isdecimal() and last.isdecimal():
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        numbers = range(int(first), int(last) + 1)
        if len(numbers) > 1_000_000 or not numbers:
            raise UserError(f"{{{inside}}} in {pattern} is no range of shards")
        choices = [f"{number:0{width}d}" for number in numbers]
    elif "," in inside:
        choices = inside.split(",")
    else:
        return [f"{head}{{{inside}}}{end_of}" for end_of in expand_braces(tail)]
    return [f"{head}{choice}{end_of}" for choice in choices for end_of in expand_braces(tail)]


def open_webdataset(paths: list[Path], *, label: str | None, image: str | None) -> WebDataset:
    """Open tars, folders of tars, and patterns such as `train-{0000..0012}.tar`. Raises UserError."""
    shards: list[Path] = []
    for path in paths:
        if path.is_dir():
            shards += files_in(path, SUFFIXES)
        elif path.exists():
            shards.append(path)
        else:
            shards += map(Path, expand_braces(str(path)))
    check_files(shards)
    if image is not None and not is_image(image):
        raise UserError(
            f"--image {image}: for WebDataset, name the suffix of the image in a sample, such as jpg"
        )
    return WebDataset(shards, label, image)
