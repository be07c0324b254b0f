"""Any classification architecture of torchvision or timm, with the head that this field uses.

    torchvision/resnet50            timm/vit_tiny_patch16_224

Legend of shapes: N images, C channels, H and W pixels or places, T tokens, D embedding dimensions.

The architecture up to its last map; GeM pooling, or all places side by side; linear; batch-norm. Inputs are brought from
`ImageSpec`'s scale to that on which the architecture's published weights were trained. Both libraries are optional.

Source: Radenović et al., TPAMI 2019 (GeM); Deng et al., "ArcFace", CVPR 2019 (flatten → linear → batch-norm).
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from facetrain.errors import UserError
from facetrain.image_spec import ImageSpec
from facetrain.train.backbones.gem import GeM

HEADS = ("gem", "flatten")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1]


def torchvision_architecture(architecture: str) -> Callable[..., nn.Module]:
    """`torchvision_backbone` of one architecture; UserError where there is none of that name."""
    models = _library("torchvision").models
    _check_name("torchvision", architecture, models.list_models(module=models))
    return functools.partial(torchvision_backbone, architecture)


def timm_architecture(architecture: str) -> Callable[..., nn.Module]:
    """`timm_backbone` of one architecture; UserError where there is none of that name.

    The name may end in the tag of its pretrained weights, ``vit_tiny_patch16_224.augreg_in21k``.
    """
    _check_name("timm", architecture, _library("timm").list_models(), architecture.partition(".")[0])
    return functools.partial(timm_backbone, architecture)


def torchvision_backbone(
    architecture: str,
    embedding_dim: int = 128,
    size_px: int = 224,
    head: str = "gem",
    pretrained: bool = False,
    **options: Any,
) -> nn.Module:
    """A torchvision architecture: images [N, 3, size_px, size_px], float → raw embeddings [N, D].

    head: ``gem`` or ``flatten``; a vision transformer gives its class token to either. pretrained: begin with the
    weights that torchvision downloads. ``options`` go to the architecture.

    Raises UserError for an unknown head, and for a size or options that the architecture does not take.
    """
    _check_head(head)
    models = _library("torchvision").models
    if architecture.startswith("vit_"):
        options.setdefault("image_size", size_px)
    elif architecture == "maxvit_t":
        options.setdefault("input_size", (size_px, size_px))
    pretrained = pretrained and not _on_meta()
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if architecture in ("googlenet", "inception_v3"):
        mean = std = (0.5, 0.5, 0.5)  # their weights are from TensorFlow
        if not pretrained:
            options = {"init_weights": True, "aux_logits": False} | options
    with _usable(f"torchvision/{architecture}", size_px), torch.device("cpu"):
        model = models.get_model(architecture, weights="DEFAULT" if pretrained else None, **options)
        if architecture.startswith("vit_"):
            model.heads = nn.Identity()
        else:
            model = _up_to_pooling(model)
        return _ZooBackbone(model, head, embedding_dim, size_px, mean, std)


def timm_backbone(
    architecture: str,
    embedding_dim: int = 128,
    size_px: int = 224,
    head: str = "gem",
    pretrained: bool = False,
    **options: Any,
) -> nn.Module:
    """A timm architecture: images [N, 3, size_px, size_px], float → raw embeddings [N, D].

    head: ``gem`` or ``flatten``; of a network of tokens ``gem`` takes what the network itself makes of them (class token
    or mean), ``flatten`` all tokens side by side. pretrained: begin with the weights that timm downloads. ``options`` go
    to the architecture.

    Raises UserError for an unknown head, and for a size or options that the architecture does not take.
    """
    _check_head(head)
    timm = _library("timm")
    trained = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
    if trained is not None and trained.fixed_input_size:
        options.setdefault("img_size", size_px)
    pretrained = pretrained and not _on_meta()
    with _usable(f"timm/{architecture}", size_px), torch.device("cpu"):
        model = timm.create_model(architecture, pretrained=pretrained, num_classes=0, **options)
        _check_patches(model, size_px)
        places_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        is_map = _probe(model.forward_features, size_px, model).ndim == 4
        if is_map or head == "flatten":
            model.reset_classifier(0, global_pool="")
        mean, std = model.default_cfg.get("mean", IMAGENET_MEAN), model.default_cfg.get("std", IMAGENET_STD)
        return _ZooBackbone(model, head, embedding_dim, size_px, mean, std, places_last and is_map)


class _ZooBackbone(nn.Module):
    """Rescaled images → ``trunk``, whatever it gives → head → raw embeddings [N, D]."""

    def __init__(
        self,
        trunk: nn.Module,
        head: str,
        embedding_dim: int,
        size_px: int,
        mean: Sequence[float],
        std: Sequence[float],
        places_first: bool = False,
    ) -> None:
        super().__init__()
        self.rescale = _Rescale(mean, std)
        self.trunk = trunk
        self.places_first = places_first  # the trunk gives [N, H, W, C]
        # The same for every head, so that one who looks for the pooling finds it by name.
        ndim = _probe(self._features, size_px, trunk).ndim
        self.pool: nn.Module = GeM() if head == "gem" and ndim == 4 else nn.Flatten()
        num_features = _probe(lambda images: self.pool(self._features(images)), size_px, trunk).shape[1]
        self.linear = nn.Linear(num_features, embedding_dim)
        self.norm = nn.BatchNorm1d(embedding_dim)

    def _features(self, images_NCHW: Tensor) -> Tensor:
        """A map [N, C, H, W], tokens [N, T, C] or vectors [N, C]."""
        x: Tensor = self.trunk(self.rescale(images_NCHW))
        return x.permute(0, 3, 1, 2) if self.places_first else x

    def forward(self, images_NCHW: Tensor) -> Tensor:
        out: Tensor = self.norm(self.linear(self.pool(self._features(images_NCHW))))
        return out


class _Rescale(nn.Module):
    """From (x - 127.5) / 128, as `ImageSpec` has it by default, to (x / 255 - mean) / std."""

    factor: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        mean_C11, std_C11 = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
        spec = ImageSpec()
        self.register_buffer("factor", spec.divide / 255 / std_C11, persistent=False)
        self.register_buffer("shift", (spec.subtract / 255 - mean_C11) / std_C11, persistent=False)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW * self.factor + self.shift


def _up_to_pooling(model: nn.Module) -> nn.Sequential:
    """What a torchvision network runs, in order, up to its last map; the names within are kept."""
    behind = ("avgpool", "classifier", "fc")
    kept = nn.Sequential()
    for name, child in itertools.takewhile(lambda item: item[0] not in behind, model.named_children()):
        if name not in ("aux1", "aux2", "AuxLogits"):
            kept.add_module(name, nn.Sequential(*child) if isinstance(child, nn.ModuleList) else child)
    if type(model).__name__ == "DenseNet":  # it applies its last ReLU between the modules
        kept.add_module("relu", nn.ReLU())
    return kept


def _check_patches(model: nn.Module, size_px: int) -> None:
    """timm's transformers leave out the last pixels of an image that is no whole number of patches: not unsaid."""
    patches = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    patch_px = patches[0] if isinstance(patches, tuple) else patches
    if patch_px and size_px % patch_px:
        raise ValueError(f"its patches are of {patch_px} px")


@torch.no_grad()
def _probe(forward: Callable[[Tensor], Tensor], size_px: int, network: nn.Module) -> Tensor:
    """What ``forward`` makes of one black image; ``network`` is left as it was."""
    training = network.training
    network.eval()
    out = forward(torch.zeros(1, 3, size_px, size_px))
    network.train(training)
    return out


# -- names and libraries ---------------------------------------------------------------------------------------------

_SCHEMAS: list[torch.library.Library] = []  # operators live as long as these


def _library(name: str) -> ModuleType:
    """torchvision or timm, imported now; UserError where it is not installed.

    torchvision's compiled part is made for one build of torch. Where it cannot be loaded (PyPI's is for CUDA torch), the
    import fails for want of two operators that no classifier uses, unless someone has declared them.
    """
    if importlib.util.find_spec(name) is None:
        raise UserError(f"{name} is not installed: pip install 'facetrain[zoo]'")
    try:
        importlib.import_module("torchvision")  # timm imports it too
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        schemas = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            schemas.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _SCHEMAS.append(schemas)
    return importlib.import_module(name)


_LISTS = {"timm": "timm.list_models()", "torchvision": "torchvision.models.list_models()"}


def _check_name(library: str, name: str, names: Sequence[str], known_by: str | None = None) -> None:
    if (known_by or name) not in names:
        close = difflib.get_close_matches(known_by or name, names, n=3)
        hint = (
            f"did you mean {' or '.join(f'{library}/{match}' for match in close)}?"
            if close
            else f"{_LISTS[library]} in Python lists them"
        )
        raise UserError(f"{library} has no architecture '{name}': {hint}")


def _check_head(head: str) -> None:
    if head not in HEADS:
        raise UserError(f"unknown head '{head}': one of {', '.join(HEADS)}")


def _on_meta() -> bool:
    """Whether someone only wants to know if the arguments will do."""
    return torch.get_default_device().type == "meta"


@contextmanager
def _usable(name: str, size_px: int) -> Iterator[None]:
    """What an architecture says against its size and options, as UserError."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError, AssertionError, OSError) as error:
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{name} cannot be built for images of {size_px} px with these arguments: {said}"
        ) from error
