"""ROAD, remove and debias: pixels are taken away so that the model cannot see which ones.

Filling the holes with a constant shows the model their outline, and it may react to that. Here every removed pixel
becomes the mean of its neighbours, removed ones included: one linear system per image and fraction, which conjugate
gradients solve on the device with sums over neighbours in place of a matrix.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxcam._checks import as_array, choice, number, positive, random_key
from jaxcam._engine import engine
from jaxcam._typing import Images, Key, Score, Targets
from jaxcam.metrics._altered import Curve, Model, beside, between, looked_at, prepare_maps, removal_order, scores_of
from jaxcam.metrics._checks import AnyHeatmaps, Values, check_fractions, or_nan, warn_of_zeros
from jaxcam.score import probability

SOLVER_TOLERANCE = 1e-6  # of the residual, relative to the right-hand side
SOLVER_STEPS = 2000


def road(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = probability,
    order: str = "combined",
    fractions: Sequence[float] | Float[np.ndarray, "fractions"] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    grain: float | int = 0.01,
    chunk_size: int | None = None,
    key: Key = 0,
    curve: bool = False,
) -> Values | Curve:
    """ROAD: the score after pixels were removed and filled in from their surroundings, without the mask's outline.

    `combined = (LeRF - MoRF) / 2`, where `MoRF = mean_f score(image without its share f of highest pixels) -
    score(image)`, and LeRF is the same with the lowest pixels. Each removed pixel becomes the weighted mean of its
    neighbours, all of them at once: a sparse linear system, solved by conjugate gradients on the device. On an image
    the eight neighbours weigh 1/6 beside the pixel and 1/12 at the corners, as in the paper; in general the weights are
    the product of 1/2, 1, 1/2 along each axis of space, scaled to sum to one.

    MoRF should be low, LeRF and the combination high. The number of pixels removed is that of pytorch-grad-cam for a
    map without ties. Where pixels tie, it removes all of them or none, so that for a CAM with a large zero region LeRF
    removes the whole region at every fraction; here ties are broken in reading order and the fraction is kept. Of a map
    that is zero everywhere that order says nothing: outside of `jit` it gives a warning.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      heatmaps: `float[n, *space]`; only the order of the pixels counts.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n,
        t]`.
      score: what is measured, `(output, targets[n]) -> [n]`.
      order: `"morf"` (most relevant first), `"lerf"` (least relevant first) or `"combined"`.
      fractions: shares of the pixels to remove, each between 0 and 1.
      grain: deviation of the normal noise added to the filled pixels, in units of the normalised pixel whatever the
        image's range, as in pytorch-grad-cam; 0 for none.
      chunk_size: images in one forward pass; altered images are made inside the pass. By default what suits the
        device.
      key: for the grain; a seed or a key.
      curve: return a `Curve` with the score at each fraction (half the difference for `"combined"`).

    Returns:
      `float32[n]` in units of the score.

    Raises:
      ValueError: arrays of a wrong shape, type or range; an unknown order, a fraction outside (0, 1), or a negative
        grain.

    Reference: Rong et al. 2022, A Consistent and Efficient Evaluation Strategy for Attribution Methods,
    https://arxiv.org/abs/2202.00449

    Example:
      >>> values = jaxcam.metrics.road(model, images, heatmaps, fractions=(0.2, 0.5, 0.8))
    """
    positive(chunk_size=chunk_size)
    choice(("morf", "lerf", "combined"), order=order)
    fractions = check_fractions(fractions)
    number(least=0, grain=grain)
    model, images, targets, heatmaps = prepare_maps(model, images, targets, heatmaps)
    warn_of_zeros(heatmaps, stacklevel=3)
    options = {"score": score, "order": order, "fractions": fractions, "grain": grain, "chunk_size": chunk_size}
    scores, value = _road_engine(model, images, targets, heatmaps, random_key(key), **options)
    return Curve(as_array(fractions, np.float32), scores, value) if curve else value


@engine
def _road_engine(model, images, targets, heatmaps, key, *, score, order, fractions, grain, chunk_size):
    targets, before = looked_at(model, images, targets, score)
    ranks, pixels = removal_order(heatmaps), math.prod(heatmaps.shape[1:])
    orders = ("lerf", "morf") if order == "combined" else (order,)
    counts = [1 + int(each * (pixels - 1) + 1e-9) for each in fractions]  # as np.percentile would
    # Which ranks each copy loses, from the first to before the last: one copy for each order and fraction.
    ends = [(pixels - count, pixels) if each == "lerf" else (0, count) for each in orders for count in counts]
    first, last = jnp.asarray(ends, jnp.int32).T

    def altered(indices):
        removed = between(ranks, first[indices], last[indices])
        filled = _impute(images[:, None], removed)
        if grain:
            keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
            filled += grain * jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], jnp.float32))(keys)
        return jnp.where(removed[..., None], filled.astype(images.dtype), images[:, None])

    scores = scores_of(model, images, targets, score, altered, len(ends), chunk_size)
    scores = or_nan(scores, heatmaps).reshape(-1, len(orders), len(fractions))
    if order == "combined":
        scores = (scores[:, 0] - scores[:, 1]) / 2
        return scores, scores.mean(-1)
    return scores[:, 0], scores[:, 0].mean(-1) - before


def _impute(images, removed):
    """`images [n, 1, *space, c]` with each pixel of `removed [n, m, *space]` the weighted mean of its neighbours.

    The equations of the removed pixels, `s_i x_i - sum_j w_ij x_j = sum_j w_ij known_j` with `s_i` the weights of the
    neighbours that exist, are symmetric and positive definite as long as one pixel is known. They are solved as
    deviations from the mean of the known pixels, so that the tolerance does not depend on the image's brightness.
    """
    removed, space = removed[..., None], tuple(range(2, removed.ndim))
    images = images.astype(jnp.float32)
    count = jnp.maximum(jnp.sum(~removed, space, jnp.float32, keepdims=True), 1)
    mean = jnp.sum(jnp.where(removed, 0, images), space, keepdims=True) / count
    known = jnp.where(removed, 0, images - mean)
    weights = _neighbours(jnp.ones_like(known))

    def equations(x):
        return jnp.where(removed, weights * x - _neighbours(x), 0)

    right = jnp.where(removed, _neighbours(known), 0)
    return mean + known + jax.lax.custom_linear_solve(equations, right, _conjugate_gradients, symmetric=True)


def _conjugate_gradients(equations, right):
    """The solution `[n, m, ...]` of each copy's own equations, each with its own step and its own end."""

    def dot(a, b):
        return jnp.sum(a * b, tuple(range(2, right.ndim)), keepdims=True)

    def ratio(a, b):
        return a / jnp.where(b == 0, 1, b)

    limit = SOLVER_TOLERANCE**2 * dot(right, right)

    def is_unsolved(state):
        *_, squared, steps = state
        return (squared > limit).any() & (steps < SOLVER_STEPS)

    def step(state):
        x, residual, direction, squared, steps = state
        image = equations(direction)
        length = jnp.where(squared > limit, ratio(squared, dot(direction, image)), 0)  # a solved copy stays
        x, residual = x + length * direction, residual - length * image
        smaller = dot(residual, residual)
        return x, residual, residual + ratio(smaller, squared) * direction, smaller, steps + 1

    return jax.lax.while_loop(is_unsolved, step, (jnp.zeros_like(right), right, right, dot(right, right), 0))[0]


def _neighbours(x):
    """The sum of each pixel's neighbours in `[n, m, *space, c]`, with the weights that `road` names.

    They are `(outer product of [1/2, 1, 1/2] - centre) / (2^axes - 1)`: one pass along each axis.
    """
    total, space = x, range(2, x.ndim - 1)
    for axis in space:
        total = total + sum(beside(total, axis)) / 2
    return (total - x) / (2 ** len(space) - 1)
