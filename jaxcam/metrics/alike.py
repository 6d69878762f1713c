"""Whether images that are explained alike are of one class: two metrics of a whole batch.

An explanation that holds for other images too should come with the class that it explains. What "alike" means is the
difference: the same code of the map, or a small distance. Each value is about the other images that are given, so give
all of them at once.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxcam._array import along
from jaxcam._checks import functions, number, sizes
from jaxcam._engine import engine
from jaxcam._scores import predicted
from jaxcam._typing import Images, Sizes
from jaxcam.metrics._altered import Model, prepare_maps
from jaxcam.metrics._checks import AnyHeatmaps, Values, or_nan


def strongest_cell(heatmaps, cells: Sizes = 4):
    """Which cell of a grid holds most of each map, `int32[n]`: a coarse code of where it points.

    Args:
      heatmaps: `float[n, *space]`.
      cells: how many along each axis of space, one number for all or one for each.

    Example:
      >>> jaxcam.metrics.strongest_cell(jnp.eye(8)[None, ::-1], cells=2).shape
      (1,)
    """
    space = heatmaps.shape[1:]
    counts = sizes("cells", cells, space)
    rows = [
        np.arange(side) * count // side == np.arange(count)[:, None] for side, count in zip(space, counts, strict=True)
    ]
    sums = along(heatmaps, [each.astype(np.float32) for each in rows], 1)
    return jnp.argmax(sums.reshape(sums.shape[0], -1), -1).astype(jnp.int32)


def consistency(model: Model, images: Images, heatmaps: AnyHeatmaps, *, code: Callable = strongest_cell) -> Values:
    """Consistency: the share of an image's class among the other images whose map has the same code; high is good.

    `consistency_i = |{j != i: code_j = code_i, class_j = class_i}| / |{j != i: code_j = code_i}|`, with the classes
    that the model predicts.

    By default the code is the cell of a 4 x 4 grid that holds most of the map; finer codes want more images. Quantus's
    is the sign of the map's first five values, and an image whose code is unique has zero there; here it is NaN.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects; all that are to be compared.
      heatmaps: `float[n, *space]`.
      code: `maps[n, *space] -> [n]` or `[n, ...]`, equal for explanations that are the same.

    Returns:
      `float32[n]` in [0, 1], NaN where no other image has the same code (`jnp.nanmean` leaves them out).

    Raises:
      ValueError: arrays of a wrong shape, type or range.

    Reference: Dasgupta et al. 2022, Framework for Evaluating Faithfulness of Local Explanations,
    https://arxiv.org/abs/2202.00734

    Example:
      >>> values = jaxcam.metrics.consistency(model, jnp.concatenate([images] * 2), jnp.concatenate([heatmaps] * 2))
    """
    functions(code=code)
    model, images, _, heatmaps = prepare_maps(model, images, None, heatmaps)
    return _alike_engine(model, images, None, heatmaps, alike=_same, by=code)


def sufficiency(model: Model, images: Images, heatmaps: AnyHeatmaps, *, threshold: float | int = 0.5) -> Values:
    """Sufficiency: the share of an image's class among the other images whose maps are near its own; high is good.

    `sufficiency_i = |{j != i: d_ij <= threshold * max d, class_j = class_i}| / |{j != i: d_ij <= threshold * max d}|`,
    with the classes that the model predicts and `d` the Euclidean distance of maps, each pixel divided by its standard
    deviation over the images.

    In Quantus the threshold is 0.6, and an image without neighbours has zero; here it is NaN.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects; all that are to be compared.
      heatmaps: `float[n, *space]`.
      threshold: up to which share of the largest distance two maps are near, from 0 to 1.

    Returns:
      `float32[n]` in [0, 1], NaN where no other map is near (`jnp.nanmean` leaves them out).

    Raises:
      ValueError: arrays of a wrong shape, type or range; a threshold outside [0, 1].

    Reference: Dasgupta et al. 2022, Framework for Evaluating Faithfulness of Local Explanations,
    https://arxiv.org/abs/2202.00734

    Example:
      >>> values = jaxcam.metrics.sufficiency(model, jnp.concatenate([images] * 2), jnp.concatenate([heatmaps] * 2))
    """
    number(threshold=threshold)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it is a share of the largest distance, from 0 to 1.")
    model, images, _, heatmaps = prepare_maps(model, images, None, heatmaps)
    return _alike_engine(model, images, None, heatmaps, alike=_near, by=threshold)


@engine
def _alike_engine(model, images, _targets, heatmaps, *, alike, by):
    classes = predicted(model(images))
    others = alike(heatmaps, by) & ~jnp.eye(len(classes), dtype=bool)
    return or_nan(jnp.mean(classes[:, None] == classes, -1, jnp.float32, where=others), heatmaps)


def _same(heatmaps, code):
    codes = code(heatmaps).reshape(heatmaps.shape[0], -1)
    return (codes[:, None] == codes).all(-1)


def _near(heatmaps, threshold):
    maps = heatmaps.reshape(heatmaps.shape[0], -1)
    maps = maps - maps.mean(0)
    deviation = jnp.sqrt(jnp.sum(maps**2, 0) / max(len(maps) - 1, 1))
    maps = maps / jnp.where(deviation == 0, 1, deviation)
    distances = jax.lax.map(lambda one: jnp.sqrt(jnp.sum((maps - one) ** 2, -1)), maps)
    return distances <= threshold * distances.max()
