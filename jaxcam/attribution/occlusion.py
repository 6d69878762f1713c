"""Occlusion: what the score does when a window that slides over the image is covered."""

from collections.abc import Callable
from functools import reduce

import jax.numpy as jnp
import numpy as np

from jaxcam._array import along, repeated
from jaxcam._checks import picked, samples_of, sizes
from jaxcam._engine import chunked_map
from jaxcam._engine.windows import check_large_enough, windowed
from jaxcam._scores import predicted, scores
from jaxcam._typing import Baseline, Heatmaps, Images, Score, Sizes, Targets
from jaxcam.attribution._method import as_method
from jaxcam.score import logit
from jaxcam.taps import Tap

PARTS = 8  # the default cuts each side of the image into this many


@as_method
def occlusion(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Baseline = None,
    window: Sizes = None,
    stride: Sizes = None,
    chunk_size: int | None = None,
) -> Heatmaps:
    """Occlusion: how much the score drops when a window that slides over the image is covered.

    `attribution[y, x] = mean over the windows that cover (y, x) of score(image) - score(image without the window)`.

    As in Captum, windows start at every multiple of the stride, and the last one in each direction may overhang the
    edge of the image, so that every pixel is covered. The first layers of a convolutional network are computed again
    only where a window reaches.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the class predicted for the
        whole image.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      baseline: what covers the image: `[n, *space, c]`, anything that broadcasts to it, or `None` for zeros (the mean
        colour). Several are `[1 or n, m, *space, c]`; scores are then means over them.
      window: side of the window in pixels, or one for each axis of space; by default an eighth of each side of the
        image.
      stride: step of the window in pixels, or one for each axis of space; by default half the window.
      chunk_size: covered images in one forward pass; they are made inside the pass and never held all at once.
        By default what suits the device.

    Returns:
      Attributions `float32[n, *space]`, signed, in units of the score.

    Raises:
      ValueError: images, targets or baseline of a wrong shape, type or range; a window larger than the image, or a
        stride that leaves gaps between windows; an output that the score cannot read.

    When: a question anyone understands, of any model. Not for evidence that two places hold each alone: covering one
    changes nothing.

    Reference: Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks,
    https://arxiv.org/abs/1311.2901

    Example:
      >>> attributions = jaxcam.occlusion(model, images, window=8, stride=4)
    """
    space = images.shape[1:-1]
    window = parts(space) if window is None else sizes("window", window, space)
    stride = tuple(-(-side // 2) for side in window) if stride is None else sizes("stride", stride, space)
    if any(side > whole for side, whole in zip(window, space, strict=True)):
        raise ValueError(f"window is {window}, which is larger than the images, {space}.")
    if any(step > side and side < whole for step, side, whole in zip(stride, window, space, strict=True)):
        raise ValueError(f"stride is {stride}, which leaves pixels uncovered between windows of {window}.")
    sides = tuple(map(covered, space, window, stride))
    drops = drops_without(model, images, targets, baseline, sides, score, chunk_size)
    return along(drops, [(side / side.sum(0)).T for side in sides], 1)


def parts(space: tuple[int, ...]) -> tuple[int, ...]:
    """The window that cuts each side of an image into eight."""
    return tuple(-(-side // PARTS) for side in space)


def covered(size: int, window: int, stride: int) -> np.ndarray:
    """`float32[windows, size]`: one where a window covers a pixel of a side, together all; the last may be cut off."""
    starts = np.arange(1 + max(0, -(-(size - window) // stride)))[:, None] * stride
    pixels = np.arange(size)
    return ((pixels >= starts) & (pixels < starts + window)).astype(np.float32)


def drops_without(model, images, targets, baseline, sides, score, chunk_size):
    """How far the score drops when a baseline takes the place of the pixels in a window: `float32[n, *windows]`.

    `sides` are the windows along each axis of space, as `covered` gives them. Of several baselines it is the mean.
    """
    counts, size = tuple(map(len, sides)), tuple(int(side.sum(1).max()) for side in sides)
    places = np.indices(counts, np.int32).reshape(len(sides), -1)  # which of each side's windows a window is made of
    # A window that overhangs is changed in a part of the pixels that begin further in.
    starts = [np.minimum(side.argmax(1), side.shape[1] - pixels) for side, pixels in zip(sides, size, strict=True)]
    starts = np.stack([each[place] for each, place in zip(starts, places, strict=True)], -1)
    check_large_enough(model, images)
    fills = samples_of(baseline, images)
    count = fills.shape[1]
    output, run = windowed(model, images, starts, size)
    targets = predicted(output) if targets is None else targets

    def without(indices):
        windows, fill = indices // count, picked(fills, indices % count)
        pairs = zip(sides, places, strict=True)
        gone = reduce(_outer, [jnp.asarray(side > 0)[jnp.asarray(place)[windows]] for side, place in pairs])
        changed = jnp.where(gone[None, ..., None], fill, images[:, None])
        m = len(windows)
        after = scores(repeated(score, m), run(windows, changed), jnp.repeat(targets, m, axis=0))
        return after.reshape(-1, m)

    after = chunked_map(without, len(starts) * count, images, chunk_size)
    after = after.reshape(after.shape[0], len(starts), count).mean(-1)
    return (scores(score, output, targets)[:, None] - after).reshape(-1, *counts)


def _outer(mask, side):
    """`[m, ...]` and `[m, size]` make `[m, ..., size]`: where both are."""
    return mask[..., None] & side.reshape(len(side), *(1,) * (mask.ndim - 1), -1)
