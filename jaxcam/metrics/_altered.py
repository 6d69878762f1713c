"""What the metrics that alter images share: many altered copies of each image, and the score of every one.

`scores_of` builds the copies inside the chunk in which the model sees them, so nothing holds them all; `fill` makes
what stands in the place of pixels that are taken away, and a `Change` what is added to pixels. Random numbers are the
same for every image, so that no image influences another one's value.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxcam._array import along, blur
from jaxcam._checks import check_baseline, choice, filled, number, random_key
from jaxcam._engine import chunked_map, engine
from jaxcam._noise import Noise, check_noise, deviations
from jaxcam._scores import chosen, predicted, scores, scores_of_copies
from jaxcam._typing import Baseline
from jaxcam.attribution.occlusion import covered, drops_without
from jaxcam.metrics._checks import Values, check_heatmaps, or_nan, prepare_one
from jaxcam.taps import Tap

Model = Tap | Callable
Fill = str | Baseline


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


class Regions(NamedTuple):
    """Parts of the images that are altered as one.

    Attributes:
      labels: which one each pixel belongs to, `int32[*space]` or `int32[n, *space]`.
      count: how many there are; labels are below it.
      mean: whether a region is as high as the mean of the map in it, and not as its sum.
    """

    labels: jax.Array
    count: int
    mean: bool = False


def prepare_maps(model, images, targets, heatmaps, *, unit: bool = False):
    model, images, targets = prepare_one(model, images, targets)
    return model, images, targets, check_heatmaps(heatmaps, images, unit=unit)


def prepare_altered(model, images, targets, heatmaps, baseline, key, *, unit: bool = False):
    """`prepare_maps`, with what takes the place of altered pixels, and the key of its noise."""
    model, images, targets, heatmaps = prepare_maps(model, images, targets, heatmaps, unit=unit)
    return model, images, targets, heatmaps, check_fill(baseline, images), random_key(key)


def prepare_method(model, images, targets):
    """What is wrong with the arguments, and the classes to explain: those given, or what the model predicts."""
    model, images, targets = prepare_one(model, images, targets)
    return model, images, classes(model, images, targets)


@engine
def classes(model, images, targets):
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


def let_through(images, heatmaps, fills):
    """The images as far as the heatmaps, in [0, 1], show them, and `fills` for the rest."""
    shown = heatmaps[..., None].astype(images.dtype)
    return shown * images + (1 - shown) * fills


def removal_order(heatmaps):
    """Each pixel's place in the order from the highest to the lowest, `int32[n, *space]`."""
    pixels = heatmaps.reshape(heatmaps.shape[0], -1)
    order = jnp.argsort(pixels, -1, descending=True, stable=True)
    return jnp.argsort(order, -1).astype(jnp.int32).reshape(heatmaps.shape)


def between(ranks, low, high):
    """The pixels whose rank is from `low [m]` to before `high [m]`, of `ranks [n, *space]`: `bool[n, m, *space]`."""
    low, high = (each.reshape(1, -1, *(1,) * (ranks.ndim - 1)) for each in (low, high))
    return (ranks[:, None] >= low) & (ranks[:, None] < high)


def beside(values, axis: int):
    """What comes before each value along an axis, and what comes after it: zeros beyond the edges."""
    edges = [(int(each == axis),) * 2 for each in range(values.ndim)]
    padded, size = jnp.pad(values, edges), values.shape[axis]
    return [jax.lax.slice_in_dim(padded, start, start + size, axis=axis) for start in (0, 2)]


def pixel_counts(images, num_steps: int) -> tuple[int, ...]:
    """How many pixels the first `i` of `num_steps` equal shares of an image hold, for `i` from zero."""
    pixels = math.prod(images.shape[1:-1])
    return tuple(int(round(each)) for each in np.arange(num_steps + 1) / num_steps * pixels)


@engine
def curve_engine(
    model, images, targets, heatmaps, baseline, key, regions=None, *, score, formula, counts, chunk_size, insert=False
):
    """The score of copies in which each of `counts` of the highest pixels, or `regions`, are altered: a `Curve`.

    The baseline takes their place; with `insert`, they are put into the baseline. The value of the curve is
    `formula(scores [n, points], shares [n or 1, points]) -> [n]`, with shares of what an image has.
    """
    targets, fills = chosen(model, images, targets), fill(baseline, images, key)
    start, end = (fills, images) if insert else (images, fills)
    ranks, present, total = _removal_order_of(heatmaps, regions)
    highest = jnp.asarray(counts, jnp.int32)

    def altered(indices):
        return exchanged(start, end, between(ranks, jnp.zeros_like(indices), highest[indices]))

    scores = or_nan(scores_of(model, images, targets, score, altered, len(counts), chunk_size), heatmaps)
    counts = highest.astype(jnp.float32)
    shares = jnp.minimum(counts / present[:, None], 1)  # beyond the last region nothing changes
    return Curve(counts / total, scores, formula(scores, shares))


def _removal_order_of(heatmaps, regions: Regions | None):
    """For each pixel its place, or its region's, from the highest to the lowest; how many an image has, and may have.

    Regions that an image lacks come last.
    """
    if regions is None:
        pixels = math.prod(heatmaps.shape[1:])
        return removal_order(heatmaps), jnp.array([pixels], jnp.float32), pixels
    labels = jnp.broadcast_to(regions.labels, heatmaps.shape).reshape(heatmaps.shape[0], -1)
    total = jax.vmap(partial(jax.ops.segment_sum, num_segments=regions.count))
    sizes = total(jnp.ones(labels.shape, jnp.float32), labels)
    heights = total(heatmaps.reshape(labels.shape), labels) / (jnp.maximum(sizes, 1) if regions.mean else 1)
    places = removal_order(jnp.where(sizes > 0, heights, -jnp.inf))
    ranks = jnp.take_along_axis(places, labels, -1).reshape(heatmaps.shape)
    return ranks, jnp.sum(sizes > 0, -1, jnp.float32), regions.count


@engine
def patches_engine(model, images, targets, heatmaps, baseline, key, *, score, formula, window, stride, chunk_size):
    """A formula of the map's sum in each patch, and of the drop of the score without it: `[n, patches]` both."""
    sides = list(map(covered, images.shape[1:-1], window, stride))
    drops = drops_without(model, images, targets, fill(baseline, images, key), sides, score, chunk_size)
    return formula(*(each.reshape(len(images), -1) for each in (along(heatmaps, sides, 1), drops)))


def area_under(scores, shares):
    """The area under each curve, by the trapezoid rule, `[n]`."""
    return jnp.trapezoid(scores, shares, axis=-1)


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
    choice(NAMED, "It can also be a number, an array or None (zeros).", baseline=baseline)
    return baseline


def fill(baseline, images, key):
    """What takes the place of altered pixels, `[n, *space, c]` of the images' type, by a checked baseline."""
    if isinstance(baseline, str):
        baseline = NAMED[baseline](images.astype(jnp.float32), key).astype(images.dtype)
    return filled(baseline, images)


class Change(NamedTuple):
    """How images are changed at random: a kind or a function, and how much."""

    perturbation: str | Callable
    radius: float | jax.Array
    noise: Noise

    def __call__(self, key, images):
        """The change of each image, `float32[n or 1, *space, c]`."""
        change = self.perturbation
        if callable(change):
            return jax.vmap(lambda image: change(key, image))(images).astype(jnp.float32)
        if change == "uniform":
            return jax.random.uniform(key, images.shape[1:], jnp.float32, -self.radius, self.radius)
        return deviations(images, self.noise) * jax.random.normal(key, images.shape[1:], jnp.float32)


def check_perturbation(perturbation, radius, noise, deviation, kinds=("uniform", "noise")) -> Change:
    """The change that was asked for, or the error of what is wrong with it."""
    number(least=0, radius=radius)
    if not callable(perturbation):
        choice(kinds, "It can also be a function.", perturbation=perturbation)
    return Change(perturbation, radius, check_noise(noise, deviation))
