"""Attributions from the gradient of the score with respect to the image.

They are signed, `[n, *space, c]`, and `heatmap` turns them into heatmaps `[n, *space]` in [0, 1]. They need no
activations, so a plain callable `images -> output` serves as well as a tap.
"""

from collections.abc import Callable

import jax.numpy as jnp

from jaxcam._array import normalize
from jaxcam._checks import number
from jaxcam._scores import input_gradient
from jaxcam._typing import Attributions, Heatmaps, Images, Score, Targets
from jaxcam.attribution._method import as_method
from jaxcam.score import logit
from jaxcam.taps import Tap


@as_method
def saliency(model: Tap | Callable, images: Images, targets: Targets = None, *, score: Score = logit) -> Attributions:
    """Saliency: the gradient of the score with respect to the image.

    `attribution = d score / d image`, signed; its absolute value is the saliency map of the paper (and of Captum).

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.

    Returns:
      Attributions `float32[n, *space, c]`, in units of score per unit of the normalised pixel.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an output that the score cannot read.

    When: what the score is sensitive to, pixel by pixel, at the cost of one gradient. Not for where the object is: the
    hottest pixel is a poor guess.

    Reference: Simonyan et al. 2014, Deep Inside Convolutional Networks, https://arxiv.org/abs/1312.6034

    Example:
      >>> attributions = jaxcam.saliency(model, images)
      >>> heatmaps = jaxcam.heatmap(attributions)
    """
    return input_gradient(model, images, targets, score)


@as_method
def input_x_gradient(
    model: Tap | Callable, images: Images, targets: Targets = None, *, score: Score = logit
) -> Attributions:
    """Input times gradient: a first-order estimate of each pixel's part in the score.

    `attribution = image * d score / d image`.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.

    Returns:
      Attributions `float32[n, *space, c]`, in units of the score.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an output that the score cannot read.

    When: a quick signed estimate for models without bias terms. Not for images: dark pixels get nothing whatever they
    mean.

    Reference: Shrikumar et al. 2016, Not Just a Black Box, https://arxiv.org/abs/1605.01713

    Example:
      >>> attributions = jaxcam.input_x_gradient(model, images)
    """
    return input_gradient(model, images, targets, score) * images.astype(jnp.float32)


def heatmap(attributions, images=None, *, percentile: float | int = 99) -> Heatmaps:
    """Turns attributions into heatmaps: absolute values summed over channels, scaled to [0, 1] for each image.

    `heatmap = (s - min s) / (max s - min s)` with `s = min(sum_c |attribution|, its given percentile)`.

    Args:
      attributions: signed, `[n, h, w, c]` or `[n, h, w]`; with `images`, of any number of axes of space, and with an
        axis of targets after that of images.
      images: those that were explained, `[n, *space, c]`, to tell the axes apart where there are not two of space.
      percentile: values above this percentile of an image are cut to it, unless it is zero: then few pixels hold all.
        99 makes the noisy maps of gradient methods legible; 100 keeps the ranking of all pixels.

    Returns:
      Heatmaps `float32[n, *space]` (or `[n, t, *space]`); zeros for constant attributions.

    Raises:
      ValueError: attributions that do not fit the images, a wrong rank, or a percentile outside (0, 100].

    Reference: Smilkov et al. 2017, SmoothGrad: removing noise by adding noise (section 3.1, visualisation),
    https://arxiv.org/abs/1706.03825

    Example:
      >>> heatmaps = jaxcam.heatmap(jaxcam.saliency(model, images), percentile=100)
    """
    number(above=0, most=100, percentile=percentile)
    if images is None:
        if attributions.ndim not in (3, 4):
            raise ValueError(
                f"attributions has shape {attributions.shape}; it must be [n, h, w, c] or [n, h, w]. Where space has "
                "another number of axes, or there are several targets, pass the images too: "
                "heatmap(attributions, images)."
            )
        space, has_channels = 2, attributions.ndim == 4
    else:
        space, shape = images.ndim - 2, attributions.shape
        has_channels = shape[1:] != images.shape[1:-1] and shape[-space - 1 : -1] == images.shape[1:-1]
        leading = shape[: len(shape) - space - has_channels]
        if leading[:1] != images.shape[:1] or len(leading) > 2 or shape[len(leading) :][:space] != images.shape[1:-1]:
            raise ValueError(f"attributions has shape {shape}, which does not fit images {images.shape}.")
    magnitude = jnp.abs(jnp.asarray(attributions, jnp.float32))
    magnitude = magnitude.sum(-1) if has_channels else magnitude
    first = magnitude.ndim - space
    if percentile < 100:
        axes = tuple(range(first, magnitude.ndim))
        limit = jnp.percentile(magnitude, percentile, axis=axes, keepdims=True)
        magnitude = jnp.minimum(magnitude, jnp.where(limit > 0, limit, jnp.inf))
    return normalize(magnitude, first)
