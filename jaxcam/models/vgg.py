"""VGGs, with and without BatchNorm, whose every submodule is named and computed as in torchvision.

torchvision numbers what a VGG does, activations and pools too: `features.28` is the last convolution of a VGG-16,
`features.29` its activation and `features.30` the pool, here as there. The classifier reads 7x7 cells, to which images
of any size are averaged (timm slides the first dense layer over larger ones).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxcam.models.resnet import kaiming_fan_out

CELLS = 7  # a side of what the classifier reads


class ReLU(nn.Module):
    """A layer, so that a tap can name it."""

    @nn.compact
    def __call__(self, x):
        return nn.relu(x)


class Pool(nn.Module):
    """The largest of 2x2 pixels."""

    @nn.compact
    def __call__(self, x):
        return nn.max_pool(x, (2, 2), (2, 2))


class Features(nn.Module):
    """Convolutions (with their BatchNorm), activations and pools, numbered through."""

    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...]
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module] | None

    @nn.compact
    def __call__(self, x):
        layers = []
        for size, width in zip(self.stage_sizes, self.widths, strict=True):
            one = [partial(self.conv, width, (3, 3), padding=1), *([self.norm] if self.norm else []), ReLU]
            layers += [*(one * size), Pool]
        for number, layer in enumerate(layers):
            x = layer(name=str(number))(x)
        return x


class Classifier(nn.Module):
    """Three dense layers, `"0"`, `"3"` and `"6"`."""

    hidden: int
    num_classes: int
    dense: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        x = nn.relu(self.dense(self.hidden, name="0")(x))
        x = nn.relu(self.dense(self.hidden, name="3")(x))
        return self.dense(self.num_classes, name="6")(x)


def averaged(x, side: int):
    """`[n, h, w, k] -> [n, side, side, k]`: means over cells that may overlap, as PyTorch's adaptive pool.

    Example:
      >>> averaged(jnp.arange(12.0).reshape(1, 4, 3, 1), 2)[0, :, :, 0].tolist()
      [[2.0, 3.0], [8.0, 9.0]]
    """
    for axis in (1, 2):
        size = x.shape[axis]
        if size != side:
            first, last = np.arange(side) * size // side, -(-(np.arange(side) + 1) * size // side)
            inside = (np.arange(size) >= first[:, None]) & (np.arange(size) < last[:, None])
            means = jnp.asarray(inside / inside.sum(1, keepdims=True), x.dtype)
            x = jnp.moveaxis(jnp.tensordot(x, means, (axis, 1), precision="highest"), -1, axis)
    return x


class VGG(nn.Module):
    """A VGG, `images [n, h, w, 3] -> logits float32[n, num_classes]`.

    CAMs are made at the last activation, of 14 x 14 cells for 224 pixels, as in the Grad-CAM paper. Dropout, which only
    training uses, is left out.

    Args:
      stage_sizes: number of convolutions between two pools.
      widths: channels of each stage.
      num_classes: length of the logits.
      hidden: features of the two dense layers before the last.
      norm: whether BatchNorm follows each convolution.
      dtype: of the computation; parameters and logits stay float32.

    `module.apply(variables, images)` is inference; `train=True` uses (and, with `mutable=["batch_stats"]`, updates)
    the batch's statistics, where there is BatchNorm.

    References: Simonyan and Zisserman 2015, Very Deep Convolutional Networks, https://arxiv.org/abs/1409.1556.

    Example:
      >>> module = VGG((1, 2), (4, 8), num_classes=10, hidden=16)
      >>> variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> module.apply(variables, jnp.zeros((2, 48, 32, 3))).shape, module.layer
      ((2, 10), 'features.6')
    """

    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    num_classes: int = 1000
    hidden: int = 4096
    norm: bool = False
    dtype: Any = jnp.float32

    @property
    def layer(self) -> str:
        """The layer that CAM methods explain: the last activation."""
        return f"features.{sum(self.stage_sizes) * (2 + self.norm) + len(self.stage_sizes) - 2}"

    @nn.compact
    def __call__(self, x, train: bool = False):
        conv = partial(nn.Conv, dtype=self.dtype, kernel_init=kaiming_fan_out)
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.normal(0.01))
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        x = x.astype(self.dtype)
        x = Features(self.stage_sizes, self.widths, conv, norm if self.norm else None, name="features")(x)
        if not all(x.shape[1:3]):
            raise ValueError(
                f"the images are so small that nothing is left after the {len(self.stage_sizes)} pools of this VGG; "
                f"they must have at least {2 ** len(self.stage_sizes)} pixels a side."
            )
        x = averaged(x, CELLS).transpose(0, 3, 1, 2).reshape(len(x), -1)  # PyTorch's order of the weights
        return Classifier(self.hidden, self.num_classes, dense, name="classifier")(x).astype(jnp.float32)


_SIZES = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
ARCHITECTURES: dict[str, Callable[..., VGG]] = {
    **{name: partial(VGG, sizes) for name, sizes in _SIZES.items()},
    **{f"{name}_bn": partial(VGG, sizes, norm=True) for name, sizes in _SIZES.items()},
}
