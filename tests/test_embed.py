"""ft embed: what is written, in every format; what happens when it is interrupted, and when it is used wrongly."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from facetrain.evaluate.embedders.base import Embedder
from facetrain.image_spec import ImageSpec
from facetrain.pipeline import embedding

CALLS: list[int] = []


class Means(Embedder):
    """The mean colour of each quarter of a crop: as much as tests need."""

    def __init__(self, *, fail_after: int = -1, offset: float = 127) -> None:
        self.spec, self.left, self.offset = ImageSpec(size_px=32), fail_after, offset

    def of(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        CALLS.append(len(crops))
        quarters = crops.reshape(len(crops), 2, 16, 2, 16, 3).mean(axis=(2, 4), dtype=np.float32)
        return quarters.reshape(len(crops), 12) - np.float32(self.offset)


BY = ["--embedder", f"{__name__}:Means", "-j", 1]


def expected(root: Path, paths: list[str]) -> np.ndarray:
    """Of the crops of these photographs."""
    crops = np.stack([np.asarray(Image.open(root / "aligned" / path).convert("RGB")) for path in paths])
    found = Means().of(crops)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.allclose(a, b, atol=2e-2))  # decoders differ in the last bit


@pytest.mark.parametrize("whole_tree", [False, True])
def test_parquet(root: Path, ft: Callable, tmp_path: Path, whole_tree: bool) -> None:
    out = tmp_path / "new" / "reps.parquet"
    text = ft(root, "embed", *([root / "aligned"] if whole_tree else []), *BY, "--out", out).output
    table = pq.read_table(out)
    paths = table["path"].to_pylist()
    assert f"embedded {len(paths)} photographs" in text
    assert table["identity"].to_pylist() == [path.split("/")[0] for path in paths]
    assert paths == sorted(paths) and len(paths) >= 30
    found = np.array(table["embedding"].to_pylist(), np.float32)
    assert close(found, expected(root, paths))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    facts = json.loads(table.schema.metadata[b"facetrain"])
    assert facts["embedder"] == BY[1] and facts["image_spec"]["size_px"] == 32
    assert [path.name for path in out.parent.iterdir()] == ["reps.parquet"]


def test_all_formats_hold_the_same(
    root: Path, ft: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    h5py = pytest.importorskip("h5py")
    monkeypatch.setattr(embedding, "PART", 7)
    for name in ("a.parquet", "a.npz", "a.h5", "reps.csv"):
        ft(root, "embed", *BY, "--out", tmp_path / name)
    table = pq.read_table(tmp_path / "a.parquet")
    paths, names = table["path"].to_pylist(), table["identity"].to_pylist()
    embeddings = np.array(table["embedding"].to_pylist(), np.float32)
    with np.load(tmp_path / "a.npz") as file:
        assert file["path"].tolist() == paths and file["identity"].tolist() == names
        np.testing.assert_array_equal(file["embedding"], embeddings)
        assert json.loads(str(file["facts"]))["flip"] is False
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["reference"][:], embeddings)
        assert [text.decode() for text in file["reference_ids"][:]] == paths  # 1.jpg is there for each person
        assert "query" not in file
    rows = [[float(x) for x in line.split(",")] for line in (tmp_path / "reps.csv").read_text().splitlines()]
    np.testing.assert_array_equal(np.array(rows, np.float32), embeddings)
    labels = list(csv.reader(io.StringIO((tmp_path / "labels.csv").read_text())))
    assert [path for _, path in labels] == paths
    number_of = dict(zip(names, (int(number) for number, _ in labels), strict=True))
    assert sorted(number_of.values()) == list(range(1, len(number_of) + 1))


def test_queries_and_references(root: Path, ft: Callable, wrong: Callable, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    for tree, person in (("q", "ann"), ("r", "bob")):
        (tmp_path / tree).mkdir()
        for number in (1, 2):
            shutil.copy(
                root / "aligned" / person / f"{number}.jpg", tmp_path / tree / f"{person}{number}.jpg"
            )
        shutil.copy(root / "aligned" / "imagespec.json", tmp_path / tree)
    ft(root, "embed", tmp_path / "r", "--query", tmp_path / "q", *BY, "--out", tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert [text.decode() for text in file["query_ids"][:]] == ["ann1", "ann2"]
        assert [text.decode() for text in file["reference_ids"][:]] == ["bob1", "bob2"]
        assert close(file["query"][:], expected(root, ["ann/1.jpg", "ann/2.jpg"]))
        assert close(file["reference"][:], expected(root, ["bob/1.jpg", "bob/2.jpg"]))
    line = wrong(root, "embed", tmp_path / "r", "--query", tmp_path / "q", *BY, "--out", tmp_path / "a.npz")
    assert "only an .h5 file holds queries" in line


def test_a_csv_of_somebody_else_is_not_overwritten(
    root: Path, ft: Callable, wrong: Callable, tmp_path: Path
) -> None:
    embed = ["embed", *BY, "--out"]
    (tmp_path / "labels.csv").write_text("mine\n")
    assert "labels.csv is there already" in wrong(root, *embed, tmp_path / "reps.csv")
    (tmp_path / "clean.csv").write_text("action,path\n")
    assert "clean.csv is there already, and holds no embeddings" in wrong(
        root, *embed, tmp_path / "clean.csv"
    )
    assert (tmp_path / "labels.csv").read_text() == "mine\n"
    for _ in range(2):
        ft(root, *embed, tmp_path / "other.csv")  # its own, again


def test_photographs_in_no_folder(root: Path, ft: Callable, tmp_path: Path) -> None:
    """They have nobody's name, and are embedded as those of people are."""
    (tmp_path / "flat").mkdir()
    for number in (1, 2):
        shutil.copy(root / "raw" / "ann" / f"{number}.jpg", tmp_path / "flat" / f"{number}.jpg")
    ft(root, "embed", tmp_path / "flat", *BY, "--out", tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["path"].to_pylist() == ["1.jpg", "2.jpg"] and table["identity"].null_count == 2
    assert close(np.stack(table["embedding"].to_pylist()), expected(root, ["ann/1.jpg", "ann/2.jpg"]))


def test_an_interrupted_command_goes_on(
    root: Path, ft: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "PART", 8)
    out = tmp_path / "a.npz"
    with pytest.raises(KeyboardInterrupt):
        embedding_of(root, out, Means(fail_after=2))
    assert not out.exists() and len(list((tmp_path / "a.npz.parts" / "reference").iterdir())) == 2
    CALLS.clear()
    embedding_of(root, out, Means())
    with np.load(out) as file:
        count = len(file["path"])
        resumed = file["embedding"]
    assert sum(CALLS) == count - 16, "what was done is not done again"
    assert not (tmp_path / "a.npz.parts").exists()
    embedding_of(root, tmp_path / "b.npz", Means())
    with np.load(tmp_path / "b.npz") as file:
        np.testing.assert_array_equal(file["embedding"], resumed)


def test_an_onnx_file_is_known_by_its_content(root: Path, tmp_path: Path) -> None:
    """Which the key of the parts holds: those of one that was replaced are not used."""
    pytest.importorskip("onnxruntime")
    from facetrain.pipeline.subject import open_subject
    from facetrain.workspace import Workspace

    path = tmp_path / "n.onnx"
    for name in ("one", "two"):
        path.write_bytes(onnx_of(2 if name == "one" else 3))
        facts = open_subject(Workspace(root), None, str(path), {}, torch.device("cpu")).facts
        assert len(facts["content"]) == 64
        (tmp_path / name).write_text(facts["content"])
    assert (tmp_path / "one").read_text() != (tmp_path / "two").read_text()


def onnx_of(factor: float) -> bytes:
    """The mean of the pixels, times a factor."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("Mul", ["m", "f"], ["y"]),
    ]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    constant = numpy_helper.from_array(np.array(factor, np.float32), "f")
    graph = helper.make_graph(nodes, "g", [image], [out], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())


def test_parts_of_another_network_or_of_other_photographs_are_not_used(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "PART", 8)
    for changed in ("network", "photographs"):
        with pytest.raises(KeyboardInterrupt):
            embedding_of(root, tmp_path / "a.npz", Means(fail_after=2))
        CALLS.clear()
        if changed == "photographs":
            picture = root / "aligned" / "ann" / "2.jpg"
            Image.new("RGB", (32, 32), (200, 10, 90)).save(picture)
        embedding_of(
            root, tmp_path / "a.npz", Means(offset=100), "another" if changed == "network" else "means"
        )
        with np.load(tmp_path / "a.npz") as file:
            assert sum(CALLS) == len(file["path"]), changed


def embedding_of(root: Path, out: Path, embedder: Embedder, name: str = "means") -> None:
    """As the command does, with an embedder at hand: of the crops as a tree."""
    from facetrain.pipeline.subject import Subject
    from facetrain.workspace import Workspace

    subject = Subject(embedder, name, {"embedder": name})
    source = embedding.source_of(
        Workspace.find(root), root / "aligned", subject, aligned=None, part=None, multi="largest", jobs=1
    )
    embedding.embed_to(out, subject, source, None, flip=False, jobs=1)


def test_photographs_are_aligned_and_those_without_a_face_are_said(
    root: Path, ft: Callable, tmp_path: Path, in_process: None
) -> None:
    (tmp_path / "raw" / "ann").mkdir(parents=True)
    shutil.copy(root / "raw" / "ann" / "1.jpg", tmp_path / "raw" / "ann")
    Image.new("RGB", (80, 80)).save(tmp_path / "raw" / "ann" / "none.png")
    text = ft(root, "embed", tmp_path / "raw", *BY, "--out", tmp_path / "a.npz").output
    assert "in 1 of 2 photographs no face was found" in text
    with np.load(tmp_path / "a.npz") as file:
        assert file["path"].tolist() == ["ann/1.jpg"]


def test_wrong_use(root: Path, wrong: Callable, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "a.npz"]
    assert "ends in .parquet, .npz, .h5, .csv" in wrong(root, "embed", *BY, "--out", tmp_path / "a.txt")
    assert "no such folder" in wrong(root, "embed", tmp_path / "none", *BY, *out)
    (tmp_path / "empty").mkdir()
    assert "there are no photographs" in wrong(root, "embed", tmp_path / "empty", *BY, *out)
    assert "leave out the folder" in wrong(root, "embed", tmp_path, *BY, *out, "--part", "val")
    assert "run `ft train` first" in wrong(root, "embed", *out)
    assert "size_px 150 against 32" in wrong(root, "embed", root / "aligned", "--embedder", "dlib", *out)
    assert not (tmp_path / "a.npz").exists()
