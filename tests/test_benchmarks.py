"""The benchmarks run, at tiny sizes, so that they cannot rot. Nothing here looks at a time."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from facetrain.train.losses.heads.cosface import CosFace
from facetrain.train.losses.triplet import Triplet
from facetrain.train.miners.mined import Mined
from facetrain.train.row_optimisers import RowSGD

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


def test_the_search_benchmark_compares_with_a_plain_search() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "search.py"), "--probes", "80", "--gallery", "3000"]
    text = subprocess.run([*command, "--dim", "64"], capture_output=True, text=True, check=True).stdout
    assert text.startswith("80 probes, 3,000 in the gallery, 64 dimensions")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    rows = {row[0]: row[1:] for row in cells[2:]}
    assert {"top 20", "top 20: NumPy, argpartition by blocks", "ranks of mates"} <= set(rows)
    assert all(row[3] == "100.0000%" for name, row in rows.items() if ":" in name)
    first, last = (float(part.split(": ")[1]) for part in text.splitlines()[-1].split(", "))
    assert 0 < first < last < 1


def test_the_protocol_benchmark_agrees_with_the_plain_way() -> None:
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "protocols.py"),
        "--faces",
        "600",
        "--templates",
        "60",
    ]
    text = subprocess.run(
        [*command, "--pairs", "4000", "--dim", "32"], capture_output=True, text=True, check=True
    ).stdout
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    rows = {row[0].replace("&nbsp;", ""): row[1:] for row in cells[2:]}
    ours, theirs = rows["AUC of ours and of theirs"]
    assert ours == theirs and 0.5 < float(ours) < 1
    ours, theirs = rows["accuracy of ours and of theirs"]
    assert abs(float(ours) - float(theirs)) < 0.01


def test_the_head_benchmark_prints_its_table() -> None:
    sizes = ["--batch", "16", "--dim", "8", "--classes", "500", "700"]
    text = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "head.py"), *sizes],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert text.count("all logits at once") == 2


def kernels_on_a_gpu(*options: str) -> dict[str, list[str]]:
    """The rows of the benchmark's tables, at tiny sizes on the processor: what and precision, to the other cells."""
    sizes = ["--device", "cpu", "--rows", "40", "--classes", "300", "--dim", "32", "--repeats", "1"]
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_kernels.py"), *sizes, *options]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    lines = [line for line in text.splitlines() if line.startswith(("| 40 |", "| 300 |"))]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    rows = {f"{what}, {precision}": others for _, what, precision, *others in cells}
    assert len(rows) == len(lines)
    return rows


MINERS = ("batch-hard", "all-violating-random", "closest-semihard")


def test_the_benchmark_of_kernels_on_a_gpu_runs_without_one() -> None:
    rows = kernels_on_a_gpu()
    assert len(rows) == 6 + 2 * (3 + 3 + 1) + 6 + 4 + 3
    for cells in rows.values():
        assert all(float(cells[place]) > 0 for place in (0, 2))
    for miner in MINERS:
        assert f"{miner}, loss and backward, fp32" in rows
        assert f"{miner}, loss and backward: plain PyTorch, tf32" in rows
    for exact in ("ours", "all logits"):
        assert all(float(share) < 1e-5 for share in rows[f"{exact}, fp32"][3].split("/"))
    for about in ("cut cross-entropy, no filter", "Partial FC, all classes"):
        assert all(float(share) < 0.05 for share in rows[f"{about}, bf16"][3].split("/"))
    assert rows["cut cross-entropy, bf16"][3].endswith("of the tiles")
    for sampled in ("gradient of all weights", "rows copied back"):
        assert rows[f"Partial FC, 10%, {sampled}, bf16"][3] == ""


@pytest.mark.slow
def test_the_benchmark_of_kernels_on_a_gpu_compiles_what_it_compares_with() -> None:
    rows = kernels_on_a_gpu("--compile")
    compiled = [f"{miner}, loss and backward: plain PyTorch, torch.compile" for miner in MINERS]
    for name in (*compiled, "all logits, torch.compile"):
        assert float(rows[f"{name}, fp32"][0]) > 0


def batch_of_people(rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """Embeddings in float64, near those of the same person, and labels, eight rows each but the last."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) // 8
    centres = torch.randn(int(labels[-1]) + 1, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return (centres[labels] + noise).requires_grad_(), labels


@pytest.mark.parametrize("miner", ["batch-hard", "closest-semihard"])
def test_plain_mining_finds_what_ours_finds(miner: str) -> None:
    peers = load("_gpu_peers")
    embeddings, labels = batch_of_people(61, 16)
    ours = Triplet(miner="batch-hard", margin=0.2)
    theirs = functools.partial(peers.batch_hard, margin=0.2)
    if miner == "closest-semihard":
        ours.miner = Mined(strategy="closest-semihard")
        theirs = peers.a_negative_for_each_pair(8, 0.2, closest=True, most_elements=61 * 8 * 20)
    expected, found = ours(embeddings, labels)[0], theirs(embeddings, labels)
    assert expected > 0
    torch.testing.assert_close(found, expected)
    of_both = [torch.autograd.grad(loss, embeddings)[0] for loss in (found, expected)]
    torch.testing.assert_close(*of_both)


def test_plain_mining_draws_from_all_violators() -> None:
    embeddings, labels = batch_of_people(24, 4)
    unit = normalize(embeddings.detach())
    pairs = ((labels[:, None] == labels) & ~torch.eye(24, dtype=torch.bool)).nonzero()
    d2 = torch.cdist(unit, unit).square()
    expected = (labels[pairs[:, 0], None] != labels) & (d2[pairs[:, 0]] < d2[tuple(pairs.T)][:, None] + 0.2)
    torch.manual_seed(0)
    drawn = torch.zeros_like(expected)
    for _ in range(200):
        args = (unit, labels, torch.arange(24), *pairs.T, 0.2, False)
        negative, is_there = load("_gpu_peers").violators(*args)
        assert torch.equal(is_there, expected.any(1))
        drawn[is_there.nonzero()[:, 0], negative[is_there]] = True
    assert torch.equal(drawn, expected)


def cosface_and(kind: str, rows: int, classes: int, **options: Any) -> tuple[CosFace, Any, Tensor, Tensor]:
    """Ours and a peer's with the same weights, in float64; embeddings not far from those of their classes; labels."""
    torch.manual_seed(0)
    ours = CosFace(classes, 16, margin_cos=0.35, scale=64.0).double()
    peer = getattr(load("_gpu_peers"), kind)(classes, 16, 64.0, 0.35, None, **options).double()
    with torch.no_grad():
        peer.weight.copy_(ours.weight)
    labels = torch.randint(classes, (rows,))
    embeddings = 100 * ours.weight[labels].detach() + 0.5 * torch.randn(rows, 16, dtype=torch.float64)
    return ours, peer, embeddings.requires_grad_(), labels


@pytest.mark.parametrize(
    ("kind", "options"), [("CutCrossEntropy", {"filter_eps": 0, "classes_at_once": 50}), ("PartialFC", {})]
)
def test_other_heads_have_our_loss_and_gradients(kind: str, options: dict[str, Any]) -> None:
    ours, peer, embeddings, labels = cosface_and(kind, 24, 211, **options)
    expected, found = ours(embeddings, labels)[0], peer(embeddings, labels)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected, (embeddings, ours.weight))
    torch.testing.assert_close(torch.autograd.grad(found, (embeddings, peer.weight)), wanted)


def test_cut_cross_entropys_filter_leaves_out_tiles() -> None:
    _, peer, embeddings, labels = cosface_and("CutCrossEntropy", 150, 600, classes_at_once=256)
    unit_rows, unit_weight = (normalize(x) for x in (embeddings, peer.weight))
    own = one_hot(labels, 600)
    logits = 64 * (unit_rows @ unit_weight.T - 0.35 * own)
    change = (logits.softmax(1) - own).detach()
    tiles = [tile for rows in change.split(128) for tile in rows.split(128, dim=1)]
    of_tiles = torch.stack([tile.abs().max() for tile in tiles])
    eps = float(of_tiles.sort().values[4:6].mean())
    is_kept = of_tiles >= eps
    assert int(is_kept.sum()) == 5
    for tile, keep in zip(tiles, is_kept, strict=True):
        tile.mul_(keep)
    wanted = torch.autograd.grad((logits * change).sum() / 150, (embeddings, peer.weight))
    peer.filter_eps = eps
    found = torch.autograd.grad(peer(embeddings, labels), (embeddings, peer.weight))
    torch.testing.assert_close(found, wanted)
    of_blocks = [block.float().mean() for block in is_kept.view(2, 5).split(2, dim=1)]
    assert [float(share) for share in peer.kept] == [float(share) for share in of_blocks]


def test_partial_fc_takes_our_steps() -> None:
    ours, dense, embeddings, labels = cosface_and("PartialFC", 16, 200, rate=0.1)
    copying = cosface_and("CopyingPartialFC", 16, 200, rate=0.1)[1]
    ours.sampled_classes = 0.1
    before = ours.weight.detach().clone()
    optimiser = RowSGD(ours.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for seed in (1, 2, 3):
        losses = []
        for head in (ours, dense, copying):
            torch.manual_seed(seed)  # the same classes
            loss = head(embeddings, labels)
            losses.append(loss[0] if isinstance(loss, tuple) else loss)
            losses[-1].backward()
        torch.testing.assert_close(losses[1], losses[0])
        torch.testing.assert_close(losses[2], losses[0])
        torch.testing.assert_close(dense.weight.grad, ours.weight.grad.to_dense())
        optimiser.step()
        copying.step()
        torch.testing.assert_close(copying.weight, ours.weight.detach())
        with torch.no_grad():
            dense.weight.copy_(ours.weight)
        for head in (ours, dense):
            head.zero_grad()
    changed = int((ours.weight.detach() != before).any(1).sum())
    assert 20 < changed < 60
