"""Make docs/images/report-{light,dark,phone,print}.png: the report of two small trainings on synthetic faces.

    python docs/report_screenshots.py WORK

WORK keeps the workspace; what is there is not made again. Takes minutes: to be run when the report looks different.
Needs Chromium on PATH, and for the printed one pypdfium2; what is not there is said.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from facetrain.files import replacing

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
STYLE = ROOT / "facetrain" / "evaluate" / "report" / "style.css"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
LIGHT, DARK = "--blink-settings=preferredColorScheme=1", "--blink-settings=preferredColorScheme=0"
PEOPLE, PHOTOGRAPHS, MIN = 90, 12, 4
PRINTED = 4  # pages shown
COLOURS = 256  # of the PNG files' palettes
GAP_PX, BETWEEN = 14, "#c9c9c9"


def main(work: Path) -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"no browser on PATH ({', '.join(BROWSERS)}): no screenshots made")
    work.mkdir(parents=True, exist_ok=True)
    page = report(work)
    shoot(browser, page.as_uri(), IMAGES / "report-light.png", LIGHT, size=(1280, 2560), width_px=900)
    dark = IMAGES / "report-dark.png"
    shoot(browser, page.as_uri(), dark, DARK, size=(1280, 5700), width_px=900, skip_px=3024)
    shoot(
        browser, page.as_uri(), IMAGES / "report-phone.png", LIGHT, size=(390, 3000), width_px=390, beside=3
    )
    print_out(browser, page, IMAGES / "report-print.png")


# -- the report ------------------------------------------------------------------------------------------------------


def report(work: Path) -> Path:
    """The page about two trainings on the same photographs."""
    if not (work / "raw").is_dir():
        ft(work, "synth", "raw.part", "--identities", PEOPLE, "--images", PHOTOGRAPHS, "--seed", 11, "-j", 2)
        make_uneven(work / "raw.part")
        (work / "raw.part").rename(work / "raw")
    if not (work / "aligned").is_dir():
        ft(work, "align", "raw", "aligned", "-j", 2)
        ft(work, "prune", "--min", MIN)
        ft(work, "split", 0.3)
    for run, settings in {
        "triplet": ["--epochs", 8],
        "arcface": ["--trainer", "arcface", "--epochs", 8, "--embedding-dim", 256],
    }.items():
        if not (work / ".ft/runs" / run / "evaluation/validation.json").is_file():
            ft(work, "train", "--name", run, *settings)
            ft(work, "evaluate", run)
    ft(work, "report", "triplet", "arcface", "--out", "report.html")
    return work / "report.html"


def make_uneven(raw: Path) -> None:
    """Some people have fewer photographs, one in eight a stranger's among them, and two are one person under two names."""
    rng = np.random.default_rng(5)
    people = sorted(path for path in raw.iterdir() if path.is_dir())
    for person in people:
        photographs = sorted(person.iterdir())
        for photograph in photographs[int(rng.integers(2, PHOTOGRAPHS + 1)) :]:
            photograph.unlink()
    for person, other in zip(people[::8], people[4::8], strict=False):
        stray = sorted(other.iterdir())[0]
        stray.rename(person / stray.name)
    for person, other in zip(people[1::16], people[2::16], strict=False):
        shutil.rmtree(other)
        other.mkdir()
        for photograph in sorted(person.iterdir())[1::2]:
            photograph.rename(other / photograph.name)


def ft(work: Path, *arguments: object) -> None:
    command = [sys.executable, "-m", "facetrain.cli", "-C", str(work), *map(str, arguments)]
    subprocess.run(command, cwd=work, check=True)


# -- the screenshots -------------------------------------------------------------------------------------------------


def shoot(
    browser: str,
    url: str,
    out: Path,
    scheme: str,
    size: tuple[int, int],
    width_px: int,
    skip_px: int = 0,
    beside: int = 1,
) -> None:
    """The page in a window of this size, from ``skip_px`` on, scaled to a width; of a long window ``beside`` parts next to
    one another."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder, "shot.png")
        window = f"--window-size={size[0]},{size[1]}"
        browse(browser, folder, scheme, window, "--force-device-scale-factor=1", f"--screenshot={shot}", url)
        window_px = Image.open(shot).convert("RGB")
        whole = window_px.crop((0, skip_px, *window_px.size))
    scaled = whole.resize((width_px, round(whole.height * width_px / whole.width)), Image.Resampling.LANCZOS)
    height = scaled.height // beside
    save([scaled.crop((0, i * height, width_px, (i + 1) * height)) for i in range(beside)], out)


def print_out(browser: str, page: Path, out: Path) -> None:
    """The first pages on A4."""
    try:
        from pypdfium2 import PdfDocument
    except ImportError:
        print(f"{out.name} is not made: `pip install pypdfium2` draws what would be printed")
        return
    with tempfile.TemporaryDirectory() as folder:
        pdf = Path(folder, "print.pdf")
        browse(browser, folder, LIGHT, f"--print-to-pdf={pdf}", "--no-pdf-header-footer", page.as_uri())
        document = PdfDocument(pdf.read_bytes())
        save([document[i].render(scale=0.75).to_pil() for i in range(PRINTED)], out)


def browse(browser: str, folder: str, *arguments: str) -> None:
    profile = f"--user-data-dir={Path(folder, 'profile')}"
    subprocess.run([browser, *QUIET, profile, *arguments], check=True, capture_output=True, timeout=120)


def save(parts: list[Image.Image], out: Path) -> None:
    """Parts side by side, as a PNG with few colours: a third of the size, and hardly a difference to be seen."""
    gap = GAP_PX if len(parts) > 1 else 0
    width = sum(part.width + gap for part in parts) + gap
    sheet = Image.new("RGB", (width, parts[0].height + 2 * gap), BETWEEN)
    for i, part in enumerate(parts):
        sheet.paste(part, (gap + i * (part.width + gap), gap))
    # Lines are thin: their colours would be lost among those of the faces.
    lines = re.findall(r"--c\d: #(\w{6})", STYLE.read_text())
    common = sheet.quantize(COLOURS - len(lines)).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette(bytes(common[: 3 * (COLOURS - len(lines))]) + bytes.fromhex("".join(lines)))
    with replacing(out) as temp:
        sheet.quantize(palette=palette, dither=Image.Dither.NONE).save(temp, format="PNG", optimize=True)
    print(f"wrote {out.relative_to(ROOT)}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve())
