"""ft export of a network: the file gives the same embeddings, says how it is to be fed, or is not there."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facetrain.image_spec import ImageSpec
from facetrain.pipeline import network_export
from facetrain.pipeline.subject import CheckpointEmbedder
from facetrain.train.checkpoint import NetworkInfo, build_backbone, load_network, save_network


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small network, not trained, for the crops of `root`."""
    torch.manual_seed(0)
    backbone = build_backbone("iresnet.small", {}, 16, 32)
    for module in backbone.modules():  # batch norms that have seen something
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    spec = ImageSpec(size_px=32)
    save_network(tmp_path / "net.safetensors", backbone, NetworkInfo("iresnet.small", {}, 16, spec))
    return tmp_path / "net.safetensors"


def crops(root: Path) -> np.ndarray:
    paths = sorted((root / "aligned").glob("*/*.jpg"))[:5]
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_torchscript_and_safetensors(root: Path, ft: Callable, checkpoint: Path, tmp_path: Path) -> None:
    images = crops(root)
    ours = CheckpointEmbedder(checkpoint, torch.device("cpu")).of(images)
    text = ft(root, "export", "--torchscript", tmp_path / "a.pt", "--checkpoint", checkpoint).output
    assert "tried on 30 photographs: the least cosine to the checkpoint's embeddings is 1.000000" in text
    assert "verification on pairs of them: accuracy" in text
    extra = {"facetrain": ""}
    module = torch.jit.load(io.BytesIO((tmp_path / "a.pt").read_bytes()), _extra_files=extra)
    spec = ImageSpec.from_dict(json.loads(extra["facetrain"])["image_spec"])
    fed = torch.from_numpy((images.astype(np.float32) - spec.subtract) / spec.divide).permute(0, 3, 1, 2)
    np.testing.assert_allclose(module(fed).detach().numpy(), ours, atol=1e-4)

    ft(root, "export", "--safetensors", tmp_path / "new" / "b.safetensors", "--checkpoint", checkpoint)
    network, info = load_network(tmp_path / "new" / "b.safetensors", torch.device("cpu"))
    assert info.image_spec == spec
    np.testing.assert_allclose(network(fed).detach().numpy(), ours, atol=1e-5)


@pytest.mark.slow
def test_onnx_in_full_and_in_8_bits(root: Path, ft: Callable, checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from facetrain.evaluate.embedders.onnx_file import OnnxFile

    images, how = crops(root), ["--checkpoint", checkpoint]
    ours = CheckpointEmbedder(checkpoint, torch.device("cpu")).embed([images])
    sizes = []
    for name, more, least in (("a.onnx", [], 0.9999), ("b.onnx", ["--int8"], 0.9)):
        text = ft(root, "export", "--onnx", *more, tmp_path / name, *how).output
        assert "(checkpoint: " in text
        there = OnnxFile(str(tmp_path / name))
        assert there.spec == ImageSpec(size_px=32)
        cosines = (there.embed([images]) * ours).sum(1)
        assert cosines.min() > least
        assert name == "a.onnx" or cosines.max() < 1 - 1e-6, "as if nothing had been rounded"
        sizes.append((tmp_path / name).stat().st_size)
    assert sizes[1] < 0.4 * sizes[0]
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "net.safetensors",
        "a.onnx",
        "b.onnx",
    }


def test_a_file_that_gives_other_embeddings_does_not_appear(
    root: Path, wrong: Callable, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(network: CheckpointEmbedder, file: Path) -> CheckpointEmbedder:
        with torch.no_grad():
            next(iter(network.network.parameters())).mul_(-1)
        save_network(file, network.network, network.info)
        return CheckpointEmbedder(checkpoint, torch.device("cpu"))

    monkeypatch.setattr(network_export, "_safetensors", spoilt)
    line = wrong(root, "export", "--safetensors", tmp_path / "a.safetensors", "--checkpoint", checkpoint)
    assert "was not written: its embeddings are others" in line
    assert not (tmp_path / "a.safetensors").exists()


def test_wrong_use(root: Path, wrong: Callable, checkpoint: Path, tmp_path: Path) -> None:
    how = ["--checkpoint", checkpoint]
    assert "is called NAME.onnx" in wrong(root, "export", "--onnx", tmp_path / "a.bin", *how)
    assert "--int8 is of --onnx" in wrong(root, "export", "--torchscript", tmp_path / "a.pt", "--int8", *how)
    assert "of networks" in wrong(root, "export", "--parquet", tmp_path / "p", *how)
    assert "leave out" in wrong(root, "export", "--onnx", tmp_path / "a.onnx", root / "aligned", *how)
    assert "--torchscript" in wrong(root, "export", tmp_path / "a")
    assert "run `ft train` first" in wrong(root, "export", "--onnx", tmp_path / "a.onnx")
