"""Which image format bytes are, by the magic number in front: a name's suffix may be anything."""

from __future__ import annotations

_MAGIC = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF87a", ".gif"),
    (b"GIF89a", ".gif"),
    (b"II*\0", ".tiff"),
    (b"MM\0*", ".tiff"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", ".jp2"),
    (b"\xff\x4f\xff\x51", ".jp2"),
)


def image_suffix(data: bytes) -> str | None:
    """`.jpg`, `.png`, … for the first bytes of an encoded image; None for anything that `ft align` does not read."""
    for magic, suffix in _MAGIC:
        if data.startswith(magic):
            return suffix
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis"):
        return ".avif"
    if (
        data[:2] == b"BM" and data[6:10] == b"\0\0\0\0"
    ):  # two letters alone would be too weak: the reserved field
        return ".bmp"
    if data[:2] in (b"P5", b"P6", b"P2", b"P3") and data[2:3].isspace():
        return ".pgm" if data[1:2] in b"25" else ".ppm"
    return None
