"""What the tensors do not say: how images are prepared, and what the classes are called.

It comes from the table of registered models, from the header that `save` wrote, or from timm's `config.json`; what none
of them says is guessed from the module: 1000 classes are ImageNet's, a CIFAR stem is CIFAR's. All of it is text from
anybody's file, so each value is given its type here.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import flax.linen as nn

from jaxcam.image import Preprocess
from jaxcam.models._families import ARCHITECTURES

CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGENET_LABELS = Path(__file__).parents[1] / "assets" / "imagenet_labels.txt"


def preprocess(usual: Preprocess, fields: Mapping) -> Preprocess:
    """The given fields of a `Preprocess`, completed by those that are usual for the module."""
    crop = fields.get("crop", usual.crop)
    return replace(usual, **{"crop": crop, "resize": crop * usual.resize // usual.crop, **fields})


def labels(module: nn.Module, labels: Iterable[str] | None, name: str) -> tuple[str, ...]:
    if labels is not None:
        if len(labels := tuple(labels)) != module.num_classes:
            raise ValueError(f"{name} names {len(labels)} labels, but its weights have {module.num_classes} classes.")
        return labels
    if module.num_classes == 1000:
        return tuple(IMAGENET_LABELS.read_text(encoding="utf-8").splitlines())
    if module.num_classes == 10 and getattr(module, "stem", None) == "cifar":
        return CIFAR10_LABELS
    return tuple(f"class {index}" for index in range(module.num_classes))


def config_facts(config: dict) -> dict:
    """What timm's `config.json` says: the same fields at its top level or, in newer ones, in `pretrained_cfg`."""
    levels = [config.get("pretrained_cfg") or {}, config]
    config = {key: value for level in levels for key, value in level.items() if value is not None}
    fields = {key: config[key] for key in ("mean", "std", "interpolation") if key in config}
    if "input_size" in config:
        fields["crop"] = config["input_size"][-1]
        if "crop_pct" in config:
            fields["resize"] = fields["crop"] / config["crop_pct"]
    facts = {"preprocess": _fields(fields), "about": {}}
    # "resnet50.a1_in1k" and "resnet18_cifar10" are a resnet50 and a resnet18; a "resnet50d" is neither.
    given = config.get("architecture", "")
    if found := [name for name in ARCHITECTURES if re.match(rf"{name}(?=[._]|$)", given)]:
        facts["architecture"] = found[0]
    if "label_names" in config:
        described = config.get("label_descriptions", {})
        facts["labels"] = [str(described.get(label, label)) for label in config["label_names"]]
    return facts


def header_facts(header: dict) -> dict:
    """What `save` was told: the facts by their names, and the rest to go with them."""
    known = {"architecture": str, "preprocess": _fields, "labels": lambda labels: [str(label) for label in labels]}
    facts = {key: convert(header[key]) for key, convert in known.items() if key in header}
    return {**facts, "about": {key: value for key, value in header.items() if key not in known}}


def _fields(given: Mapping) -> dict:
    """The given fields of a `Preprocess`, with the types that they must have."""
    fields = {key: int(given[key]) for key in ("resize", "crop") if key in given}
    if "interpolation" in given:
        fields["interpolation"] = str(given["interpolation"])
    for key in ("mean", "std"):
        if key in given:
            red, green, blue = map(float, given[key])
            fields[key] = (red, green, blue)
    return fields
