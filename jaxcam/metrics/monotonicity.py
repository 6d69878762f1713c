"""Whether pixels that a map calls more important do more: two metrics that go through them from the lowest up.

One puts them into a baseline, a share at a time, and asks whether the score only rises; the other changes each share
alone and asks whether the change of the score grows with the share's importance.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcam._array import ROUNDING
from jaxcam._checks import functions, positive
from jaxcam._engine import chunked_map, engine
from jaxcam._scores import scores_of_copies
from jaxcam._typing import Images, Key, Score, Targets
from jaxcam.metrics._altered import (
    Curve,
    Fill,
    Model,
    between,
    curve_engine,
    fill,
    looked_at,
    pixel_counts,
    prepare_altered,
    removal_order,
)
from jaxcam.metrics._checks import AnyHeatmaps, Values, or_nan
from jaxcam.metrics.similarity import spearman
from jaxcam.score import probability


def monotonicity(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = probability,
    baseline: Fill = None,
    num_steps: int = 50,
    chunk_size: int | None = None,
    key: Key = 0,
    curve: bool = False,
) -> Values | Curve:
    """Monotonicity: whether the score only rises while pixels are put in, the least important first; high is good.

    `monotonicity = [score_1 <= score_2 <= ... <= score_num_steps]`, of the baseline with the lowest shares `i /
    num_steps` of the image's pixels; a fall within rounding is none.

    Quantus sets the pixels of its baseline to the baseline once more, so that its scores never change and it gives one
    for any map; here it is the papers'.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      heatmaps: `float[n, *space]`; only the order of the pixels counts.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n, t]`.
      score: what is measured, `(output, targets[n]) -> [n]`.
      baseline: what the pixels are put into: `None` for zeros (the mean colour of the training data, for normalised
        images), `"mean"` (each image's own mean colour), `"blur"` (the image under a Gaussian of 1/20 of its shortest
        side), `"noise"` (normal noise with the image's mean and deviation), a number, or an array that broadcasts to
        `images`. `"zero"` is another name of `None`.
      num_steps: shares of the pixels; the papers' is one feature at a time.
      chunk_size: images in one forward pass; altered images are made inside the pass. By default what suits the
        device.
      key: for `baseline="noise"`; a seed or a key.
      curve: return a `Curve`: shares of the pixels, scores and the value.

    Returns:
      `float32[n]`, one or zero; the mean over images is the share of monotonic maps.

    Raises:
      ValueError: arrays of a wrong shape, type or range; an unknown baseline.

    References: Arya et al. 2019, One Explanation Does Not Fit All, https://arxiv.org/abs/1909.03012; Luss et al. 2021,
    Leveraging Latent Features for Local Explanations, https://arxiv.org/abs/1905.12698

    Example:
      >>> values = jaxcam.metrics.monotonicity(model, images, heatmaps, num_steps=8)
    """
    positive(num_steps=num_steps, chunk_size=chunk_size)
    model, images, targets, heatmaps, *fills = prepare_altered(model, images, targets, heatmaps, baseline, key)
    options = {"score": score, "formula": _rises, "counts": _counts(images, num_steps)[1:], "chunk_size": chunk_size}
    result = curve_engine(model, images, targets, -heatmaps, *fills, **options, insert=True)
    return result if curve else result.value


def _rises(scores, _shares):
    slack = ROUNDING * jnp.abs(scores).max(-1, keepdims=True)
    return or_nan(jnp.all(jnp.diff(scores, axis=-1) >= -slack, -1), scores)


def monotonicity_correlation(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = probability,
    baseline: Fill = "noise",
    num_steps: int = 50,
    correlation: Callable = spearman,
    num_samples: int = 10,
    chunk_size: int | None = None,
    key: Key = 0,
) -> Values:
    """Monotonicity correlation: whether pixels change the score the more, the more important they are; high is good.

    `value = corr_i (sum_{G_i} |map|, mean_s (score(image) - score(image with G_i drawn anew))^2 / score(image)^2)`,
    over the `num_steps` shares `G_i` of the pixels, from the lowest magnitudes up, each of which is changed alone.

    The paper draws a feature from its distribution; here it is normal, with the image's mean and deviation. Quantus
    draws one number for all features of a share.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      heatmaps: `float[n, *space]`, of which magnitudes count.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n, t]`.
      score: what is measured, `(output, targets[n]) -> [n]`.
      baseline: what takes the pixels' place: `"noise"` (normal noise with the image's mean and deviation, drawn anew
        for each sample), or what is the same for all samples: `None` for zeros, `"mean"` (each image's own mean
        colour), `"blur"` (the image under a Gaussian of 1/20 of its shortest side), a number, or an array that
        broadcasts to `images`. `"zero"` is another name of `None`.
      num_steps: shares of the pixels; the paper's is one feature at a time.
      correlation: `spearman` as in the paper, or `pearson`.
      num_samples: draws for each share.
      chunk_size: images in one forward pass; altered images are made inside the pass. By default what suits the
        device.
      key: a seed or a key.

    Returns:
      `float32[n]` in [-1, 1]; zero where the map or the score does not change.

    Raises:
      ValueError: arrays of a wrong shape, type or range; an unknown baseline.

    Reference: Nguyen and Martinez 2020, On Quantitative Aspects of Model Interpretability,
    https://arxiv.org/abs/2007.07584

    Example:
      >>> values = jaxcam.metrics.monotonicity_correlation(model, images, heatmaps, num_steps=8, num_samples=2)
    """
    positive(num_steps=num_steps, num_samples=num_samples, chunk_size=chunk_size)
    functions(correlation=correlation)
    model, images, *others = prepare_altered(model, images, targets, heatmaps, baseline, key)
    options = {"score": score, "counts": _counts(images, num_steps), "correlation": correlation}
    options |= {"num_samples": num_samples, "chunk_size": chunk_size}
    return _each_share_engine(model, images, *others, **options)


@engine
def _each_share_engine(
    model, images, targets, heatmaps, baseline, key, *, score, counts, correlation, num_samples, chunk_size
):
    targets, before = looked_at(model, images, targets, score)
    sizes, counts = jnp.abs(heatmaps), jnp.asarray(counts, jnp.int32)
    ranks, steps, keys = removal_order(-sizes), len(counts) - 1, jax.random.split(key, num_samples)

    def within(share):
        return between(ranks, counts[share], counts[share + 1])

    def squares(indices):
        fills = jax.vmap(lambda key: fill(baseline, images, key), out_axes=1)(keys[indices % num_samples])
        altered = jnp.where(within(indices // num_samples)[..., None], fills, images[:, None])
        return (before[:, None] - scores_of_copies(model, altered, targets, score)) ** 2

    def importances(shares):
        return jnp.sum(jnp.where(within(shares), sizes[:, None], 0), tuple(range(2, images.ndim)))

    changes = chunked_map(squares, steps * num_samples, images, chunk_size)
    changes = changes.reshape(-1, steps, num_samples).mean(-1) / jnp.where(before == 0, 1, before)[:, None] ** 2
    return or_nan(correlation(chunked_map(importances, steps, images, chunk_size), changes), heatmaps)


def _counts(images, num_steps) -> tuple[int, ...]:
    """`pixel_counts` of shares none of which is empty."""
    return pixel_counts(images, min(num_steps, math.prod(images.shape[1:-1])))
