"""Vision transformers whose every submodule is named and computed as in torchvision.

One class covers ViT and DeiT (without distillation), which differ in how they were trained. Parts that own a single
array, the class token and the position embedding, are modules too, so that taps and biases see them. Attention is
Flax's own, so `attention_rollout` reads it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxcam.taps import Tokens, tokens

gelu = partial(nn.gelu, approximate=False)
layer_norm = partial(nn.LayerNorm, use_fast_variance=False)  # as exact as PyTorch's
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # by width; no tensor shows how many there are


class ClassToken(nn.Module):
    """Puts a learnt token before the sequence."""

    @nn.compact
    def __call__(self, x):
        token = self.param("token", nn.initializers.zeros, (1, 1, x.shape[-1]))
        return jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (len(x), 1, x.shape[-1])), x], axis=1)


class PositionEmbedding(nn.Module):
    """Adds a learnt vector to each token of the sequence."""

    @nn.compact
    def __call__(self, x):
        positions = self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        return x + positions.astype(x.dtype)


class MLP(nn.Module):
    """A dense layer (`"0"`), GELU and a dense layer back (`"3"`)."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
        return dense(x.shape[-1], name="3")(gelu(dense(self.features, name="0")(x)))


class EncoderBlock(nn.Module):
    """Attention and an MLP, each after a LayerNorm and added to what it was given."""

    num_heads: int
    mlp_features: int
    norm: Callable[..., nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, x):
        attention = nn.MultiHeadDotProductAttention(self.num_heads, dtype=self.dtype, name="self_attention")
        x = x + attention(self.norm(name="ln_1")(x))
        return x + MLP(self.mlp_features, self.dtype, name="mlp")(self.norm(name="ln_2")(x))


class Layers(nn.Module):
    """Blocks in a row, named `"encoder_layer_0"`, `"encoder_layer_1"`, ..."""

    depth: int
    block: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        for index in range(self.depth):
            x = self.block(name=f"encoder_layer_{index}")(x)
        return x


class Encoder(nn.Module):
    """Position embedding, blocks and a LayerNorm: tokens `[n, t, k]` to tokens."""

    depth: int
    block: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        x = PositionEmbedding(name="pos_embedding")(x)
        return self.norm(name="ln")(Layers(self.depth, self.block, name="layers")(x))


class Heads(nn.Module):
    """The classifier, `"head"`."""

    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)


class ViT(nn.Module):
    """A vision transformer that reads its class token, `images [n, s, s, 3] -> logits float32[n, num_classes]`.

    Args:
      depth: number of blocks.
      width: features of a token.
      num_heads: of each attention.
      patch_size: side of a patch, in pixels.
      num_classes: length of the logits.
      image_size: side of the images, in pixels: the position embedding is made for it.
      mlp_features: of the hidden layer of each block; `None` means four times the width.
      epsilon: of the LayerNorms: 1e-6 in torchvision and timm, 1e-12 in transformers.
      dtype: of the computation; parameters and logits stay float32.

    Training and inference are the same: there is neither BatchNorm nor dropout, so `train` changes nothing.

    Raises:
      ValueError: images of another size.

    References: Dosovitskiy et al. 2021, An Image is Worth 16x16 Words, https://arxiv.org/abs/2010.11929; Touvron et al.
    2021, Training data-efficient image transformers, https://arxiv.org/abs/2012.12877.

    Example:
      >>> module = ViT(depth=2, width=64, num_heads=2, patch_size=8, num_classes=10, image_size=32)
      >>> variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> model = jaxcam.tap(module, variables, module.layer, reshape=module.reshape)
      >>> jaxcam.grad_cam(model, jnp.zeros((2, 32, 32, 3)), raw=True).shape
      (2, 4, 4)
    """

    depth: int
    width: int
    num_heads: int
    patch_size: int
    num_classes: int = 1000
    image_size: int = 224
    mlp_features: int | None = None
    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @property
    def layer(self) -> str:
        """The layer that CAM methods explain: the last one where the patches still speak to the class token."""
        return f"encoder.layers.encoder_layer_{self.depth - 1}.ln_1"

    @property
    def reshape(self) -> Tokens:
        """How the tokens lie on the image."""
        return tokens((self.image_size // self.patch_size,) * 2)

    @nn.compact
    def __call__(self, x, train: bool = False):
        if x.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(
                f"images are {x.shape[1]} x {x.shape[2]} pixels, and the position embedding of this ViT is made for "
                f"{self.image_size} x {self.image_size}; resize them."
            )
        norm = partial(layer_norm, epsilon=self.epsilon, dtype=self.dtype)
        block = partial(EncoderBlock, self.num_heads, self.mlp_features or 4 * self.width, norm, self.dtype)
        side = (self.patch_size, self.patch_size)
        x = nn.Conv(self.width, side, side, padding="VALID", dtype=self.dtype, name="conv_proj")(x)
        x = ClassToken(name="class_token")(x.reshape(len(x), -1, self.width))
        x = Encoder(self.depth, block, norm, name="encoder")(x)
        return Heads(self.num_classes, self.dtype, name="heads")(x[:, 0]).astype(jnp.float32)


_SIZES = {"tiny": (12, 192), "small": (12, 384), "base": (12, 768), "large": (24, 1024)}  # depth, width

ARCHITECTURES: dict[str, Callable[..., ViT]] = {
    f"vit_{size}_patch{patch}": partial(ViT, depth=depth, width=width, num_heads=HEADS[width], patch_size=patch)
    for size, (depth, width) in _SIZES.items()
    for patch in (16, 32)
}
