"""How much a map singles out: few pixels that stand out are easier to read than many that do not.

The functions take heatmaps `[n, *space]` or attributions `[n, *space, c]`, of which magnitudes count, and return
`float32[n]`; scaling a map changes nothing. A map that is zero everywhere singles nothing out, as a uniform one, and
gets its value.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxcam._array import normalize
from jaxcam._checks import number, positive
from jaxcam.metrics._checks import AnyMaps, Values, check_maps, or_nan


def gini(heatmaps: AnyMaps) -> Values:
    """Gini index: how unequally a map's magnitude is spread over its values (sparseness).

    `G = sum_i (2 i - N - 1) x_i / (N sum x)`, with the magnitudes `x_1 <= ... <= x_N`.

    Args:
      heatmaps: heatmaps or attributions, `[n, ...]`.

    Returns:
      `float32[n]`, from 0 (uniform, or zero everywhere) to `1 - 1/N` (one value holds all).

    Raises:
      ValueError: no maps, or NaN.

    Reference: Chalasani et al. 2020, Concise Explanations of Neural Networks using Adversarial Training,
    https://arxiv.org/abs/1810.06583

    Example:
      >>> values = jaxcam.metrics.gini(heatmaps)
    """
    return _gini(check_maps(heatmaps))


@jax.jit
def _gini(heatmaps):
    x = jnp.sort(_shares(heatmaps), -1)
    count = x.shape[-1]
    ranks = jnp.arange(1, count + 1, dtype=jnp.float32)
    return jnp.sum((2 * ranks - count - 1) / count * x, -1)


def entropy(heatmaps: AnyMaps) -> Values:
    """Entropy of a map's magnitudes as a distribution (complexity), in nats.

    `H = -sum p log p` with `p = |x| / sum |x|`.

    Args:
      heatmaps: heatmaps or attributions, `[n, ...]`.

    Returns:
      `float32[n]`, from 0 (one value holds all) to `log N` (uniform, or zero everywhere).

    Raises:
      ValueError: no maps, or NaN.

    Reference: Bhatt et al. 2020, Evaluating and Aggregating Feature-based Model Explanations,
    https://arxiv.org/abs/2005.00631

    Example:
      >>> values = jaxcam.metrics.entropy(heatmaps)
    """
    return _entropy(check_maps(heatmaps))


@jax.jit
def _entropy(heatmaps):
    return jnp.sum(jax.scipy.special.entr(_shares(heatmaps)), -1)


def effective_area(heatmaps: AnyMaps, *, threshold: float | int = 0.5) -> Values:
    """The share of the map that stands out: magnitudes above a fraction of the largest.

    `area = mean(|x| > threshold * max |x|)`.

    The count of Quantus's effective complexity, made relative: its threshold is absolute (1e-5), so that there a map
    changes its value when it is scaled.

    Args:
      heatmaps: heatmaps or attributions, `[n, ...]`.
      threshold: from 0 to below 1, in units of the largest magnitude.

    Returns:
      `float32[n]` in (0, 1]; one for a map that is constant or zero everywhere.

    Raises:
      ValueError: no maps, or NaN.

    Reference: Nguyen and Martinez 2020, On Quantitative Aspects of Model Interpretability,
    https://arxiv.org/abs/2007.07584

    Example:
      >>> values = jaxcam.metrics.effective_area(heatmaps, threshold=0.2)
    """
    number(threshold=threshold)
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold is {threshold}; it must be at least 0 and below 1.")
    return _effective_area(check_maps(heatmaps), threshold)


@partial(jax.jit, static_argnums=1)
def _effective_area(heatmaps, threshold):
    x = _shares(heatmaps)
    return or_nan(jnp.mean(x > threshold * x.max(-1, keepdims=True), -1, dtype=jnp.float32), x)


def histogram_entropy(maps: AnyMaps, *, num_bins: int = 100) -> Values:
    """Entropy of the distribution of a map's values over equal bins from its lowest to its highest, in nats.

    `H = -sum_b p_b log p_b`, with `p_b` the share of the values in bin `b`; what `efficient_mprt` compares.

    Args:
      maps: heatmaps or attributions, `[n, ...]`, with their signs.
      num_bins: how many bins.

    Returns:
      `float32[n]`, from 0 (a constant map) to `log num_bins`.

    Raises:
      ValueError: no maps, or NaN.

    Example:
      >>> values = jaxcam.metrics.histogram_entropy(heatmaps, num_bins=20)
    """
    positive(num_bins=num_bins)
    return _histogram_entropy(check_maps(maps), num_bins)


@partial(jax.jit, static_argnums=1)
def _histogram_entropy(maps, num_bins):
    maps = maps.reshape(maps.shape[0], -1)
    bins = jnp.clip(jnp.floor(normalize(maps) * num_bins), 0, num_bins - 1).astype(jnp.int32)
    counts = jax.vmap(partial(jax.ops.segment_sum, num_segments=num_bins))(jnp.ones_like(maps), bins)
    return or_nan(jnp.sum(jax.scipy.special.entr(counts / maps.shape[1]), -1), maps)


def _shares(heatmaps):
    """Magnitudes that sum to one, `[n, N]`; uniform for a zero map."""
    x = jnp.abs(heatmaps.reshape(heatmaps.shape[0], -1))
    largest = x.max(-1, keepdims=True)
    x = jnp.where(largest == 0, 1, x / jnp.where(largest == 0, 1, largest))  # first to [0, 1]: no overflow in the sum
    return x / x.sum(-1, keepdims=True)
