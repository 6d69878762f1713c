"""DenseNets whose every submodule is named and computed as in torchvision.

Each layer of a block reads what all before it have made, `features.denseblock1.denselayer2` and so on; BatchNorm and
ReLU come before a convolution, not after it. So the last BatchNorm, `features.norm5`, has an activation of its own,
which torchvision has no name for: `relu`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxcam.models.efficientnet import kaiming_fan_in
from jaxcam.models.resnet import uniform_fan_in
from jaxcam.models.vgg import ReLU


class DenseLayer(nn.Module):
    """BatchNorm, ReLU and a convolution, 1x1 and then 3x3."""

    growth: int
    bottleneck: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        out = self.conv(self.bottleneck * self.growth, (1, 1), name="conv1")(nn.relu(self.norm(name="norm1")(x)))
        return self.conv(self.growth, (3, 3), padding=1, name="conv2")(nn.relu(self.norm(name="norm2")(out)))


class DenseBlock(nn.Module):
    """Layers `"denselayer1"`, `"denselayer2"`, ..., each of which adds its channels to those that it reads."""

    size: int
    layer: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        for number in range(1, self.size + 1):
            x = jnp.concatenate([x, self.layer(name=f"denselayer{number}")(x)], -1)
        return x


class Transition(nn.Module):
    """BatchNorm, ReLU, a 1x1 convolution to half of the channels, and the mean of 2x2 pixels."""

    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        x = self.conv(x.shape[-1] // 2, (1, 1), name="conv")(nn.relu(self.norm(name="norm")(x)))
        return nn.avg_pool(x, (2, 2), (2, 2))


class Features(nn.Module):
    """Stem, blocks with transitions between them, and the last BatchNorm."""

    block_sizes: tuple[int, ...]
    stem: int
    layer: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        x = nn.relu(self.norm(name="norm0")(self.conv(self.stem, (7, 7), 2, padding=3, name="conv0")(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        for number, size in enumerate(self.block_sizes, 1):
            x = DenseBlock(size, self.layer, name=f"denseblock{number}")(x)
            if number < len(self.block_sizes):
                x = Transition(self.conv, self.norm, name=f"transition{number}")(x)
        return self.norm(name="norm5")(x)


class DenseNet(nn.Module):
    """A DenseNet, `images [n, h, w, 3] -> logits float32[n, num_classes]`.

    CAMs are made at `relu`, the activation of the last BatchNorm, a pixel for 32 x 32 of the image.

    Args:
      block_sizes: number of layers in `features.denseblock1`, `.denseblock2`, ...
      growth: channels that each layer adds.
      stem: channels of the first convolution.
      num_classes: length of the logits.
      bottleneck: channels between a layer's two convolutions, as a multiple of `growth`.
      dtype: of the computation; parameters and logits stay float32.

    `module.apply(variables, images)` is inference; `train=True` uses (and, with `mutable=["batch_stats"]`, updates)
    the batch's statistics.

    References: Huang et al. 2017, Densely Connected Convolutional Networks, https://arxiv.org/abs/1608.06993.

    Example:
      >>> module = DenseNet((2, 2), growth=4, stem=8, num_classes=10)
      >>> variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> module.apply(variables, jnp.zeros((2, 48, 32, 3))).shape
      (2, 10)
    """

    block_sizes: tuple[int, ...]
    growth: int = 32
    stem: int = 64
    num_classes: int = 1000
    bottleneck: int = 4
    dtype: Any = jnp.float32

    layer = "relu"  # that CAM methods explain

    @nn.compact
    def __call__(self, x, train: bool = False):
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=kaiming_fan_in)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        layer = partial(DenseLayer, self.growth, self.bottleneck, conv, norm)
        x = Features(self.block_sizes, self.stem, layer, conv, norm, name="features")(x.astype(self.dtype))
        if not all(x.shape[1:3]):
            raise ValueError(
                f"the images are so small that nothing is left after the {len(self.block_sizes) - 1} transitions of "
                f"this DenseNet; they must have at least {2 ** (len(self.block_sizes) + 1)} pixels a side."
            )
        x = jnp.mean(ReLU(name="relu")(x), axis=(1, 2), dtype=jnp.float32).astype(self.dtype)
        logits = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=uniform_fan_in, name="classifier")(x)
        return logits.astype(jnp.float32)


ARCHITECTURES: dict[str, Callable[..., DenseNet]] = {
    "densenet121": partial(DenseNet, (6, 12, 24, 16)),
    "densenet161": partial(DenseNet, (6, 12, 36, 24), growth=48, stem=96),
    "densenet169": partial(DenseNet, (6, 12, 32, 32)),
    "densenet201": partial(DenseNet, (6, 12, 48, 32)),
}
