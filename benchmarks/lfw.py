"""LFW from photographs to a figure: train on the people of all sets but the last, evaluate on the last set's pairs.

    python benchmarks/lfw.py LFW WORK [--min 2] [--split 0.05] [-- options of ft train]

LFW holds raw/<person>/<person>_NNNN.jpg, people.txt and pairs.txt in LFW's own format (View 2). In WORK a tree of
links to the training people is made and the five commands are run on it, with the times of each; then `ft evaluate` on
the last set's pairs (600 in LFW), which share no person with the training. LFW's people stand in the centre of their
photographs: that face is taken, not the largest. ``--min 1``: nothing is pruned.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path


def sets_of(lines: list[str]) -> list[list[str]]:
    """The sets of people.txt, as lists of names."""
    sets, at = [], 1
    for _ in range(int(lines[0].split()[0])):
        count = int(lines[at])
        sets.append([line.split("\t")[0] for line in lines[at + 1 : at + 1 + count]])
        at += 1 + count
    return sets


def prepare(lfw: Path, work: Path) -> Path:
    """Links to the training people, and the last set's pairs as a file of one fold a sixty."""
    train = work / "train"
    *training_sets, last = sets_of((lfw / "people.txt").read_text().splitlines())
    people = {person for part in training_sets for person in part}
    assert not people & set(last), "LFW's sets share no people"
    train.mkdir(parents=True, exist_ok=True)
    for person in sorted(people):
        if not (train / person).is_symlink():
            (train / person).symlink_to((lfw / "raw" / person).resolve())
    header, *pairs = (lfw / "pairs.txt").read_text().splitlines()
    half = int(header.split()[1])
    same, different = pairs[-2 * half : -half], pairs[-half:]
    # Ten folds of 30 + 30, so that the threshold of each pair is chosen on others.
    folds, each = 10, half // 10
    lines = [f"{folds}\t{each}"]
    for fold in range(folds):
        part = slice(fold * each, (fold + 1) * each)
        lines += [*same[part], *different[part]]
    file = work / "last-set.txt"
    file.write_text("\n".join(lines) + "\n")
    return file


def align(work: Path) -> None:
    ft(work, "align", "train", "aligned", "--size", "96", "--multi", "centre")


def ft(work: Path, *arguments: str) -> None:
    """Run a command and print it with its time."""
    print(f"\n$ ft {' '.join(arguments)}", flush=True)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "facetrain.cli", "-C", str(work), *arguments], check=True, cwd=work)
    print(f"[{time.perf_counter() - started:.1f} s]", flush=True)


def parsed(words: list[str]) -> argparse.Namespace:
    """The command line; what stands after ``--`` is for ft train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lfw", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--min", type=int, default=2, help="photographs that a person must have")
    parser.add_argument("--split", default="0.05", help="share of the people for validation")
    parser.usage = "%(prog)s [-h] [--min MIN] [--split SPLIT] LFW WORK [-- OPTION …]"
    end = words.index("--") if "--" in words else len(words)
    # Not a positional of argparse's: with options before "--" it finds none.
    return parser.parse_args(words[:end], argparse.Namespace(options=words[end + 1 :]))


def main() -> None:
    arguments = parsed(sys.argv[1:])
    work = arguments.work.resolve()
    pairs = prepare(arguments.lfw.resolve(), work)
    align(work)
    if arguments.min > 1:
        ft(work, "prune", "--min", str(arguments.min))
    ft(work, "split", arguments.split)
    ft(work, "train", *arguments.options)
    ft(work, "plot-loss")
    ft(work, "evaluate", "--pairs", pairs.name, "--images", str(arguments.lfw.resolve() / "raw"))


if __name__ == "__main__":
    main()
