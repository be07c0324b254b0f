"""Every backbone as an ONNX file: what ONNX Runtime makes of it is what torch makes of it."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from facetrain.errors import UserError
from facetrain.plugins import BUILT_IN, resolve
from facetrain.train import onnx as exporting
from facetrain.train.activation_checkpointing import checkpoint_activations
from facetrain.train.backbones.iresnet import IResNet
from facetrain.train.onnx import OPSET, export_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# An export takes seconds, and as many more as the network is deep: the deep ones at one size.
FAST = [("iresnet.small", 96), ("iresnet18", 112), ("mobilefacenet", 96), ("nn4.small2", 112)]
SLOW = [("iresnet.small", 112), ("iresnet18", 96), ("mobilefacenet", 112), ("nn4.small2", 96)]
SLOW += [("iresnet34", 96), ("iresnet50", 112), ("iresnet100", 112), ("inception-resnet-v1", 96)]
SLOW += [("nn4.small1", 112), ("nn4", 96), ("nn2", 112)]
CASES = FAST + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]


def test_no_backbone_is_left_out() -> None:
    assert {name for name, _ in FAST + SLOW} == set(BUILT_IN["backbones"])


def lived_in(net: nn.Module, size_px: int) -> nn.Module:
    """The network with running statistics as of random images, without which its values grow beyond any use."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # the statistics of all batches so far, equally
    with torch.no_grad():
        net.train()(torch.randn(8, 3, size_px, size_px, generator=torch.Generator().manual_seed(0)))
    return net.eval()


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def assert_agrees(net: nn.Module, path: Path, size_px: int) -> None:
    runtime = session(path)
    for count in (1, 3):
        images = torch.randn(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            expected = net(images).numpy()
        (found,) = runtime.run(["embeddings"], {"images": images.numpy()})
        assert found.dtype == np.float32 and found.shape == expected.shape
        cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
        assert cosines.min() > 0.9999
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("name", "size_px"), CASES)
def test_onnx_runtime_agrees_with_torch(name: str, size_px: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = lived_in(resolve("backbones", name)(embedding_dim=64, size_px=size_px), size_px)
    export_onnx(net, size_px, tmp_path / "net.onnx")
    assert_agrees(net, tmp_path / "net.onnx", size_px)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/vit_tiny_patch16_224", "timm/convnext_atto"])
def test_so_it_does_with_networks_of_the_zoo(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(name.partition("/")[0]) is None:
        pytest.skip("needs the extra [zoo]")
    torch.manual_seed(0)
    net = lived_in(resolve("backbones", name)(embedding_dim=64, size_px=96), 96)
    export_onnx(net, 96, tmp_path / "net.onnx")
    assert_agrees(net, tmp_path / "net.onnx", 96)


def test_the_file_and_what_is_left_of_the_network(tmp_path: Path) -> None:
    net = IResNet((2,), (4, 4), 6, 16)
    checkpoint_activations(net)
    net.to(memory_format=torch.channels_last).train()
    before = copy.deepcopy(net.state_dict())
    export_onnx(net, 16, tmp_path / "net.onnx", {"image_spec": '{"size_px": 16}'})
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    model = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [OPSET]
    assert {prop.key: prop.value for prop in model.metadata_props} == {"image_spec": '{"size_px": 16}'}
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"], (
        "weights are in it, nothing else is left"
    )
    runtime = session(tmp_path / "net.onnx")
    assert [(x.name, x.shape, x.type) for x in runtime.get_inputs()] == [
        ("images", ["n", 3, 16, 16], "tensor(float)")
    ]
    assert [(x.name, x.shape) for x in runtime.get_outputs()] == [("embeddings", ["n", 6])]
    assert_agrees(net.eval(), tmp_path / "net.onnx", 16)


def test_a_failed_export_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.onnx").write_bytes(b"old")

    def break_off(program: object, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", break_off)
    with pytest.raises(OSError, match="disk full"):
        export_onnx(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), 1, tmp_path / "net.onnx")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("net.onnx", b"old")]


def test_without_the_exporter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        exporting.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name
    )
    with pytest.raises(UserError, match=r"exporting needs onnxscript: pip install 'facetrain\[onnx\]'"):
        export_onnx(nn.Flatten(), 8, tmp_path / "net.onnx")
