"""ConvNeXts whose every submodule is named and computed as in torchvision.

torchvision names the parts of a ConvNeXt by their place: `features.0` is the stem, `features.1`, `.3`, `.5` and `.7`
are the stages, and between them lie the downsampling layers; so does this one, and a tap and a state dict name the same
tensor.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxcam.models.vit import gelu, layer_norm


class LayerScale(nn.Module):
    """Multiplies each channel by a learnt number."""

    @nn.compact
    def __call__(self, x):
        return x * self.param("scale", nn.initializers.constant(1e-6), x.shape[-1:]).astype(x.dtype)


class Branch(nn.Module):
    """A depthwise 7x7 convolution (`"0"`), LayerNorm (`"2"`), and an MLP on each cell (`"3"`, GELU, `"5"`)."""

    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    dense: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        x = self.conv(width, (7, 7), padding=3, feature_group_count=width, name="0")(x)
        x = gelu(self.dense(4 * width, name="3")(self.norm(name="2")(x)))
        return self.dense(width, name="5")(x)


class Block(nn.Module):
    """The branch, scaled, and a shortcut."""

    branch: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        return x + LayerScale(name="layer_scale")(self.branch(name="block")(x))


class Stage(nn.Module):
    """Blocks in a row, named `"0"`, `"1"`, ..."""

    size: int
    branch: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        for index in range(self.size):
            x = Block(self.branch, name=str(index))(x)
        return x


class Stem(nn.Module):
    """A convolution without overlap (`"0"`) and LayerNorm (`"1"`)."""

    width: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        return self.norm(name="1")(self.conv(self.width, (4, 4), (4, 4), padding="VALID", name="0")(x))


class Downsample(nn.Module):
    """LayerNorm (`"0"`) and a convolution without overlap (`"1"`) between two stages."""

    width: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        return self.conv(self.width, (2, 2), (2, 2), padding="VALID", name="1")(self.norm(name="0")(x))


class Features(nn.Module):
    """Stem, stages and downsampling layers, named by their place: images to maps `[n, h / 32, w / 32, k]`."""

    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...]
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    dense: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        branch = partial(Branch, self.conv, self.norm, self.dense)
        for index, (size, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True)):
            before = Downsample if index else Stem
            x = before(width, self.conv, self.norm, name=str(2 * index))(x)
            x = Stage(size, branch, name=str(2 * index + 1))(x)
        return x


class Head(nn.Module):
    """LayerNorm (`"0"`) and a dense layer (`"2"`)."""

    num_classes: int
    norm: Callable[..., nn.Module]
    dense: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        return self.dense(self.num_classes, name="2")(self.norm(name="0")(x))


class ConvNeXt(nn.Module):
    """A ConvNeXt, `images [n, h, w, 3] -> logits float32[n, num_classes]`.

    Args:
      stage_sizes: number of blocks in each stage, `features.1`, `.3`, `.5`, `.7`.
      widths: channels of each stage.
      num_classes: length of the logits.
      head_epsilon: of the LayerNorm before the classifier: 1e-6 in torchvision and timm, 1e-12 in transformers.
      dtype: of the computation; parameters and logits stay float32.

    Training and inference are the same: there is neither BatchNorm nor dropout, so `train` changes nothing.

    References: Liu et al. 2022, A ConvNet for the 2020s, https://arxiv.org/abs/2201.03545.

    Example:
      >>> module = ConvNeXt((1, 1, 1, 1), (8, 16, 24, 32), num_classes=10)
      >>> variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
      >>> jax.eval_shape(module.apply, variables, jnp.zeros((2, 64, 96, 3))).shape
      (2, 10)
    """

    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...]
    num_classes: int = 1000
    head_epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @property
    def layer(self) -> str:
        """The layer that CAM methods explain: the last stage."""
        return f"features.{2 * len(self.stage_sizes) - 1}"

    @nn.compact
    def __call__(self, x, train: bool = False):
        init = nn.initializers.truncated_normal(0.02)
        conv, dense = (partial(kind, dtype=self.dtype, kernel_init=init) for kind in (nn.Conv, nn.Dense))
        norm = partial(layer_norm, dtype=self.dtype)
        x = Features(self.stage_sizes, self.widths, conv, partial(norm, epsilon=1e-6), dense, name="features")(x)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(self.dtype)
        head = Head(self.num_classes, partial(norm, epsilon=self.head_epsilon), dense, name="classifier")
        return head(x).astype(jnp.float32)


ARCHITECTURES: dict[str, Callable[..., ConvNeXt]] = {
    "convnext_tiny": partial(ConvNeXt, (3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": partial(ConvNeXt, (3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": partial(ConvNeXt, (3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnext_large": partial(ConvNeXt, (3, 3, 27, 3), (192, 384, 768, 1536)),
}
