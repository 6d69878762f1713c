"""Axioms that attributions should satisfy: they add up to what they explain, and are zero where nothing happens."""

import jax.numpy as jnp
from jax.tree_util import Partial

from jaxcam._checks import number, positive, random_key, sizes
from jaxcam._engine import engine
from jaxcam._scores import scores
from jaxcam._typing import Images, Key, Score, Sizes, Targets
from jaxcam.metrics._altered import Fill, Model, check_fill, fill, looked_at, patches_engine, prepare_altered
from jaxcam.metrics._checks import AnyHeatmaps, AnyMaps, Values, check_maps, or_nan, prepare_one
from jaxcam.score import logit


def completeness(
    model: Model,
    images: Images,
    attributions: AnyMaps,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Fill = None,
    key: Key = 0,
) -> Values:
    """Completeness: how far the attributions are from adding up to what they explain; low is good.

    `completeness = |sum attributions - (score(image) - score(baseline))|`, the convergence delta of integrated
    gradients without its sign. Quantus says whether the two are equal to the last bit.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      attributions: `[n, *space, c]` or `[n, *space]`, of any numbers of channels.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n, t]`.
      score: what the attributions explain, `(output, targets[n]) -> [n]`.
      baseline: what they explain it against: `None` for zeros, `"mean"` (each image's own mean colour), `"blur"` (the
        image under a Gaussian of 1/20 of its shortest side), `"noise"` (normal noise with the image's mean and
        deviation), a number, or an array that broadcasts to `images`. `"zero"` is another name of `None`.
      key: for `baseline="noise"`; a seed or a key.

    Returns:
      `float32[n]` in units of the score.

    Raises:
      ValueError: arrays of a wrong shape, type or range; an unknown baseline.

    Reference: Sundararajan et al. 2017, Axiomatic Attribution for Deep Networks, https://arxiv.org/abs/1703.01365

    Example:
      >>> attributions = jaxcam.integrated_gradients(model, images)
      >>> errors = jaxcam.metrics.completeness(model, images, attributions)
    """
    model, images, targets = prepare_one(model, images, targets)
    attributions = check_maps(attributions, "attributions")
    if len(attributions) != len(images):
        raise ValueError(f"attributions has shape {attributions.shape}, which does not fit images {images.shape}.")
    baseline, key = check_fill(baseline, images), random_key(key)
    return _completeness_engine(model, images, targets, attributions, baseline, key, score=score)


@engine
def _completeness_engine(model, images, targets, attributions, baseline, key, *, score):
    targets, before = looked_at(model, images, targets, score)
    after = scores(score, model(fill(baseline, images, key)), targets)
    return jnp.abs(attributions.sum(tuple(range(1, attributions.ndim))) - (before - after))


def non_sensitivity(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Fill = None,
    window: Sizes = 8,
    negligible: float | int = 1e-5,
    chunk_size: int | None = None,
    key: Key = 0,
) -> Values:
    """Non-sensitivity: the share of patches that do nothing but have a value, or do something but have none.

    `value = mean_P [sum_P |map| < negligible] xor [|score(image) - score(image without P)| < negligible]`, over patches
    `P` that tile the image; low is good. The paper's and Quantus's is the number of single features (`window=1`).

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      heatmaps: `float[n, *space]`, of which magnitudes count.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n, t]`.
      score: what is measured, `(output, targets[n]) -> [n]`.
      baseline: what takes the pixels' place: `None` for zeros (the mean colour of the training data, for normalised
        images), `"mean"` (each image's own mean colour), `"blur"` (the image under a Gaussian of 1/20 of its shortest
        side), `"noise"` (normal noise with the image's mean and deviation), a number, or an array that broadcasts to
        `images`. `"zero"` is another name of `None`.
      window: side of a patch in pixels, one for all axes of space or one for each; those at the last edges are cut.
      negligible: below which a value, or a change of the score, is none.
      chunk_size: images in one forward pass; altered images are made inside the pass. By default what suits the
        device.
      key: for `baseline="noise"`; a seed or a key.

    Returns:
      `float32[n]` in [0, 1].

    Raises:
      ValueError: arrays of a wrong shape, type or range; an unknown baseline; a negative `negligible`.

    Reference: Nguyen and Martinez 2020, On Quantitative Aspects of Model Interpretability,
    https://arxiv.org/abs/2007.07584

    Example:
      >>> values = jaxcam.metrics.non_sensitivity(model, images, heatmaps, window=8)
    """
    positive(chunk_size=chunk_size)
    number(least=0, negligible=negligible)
    model, images, targets, heatmaps, *fills = prepare_altered(model, images, targets, heatmaps, baseline, key)
    window = sizes("window", window, images.shape[1:-1])
    options = {"score": score, "formula": Partial(_wrong, negligible=negligible), "chunk_size": chunk_size}
    return patches_engine(model, images, targets, jnp.abs(heatmaps), *fills, window=window, stride=window, **options)


def _wrong(sums, drops, negligible):
    """The share of the patches that have a value or do something, and not both."""
    unmarked, unmoved = sums < negligible, jnp.abs(drops) < negligible
    return or_nan(jnp.mean(unmarked ^ unmoved, -1, dtype=jnp.float32), sums, drops)
