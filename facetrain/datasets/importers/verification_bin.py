"""insightface's verification sets (`lfw.bin`, `cfp_fp.bin`, `agedb_30.bin`): pairs of encoded photographs.

The file is a pickle of (images, issame): 2·n images, as bytes or as uint8 arrays of their bytes, and n booleans; pair
i is made of the images 2·i and 2·i + 1. Python 2 and 3 have written such files.

A pickle may call any function. This one is read by an unpickler that knows the few that such files need, in versions
of our own, and refuses all others by name.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from facetrain.datasets.importers.record import At, Record
from facetrain.errors import UserError


@dataclass(frozen=True)
class VerificationSet:
    """The pairs of a `.bin` file, in its order."""

    path: Path
    images: list[Any]  # bytes, or NumPy arrays: see `encoded`
    same: list[bool]

    def __len__(self) -> int:
        return len(self.same)

    def pairs(self) -> Iterator[tuple[bytes, bytes, bool]]:
        """(encoded image, encoded image, the same person?) for each pair. An image that is none is b""."""
        for i, same in enumerate(self.same):
            yield encoded(self.images[2 * i]), encoded(self.images[2 * i + 1]), same


def read_bin(path: Path) -> VerificationSet:
    """Read a `.bin` file. It is held in memory, which is how pickles are read (LFW's is about 70 MB).

    Raises UserError when it is damaged, holds something else, or wants to call what it has no business with.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror}") from None
    try:
        value = _Unpickler(path, data).load()
        images, same = (
            map(_plain_list, value) if isinstance(value, (list, tuple)) and len(value) == 2 else (None, None)
        )
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{path}: not enough memory for what it says to hold: it is damaged") from None
    except Exception as error:  # a damaged pickle raises whatever its opcodes stumble over
        raise UserError(f"{path}: no verification set, or damaged: {error or type(error).__name__}") from None
    if images is None or same is None:
        raise UserError(f"{path}: no verification set: it must hold two lists, of images and of booleans")
    if len(images) != 2 * len(same) or not same:
        raise UserError(
            f"{path}: damaged: {len(images):,} images are not two for each of {len(same):,} booleans"
        )
    if not all(isinstance(flag, (bool, int, np.bool_, np.integer)) and flag in (0, 1) for flag in same):
        raise UserError(f"{path}: no verification set: its second list must hold booleans")
    return VerificationSet(path, images, [bool(flag) for flag in same])


def encoded(image: Any) -> bytes:
    """The encoded bytes of an image of a `.bin` file; raw RGB pixels become a PNG; b"" for what is no image."""
    if isinstance(image, (bytes, bytearray)):
        return bytes(image)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        if image.ndim == 1:
            return image.tobytes()
        if image.size and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
            return _png(image)
    return b""


@dataclass
class VerificationBin:
    """A `.bin` file as a source of photographs, named as LFW names its own.

    A same-person pair is one person with the photographs 1 and 2, `pair_00001/pair_00001_0001`; a different-person
    pair is two people, `pair_00002_a` and `pair_00002_b`.
    """

    file: Path
    format: str = "bin"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.files = [self.file]
        self.set = read_bin(self.file)
        self._done = 0

    def position_bytes(self) -> int:
        return self._done

    def records(self, start: At = (0, 0)) -> Iterator[Record]:
        total = self.file.stat().st_size
        for i, images in enumerate(self.set.pairs()):
            for j in (0, 1):
                person, number = people_of_pair(i, self.set.same[i])[j]
                data = images[j]
                assert isinstance(data, bytes)
                yield Record((0, 2 * i + j), person, f"{person}_{number:04d}", data)
            self._done = total * (i + 1) // len(self.set)


def open_bin(path: Path) -> VerificationBin:
    """Open a `.bin` file. Raises UserError."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: name one .bin file in it")
    return VerificationBin(path)


def people_of_pair(number: int, same: bool) -> tuple[tuple[str, int], tuple[str, int]]:
    """(person, photograph) of either image of pair ``number``, counted from 0."""
    person = f"pair_{number + 1:05d}"
    return ((person, 1), (person, 2)) if same else ((f"{person}_a", 1), (f"{person}_b", 1))


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


# -- the restricted unpickler ----------------------------------------------------------------------------------------


class _Dtype:
    """Stands in for numpy.dtype: a name and a byte order, nothing that could be set behind NumPy's back."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name, self.order = _text(name), "|"

    def __setstate__(self, state: Any) -> None:
        self.order = _text(state[1])

    def dtype(self) -> np.dtype:
        dtype = np.dtype(self.name)
        if dtype.kind not in "biufS":
            raise pickle.UnpicklingError(f"an array of the type {self.name}")
        return np.dtype(self.order + dtype.str[1:])


class _Array:
    """Stands in for numpy.ndarray until the pickle has been read."""

    def __init__(
        self, shape: Any = (), dtype: _Dtype | None = None, raw: Any = b"", fortran: Any = False
    ) -> None:
        self.shape, self.type, self.raw, self.fortran = shape, dtype, raw, fortran

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.type, self.fortran, self.raw = state

    def array(self) -> np.ndarray:
        if not (isinstance(self.type, _Dtype) and isinstance(self.raw, (bytes, bytearray))):
            raise pickle.UnpicklingError("an array without its bytes")
        return np.frombuffer(self.raw, self.type.dtype()).reshape(
            self.shape, order="F" if self.fortran else "C"
        )


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    """An array in place of what stood in for it."""
    return value.array() if isinstance(value, _Array) else value


def _plain_list(value: Any) -> list[Any] | None:
    """The items of a list, tuple or array of one dimension; None for anything else."""
    value = _plain(value)
    if isinstance(value, np.ndarray):
        return value.tolist() if value.ndim == 1 else None
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else None


def _reconstruct(*_: Any) -> _Array:
    return _Array()  # its state follows


def _frombuffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    return _Array(shape, dtype, buffer, order == "F")


def _scalar(dtype: Any, raw: Any) -> Any:
    return _Array((), dtype, raw).array()[()]


def _encode(text: str, encoding: str) -> bytes:
    """`_codecs.encode`, by which protocol 2 spells bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _bytes(*arguments: Any) -> bytes:
    """`bytes()`, and `bytearray` of a text or of bytes; not `bytes(10**12)`."""
    if not arguments:
        return b""
    if isinstance(arguments[0], bytes):
        return arguments[0]
    return str.encode(arguments[0], "latin1")


def _bool(value: Any = False) -> bool:
    return bool(value)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _frombuffer
for _module in ("builtins", "__builtin__"):
    _ALLOWED[_module, "bytes"] = _ALLOWED[_module, "bytearray"] = _bytes
    _ALLOWED[_module, "bool"] = _bool


_InPython: Any = pickle._Unpickler


class _Unpickler(_InPython):  # type: ignore[misc]
    """Not the unpickler in C, which makes room for as many objects as a damaged number says."""

    dispatch: ClassVar[dict[int, Any]] = dict(_InPython.dispatch)

    def __init__(self, path: Path, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self.path, self.size = path, len(data)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise UserError(
                f"{self.path} wants to call {module}.{name}, which no verification set needs: refused; do not trust "
                "this file"
            )
        return _ALLOWED[module, name]

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], (_Dtype, _Array)):
            raise pickle.UnpicklingError("a state for what has none")
        super().load_build()

    def load_bytearray8(self) -> None:
        length = int.from_bytes(self.read(8), "little")
        if length > self.size:
            raise pickle.UnpicklingError("the file ends within an image")
        self.append(self.read(length))

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
