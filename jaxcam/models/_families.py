"""What `load` must know of each class of modules, beside the class: one row a family."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import flax.linen as nn

from jaxcam.image import Preprocess
from jaxcam.models import convnext, densenet, efficientnet, resnet, vgg, vit

IMAGENET = Preprocess(256, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CIFAR10 = Preprocess(32, 32, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))


@dataclass(frozen=True, eq=False)
class Family:
    """One class of modules.

    Attributes:
      name: what people call it.
      module: the class.
      architectures: those of its sizes that have a name.
      fields: `(shapes, config) -> fields` of the module, read off the shapes of the tensors by our names, and off what
        a config says that no tensor shows.
      open: the fields that an architecture's name leaves to the tensors.
      preprocess: how images are prepared for a module, where nothing beside its tensors says it.
      named: a pattern of the names that timm gives to exactly this class; its other networks may have the same tensors.
      told: the fields that no tensor shows and a library or a config may tell.
    """

    name: str
    module: type[nn.Module]
    architectures: Mapping[str, Callable[..., nn.Module]]
    fields: Callable[[Mapping[str, tuple], Mapping], dict]
    open: tuple[str, ...]
    preprocess: Callable[[nn.Module], Preprocess]
    named: str
    told: tuple[str, ...] = ()

    def make(self, shapes: Mapping[str, tuple], config: Mapping, architecture: str | None) -> nn.Module:
        """The module that the tensors show, as far as the architecture leaves it to them."""
        fields = self.fields(shapes, config)
        if architecture is None:
            return self.module(**fields)
        return self.architectures[architecture](**{name: fields[name] for name in self.open})

    def matches(self, network: str) -> bool:
        """Whether timm's name of a network, with or without its tag, or ours, is that of one of this family."""
        return network in self.architectures or re.match(rf"({self.named})(?=[._]|$)", network) is not None

    def contradiction(self, module: nn.Module, shapes: Mapping[str, tuple], config: Mapping) -> str:
        """What is told of a network that its architecture has otherwise; `""` where they agree."""
        fields = self.fields(shapes, config)
        wrong = [name for name in self.told if fields.get(name, getattr(module, name)) != getattr(module, name)]
        return ", ".join(f"{name} {fields[name]!r} instead of {getattr(module, name)!r}" for name in wrong)

    def name_of(self, module: nn.Module) -> str | None:
        """The name of a module's architecture, where it has one."""
        opened = {name: getattr(module, name) for name in self.open}
        return next((name for name, make in self.architectures.items() if make(**opened) == module), None)


# --- What the tensors show -------------------------------------------------------------------------------------------


def _axis(shapes, name: str, axis: int, usual: int) -> int:
    """The length of a tensor's axis, or the usual one where there is no such tensor."""
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) > axis and shape[axis] else usual


def _count(shapes, prefix: str) -> int:
    """How many blocks have names `prefix0`, `prefix1`, ..."""
    numbers = {name.removeprefix(prefix).partition(".")[0] for name in shapes if name.startswith(prefix)}
    return len([number for number in numbers if number.isdigit()])


def _resnet_fields(shapes, config) -> dict:
    width = _axis(shapes, "conv1.weight", 0, 64)
    inner = _axis(shapes, "layer1.0.conv2.weight", 0, width)
    return {
        "stage_sizes": tuple(_count(shapes, f"layer{stage}.") for stage in (1, 2, 3, 4)),
        "block": resnet.Bottleneck if "layer1.0.conv3.weight" in shapes else resnet.BasicBlock,
        "num_classes": _axis(shapes, "fc.weight", 0, 1000),
        "width": width,
        "stem": "cifar" if shapes.get("conv1.weight", ())[2:] == (3, 3) else "imagenet",
        "groups": max(1, inner // _axis(shapes, "layer1.0.conv2.weight", 1, inner)),
        "widening": max(1, inner // width),
        "stride_on": config.get("stride_on", "conv2"),
    }


def _resnet_preprocess(module) -> Preprocess:
    return CIFAR10 if module.stem == "cifar" and module.num_classes != 1000 else IMAGENET


def _vit_fields(shapes, config) -> dict:
    block = "encoder.layers.encoder_layer_"
    width = _axis(shapes, "conv_proj.weight", 0, 768)
    patch = _axis(shapes, "conv_proj.weight", 2, 16)
    hidden = _axis(shapes, f"{block}0.mlp.0.weight", 0, 4 * width)
    return {
        "depth": _count(shapes, block),
        "width": width,
        "num_heads": config.get("num_heads") or vit.HEADS.get(width, max(1, width // 64)),
        "patch_size": patch,
        "num_classes": _axis(shapes, "heads.head.weight", 0, 1000),
        "image_size": patch * math.isqrt(_axis(shapes, "encoder.pos_embedding.positions", 1, 197) - 1),
        "mlp_features": None if hidden == 4 * width else hidden,
        "epsilon": config.get("epsilon", 1e-6),
    }


def _vit_preprocess(module) -> Preprocess:
    return replace(IMAGENET, resize=module.image_size * 256 // 224, crop=module.image_size)


def _convnext_fields(shapes, config) -> dict:
    return {
        "stage_sizes": tuple(_count(shapes, f"features.{place}.") for place in (1, 3, 5, 7)),
        "widths": tuple(
            _axis(shapes, name, 0, 1)
            for name in ("features.0.0.weight", *(f"features.{place}.1.weight" for place in (2, 4, 6)))
        ),
        "num_classes": _axis(shapes, "classifier.2.weight", 0, 1000),
        "head_epsilon": config.get("epsilon", 1e-6),
    }


def _efficientnet_fields(shapes, config) -> dict:
    """Strides do not show; they are those of all variants. Neither do the numerics, which are the library's."""
    stages, inputs = [], _axis(shapes, "stem.conv.weight", 0, 32)
    for index, (_, stride, *_) in enumerate(efficientnet.STAGES[: _count(shapes, "blocks.")]):
        block = f"blocks.{index}.0"
        wide = _axis(shapes, f"{block}.depthwise.conv.weight", 0, inputs)
        features = _axis(shapes, f"{block}.project.conv.weight", 0, inputs)
        kernel = _axis(shapes, f"{block}.depthwise.conv.weight", 2, 3)
        stages.append((kernel, stride, max(1, wide // inputs), features, _count(shapes, f"blocks.{index}.")))
        inputs = features
    squeeze = any(".squeeze_excite." in name for name in shapes)
    head = _axis(shapes, "head.conv.weight", 0, 1280)
    numerics = {
        "tensorflow": efficientnet.TENSORFLOW,
        "pytorch": efficientnet.PYTORCH,
        "torchvision": efficientnet.torchvisions(squeeze, head),
    }
    return {
        "stages": tuple(stages),
        "num_classes": _axis(shapes, "fc.weight", 0, 1000),
        "stem": _axis(shapes, "stem.conv.weight", 0, 32),
        "head": head,
        "squeeze": 0.25 if squeeze else 0.0,
        "activation": nn.swish if squeeze else nn.relu6,
        **numerics.get(config.get("numerics"), {}),
    }


RESIZE_AND_CROP = {  # in torchvision
    "efficientnet_b0": (256, 224),
    "efficientnet_b1": (256, 240),
    "efficientnet_b2": (288, 288),
    "efficientnet_b3": (320, 300),
    "efficientnet_b4": (384, 380),
    "efficientnet_b5": (456, 456),
    "efficientnet_b6": (528, 528),
    "efficientnet_b7": (600, 600),
}


def efficientnet_preprocess(architecture: str | None) -> Preprocess:
    """torchvision's, or TensorFlow's: a margin of 16 pixels all around, and for Lite pixels from about -1 to 1."""
    name = architecture or ""
    *_, side = efficientnet.VARIANTS.get(name.removeprefix("tf_"), (224,))
    resize, crop = RESIZE_AND_CROP.get(name, (side + 32, side))
    lite = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3} if "lite" in name else {}
    return replace(IMAGENET, resize=resize, crop=crop, interpolation="bicubic", **lite)


def _vgg_fields(shapes, config) -> dict:
    """Where a number is left out between two convolutions, there is a pool."""
    found = {int(match[1]): name for name in shapes if (match := re.fullmatch(r"features\.(\d+)\.weight", name))}
    widths = {number: _axis(shapes, name, 0, 1) for number, name in sorted(found.items()) if len(shapes[name]) == 4}
    norm = any(name.endswith(".running_mean") for name in shapes)
    stages = []
    for number, width in widths.items():
        if number - (3 if norm else 2) in widths:
            stages[-1].append(width)
        else:
            stages.append([width])
    return {
        "stage_sizes": tuple(map(len, stages)),
        "widths": tuple(first for first, *_ in stages),
        "num_classes": _axis(shapes, "classifier.6.weight", 0, 1000),
        "hidden": _axis(shapes, "classifier.3.weight", 0, 4096),
        "norm": norm,
    }


def _densenet_fields(shapes, config) -> dict:
    blocks = [f"features.denseblock{number}." for number in range(1, 1 + _count(shapes, "features.denseblock"))]
    layer = "features.denseblock1.denselayer1."
    growth = _axis(shapes, f"{layer}conv2.weight", 0, 32)
    return {
        "block_sizes": tuple(_count(shapes, f"{block}denselayer") for block in blocks),
        "growth": growth,
        "stem": _axis(shapes, "features.conv0.weight", 0, 64),
        "num_classes": _axis(shapes, "classifier.weight", 0, 1000),
        "bottleneck": max(1, _axis(shapes, f"{layer}conv1.weight", 0, 4 * growth) // growth),
    }


RESNET = Family(
    name="ResNet",
    module=resnet.ResNet,
    architectures=resnet.ARCHITECTURES,
    fields=_resnet_fields,
    open=("width", "stem", "num_classes", "stride_on"),
    preprocess=_resnet_preprocess,
    named=r"(wide_)?resnet\d+(_2)?|resnext\d+_\d+x\d+d?",
)
VIT = Family(
    name="ViT",
    module=vit.ViT,
    architectures=vit.ARCHITECTURES,
    fields=_vit_fields,
    open=("num_heads", "num_classes", "image_size", "epsilon"),
    preprocess=_vit_preprocess,
    named=r"(vit|deit3?)_\w+_patch\d+(_\d+)?",
)
EFFICIENTNET = Family(
    name="EfficientNet",
    module=efficientnet.EfficientNet,
    architectures=efficientnet.ARCHITECTURES,
    fields=_efficientnet_fields,
    open=("num_classes",),
    preprocess=lambda module: (
        efficientnet_preprocess(EFFICIENTNET.name_of(module))
        if module.squeeze or module.padding == "SAME"
        else IMAGENET
    ),
    named=r"(tf_)?efficientnet_(b|lite)\d(?!_(gn|g8_gn|g16_evos|pruned))|mobilenetv2_\d+d?",
    told=("padding", "epsilon"),
)
MOBILENET = replace(
    EFFICIENTNET, name="MobileNetV2", architectures={"mobilenet_v2": efficientnet.ARCHITECTURES["mobilenet_v2"]}
)
CONVNEXT = Family(
    name="ConvNeXt",
    module=convnext.ConvNeXt,
    architectures=convnext.ARCHITECTURES,
    fields=_convnext_fields,
    open=("num_classes", "head_epsilon"),
    preprocess=lambda module: IMAGENET,
    named=r"convnext_(tiny|small|base|large|xlarge)\w*",
)
VGG = Family(
    name="VGG",
    module=vgg.VGG,
    architectures=vgg.ARCHITECTURES,
    fields=_vgg_fields,
    open=("num_classes",),
    preprocess=lambda module: IMAGENET,
    named=r"vgg\d+(_bn)?",
)
DENSENET = Family(
    name="DenseNet",
    module=densenet.DenseNet,
    architectures=densenet.ARCHITECTURES,
    fields=_densenet_fields,
    open=("num_classes",),
    preprocess=lambda module: IMAGENET,
    named=r"densenet\d+",
)
FAMILIES = (RESNET, EFFICIENTNET, MOBILENET, VGG, DENSENET, VIT, CONVNEXT)
ARCHITECTURES = {name: make for family in FAMILIES for name, make in family.architectures.items()}
