"""What is explained: one number per image, a function `(logits[n, k], targets[n]) -> [n]`.

Every method takes such a function as `score=`; the default is the logit, as in the papers. A score of your own is a
line: `lambda logits, targets: logits[:, 3] - logits[:, 5]`. Scores that carry arrays are `jax.tree_util.Partial`s: the
arrays are arguments of the compiled program, so a new one does not compile again. What a score carries is shared by all
images, because methods that work in chunks call it with rows of several images in an order of their own.
"""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial


def logit(logits, targets):
    """The target class's logit.

    A target out of range gives NaN, also under `jit`, where no error can be raised.

    Raises:
      ValueError: the model's output is not `[n, k]`.

    Example:
      >>> logit(jnp.array([[1.0, 2.0]]), jnp.array([1]))
      Array([2.], dtype=float32)
    """
    if logits.ndim != 2:
        raise ValueError(
            f"The model returns an array {logits.shape} where this score expects logits [n, k]. Wrap the model in a "
            "function that returns the logits, or pass a `score` that reads this output, such as score.pixels()."
        )
    return _pick(logits, targets[:, None])[:, 0]


def _pick(logits, targets):
    """`logits[..., target]`, and NaN for a target out of range, where indexing would silently clamp."""
    num_classes = logits.shape[-1]
    picked = jnp.take_along_axis(logits, jnp.clip(targets, 0, num_classes - 1), axis=-1)
    # As a factor, so that the gradient is NaN as well.
    return picked * jnp.where((targets >= 0) & (targets < num_classes), 1, jnp.nan).astype(logits.dtype)


def probability(logits, targets):
    """The target class's softmax probability.

    Example:
      >>> probability(jnp.array([[0.0, 0.0]]), jnp.array([1]))
      Array([0.5], dtype=float32)
    """
    return logit(jax.nn.softmax(logits, axis=-1), targets)


def log_probability(logits, targets):
    """The logarithm of the target class's softmax probability.

    Example:
      >>> log_probability(jnp.array([[0.0, 0.0]]), jnp.array([1]))
      Array([-0.6931472], dtype=float32)
    """
    return logit(jax.nn.log_softmax(logits, axis=-1), targets)


def counterfactual(logits, targets):
    """The negative logit: what it highlights speaks against the target class.

    Reference: Selvaraju et al. 2017, Grad-CAM, section 7, https://arxiv.org/abs/1610.02391

    Example:
      >>> counterfactual(jnp.array([[1.0, 2.0]]), jnp.array([1]))
      Array([-2.], dtype=float32)
    """
    return -logit(logits, targets)


def _shared(name: str, value, rank: int, dtype=jnp.float32):
    """The array that a score carries, or an error where it has a row for each image."""
    array = jnp.asarray(value, dtype)
    if array.ndim != rank:
        raise ValueError(
            f"{name} has shape {array.shape}; it must have {rank} axes and is shared by all images. "
            "For another one for each image, explain the images one by one, or use jax.vmap."
        )
    return array


def contrast(other):
    """The target class's logit less that of the class `other`: why this and not that? NaN for a class beyond the last.

    Example:
      >>> contrast(0)(jnp.array([[1.0, 5.0]]), jnp.array([1]))
      Array([4.], dtype=float32)
    """
    return Partial(_contrast, _shared("other", other, 0, jnp.int32))


def _contrast(other, logits, targets):
    return logit(logits, targets) - logit(logits, jnp.broadcast_to(other, targets.shape))


def cosine_similarity(embedding):
    """The cosine of the angle between the model's output and `embedding [k]`; targets play no part.

    For a model that returns embeddings: what makes this image similar to that one?

    Example:
      >>> cosine_similarity(jnp.array([0.0, 2.0]))(jnp.array([[3.0, 4.0]]), None)
      Array([0.8], dtype=float32)
    """
    return Partial(_cosine_similarity, _shared("embedding", embedding, 1))


def _cosine_similarity(embedding, output, targets):
    norms = jnp.linalg.norm(output, axis=-1) * jnp.linalg.norm(embedding, axis=-1)
    return jnp.sum(output * embedding, axis=-1) / jnp.maximum(norms, 1e-12)


def pixels(mask=None):
    """For segmentation, output `[n, h, w, k]`: the target class's logits, summed over the pixels of `mask`.

    `mask` is `[h, w]`; without it, all pixels count.

    Example:
      >>> pixels()(jnp.ones((1, 2, 2, 3)), jnp.array([1]))
      Array([4.], dtype=float32)
    """
    return Partial(_pixels, jnp.ones(()) if mask is None else _shared("mask", mask, 2))


def _pixels(mask, output, targets):
    if output.ndim != 4:
        raise ValueError(f"The model returns an array {output.shape} where score.pixels expects [n, h, w, k].")
    return jnp.sum(_pick(output, targets[:, None, None, None])[..., 0] * mask, axis=(1, 2))
