"""EfficientNets, their Lite variants without squeeze-excitation and with ReLU6, and MobileNetV2 with the same blocks.

One class covers B0 to B7, Lite0 to Lite4 and MobileNetV2. Layers are named as in timm, `"blocks.4.2"` for the third
block of the fifth stage, so that a stage has the same name in every variant. Numerics are of two kinds: TensorFlow's
(padding "SAME", BatchNorm epsilon 1e-3), in which the authors trained, and PyTorch's (as much on both sides, 1e-5).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxcam.models.resnet import kaiming_fan_out, uniform_fan_in

kaiming_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # a depthwise output sees one channel

STAGES = (  # of B0: kernel size, stride of the first block, expansion, features, blocks
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
MOBILENET = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (3, 2, 6, 32, 3),
    (3, 2, 6, 64, 4),
    (3, 1, 6, 96, 3),
    (3, 2, 6, 160, 3),
    (3, 1, 6, 320, 1),
)
VARIANTS = {  # width and depth as multiples of B0's, and the side of the images in pixels
    "efficientnet_lite0": (1.0, 1.0, 224),
    "efficientnet_lite1": (1.0, 1.1, 240),
    "efficientnet_lite2": (1.1, 1.2, 260),
    "efficientnet_lite3": (1.2, 1.4, 280),
    "efficientnet_lite4": (1.4, 1.8, 300),
    "efficientnet_b0": (1.0, 1.0, 224),
    "efficientnet_b1": (1.0, 1.1, 240),
    "efficientnet_b2": (1.1, 1.2, 260),
    "efficientnet_b3": (1.2, 1.4, 300),
    "efficientnet_b4": (1.4, 1.8, 380),
    "efficientnet_b5": (1.6, 2.2, 456),
    "efficientnet_b6": (1.8, 2.6, 528),
    "efficientnet_b7": (2.0, 3.1, 600),
}


class ConvNorm(nn.Module):
    """A convolution (`"conv"`), its BatchNorm (`"bn"`) and maybe an activation; depthwise if `groups == features`."""

    features: int
    kernel_size: int
    norm: Callable[..., nn.Module]
    activation: Callable | None = None
    stride: int = 1
    groups: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            (self.stride, self.stride),
            padding=self.kernel_size // 2 if self.padding == "symmetric" else self.padding,
            feature_group_count=self.groups,
            use_bias=False,
            dtype=x.dtype,
            kernel_init=kaiming_fan_out if self.groups == 1 else kaiming_fan_in,
            name="conv",
        )(x)
        x = self.norm(name="bn")(x)
        return x if self.activation is None else self.activation(x)


class SqueezeExcite(nn.Module):
    """Scales each channel by what a small network says of all channels' means."""

    features: int
    activation: Callable

    @nn.compact
    def __call__(self, x):
        means = x.mean((1, 2), keepdims=True)
        small = self.activation(nn.Conv(self.features, (1, 1), dtype=x.dtype, name="reduce")(means))
        return x * nn.sigmoid(nn.Conv(x.shape[-1], (1, 1), dtype=x.dtype, name="expand")(small))


class Block(nn.Module):
    """1x1 convolution to more channels, depthwise convolution, 1x1 convolution to few, and a shortcut where it fits."""

    features: int
    kernel_size: int
    stride: int
    expansion: int
    squeeze: float
    conv: Callable[..., nn.Module]
    activation: Callable

    @nn.compact
    def __call__(self, x):
        inputs = x.shape[-1]
        wide, conv = inputs * self.expansion, self.conv
        out = x
        if self.expansion != 1:
            out = conv(wide, 1, activation=self.activation, name="expand")(out)
        out = conv(
            wide, self.kernel_size, activation=self.activation, stride=self.stride, groups=wide, name="depthwise"
        )(out)
        if self.squeeze:
            small = max(1, int(inputs * self.squeeze))
            out = SqueezeExcite(small, self.activation, name="squeeze_excite")(out)
        out = conv(self.features, 1, name="project")(out)
        return out + x if self.stride == 1 and inputs == self.features else out


class Stage(nn.Module):
    """Blocks in a row, named `"0"`, `"1"`, ...; the first one carries the stride."""

    size: int
    stride: int
    block: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        for index in range(self.size):
            x = self.block(stride=self.stride if index == 0 else 1, name=str(index))(x)
        return x


class Stages(nn.Module):
    """All stages in a row, named `"0"`, `"1"`, ..."""

    stages: tuple[tuple[int, int, int, int, int], ...]
    block: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        for index, (kernel_size, stride, expansion, features, size) in enumerate(self.stages):
            block = partial(self.block, features=features, kernel_size=kernel_size, expansion=expansion)
            x = Stage(size, stride, block, name=str(index))(x)
        return x


class EfficientNet(nn.Module):
    """An EfficientNet or MobileNetV2, `images [n, h, w, 3] -> logits float32[n, num_classes]`.

    Its layers are `stem`, `blocks` (`blocks.4` a stage, `blocks.4.2` a block, `blocks.4.2.expand`, `.depthwise`,
    `.squeeze_excite` and `.project` its parts), `head` and `fc`. CAMs are made at `head`: the last convolution with its
    BatchNorm and activation, a pixel for 32 x 32 of the image. `stem`, `head`, `expand` and `depthwise` end with the
    activation. Dropout and stochastic depth, which only training uses, are left out.

    Args:
      stages: kernel size, stride of the first block, expansion, features and number of blocks of each stage.
      num_classes: length of the logits.
      stem: features of the first convolution, 3x3 with stride 2.
      head: features of the last convolution, 1x1.
      squeeze: the channels of a squeeze-excitation, as a share of its block's input channels; 0 for none.
      activation: `nn.relu6`, in which the rewriting methods (guided backpropagation, LRP) see a ReLU, or `nn.swish`.
      padding: `"SAME"`, TensorFlow's, which pads an even image more on the right, or `"symmetric"`, PyTorch's.
      epsilon: of BatchNorm: 1e-3 in TensorFlow, 1e-5 in PyTorch.
      dtype: of the computation; parameters and logits stay float32.

    `module.apply(variables, images)` is inference; `train=True` uses (and, with `mutable=["batch_stats"]`, updates)
    the batch's statistics.

    References: Tan and Le 2019, EfficientNet, https://arxiv.org/abs/1905.11946; Sandler et al. 2018, MobileNetV2,
    https://arxiv.org/abs/1801.04381.

    Example:
      >>> module = EfficientNet(stages=((3, 1, 1, 4, 1), (5, 2, 6, 8, 2)), num_classes=10, stem=4, head=16)
      >>> variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> module.apply(variables, jnp.zeros((2, 32, 32, 3))).shape
      (2, 10)
    """

    stages: tuple[tuple[int, int, int, int, int], ...] = STAGES
    num_classes: int = 1000
    stem: int = 32
    head: int = 1280
    squeeze: float = 0.0
    activation: Callable = nn.relu6
    padding: str = "SAME"
    epsilon: float = 1e-3
    dtype: Any = jnp.float32

    layer = "head"  # that CAM methods explain

    @nn.compact
    def __call__(self, x, train: bool = False):
        options = {"use_running_average": not train, "momentum": 0.99, "epsilon": self.epsilon, "dtype": self.dtype}
        conv = partial(ConvNorm, norm=partial(nn.BatchNorm, **options), padding=self.padding)
        block = partial(Block, squeeze=self.squeeze, conv=conv, activation=self.activation)
        x = x.astype(self.dtype)
        x = conv(self.stem, 3, activation=self.activation, stride=2, name="stem")(x)
        x = Stages(self.stages, block, name="blocks")(x)
        x = conv(self.head, 1, activation=self.activation, name="head")(x)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(self.dtype)
        logits = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=uniform_fan_in, name="fc")(x)
        return logits.astype(jnp.float32)


def _variant(name: str) -> Callable[..., EfficientNet]:
    width, depth, _ = VARIANTS[name]
    if "lite" not in name:
        stages = tuple(_scaled(stage, width, depth) for stage in STAGES)
        ends = {"stem": _features(32, width), "head": _features(1280, width)}
        return partial(EfficientNet, stages=stages, **ends, squeeze=0.25, activation=nn.swish)
    first, *between, last = STAGES  # whose depth is that of B0 in all Lite variants, as is the width of stem and head
    middle = (_scaled(stage, width, depth) for stage in between)
    return partial(EfficientNet, stages=(_scaled(first, width, 1), *middle, _scaled(last, width, 1)))


def _scaled(stage, width, depth) -> tuple[int, int, int, int, int]:
    kernel_size, stride, expansion, features, size = stage
    return kernel_size, stride, expansion, _features(features, width), math.ceil(depth * size)


def _features(features: int, width: float) -> int:
    """So many times the width, to the nearest multiple of 8, but never a tenth less."""
    scaled = features * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * scaled else rounded + 8


TENSORFLOW = {"padding": "SAME", "epsilon": 1e-3}
PYTORCH = {"padding": "symmetric", "epsilon": 1e-5}


def torchvisions(squeeze: bool, head: int) -> dict[str, Any]:
    """Its largest variants, B5 to B7, have TensorFlow's epsilon with PyTorch's padding."""
    return PYTORCH | ({"epsilon": 1e-3} if squeeze and head >= 2048 else {})


_SIZED = [name for name in VARIANTS if "lite" not in name]
ARCHITECTURES: dict[str, Callable[..., EfficientNet]] = {
    **{name: _variant(name) for name in VARIANTS if name not in _SIZED},
    **{f"tf_{name}": _variant(name) for name in _SIZED},  # as timm calls those with TensorFlow's numerics
    **{name: partial(_variant(name), **torchvisions(True, _variant(name).keywords["head"])) for name in _SIZED},
    "mobilenet_v2": partial(EfficientNet, stages=MOBILENET, **PYTORCH),
}
