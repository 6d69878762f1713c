"""From a map to a region: the part of a heatmap that stands out, as a mask, and the box around it.

A threshold cuts the map, and of what is left the largest connected piece is the object, as in weakly supervised
localisation. Everything is JAX, so that a detector made of a classifier is one compiled program.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxcam._array import normalize
from jaxcam._checks import as_array, number
from jaxcam.attribution import Method
from jaxcam.metrics._checks import AnyHeatmaps, check_heatmaps
from jaxcam.metrics.boxes import box_around, largest_part
from jaxcam.metrics.localization import Masks


def heatmap_to_mask(
    heatmaps: AnyHeatmaps, *, threshold: float | int = 0.2, largest: bool = True
) -> Bool[Array, "n *space"]:
    """The region of each heatmap: what reaches a share of its range, and of that the largest connected piece.

    `mask = largest component of [(map - min) / (max - min) >= threshold]`; pixels that touch at a corner are connected.

    Args:
      heatmaps: `[n, *space]`.
      threshold: above 0 and at most 1; 0.2 is that of the paper, and Grad-CAM's is 0.15.
      largest: keep the piece with the most pixels alone (of two as large, the one that ends last).

    Returns:
      Masks `bool[n, *space]`; empty for a constant map, which has no part that stands out, and for NaN.

    Raises:
      ValueError: wrong shapes, NaN, or a threshold outside of (0, 1].

    When: one object, and a map that is warm on all of it. Not for several objects, of which one piece is kept.

    Reference: Zhou et al. 2016, Learning Deep Features for Discriminative Localization,
    https://arxiv.org/abs/1512.04150

    Example:
      >>> masks = jaxcam.regions.heatmap_to_mask(heatmaps)
      >>> boxes = jaxcam.regions.mask_to_box(masks)
    """
    number(above=0, most=1, threshold=threshold)
    return _heatmap_to_mask(check_heatmaps(heatmaps), threshold, largest)


@partial(jax.jit, static_argnums=2)
def _heatmap_to_mask(heatmaps, threshold, largest):
    masks = normalize(heatmaps) >= threshold
    return jax.vmap(largest_part)(masks) if largest else masks


def mask_to_box(masks: Masks) -> Float[Array, "n edges"]:
    """The box around each mask: left, top, right and bottom edge in pixels, as `jaxcam.metrics.box_to_mask` takes them.

    `box = (min x, min y, max x + 1, max y + 1)` over the pixels that are true.

    Args:
      masks: `[n, *space]`, true or above zero inside.

    Returns:
      Boxes `float32[n, 4]`; of signals `[n, 2]`, start and end, and of volumes `[n, 6]`, `x0, y0, z0, x1, y1, z1`,
      where `x` is along the last axis of space. Zeros for an empty mask.

    Raises:
      ValueError: masks of a wrong shape.

    When: a detector made of a classifier, or a comparison with boxes that people drew. Not for what is no box, such as
    a winding road.

    Reference: Zhou et al. 2016, Learning Deep Features for Discriminative Localization,
    https://arxiv.org/abs/1512.04150

    Example:
      >>> mask_to_box(jnp.zeros((1, 8, 8), bool).at[:, 2:4, 3:7].set(True))
      Array([[3., 2., 7., 4.]], dtype=float32)
    """
    if not 2 <= getattr(masks, "ndim", 0) <= 4:
        shape = getattr(masks, "shape", None)
        raise ValueError(f"masks has shape {shape}; it must be [n, *space], of one to three axes of space.")
    return _mask_to_box(as_array(masks))


@jax.jit
def _mask_to_box(masks):
    edges = jax.vmap(box_around)(masks > 0)[..., ::-1]  # x is along the last axis of space
    return edges.reshape(len(masks), -1).astype(jnp.float32)


REGION = "from a map to a region"
METHODS = {
    row.name: row
    for row in [
        Method(heatmap_to_mask, REGION, "heatmaps", "masks", "0", sees_class=False),
        Method(mask_to_box, REGION, "masks", "boxes", "0", sees_class=False),
    ]
}
