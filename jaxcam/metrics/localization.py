"""Whether a map points at the object, where the object's place is known.

The functions take heatmaps `[n, h, w]` and masks of the same size, true inside the object, and return `float32[n]`.
Pixels that tie are counted as if one of them were drawn at random, so that a map without any preference scores what
chance would: the mask's share of the image.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Num

from jaxcam._array import normalise
from jaxcam.metrics._checks import AnyHeatmaps, AnyMaps, Values, check_heatmaps, check_maps, is_known, or_nan

Masks = Bool[Array, "n h w"] | Bool[np.ndarray, "n h w"] | Num[Array, "n h w"] | Num[np.ndarray, "n h w"]
Boxes = Num[Array, "n 4"] | Num[np.ndarray, "n 4"]


def box_to_mask(boxes: Boxes, shape: tuple[int, int]) -> Bool[Array, "n h w"]:
    """The masks of boxes: true at the pixels whose centre lies inside.

    Args:
      boxes: `[n, 4]`, left, top, right and bottom edge in pixels, as in torchvision (`xyxy`): `[0, 0, w, h]` is the
        whole image.
      shape: height and width of the masks.

    Raises:
      ValueError: boxes that are not `[n, 4]`.

    Example:
      >>> masks = box_to_mask(jnp.array([[4, 2, 20, 30]]), (32, 32))
    """
    boxes = jnp.asarray(boxes)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes has shape {boxes.shape}; it must be [n, 4], left, top, right and bottom.")
    left, top, right, bottom = (boxes[:, index, None] for index in range(4))
    rows, columns = jnp.arange(shape[0]) + 0.5, jnp.arange(shape[1]) + 0.5
    inside_rows, inside_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return inside_rows[:, :, None] & inside_columns[:, None, :]


def pointing_game(heatmaps: AnyHeatmaps, masks: Masks, *, tolerance: int = 0) -> Values:
    """Pointing game: whether the map's highest pixel lies on the object.

    `hit = [argmax(map) in mask]`; several highest pixels count by their share inside the mask.

    Quantus counts a hit as soon as one of them is inside, so there a constant map always wins.

    Args:
      heatmaps: `[n, h, w]`.
      masks: `[n, h, w]`, true or above zero inside the object; `box_to_mask` makes them from boxes.
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
        raise ValueError(f"tolerance is {tolerance!r}; it must be a whole number of pixels, 0 or more.")
    heatmaps, masks = _checked(heatmaps, masks)
    return _pointing_game(heatmaps, masks, tolerance)


@partial(jax.jit, static_argnums=2)
def _pointing_game(heatmaps, masks, tolerance):
    highest = heatmaps == heatmaps.max((1, 2), keepdims=True)
    hits = (highest & _grown(masks, tolerance)).sum((1, 2)) / highest.sum((1, 2))
    return _defined(hits, heatmaps, masks)


def energy_pointing_game(heatmaps: AnyHeatmaps, masks: Masks) -> Values:
    """Energy-based pointing game: the share of the map's positive mass that lies on the object.

    `energy = sum_mask relu(map) / sum relu(map)`; a map without positive mass counts as uniform.

    Arguments and errors are those of `pointing_game`.

    Returns:
      `float32[n]` in [0, 1].

    Reference: Wang et al. 2020, Score-CAM: Score-Weighted Visual Explanations, https://arxiv.org/abs/1910.01279

    Example:
      >>> energies = jaxcam.metrics.energy_pointing_game(heatmaps, masks)
    """
    heatmaps, masks = _checked(heatmaps, masks)
    return _mass_inside(jax.nn.relu(heatmaps), masks)


def relevance_mass_accuracy(heatmaps: AnyMaps, masks: Masks) -> Values:
    """Relevance mass accuracy: the share of the map's magnitude that lies on the object.

    `accuracy = sum_mask |map| / sum |map|`; attributions `[n, h, w, c]` are summed over channels first.

    On a map without negative values it is the energy-based pointing game. A zero map counts as uniform.
    Arguments and errors are those of `pointing_game`.

    Returns:
      `float32[n]` in [0, 1].

    Reference: Arras et al. 2022, CLEVR-XAI: A Benchmark Dataset for the Ground Truth Evaluation of Neural Network
    Explanations, https://arxiv.org/abs/2003.07258

    Example:
      >>> accuracies = jaxcam.metrics.relevance_mass_accuracy(attributions, masks)
    """
    return _mass_inside(*_checked(_magnitudes(heatmaps), masks))


def relevance_rank_accuracy(heatmaps: AnyMaps, masks: Masks) -> Values:
    """Relevance rank accuracy: of the K highest pixels, the share that lies on an object of K pixels.

    `accuracy = |top_K(|map|) and mask| / K`; attributions `[n, h, w, c]` are summed over channels first.

    Pixels that tie for the last places count by their share inside the mask.
    Arguments and errors are those of `pointing_game`.

    Returns:
      `float32[n]` in [0, 1].

    Reference: Arras et al. 2022, CLEVR-XAI: A Benchmark Dataset for the Ground Truth Evaluation of Neural Network
    Explanations, https://arxiv.org/abs/2003.07258

    Example:
      >>> accuracies = jaxcam.metrics.relevance_rank_accuracy(attributions, masks)
    """
    return _rank_accuracy(*_checked(_magnitudes(heatmaps), masks))


@jax.jit
def _rank_accuracy(heatmaps, masks):
    flat, inside = heatmaps.reshape(len(heatmaps), -1), masks.reshape(len(masks), -1)
    size = inside.sum(-1, keepdims=True)
    last = jnp.take_along_axis(jnp.sort(flat, -1, descending=True), jnp.maximum(size - 1, 0), -1)
    above, tied = flat > last, flat == last
    share_of_tied = (tied & inside).sum(-1) / tied.sum(-1)
    shares = ((above & inside).sum(-1) + (size[:, 0] - above.sum(-1)) * share_of_tied) / size[:, 0]
    return _defined(shares, heatmaps, masks)


def iou_with_mask(heatmaps: AnyHeatmaps, masks: Masks, *, threshold: float = 0.5) -> Values:
    """Intersection over union of the object and the part of the map above a threshold.

    `IoU = |M and mask| / |M or mask|` with `M = [scaled map >= threshold]`, the map scaled to [0, 1].

    A constant map has no part that stands out, so its overlap is zero. Arguments and errors are those of
    `pointing_game`, and:

    Args:
      threshold: above 0 and at most 1.

    Returns:
      `float32[n]` in [0, 1].

    Reference: Zhou et al. 2016, Learning Deep Features for Discriminative Localization,
    https://arxiv.org/abs/1512.04150

    Example:
      >>> overlaps = jaxcam.metrics.iou_with_mask(heatmaps, masks, threshold=0.2)
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it must be above 0 and at most 1.")
    return _iou(*_checked(heatmaps, masks), threshold)


@jax.jit
def _iou(heatmaps, masks, threshold):
    found = normalise(heatmaps) >= threshold
    return _defined((found & masks).sum((1, 2)) / (found | masks).sum((1, 2)), heatmaps, masks)


@jax.jit
def _mass_inside(mass, masks):
    largest = mass.max((1, 2), keepdims=True)
    mass = jnp.where(largest == 0, 1, mass / jnp.where(largest == 0, 1, largest))
    return _defined((mass * masks).sum((1, 2)) / mass.sum((1, 2)), mass, masks)


def _magnitudes(attributions):
    magnitudes = jnp.abs(check_maps(attributions))
    return magnitudes.sum(-1) if magnitudes.ndim == 4 else magnitudes


def _checked(heatmaps, masks):
    heatmaps = check_heatmaps(heatmaps)
    masks = jnp.asarray(masks) > 0
    if masks.shape != heatmaps.shape:
        raise ValueError(f"masks has shape {masks.shape} and heatmaps {heatmaps.shape}; they must be the same.")
    if is_known(masks):
        empty = np.flatnonzero(~np.asarray(masks.any((1, 2))))
        if empty.size:
            raise ValueError(f"The mask of image {empty[0]} is empty; leave images without an object out.")
    return heatmaps, masks


def _defined(values, heatmaps, masks):
    """Inside `jit`, where NaN and an empty mask cannot be refused, they give NaN."""
    return jnp.where(masks.any((1, 2)), or_nan(values, heatmaps), jnp.nan).astype(jnp.float32)


def _grown(masks, tolerance: int):
    """The masks and all pixels within `tolerance` of them."""
    if tolerance == 0:
        return masks
    offsets = np.arange(-tolerance, tolerance + 1)
    disc = (offsets[:, None] ** 2 + offsets**2 <= tolerance**2).astype(np.float32)
    near = jax.lax.conv(masks[:, None].astype(jnp.float32), disc[None, None], (1, 1), "SAME")
    return near[:, 0] > 0.5
