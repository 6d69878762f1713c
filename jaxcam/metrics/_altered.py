"""The engine of the metrics that alter images: many altered copies of each image, and the score of every one.

`scores_of` builds the copies inside the chunk in which the model sees them, so nothing holds them all; `fill_for` makes
what stands in the place of pixels that are taken away. Random numbers are the same for every image, so that no image
influences another one's value.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxcam._errors import unknown
from jaxcam._inputs import check_baseline, check_images, check_targets, predicted
from jaxcam._loops import chunked_map
from jaxcam.metrics._checks import Values, check_heatmaps
from jaxcam.tap import Tap

Model = Tap | Callable
Baseline = str | float | int | Float[Array, "..."] | Float[np.ndarray, "..."]


class Curve(NamedTuple):
    """A metric over a growing share of altered pixels.

    Attributes:
      fractions: share of the pixels that are altered at each point, `[points]`.
      scores: the score there, `[n, points]`.
      value: the metric itself, `[n]`.
    """

    fractions: Float[Array, "points"]
    scores: Float[Array, "n points"]
    value: Values


def check_all(model, images, heatmaps, targets, *, unit: bool = False):
    images = check_images(images)
    return images, check_heatmaps(heatmaps, images, unit=unit), check_targets(model, images, targets)


def random_key(key):
    return jax.random.key(0) if key is None else key


def classes(model, images, targets, chunk_size):
    """The targets, or the classes predicted for the unaltered images."""
    if targets is not None:
        return targets
    return chunked_map(lambda image: predicted(model(images[image])), (len(images),), chunk_size)


def scores_of(model, targets, score, altered, shape, chunk_size):
    """The scores `float32[n, ...]` of the images `altered(image, ...)` for all indices of `shape`."""

    def one_chunk(image, *rest):
        return score(model(altered(image, *rest)), targets[image]).astype(jnp.float32)

    return chunked_map(one_chunk, shape, chunk_size)


def original_scores(model, images, targets, score, chunk_size):
    return scores_of(model, targets, score, lambda image: images[image], (len(images),), chunk_size)


def removal_order(heatmaps):
    """Each pixel's place in the order from the highest to the lowest, `int[n, h, w]`."""
    flat = heatmaps.reshape(len(heatmaps), -1)
    order = jnp.argsort(flat, -1, descending=True, stable=True)
    return jnp.argsort(order, -1).reshape(heatmaps.shape)


def _blurred(images, _key):
    """A Gaussian of 1/20 of the shorter side, whose weights at the edges are those of the pixels that exist."""
    sigma = min(images.shape[1:3]) / 20
    rows, columns = (_gaussian(size, sigma) for size in images.shape[1:3])
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("Hh,nhwc,Ww->nHWc", rows, images.astype(jnp.float32), columns, precision=exact)


def _gaussian(size, sigma):
    places = np.arange(size)
    weights = np.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def _noisy(images, key):
    values = images.astype(jnp.float32)
    mean, deviation = values.mean((1, 2), keepdims=True), values.std((1, 2), keepdims=True)
    return mean + deviation * jax.random.normal(key, images.shape[1:])


BASELINES = {
    "zero": lambda images, key: jnp.zeros_like(images),
    "mean": lambda images, key: images.mean((1, 2), keepdims=True),
    "blur": _blurred,
    "noise": _noisy,
}


def fill_for(baseline, images, key):
    """What takes the place of altered pixels, `[n, h, w, c]`."""
    if isinstance(baseline, str):
        if baseline not in BASELINES:
            raise unknown("baseline", baseline, BASELINES, "It can also be a number or an array.")
        baseline = BASELINES[baseline](images, random_key(key))
    return check_baseline(baseline, images)
