"""What a protocol costs beside embedding: its lists read and its figures computed, on random embeddings.

    python benchmarks/protocols.py [--faces 469375] [--templates 23124] [--pairs 15658489] [--dim 512]

Sets of the sizes of LFW (6,000 pairs in ten folds) and of IJB-C (1:1) are written into --work (a temporary folder by
default): the lists in the sets' own layout, and photographs that are empty files, since none is opened. Beside ours
stands what is usually done, in plain NumPy and scikit-learn: for LFW insightface's accuracy over 400 thresholds, for
IJB-C a loop over templates, and `roc_curve`. Peak memory is what a step takes over what it had before it began.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.csv
from _common import hardware, peak_memory_mb, reset_peak_memory
from numpy.typing import NDArray

from facetrain.evaluate.protocols.ijb import Ijb
from facetrain.evaluate.protocols.lfw import Lfw

Floats = NDArray[np.float32]
Result = TypeVar("Result")
FOLDS, PAIRS_A_FOLD = 10, 300
PHOTOGRAPHS = 4  # of each of LFW's people here
MEDIA = 3.2  # photographs and videos in a template of IJB-C, about


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faces", type=int, default=469_375)
    parser.add_argument("--templates", type=int, default=23_124)
    parser.add_argument("--pairs", type=int, default=15_658_489)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        print(f"{hardware()}; {arguments.dim} dimensions\n")
        print("| | seconds | MB |\n|---|---|---|")
        lfw(work / "lfw", arguments.dim)
        ijb(work / "ijbc", arguments.faces, arguments.templates, arguments.pairs, arguments.dim)


def timed(says: str, step: Callable[[], Result]) -> Result:
    """Run a step and print its row."""
    reset_peak_memory()
    before, started = peak_memory_mb(), time.perf_counter()
    result = step()
    print(f"| {says} | {time.perf_counter() - started:.3f} | {peak_memory_mb() - before:,.0f} |", flush=True)
    return result


def unit(rng: np.random.Generator, count: int, dim: int) -> Floats:
    drawn = rng.standard_normal((count, dim), np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn


def empty_files(paths: list[Path]) -> None:
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        path.touch()


# -- LFW -----------------------------------------------------------------------------------------------------------------


def lfw(data: Path, dim: int) -> None:
    people = [f"person_{number:04d}" for number in range(FOLDS * PAIRS_A_FOLD)]
    empty_files(
        [data / "lfw" / name / f"{name}_{n:04d}.jpg" for name in people for n in range(1, PHOTOGRAPHS + 1)]
    )
    lines = [f"{FOLDS}\t{PAIRS_A_FOLD}"]
    for fold in range(FOLDS):
        own = people[fold * PAIRS_A_FOLD : (fold + 1) * PAIRS_A_FOLD]
        lines += [f"{name}\t1\t2" for name in own]
        lines += [f"{a}\t3\t{b}\t4" for a, b in zip(own, own[1:] + own[:1], strict=True)]
    (data / "pairs.txt").write_text("\n".join(lines) + "\n")
    protocol = timed("LFW, 6,000 pairs: lists and photographs found", lambda: Lfw(data))
    rng = np.random.default_rng(0)
    embeddings = unit(rng, len(protocol.photographs), dim)
    (pairs,) = protocol.lists
    first, second, same = pairs.first, pairs.second, pairs.same
    embeddings[second[same]] = embeddings[first[same]] + 6 * unit(rng, int(same.sum()), dim)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    found = np.ones(len(embeddings), bool)
    ours = timed("LFW: all figures, every threshold", lambda: protocol.measure(embeddings, found))
    theirs = timed(
        "LFW: accuracy alone over 400 thresholds, as insightface",
        lambda: over_400(embeddings[first], embeddings[second], same),
    )
    print(f"| &nbsp;&nbsp;accuracy of ours and of theirs | {ours.values['accuracy']:.4f} | {theirs:.4f} |")


def over_400(first: Floats, second: Floats, same: NDArray[np.bool_]) -> float:
    distances = np.sum(np.square(first - second), axis=1)
    folds = np.repeat(np.arange(FOLDS), len(same) // FOLDS)
    thresholds = np.arange(0, 4, 0.01)
    accuracies = []
    for fold in range(FOLDS):
        train, test = folds != fold, folds == fold
        on_train = [np.mean((distances[train] < t) == same[train]) for t in thresholds]
        best = thresholds[np.argmax(on_train)]
        accuracies.append(np.mean((distances[test] < best) == same[test]))
    return float(np.mean(accuracies))


# -- IJB-C ---------------------------------------------------------------------------------------------------------------


def ijb(data: Path, faces: int, templates: int, pairs: int, dim: int) -> None:
    rng = np.random.default_rng(1)
    empty_files([data / "loose_crop" / f"{number}.jpg" for number in range(1, faces + 1)])
    template = np.sort(np.append(np.arange(templates), rng.integers(templates, size=faces - templates)))
    medium = (template * MEDIA + rng.random(faces) * MEDIA).astype(np.int64)
    person = rng.integers(max(templates // 7, 2), size=templates)
    first, second = rng.integers(templates, size=(2, pairs))
    second[: pairs // 800] = first[: pairs // 800]  # so few are of one person
    same = person[first] == person[second]
    points = rng.uniform(40, 70, (faces, 10))
    (data / "meta").mkdir(exist_ok=True)
    names = np.char.add(np.arange(1, faces + 1).astype(str), ".jpg")
    write(data / "meta" / "ijbc_face_tid_mid.txt", [names, template + 1, medium])
    write(data / "meta" / "ijbc_template_pair_label.txt", [first + 1, second + 1, same.astype(np.int64)])
    scores = rng.uniform(0.5, 1, faces)
    write(data / "meta" / "ijbc_name_5pts_score.txt", [names, *points.round(2).T, scores.round(3)])
    protocol = timed(
        f"IJB-C, {faces:,} faces, {templates:,} templates, {pairs:,} pairs: lists and photographs found",
        lambda: Ijb(data, task="1:1"),
    )
    embeddings = unit(rng, faces, dim)
    embeddings += 0.06 * unit(rng, int(person.max()) + 1, dim)[person[template]]
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    ours = timed("IJB-C: all figures of 1:1", lambda: protocol.measure(embeddings, np.ones(faces, bool)))
    theirs = timed(
        "IJB-C: a loop over templates, and scikit-learn's ROC",
        lambda: plain_ijb(embeddings, template, medium, first, second, same),
    )
    print(f"| &nbsp;&nbsp;AUC of ours and of theirs | {ours.values['auc']:.6f} | {theirs:.6f} |")


def write(path: Path, columns: list[NDArray[np.generic]]) -> None:
    table = pa.table([pa.array(column) for column in columns], names=[f"c{i}" for i in range(len(columns))])
    options = pa.csv.WriteOptions(include_header=False, delimiter=" ", quoting_style="none")
    pa.csv.write_csv(table, path, options)


def plain_ijb(
    embeddings: Floats,
    template: NDArray[np.int64],
    medium: NDArray[np.int64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    same: NDArray[np.bool_],
) -> float:
    from sklearn.metrics import auc, roc_curve

    made = np.zeros((template.max() + 1, embeddings.shape[1]), np.float32)
    for number in np.unique(template):
        (rows,) = np.where(template == number)
        means = [embeddings[rows[medium[rows] == one]].mean(axis=0) for one in np.unique(medium[rows])]
        made[number] = np.sum(means, axis=0)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    scores = np.empty(len(first), np.float32)
    for start in range(0, len(first), 100_000):
        part = slice(start, start + 100_000)
        scores[part] = np.sum(made[first[part]] * made[second[part]], axis=1)
    far, tar, _ = roc_curve(same, scores)
    return float(auc(far, tar))


if __name__ == "__main__":
    main()
