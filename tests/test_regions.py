"""Regions of maps, by SciPy's labels and boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

import jaxcam
from jaxcam import regions

SHAPES = [(40,), (13, 17), (5, 6, 7)]


def scattered(shape, seed, smooth=0.7):
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), smooth).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_masks_and_boxes_are_scipys(shape):
    """Of ten maps, each of several pieces."""
    maps = np.stack([scattered(shape, seed) for seed in range(10)])
    masks = regions.heatmap_to_mask(maps, threshold=0.6)
    boxes, pieces = np.asarray(regions.mask_to_box(masks)), 0
    for mask, box, each in zip(np.asarray(masks), boxes, maps, strict=True):
        labels, count = ndimage.label((each - each.min()) / np.ptp(each) >= 0.6, np.ones((3,) * len(shape)))
        sizes = np.bincount(labels.ravel())[1:]
        [label] = set(np.unique(labels[mask]))
        np.testing.assert_array_equal(mask, labels == label)
        assert sizes[label - 1] == sizes.max()
        [sides] = ndimage.find_objects(mask.astype(int))
        assert box.tolist() == [side.start for side in sides[::-1]] + [side.stop for side in sides[::-1]]
        pieces += count
    assert pieces > 15
    assert not (np.asarray(masks) & ~np.asarray(jaxcam.metrics.box_to_mask(boxes, shape))).any()


def test_a_long_way_round():
    """A spiral is one piece, and a spot of its own is another."""
    spiral = np.zeros((21, 21), np.float32)
    y, x, step = 0, 0, 20
    for turn in range(9):
        dy, dx = [(0, 1), (1, 0), (0, -1), (-1, 0)][turn % 4]
        for _ in range(step - 2 * ((turn + 1) // 2)):
            spiral[y, x] = 1
            y, x = y + dy, x + dx
    assert ndimage.label(spiral, np.ones((3, 3)))[1] == 1
    both = spiral.copy()
    both[20, 0] = 1
    np.testing.assert_array_equal(regions.heatmap_to_mask(both[None])[0], spiral > 0)
    np.testing.assert_array_equal(regions.heatmap_to_mask(both[None], largest=False)[0], both > 0)


def test_what_has_no_region():
    """A constant map, and NaN where it cannot be refused; the box is of zeros, and its mask is empty again."""
    maps = jnp.stack([jnp.ones((4, 5)), jnp.full((4, 5), jnp.nan), jnp.zeros((4, 5)).at[3, 4].set(2)])
    masks, boxes = jax.jit(lambda maps: (m := regions.heatmap_to_mask(maps), regions.mask_to_box(m)))(maps)
    assert masks.sum((1, 2)).tolist() == [0, 0, 1]
    assert boxes.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [4, 3, 5, 4]]
    assert jaxcam.metrics.box_to_mask(boxes, (4, 5)).sum((1, 2)).tolist() == [0, 0, 1]


def test_errors(as_user):
    with pytest.raises(ValueError, match="threshold is 0; it must be above 0 and at most 1"):
        regions.heatmap_to_mask(np.ones((1, 4, 4)), threshold=0)
    with pytest.raises(ValueError, match="heatmaps holds NaN"):
        regions.heatmap_to_mask(np.full((1, 4, 4), np.nan))
    with pytest.raises(ValueError, match=r"masks has shape \(4,\); it must be \[n, \*space\]"):
        regions.mask_to_box(np.ones(4))
