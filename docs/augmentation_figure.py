"""Draw docs/images/augmentation.png: synthetic faces, augmented at five strengths.

    python docs/augmentation_figure.py

To be run when `facetrain.datasets.augment` draws or does something else. A column is one face with one set of random
numbers, so that down the column the same changes grow.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from facetrain.cli import main as ft
from facetrain.datasets.augment import Augment
from facetrain.files import write_bytes

OUT = Path(__file__).resolve().parent / "images" / "augmentation.png"
PEOPLE = (2, 4, 6, 7, 10, 14, 18, 24)  # of those that `ft synth` draws: as unlike one another as may be
SIZE_PX = 96
STRENGTHS = (0, 1, 2, 3, 5)
SEED = 9067  # of the augmentation: one with which every operation is seen, and few faces are grey
GAP_PX, MARGIN_PX, LABEL_PX = 8, 14, 92
BACKGROUND, INK, QUIET = "#FFFFFF", "#222222", "#6B6B6B"


def faces() -> np.ndarray:
    """Aligned crops of as many people: uint8 [len(PEOPLE), SIZE_PX, SIZE_PX, 3]."""
    with tempfile.TemporaryDirectory() as folder:
        raw, aligned = Path(folder, "raw"), Path(folder, "aligned")
        for command in (
            ["synth", raw, "--identities", max(PEOPLE), "--images", 1],
            ["align", raw, aligned, "--size", SIZE_PX, "-j", 1],
        ):
            ft(["-C", folder, *map(str, command)], standalone_mode=False)
        paths = [next(aligned.glob(f"person_{number:05}/*.*")) for number in PEOPLE]
        return np.stack([np.asarray(Image.open(path)) for path in paths])


def rows(crops: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The original and each strength, from the same random numbers."""
    batch = torch.from_numpy(crops)
    augmented = [
        Augment(SIZE_PX, strength, max_batch=len(crops))(batch, np.random.default_rng(SEED)).numpy()
        for strength in STRENGTHS
    ]
    return [
        ("original", crops),
        *((f"{s:g}", images) for s, images in zip(STRENGTHS, augmented, strict=True)),
    ]


def figure(labelled: list[tuple[str, np.ndarray]]) -> Image.Image:
    """Rows of crops under one another, unscaled, with their labels on the left."""
    step = SIZE_PX + GAP_PX
    width = 2 * MARGIN_PX + LABEL_PX + len(PEOPLE) * step - GAP_PX
    height = 2 * MARGIN_PX + len(labelled) * step - GAP_PX
    picture = Image.new("RGB", (width, height), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    fonts = Path(get_data_path(), "fonts", "ttf")
    bold = ImageFont.truetype(fonts / "DejaVuSans-Bold.ttf", 17)
    plain = ImageFont.truetype(fonts / "DejaVuSans.ttf", 13)
    for number, (label, images) in enumerate(labelled):
        top = MARGIN_PX + number * step
        middle = (MARGIN_PX, top + SIZE_PX // 2)
        if number == 0:
            pen.text(middle, label, QUIET, plain, anchor="lm")
        else:
            pen.text((middle[0], middle[1] - 12), "strength", QUIET, plain, anchor="lm")
            pen.text((middle[0], middle[1] + 9), label, INK, bold, anchor="lm")
        for column, image in enumerate(images):
            picture.paste(Image.fromarray(image), (MARGIN_PX + LABEL_PX + column * step, top))
    return picture


if __name__ == "__main__":
    file = io.BytesIO()
    drawn = figure(rows(faces()))
    palette = drawn.quantize(256, method=Image.Quantize.MAXCOVERAGE)
    # 256 colours, dithered: a third of the bytes.
    drawn.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(file, "png", optimize=True)
    write_bytes(OUT, file.getvalue())
    print(f"{OUT.name}: {len(file.getvalue()) / 1000:.0f} kB")
