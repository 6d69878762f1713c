"""Attributions gathered into regions: pixels are noisy, segments are what people see.

Integrated gradients from a black and from a white image are summed within segments of several sizes, and the segments
are taken greedily, the densest first; each pixel gets the density of the segment that took it.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcam._checks import as_array, positive, prepare
from jaxcam._engine import engine
from jaxcam._typing import Heatmaps, Images, Score, Targets
from jaxcam.attribution.paths import integral, of_each, straight_line
from jaxcam.score import logit
from jaxcam.segments import grid
from jaxcam.taps import Tap

PARTS = (2, 4, 8, 16)  # how many windows of the default segmentations fit along the shortest side
Labels = np.ndarray | jax.Array


class Parts(NamedTuple):
    """Pixels that no segmentation tells apart: they are taken together, so the loop may run over them as one.

    They are far fewer than pixels, unless segments are as small as pixels: of the default grids on a square image 256.
    """

    places: np.ndarray  # the part of each pixel, [1 or n, *space]; 1 for all images
    members: np.ndarray  # the segment that each part belongs to, in each segmentation, [1 or n, s, parts]
    sizes: np.ndarray  # how many pixels each part holds, float32[1 or n, parts]
    count: int  # how many segments there are, over all segmentations


def xrai(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    segments: Labels | Sequence[Labels] | None = None,
    num_steps: int = 50,
    chunk_size: int | None = None,
) -> Heatmaps:
    """XRAI: the regions that integrated gradients point at, the densest first.

    `map[p] = max over segments S, greedily, of mean_{q in S not yet taken} a[q]`, where `a` is the sum over channels of
    integrated gradients, averaged over a black and a white baseline (each image's own least and greatest value).

    The paper segments by Felzenszwalb's method; here `segments` are any, by default square grids of four sizes, which
    need no other library and work inside `jit`.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      segments: labels from zero, `int[*space]` for all images or `int[n, *space]`, one segmentation for each; or a
        tuple of several such segmentations, which compete. For superpixels of several sizes:
        `tuple(jaxcam.segments.superpixels(images, count) for count in (20, 60, 200))`. Inside `jit` the labels must
        be known, as those of a NumPy array from outside are.
      num_steps: points of the quadrature.
      chunk_size: images in one forward and backward pass; by default what suits the device. Memory does not grow with
        `num_steps`.

    Returns:
      Attributions `float32[n, *space]`, signed, in units of the score per pixel.

    Raises:
      ValueError: images, targets or segments of a wrong shape, type or range; counts below one.

    Reference: Kapishnikov et al. 2019, XRAI: Better Attributions Through Regions, https://arxiv.org/abs/1906.02825

    Example:
      >>> attributions = jaxcam.xrai(model, images, num_steps=20)
    """
    model, images, targets = prepare(model, images, targets)
    positive(num_steps=num_steps, chunk_size=chunk_size)
    space = images.shape[1:-1]
    *parts, count = _grids(space) if segments is None else _parts(_check_segments(segments, images), len(space))
    options = {"count": count, "score": score, "num_steps": num_steps, "chunk_size": chunk_size}
    return _xrai_engine(model, images, targets, tuple(map(as_array, parts)), **options)


@lru_cache(maxsize=4)
def _grids(space: tuple[int, ...]) -> Parts:
    return _parts([grid(space, max(1, min(space) // parts)) for parts in PARTS], len(space))


def _check_segments(segments, images) -> list[np.ndarray]:
    """Each segmentation as an array of known labels, `[*space]` or `[n, *space]`."""
    found, several = [], isinstance(segments, tuple | list)
    for each in segments if several else [segments]:
        name = f"segments[{len(found)}]" if several else "segments"
        if not hasattr(each, "dtype") or not jnp.issubdtype(each.dtype, jnp.integer):
            kind = getattr(each, "dtype", type(each).__name__)
            raise ValueError(f"{name} is of type {kind}; it must be whole numbers, [*space] or [n, *space].")
        if each.shape not in (images.shape[1:-1], images.shape[:-1]):
            raise ValueError(
                f"{name} has shape {each.shape}; for images {images.shape} it must be {images.shape[1:-1]}, for all "
                f"images, or {images.shape[:-1]}, one for each. Several segmentations go in as a tuple of such arrays."
            )
        if isinstance(each, jax.core.Tracer):
            raise ValueError(
                f"The labels in {name} are not known while jit traces, and their number shapes the program: pass "
                "segments as NumPy arrays from outside, or leave them out; the default grids work inside jit."
            )
        found.append(np.asarray(jax.device_get(each)))
        if found[-1].min() < 0:
            raise ValueError(f"{name} holds the label {found[-1].min()}; labels count from 0.")
    if not found:
        raise ValueError("segments is empty; it must hold one segmentation or more.")
    return found


def _parts(segmentations, axes: int) -> Parts:
    """What no segmentation cuts further: of each image, or of one where the segmentations are for all."""
    rows = [each.reshape(-1, *each.shape[-axes:]) for each in segmentations]
    of_images = [[each[i % len(each)] for each in rows] for i in range(max(map(len, rows)))]
    labels, count = [], 0  # numbered through all segmentations
    for each in zip(*of_images, strict=True):
        numbered = [np.unique(row, return_inverse=True)[1].reshape(row.shape) for row in each]
        labels.append(np.stack(numbered) + count)
        count = int(labels[-1].max()) + 1
    places, members, sizes = zip(*map(_common, zip(*labels, strict=True)), strict=True)
    most = max(map(len, sizes))  # images with fewer get parts without pixels, in the end
    members = [np.pad(each, ((0, 0), (0, most - each.shape[1]))) for each in members]
    sizes = [np.pad(each, (0, most - len(each))).astype(np.float32) for each in sizes]
    return Parts(np.stack(places).astype(np.int32), np.stack(members).astype(np.int32), np.stack(sizes), count)


def _common(labels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The part of each pixel of an image, the segments of each part, and how many pixels it holds."""
    parts = np.zeros_like(labels[0])
    for each in labels:
        parts = np.unique(parts * (int(each.max()) + 1) + each, return_inverse=True)[1].reshape(each.shape)
    _, first, sizes = np.unique(parts, return_index=True, return_counts=True)
    return parts, np.stack([each.ravel()[first] for each in labels]), sizes


@engine
def _xrai_engine(model, images, targets, parts, *, count, score, num_steps, chunk_size):
    axes = tuple(range(1, images.ndim))
    black, white = (end(images.astype(jnp.float32), axes, keepdims=True)[:, None] for end in (jnp.min, jnp.max))

    def curve(steps):  # one line after the other
        starts = jnp.where(of_each(steps < num_steps, images), black, white)
        return straight_line(images, starts, steps % num_steps, num_steps)

    lines = integral(model, images, targets, curve, 2 * num_steps, score=score, chunk_size=chunk_size)
    attributions = lines.sum(-1) / 2
    if len(parts[0]) == 1:  # for all images
        return jax.vmap(lambda each: _greedy(each, *(array[0] for array in parts), count))(attributions)
    return jax.vmap(lambda *each: _greedy(*each, count))(attributions, *parts)


def _greedy(attribution, places, members, part_sizes, count):
    """One image's map: the densest segment first, a part of it in each step, so that every part is taken once.

    What is left of the segments is kept by subtraction, so that a step costs little, however many pixels there are.
    """
    part_sums = jax.ops.segment_sum(attribution.ravel(), places.ravel(), members.shape[1])

    def of_segments(each):
        return sum(jax.ops.segment_sum(each, labels, count) for labels in members)

    def densest(sums, sizes):
        densities = jnp.where(sizes > 0, sums / jnp.maximum(sizes, 1), -jnp.inf)
        density = jnp.max(densities)
        return _first((densities == density) | jnp.isnan(densities)), density

    def take(_, state):
        result, free, sums, sizes, current = state
        current = jax.tree.map(partial(jnp.where, sizes[current[0]] > 0), current, densest(sums, sizes))
        segment, density = current
        part = _first((members == segment).any(0) & free)
        owners = members[:, part]
        sums, sizes = sums.at[owners].add(-part_sums[part]), sizes.at[owners].add(-part_sizes[part])
        return result.at[part].set(density), free.at[part].set(False), sums, sizes, current

    sums = of_segments(part_sums)
    sizes = of_segments(part_sizes) + jnp.zeros_like(sums)  # varies over a mesh as the images do
    start = jnp.zeros_like(part_sums), jnp.ones_like(part_sums, bool), sums, sizes, densest(sums, sizes)
    return jax.lax.fori_loop(0, members.shape[1], take, start)[0][places]


def _first(mask):
    """The first index where a mask holds; `argmax` says the same, in ten times as long on a CPU."""
    return jnp.min(jnp.where(mask, jnp.arange(len(mask), dtype=jnp.int32), len(mask)))
