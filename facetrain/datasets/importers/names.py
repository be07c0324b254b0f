"""Names of people and photographs as names of files: safe anywhere below OUT, and still one to one."""

from __future__ import annotations

import re

from blake3 import blake3

MAX_BYTES = 255  # of a file name, on every file system that we know
RESERVED = frozenset(["import-rejected.csv", "pairs.txt"])  # files of ours, right in OUT

# `%` itself, so that it is one to one; surrogates stand for bytes that were no UTF-8.
_UNSAFE = re.compile(r"[%/\\\0-\x1f\x7f\ud800-\udfff]")


def file_name(name: str, *, room: int = MAX_BYTES) -> str:
    """``name`` as the name of a file or folder of at most ``room`` bytes.

    What cannot stand in it is written as in a URL (`a/b` → `a%2Fb`), a leading dot too, since files that begin with
    one are passed over. A name that is too long ends in a hash of all of it: `…%~0123456789abcdef…`. Two names never
    become the same.
    """
    if not name:
        return "%"  # stands for itself: any other % is followed by two digits, u or ~
    safe = _UNSAFE.sub(_percent, name)
    if safe[0] == "." or safe in RESERVED:
        safe = f"%{ord(safe[0]):02X}{safe[1:]}"
    encoded = safe.encode()
    if len(encoded) <= room:
        return safe
    tail = "%~" + blake3(encoded).hexdigest(16)
    return encoded[: room - len(tail)].decode(errors="ignore") + tail


def _percent(found: re.Match[str]) -> str:
    if "\ud800" <= found[0] <= "\udc7f" or found[0] >= "\udd00":  # half of a pair, as JSON can have it
        return f"%u{ord(found[0]):04X}"
    return f"%{found[0].encode(errors='surrogateescape')[0]:02X}"
