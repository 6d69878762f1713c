"""Attention rollout: what a vision transformer's attention brings from the patches to the token that the head reads.

It reads the attention of every layer of the unmodified model through the tap, whichever layer is tapped; the tap's
`reshape` says how tokens lie on the image.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax.numpy as jnp

from jaxcam._array import EXACT
from jaxcam._engine import engine
from jaxcam._errors import shown
from jaxcam._scores import described
from jaxcam._typing import Images, Maps, Score, Targets
from jaxcam.attribution._cam import cells, finish, prepare_tap
from jaxcam.score import logit
from jaxcam.taps import Tap


def attention_rollout(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: bool = False,
    token: int | None = 0,
    attention: Sequence[str] | Callable | None = None,
) -> Maps:
    """Attention rollout: how much of each patch arrives at the token that the head reads, by attention alone.

    `R = B_L ... B_2 B_1` with `B = (I + mean_heads(attention)) / 2` of each layer; `map = R[token]` at the patches.

    All attention layers of the model count, whichever layer is tapped; the tap's `reshape` says which tokens are
    patches. `targets` and `score` change nothing.

    Args:
      model: a tap with `reshape=jaxcam.tokens(...)`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers).
      token: the token that the head reads: 0 is the class token, `None` the mean over all tokens.
      attention: where the weights `[n, heads, queries, keys]` come from, the first layer's first. `None` means every
        attention layer of the framework's own kind, such as `nn.MultiHeadDotProductAttention` or
        `nnx.MultiHeadAttention`. For attention that the model computes itself: the paths of layers that return the
        weights, as `jaxcam.layers` lists them, such as the dropout of each block, or a function `(model, images)`
        that gives a sequence of them. It is static: pass the same one again, and nothing is compiled anew.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer; a tap
        without `reshape`; a model without attention layers, or with layers that attend
        to another sequence; `attention` that gives no such weights; a token beyond the sequence's end.

    Reference: Abnar and Zuidema 2020, Quantifying Attention Flow in Transformers, https://arxiv.org/abs/2005.00928

    Example:
      >>> import flax.linen as nn
      >>> patches, flat = nn.Conv(8, (8, 8), 8), lambda x: x.reshape(len(x), -1, 8)
      >>> module = nn.Sequential([patches, flat, nn.MultiHeadDotProductAttention(2), lambda x: x.mean(1), nn.Dense(4)])
      >>> variables = module.init(jax.random.key(0), images)
      >>> model = jaxcam.tap(module, variables, "layers_2", reshape=jaxcam.tokens((4, 4), drop=0))
      >>> heatmaps = jaxcam.attention_rollout(model, images, token=None)
    """
    model, images, targets = prepare_tap("attention_rollout", model, images, targets)
    if model.reshape is None:
        raise ValueError(
            "attention_rollout needs to know how tokens lie on the image: "
            "`jaxcam.tap(..., reshape=jaxcam.tokens((h, w)))`."
        )
    if attention is not None and not callable(attention):
        attention = (attention,) if isinstance(attention, str) else tuple(attention)
    return _rollout_engine(model, images, targets, raw=raw, token=token, attention=attention)


@engine
def _rollout_engine(model, images, targets, *, raw, token, attention):
    layers = _weights(model, images, attention)
    count = layers[0].shape[-1]
    if token is not None and not -count <= token < count:
        raise ValueError(f"token is {token}, and the sequence has {count}, from 0 to {count - 1}.")
    identity = rollout = jnp.eye(count, dtype=jnp.float32)
    for weights in layers:
        step = (weights.astype(jnp.float32).mean(1) + identity) / 2
        rollout = jnp.matmul(step, rollout, precision=EXACT)
    arrived = rollout.mean(1) if token is None else rollout[:, token]
    (A,) = cells(replace(model, layers=("attention",)), [arrived[..., None]], images)
    return finish([A.laid(A.values[..., 0])], images, raw)


def _weights(model, images, attention) -> Sequence:
    """The attention `[n, heads, t, t]` of each layer: found, named by its path, or given by a function."""
    if attention is None:
        layers = model.attention(images)
        if not layers:
            raise ValueError(
                "attention_rollout found no attention layer (nn.MultiHeadDotProductAttention, nnx.MultiHeadAttention) "
                "in the model. Where the model computes attention itself, name the layers that return its weights "
                '[n, heads, queries, keys], attention=("block0.attention.dropout", ...), or pass a function of them, '
                "attention=lambda model, images: [...]."
            )
    elif callable(attention):
        layers = tuple(attention(model, images))
    else:
        layers = model.run(images, layers=attention)[1]
    if not layers:
        raise ValueError(f"attention is {shown(repr(attention))}, which gives no layers; name one at least.")
    for each in layers:
        if len(getattr(each, "shape", ())) != 4:
            raise ValueError(f"attention gives {described(each)}; weights are [n, heads, queries, keys] of each layer.")
    shapes = {each.shape[-2:] for each in layers}
    if len(shapes) > 1 or len(set(*shapes)) > 1:
        raise ValueError(f"attention_rollout follows one token sequence, and attention has shapes {sorted(shapes)}.")
    return layers
