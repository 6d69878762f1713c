"""Attributions gathered into regions: pixels are noisy, segments are what people see.

Integrated gradients from a black and from a white image are averaged within segments of several sizes, and the segments
are taken greedily, the densest first; each pixel gets the density of the segment that took it.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxcam._checks import as_array, choice, is_known, positive, prepare
from jaxcam._engine import engine
from jaxcam._typing import Heatmaps, Images, Score, Targets
from jaxcam.attribution.paths import integral, of_each, straight_line
from jaxcam.score import logit
from jaxcam.segments import felzenszwalb, grid
from jaxcam.taps import Tap

CHANNELS = {"max": jnp.max, "sum": jnp.sum}
PARTS = {1: (2, 4, 8, 16), 3: (2, 4, 8)}  # windows along an axis of signals and volumes, in the default segmentations
Segments = np.ndarray | jax.Array


class Parts(NamedTuple):
    """Pixels that no segment tells apart: they are taken together, so the loop may run over them as one.

    They are far fewer than pixels, unless segments are as small as pixels: a tenth, of Felzenszwalb's segments.
    """

    places: Segments  # the part of each pixel, int32[1 or n, *space]; 1 for all images
    masks: Segments  # which segments hold each part, bool[1 or n, parts, s]
    sizes: Segments  # how many pixels each part holds, float32[1 or n, parts]


def xrai(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    segments: Segments | Sequence[Segments] | None = None,
    channels: str = "max",
    min_pixels: int | None = None,
    num_steps: int = 50,
    chunk_size: int | None = None,
) -> Heatmaps:
    """XRAI: the regions that integrated gradients point at, the densest first.

    `map[p] = max over segments S, greedily, of mean_{q in S not yet taken} a[q]`, where `a` is the largest channel of
    integrated gradients, averaged over a black and a white baseline (each image's own least and greatest value). What
    no segment took gets the mean of what is left, as in the code of the paper's authors.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      segments: what competes: labels from zero, `int[*space]` for all images or `int[n, *space]`; masks, which may
        overlap, `bool[s, *space]` or `bool[n, s, *space]`; or a tuple of several such arrays, for segments of several
        sizes. `None` cuts images as the paper does, by `jaxcam.segments.felzenszwalb(images)`, which needs
        scikit-image, and signals and volumes into equal parts of several sizes. Inside `jit` and `vmap`, where
        Felzenszwalb's method cannot see the images, pass its masks, or labels that are known, as those of a NumPy
        array from outside are.
      channels: `"max"` takes each pixel's largest channel, as the paper's authors do; `"sum"` the sum of them, with
        which the map sums to the score's difference between the image and the mean of its baselines.
      min_pixels: a segment that would add fewer pixels is passed over; `None` is 50, as in the authors' code, or a
        thousandth of the pixels where that is fewer.
      num_steps: points of the quadrature.
      chunk_size: images in one forward and backward pass; by default what suits the device. Memory does not grow with
        `num_steps`.

    Returns:
      Attributions `float32[n, *space]`, signed, in units of the score per pixel.

    Raises:
      ImportError: no segments are given, and scikit-image is not installed.
      ValueError: images, targets or segments of a wrong shape, type or range; no segments under `jit`; counts below
        one; unknown `channels`.

    When: regions with clean edges instead of scattered pixels. Not inside `jit` without ready segments, nor for
    textures that no segment holds.

    Reference: Kapishnikov et al. 2019, XRAI: Better Attributions Through Regions, https://arxiv.org/abs/1906.02825

    Example:
      >>> attributions = jaxcam.xrai(model, images, num_steps=20)
    """
    model, images, targets = prepare(model, images, targets)
    positive(num_steps=num_steps, chunk_size=chunk_size, min_pixels=min_pixels)
    choice(CHANNELS, channels=channels)
    if min_pixels is None:
        min_pixels = min(50, -(-math.prod(images.shape[1:-1]) // 1000))
    segments = _default(images) if segments is None else segments
    parts = _parts(_check_segments(segments, images), images.shape[1:-1], min_pixels)
    options = {"channels": channels, "min_pixels": min_pixels, "num_steps": num_steps, "chunk_size": chunk_size}
    return _xrai_engine(model, images, targets, tuple(map(as_array, parts)), score=score, **options)


def _default(images) -> Segments | Sequence[Segments]:
    """Felzenszwalb's segments of images; of signals and volumes, which have no such, equal parts of several sizes."""
    space = images.shape[1:-1]
    if len(space) != 2:
        return _grids(space)
    if is_known(images):
        return felzenszwalb(images)
    raise ValueError(
        "xrai cuts images along their edges, which are not known while jit or vmap traces. Compute them outside, "
        "segments = jaxcam.segments.felzenszwalb(images), and pass segments=segments; or pass what looks at no image, "
        f"segments=jaxcam.segments.grid({space}, {max(1, min(space) // 16)})."
    )


@lru_cache(maxsize=4)
def _grids(space: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    return tuple(grid(space, tuple(-(-side // parts) for side in space)) for parts in PARTS[len(space)])


def _check_segments(segments, images) -> list[Segments]:
    """Each segmentation as an array: labels `[*space]` or `[n, *space]`, or masks with an axis before space."""
    several = isinstance(segments, tuple | list)
    found = []
    for each in segments if several else [segments]:
        name = f"segments[{len(found)}]" if several else "segments"
        kind = getattr(each, "dtype", type(each).__name__)
        labels = jnp.issubdtype(kind, jnp.integer) if hasattr(each, "dtype") else False
        if not labels and not _are_masks(each):
            raise ValueError(f"{name} is of type {kind}; it must hold labels (whole numbers), or masks (bool).")
        _check_shape(name, each, images)
        if labels and isinstance(each, Tracer):
            raise ValueError(
                f"The labels in {name} are not known while jit traces, and their number shapes the program: pass "
                "labels as NumPy arrays from outside, or masks, bool[n, s, *space], such as "
                "labels[:, None] == np.arange(s)[:, None, None]."
            )
        found.append(each if isinstance(each, Tracer) else np.asarray(jax.device_get(each)))
        if labels and found[-1].min() < 0:
            raise ValueError(f"{name} holds the label {found[-1].min()}; labels count from 0.")
    if not found:
        raise ValueError("segments is empty; it must hold one segmentation or more.")
    return found


def _are_masks(segmentation) -> bool:
    return getattr(segmentation, "dtype", None) == np.dtype(bool)


def _check_shape(name, each, images):
    n, *space = images.shape[:-1]
    before, own = each.shape[: -len(space)], list(each.shape[-len(space) :])
    number, rows = (before[-1:], before[:-1]) if _are_masks(each) else ((1,), before)
    if own != space or len(number) != 1 or number == (0,) or rows not in ((), (n,)):
        one = ", ".join(map(str, space))
        kind, shapes = ("labels", f"[{one}]", f"[{n}, {one}]"), ("masks", f"[s, {one}]", f"[{n}, s, {one}]")
        kind, for_all, for_each = shapes if _are_masks(each) else kind
        raise ValueError(
            f"{name} has shape {each.shape}; for images {images.shape} {kind} must be {for_all}, for all images, or "
            f"{for_each}, for each. Several segmentations go in as a tuple of such arrays."
        )


def _parts(segmentations, space: tuple[int, ...], min_pixels: int) -> Parts:
    """What no segment cuts further: of each image, or of one where the segmentations are for all.

    Where masks are not known, under `jit`, every pixel is a part of its own.
    """
    rows = [_masks(each, space, min_pixels) for each in segmentations]
    of_images = ([each[i % len(each)] for each in rows] for i in range(max(map(len, rows))))
    if any(isinstance(each, Tracer) for each in segmentations):
        places = np.arange(math.prod(space), dtype=np.int32).reshape(1, *space)
        masks = jnp.stack([jnp.concatenate(each).T for each in of_images])
        return Parts(places, masks, np.ones((1, places.size), np.float32))
    found = [_common(np.concatenate(each), min_pixels) for each in of_images]
    most = np.max([each.masks.shape for each in found], axis=0)  # the others get some without pixels, in the end
    masks = [np.pad(each.masks, [(0, more) for more in most - each.masks.shape]) for each in found]
    sizes = [np.pad(each.sizes, (0, most[0] - len(each.sizes))) for each in found]
    return Parts(np.stack([each.places.reshape(space) for each in found]), np.stack(masks), np.stack(sizes))


def _masks(segmentation, space, min_pixels: int) -> Segments | list[np.ndarray]:
    """The masks `bool[s, pixels]` of each image, or of the one segmentation for all."""
    pixels = math.prod(space)
    if _are_masks(segmentation):
        return segmentation.reshape(-1, segmentation.shape[-len(space) - 1], pixels)

    def large(labels):  # the others are never taken
        values, counts = np.unique(labels, return_counts=True)
        return labels == values[counts >= min_pixels, None]

    return [large(labels) for labels in segmentation.reshape(-1, pixels)]


def _common(masks, min_pixels: int) -> Parts:
    """The parts of one image, of its masks `bool[s, pixels]`."""
    masks = np.pad(masks[masks.sum(1) >= min_pixels], ((0, 1), (0, 0)))  # one that is empty, so that there is one
    signatures = np.ascontiguousarray(np.packbits(masks, axis=0).T)
    signatures = signatures.view(f"V{signatures.shape[1]}").ravel()
    _, first, places, sizes = np.unique(signatures, return_index=True, return_inverse=True, return_counts=True)
    return Parts(places.astype(np.int32), masks[:, first].T, sizes.astype(np.float32))


@engine
def _xrai_engine(model, images, targets, parts, *, score, channels, min_pixels, num_steps, chunk_size):
    axes = tuple(range(1, images.ndim))
    black, white = (end(images.astype(jnp.float32), axes, keepdims=True)[:, None] for end in (jnp.min, jnp.max))

    def curve(steps):  # one line after the other
        starts = jnp.where(of_each(steps < num_steps, images), black, white)
        return straight_line(images, starts, steps % num_steps, num_steps)

    lines = integral(model, images, targets, curve, 2 * num_steps, score=score, chunk_size=chunk_size)
    attributions = CHANNELS[channels](lines / 2, axis=-1)
    for_all = [each.shape[0] == 1 for each in parts]
    arrays = [each[0] if one else each for each, one in zip(parts, for_all, strict=True)]
    mapped = jax.vmap(partial(_densities, min_pixels=min_pixels), (0, *(None if one else 0 for one in for_all)))
    return mapped(attributions, *arrays)


def _densities(attribution, places, masks, sizes, *, min_pixels):
    """One image's map: the mean attribution of the region that each pixel is in."""
    sums = jax.ops.segment_sum(attribution.ravel(), places.ravel(), len(sizes))
    regions = _regions(jax.lax.stop_gradient(sums), masks, sizes, min_pixels)
    count = masks.shape[1] + 1
    totals, pixels = (jax.ops.segment_sum(each, regions, count) for each in (sums, sizes))
    return (totals / jnp.maximum(pixels, 1))[regions][places]


def _regions(sums, masks, sizes, min_pixels):
    """The segment that takes each part, the densest first; what is left is the region after the last segment."""
    left = masks.shape[1]

    def densest(regions):
        free = masks & (regions == left)[:, None]
        totals, pixels = (jnp.sum(jnp.where(free, each[:, None], 0), axis=0) for each in (sums, sizes))
        densities = jnp.where(pixels >= min_pixels, totals / jnp.maximum(pixels, 1), -jnp.inf)
        segment = jnp.argmax(densities)
        return segment, pixels[segment] >= min_pixels

    def take(state):
        regions, segment, _ = state
        regions = jnp.where(masks[:, segment] & (regions == left), segment.astype(jnp.int32), regions)
        return regions, *densest(regions)

    nothing = jnp.full_like(sums, left, jnp.int32)
    return jax.lax.while_loop(lambda state: state[-1], take, (nothing, *densest(nothing)))[0]
