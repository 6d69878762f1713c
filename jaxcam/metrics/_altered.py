"""What the metrics that alter images share: many altered copies of each image, and the score of every one.

`scores_of` builds the copies inside the chunk in which the model sees them, so nothing holds them all; `fill` makes
what stands in the place of pixels that are taken away. Random numbers are the same for every image, so that no image
influences another one's value.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcam import _typing
from jaxcam._array import blur
from jaxcam._checks import check_baseline, filled
from jaxcam._engine import chunked_map, engine
from jaxcam._errors import unknown
from jaxcam._scores import chosen, predicted, scores, scores_of_copies
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


def prepare_method(model, images, targets):
    """What is wrong with the arguments, and the classes to explain: those given, or what the model predicts."""
    model, images, targets = prepare_one(model, images, targets)
    return model, images, _classes(model, images, targets)


@engine
def _classes(model, images, targets):
    return chosen(model, images, targets)


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


def region_order(heatmaps, regions, count, *, mean: bool = False):
    """For each pixel, its region's place in the order of the regions' sums (or means), the highest first.

    `regions` are labels `int32[*space]` or `int32[n, *space]` below `count`. Labels that an image lacks come last; how
    many it has is the second result, `[n]`.
    """
    regions = jnp.broadcast_to(regions, heatmaps.shape).reshape(heatmaps.shape[0], -1)
    total = jax.vmap(partial(jax.ops.segment_sum, num_segments=count))
    sizes = total(jnp.ones(regions.shape, jnp.float32), regions)
    sums = total(heatmaps.reshape(regions.shape), regions) / (jnp.maximum(sizes, 1) if mean else 1)
    places = removal_order(jnp.where(sizes > 0, sums, -jnp.inf))
    return jnp.take_along_axis(places, regions, -1).reshape(heatmaps.shape), jnp.sum(sizes > 0, -1)


def scores_by_rank(model, images, targets, score, ranks, start, end, counts, chunk_size):
    """The score of copies of `start`, in which `end` has the pixels of rank below each of `counts`: `[n, counts]`."""
    counts = jnp.asarray(counts, jnp.int32)

    def altered(indices):
        return exchanged(start, end, ranks[:, None] < counts[indices].reshape(1, -1, *(1,) * (images.ndim - 2)))

    return scores_of(model, images, targets, score, altered, len(counts), chunk_size)


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
