"""Path methods: the gradient integrated on the way from a baseline to the image.

`integral` sums `gradient * movement` over the steps of a path; a method is where its path runs: straight from one
baseline, straight from many, from blurred to sharp, or wherever the gradient is smallest. The attributions of an image
sum to the score's difference between the path's ends. Points are made a chunk of steps at a time, for all images, so
memory does not grow with the number of steps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxcam._array import blur
from jaxcam._checks import all_finite, as_array, check_baseline, filled, number, positive, prepare, random_key
from jaxcam._engine import chunked_sum, engine, scan
from jaxcam._errors import unknown
from jaxcam._scores import chosen, gradients_of_copies, input_gradient
from jaxcam._typing import Attributions, Baseline, Images, Key, Score, Targets
from jaxcam.score import logit
from jaxcam.taps import Tap

BORDERS = ("inside", "zeros")


def integral(model, images, targets, curve: Callable, count: int, *, score, chunk_size):
    """`sum_s gradient(point_s) * movement_s` over `count` steps, float32 like the images.

    `points, movements = curve(steps[m])`, each `[n, m, *space, c]`.
    """
    targets = chosen(model, images, targets)

    def add(steps, weights):
        points, movements = curve(steps)
        gradients = gradients_of_copies(model, points.astype(images.dtype), targets, score)
        return jnp.sum(gradients * movements * of_each(weights, images), axis=1)

    return chunked_sum(add, count, images, chunk_size)


def straight_line(images, starts, steps, num_steps: int):
    """Points and movements of a Gauss-Legendre quadrature from `starts [n, 1 or m, *space, c]` to the images."""
    nodes, weights = np.polynomial.legendre.leggauss(num_steps)
    places, shares = (jnp.asarray(values / 2, jnp.float32)[steps] for values in (nodes + 1, weights))
    way = images.astype(jnp.float32)[:, None] - starts
    return starts + of_each(places, images) * way, of_each(shares, images) * way


def of_each(values, images):
    """A number for each of `m` copies, to multiply copies `[n, m, *space, c]` of the images with."""
    return values.reshape(-1, *(1,) * (images.ndim - 1))


def integrated_gradients(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Baseline = None,
    num_steps: int = 50,
    chunk_size: int | None = None,
) -> Attributions:
    """Integrated gradients: the gradient averaged on the straight line from a baseline to the image.

    `attribution = (image - baseline) * integral_0^1 gradient(baseline + a (image - baseline)) da`, by Gauss-Legendre
    quadrature. The attributions of an image sum to `score(image) - score(baseline)`.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      baseline: where the line begins: `[n, *space, c]`, a number, an array that broadcasts to the images, or `None`
        for zeros (the mean colour of normalised images).
      num_steps: points of the quadrature.
      chunk_size: images in one forward and backward pass; by default what suits the device. Memory does not grow with
        `num_steps`.

    Returns:
      Attributions `float32[n, *space, c]`, in units of the score.

    Raises:
      ValueError: images, targets or baseline of a wrong shape, type or range; `num_steps` or `chunk_size` below one.

    Reference: Sundararajan et al. 2017, Axiomatic Attribution for Deep Networks, https://arxiv.org/abs/1703.01365

    Example:
      >>> attributions = jaxcam.integrated_gradients(model, images, num_steps=32)
    """
    model, images, targets = prepare(model, images, targets)
    positive(num_steps=num_steps, chunk_size=chunk_size)
    baseline = check_baseline(baseline, images)
    options = {"score": score, "num_steps": num_steps, "chunk_size": chunk_size}
    return _integrated_engine(model, images, targets, baseline, **options)


@engine
def _integrated_engine(model, images, targets, baseline, *, score, num_steps, chunk_size):
    start = filled(baseline, images).astype(jnp.float32)[:, None]

    def curve(steps):
        return straight_line(images, start, steps, num_steps)

    return integral(model, images, targets, curve, num_steps, score=score, chunk_size=chunk_size)


def expected_gradients(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    baselines: Baseline = None,
    num_samples: int = 50,
    chunk_size: int | None = None,
    key: Key = 0,
) -> Attributions:
    """Expected gradients (gradient SHAP): integrated gradients averaged over many baselines, by sampling.

    `attribution = E_{b, a} [(image - b) * gradient(b + a (image - b))]`, `b` drawn from the baselines, `a` from [0, 1].

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      baselines: what they are drawn from, whichever the image: `[m, *space, c]`, such as training images; a number,
        for this one alone; or `None` for normal noise, as normalised images have a mean of zero and a deviation of
        one.
      num_samples: draws of baseline and place; the same ones for every image. The places are stratified.
      chunk_size: images in one forward and backward pass; by default what suits the device.
      key: a seed, or a key such as `jax.random.key(0)`.

    Returns:
      Attributions `float32[n, *space, c]`; they sum to the score less its mean over the baselines, in expectation.

    Raises:
      ValueError: images, targets or baselines of a wrong shape, type or range; counts below one.

    Reference: Erion et al. 2021, Improving performance of deep learning models with axiomatic attribution priors and
    expected gradients, https://arxiv.org/abs/1906.10670

    Example:
      >>> attributions = jaxcam.expected_gradients(model, images, num_samples=20)
    """
    model, images, targets = prepare(model, images, targets)
    positive(num_samples=num_samples, chunk_size=chunk_size)
    baselines, key = _check_baselines(baselines, images), random_key(key)
    options = {"score": score, "num_samples": num_samples, "chunk_size": chunk_size}
    return _expected_engine(model, images, targets, baselines, key, **options)


def _check_baselines(baselines, images):
    """Baselines as an array `[m, *space, c]`; a number, and `None`, which stands for noise, stay."""
    if baselines is None or isinstance(baselines, int | float):
        number(baselines=0 if baselines is None else baselines)
        return baselines
    shape = getattr(baselines, "shape", None)
    if shape is None or shape not in ((), (*shape[:1], *images.shape[1:])) or 0 in shape:
        given = f"is a {type(baselines).__name__}" if shape is None else f"has shape {shape}"
        one = ", ".join(map(str, images.shape[1:]))
        raise ValueError(f"baselines {given}; it must be a number, an array [m, {one}], or None for normal noise.")
    return all_finite("baselines", as_array(baselines))


@engine
def _expected_engine(model, images, targets, baselines, key, *, score, num_samples, chunk_size):
    draw, place = jax.random.split(key)
    shape = images.shape[1:]
    if baselines is not None:
        rows = jnp.asarray(baselines, images.dtype)
        rows = (jnp.broadcast_to(rows, (1, *shape)) if rows.ndim == 0 else rows).astype(jnp.float32)
        picks = jax.random.randint(draw, (num_samples,), 0, len(rows), jnp.int32)

    def drawn(sample):
        if baselines is not None:
            return rows[picks[sample]]
        return jax.random.normal(jax.random.fold_in(draw, sample), shape, jnp.float32)

    offsets = jax.random.uniform(place, (num_samples,), jnp.float32)
    places = (jnp.arange(num_samples, dtype=jnp.float32) + offsets) / num_samples
    places = jax.random.permutation(jax.random.fold_in(place, 1), places)

    def curve(samples):
        start = jax.vmap(drawn)(samples)[None]
        way = images.astype(jnp.float32)[:, None] - start
        return start + of_each(places[samples], images) * way, way / num_samples

    return integral(model, images, targets, curve, num_samples, score=score, chunk_size=chunk_size)


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

    Reference: Xu et al. 2020, Attribution in Scale and Space, https://arxiv.org/abs/2004.03383

    Example:
      >>> attributions = jaxcam.blur_integrated_gradients(model, images, num_steps=32)
    """
    model, images, targets = prepare(model, images, targets)
    positive(num_steps=num_steps, chunk_size=chunk_size)
    number(max_sigma=max_sigma)
    max_sigma = max(images.shape[1:-1]) / 2 if max_sigma is None else max_sigma
    if not max_sigma > 0:
        raise ValueError(f"max_sigma is {max_sigma}; it must be above zero.")
    if border not in BORDERS:
        raise unknown("border", border, BORDERS)
    options = {"max_sigma": max_sigma, "border": border, "num_steps": num_steps, "chunk_size": chunk_size}
    return _blur_engine(model, images, targets, score=score, **options)


@engine
def _blur_engine(model, images, targets, *, score, max_sigma, border, num_steps, chunk_size):
    def at(times):  # from 0, the strongest blur, to 1, the image
        return jax.vmap(lambda sigma: blur(images, sigma, border), out_axes=1)(max_sigma * (1 - times) ** 2)

    def curve(steps):
        """The image at the middle of each step, and the change that the whole step makes: exact in sum."""
        steps = steps.astype(jnp.float32)
        return at((steps + 0.5) / num_steps), at((steps + 1) / num_steps) - at(steps / num_steps)

    return integral(model, images, targets, curve, num_steps, score=score, chunk_size=chunk_size)


def guided_integrated_gradients(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Baseline = None,
    num_steps: int = 100,
    fraction: float | int = 0.25,
    max_distance: float | int = 0.02,
) -> Attributions:
    """Guided integrated gradients: the path moves the pixels with the smallest gradients first, which avoids noise.

    `attribution = sum_s (gradient(x_s) + gradient(x_{s+1})) / 2 * (x_{s+1} - x_s)`, where each step moves the share
    `fraction` of pixels whose gradients are smallest, until `1 / num_steps` of the way (in L1) is done. (The paper's
    code takes `gradient(x_s)` alone; the trapezoidal rule comes closer to the score's difference at the same cost.)

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      baseline: where the line begins: `[n, *space, c]`, a number, an array that broadcasts to the images, or `None`
        for zeros (the mean colour of normalised images).
      num_steps: gradients along the path, one after the other.
      fraction: share of the pixels that move at a time.
      max_distance: how far a pixel may run ahead of or stay behind the straight line, as a share of its way.

    Returns:
      Attributions `float32[n, *space, c]`, in units of the score. The path is chosen step by step, so they have no
      reverse-mode gradient.

    Raises:
      ValueError: images, targets or baseline of a wrong shape, type or range; `num_steps` below one; a share outside
        (0, 1].

    Reference: Kapishnikov et al. 2021, Guided Integrated Gradients, https://arxiv.org/abs/2106.09788

    Example:
      >>> attributions = jaxcam.guided_integrated_gradients(model, images, num_steps=50)
    """
    model, images, targets = prepare(model, images, targets)
    positive(num_steps=num_steps)
    number(fraction=fraction, max_distance=max_distance)
    if not (0 < fraction <= 1 and 0 < max_distance <= 1):
        raise ValueError(f"fraction is {fraction} and max_distance is {max_distance}; both must be in (0, 1].")
    baseline = check_baseline(baseline, images)
    options = {"score": score, "num_steps": num_steps, "fraction": fraction, "max_distance": max_distance}
    return _guided_engine(model, images, targets, baseline, **options)


@engine
def _guided_engine(model, images, targets, baseline, *, score, num_steps, fraction, max_distance):
    targets = chosen(model, images, targets)
    end = images.astype(jnp.float32)
    start = jnp.zeros_like(end) + filled(baseline, images).astype(jnp.float32)  # varies over a mesh as the images do

    def gradient(points):
        return input_gradient(model, points.astype(images.dtype), targets, score)

    def step(carry, alpha):
        points, before, total = carry
        slow, fast = jnp.maximum(alpha - max_distance, 0), jnp.minimum(alpha + max_distance, 1)
        move = jax.vmap(lambda x, g, a, b: _moved(x, g, a, b, slow, fast, 1 - alpha, fraction))
        moved = move(points, before, start, end)
        after = gradient(moved)
        return (moved, after, total + (moved - points) * (before + after) / 2), None

    alphas = jnp.arange(1, num_steps + 1, dtype=jnp.float32) / num_steps
    return scan(step, (start, gradient(start), jnp.zeros_like(start)), alphas)[0][2]


def _moved(x, gradient, start, end, slow, fast, left, fraction):
    """One image's next point: those with the smallest gradients move until the share `left` of the way remains."""
    way = end - start
    lower, upper = start + slow * way, start + fast * way
    target = left * jnp.abs(way).sum()
    x = jnp.where((x - lower) * jnp.sign(way) < 0, lower, x)  # none stays too far behind
    rank = int(fraction * (x.size - 1))

    def advance(state):
        x, _ = state
        ahead = jnp.abs(upper - x)
        free = ahead > 1e-6 * (1e-6 + jnp.abs(way))
        size = jnp.where(free, jnp.abs(gradient), jnp.inf)
        threshold = jnp.sort(size, axis=None)[rank]
        # Where fewer than that share can still move, the smallest of those moves.
        threshold = jnp.where(jnp.isinf(threshold), size.min(), threshold)
        missing = jnp.abs(end - x).sum() - target
        moving = free & (size <= threshold)
        possible = jnp.sum(jnp.where(moving, ahead, 0))
        share = jnp.clip(missing / jnp.where(possible > 0, possible, 1), 0, 1)
        moved = jnp.where(moving, jnp.where(share >= 1, upper, x + share * (upper - x)), x)
        return moved, (missing > possible) & (possible > 0)

    return jax.lax.while_loop(lambda state: state[1], advance, (x, jnp.ones_like(target, bool)))[0]
