"""The benchmarks run, at tiny sizes, so that they cannot rot. Nothing here looks at a time."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = sorted(path.name for path in (ROOT / "benchmarks").glob("[!_]*.py"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_says_what_it_is(name: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / name), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"python benchmarks/{name}" in text


def test_the_pipeline_benchmark_prints_a_row_for_every_stage() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "pipeline.py"), "--people", "5", "--images", "4"]
    text = subprocess.run([*command, "--epochs", "0"], capture_output=True, text=True, check=True).stdout
    assert text.startswith("20 photographs;")
    stages = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert [stage.split()[1].rstrip(",") for stage in stages] == [
        "synth", "align", "align", "prune", "split", "cache", "cache", "status",
    ]  # fmt: skip


def test_the_benchmark_of_data_on_a_gpu_runs_without_one() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_data.py"), "--device", "cpu"]
    options = ["--images", "300", "--rounds", "1"]
    text = subprocess.run([*command, *options], capture_output=True, text=True, check=True).stdout
    rows = [line.split("|")[1].strip() for line in text.splitlines()[2:]]
    assert rows[0] == "decoding, cpu"
    assert sum(row.startswith("loader") for row in rows) >= 3
    assert all(int(line.split("|")[2].replace(",", "")) > 0 for line in text.splitlines()[2:])


def test_the_loader_benchmark_prints_its_tables() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "loader.py"), "--images", "300", "--rounds", "1"]
    text = subprocess.run([*command, "--rows", "20000"], capture_output=True, text=True, check=True).stdout
    for title in (
        "floor: np.take",
        "facetrain, shuffled",
        "reading the files in order",
        "strength 5",
        "shuffled |",
    ):
        assert title in text


def test_the_alignment_benchmark_compares_three_procedures() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "align.py"), "--people", "4", "--images", "3"]
    options = ["--rounds", "2", "--limit", "10", "-j", "2"]
    text = subprocess.run([*command, *options], capture_output=True, text=True, check=True).stdout
    assert text.startswith("10 photographs, 2 processes, 2 rounds;")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    rows = {row[0]: row[1:] for row in cells if row[0] and not row[0].startswith("-")}
    assert len(rows) == 1 + 5 + 3
    found = [int(rows[title][2]) for title in list(rows)[:4] if rows[title][2]]
    assert len(found) == 3
    assert all(8 <= count <= 10 for count in found)


def test_the_index_benchmark_makes_rows_and_runs_commands_on_them() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "index.py"), "--rows", "3000", "--files", "300"]
    text = subprocess.run([*command, "--rounds", "1"], capture_output=True, text=True, check=True).stdout
    assert "3,000 rows of 150 people" in text
    assert [line.split("`")[1].split()[1] for line in text.splitlines() if line.startswith("| `")] == [
        "status", "prune", "split", "status", "split", "prune", "align", "align"
    ]  # fmt: skip
    assert "Check for changed files, 300 files" in text


def test_options_behind_two_dashes_are_for_the_training() -> None:
    words = ["a", "b", "--min", "1", "--split", "0.02", "--", "--preset", "lfw-cpu", "-j", "2"]
    given = load("lfw").parsed(words)
    assert (given.min, given.split, given.options) == (1, "0.02", ["--preset", "lfw-cpu", "-j", "2"])
    assert load("lfw").parsed(["a", "b"]).options == []


def test_lfws_last_set_is_kept_apart(tmp_path: Path) -> None:
    lfw = load("lfw")
    people = [["Ann", "Bob"], ["Cid"], ["Dan", "Eve"]]
    lines = ["3"]
    for part in people:
        lines += [str(len(part)), *(f"{person}\t2" for person in part)]
    (tmp_path / "people.txt").write_text("\n".join(lines) + "\n")
    pairs = ["3\t10", *["Ann\t1\t2"] * 10, *["Ann\t1\tBob\t1"] * 10]
    pairs += [*["Cid\t1\t2"] * 10, *["Cid\t1\tCid\t2"] * 10, *["Dan\t1\t2"] * 10, *["Dan\t1\tEve\t1"] * 10]
    (tmp_path / "pairs.txt").write_text("\n".join(pairs) + "\n")
    for person in ("Ann", "Bob", "Cid", "Dan", "Eve"):
        (tmp_path / "raw" / person).mkdir(parents=True)
    file = lfw.prepare(tmp_path, tmp_path / "work")
    assert sorted(path.name for path in (tmp_path / "work" / "train").iterdir()) == ["Ann", "Bob", "Cid"]
    text = file.read_text().splitlines()
    assert text[0] == "10\t1"
    assert text[1:] == ["Dan\t1\t2", "Dan\t1\tEve\t1"] * 10


def test_the_cache_benchmark_compares_with_bare_dali() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "cache.py"), "--crops", "60", "--rounds", "1"]
    text = subprocess.run([*command, "--threads", "1"], capture_output=True, text=True, check=True).stdout
    assert text.startswith("60 crops; ")
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")][2:] == ["1"]


def test_the_cache_benchmark_counts_what_changes_cost() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "cache.py"), "--changes", "--crops", "240"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split("|")[1:5] for line in text.splitlines() if line.startswith("|")][2:]
    assert [(what.strip(), int(decoded), int(written)) for what, decoded, _, written in rows] == [
        ("first time", 240, 1),
        ("nothing", 0, 0),
        ("one photograph changed", 1, 1),
        ("one added", 1, 1),
        ("one removed", 0, 1),
        ("one renamed", 0, 0),
        ("all touched", 0, 0),
        ("`ft prune --min 2`", 0, 0),
        ("`ft split 0.1`", 0, 0),
        ("`ft prune --undo`", 0, 0),
    ]


def test_the_mining_benchmark_prints_its_table() -> None:
    sizes = ["--rows", "120", "--alone", "160", "--rounds", "1"]
    text = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "mining.py"), *sizes],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert text.count("| batch-hard |") == 2
    assert text.count("| semihard |") == 2


def test_the_head_benchmark_prints_its_table() -> None:
    sizes = ["--batch", "16", "--dim", "8", "--classes", "500", "700"]
    text = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "head.py"), *sizes],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert text.count("all logits at once") == 2


def test_the_benchmark_of_kernels_on_a_gpu_runs_without_one() -> None:
    sizes = ["--device", "cpu", "--rows", "40", "--classes", "300", "--dim", "32", "--repeats", "1"]
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_kernels.py"), *sizes]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert text.count("| 40 |") == 9
    assert text.count("| 300 |") == 3
