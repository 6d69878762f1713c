"""Attributions from the gradient of the score with respect to the image.

They are signed, `[n, h, w, c]`, and `heatmap` turns them into heatmaps `[n, h, w]` in [0, 1]. They need no activations,
so a plain callable `images -> logits` serves as well as a tap.
"""

from collections.abc import Callable

import jax.numpy as jnp

from jaxcam._array import normalise
from jaxcam._gradient import input_gradient
from jaxcam._inputs import check_images, check_targets, engine
from jaxcam._typing import Attributions, Heatmaps, Images, Score, Targets
from jaxcam.score import logit
from jaxcam.tap import Tap


def saliency(model: Tap | Callable, images: Images, targets: Targets = None, *, score: Score = logit) -> Attributions:
    """Saliency: the gradient of the score with respect to the image.

    `attribution = d score / d image`, signed; its absolute value is the saliency map of the paper (and of Captum).

    Args:
      model: a tap or any callable `images -> logits`.
      images: `float[n, h, w, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class.
      score: the explained scalar, `(logits[n, k], targets[n]) -> [n]`.

    Returns:
      Attributions `float32[n, h, w, c]`, in units of score per unit of the normalised pixel.

    Raises:
      ValueError: images or targets of a wrong shape, type or range.

    Reference: Simonyan et al. 2014, Deep Inside Convolutional Networks, https://arxiv.org/abs/1312.6034

    Example:
      >>> attributions = jaxcam.saliency(model, images)
      >>> heatmaps = jaxcam.heatmap(attributions)
    """
    images = check_images(images)
    return _saliency_engine(model, images, check_targets(model, images, targets), score=score)


@engine(static=("score",))
def _saliency_engine(model, images, targets, *, score):
    return input_gradient(model, images, targets, score).astype(jnp.float32)


def input_x_gradient(
    model: Tap | Callable, images: Images, targets: Targets = None, *, score: Score = logit
) -> Attributions:
    """Input times gradient: a first-order estimate of each pixel's part in the score.

    `attribution = image * d score / d image`.

    Arguments and errors are those of `saliency`; the unit is the score's.

    Reference: Shrikumar et al. 2016, Not Just a Black Box, https://arxiv.org/abs/1605.01713

    Example:
      >>> attributions = jaxcam.input_x_gradient(model, images)
    """
    return saliency(model, images, targets, score=score) * jnp.asarray(images, jnp.float32)


def heatmap(attributions, *, percentile: float | int = 100) -> Heatmaps:
    """Turns attributions into heatmaps: absolute values summed over channels, scaled to [0, 1] for each image.

    Args:
      attributions: `[n, h, w, c]` or `[n, h, w]`, signed.
      percentile: values above this percentile of an image are cut to it, unless it is zero: then few pixels hold all.
        100 keeps the ranking of all pixels; 99 makes the noisy maps of gradient methods legible.

    Returns:
      Heatmaps `float32[n, h, w]`; zeros for constant attributions.

    Raises:
      ValueError: a wrong rank, or a percentile outside (0, 100].

    Example:
      >>> heatmaps = jaxcam.heatmap(jaxcam.saliency(model, images), percentile=99)
    """
    if attributions.ndim not in (3, 4):
        raise ValueError(f"attributions has shape {attributions.shape}; it must be [n, h, w, c] or [n, h, w].")
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile is {percentile}; it must be above 0 and at most 100.")
    magnitude = jnp.abs(jnp.asarray(attributions, jnp.float32))
    magnitude = magnitude.sum(-1) if magnitude.ndim == 4 else magnitude
    if percentile < 100:
        limit = jnp.percentile(magnitude, percentile, axis=(1, 2), keepdims=True)
        magnitude = jnp.minimum(magnitude, jnp.where(limit > 0, limit, jnp.inf))
    return normalise(magnitude)
