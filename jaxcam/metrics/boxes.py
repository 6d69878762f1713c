"""The box that a map draws around the object, as weakly supervised localisation is judged.

At each of many levels, the map's pixels above it fall apart into connected parts; the box around the largest part is
compared with the box around the mask. Parts are found on the device: every pixel is named after one of its part, at
first after itself. It tells the highest name around it to the pixel that it is named after, and takes over what that
one heard, until nothing changes: then all are named after the last pixel of their part.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxcam._array import defined, normalize
from jaxcam._checks import number, positive
from jaxcam._engine import chunked_map
from jaxcam.metrics._altered import Curve, beside
from jaxcam.metrics._checks import AnyHeatmaps, Values, or_nan
from jaxcam.metrics.localization import Masks, checked_masks


def max_box_acc(
    heatmaps: AnyHeatmaps,
    masks: Masks,
    *,
    threshold: float | int = 0.5,
    num_steps: int = 100,
    chunk_size: int | None = None,
    curve: bool = False,
) -> Values | Curve:
    """MaxBoxAcc: whether the box around the map's largest part is the object's, at the level that is best for all.

    `hit = [IoU(box(largest part of map >= level), box(mask)) >= threshold]`, with the maps scaled to [0, 1] and the
    level `i / num_steps` at which most images have a hit.

    All images share the level, so give it all of them at once, or add up the hits of several batches: `curve=True` has
    them at every level. The authors' code draws OpenCV's contours on bytes and takes the area inside; here parts are
    pixels that touch, at corners too, and the largest has the most of them.

    Args:
      heatmaps: `[n, *space]`.
      masks: `[n, *space]`, true or above zero inside the object; `box_to_mask` makes them from boxes. The box around
        the mask counts.
      threshold: the least overlap of a hit, above 0 and at most 1.
      num_steps: levels.
      chunk_size: maps that are cut into parts at a time. By default what suits the device.
      curve: return a `Curve`: levels, hits at each, and those at the best level.

    Returns:
      `float32[n]`, one for a hit and zero for a miss; their mean is MaxBoxAcc.

    Raises:
      ValueError: wrong or different shapes, NaN, or a mask without any pixel (inside `jit` that gives NaN).

    Reference: Choe et al. 2020, Evaluating Weakly Supervised Object Localization Methods Right,
    https://arxiv.org/abs/2001.07437

    Example:
      >>> accuracy = jaxcam.metrics.max_box_acc(heatmaps, masks).mean()
    """
    positive(num_steps=num_steps, chunk_size=chunk_size)
    number(above=0, most=1, threshold=threshold)
    heatmaps, masks = checked_masks(heatmaps, masks)
    levels, hits, value = _boxes(heatmaps, masks, threshold, num_steps, chunk_size)
    return Curve(levels, hits, value) if curve else value


@partial(jax.jit, static_argnums=(2, 3, 4))
def _boxes(heatmaps, masks, threshold, num_steps, chunk_size):
    maps, truth = normalize(heatmaps), jax.vmap(box_around)(masks)
    levels = jnp.arange(num_steps, dtype=jnp.float32) / num_steps

    def overlap(one, box, level):
        return _overlap(box_around(largest_part(one >= level)), box)

    def one_chunk(indices):
        return jax.vmap(jax.vmap(overlap, (None, None, 0)), (0, 0, None))(maps, truth, levels[indices])

    overlaps = chunked_map(one_chunk, num_steps, maps[..., None], chunk_size)
    hits = defined(or_nan(overlaps >= threshold, heatmaps), masks.any(tuple(range(1, masks.ndim)))[:, None])
    return levels, hits, hits[:, jnp.argmax(jnp.nansum(hits, 0))]


def largest_part(mask):
    """The connected part of one mask with the most pixels; of equal ones the last in reading order."""
    pixels = jnp.arange(mask.size, dtype=jnp.int32).reshape(mask.shape)

    def renamed(state):
        names, _ = state
        near = jnp.where(mask, names, 0)
        for axis in range(mask.ndim):
            near = jnp.maximum(near, jnp.maximum(*beside(near, axis)))
        told = names.ravel().at[names.ravel()].max(jnp.where(mask, near, 0).ravel())
        further = told[told].reshape(mask.shape)
        return further, jnp.any(further != names)

    start = jnp.where(mask, pixels, pixels), mask.any()  # which vary over a mesh as the mask does
    names, _ = jax.lax.while_loop(lambda state: state[1], renamed, start)
    areas = jax.ops.segment_sum(mask.ravel().astype(jnp.int32), names.ravel(), mask.size)
    return mask & (names == mask.size - 1 - jnp.argmax(areas[::-1]))


def box_around(mask):
    """The first place and the one after the last along each axis of space, `[2, axes]`; zeros of no pixel."""
    edges = []
    for axis in range(mask.ndim):
        along = mask.any([each for each in range(mask.ndim) if each != axis])
        last = len(along) - jnp.argmax(along[::-1])
        edges.append(jnp.stack([jnp.argmax(along), jnp.where(along.any(), last, 0)]))
    return jnp.stack(edges, -1)


def _overlap(a, b):
    """The intersection over union of two boxes."""
    common, size_a, size_b = map(_size, (jnp.stack([jnp.maximum(a[0], b[0]), jnp.minimum(a[1], b[1])]), a, b))
    return common / jnp.maximum(size_a + size_b - common, 1)


def _size(box):
    return jnp.prod(jnp.maximum(box[1] - box[0], 0).astype(jnp.float32))
