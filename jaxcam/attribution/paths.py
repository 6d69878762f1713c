"""Path methods: the gradient integrated on the way from a baseline to the image.

`integral` sums `gradient * way` over the steps of the paths; a method is where its path runs: straight from one
baseline, straight from many, or from blurred to sharp. The attributions of an image sum to the score's difference
between the path's ends. Points are made a chunk of steps at a time, for all images, so memory does not grow with the
number of steps.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcam._array import EXACT, blur
from jaxcam._checks import choice, is_several, picked, samples_of
from jaxcam._engine import chunked_map, chunked_sum
from jaxcam._scores import chosen, gradients_of_copies, scores, scores_of_copies
from jaxcam._typing import Attributions, Baseline, Explained, Images, Key, Score, Targets
from jaxcam.attribution._method import as_method
from jaxcam.score import logit
from jaxcam.taps import Tap

BORDERS = ("inside", "zeros")


class Paths(NamedTuple):
    """What a method gathers along its paths."""

    count: int = 1  # baselines, or draws
    starts: Any = None  # a function: where paths `[m]` begin, `[1 or n, 1 or m, *space, c]`
    is_one: bool = False  # and has one delta, `[n]`, where others have `[n, count]`
    multiply_by_inputs: bool = True
    return_delta: bool = False


_quadrature = cache(np.polynomial.legendre.leggauss)  # of 500 points it takes longer than the rest of a trace


def integral(
    model, images, targets, curve: Callable, num_steps: int, *, score, chunk_size, paths=None, slopes=None
) -> Any:
    """`sum_s share_s gradient(point_s) way_s` over the steps of each path, float32 like the images.

    `points, shares, ways = curve(steps[m])`, of `[n, m, *space, c]`, `[m]` and `[1 or n, 1 or m, *space, c]`; the steps
    of one path come after those of the other. `slopes(points)` may take the gradient's place. With
    `paths.return_delta` it is a pair: what the attributions of each path miss is their sum less the score's difference.
    """
    targets, paths = chosen(model, images, targets), paths or Paths()

    def gradient(points):
        return gradients_of_copies(model, points.astype(images.dtype), targets, score)

    def add(steps, weights):
        points, shares, ways = curve(steps)
        terms = (slopes or gradient)(points) * of_each(shares * weights, images)
        products = terms * ways
        total = jnp.sum(products if paths.multiply_by_inputs else terms, axis=1)
        if not paths.return_delta:
            return total
        path = jax.nn.one_hot(steps // num_steps, paths.count, dtype=jnp.float32)
        return total, jnp.matmul(products.sum(range(2, products.ndim)), path, precision=EXACT)

    def before(indices):
        starts = jnp.broadcast_to(paths.starts(indices), (images.shape[0], len(indices), *images.shape[1:]))
        return scores_of_copies(model, starts.astype(images.dtype), targets, score)

    found = chunked_sum(add, paths.count * num_steps, images, chunk_size)
    if not paths.return_delta:
        return found
    attributions, sums = found
    after = scores(score, model(images), targets)[:, None]
    deltas = sums * paths.count - (after - chunked_map(before, paths.count, images, chunk_size))
    return attributions, deltas[:, 0] if paths.is_one else deltas


def straight_line(images, starts, steps, num_steps: int):
    """Points, shares and way of a Gauss-Legendre quadrature from `starts [1 or n, 1 or m, *space, c]` to the images."""
    nodes, weights = _quadrature(num_steps)
    places, shares = (jnp.asarray(values / 2, jnp.float32)[steps] for values in (nodes + 1, weights))
    way = images.astype(jnp.float32)[:, None] - starts
    return starts + of_each(places, images) * way, shares, way


def of_each(values, images):
    """A number for each of `m` copies, to multiply copies `[n, m, *space, c]` of the images with."""
    return values.reshape(-1, *(1,) * (images.ndim - 1))


@as_method
def integrated_gradients(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Baseline = None,
    num_steps: int = 50,
    multiply_by_inputs: bool = True,
    return_delta: bool = False,
    chunk_size: int | None = None,
) -> Explained:
    """Integrated gradients: the gradient averaged on the straight line from a baseline to the image.

    `attribution = (image - baseline) * integral_0^1 gradient(baseline + a (image - baseline)) da`, by Gauss-Legendre
    quadrature. The attributions of an image sum to `score(image) - score(baseline)`; of several baselines, their mean.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      baseline: where the line begins: `[n, *space, c]`, a number, an array that broadcasts to the images, or `None`
        for zeros (the mean colour of normalised images). Several are `[1 or n, m, *space, c]`.
      num_steps: points of the quadrature, for each baseline.
      multiply_by_inputs: `False` leaves the factor `image - baseline` out: the mean gradient.
      return_delta: give also what the attributions miss, `sum - (score(image) - score(baseline))`.
      chunk_size: images in one forward and backward pass; by default what suits the device. Memory does not grow with
        `num_steps`.

    Returns:
      Attributions `float32[n, *space, c]`, in units of the score. With `return_delta` a pair of them and the deltas
      `float32[n]`, or `[n, m]` of several baselines, which do not depend on `multiply_by_inputs`.

    Raises:
      ValueError: images, targets or baseline of a wrong shape, type or range; `num_steps` or `chunk_size` below one.

    When: contributions that add up to the score's difference from a baseline. Not without a thought about the baseline:
    what looks like it gets nothing.

    Reference: Sundararajan et al. 2017, Axiomatic Attribution for Deep Networks, https://arxiv.org/abs/1703.01365

    Example:
      >>> attributions = jaxcam.integrated_gradients(model, images, num_steps=32)
    """
    starts = samples_of(baseline, images).astype(jnp.float32)
    count, is_one = starts.shape[1], not is_several(baseline, images)

    def curve(steps):
        points, shares, ways = straight_line(images, picked(starts, steps // num_steps), steps % num_steps, num_steps)
        return points, shares / count, ways

    paths = Paths(count, partial(picked, starts), is_one, multiply_by_inputs, return_delta)
    return integral(model, images, targets, curve, num_steps, score=score, chunk_size=chunk_size, paths=paths)


@as_method
def expected_gradients(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    baselines: Baseline = None,
    num_samples: int = 50,
    multiply_by_inputs: bool = True,
    return_delta: bool = False,
    chunk_size: int | None = None,
    key: Key = 0,
) -> Explained:
    """Expected gradients (gradient SHAP): integrated gradients averaged over many baselines, by sampling.

    `attribution = E_{b, a} [(image - b) * gradient(b + a (image - b))]`, `b` drawn from the baselines, `a` from [0, 1].

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      baselines: what they are drawn from, whichever the image: `[m, *space, c]`, such as training images; for each
        image its own, `[n, m, *space, c]`; a number, for this one alone; or `None` for normal noise, as normalised
        images have a mean of zero and a deviation of one.
      num_samples: draws of baseline and place; the same ones for every image. The places are stratified.
      multiply_by_inputs: `False` leaves the factor `image - b` out: the mean gradient.
      return_delta: give also what each draw misses, `sum - (score(image) - score(b))`; only their mean is small.
      chunk_size: images in one forward and backward pass; by default what suits the device.
      key: a seed, or a key such as `jax.random.key(0)`.

    Returns:
      Attributions `float32[n, *space, c]`; they sum to the score less its mean over the baselines, in expectation.
      With `return_delta` a pair of them and the deltas `float32[n, num_samples]`.

    Raises:
      ValueError: images, targets or baselines of a wrong shape, type or range; counts below one.

    When: integrated gradients without one arbitrary baseline, given examples of ordinary images. Not with few samples:
    the sum holds on average only.

    Reference: Erion et al. 2021, Improving performance of deep learning models with axiomatic attribution priors and
    expected gradients, https://arxiv.org/abs/1906.10670

    Example:
      >>> attributions = jaxcam.expected_gradients(model, images, num_samples=20)
    """
    draw, place = jax.random.split(key)
    shape, places = images.shape[1:], _places(place, num_samples)
    if baselines is not None:
        rows = jnp.asarray(baselines, images.dtype)
        rows = (jnp.broadcast_to(rows, (1, 1, *shape)) if rows.ndim == 0 else rows).astype(jnp.float32)
        picks = jax.random.randint(draw, (num_samples,), 0, rows.shape[1], jnp.int32)

    def drawn(samples):
        if baselines is not None:
            return picked(rows, picks[samples])
        keys = jax.vmap(partial(jax.random.fold_in, draw))(samples)
        return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)[None]

    def curve(samples):
        start = drawn(samples)
        way = images.astype(jnp.float32)[:, None] - start
        return start + of_each(places[samples], images) * way, jnp.full(len(samples), 1 / num_samples, jnp.float32), way

    paths = Paths(num_samples, drawn, False, multiply_by_inputs, return_delta)
    return integral(model, images, targets, curve, 1, score=score, chunk_size=chunk_size, paths=paths)


def _places(key, num_samples: int):
    """One place in each of equal parts of [0, 1], in random order."""
    offsets = jax.random.uniform(key, (num_samples,), jnp.float32)
    places = (jnp.arange(num_samples, dtype=jnp.float32) + offsets) / num_samples
    return jax.random.permutation(jax.random.fold_in(key, 1), places)


@as_method
def blur_integrated_gradients(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    max_sigma: float | int | None = None,
    border: str = "inside",
    num_steps: int = 50,
    chunk_size: int | None = None,
) -> Attributions:
    """Blur integrated gradients: integrated from the blurred image to the sharp one, without a baseline colour.

    `attribution = integral_{max_sigma}^0 gradient(blur(image, s)) * d blur(image, s) / ds ds`, by the midpoint rule on
    widths that grow quadratically. The attributions sum to `score(image) - score(blur(image, max_sigma))`. At the
    border the blur averages what is inside of the image, so that it makes no edges; the code of the paper's authors
    lets the image go on in zeros, which `border="zeros"` does.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      max_sigma: standard deviation of the strongest Gaussian blur, in pixels; `None` is half the longest side.
      border: `"inside"` normalises the blur's weights inside the image; with `"zeros"` the image goes on in zeros.
      num_steps: points of the quadrature.
      chunk_size: images in one forward and backward pass; by default what suits the device.

    Returns:
      Attributions `float32[n, *space, c]`, in units of the score.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; counts below one; `max_sigma` not positive;
        an unknown `border`.

    When: integrated gradients where no colour means nothing. Not for classes that a blurred image still shows.

    Reference: Xu et al. 2020, Attribution in Scale and Space, https://arxiv.org/abs/2004.03383

    Example:
      >>> attributions = jaxcam.blur_integrated_gradients(model, images, num_steps=32)
    """
    choice(BORDERS, border=border)
    widest = max(images.shape[1:-1]) / 2 if max_sigma is None else max_sigma

    def at(times):  # from 0, the strongest blur, to 1, the image
        return jax.vmap(lambda sigma: blur(images, sigma, border), out_axes=1)(widest * (1 - times) ** 2)

    def curve(steps):
        """The image at the middle of each step, and the change that the whole step makes: exact in sum."""
        steps = steps.astype(jnp.float32)
        return at((steps + 0.5) / num_steps), jnp.ones_like(steps), at((steps + 1) / num_steps) - at(steps / num_steps)

    return integral(model, images, targets, curve, num_steps, score=score, chunk_size=chunk_size)
