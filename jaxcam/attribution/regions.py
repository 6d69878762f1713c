"""Attributions gathered into regions: pixels are noisy, segments are what people see.

Integrated gradients from a black and from a white image are summed within segments of several sizes, and the segments
are taken greedily, the densest first; each pixel gets the density of the segment that took it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxcam._gradient import straight_line
from jaxcam._inputs import check_images, check_targets, engine, positive
from jaxcam._typing import Heatmaps, Images, Score, Targets
from jaxcam.score import logit
from jaxcam.segments import grid
from jaxcam.tap import Tap

PATCHES = (2, 4, 8, 16)  # how many patches of the default segmentations fit along the shorter side


def xrai(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    segments: np.ndarray | jax.Array | None = None,
    num_steps: int = 50,
    chunk_size: int | None = None,
) -> Heatmaps:
    """XRAI: the regions that integrated gradients point at, the densest first.

    `map[p] = max over segments S, greedily, of mean_{q in S not yet taken} a[q]`, where `a` is the sum over channels of
    integrated gradients, averaged over a black and a white baseline (each image's own least and greatest value).

    The paper segments by Felzenszwalb's method; here `segments` are any, by default square grids of four sizes, which
    need no other library and work inside `jit`.

    Args:
      model, images, targets, score: as for `integrated_gradients`.
      segments: labels `int[s, h, w]`, `s` segmentations for all images, or `int[n, s, h, w]`. For superpixels:
        `np.stack([jaxcam.segments.superpixels(images, count) for count in (20, 60, 200)], axis=1)`.
      num_steps, chunk_size: as for `integrated_gradients`.

    Returns:
      Attributions `float32[n, h, w]`, signed, in units of the score per pixel.

    Raises:
      ValueError: images, targets or segments of a wrong shape, type or range; counts below one.

    Reference: Kapishnikov et al. 2019, XRAI: Better Attributions Through Regions, https://arxiv.org/abs/1906.02825

    Example:
      >>> attributions = jaxcam.xrai(model, images, num_steps=20)
    """
    positive(num_steps=num_steps, chunk_size=chunk_size)
    images = check_images(images)
    targets = check_targets(model, images, targets)
    n, shape = images.shape[0], images.shape[1:3]
    if segments is None:
        segments = np.stack([grid(shape, max(1, min(shape) // count)) for count in PATCHES])
    segments = np.asarray(segments)
    if segments.ndim not in (3, 4) or segments.shape[-2:] != shape or not np.issubdtype(segments.dtype, np.integer):
        raise ValueError(
            f"segments is {segments.dtype} {segments.shape}; it must be whole numbers [s, {shape[0]}, {shape[1]}] or "
            f"[{n}, s, {shape[0]}, {shape[1]}]."
        )
    if segments.ndim == 4 and len(segments) != n:
        raise ValueError(f"segments has shape {segments.shape}; its first axis must be the {n} images.")
    if segments.min() < 0:
        raise ValueError(f"segments holds the label {segments.min()}; labels count from 0.")
    labels = np.stack([_numbered(each) for each in segments.reshape(-1, *segments.shape[-3:])])
    static = {"score": score, "num_steps": num_steps, "chunk_size": chunk_size, "count": int(labels.max()) + 1}
    labels = jnp.broadcast_to(jnp.asarray(labels, jnp.int32), (n, *segments.shape[-3:]))
    return _xrai_engine(model, images, targets, labels, **static)


def _numbered(segments):
    """Labels of one image, numbered through all its segmentations, without gaps."""
    offset, labels = 0, []
    for each in segments:
        names, places = np.unique(each, return_inverse=True)
        labels.append(offset + places.reshape(each.shape))
        offset += len(names)
    return np.stack(labels)


@engine(static=("score", "num_steps", "chunk_size", "count"))
def _xrai_engine(model, images, targets, segments, *, score, num_steps, chunk_size, count):
    ends = [extreme(images, axis=(1, 2, 3), keepdims=True) for extreme in (jnp.min, jnp.max)]
    options = {"score": score, "num_steps": num_steps, "chunk_size": chunk_size}
    both = [straight_line(model, images, targets, jnp.broadcast_to(end, images.shape), **options) for end in ends]
    return jax.vmap(lambda a, labels: _greedy(a, labels, count))(sum(both).sum(-1) / 2, segments)


def _greedy(attribution, labels, count):
    """Each pixel's segment density, the segments taken from the densest down."""

    def of_segments(values):
        return sum(jax.ops.segment_sum(values.ravel(), each.ravel(), count) for each in labels)

    def take(_, state):
        result, free = state
        area = of_segments(free)
        density = jnp.where(area > 0, of_segments(attribution * free) / jnp.maximum(area, 1), -jnp.inf)
        best = jnp.argmax(density)
        taken = (labels == best).any(0) & (free > 0) & (area[best] > 0)
        return jnp.where(taken, density[best], result), jnp.where(taken, 0, free)

    start = jnp.zeros_like(attribution), jnp.ones_like(attribution)
    return jax.lax.fori_loop(0, count, take, start)[0]
