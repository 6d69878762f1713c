"""ResNets whose every submodule is named and computed as in torchvision.

One class covers ResNet-18/34/50/101/152, ResNeXt and Wide-ResNet, with the ImageNet stem or the CIFAR stem. Stages and
blocks are modules of their own, so `"layer4.1.conv2"` names the same tensor here, in a torchvision state dict and in
`jaxcam.tap`. Numerics are torchvision's: explicit padding, stride on the 3x3 convolution (v1.5), BatchNorm epsilon
1e-5.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

kaiming_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and -34)."""

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    expansion = 1

    @nn.compact
    def __call__(self, x):
        out = self.conv(self.features, 3, self.stride, name="conv1")(x)
        out = nn.relu(self.norm(name="bn1")(out))
        out = self.conv(self.features, 3, name="conv2")(out)
        out = self.norm(name="bn2")(out)
        return nn.relu(out + _shortcut(self, x, out.shape))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (ResNet-50, -101 and -152, ResNeXt, Wide-ResNet)."""

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    groups: int = 1
    widening: int = 1
    stride_on: str = "conv2"
    expansion = 4

    @nn.compact
    def __call__(self, x):
        inner = self.features * self.widening
        first, second = (self.stride, 1) if self.stride_on == "conv1" else (1, self.stride)
        out = self.conv(inner, 1, first, name="conv1")(x)
        out = nn.relu(self.norm(name="bn1")(out))
        out = self.conv(inner, 3, second, groups=self.groups, name="conv2")(out)
        out = nn.relu(self.norm(name="bn2")(out))
        out = self.conv(self.features * self.expansion, 1, name="conv3")(out)
        out = self.norm(name="bn3")(out)
        return nn.relu(out + _shortcut(self, x, out.shape))


class Downsample(nn.Module):
    """The projection shortcut: a 1x1 convolution (`"0"`) and its BatchNorm (`"1"`)."""

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        return self.norm(name="1")(self.conv(self.features, 1, self.stride, name="0")(x))


def _shortcut(block, x, shape):
    if x.shape == shape:
        return x
    return Downsample(shape[-1], block.stride, block.conv, block.norm, name="downsample")(x)


class Stage(nn.Module):
    """Blocks in a row, named `"0"`, `"1"`, ...; the first one carries the stride."""

    block: Callable[..., nn.Module]
    size: int
    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        for index in range(self.size):
            stride = self.stride if index == 0 else 1
            x = self.block(self.features, stride, self.conv, self.norm, name=str(index))(x)
        return x


def _conv(features, kernel_size, stride=1, *, groups=1, name, dtype):
    padding = (kernel_size - 1) // 2
    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        (stride, stride),
        padding=((padding, padding), (padding, padding)),
        feature_group_count=groups,
        use_bias=False,
        dtype=dtype,
        kernel_init=kaiming_fan_out,
        name=name,
    )


class ResNet(nn.Module):
    """A residual network, `images [n, h, w, 3] -> logits float32[n, num_classes]`.

    Args:
      stage_sizes: number of blocks in `layer1` ... `layer4`.
      block: `BasicBlock` or `Bottleneck`.
      num_classes: length of the logits.
      width: features of `layer1`'s 3x3 convolutions; each later stage doubles them.
      stem: `"imagenet"` (7x7 stride 2, then 3x3 max-pool) or `"cifar"` (3x3 stride 1, no pool).
      groups: of a bottleneck's 3x3 convolution; 32 or 64 in ResNeXt.
      widening: by which a bottleneck's inner features exceed the usual; 2 in Wide-ResNet-50-2 and ResNeXt-50-32x4d.
      stride_on: the convolution of a bottleneck that has the stride: `"conv2"` (v1.5) or `"conv1"` (as in the paper).
      dtype: of the computation; parameters and logits stay float32.

    `module.apply(variables, images)` is inference; `train=True` uses (and, with `mutable=["batch_stats"]`, updates)
    the batch's statistics.

    References: He et al. 2016, Deep Residual Learning, https://arxiv.org/abs/1512.03385; Xie et al. 2017, Aggregated
    Residual Transformations, https://arxiv.org/abs/1611.05431; Zagoruyko and Komodakis 2016, Wide Residual Networks,
    https://arxiv.org/abs/1605.07146.

    Example:
      >>> module = ResNet((1, 1, 1, 1), BasicBlock, num_classes=10, width=8, stem="cifar")
      >>> variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> module.apply(variables, jnp.zeros((2, 32, 32, 3))).shape
      (2, 10)
    """

    stage_sizes: tuple[int, ...]
    block: type[nn.Module]
    num_classes: int = 1000
    width: int = 64
    stem: str = "imagenet"
    groups: int = 1
    widening: int = 1
    stride_on: str = "conv2"
    dtype: Any = jnp.float32

    layer = "layer4"  # that CAM methods explain

    @nn.compact
    def __call__(self, x, train: bool = False):
        conv = partial(_conv, dtype=self.dtype)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        if self.stem == "imagenet":
            x = nn.relu(norm(name="bn1")(conv(self.width, 7, 2, name="conv1")(x)))
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        elif self.stem == "cifar":
            x = nn.relu(norm(name="bn1")(conv(self.width, 3, name="conv1")(x)))
        else:
            raise ValueError(f'stem is {self.stem!r}; it must be "imagenet" or "cifar".')
        block = self.block
        if block is Bottleneck:
            block = partial(block, groups=self.groups, widening=self.widening, stride_on=self.stride_on)
        for index, size in enumerate(self.stage_sizes):
            features, stride = self.width * 2**index, 1 if index == 0 else 2
            x = Stage(block, size, features, stride, conv, norm, name=f"layer{index + 1}")(x)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(self.dtype)
        logits = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=uniform_fan_in, name="fc")(x)
        return logits.astype(jnp.float32)


ARCHITECTURES: dict[str, Callable[..., ResNet]] = {
    "resnet18": partial(ResNet, (2, 2, 2, 2), BasicBlock),
    "resnet34": partial(ResNet, (3, 4, 6, 3), BasicBlock),
    "resnet50": partial(ResNet, (3, 4, 6, 3), Bottleneck),
    "resnet101": partial(ResNet, (3, 4, 23, 3), Bottleneck),
    "resnet152": partial(ResNet, (3, 8, 36, 3), Bottleneck),
    "resnext50_32x4d": partial(ResNet, (3, 4, 6, 3), Bottleneck, groups=32, widening=2),
    "resnext101_32x8d": partial(ResNet, (3, 4, 23, 3), Bottleneck, groups=32, widening=4),
    "resnext101_64x4d": partial(ResNet, (3, 4, 23, 3), Bottleneck, groups=64, widening=4),
    "wide_resnet50_2": partial(ResNet, (3, 4, 6, 3), Bottleneck, widening=2),
    "wide_resnet101_2": partial(ResNet, (3, 4, 23, 3), Bottleneck, widening=2),
}
