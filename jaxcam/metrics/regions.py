"""Regions of the image taken away one after the other, the most important first, and the score after each.

Deletion does it pixel by pixel; patches and superpixels are closer to what a model sees. The three metrics share the
curve and differ in what they make of it: the area under it, the mean drop, the area over it as a share of the score.
"""

import jax.numpy as jnp

from jaxcam._checks import as_array, positive, sizes
from jaxcam._typing import Images, Key, Score, Sizes, Targets
from jaxcam.attribution._masked import Segments, check_segments
from jaxcam.metrics._altered import Curve, Fill, Model, Regions, area_under, curve_engine, prepare_altered
from jaxcam.metrics._checks import AnyHeatmaps, Values, warn_of_zeros
from jaxcam.score import probability
from jaxcam.segments import grid


def selectivity(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = probability,
    baseline: Fill = None,
    window: Sizes = 8,
    chunk_size: int | None = None,
    key: Key = 0,
    curve: bool = False,
) -> Values | Curve:
    """Selectivity: the area under the score while patches are taken away, the most important first; low is good.

    `AUC = integral_0^1 score(image without its share f of highest patches) df`, by the trapezoid rule, from the whole
    image on. A patch is as high as the sum of the map in it.

    Quantus gives the curve from the first patch on, and its area with steps of one.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      heatmaps: `float[n, *space]`; only the order of the patches counts.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n, t]`.
      score: what is measured, `(output, targets[n]) -> [n]`.
      baseline: what takes the pixels' place: `None` for zeros (the mean colour of the training data, for normalised
        images), `"mean"` (each image's own mean colour), `"blur"` (the image under a Gaussian of 1/20 of its shortest
        side), `"noise"` (normal noise with the image's mean and deviation), a number, or an array that broadcasts to
        `images`. `"zero"` is another name of `None`.
      window: side of a patch in pixels, one for all axes of space or one for each; those at the last edges are cut.
      chunk_size: images in one forward pass; altered images are made inside the pass. By default what suits the
        device.
      key: for `baseline="noise"`; a seed or a key.
      curve: return a `Curve`: shares of the patches, scores and the area.

    Returns:
      `float32[n]` in units of the score.

    Raises:
      ValueError: arrays of a wrong shape, type or range; an unknown baseline.

    Reference: Montavon et al. 2018, Methods for Interpreting and Understanding Deep Neural Networks,
    https://arxiv.org/abs/1706.07979

    Example:
      >>> areas = jaxcam.metrics.selectivity(model, images, heatmaps, window=8)
    """
    arguments = prepare_altered(model, images, targets, heatmaps, baseline, key)
    return _removed(arguments, _patches(images, window), area_under, score, chunk_size, curve)


def region_perturbation(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = probability,
    baseline: Fill = None,
    window: Sizes = 8,
    num_steps: int = 100,
    chunk_size: int | None = None,
    key: Key = 0,
    curve: bool = False,
) -> Values | Curve:
    """Region perturbation: the mean drop of the score while patches are taken away, highest first; high is good.

    `AOPC = 1 / (L + 1) sum_{k=0}^L (score(image) - score(image without its k highest patches))`, with `L = num_steps`
    or all patches, if there are fewer. A patch is as high as the sum of the map in it.

    The paper replaces 9 x 9 pixels by uniform noise (`window=9, baseline="noise"` is close). Quantus gives the drops
    themselves, from the first patch on. For the least important patches first pass `-heatmaps`.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      heatmaps: `float[n, *space]`; only the order of the patches counts.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n, t]`.
      score: what is measured, `(output, targets[n]) -> [n]`.
      baseline: what takes the pixels' place: `None` for zeros (the mean colour of the training data, for normalised
        images), `"mean"` (each image's own mean colour), `"blur"` (the image under a Gaussian of 1/20 of its shortest
        side), `"noise"` (normal noise with the image's mean and deviation), a number, or an array that broadcasts to
        `images`. `"zero"` is another name of `None`.
      window: side of a patch in pixels, one for all axes of space or one for each; those at the last edges are cut.
      num_steps: how many patches are taken away.
      chunk_size: images in one forward pass; altered images are made inside the pass. By default what suits the
        device.
      key: for `baseline="noise"`; a seed or a key.
      curve: return a `Curve`: shares of the patches, scores and the value.

    Returns:
      `float32[n]` in units of the score.

    Raises:
      ValueError: arrays of a wrong shape, type or range; an unknown baseline.

    Reference: Samek et al. 2017, Evaluating the Visualization of What a Deep Neural Network Has Learned,
    https://arxiv.org/abs/1509.06321

    Example:
      >>> drops = jaxcam.metrics.region_perturbation(model, images, heatmaps, num_steps=12)
    """
    positive(num_steps=num_steps)
    arguments = prepare_altered(model, images, targets, heatmaps, baseline, key)
    return _removed(arguments, _patches(images, window), _mean_drop, score, chunk_size, curve, num_steps)


def irof(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = probability,
    baseline: Fill = "mean",
    segments: Segments = None,
    num_segments: int | None = None,
    chunk_size: int | None = None,
    key: Key = 0,
    curve: bool = False,
) -> Values | Curve:
    """IROF, iterative removal of features: the share of the score lost while segments go, highest first; high is good.

    `IROF = 1 - integral_0^1 score(image without its share f of highest segments) / score(image) df`, the area over the
    curve, by the trapezoid rule. A segment is as high as the mean of the map in it.

    Quantus counts the area in segments and leaves the first interval out: `segments - trapezoid(scores after the first
    removal)`. The score must be positive, as the probability is.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      heatmaps: `float[n, *space]`; only the order of the segments counts.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n, t]`.
      score: what is measured, `(output, targets[n]) -> [n]`.
      baseline: what takes the pixels' place: `"mean"` for each image's own mean colour, as in the paper; `None` for
        zeros, `"blur"` (the image under a Gaussian of 1/20 of its shortest side), `"noise"` (normal noise with the
        image's mean and deviation), a number, or an array that broadcasts to `images`. `"zero"` is another name of
        `None`.
      segments: labels `int[*space]` for all images or `int[n, *space]`, from zero, such as
        `jaxcam.segments.superpixels` makes, the paper's; by default a grid of patches, an eighth of each side long.
      num_segments: how many there are; by default one more than the highest label. Needed where `segments` is an
        argument of a function under `jit`.
      chunk_size: images in one forward pass; altered images are made inside the pass. By default what suits the
        device.
      key: for `baseline="noise"`; a seed or a key.
      curve: return a `Curve`: shares of the segments, scores and the area. An image of fewer segments than others
        reaches its end early and stays there.

    Returns:
      `float32[n]`, a share of the score.

    Raises:
      ValueError: arrays of a wrong shape, type or range; an unknown baseline; labels that do not count from zero.

    Reference: Rieger and Hansen 2020, IROF: a Low Resource Evaluation Metric for Explanation Methods,
    https://arxiv.org/abs/2003.08747

    Example:
      >>> areas = jaxcam.metrics.irof(model, images, heatmaps, segments=jaxcam.segments.grid((32, 32), 8))
    """
    arguments = prepare_altered(model, images, targets, heatmaps, baseline, key)
    regions = Regions(*check_segments(segments, num_segments, images.shape[:-1]), mean=True)
    return _removed(arguments, regions, _area_over, score, chunk_size, curve)


def _area_over(scores, shares):
    before = scores[:, :1]
    return 1 - area_under(scores / jnp.where(before == 0, 1, before), shares)


def _mean_drop(scores, _shares):
    return jnp.mean(scores[:, :1] - scores, -1)


def _patches(images, window) -> Regions:
    space = images.shape[1:-1]
    labels = grid(space, sizes("window", window, space))
    return Regions(as_array(labels), int(labels.max()) + 1)


def _removed(arguments, regions, formula, score, chunk_size, curve, num_steps=None):
    positive(chunk_size=chunk_size)
    warn_of_zeros(arguments[3], stacklevel=4)
    counts = tuple(range(1 + min(regions.count, num_steps or regions.count)))
    options = {"score": score, "formula": formula, "counts": counts, "chunk_size": chunk_size}
    result = curve_engine(*arguments, regions, **options)
    return result if curve else result.value
