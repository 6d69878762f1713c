"""How alike two maps are, for each image: correlation, overlap, structure.

Every function takes two arrays of one map per image, heatmaps `[n, *space]` or attributions `[n, *space, c]`, and
returns `float32[n]`; one is "the same". A constant map has no pattern to agree with: it gives zero, never NaN.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxcam._array import along, normalize
from jaxcam._checks import number
from jaxcam.metrics._checks import TO_HEATMAPS, AnyHeatmaps, AnyMaps, Values, check_heatmaps, check_maps, or_nan

SIGMA, RADIUS = 1.5, 5  # the window of SSIM's paper: a Gaussian, cut to 11 pixels along each axis
C1, C2 = 0.01**2, 0.03**2  # SSIM's constants, for maps that span [0, 1]


def pearson(a: AnyMaps, b: AnyMaps) -> Values:
    """Pearson correlation: whether the values of two maps rise and fall together.

    `r = sum (a - mean a)(b - mean b) / (|a - mean a| |b - mean b|)`, over all values of an image.

    Args:
      a, b: `[n, ...]`, of one shape.

    Returns:
      `float32[n]` in [-1, 1]; zero where a map is constant.

    Raises:
      ValueError: shapes that differ, or NaN.

    Reference: Pearson 1896, Regression, Heredity and Panmixia, https://doi.org/10.1098/rsta.1896.0007

    Example:
      >>> values = jaxcam.metrics.pearson(heatmaps, others)
    """
    return _pearson(*_pair(a, b))


@jax.jit
def _pearson(a, b):
    return _cosine(_centred(a), _centred(b))


def spearman(a: AnyMaps, b: AnyMaps) -> Values:
    """Spearman rank correlation: whether two maps put the pixels in the same order.

    `rho = pearson(ranks(a), ranks(b))`; equal values share the average of their ranks.

    Args:
      a, b: `[n, ...]`, of one shape.

    Returns:
      `float32[n]` in [-1, 1]; zero where a map is constant.

    Raises:
      ValueError: shapes that differ, or NaN.

    Reference: Spearman 1904, The Proof and Measurement of Association, https://doi.org/10.2307/1412159

    Example:
      >>> values = jaxcam.metrics.spearman(heatmaps, others)
    """
    return _spearman(*_pair(a, b))


@jax.jit
def _spearman(a, b):
    return or_nan(_pearson(average_ranks(a), average_ranks(b)), a, b)


def iou_top(a: AnyMaps, b: AnyMaps, *, fraction: float | int = 0.1) -> Values:
    """Overlap of the two maps' most important pixels.

    `IoU = |A and B| / |A or B|`, where `A` is the `fraction` of the pixels with the highest values of `a`.

    Pixels that tie with the last one belong to it too, and a pixel at the map's minimum never does: the many zeros of a
    CAM are not important, and a constant map has no important pixel at all, so its overlap is zero.

    Args:
      a, b: `[n, ...]`, of one shape.
      fraction: share of the pixels, above 0 and at most 1.

    Returns:
      `float32[n]` in [0, 1]; zero where a map is constant.

    Raises:
      ValueError: shapes that differ, or NaN.

    Reference: Ghorbani et al. 2019, Interpretation of Neural Networks Is Fragile (top-k intersection),
    https://arxiv.org/abs/1710.10547

    Example:
      >>> values = jaxcam.metrics.iou_top(heatmaps, others, fraction=0.2)
    """
    number(above=0, most=1, fraction=fraction)
    a, b = _pair(a, b)
    return _iou_top(a, b, max(1, round(fraction * a.shape[1])))


@partial(jax.jit, static_argnums=2)
def _iou_top(a, b, count):
    top_a, top_b = _top(a, count), _top(b, count)
    common, either = (jnp.sum(each, -1, dtype=jnp.float32) for each in (top_a & top_b, top_a | top_b))
    return or_nan(common / jnp.maximum(either, 1), a, b)


def _top(values, count):
    threshold = jnp.sort(values, -1)[:, -count, None]
    return (values >= threshold) & (values > values.min(-1, keepdims=True))


def cosine(a: AnyMaps, b: AnyMaps) -> Values:
    """Cosine similarity: the angle between two maps as vectors.

    `cos = sum a b / (|a| |b|)`, over all values of an image.

    Args:
      a, b: `[n, ...]`, of one shape.

    Returns:
      `float32[n]` in [-1, 1]; zero where a map is zero everywhere.

    Raises:
      ValueError: shapes that differ, or NaN.

    Reference: Salton et al. 1975, A Vector Space Model for Automatic Indexing, https://doi.org/10.1145/361219.361220

    Example:
      >>> values = jaxcam.metrics.cosine(heatmaps, others)
    """
    return _cosine(*_pair(a, b))


@jax.jit
def _cosine(a, b):
    return jnp.clip(jnp.sum(_unit(a) * _unit(b), -1), -1, 1)


def ssim(a: AnyHeatmaps, b: AnyHeatmaps) -> Values:
    """Structural similarity: local means, contrasts and patterns of two maps in [0, 1].

    `SSIM = mean (2 m_a m_b + c1)(2 s_ab + c2) / ((m_a^2 + m_b^2 + c1)(s_a^2 + s_b^2 + c2))`, with means `m` and
    covariances `s` under a Gaussian window of sigma 1.5, cut to 11 pixels along each axis of space, `c1 = 0.01^2`,
    `c2 = 0.03^2`.

    The convention is the paper's: scikit-image with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=1`. The mean is over the windows that lie inside the map. Two equal constant maps give one.

    Args:
      a, b: heatmaps `[n, *space]` in [0, 1], at least 11 pixels along each axis.

    Returns:
      `float32[n]` in [-1, 1].

    Raises:
      ValueError: shapes that differ or are too small, values outside [0, 1], or NaN.

    Reference: Wang et al. 2004, Image Quality Assessment: From Error Visibility to Structural Similarity,
    https://doi.org/10.1109/TIP.2003.819861

    Example:
      >>> values = jaxcam.metrics.ssim(heatmaps, others)
    """
    a, b = check_heatmaps(a, unit=True), check_heatmaps(b, unit=True)
    _same_shape(a, b)
    space = a.shape[1:]
    if min(space) <= 2 * RADIUS:
        hint = f" {TO_HEATMAPS}" if len(space) > 1 and min(space[:-1]) > 2 * RADIUS else ""
        size = " x ".join(map(str, space))
        raise ValueError(f"The maps have {size} pixels; SSIM's window needs at least 11 along each axis.{hint}")
    return _ssim(a, b)


@jax.jit
def _ssim(a, b):
    windows = list(map(_windows, a.shape[1:]))

    def local_mean(x):
        return along(x, windows, 1)

    mean_a, mean_b = local_mean(a), local_mean(b)
    variances = local_mean(a * a) - mean_a**2 + local_mean(b * b) - mean_b**2
    covariance = local_mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return jnp.mean(luminance * (2 * covariance + C2) / (variances + C2), tuple(range(1, a.ndim)))


def _windows(size: int) -> np.ndarray:
    """The Gaussian window at each place where it fits, `[size - 10, size]`."""
    offsets = np.arange(size) - np.arange(RADIUS, size - RADIUS)[:, None]
    weights = np.where(np.abs(offsets) <= RADIUS, np.exp(-0.5 * (offsets / SIGMA) ** 2), 0)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def _pair(a, b):
    """Both maps as `float32[n, values]`."""
    a, b = check_maps(a, "a"), check_maps(b, "b")
    _same_shape(a, b)
    return a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)


def _same_shape(a, b):
    if a.shape != b.shape:
        raise ValueError(f"The maps have shapes {a.shape} and {b.shape}; they must be the same to be compared.")


def _centred(x):
    """Without its mean; exactly zero where only rounding would be left."""
    x = normalize(x)
    return x - x.mean(-1, keepdims=True)


def _unit(x):
    """Scaled to length one; zeros stay. Scaling by the maximum first keeps the squares in range."""
    largest = jnp.abs(x).max(-1, keepdims=True)
    x = x / jnp.where(largest == 0, 1, largest)
    squares = jnp.sum(x * x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(squares == 0, 1, squares))


def average_ranks(x):
    """Ranks from zero of each map's values `[n, values]`; a run of equal values has the mean of its first and last.

    Sorting back, in place of indexing, keeps an axis of images that is sharded where it is.
    """
    places = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    values, order = jax.lax.sort((x, places), num_keys=1)
    edge = jnp.ones_like(values[:, :1], bool)
    changes = values[:, 1:] != values[:, :-1]
    starts, ends = jnp.concatenate([edge, changes], 1), jnp.concatenate([changes, edge], 1)
    first = jax.lax.cummax(jnp.where(starts, places, 0), axis=1)
    last = jax.lax.cummin(jnp.where(ends, places, x.shape[1] - 1), axis=1, reverse=True)
    return jax.lax.sort((order, (first + last).astype(jnp.float32) / 2), num_keys=1)[1]
