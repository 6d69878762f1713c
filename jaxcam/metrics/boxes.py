"""The box that a map draws around the object, as weakly supervised localisation is judged.

At each of many levels, the map's pixels above it fall apart into connected parts; the box around the largest part is
compared with the box around the mask. Parts are found on the device: every pixel takes on the highest label around it,
tells it to the pixel that its own label names, and asks the one that the new label names, until nothing changes.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxcam._array import defined, normalize
from jaxcam._checks import number, positive
from jaxcam._engine import chunked_map
from jaxcam.metrics._altered import Curve
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
    number(threshold=threshold)
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it must be above 0 and at most 1.")
    heatmaps, masks = checked_masks(heatmaps, masks)
    levels, hits, value = _boxes(heatmaps, masks, threshold, num_steps, chunk_size)
    return Curve(levels, hits, value) if curve else value


@partial(jax.jit, static_argnums=(2, 3, 4))
def _boxes(heatmaps, masks, threshold, num_steps, chunk_size):
    maps, truth = normalize(heatmaps), _box(masks[:, None])
    levels = jnp.arange(num_steps, dtype=jnp.float32) / num_steps

    def one_chunk(indices):
        above = maps[:, None] >= levels[indices].reshape(1, -1, *(1,) * (maps.ndim - 1))
        return _overlap(_box(_largest_part(above)), truth)

    overlaps = chunked_map(one_chunk, num_steps, maps[..., None], chunk_size)
    hits = (overlaps >= threshold).astype(jnp.float32)
    hits = defined(or_nan(hits, heatmaps), masks.any(tuple(range(1, masks.ndim)))[:, None])
    return levels, hits, hits[:, jnp.argmax(jnp.nansum(hits, 0))]


def _largest_part(masks):
    """Of each of `masks [n, m, *space]` its largest connected part; of equal ones the last in reading order."""
    shape, pixels = masks.shape, int(np.prod(masks.shape[2:]))
    names = jnp.arange(1, pixels + 1, dtype=jnp.int32).reshape(shape[2:])

    def renamed(labels, near):
        named = (
            jnp.pad(near, (1, 0)).at[labels].max(near)
        )  # whoever sees a higher label tells the pixel that it is named after
        return named[near]

    def spread(state):
        labels, _ = state
        near = jnp.where(masks, _highest_near(labels), 0).reshape(*shape[:2], pixels)
        further = jax.vmap(jax.vmap(renamed))(labels.reshape(near.shape), near).reshape(shape)
        return further, jnp.any(further != labels)

    labels, _ = jax.lax.while_loop(lambda state: state[1], spread, (jnp.where(masks, names, 0), True))
    flat = labels.reshape(-1, pixels)
    areas = jax.vmap(partial(jax.ops.segment_sum, num_segments=pixels + 1))((flat > 0).astype(jnp.int32), flat)
    largest = pixels - jnp.argmax(areas[:, ::-1], -1)
    return masks & (labels == largest.reshape(*shape[:2], *(1,) * (masks.ndim - 2)))


def _highest_near(labels):
    """The maximum of each pixel and those that touch it, one axis of space after the other."""
    for axis in range(2, labels.ndim):
        edges = [(1, 1) if each == axis else (0, 0) for each in range(labels.ndim)]
        padded, size = jnp.pad(labels, edges), labels.shape[axis]
        before, after = (jax.lax.slice_in_dim(padded, start, start + size, axis=axis) for start in (0, 2))
        labels = jnp.maximum(labels, jnp.maximum(before, after))
    return labels


def _box(masks):
    """The first place and the one after the last along each axis of space, `[n, m, 2, axes]`; zeros of no pixel."""
    edges = []
    for axis in range(2, masks.ndim):
        along = masks.any([each for each in range(2, masks.ndim) if each != axis])
        last = along.shape[-1] - jnp.argmax(along[..., ::-1], -1)
        edges.append(jnp.stack([jnp.argmax(along, -1), jnp.where(along.any(-1), last, 0)], -1))
    return jnp.stack(edges, -1)


def _overlap(a, b):
    """The intersection over union of boxes."""
    common = jnp.minimum(a[..., 1, :], b[..., 1, :]) - jnp.maximum(a[..., 0, :], b[..., 0, :])
    common, *sizes = (jnp.prod(each.astype(jnp.float32), -1) for each in (jnp.maximum(common, 0), *map(_sides, (a, b))))
    return common / jnp.maximum(sum(sizes) - common, 1)


def _sides(boxes):
    return boxes[..., 1, :] - boxes[..., 0, :]
