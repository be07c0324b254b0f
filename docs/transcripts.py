"""Run the tutorial's commands, and put what they print into the pages that show it.

    python docs/transcripts.py WORK

Fills what stands between `<!-- ran: NAME … -->` and `<!-- /ran -->`, and docs/images/loss.png. WORK keeps each
command's output; a command that has one there is not run again. Takes minutes: to be run when outputs have changed.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "synth": "ft synth photographs --identities 150 --images 20",
    "align": "ft align photographs faces",
    "align-again": "ft align photographs faces",
    "prune": "ft prune --min 10",
    "split": "ft split 0.2",
    "status": "ft status",
    "train": "ft train --epochs 12",
    "plot-loss": "ft plot-loss",
    "evaluate": "ft evaluate",
    "status-after": "ft status",
}
RAN = re.compile(r"(<!-- ran: ([a-z -]+) -->\n).*?(<!-- /ran -->)", re.DOTALL)
PROGRESS = re.compile(
    r"^(drawing|aligning|decoding|embedding|training): .*\n", re.MULTILINE
)  # a bar on a terminal


def output(name: str, work: Path) -> str:
    """What the command printed, stdout and stderr together."""
    kept = work / "transcripts" / f"{name}.txt"
    if not kept.is_file():
        print(f"$ {COMMANDS[name]}", flush=True)
        command = [sys.executable, "-m", "facetrain.cli", *shlex.split(COMMANDS[name])[1:]]
        done = subprocess.run(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            sys.exit(done.stdout)
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(done.stdout)
    return PROGRESS.sub("", kept.read_text()).replace(str(work), "/home/you/first")


def main(work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    outputs = {name: output(name, work) for name in COMMANDS}  # in this order
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:

        def fill(found: re.Match[str]) -> str:
            shown = "".join(f"$ {COMMANDS[name]}\n{outputs[name]}" for name in found[2].split())
            return f"{found[1]}```console\n{shown}```\n{found[3]}"

        text = page.read_text()
        filled = RAN.sub(fill, text)
        if filled != text:
            page.write_text(filled)
            print(f"written: {page.relative_to(ROOT)}")
    (run,) = (work / ".ft" / "runs").glob("*/")
    shutil.copy(run / "loss.png", ROOT / "docs" / "images" / "loss.png")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve())
