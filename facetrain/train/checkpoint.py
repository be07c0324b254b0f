"""What a run leaves on disk.

config.json                          the resolved configuration, data and versions
metrics.csv, tensorboard/            what was measured, step by step and epoch by epoch
checkpoints/epoch-0001.safetensors   the network after each epoch: weights, and how to build and feed it
checkpoints/best.safetensors         the one with the best validation accuracy so far
state.pt                             everything that `--resume` needs; loadable with weights_only=True
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from facetrain import __version__
from facetrain.errors import UserError
from facetrain.files import replacing, write_bytes
from facetrain.image_spec import ImageSpec
from facetrain.plugins import make

_METADATA_KEY = "facetrain"


@dataclass(frozen=True)
class NetworkInfo:
    """What has to be known of a network's weights to use them."""

    backbone: str
    backbone_args: dict[str, Any]
    embedding_dim: int
    image_spec: ImageSpec
    run: str = ""
    epoch: int = 0
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    people: int = 0  # that it was trained on
    version: str = __version__

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> NetworkInfo:
        values = json.loads(text)
        return cls(**{**values, "image_spec": ImageSpec.from_dict(values["image_spec"])})


def build_backbone(name: str, args: dict[str, Any], embedding_dim: int, size_px: int) -> nn.Module:
    """The network of this name, its weights drawn from torch's current random state."""
    backbone: nn.Module = make("backbones", name, args, embedding_dim=embedding_dim, size_px=size_px)
    return backbone


def without_download(backbone_args: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a network whose weights we have already."""
    return {name: value for name, value in backbone_args.items() if name != "pretrained"}


def save_network(path: Path, backbone: nn.Module, info: NetworkInfo) -> None:
    """Write weights and info as safetensors, whole or not at all."""
    # Clones, since tied weights share their memory, which safetensors refuses.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in backbone.state_dict().items()
    }
    write_bytes(path, save(tensors, metadata={_METADATA_KEY: info.to_json()}))


def load_network(path: Path, device: torch.device) -> tuple[nn.Module, NetworkInfo]:
    """The network of a checkpoint, in eval mode on ``device``, and its info. UserError for a file that is none."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except FileNotFoundError:
        raise UserError(f"no checkpoint {path}: `ft status` lists the runs") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no checkpoint ({error}): name a .safetensors file of a run") from None
    if _METADATA_KEY not in metadata:
        raise UserError(f"{path} was not written by facetrain: it does not say which network it is of")
    info = NetworkInfo.from_json(metadata[_METADATA_KEY])
    args = without_download(info.backbone_args)
    backbone = build_backbone(info.backbone, args, info.embedding_dim, info.image_spec.size_px)
    try:
        backbone.load_state_dict(tensors)
    except RuntimeError:
        raise UserError(
            f"{path} does not fit '{info.backbone}' as it is here: use the version that made it"
        ) from None
    return backbone.to(device).eval(), info


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a resume state, whole or not at all."""
    with replacing(path) as temp, open(temp, "wb") as file:
        torch.save(state, file)


def load_state(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read a resume state into the processor's memory; nothing in it is executed.

    Modules and optimisers copy what they take to where their parameters are, and leave on the processor what belongs
    there, such as Adam's counters: on a GPU, every step would wait for each of them. ``mmap``: read only what is used.
    """
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    return state


def link_best(checkpoint: Path) -> None:
    """Make ``best.safetensors`` the same file as ``checkpoint``."""
    with replacing(checkpoint.parent / "best.safetensors", sync=False) as temp:
        try:
            os.link(checkpoint, temp)
        except OSError:  # a file system without hard links
            shutil.copyfile(checkpoint, temp)
