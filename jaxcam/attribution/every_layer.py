"""Methods that look at every layer of a kind, whichever layer is tapped: all biases, all attention weights.

FullGrad accounts for the score by the image and the biases; attention rollout follows the attention of a vision
transformer from the patches to the token that the head reads. Both read the unmodified model through the tap, whose
`reshape` says how tokens lie on the image.
"""

import jax
import jax.numpy as jnp

from jaxcam._array import normalise, resize
from jaxcam._cam import checked, explained, finish
from jaxcam._inputs import engine
from jaxcam._typing import Images, Maps, Score, Targets
from jaxcam.score import logit
from jaxcam.tap import Tap


def full_grad(model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: bool = False) -> Maps:
    """FullGrad: the image and the biases of all layers, each times its gradient.

    `map = sum_c scale|x_c dS/dx_c| + sum_layers sum_k scale|b_k G_k|`, where `scale` brings each channel to [0, 1].

    Biases are those of every layer of the model that has one, also the effective bias of BatchNorm, whichever layer is
    tapped (its `reshape` is used for tokens). `raw=True` gives the contributions themselves, signed, as a tuple: first
    `[n, h, w]` of the image, then `[n, h', w']` of each layer, in the order of the calls; `[n, 1, 1]` for layers that
    are not spatial, which the heatmap leaves out. All of them together sum to the score where the layers are joined by
    ReLU, pooling and sums, and BatchNorm uses its running statistics.
    Arguments, result and errors are those of `grad_cam`.

    Reference: Srinivas and Fleuret 2019, Full-Gradient Representation for Neural Network Visualization,
    https://arxiv.org/abs/1905.00780

    Example:
      >>> heatmaps = jaxcam.full_grad(model, images)
    """
    images, targets = checked("full_grad", model, images, targets)
    return _full_grad_engine(model, images, targets, score=score, raw=raw)


@engine(static=("score", "raw"))
def _full_grad_engine(model, images, targets, *, score, raw):
    def total(images, perturbations):
        output, biases = model.biases(images, perturbations)
        return explained(score, targets)(output), biases

    zeros = jax.tree.map(jnp.zeros_like, model.biases(images)[1])
    (G, gradients), biases = jax.grad(total, (0, 1), has_aux=True)(images, zeros)
    tokens = None if model.reshape is None else jax.eval_shape(model.run, images)[1][0].shape[1]
    terms = [b * g for b, g in zip(biases, gradients, strict=True)]
    terms = [_contribution(each.astype(jnp.float32), model.reshape, tokens, images.shape) for each in terms]
    terms = [(G * images).astype(jnp.float32), *terms]
    if raw:
        return tuple(each.sum(-1) for each in terms)
    channels = [normalise(jnp.abs(jnp.moveaxis(each, -1, 1))).sum(1) for each in terms]
    return normalise(sum(resize(each, images.shape[1:3]) for each in channels))


def _contribution(term, reshape, tokens, image):
    """A layer's contributions as maps `[n, h', w', k]`: maps already, tokens like the tapped ones, or a single cell.

    Tokens may have more axes, such as heads; what has four, and the image's proportions, is a map.
    """
    is_map = term.ndim == 4 and term.shape[1] * image[2] == term.shape[2] * image[1]
    if reshape is not None and not is_map and term.ndim > 2 and term.shape[1] == tokens:
        return reshape(term.reshape(*term.shape[:2], -1))
    return term if term.ndim == 4 else term.reshape(term.shape[0], 1, 1, -1)


def attention_rollout(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: bool = False,
    token: int | None = 0,
) -> Maps:
    """Attention rollout: how much of each patch arrives at the token that the head reads, by attention alone.

    `R = B_L ... B_2 B_1` with `B = (I + mean_heads(attention)) / 2` of each layer; `map = R[token]` at the patches.

    All attention layers of the model count (`nn.MultiHeadDotProductAttention`, or `nnx.MultiHeadAttention`), whichever
    layer is tapped; the tap's `reshape` says which tokens are patches. `targets` and `score` change nothing.
    Arguments and result are those of `grad_cam`, and:

    Args:
      model: a tap with `reshape=jaxcam.tokens(...)`.
      token: the token that the head reads: 0 is the class token, `None` the mean over all tokens.

    Raises:
      ValueError: as `grad_cam`; a tap without `reshape`; a model without attention layers, or with layers that attend
        to another sequence; a token beyond its end.

    Reference: Abnar and Zuidema 2020, Quantifying Attention Flow in Transformers, https://arxiv.org/abs/2005.00928

    Example:
      >>> import flax.linen as nn
      >>> patches, flat = nn.Conv(8, (8, 8), 8), lambda x: x.reshape(len(x), -1, 8)
      >>> module = nn.Sequential([patches, flat, nn.MultiHeadDotProductAttention(2), lambda x: x.mean(1), nn.Dense(4)])
      >>> variables = module.init(jax.random.key(0), images)
      >>> model = jaxcam.tap(module, variables, "layers_2", reshape=jaxcam.tokens((4, 4), drop=0))
      >>> heatmaps = jaxcam.attention_rollout(model, images, token=None)
    """
    images, _ = checked("attention_rollout", model, images, targets)
    if model.reshape is None:
        raise ValueError(
            "attention_rollout needs to know how tokens lie on the image: "
            "`jaxcam.tap(..., reshape=jaxcam.tokens((h, w)))`."
        )
    return _rollout_engine(model, images, raw=raw, token=token)


@engine(static=("raw", "token"))
def _rollout_engine(model, images, *, raw, token):
    layers = model.attention(images)
    shapes = {each.shape[-2:] for each in layers}
    if not layers:
        raise ValueError("attention_rollout found no attention layer (nn.MultiHeadDotProductAttention) in the model.")
    if len(shapes) > 1 or len(set(*shapes)) > 1:
        raise ValueError(f"attention_rollout follows one token sequence, and attention has shapes {sorted(shapes)}.")
    count = layers[0].shape[-1]
    if token is not None and not -count <= token < count:
        raise ValueError(f"token is {token}, and the sequence has {count}, from 0 to {count - 1}.")
    identity = jnp.eye(count)
    rollout = identity
    for weights in layers:
        step = (weights.astype(jnp.float32).mean(1) + identity) / 2
        rollout = jnp.matmul(step, rollout, precision=jax.lax.Precision.HIGHEST)
    arrived = rollout.mean(1) if token is None else rollout[:, token]
    return finish([model.reshape(arrived[:, :, None])[..., 0]], images, raw)
