"""Whether a map points at the object, where the object's place is known.

The functions take heatmaps `[n, *space]` and masks of the same size, true inside the object, and return `float32[n]`.
Pixels that tie are counted as if one of them were drawn at random, so that a map without any preference scores what
chance would: the mask's share of the image.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Num

from jaxcam._array import defined, normalize
from jaxcam._checks import as_array, is_known, number
from jaxcam._errors import shown
from jaxcam.metrics._checks import AnyHeatmaps, AnyMaps, Values, all_zero, check_heatmaps, check_maps, or_nan
from jaxcam.metrics.similarity import average_ranks

Masks = Bool[Array, "n *space"] | Bool[np.ndarray, "n *space"] | Num[Array, "n *space"] | Num[np.ndarray, "n *space"]
Boxes = Num[Array, "n edges"] | Num[np.ndarray, "n edges"]


def box_to_mask(boxes: Boxes, shape: tuple[int, ...]) -> Bool[Array, "n *space"]:
    """The masks of boxes: true at the pixels whose centre lies inside.

    Args:
      boxes: for images `[n, 4]`, left, top, right and bottom edge in pixels, as in torchvision (`xyxy`): `[0, 0, w, h]`
        is the whole image. For signals `[n, 2]`, start and end; for volumes `[n, 6]`, `x0, y0, z0, x1, y1, z1`, where
        `x` is along the last axis of space and `z` along the first.
      shape: the sizes of space: height and width of the masks.

    Raises:
      ValueError: boxes that do not have two edges for each axis of `shape`.

    Example:
      >>> masks = box_to_mask(jnp.array([[4, 2, 20, 30]]), (32, 32))
    """
    shape = tuple(shape)
    if not hasattr(boxes, "shape") or len(boxes.shape) != 2 or boxes.shape[1] != 2 * len(shape):
        edges = "left, top, right and bottom" if len(shape) == 2 else "the low edges and then the high ones"
        given = f"boxes has shape {getattr(boxes, 'shape', None)}"
        raise ValueError(f"{given}; for masks {shape} it must be [n, {2 * len(shape)}], {edges}.")
    return _box_to_mask(as_array(boxes, np.float32), shape)


@partial(jax.jit, static_argnums=1)
def _box_to_mask(boxes, shape):
    axes, inside = len(shape), True
    for axis, size in enumerate(shape):
        low, high = (boxes[:, column, None] for column in (axes - 1 - axis, 2 * axes - 1 - axis))
        centres = jnp.arange(size, dtype=jnp.float32) + 0.5
        between = (centres >= low) & (centres < high)
        inside = inside & between.reshape(-1, *(1,) * axis, size, *(1,) * (axes - 1 - axis))
    return inside


def pointing_game(heatmaps: AnyHeatmaps, masks: Masks, *, tolerance: int = 0) -> Values:
    """Pointing game: whether the map's highest pixel lies on the object.

    `hit = [argmax(map) in mask]`; several highest pixels count by their share inside the mask.

    Quantus counts a hit as soon as one of them is inside, so there a constant map always wins.

    Args:
      heatmaps: `[n, *space]`.
      masks: `[n, *space]`, true or above zero inside the object; `box_to_mask` makes them from boxes.
      tolerance: pixels by which the highest pixel may miss the object (the paper's 15 was for photographs).

    Returns:
      `float32[n]`, one for a hit and zero for a miss; their mean is the accuracy.

    Raises:
      ValueError: wrong or different shapes, NaN, or a mask without any pixel (inside `jit` that gives NaN).

    Reference: Zhang et al. 2018, Top-down Neural Attention by Excitation Backprop, https://arxiv.org/abs/1608.00507

    Example:
      >>> hits = jaxcam.metrics.pointing_game(heatmaps, masks)
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, int) or tolerance < 0:
        raise ValueError(f"tolerance is {shown(repr(tolerance))}; it must be a whole number of pixels, 0 or more.")
    return _pointing_game(*checked_masks(heatmaps, masks), tolerance)


@partial(jax.jit, static_argnums=2)
def _pointing_game(heatmaps, masks, tolerance):
    highest = heatmaps == heatmaps.max(_space(heatmaps), keepdims=True)
    hits = _count(highest & _grown(masks, tolerance)) / _count(highest)
    return _defined(hits, heatmaps, masks)


def energy_pointing_game(heatmaps: AnyHeatmaps, masks: Masks) -> Values:
    """Energy-based pointing game: the share of the map's positive mass that lies on the object.

    `energy = sum_mask relu(map) / sum relu(map)`; a map without positive mass counts as uniform.

    Args:
      heatmaps: `[n, *space]`.
      masks: `[n, *space]`, true or above zero inside the object; `box_to_mask` makes them from boxes.

    Returns:
      `float32[n]` in [0, 1].

    Raises:
      ValueError: wrong or different shapes, NaN, or a mask without any pixel (inside `jit` that gives NaN).

    Reference: Wang et al. 2020, Score-CAM: Score-Weighted Visual Explanations, https://arxiv.org/abs/1910.01279

    Example:
      >>> energies = jaxcam.metrics.energy_pointing_game(heatmaps, masks)
    """
    heatmaps, masks = checked_masks(heatmaps, masks)
    return _mass_inside(jax.nn.relu(heatmaps), masks)


def relevance_mass_accuracy(heatmaps: AnyMaps, masks: Masks) -> Values:
    """Relevance mass accuracy: the share of the map's magnitude that lies on the object.

    `accuracy = sum_mask |map| / sum |map|`; attributions `[n, *space, c]` are summed over channels first.

    On a map without negative values it is the energy-based pointing game. A zero map counts as uniform.

    Args:
      heatmaps: `[n, *space]`.
      masks: `[n, *space]`, true or above zero inside the object; `box_to_mask` makes them from boxes.

    Returns:
      `float32[n]` in [0, 1].

    Raises:
      ValueError: wrong or different shapes, NaN, or a mask without any pixel (inside `jit` that gives NaN).

    Reference: Arras et al. 2022, CLEVR-XAI: A Benchmark Dataset for the Ground Truth Evaluation of Neural Network
    Explanations, https://arxiv.org/abs/2003.07258

    Example:
      >>> accuracies = jaxcam.metrics.relevance_mass_accuracy(attributions, masks)
    """
    return _mass_inside(*checked_masks(_magnitudes(heatmaps, masks), masks))


def relevance_rank_accuracy(heatmaps: AnyMaps, masks: Masks) -> Values:
    """Relevance rank accuracy: of the K highest pixels, the share that lies on an object of K pixels.

    `accuracy = |top_K(|map|) and mask| / K`; attributions `[n, *space, c]` are summed over channels first.

    Pixels that tie for the last places count by their share inside the mask.

    Args:
      heatmaps: `[n, *space]`.
      masks: `[n, *space]`, true or above zero inside the object; `box_to_mask` makes them from boxes.

    Returns:
      `float32[n]` in [0, 1].

    Raises:
      ValueError: wrong or different shapes, NaN, or a mask without any pixel (inside `jit` that gives NaN).

    Reference: Arras et al. 2022, CLEVR-XAI: A Benchmark Dataset for the Ground Truth Evaluation of Neural Network
    Explanations, https://arxiv.org/abs/2003.07258

    Example:
      >>> accuracies = jaxcam.metrics.relevance_rank_accuracy(attributions, masks)
    """
    return _share_of_highest(*checked_masks(_magnitudes(heatmaps, masks), masks))


def top_k_intersection(
    heatmaps: AnyHeatmaps, masks: Masks, *, fraction: float | int = 0.1, normalize: bool = False
) -> Values:
    """Top-k intersection: the share of a map's highest pixels that lies on the object.

    `intersection = |top_k(map) and mask| / k`, with `k` a fraction of the pixels; where `normalize`, it is divided by
    the object's share of the image, which makes it the concept influence: one is chance.

    Pixels that tie for the last places count by their share inside the mask. Quantus's `k` is a number, 1000.

    Args:
      heatmaps: `[n, *space]`.
      masks: `[n, *space]`, true or above zero inside the object; `box_to_mask` makes them from boxes.
      fraction: `k` as a share of the pixels, above 0 and at most 1.
      normalize: divide by the object's share of the image.

    Returns:
      `float32[n]` in [0, 1]; from 0 on, where `normalize`.

    Raises:
      ValueError: wrong or different shapes, NaN, or a mask without any pixel (inside `jit` that gives NaN).

    Reference: Theiner et al. 2022, Interpretable Semantic Photo Geolocation, https://arxiv.org/abs/2104.14995

    Example:
      >>> shares = jaxcam.metrics.top_k_intersection(heatmaps, masks, fraction=0.05)
    """
    number(above=0, most=1, fraction=fraction)
    return _share_of_highest(*checked_masks(heatmaps, masks), fraction, normalize)


@partial(jax.jit, static_argnums=(2, 3))
def _share_of_highest(heatmaps, masks, fraction=None, normalize=False):
    """The share inside of the mask, of a fraction of the pixels, the highest, or of as many as the mask has."""
    flat, inside = heatmaps.reshape(heatmaps.shape[0], -1), masks.reshape(masks.shape[0], -1)
    pixels, object_size = flat.shape[1], _count(masks)
    size = object_size if fraction is None else jnp.full_like(object_size, max(1, round(fraction * pixels)))
    is_last = jnp.arange(pixels, dtype=jnp.float32) == size[:, None] - 1
    last = jnp.sum(jnp.where(is_last, jnp.sort(flat, -1, descending=True), 0), -1, keepdims=True)
    above, tied = flat > last, flat == last
    share_of_tied = _count(tied & inside) / _count(tied)
    shares = (_count(above & inside) + (size - _count(above)) * share_of_tied) / size
    return _defined(shares * pixels / object_size if normalize else shares, heatmaps, masks)


def mask_auc(heatmaps: AnyHeatmaps, masks: Masks) -> Values:
    """Mask AUC: the area under the ROC curve of the map as a classifier of the object's pixels.

    `AUC = P(map inside > map outside) + P(equal) / 2`, for a pixel inside the mask and one outside.

    Args:
      heatmaps: `[n, *space]`; only the order of the pixels counts.
      masks: `[n, *space]`, true or above zero inside the object; `box_to_mask` makes them from boxes.

    Returns:
      `float32[n]` in [0, 1]; a half is chance, and where the mask is the whole image.

    Raises:
      ValueError: wrong or different shapes, NaN, or a mask without any pixel (inside `jit` that gives NaN).

    Reference: Fawcett 2006, An Introduction to ROC Analysis, https://doi.org/10.1016/j.patrec.2005.10.010

    Example:
      >>> areas = jaxcam.metrics.mask_auc(heatmaps, masks)
    """
    return _auc(*checked_masks(heatmaps, masks))


@jax.jit
def _auc(heatmaps, masks):
    ranks = average_ranks(heatmaps.reshape(heatmaps.shape[0], -1)).reshape(heatmaps.shape)
    inside, outside = _count(masks), _count(~masks)
    mean = jnp.sum(ranks, _space(ranks), where=masks) / inside
    area = (mean - (inside - 1) / 2) / jnp.maximum(outside, 1)
    return _defined(jnp.where(outside == 0, 0.5, area), heatmaps, masks)


def iou_with_mask(heatmaps: AnyHeatmaps, masks: Masks, *, threshold: float | int = 0.5) -> Values:
    """Intersection over union of the object and the part of the map above a threshold.

    `IoU = |M and mask| / |M or mask|` with `M = [scaled map >= threshold]`, the map scaled to [0, 1].

    A constant map has no part that stands out, so its overlap is zero.

    Args:
      heatmaps: `[n, *space]`.
      masks: `[n, *space]`, true or above zero inside the object; `box_to_mask` makes them from boxes.
      threshold: above 0 and at most 1.

    Returns:
      `float32[n]` in [0, 1].

    Raises:
      ValueError: wrong or different shapes, NaN, a mask without any pixel (inside `jit` that gives NaN), or a threshold
        out of range.

    Reference: Zhou et al. 2016, Learning Deep Features for Discriminative Localization,
    https://arxiv.org/abs/1512.04150

    Example:
      >>> overlaps = jaxcam.metrics.iou_with_mask(heatmaps, masks, threshold=0.2)
    """
    number(above=0, most=1, threshold=threshold)
    return _iou(*checked_masks(heatmaps, masks), threshold)


@partial(jax.jit, static_argnums=2)
def _iou(heatmaps, masks, threshold):
    found = normalize(heatmaps) >= threshold
    return _defined(_count(found & masks) / _count(found | masks), heatmaps, masks)


@jax.jit
def _mass_inside(mass, masks):
    space = _space(mass)
    largest = mass.max(space, keepdims=True)
    mass = jnp.where(largest == 0, 1, mass / jnp.where(largest == 0, 1, largest))
    return _defined(jnp.sum(mass, space, where=masks) / mass.sum(space), mass, masks)


def _magnitudes(attributions, masks):
    """Magnitudes `[n, *space]` of heatmaps, or of attributions with channels more than the masks."""
    return _summed(check_maps(attributions), np.ndim(masks))


@partial(jax.jit, static_argnums=1)
def _summed(attributions, ndim):
    magnitudes = jnp.abs(attributions)
    return magnitudes.sum(-1) if attributions.ndim == ndim + 1 else magnitudes


def checked_masks(heatmaps, masks):
    """Both as arrays of one shape, the masks true inside of an object; or the error of what is wrong."""
    heatmaps, masks = check_heatmaps(heatmaps), as_array(masks)
    if is_known(masks) and np.isnan(np.asarray(masks)).any():
        raise ValueError("masks holds NaN; it must be true or above zero inside the object.")
    masks = _inside(masks)
    if masks.shape != heatmaps.shape:
        raise ValueError(f"masks has shape {masks.shape} and heatmaps {heatmaps.shape}; they must be the same.")
    empty = all_zero(masks)
    if empty.size:
        raise ValueError(f"The mask of image {empty[0]} is empty; leave images without an object out.")
    return heatmaps, masks


@jax.jit
def _inside(masks):
    return masks if masks.dtype == bool else masks > 0


def _space(maps):
    return tuple(range(1, maps.ndim))


def _count(masks):
    """How many pixels of each are true, `float32[n]`."""
    return jnp.sum(masks, _space(masks), dtype=jnp.float32)


def _defined(values, heatmaps, masks):
    """Inside `jit`, where NaN and an empty mask cannot be refused, they give NaN."""
    return defined(or_nan(values, heatmaps), masks.any(_space(masks)))


def _grown(masks, tolerance: int):
    """The masks and all pixels within `tolerance` of them."""
    if tolerance == 0:
        return masks
    axes = masks.ndim - 1
    offsets = np.meshgrid(*[np.arange(-tolerance, tolerance + 1)] * axes, indexing="ij")
    ball = (np.square(offsets).sum(0) <= tolerance**2).astype(np.float32)
    near = jax.lax.conv(masks[:, None].astype(jnp.float32), ball[None, None], (1,) * axes, "SAME")
    return near[:, 0] > 0.5
