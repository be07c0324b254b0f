"""Time of every stage of the five commands, through the command line as a user runs it.

    python benchmarks/pipeline.py                     3,000 synthetic photographs
    python benchmarks/pipeline.py --raw PHOTOGRAPHS   a tree of your own

Prints a Markdown table for docs/performance.md: stage, seconds, photographs a second.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from _common import ft, hardware


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", type=Path, help="a folder of photographs, one folder a person")
    parser.add_argument("--min", default="2", help="for ft prune")
    parser.add_argument("--epochs", default="1", help="for ft train; 0 leaves it out")
    parser.add_argument("--people", type=int, default=150, help="synthetic people, without --raw")
    parser.add_argument("--images", type=int, default=20, help="photographs of each")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        rows: list[tuple[str, float]] = []
        raw = arguments.raw.resolve() if arguments.raw else work / "raw"
        if not arguments.raw:
            people, images = str(arguments.people), str(arguments.images)
            rows.append(("ft synth", ft(work, "synth", str(raw), "--identities", people, "--images", images)))
        count = sum(
            not name.startswith(".") for _, _, files in os.walk(raw, followlinks=True) for name in files
        )
        for title, command in (
            ("ft align", ["align", str(raw), "aligned"]),
            ("ft align, again", ["align", str(raw), "aligned"]),
            (f"ft prune --min {arguments.min}", ["prune", "--min", arguments.min]),
            ("ft split 0.1", ["split", "0.1"]),
            ("ft cache", ["cache"]),
            ("ft cache, again", ["cache"]),
            ("ft status", ["status"]),
        ):
            rows.append((title, ft(work, *command)))
        if int(arguments.epochs):
            rows.append(
                (f"ft train --epochs {arguments.epochs}", ft(work, "train", "--epochs", arguments.epochs))
            )
            rows.append(("ft evaluate (validation split)", ft(work, "evaluate")))
            rows.append(("ft plot-loss", ft(work, "plot-loss")))

    print(f"{count:,} photographs; {hardware()}\n")
    print("| stage | seconds | photographs/s |\n|---|---:|---:|")
    for title, seconds in rows:
        print(f"| `{title}` | {seconds:.1f} | {count / seconds:,.0f} |")


if __name__ == "__main__":
    main()
