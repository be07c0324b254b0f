"""resolve(family, name): a built-in name, `module:attribute`, or an entry point of group `facetrain.<family>`."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Mapping
from typing import Any

from facetrain.errors import UserError, did_you_mean

# Lazy `module:attribute` strings, so that naming a part never imports the others.
BUILT_IN: dict[str, dict[str, str]] = {
    "detectors": {
        "hog": "facetrain.preprocess.detectors:HogDetector",
        "cnn": "facetrain.preprocess.detectors:CnnDetector",
    },
    "trainers": {
        "triplet": "facetrain.train.trainers.triplet:TripletTrainer",
        "metric": "facetrain.train.trainers.metric:MetricTrainer",
        "simclr": "facetrain.train.trainers.simclr:SimclrTrainer",
        "semi-siamese": "facetrain.train.trainers.semi_siamese:SemiSiameseTrainer",
        "arcface": "facetrain.train.trainers.classification:arcface_trainer",
        "softmax": "facetrain.train.trainers.classification:ClassificationTrainer",
    },
    "losses": {
        "triplet": "facetrain.train.losses.triplet:Triplet",
        "contrastive": "facetrain.train.losses.contrastive:Contrastive",
        "multi-similarity": "facetrain.train.losses.multi_similarity:MultiSimilarity",
        "n-pair": "facetrain.train.losses.n_pair:NPair",
        "infonce": "facetrain.train.losses.infonce:InfoNCE",
        "supcon": "facetrain.train.losses.infonce:SupCon",
        "circle": "facetrain.train.losses.circle:Circle",
        "softmax": "facetrain.train.losses.heads.softmax:Softmax",
        "cosface": "facetrain.train.losses.heads.cosface:CosFace",
        "am-softmax": "facetrain.train.losses.heads.cosface:CosFace",
        "arcface": "facetrain.train.losses.heads.arcface:ArcFace",
        "normface": "facetrain.train.losses.heads.normface:NormFace",
        "sphereface": "facetrain.train.losses.heads.sphereface:SphereFace",
        "subcenter-arcface": "facetrain.train.losses.heads.subcenter_arcface:SubCenterArcFace",
        "curricularface": "facetrain.train.losses.heads.curricularface:CurricularFace",
        "mv-am-softmax": "facetrain.train.losses.heads.mv_softmax:MVAMSoftmax",
        "mv-arc-softmax": "facetrain.train.losses.heads.mv_softmax:MVArcSoftmax",
        "arcnegface": "facetrain.train.losses.heads.arcnegface:ArcNegFace",
        "npcface": "facetrain.train.losses.heads.npcface:NPCFace",
        "magface": "facetrain.train.losses.heads.magface:MagFace",
        "adaface": "facetrain.train.losses.heads.adaface:AdaFace",
        "adacos": "facetrain.train.losses.heads.adacos:AdaCos",
        "adam-softmax": "facetrain.train.losses.heads.adam_softmax:AdaMSoftmax",
        "elastic-arcface": "facetrain.train.losses.heads.elasticface:ElasticArcFace",
        "elastic-cosface": "facetrain.train.losses.heads.elasticface:ElasticCosFace",
        "sphereface2": "facetrain.train.losses.heads.sphereface2:SphereFace2",
        "uniface": "facetrain.train.losses.heads.uniface:UniFace",
    },
    "miners": {
        "all-violating-random": "facetrain.train.miners.violating:AllViolatingRandom",
        "semihard": "facetrain.train.miners.violating:SemiHard",
        "hardest": "facetrain.train.miners.violating:Hardest",
        "batch-hard": "facetrain.train.miners.batch_hard:BatchHard",
        "easy-positive": "facetrain.train.miners.easy_positive:EasyPositive",
        "all": "facetrain.train.miners.all_triplets:AllTriplets",
    },
    "embedders": {
        "dlib": "facetrain.evaluate.embedders.dlib_network:DlibNetwork",
        "onnx": "facetrain.evaluate.embedders.onnx_file:OnnxFile",
    },
    "protocols": {
        "lfw": "facetrain.evaluate.protocols.lfw:Lfw",
        "cfp-fp": "facetrain.evaluate.protocols.cfp:CfpFp",
        "agedb-30": "facetrain.evaluate.protocols.agedb:AgeDb30",
        "calfw": "facetrain.evaluate.protocols.cross_lfw:Calfw",
        "cplfw": "facetrain.evaluate.protocols.cross_lfw:Cplfw",
        "rfw": "facetrain.evaluate.protocols.rfw:Rfw",
        "bin": "facetrain.pipeline.protocols:BinFile",
        "ijb": "facetrain.evaluate.protocols.ijb:Ijb",
        "tinyface": "facetrain.evaluate.protocols.tinyface:TinyFace",
        "survface": "facetrain.evaluate.protocols.survface:SurvFace",
        "megaface": "facetrain.evaluate.protocols.megaface:MegaFace",
        "bob": "facetrain.evaluate.protocols.bob:Bob",
        "isc": "facetrain.evaluate.protocols.isc:ImageSimilarity",
    },
    "samplers": {
        "people": "facetrain.datasets.samplers:PeopleSampler",
        "shuffled": "facetrain.datasets.samplers:ShuffledSampler",
        "views": "facetrain.datasets.samplers:ViewsSampler",
        "pairs": "facetrain.datasets.samplers:PairsSampler",
    },
    "backbones": {
        "iresnet.small": "facetrain.train.backbones.iresnet:iresnet_small",
        "iresnet18": "facetrain.train.backbones.iresnet:iresnet18",
        "iresnet34": "facetrain.train.backbones.iresnet:iresnet34",
        "iresnet50": "facetrain.train.backbones.iresnet:iresnet50",
        "iresnet100": "facetrain.train.backbones.iresnet:iresnet100",
        "mobilefacenet": "facetrain.train.backbones.mobilefacenet:mobilefacenet",
        "inception-resnet-v1": "facetrain.train.backbones.inception_resnet:inception_resnet_v1",
        "nn4.small2": "facetrain.train.backbones.nn4:nn4_small2",
        "nn4.small1": "facetrain.train.backbones.nn4:nn4_small1",
        "nn4": "facetrain.train.backbones.nn4:nn4",
        "nn2": "facetrain.train.backbones.nn4:nn2",
    },
}

# Libraries of parts: what `prefix/name` means is up to the function here, which raises UserError for an unknown name.
PREFIXES: dict[str, dict[str, str]] = {
    "backbones": {
        "torchvision": "facetrain.train.backbones.zoo:torchvision_architecture",
        "timm": "facetrain.train.backbones.zoo:timm_architecture",
    },
}

SINGULAR = {family: family.removesuffix("es" if family == "losses" else "s") for family in BUILT_IN}


def available(family: str) -> dict[str, str]:
    """All names of a family and where each is found: built-ins, then installed entry points."""
    found = dict(BUILT_IN[family])
    for entry in importlib.metadata.entry_points(group=f"facetrain.{family}"):
        if entry.name in found and found[entry.name] != entry.value:
            raise UserError(
                f"two {family} are called '{entry.name}' ({found[entry.name]} and {entry.value}): uninstall one, "
                f"or name the one you mean as module:attribute"
            )
        found[entry.name] = entry.value
    return found


def resolve(family: str, name: str) -> Any:
    """The object behind ``name``: a name of `available`, ``library/name`` of one of `PREFIXES`, or ``module:attribute``.

    Raises UserError for an unknown name (listing what exists, the closest match first) or a part that cannot be
    imported.
    """
    library, slash, rest = name.partition("/")
    if slash and library in PREFIXES.get(family, {}):
        return _imported(family, PREFIXES[family][library])(rest)
    target = name if ":" in name else available(family).get(name)
    if target is None:
        raise UserError(_unknown(family, name))
    return _imported(family, target)


def _imported(family: str, target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    try:
        value: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            value = getattr(value, part)
    except Exception as error:  # whatever a module may raise when it is imported
        raise UserError(f"cannot load {target} of {family}: {error}") from error
    return value


def make(family: str, name: str, arguments: dict[str, Any] | None, **given: Any) -> Any:
    """What the part ``name`` makes of its ``arguments`` (None: none), which are checked first.

    ``given`` follows from the data and the configuration (``num_classes``, say): the part gets what its signature names.
    """
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise UserError(
            f"arguments of {SINGULAR[family]} '{name}' = {arguments!r}: write a table, name and value of each"
        )
    part = resolve(family, name)
    check_arguments(part, f"{SINGULAR[family]} '{name}'", arguments)
    parameters = parameters_of(part, f"{SINGULAR[family]} '{name}'")
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty
        and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        and p.name not in given | arguments
    ]
    if missing:
        raise UserError(f"{SINGULAR[family]} '{name}' cannot be used here: it needs {', '.join(missing)}")
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return part(**{key: value for key, value in given.items() if anything or key in parameters}, **arguments)


def _unknown(family: str, name: str) -> str:
    names = sorted(available(family))
    hint = did_you_mean(name, names)
    names += [f"{library}/NAME" for library in PREFIXES.get(family, {})]
    return f"no '{name}' among the {family}: {hint}there are {', '.join(names)} (or module:attribute)"


_KINDS: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool, "dict": dict}
SET_BY_US = ("num_classes", "embedding_dim", "size_px", "data")  # follow from the data and the configuration


def parameters_of(part: Any, name: str) -> Mapping[str, inspect.Parameter]:
    """What ``part`` takes; UserError where it is nothing that can be called, or does not say what it takes."""
    try:
        return inspect.signature(part).parameters
    except (TypeError, ValueError):
        raise UserError(
            f"{name} cannot be used: {part!r} is no class or function that says what it takes"
        ) from None


def check_arguments(part: Any, name: str, arguments: dict[str, Any]) -> None:
    """Raise UserError when ``part`` does not accept these keyword arguments; nothing is called."""
    for argument in SET_BY_US:
        if argument in arguments:
            raise UserError(f"{name}: '{argument}' follows from the data and the configuration: leave it out")
    parameters = parameters_of(part, name).values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    names = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = [parameter for parameter in names if parameter not in SET_BY_US]
    for parameter in parameters:
        kind = getattr(parameter.annotation, "__name__", str(parameter.annotation))  # a type, or its name
        if parameter.name in arguments and not _is_of(arguments[parameter.name], kind):
            raise UserError(
                f"{name}: {parameter.name} = {arguments[parameter.name]!r} should be of type "
                f"{'table' if kind.partition('[')[0] == 'dict' else kind}"
            )
    for argument in arguments:
        if argument not in names:
            raise UserError(f"{name} takes no '{argument}': it takes {', '.join(names) or 'no arguments'}")


def _is_of(value: Any, kind: str) -> bool:
    """Whether a value may be given where ``kind`` is asked for; types that we do not know are left to the part."""
    if kind.endswith(" | None"):
        return value is None or _is_of(value, kind.removesuffix(" | None"))
    kinds = _KINDS.get(kind.partition("[")[0], object)
    return isinstance(value, kinds) and (kind not in _KINDS or isinstance(value, bool) == (kind == "bool"))
