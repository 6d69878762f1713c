"""What `load` must know of each class of modules, beside the class: one row a family.

`ARCHITECTURES` makes modules by name; `FAMILIES` says of the class of such a module in which layouts its weights come,
how its size shows in them, how images are prepared where the file does not say, and which layer CAMs explain.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import flax.linen as nn

from jaxcam.image import Preprocess
from jaxcam.models import efficientnet, resnet
from jaxcam.models.efficientnet import EfficientNet
from jaxcam.models.layouts import EFFICIENTNET_PYTORCH, PLAIN, TORCHVISION, Layout
from jaxcam.models.resnet import ResNet

IMAGENET = Preprocess(256, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CIFAR10 = Preprocess(32, 32, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = resnet.ARCHITECTURES | efficientnet.ARCHITECTURES


@dataclass(frozen=True)
class Family:
    """What is common to the modules of one class.

    Attributes:
      layouts: that its weights come in; the first is the one in which `save` writes them.
      options: of the module that fits, as far as they show. It is given a function from a part's path to the shape of
        that part's weight in the file, `shape("fc") == (1000, 512)`; `()` where the file has none.
      preprocess: `(architecture, module) -> Preprocess`, where the file does not say.
      layer: that CAMs explain unless another is asked for.
      describe: the module's size in words, for errors.
    """

    layouts: tuple[Layout, ...]
    options: Callable[[Callable[[str], tuple[int, ...]]], dict]
    preprocess: Callable[[str, nn.Module], Preprocess]
    layer: str
    describe: Callable[[nn.Module], str]


def _resnet_options(shape) -> dict:
    stem, fc = shape("conv1"), shape("fc")
    sizes = {"width": stem[:1] if len(stem) == 4 else (), "num_classes": fc[:1] if len(fc) == 2 else ()}
    stem = {"stem": "cifar" if stem[2:] == (3, 3) else "imagenet"}
    return stem | {name: size[0] for name, size in sizes.items() if any(size)}


def _resnet_preprocess(architecture: str, module: ResNet) -> Preprocess:
    return CIFAR10 if module.stem == "cifar" and module.num_classes != 1000 else IMAGENET


def _efficientnet_options(shape) -> dict:
    fc = shape("fc")
    return {"num_classes": fc[0]} if len(fc) == 2 and fc[0] else {}


def efficientnet_preprocess(architecture: str) -> Preprocess:
    """TensorFlow's: a margin of 16 pixels all around, and for the Lite variants pixels from about -1 to 1."""
    *_, side = efficientnet.VARIANTS[architecture]
    lite = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3} if "lite" in architecture else {}
    return replace(IMAGENET, resize=side + 32, crop=side, interpolation="bicubic", **lite)


FAMILIES: dict[type[nn.Module], Family] = {
    ResNet: Family(
        layouts=(TORCHVISION,),
        options=_resnet_options,
        preprocess=_resnet_preprocess,
        layer="layer4",
        describe=lambda module: f"width {module.width}, {module.stem} stem, {module.num_classes} classes",
    ),
    EfficientNet: Family(
        layouts=(PLAIN, EFFICIENTNET_PYTORCH),
        options=_efficientnet_options,
        preprocess=lambda architecture, module: efficientnet_preprocess(architecture),
        layer="head",
        describe=lambda module: f"{module.num_classes} classes",
    ),
}
