"""ROAD, remove and debias: pixels are taken away so that the model cannot see which ones.

Filling the holes with a constant shows the model their outline, and it may react to that. Here every removed pixel
becomes the mean of its neighbours, removed ones included: one linear system per image and fraction, which conjugate
gradients solve on the device with three-by-three sums in place of a matrix.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxcam._errors import unknown
from jaxcam._inputs import engine, positive
from jaxcam._typing import Images, Score, Targets
from jaxcam.metrics._altered import (
    Curve,
    Model,
    check_all,
    classes,
    original_scores,
    random_key,
    removal_order,
    scores_of,
)
from jaxcam.metrics._checks import AnyHeatmaps, Values, or_nan
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
    noise: float = 0.01,
    chunk_size: int | None = None,
    key=None,
    curve: bool = False,
) -> Values | Curve:
    """ROAD: the score after pixels were removed and filled in from their surroundings, without the mask's outline.

    `combined = (LeRF - MoRF) / 2`, where `MoRF = mean_f score(image without its share f of highest pixels) -
    score(image)`, and LeRF is the same with the lowest pixels. Each removed pixel becomes the weighted mean of its
    eight neighbours (1/6 beside it, 1/12 at the corners), all of them at once: a sparse linear system, solved by
    conjugate gradients on the device.

    MoRF should be low, LeRF and the combination high. The number of pixels removed is that of pytorch-grad-cam for a
    map without ties. Where pixels tie, it removes all of them or none, so that for a CAM with a large zero region LeRF
    removes the whole region at every fraction; here ties are broken in reading order and the fraction is kept.

    Args:
      model, images, heatmaps, targets, score, chunk_size: as for `deletion`.
      order: `"morf"` (most relevant first), `"lerf"` (least relevant first) or `"combined"`.
      fractions: shares of the pixels to remove, each between 0 and 1.
      noise: deviation of the normal noise added to the filled pixels; 0 for none.
      key: for the noise; `None` means `jax.random.key(0)`.
      curve: return a `Curve` with the score at each fraction (half the difference for `"combined"`).

    Returns:
      `float32[n]` in units of the score.

    Raises:
      ValueError: as `deletion`; an unknown order, or a fraction outside (0, 1).

    Reference: Rong et al. 2022, A Consistent and Efficient Evaluation Strategy for Attribution Methods,
    https://arxiv.org/abs/2202.00449

    Example:
      >>> values = jaxcam.metrics.road(model, images, heatmaps, fractions=(0.2, 0.5, 0.8))
    """
    positive(chunk_size=chunk_size)
    if order not in ("morf", "lerf", "combined"):
        raise unknown("order", order, ("morf", "lerf", "combined"))
    fractions = tuple(map(float, fractions))
    if not fractions or not all(0 < each < 1 for each in fractions):
        raise ValueError(f"fractions is {fractions}; each is a share of the pixels to remove, between 0 and 1.")
    images, heatmaps, targets = check_all(model, images, heatmaps, targets)
    static = {"score": score, "order": order, "fractions": fractions, "chunk_size": chunk_size}
    result = _road_engine(model, images, heatmaps, targets, noise, random_key(key), **static)
    return result if curve else result.value


@engine(static=("score", "order", "fractions", "chunk_size"))
def _road_engine(model, images, heatmaps, targets, noise, key, *, score, order, fractions, chunk_size):
    targets = classes(model, images, targets, chunk_size)
    ranks, pixels = removal_order(heatmaps), images.shape[1] * images.shape[2]
    counts = jnp.asarray([1 + int(each * (pixels - 1) + 1e-9) for each in fractions])  # as np.percentile would
    orders = ("lerf", "morf") if order == "combined" else (order,)

    def altered(image, which, step):
        count = counts[step, None, None]
        lowest_first = jnp.asarray([each == "lerf" for each in orders])[which, None, None]
        removed = jnp.where(lowest_first, ranks[image] >= pixels - count, ranks[image] < count)
        filled = jax.vmap(_impute)(images[image], removed)
        keys = jax.vmap(partial(jax.random.fold_in, key))(which * len(fractions) + step)
        grain = noise * jax.vmap(lambda each: jax.random.normal(each, images.shape[1:]))(keys)
        return jnp.where(removed[..., None], (filled + grain).astype(images.dtype), images[image])

    shape = len(images), len(orders), len(fractions)
    scores = or_nan(scores_of(model, targets, score, altered, shape, chunk_size), heatmaps)
    if order == "combined":
        scores = (scores[:, 0] - scores[:, 1]) / 2
        value = scores.mean(-1)
    else:
        scores = scores[:, 0]
        value = scores.mean(-1) - original_scores(model, images, targets, score, chunk_size)
    return Curve(jnp.asarray(fractions, jnp.float32), scores, value)


def _impute(image, removed):
    """`image [h, w, c]` with each pixel of `removed [h, w]` the weighted mean of its neighbours.

    The equations of the removed pixels, `s_i x_i - sum_j w_ij x_j = sum_j w_ij known_j` with `s_i` the weights of the
    neighbours that exist, are symmetric and positive definite as long as one pixel is known. They are solved as
    deviations from the mean of the known pixels, so that the tolerance does not depend on the image's brightness.
    """
    removed = removed[..., None]
    image = image.astype(jnp.float32)
    mean = jnp.sum(jnp.where(removed, 0, image), (0, 1)) / jnp.maximum(jnp.sum(~removed), 1)
    known = jnp.where(removed, 0, image - mean)
    weights = _neighbours(jnp.ones_like(image))

    def equations(x):
        return jnp.where(removed, weights * x - _neighbours(x), 0)

    right = jnp.where(removed, _neighbours(known), 0)
    filled, _ = jax.scipy.sparse.linalg.cg(equations, right, tol=SOLVER_TOLERANCE, maxiter=SOLVER_STEPS)
    return mean + known + filled


def _neighbours(x):
    """The sum of each pixel's neighbours in `[h, w, c]`, weighted 1/6 beside it and 1/12 at the corners.

    `(outer([1/2, 1, 1/2], [1/2, 1, 1/2]) - centre) / 3`: two passes, one along each axis.
    """
    rows = jnp.pad(x, ((1, 1), (0, 0), (0, 0)))
    both = x + (rows[:-2] + rows[2:]) / 2
    columns = jnp.pad(both, ((0, 0), (1, 1), (0, 0)))
    return (both + (columns[:, :-2] + columns[:, 2:]) / 2 - x) / 3
