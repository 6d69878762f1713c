"""Path methods: the gradient integrated on the way from a baseline to the image.

One engine sums `gradient * movement` over the steps of a path; a method is where its path runs: straight from one
baseline, straight from many, from blurred to sharp, or wherever the gradient is smallest. The attributions of an image
sum to the score's difference between the path's ends.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcam._gradient import input_gradient, integral, straight_line
from jaxcam._inputs import check_baseline, check_images, check_targets, engine, positive, predicted
from jaxcam._loops import scan
from jaxcam._typing import Attributions, Baseline, Images, Score, Targets
from jaxcam.score import logit
from jaxcam.tap import Tap


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
      model, images, targets, score: as for `saliency`.
      baseline: `[n, h, w, c]`, anything that broadcasts to it, or `None` for zeros (the mean colour).
      num_steps: points of the quadrature.
      chunk_size: images in one forward and backward pass. Memory does not grow with `num_steps`.
        By default what suits the device.

    Returns:
      Attributions `float32[n, h, w, c]`, in units of the score.

    Raises:
      ValueError: images, targets or baseline of a wrong shape, type or range; `num_steps` or `chunk_size` below one.

    Reference: Sundararajan et al. 2017, Axiomatic Attribution for Deep Networks, https://arxiv.org/abs/1703.01365

    Example:
      >>> attributions = jaxcam.integrated_gradients(model, images, num_steps=32)
    """
    positive(num_steps=num_steps, chunk_size=chunk_size)
    images = check_images(images)
    targets = check_targets(model, images, targets)
    baseline = check_baseline(baseline, images)
    options = {"score": score, "num_steps": num_steps, "chunk_size": chunk_size}
    return straight_line(model, images, targets, baseline, **options)


def expected_gradients(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Baseline = None,
    num_samples: int = 50,
    chunk_size: int | None = None,
    key=None,
) -> Attributions:
    """Expected gradients (gradient SHAP): integrated gradients averaged over many baselines, by sampling.

    `attribution = E_{b, a} [(image - b) * gradient(b + a (image - b))]`, `b` drawn from the baselines, `a` from [0, 1].

    Args:
      model, images, targets, score: as for `saliency`.
      baseline: `[m, h, w, c]`, such as training images; a number; or `None` for normal noise, as normalised images have
        a mean of zero and a deviation of one.
      num_samples: draws of baseline and place; the same ones for every image. The places are stratified.
      chunk_size: images in one forward and backward pass; by default what suits the device.
      key: `None` means `jax.random.key(0)`.

    Returns:
      Attributions `float32[n, h, w, c]`; they sum to the score less its mean over the baselines, in expectation.

    Raises:
      ValueError: images, targets or baseline of a wrong shape, type or range; counts below one.

    Reference: Erion et al. 2021, Improving performance of deep learning models with axiomatic attribution priors and
    expected gradients, https://arxiv.org/abs/1906.10670

    Example:
      >>> attributions = jaxcam.expected_gradients(model, images, num_samples=20)
    """
    positive(num_samples=num_samples, chunk_size=chunk_size)
    images = check_images(images)
    targets = check_targets(model, images, targets)
    draw, place = jax.random.split(jax.random.key(0) if key is None else key)
    shape = (num_samples, *images.shape[1:])
    if baseline is None:
        baselines = jax.random.normal(draw, shape)
    else:
        baselines = jnp.asarray(baseline, images.dtype)
        if baselines.ndim not in (0, 4) or (baselines.ndim == 4 and baselines.shape[1:] != shape[1:]):
            raise ValueError(f"baseline has shape {baselines.shape}; it must be a number or [m, {_joined(shape[1:])}].")
        rows = jnp.atleast_1d(baselines)
        baselines = rows[jax.random.randint(draw, (num_samples,), 0, len(rows))]
        baselines = jnp.broadcast_to(baselines.reshape(num_samples, *baselines.shape[1:] or (1, 1, 1)), shape)
    places = (jnp.arange(num_samples) + jax.random.uniform(place, (num_samples,))) / num_samples
    places = jax.random.permutation(jax.random.fold_in(place, 1), places)
    static = {"score": score, "num_steps": num_samples, "chunk_size": chunk_size}
    return integral(model, images, targets, None, (baselines, places), curve=_sampled, **static)


def _sampled(image, _, shared, step):
    baselines, places = shared
    way = image - baselines[step]
    return baselines[step] + places[step] * way, way / len(places)


def _joined(shape) -> str:
    return ", ".join(map(str, shape))


def blur_integrated_gradients(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    max_sigma: float | None = None,
    num_steps: int = 50,
    chunk_size: int | None = None,
) -> Attributions:
    """Blur integrated gradients: integrated from the blurred image to the sharp one, without a baseline colour.

    `attribution = integral_{max_sigma}^0 gradient(blur(image, s)) * d blur(image, s) / ds ds`, by the midpoint rule on
    widths that grow quadratically. The attributions sum to `score(image) - score(blur(image, max_sigma))`.

    Args:
      model, images, targets, score: as for `saliency`.
      max_sigma: standard deviation of the strongest Gaussian blur, in pixels; `None` is half the longer side.
      num_steps: points of the quadrature.
      chunk_size: images in one forward and backward pass; by default what suits the device.

    Returns:
      Attributions `float32[n, h, w, c]`, in units of the score.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; counts below one; `max_sigma` not positive.

    Reference: Xu et al. 2020, Attribution in Scale and Space, https://arxiv.org/abs/2004.03383

    Example:
      >>> attributions = jaxcam.blur_integrated_gradients(model, images, num_steps=32)
    """
    positive(num_steps=num_steps, chunk_size=chunk_size)
    images = check_images(images)
    targets = check_targets(model, images, targets)
    max_sigma = max(images.shape[1:3]) / 2 if max_sigma is None else max_sigma
    if not max_sigma > 0:
        raise ValueError(f"max_sigma is {max_sigma}; it must be above zero.")
    static = {"score": score, "num_steps": num_steps, "chunk_size": chunk_size}
    shared = jnp.float32(max_sigma), jnp.arange(num_steps, dtype=jnp.float32) / num_steps
    return integral(model, images, targets, None, shared, curve=_deblurring, **static)


def _deblurring(image, _, shared, step):
    """The image at the middle of a step, and the change that the whole step makes: exact in sum."""
    max_sigma, begins = shared

    def at(time):  # from 0, the strongest blur, to 1, the image
        return _blur(image.astype(jnp.float32), max_sigma * (1 - time) ** 2)

    begin, length = begins[step], 1 / len(begins)
    return at(begin + length / 2), at(begin + length) - at(begin)


def _blur(image, sigma):
    """A Gaussian blur of `[h, w, c]`, its weights normalised inside the image; none at `sigma` zero."""

    def weights(size):
        distance = jnp.arange(size)[:, None] - jnp.arange(size)
        return jax.nn.softmax(-(distance**2) / (2 * jnp.maximum(sigma, 1e-2) ** 2), axis=-1)

    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("Hh,hwc,Ww->HWc", weights(image.shape[0]), image, weights(image.shape[1]), precision=exact)


def guided_integrated_gradients(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Baseline = None,
    num_steps: int = 100,
    fraction: float = 0.25,
    max_distance: float = 0.02,
) -> Attributions:
    """Guided integrated gradients: the path moves the pixels with the smallest gradients first, which avoids noise.

    `attribution = sum_s (gradient(x_s) + gradient(x_{s+1})) / 2 * (x_{s+1} - x_s)`, where each step moves the share
    `fraction` of pixels whose gradients are smallest, until `1 / num_steps` of the way (in L1) is done. (The paper's
    code takes `gradient(x_s)` alone; the trapezoidal rule comes closer to the score's difference at the same cost.)

    Args:
      model, images, targets, score, baseline: as for `integrated_gradients`.
      num_steps: gradients along the path, one after the other.
      fraction: share of the pixels that move at a time.
      max_distance: how far a pixel may run ahead of or stay behind the straight line, as a share of its way.

    Returns:
      Attributions `float32[n, h, w, c]`, in units of the score. The path is chosen step by step, so they have no
      reverse-mode gradient.

    Raises:
      ValueError: images, targets or baseline of a wrong shape, type or range; `num_steps` below one; a share outside
        (0, 1].

    Reference: Kapishnikov et al. 2021, Guided Integrated Gradients, https://arxiv.org/abs/2106.09788

    Example:
      >>> attributions = jaxcam.guided_integrated_gradients(model, images, num_steps=50)
    """
    positive(num_steps=num_steps)
    if not (0 < fraction <= 1 and 0 < max_distance <= 1):
        raise ValueError(f"fraction is {fraction} and max_distance is {max_distance}; both must be in (0, 1].")
    images = check_images(images)
    targets = check_targets(model, images, targets)
    baseline = check_baseline(baseline, images)
    static = {"score": score, "num_steps": num_steps, "fraction": fraction, "max_distance": max_distance}
    return _guided_engine(model, images, targets, baseline, **static)


@engine(static=("score", "num_steps", "fraction", "max_distance"))
def _guided_engine(model, images, targets, baseline, *, score, num_steps, fraction, max_distance):
    targets = predicted(model(images)) if targets is None else targets
    start, end = baseline.astype(jnp.float32), images.astype(jnp.float32)

    def gradient(points):
        return input_gradient(model, points.astype(images.dtype), targets, score).astype(jnp.float32)

    def step(carry, index):
        points, before, total = carry
        alpha = (index + 1) / num_steps
        slow, fast = jnp.maximum(alpha - max_distance, 0), jnp.minimum(alpha + max_distance, 1)
        move = jax.vmap(lambda x, g, a, b: _moved(x, g, a, b, slow, fast, 1 - alpha, fraction))
        moved = move(points, before, start, end)
        after = gradient(moved)
        return (moved, after, total + (moved - points) * (before + after) / 2), None

    first = start, gradient(start), jnp.zeros_like(start)
    return scan(step, first, jnp.arange(num_steps))[0][2]


def _moved(x, gradient, start, end, slow, fast, left, fraction):
    """One image's next point: those with the smallest gradients move until the share `left` of the way remains."""
    way = end - start
    lower, upper = start + slow * way, start + fast * way
    target = left * jnp.abs(way).sum()
    x = jnp.where((x - lower) * jnp.sign(way) < 0, lower, x)  # none stays too far behind

    def unfinished(state):
        x, go_on = state
        return go_on

    def advance(state):
        x, _ = state
        free = jnp.abs(x - upper) > 1e-6 * (1e-6 + jnp.abs(way))
        size = jnp.where(free, jnp.abs(gradient), jnp.inf)
        threshold = jnp.quantile(size, fraction, method="lower")
        # Where fewer than that share can still move, the smallest of those moves.
        threshold = jnp.where(jnp.isinf(threshold), size.min(), threshold)
        moving = free & (size <= threshold)
        missing = jnp.abs(end - x).sum() - target
        possible = jnp.sum(jnp.where(moving, jnp.abs(upper - x), 0))
        share = jnp.clip(missing / jnp.where(possible > 0, possible, 1), 0, 1)
        moved = jnp.where(moving, jnp.where(share >= 1, upper, x + share * (upper - x)), x)
        return moved, (missing > possible) & (possible > 0)

    return jax.lax.while_loop(unfinished, advance, (x, jnp.array(True)))[0]
