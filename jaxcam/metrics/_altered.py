"""What the metrics that alter images share: many altered copies of each image, and the score of every one.

`scores_of` builds the copies inside the chunk in which the model sees them, so nothing holds them all; `fill` makes
what stands in the place of pixels that are taken away. Random numbers are the same for every image, so that no image
influences another one's value.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcam import _typing
from jaxcam._array import blur
from jaxcam._checks import check_baseline, filled
from jaxcam._engine import chunked_map
from jaxcam._errors import unknown
from jaxcam._scores import predicted, scores, scores_of_copies
from jaxcam.metrics._checks import Values, check_heatmaps, prepare_one
from jaxcam.taps import Tap

Model = Tap | Callable
Fill = str | _typing.Baseline


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


def prepare_maps(model, images, targets, heatmaps, *, unit: bool = False):
    model, images, targets = prepare_one(model, images, targets)
    return model, images, targets, check_heatmaps(heatmaps, images, unit=unit)


def looked_at(model, images, targets, score):
    """The targets, or what the model says of the unaltered images; and the score of these."""
    output = model(images)
    targets = predicted(output) if targets is None else targets
    return targets, scores(score, output, targets)


def scores_of(model, images, targets, score, altered, count, chunk_size):
    """The scores `float32[n, count]` of the copies `altered(indices[m]) -> [n, m, *space, c]`."""

    def one_chunk(indices):
        return scores_of_copies(model, altered(indices), targets, score)

    return chunked_map(one_chunk, count, images, chunk_size)


def exchanged(images, fills, where):
    """Copies of the images, `fills` in the place of the pixels `where [n or 1, m, *space]`: `[n, m, *space, c]`."""
    return jnp.where(where[..., None], fills[:, None], images[:, None])


def removal_order(heatmaps):
    """Each pixel's place in the order from the highest to the lowest, `int32[n, *space]`."""
    pixels = heatmaps.reshape(heatmaps.shape[0], -1)
    order = jnp.argsort(pixels, -1, descending=True, stable=True)
    return jnp.argsort(order, -1).astype(jnp.int32).reshape(heatmaps.shape)


def _mean(images, _key):
    return images.mean(_space(images), keepdims=True)


def _blurred(images, _key):
    """A Gaussian of 1/20 of the shortest side, whose weights at the edges are those of the pixels that exist."""
    return blur(images, min(images.shape[1:-1]) / 20)


def _noisy(images, key):
    mean, deviation = _mean(images, key), images.std(_space(images), keepdims=True)
    return mean + deviation * jax.random.normal(key, images.shape[1:], jnp.float32)


def _space(images):
    return tuple(range(1, images.ndim - 1))


NAMED = {"zero": lambda images, key: jnp.zeros_like(images), "mean": _mean, "blur": _blurred, "noise": _noisy}


def check_fill(baseline, images):
    """`check_baseline`, where a baseline can also be one of the named ones."""
    if not isinstance(baseline, str):
        return check_baseline(baseline, images)
    if baseline not in NAMED:
        raise unknown("baseline", baseline, NAMED, "It can also be a number, an array or None (zeros).")
    return baseline


def fill(baseline, images, key):
    """What takes the place of altered pixels, `[n, *space, c]` of the images' type, by a checked baseline."""
    if isinstance(baseline, str):
        baseline = NAMED[baseline](images.astype(jnp.float32), key).astype(images.dtype)
    return filled(baseline, images)
