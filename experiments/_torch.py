"""The PyTorch side of compare_pytorch: the same ResNet, and the libraries. Imported only where they are installed.

The network is torchvision's, tensor by tensor, but every ReLU is a module of its own and none works in place, as the
hooks of Captum's DeepLIFT and guided backpropagation need.
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from captum import attr
from torch import nn

from jaxcam import models, segments
from jaxcam.models._table import OUR_NAMES
from jaxcam.models.layouts import closest
from tests.golden.make_golden import import_torchvision

import_torchvision()  # before what imports it
import pytorch_grad_cam  # noqa: E402
from pytorch_grad_cam.utils import model_targets  # noqa: E402


class Block(nn.Module):
    """BasicBlock, or with `bottleneck` torchvision's Bottleneck."""

    def __init__(self, before: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        after = 4 * width if bottleneck else width
        sizes = [(before, width, 3, stride), (width, after, 3, 1)]
        if bottleneck:
            sizes = [(before, width, 1, 1), (width, width, 3, stride), (width, after, 1, 1)]
        self.places = range(1, len(sizes) + 1)
        for place, (inputs, outputs, kernel, step) in zip(self.places, sizes, strict=True):
            self.add_module(f"conv{place}", nn.Conv2d(inputs, outputs, kernel, step, kernel // 2, bias=False))
            self.add_module(f"bn{place}", nn.BatchNorm2d(outputs))
            self.add_module(f"relu{place}", nn.ReLU())
        self.downsample = None
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x):
        out = x
        for place in self.places:
            conv, norm, relu = (self.get_submodule(f"{name}{place}") for name in ("conv", "bn", "relu"))
            out = norm(conv(out))
            if place == self.places[-1]:
                out = out + (x if self.downsample is None else self.downsample(x))
            out = relu(out)
        return out


class ResNet(nn.Module):
    """As the given Flax module."""

    def __init__(self, like):
        super().__init__()
        bottleneck, width = like.block.expansion == 4, like.width
        kernel, stride = (7, 2) if like.stem == "imagenet" else (3, 1)
        self.conv1, self.bn1 = nn.Conv2d(3, width, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if like.stem == "imagenet" else nn.Identity()
        before = width
        for stage, size in enumerate(like.stage_sizes):
            blocks = []
            for index in range(size):
                step = 2 if stage and not index else 1
                blocks.append(Block(before, width * 2**stage, step, bottleneck))
                before = width * 2**stage * (4 if bottleneck else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(before, like.num_classes)

    def forward(self, x):
        # Times one: where a pool follows a ReLU at once, Captum hooks one tensor twice, and DeepLIFT loses the pool.
        x = self.maxpool(1 * self.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(x.mean((2, 3)))


def load(classifier) -> nn.Module:
    """The classifier's network with its weights, in inference mode: torchvision's, and timm's EfficientNet-Lite0."""
    architecture = classifier.about["architecture"]
    if isinstance(classifier.module, models.ResNet):
        network = ResNet(classifier.module)
    elif architecture == "efficientnet_lite0":
        import timm

        network = timm.create_model("tf_efficientnet_lite0")
    else:
        from torchvision.models import get_model

        theirs = {ours: name for name, ours in OUR_NAMES.items()}
        network = get_model(theirs.get(architecture, architecture))
    names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    named = models.state_dict(classifier.variables, closest(names))
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in named.items()}
    result = network.load_state_dict(tensors, strict=False)
    missing = [name for name in result.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or result.unexpected_keys:
        raise ValueError(f"The state dicts differ: {missing} are missing, {result.unexpected_keys} too many.")
    return network.eval()


@dataclass(frozen=True)
class Side:
    """What the libraries are run on, and the two ways of running them; maps come back as `[n, h, w]` or `[n, h, w, c]`.

    Attributes:
      network: in inference mode.
      layer: the module whose activations the CAM methods read.
      images: normalised, `float32[n, h, w, 3]`.
      targets: the explained classes.
      samples: draws of the methods that draw at random.
      window: side of the patches that perturbation methods take away, in pixels.
    """

    network: ResNet
    layer: nn.Module
    images: np.ndarray
    targets: list[int]
    samples: int
    window: int

    def cam(self, name: str, *, target: str = "ClassifierOutputTarget", positive: Callable | None = None):
        """A class of pytorch-grad-cam. It leaves the sign of principal components open; `positive(A, G)` settles it."""
        method = getattr(pytorch_grad_cam, name)
        if positive is not None:
            method = _with_sign(method, positive)
        targets = [getattr(model_targets, target)(index) for index in self.targets]
        with (
            method(self.network, [] if name == "FullGrad" else [self.layer]) as cam,
            open(os.devnull, "w") as silence,
            contextlib.redirect_stderr(silence),  # progress bars
        ):
            return cam(tensor(self.images), None if name == "FinerCAM" else targets)

    def attribute(self, name: str, *arguments, inner: str | None = None, **options):
        """A class of Captum; `inner` is what a NoiseTunnel is put around."""
        method = getattr(attr, inner or name)
        explainer = method(self.network, *arguments)
        if inner:
            explainer = getattr(attr, name)(explainer)
        x = tensor(self.images).requires_grad_()
        return array(explainer.attribute(x, target=torch.tensor(self.targets), **options))

    def one_by_one(self, name: str, function: Callable, **options):
        """As `attribute`, for options that differ from image to image: `function(image)` gives them."""
        sides = [
            replace(self, images=self.images[i : i + 1], targets=self.targets[i : i + 1])
            for i in range(len(self.images))
        ]
        return np.concatenate([side.attribute(name, **function(side.images), **options) for side in sides])

    @property
    def patches(self) -> np.ndarray:
        return segments.grid(self.images.shape[1:3], self.window)

    @property
    def feature_mask(self):
        return torch.from_numpy(self.patches)[None, None].long()


def _with_sign(method, positive):
    class Signed(method):
        def get_cam_image(self, x, layer, targets, activations, grads, eigen_smooth):
            maps = super().get_cam_image(x, layer, targets, activations, grads, eigen_smooth)
            total = positive(activations, grads).sum(1)
            total = total - total.mean((1, 2), keepdims=True)
            return maps * np.where((maps * total).sum((1, 2)) < 0, -1, 1)[:, None, None]

    return Signed


def tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))


def array(values: torch.Tensor) -> np.ndarray:
    return np.moveaxis(values.detach().numpy(), 1, -1) if values.ndim == 4 else values.detach().numpy()
