"""insightface's `.bin`: pickles of either Python and of several NumPys, forbidden ones, and the list of pairs."""

from __future__ import annotations

import base64
import io
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facetrain.datasets.importers.verification_bin import VerificationBin, VerificationSet, read_bin
from facetrain.datasets.importers.write_pairs import write_pairs
from facetrain.datasets.importers.write_tree import import_tree
from facetrain.errors import UserError
from facetrain.evaluate.pairs import find_photographs, read_pairs

JPEG = b"\xff\xd8\xff\xe0"
FOUR = [JPEG + b"a", JPEG + b"b", JPEG + b"c", JPEG + b"d"]

# ([str, array, array, str], flags) by cPickle of Python 2.7 with NumPy 1.16; flags are bools, or NumPy's.
BY_PYTHON_2 = {
    "protocol 0": "KChscDEKUydceGZmXHhkOFx4ZmZceGUwYScKcDIKYWNudW1weS5jb3JlLm11bHRpYXJyYXkKX3JlY29uc3RydWN0CnAzCihjbnVtcHkKbmRhcnJheQpwNAooSTAKdFMnYicKdFJwNQooSTEKKEk1CnRjbnVtcHkKZHR5cGUKcDYKKFMndTEnCkkwCkkxCnRScDcKKEkzClMnfCcKTk5OSS0xCkktMQpJMAp0YkkwMApTJ1x4ZmZceGQ4XHhmZlx4ZTBiJwp0YmFnMwooZzQKKEkwCnRTJ2InCnRScDgKKEkxCihJNQp0ZzcKSTAwClMnXHhmZlx4ZDhceGZmXHhlMGMnCnRiYVMnXHhmZlx4ZDhceGZmXHhlMGQnCnA5CmEobHAxMApJMDEKYUkwMAphdC4=",
    "protocol 2": "gAJdcQEoVQX/2P/gYXECY251bXB5LmNvcmUubXVsdGlhcnJheQpfcmVjb25zdHJ1Y3QKcQNjbnVtcHkKbmRhcnJheQpxBEsAhVUBYodScQUoSwFLBYVjbnVtcHkKZHR5cGUKcQZVAnUxSwBLAYdScQcoSwNVAXxOTk5K/////0r/////SwB0YolVBf/Y/+BidGJoA2gESwCFVQFih1JxCChLAUsFhWgHiVUF/9j/4GN0YlUF/9j/4GRxCWVdcQooiIllhi4=",
    "protocol 2, flags of NumPy": "gAJdcQEoVQX/2P/gYXECY251bXB5LmNvcmUubXVsdGlhcnJheQpfcmVjb25zdHJ1Y3QKcQNjbnVtcHkKbmRhcnJheQpxBEsAhVUBYodScQUoSwFLBYVjbnVtcHkKZHR5cGUKcQZVAnUxSwBLAYdScQcoSwNVAXxOTk5K/////0r/////SwB0YolVBf/Y/+BidGJoA2gESwCFVQFih1JxCChLAUsFhWgHiVUF/9j/4GN0YlUF/9j/4GRxCWVdcQooY251bXB5LmNvcmUubXVsdGlhcnJheQpzY2FsYXIKcQtoBlUCYjFLAEsBh1JxDChLA1UBfE5OTkr/////Sv////9LAHRiVQEBhlJxDWgLaAxVAQCGUnEOZYYu",
}


def dump(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def flat(pairs: VerificationSet) -> list[bytes]:
    return [image for first, second, _ in pairs.pairs() for image in (first, second)]


# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BY_PYTHON_2)
def test_what_python_2_wrote(tmp_path: Path, name: str) -> None:
    (tmp_path / "lfw.bin").write_bytes(base64.b64decode(BY_PYTHON_2[name]))
    pairs = read_bin(tmp_path / "lfw.bin")
    assert flat(pairs) == FOUR
    assert pairs.same == [True, False]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", [bytes, bytearray, "array", "copy"])
@pytest.mark.parametrize("flags", [list, tuple, np.array, "scalars"])
def test_what_python_3_writes(tmp_path: Path, protocol: int, kind: Any, flags: Any) -> None:
    arrays = {
        "array": lambda data: np.frombuffer(data, np.uint8),
        "copy": lambda data: np.array(list(data), np.uint8),
    }
    images = [arrays.get(kind, kind)(data) for data in FOUR]
    same = list(np.array([True, False])) if flags == "scalars" else flags([True, False])
    pairs = read_bin(dump(tmp_path / "lfw.bin", (images, same), protocol))
    assert flat(pairs) == FOUR
    assert pairs.same == [True, False]
    assert all(type(flag) is bool for flag in pairs.same)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_raw_pixels_become_a_png(tmp_path: Path, protocol: int, order: Any) -> None:
    pixels = np.asarray(np.arange(5 * 7 * 3).reshape(5, 7, 3), np.uint8, order=order)
    pairs = read_bin(dump(tmp_path / "raw.bin", ([pixels, pixels[..., 0].copy()], [True]), protocol))
    colour, grey, _ = next(pairs.pairs())
    assert colour.startswith(b"\x89PNG")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(colour))), pixels)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(grey))), pixels[..., 0])


class Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_not_executed(tmp_path: Path, protocol: int) -> None:
    witness = tmp_path / "witness"
    value = ([JPEG, Call(os.mkdir, str(witness))], [True])
    path = dump(tmp_path / "evil.bin", value, protocol)
    with pytest.raises(UserError, match=rf"evil\.bin wants to call {os.mkdir.__module__}\.mkdir"):
        read_bin(path)
    assert not witness.exists()
    pickle.loads(path.read_bytes())
    assert witness.is_dir(), "it would have been executed"


@pytest.mark.parametrize(
    ("opcodes", "named"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
        (b"c_codecs\ndecode\n(S'x'\ntR.", "_codecs.decode"),
        (b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.", "numpy.ndarray.__class__"),
        (b"\x80\x02c__builtin__\nlist\n.", "__builtin__.list"),
        (b"cfacetrain.datasets.importers.verification_bin\n_ALLOWED\n.", "verification_bin._ALLOWED"),
    ],
)
def test_forbidden_names(tmp_path: Path, opcodes: bytes, named: str) -> None:
    (tmp_path / "evil.bin").write_bytes(opcodes)
    with pytest.raises(UserError, match="wants to call .*" + named.replace(".", r"\.")):
        read_bin(tmp_path / "evil.bin")


@pytest.mark.parametrize(
    "opcodes",
    [
        b"c__builtin__\nbytes\n(L1000000000000L\ntR.",  # a terabyte of zeros
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x0a\x00\x00\x00zlib_codectR.",
        b"cnumpy\ndtype\n(S'O'\ntR.",
        b"(lp0\ncnumpy\nndarray\n(I5\ntRa(lp1\nI01\natp2\n.",
        b"P0\n.",  # an object from elsewhere
        b"\x80\x02\x82\x01.",  # the extension registry
        b"",
        b"no pickle at all",
        b"\x80\x04]\x94.",
    ],
)
def test_other_pickles_are_one_clear_line(tmp_path: Path, opcodes: bytes) -> None:
    (tmp_path / "odd.bin").write_bytes(opcodes)
    with pytest.raises(UserError, match=r"odd\.bin: (no verification set|damaged)"):
        read_bin(tmp_path / "odd.bin")


@pytest.mark.parametrize(
    "opcodes",
    [
        b"]r\xff\xff\xff\x00.",  # the 16-millionth entry of the memo, which C makes room for
        b"\x80\x05\x96"
        + (1 << 27).to_bytes(8, "little")
        + b".",  # a bytearray of 134 MB, of which none is there
        b"\x80\x04\x8e" + (1 << 27).to_bytes(8, "little") + b".",
    ],
)
def test_numbers_in_a_damaged_pickle_take_no_memory(tmp_path: Path, opcodes: bytes) -> None:
    (tmp_path / "odd.bin").write_bytes(opcodes)
    tracemalloc.start()
    with pytest.raises(UserError):
        read_bin(tmp_path / "odd.bin")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize("state", [b"}", b"N}\x86"])
def test_functions_have_no_state_to_set(tmp_path: Path, state: bytes) -> None:
    (tmp_path / "odd.bin").write_bytes(b"\x80\x02c_codecs\nencode\n" + state + b"b.")
    with pytest.raises(UserError, match="a state for what has none"):
        read_bin(tmp_path / "odd.bin")


def test_every_way_to_cut_the_file(tmp_path: Path) -> None:
    images = [FOUR[0], np.frombuffer(FOUR[1], np.uint8)]
    content = pickle.dumps((images, [True]), 2)
    for length in range(len(content)):
        (tmp_path / "cut.bin").write_bytes(content[:length])
        with pytest.raises(UserError):
            read_bin(tmp_path / "cut.bin")


def test_every_flipped_byte(tmp_path: Path) -> None:
    """Anything may come of it but an exception of another kind, or a call."""
    images = [FOUR[0], np.frombuffer(FOUR[1], np.uint8)]
    content = pickle.dumps((images, [True]), 2)
    refused = 0
    for place in range(len(content)):
        for flip in (1, 16, 128):
            changed = bytearray(content)
            changed[place] ^= flip
            (tmp_path / "flipped.bin").write_bytes(changed)
            try:
                assert len(flat(read_bin(tmp_path / "flipped.bin"))) == 2
            except UserError:
                refused += 1
    assert refused > len(content)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (([JPEG] * 3, [True]), "3 images are not two for each of 1 booleans"),
        (([], []), "0 images"),
        (([JPEG] * 2, ["yes"]), "must hold booleans"),
        (([JPEG] * 2, [2]), "must hold booleans"),
        ([JPEG, JPEG, [True]], "must hold two lists"),
        ({"images": 1}, "must hold two lists"),
    ],
)
def test_other_contents(tmp_path: Path, value: Any, why: str) -> None:
    with pytest.raises(UserError, match=why):
        read_bin(dump(tmp_path / "odd.bin", value))


# -- the tree and its list of pairs ----------------------------------------------------------------------------------


def bin_of(path: Path, same: list[bool], damaged: tuple[int, ...] = ()) -> Path:
    images = [JPEG + f"photograph {i}".encode() for i in range(2 * len(same))]
    for i in damaged:
        images[i] = b"no image"
    return dump(path, (images, same))


def in_folds(half: int, folds: int = 10) -> list[bool]:
    """As insightface's files are: within each tenth, in any order, as many of either kind."""
    return [(i + fold) % 2 == 0 for fold in range(folds) for i in range(2 * half)]


def test_ten_folds_go_into_the_tree_and_come_back(tmp_path: Path) -> None:
    same = in_folds(3)
    source = VerificationBin(bin_of(tmp_path / "lfw.bin", same))
    report = import_tree(source, tmp_path / "out")
    pairs = write_pairs(source.set, tmp_path / "out")
    assert (report.photographs, pairs.pairs, pairs.folds, pairs.notes) == (120, 60, 10, [])

    listed = read_pairs(tmp_path / "out" / "pairs.txt")
    assert listed.num_folds == 10
    files = find_photographs(tmp_path / "out", listed)
    seen = set()
    for pair in listed:
        first, second = (
            int((tmp_path / "out" / files[key]).read_bytes().split()[-1])
            for key in ((pair.person1, pair.number1), (pair.person2, pair.number2))
        )
        number = first // 2
        assert (first, second) == (2 * number, 2 * number + 1)
        assert pair.same == same[number]
        assert pair.fold == number // 6  # insightface's tenth
        seen.add(number)
    assert seen == set(range(60))
    assert (tmp_path / "out" / "pair_00001" / "pair_00001_0002.jpg").is_file()
    assert (tmp_path / "out" / "pair_00002_b" / "pair_00002_b_0001.jpg").is_file()


@pytest.mark.parametrize(
    ("same", "folds", "pairs", "notes"),
    [
        ([True] * 10 + [False] * 10, 1, 20, 1),  # tenths of one kind
        (in_folds(3, 9), 1, 54, 1),  # 54 pairs in ten folds are not equally many
        ([True] * 3 + [False] * 8, 1, 6, 2),
    ],
)
def test_what_ten_folds_cannot_hold_is_one_fold_and_a_note(
    tmp_path: Path, same: list[bool], folds: int, pairs: int, notes: int
) -> None:
    verification = read_bin(bin_of(tmp_path / "own.bin", same))
    report = write_pairs(verification, tmp_path)
    assert (report.folds, report.pairs, len(report.notes)) == (folds, pairs, notes)
    assert "not comparable" in report.notes[0]
    assert read_pairs(report.path).num_folds == folds


def test_a_pair_without_a_photograph_is_left_out_with_a_note(tmp_path: Path) -> None:
    source = VerificationBin(bin_of(tmp_path / "lfw.bin", in_folds(2), damaged=(4,)))
    tree = import_tree(source, tmp_path / "out")
    assert (tree.photographs, tree.rejected) == (79, 1)
    report = write_pairs(source.set, tmp_path / "out")
    assert report.notes[0] == "1 of 40 pairs are left out: an image cannot be used"
    listed = read_pairs(report.path)
    assert len(find_photographs(tmp_path / "out", listed)) == 2 * len(listed)


def test_pairs_of_one_kind_measure_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="all its pairs are of one kind"):
        write_pairs(read_bin(bin_of(tmp_path / "own.bin", [True] * 4)), tmp_path)
