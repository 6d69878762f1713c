"""What the tensors do not say: how images are prepared, and what the classes are called.

It comes from the table of registered models, from the header that `save` wrote, or from the `config.json` of timm or
transformers; what none of them says is guessed from the module: 1000 classes are ImageNet's, a CIFAR stem is CIFAR's.
All of it is text from anybody's file, so each value is given its type here, and each label a length.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn

from jaxcam._errors import shown
from jaxcam.image import Preprocess

CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGENET_LABELS = Path(__file__).parents[1] / "assets" / "imagenet_labels.txt"
LARGEST = 4096  # pixels a side of what a model takes


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
    """What a `config.json` says, of transformers where it has a `model_type`, else of timm."""
    return _of_transformers(config) if "model_type" in config else _of_timm(config)


def _of_timm(config: dict) -> dict:
    """The same fields at its top level or, in newer ones, in `pretrained_cfg`."""
    levels = [config.get("pretrained_cfg") or {}, config]
    config = {key: value for level in levels for key, value in level.items() if value is not None}
    fields = {key: config[key] for key in ("mean", "std", "interpolation") if key in config}
    if "input_size" in config:
        fields["crop"] = config["input_size"][-1]
        if "crop_pct" in config:
            fields["resize"] = fields["crop"] / config["crop_pct"]
    facts: dict[str, Any] = {"preprocess": _fields(fields)}
    if "architecture" in config:
        facts["network"] = config["architecture"].lower()
        facts["config"] = {"numerics": "tensorflow" if facts["network"].startswith("tf_") else "pytorch"}
    if "label_names" in config:
        described = config.get("label_descriptions", {})
        facts["labels"] = _as_labels(described.get(label, label) for label in config["label_names"])
    return facts


ACTIVATIONS = {"resnet": "relu", "vit": "gelu", "convnext": "gelu"}  # of transformers' model types


def _of_transformers(config: dict) -> dict:
    """Labels, and what no tensor shows: the epsilon, the number of heads, which convolution has the stride."""
    kind = config["model_type"]
    activation = config.get("hidden_act", ACTIVATIONS.get(kind))
    if activation != ACTIVATIONS.get(kind, activation):
        raise ValueError(f"hidden_act is {shown(activation)!r}; jaxcam's {kind} has {ACTIVATIONS[kind]!r}")
    if config.get("downsample_in_first_stage"):
        raise ValueError("downsample_in_first_stage is true; jaxcam's ResNet has no stride in its first stage")
    told = {"epsilon": ("layer_norm_eps", float), "num_heads": ("num_attention_heads", int)}
    found = {ours: convert(config[theirs]) for ours, (theirs, convert) in told.items() if theirs in config}
    if config.get("downsample_in_bottleneck"):
        found["stride_on"] = "conv1"
    facts: dict[str, Any] = {"config": found}
    labels = {int(index): shown(str(label)) for index, label in config.get("id2label", {}).items()}
    if sorted(labels) == list(range(len(labels))) and any(f"LABEL_{index}" != labels[index] for index in labels):
        facts["labels"] = [labels[index] for index in range(len(labels))]
    return facts


RESAMPLING = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # by Pillow's numbers
SQUASHED = "made for images resized to a square, whatever their shape; here the square in their centre is taken"


def preprocessor_facts(config: dict) -> dict:
    """What transformers' `preprocessor_config.json` says of the size, the mean and the interpolation."""
    fields: dict[str, Any] = {}
    about = {}
    if config.get("do_normalize", True):
        fields = {key: config[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in config}
    else:
        fields = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    if "resample" in config:
        fields["interpolation"] = RESAMPLING[config["resample"]]
    if config.get("do_resize", True) and "size" in config:
        side = _side(config["size"])
        if config.get("do_center_crop"):
            fields |= {"resize": side, "crop": _side(config.get("crop_size", side))}
        elif "crop_pct" in config and side < 384:  # at 384 and more its own code does not crop
            fields |= {"resize": side / config["crop_pct"], "crop": side}
        else:
            fields |= {"resize": side, "crop": side}
            about = {"note": SQUASHED}
    return {"preprocess": _fields(fields), "about": about}


def _side(size) -> int:
    """Of a square, whichever way it is written."""
    if isinstance(size, Mapping):
        sides = {int(value) for key, value in size.items() if key in ("shortest_edge", "height", "width")}
        (size,) = sides
    return int(size)


def _as_labels(labels: Iterable) -> list[str]:
    return [shown(str(label)) for label in labels]


def _numerics(said) -> str:
    if said not in ("pytorch", "tensorflow", "torchvision"):
        raise ValueError(f"numerics is {shown(repr(said))}, neither 'pytorch' nor 'tensorflow'")
    return said


def header_facts(header: dict) -> dict:
    """What `save` was told: the facts by their names, and the rest to go with them."""
    known = {
        "architecture": str,
        "preprocess": _fields,
        "labels": _as_labels,
    }
    facts = {key: convert(header[key]) for key, convert in known.items() if key in header}
    if "numerics" in header:
        facts["config"] = {"numerics": _numerics(header["numerics"])}
    return {**facts, "about": {key: value for key, value in header.items() if key not in known}}


def _fields(given: Mapping) -> dict:
    """The given fields of a `Preprocess`, with the types that they must have."""
    sides = {key: int(given[key]) for key in ("resize", "crop") if key in given}
    if max(sides.values(), default=0) > LARGEST:
        raise ValueError(f"images of {shown(max(sides.values()))} pixels a side; no model takes more than {LARGEST}")
    fields: dict[str, Any] = dict(sides)
    if "interpolation" in given:
        fields["interpolation"] = str(given["interpolation"])
    for key in ("mean", "std"):
        if key in given:
            red, green, blue = map(float, given[key])
            if not all(map(math.isfinite, (red, green, blue))):
                raise ValueError(f"{key} is {red}, {green}, {blue}")
            fields[key] = (red, green, blue)
    return fields
