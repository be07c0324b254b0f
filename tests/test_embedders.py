"""Embedders: what turns crops into embeddings, and how they are named on the command line."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mean_colours import Means
from numpy.typing import NDArray
from PIL import Image

from facetrain.dlib_models import model_path
from facetrain.errors import UserError
from facetrain.evaluate.embedders.dlib_network import DlibNetwork
from facetrain.evaluate.embedders.onnx_file import OnnxFile
from facetrain.evaluate.verification import verify
from facetrain.image_spec import ImageSpec
from facetrain.plugins import make
from facetrain.testing import check_embedder


def crops(count: int = 6, size_px: int = 32) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, size_px, size_px, 3), np.uint8)


def onnx_file(path: Path, shape: list[Any], metadata: dict[str, str] | None = None) -> Path:
    """A network whose embedding is the mean of each channel of what it is fed."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("GlobalAveragePool", ["pictures"], ["means"]),
        helper.make_node("Flatten", ["means"], ["out"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("pictures", kind, shape)], [value("out", kind, [shape[0], 3])]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


def test_contracts(tmp_path: Path) -> None:
    check_embedder(Means)
    check_embedder(DlibNetwork)
    path = str(onnx_file(tmp_path / "a.onnx", ["n", 3, 32, 32]))
    check_embedder(lambda: OnnxFile(path))


def test_unit_length_and_mirror_images() -> None:
    means, images = Means(), crops()
    plain = means.embed([images[:4], images[4:]])
    assert plain.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(plain, axis=1), 1, rtol=1e-6)
    flipped = means.embed([images], flip=True)
    both = means.of(images).astype(np.float64) + means.of(images[:, :, ::-1])
    np.testing.assert_allclose(
        flipped, both / np.linalg.norm(both, axis=1, keepdims=True), rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(means.embed([images[:, :, ::-1]], flip=True), flipped, rtol=1e-5, atol=1e-6)


def test_an_embedding_of_zeros_stays_so() -> None:
    grey = np.full((1, 32, 32, 3), 127, np.uint8)
    assert not Means().embed([grey]).any()


def test_dlibs_network_is_dlibs() -> None:
    import dlib

    images = crops(3, 150)
    network = dlib.face_recognition_model_v1(str(model_path("dlib_face_recognition_resnet_model_v1.dat")))
    theirs = np.array([network.compute_face_descriptor(image) for image in images])
    np.testing.assert_allclose(DlibNetwork().of(images), theirs, atol=1e-5)
    assert DlibNetwork().of(images[:0]).shape == (0, 128)


@pytest.mark.parametrize("batch", ["n", 4])
def test_an_onnx_file_is_fed_as_it_says(batch: Any, tmp_path: Path) -> None:
    images = crops(6)
    path = str(onnx_file(tmp_path / "a.onnx", [batch, 3, 32, 32]))
    means = images.mean(axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(OnnxFile(path).of(images), (means - 127.5) / 127.5, atol=1e-5)
    other = OnnxFile(path, subtract=0, divide=255, channels="BGR")
    np.testing.assert_allclose(other.of(images), means[:, ::-1] / 255, atol=1e-5)
    assert other.spec == ImageSpec(size_px=32, subtract=0, divide=255)
    spec = ImageSpec(size_px=32, landmarks="outer-eyes-nose", subtract=10, divide=2)
    declared = {"facetrain": json.dumps({"image_spec": json.loads(spec.to_json())})}
    path = str(onnx_file(tmp_path / "b.onnx", [batch, 3, 32, 32], declared))
    assert OnnxFile(path).spec == spec
    np.testing.assert_allclose(OnnxFile(path).of(images), (means - 10) / 2, atol=1e-4)


def test_onnx_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no ONNX file"):
        OnnxFile(str(tmp_path / "none.onnx"))
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match=r"bad\.onnx is no ONNX file that can be run"):
        OnnxFile(str(tmp_path / "bad.onnx"))
    for shape in (["n", 1, 32, 32], ["n", 3, "h", "w"], ["n", 3, 32, 40]):
        path = onnx_file(tmp_path / "other.onnx", shape)
        with pytest.raises(UserError, match="does not take pictures"):
            OnnxFile(str(path))
    path = onnx_file(tmp_path / "a.onnx", ["n", 3, 32, 32])
    with pytest.raises(UserError, match="choose RGB or BGR"):
        OnnxFile(str(path), channels="grey")
    with pytest.raises(UserError, match="colour"):
        make("embedders", "onnx", {"path": str(path), "colour": "RGB"})


PAIRS = "2\t2\nann\t1\t2\nbob\t1\t2\nann\t1\tbob\t1\nann\t2\tbob\t2\nann\t1\t3\nbob\t1\t3\nann\t3\tbob\t3\nann\t3\tbob\t1\n"


class Damaged(Means):
    def of(self, crops: np.ndarray) -> np.ndarray:
        found = super().of(crops)
        found[-1, 0] = np.nan
        return found


def test_embeddings_that_are_no_numbers(root: Path, wrong: Callable, tmp_path: Path) -> None:
    by = ["--embedder", f"{__name__}:Damaged", "-j", 1]
    for command in (
        ["embed", "--out", tmp_path / "a.npz"],
        ["clean", "--out", tmp_path / "a.csv"],
    ):
        assert "the network gives embeddings that are not finite" in wrong(root, *command, *by)


def test_options_of_the_split_are_not_of_a_protocol(root: Path, wrong: Callable) -> None:
    lfw = ["evaluate", "--protocol", "lfw", "--data", root / "raw"]
    assert "--seed is of the validation split" in wrong(root, *lfw, "--seed", 3)
    twice = ["--protocol-arg", "view=1", "--protocol-arg", "view=2"]
    assert "'view' is given twice" in wrong(root, *lfw, *twice)
    both = ["--no-face", "drop", "--protocol-arg", "no_face=different"]
    assert "say the same: leave one out" in wrong(root, *lfw, *both)


def test_a_bin_file(root: Path, ft: Callable, wrong: Callable, tmp_path: Path) -> None:
    paths = [f"{name}/{number}.jpg" for name in ("ann", "bob") for number in (1, 2, 3)]
    images = [(root / "aligned" / path).read_bytes() for path in paths]
    chosen = [(0, 1), (0, 3), (3, 4), (1, 4), (1, 2), (2, 5)]
    same = [a // 3 == b // 3 for a, b in chosen]
    file = tmp_path / "set.bin"
    file.write_bytes(pickle.dumps(([images[i] for pair in chosen for i in pair], same)))
    named = ["--embedder", f"{__name__}:Means", "-j", 1]
    text = ft(root, "evaluate", *named, "--pairs", file, "--out", tmp_path / "out").output
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["photographs"] == 6 and "does not say how its crops were made" in text

    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in images])
    embeddings = Means().embed([pixels])
    scores = np.array([embeddings[a] @ embeddings[b] for a, b in chosen])
    expected = verify(scores, same, np.arange(6))
    assert found["accuracy_mean"] == expected.accuracy_mean
    assert found["auc"] == expected.auc

    assert "leave out --images" in wrong(root, "evaluate", *named, "--pairs", file, "--images", root / "raw")
    large = ["--embedder", f"{__name__}:Means", "--embedder-arg", "side_px=64", "-j", 1]
    line = wrong(root, "evaluate", *large, "--pairs", file)
    assert "image 1 of 12 cannot be used: it is 32×32 pixels, not 64×64" in line
    file.write_bytes(b"nonsense")
    assert "no verification set, or damaged" in wrong(root, "evaluate", *named, "--pairs", file)


def test_evaluate_by_name(root: Path, ft: Callable, wrong: Callable, tmp_path: Path) -> None:
    """The crops of this workspace are of 32 pixels; an embedder for others aligns the photographs itself."""
    (tmp_path / "pairs.txt").write_text(PAIRS)
    for name in ("ann", "bob"):
        folder = tmp_path / "crops" / name
        folder.mkdir(parents=True)
        for number in (1, 2, 3):
            (folder / f"{name}_{number:04d}.jpg").write_bytes(
                (root / "aligned" / name / f"{number}.jpg").read_bytes()
            )
    (tmp_path / "crops" / "imagespec.json").write_bytes((root / "aligned" / "imagespec.json").read_bytes())
    how = [
        "--pairs",
        tmp_path / "pairs.txt",
        "--images",
        tmp_path / "crops",
        "-j",
        1,
        "--out",
        tmp_path / "out",
    ]
    named = ["--embedder", f"{__name__}:Means", "--embedder-arg", "side_px=32"]
    ft(root, "evaluate", *named, *how)
    plain = json.loads((tmp_path / "out.json").read_text())
    assert plain["embedder"] == f"{__name__}:Means"
    assert plain["embedder_args"] == {"side_px": 32}
    assert (plain["same_pairs"], plain["different_pairs"]) == (4, 4)
    ft(root, "evaluate", *named, *how, "--flip")
    assert json.loads((tmp_path / "out.json").read_text())["flip"]

    assert "size_px 150 against 32" in wrong(root, "evaluate", "--embedder", "dlib", *how)
    assert "leave out first" in wrong(root, "evaluate", "first", *named, *how)
    assert "needs --embedder" in wrong(root, "evaluate", "--embedder-arg", "a=1", *how)
    assert "no 'dlip' among the embedders: did you mean 'dlib'" in wrong(
        root, "evaluate", "--embedder", "dlip", *how
    )
    assert "no Embedder" in wrong(root, "evaluate", "--embedder", "collections:Counter", *how)
    assert "that says what it takes" in wrong(root, "evaluate", "--embedder", "collections:OrderedDict", *how)
    assert "3.14" in wrong(root, "evaluate", "--embedder", "math:pi", *how)
