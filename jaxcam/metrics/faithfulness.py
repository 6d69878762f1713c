"""Whether a map tells what the model uses: take away or show what it points at, and look at the score.

The score is the softmax probability by default, as the papers measure confidence; `targets=None` means the class
predicted for the unaltered image, throughout. A map matters only through the order of its pixels (deletion, insertion)
or as a mask with values in [0, 1] (drop, increase, gain).
"""

import jax
import jax.numpy as jnp

from jaxcam._checks import choice, positive
from jaxcam._engine import engine
from jaxcam._scores import scores
from jaxcam._typing import Images, Key, Score, Targets
from jaxcam.metrics._altered import (
    Curve,
    Fill,
    Model,
    area_under,
    curve_engine,
    fill,
    let_through,
    looked_at,
    pixel_counts,
    prepare_altered,
)
from jaxcam.metrics._checks import AnyHeatmaps, Values, or_nan, warn_of_zeros
from jaxcam.score import probability


def deletion(
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
    """Deletion: the area under the score while the most important pixels are taken away; low is good.

    `AUC = integral_0^1 score(image without its share f of highest pixels) df`, by the trapezoid rule.

    Point `i` alters `round(i / num_steps * pixels)` pixels, so the first is the image and the last the baseline; where
    `num_steps` divides the number of pixels, that is torch-cam's convention (it rounds the step up instead). Among
    equal pixels the first in reading order goes first, so a map that is zero everywhere says nothing: outside of `jit`
    that gives a warning.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      heatmaps: `float[n, *space]`; only the order of the pixels counts.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n, t]`.
      score: what is measured, `(output, targets[n]) -> [n]`.
      baseline: what takes the pixels' place: `None` for zeros (the mean colour of the training data, for normalised
        images), `"mean"` (each image's own mean colour), `"blur"` (the image under a Gaussian of 1/20 of its shortest
        side), `"noise"` (normal noise with the image's mean and deviation), a number, or an array that broadcasts to
        `images`. `"zero"` is another name of `None`.
      num_steps: intervals of the curve.
      chunk_size: images in one forward pass; altered images are made inside the pass.
        By default what suits the device.
      key: for `baseline="noise"`; a seed or a key.
      curve: return a `Curve`: fractions, scores and the area.

    Returns:
      `float32[n]` in units of the score.

    Raises:
      ValueError: arrays of a wrong shape, type or range; an unknown baseline.

    Reference: Petsiuk et al. 2018, RISE: Randomized Input Sampling for Explanation, https://arxiv.org/abs/1806.07421

    Example:
      >>> areas = jaxcam.metrics.deletion(model, images, heatmaps, num_steps=32)
    """
    return _removal(model, images, heatmaps, targets, score, baseline, num_steps, chunk_size, key, curve, insert=False)


def insertion(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = probability,
    baseline: Fill = "blur",
    num_steps: int = 50,
    chunk_size: int | None = None,
    key: Key = 0,
    curve: bool = False,
) -> Values | Curve:
    """Insertion: the area under the score while the most important pixels are put into a baseline; high is good.

    `AUC = integral_0^1 score(baseline with the image's share f of highest pixels) df`, by the trapezoid rule.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      heatmaps: `float[n, *space]`; only the order of the pixels counts.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n,
        t]`.
      score: what is measured, `(output, targets[n]) -> [n]`.
      baseline: what takes the pixels' place: `None` for zeros (the mean colour of the training data, for normalised
        images), `"mean"` (each image's own mean colour), `"blur"` (the image under a Gaussian of 1/20 of its shortest
        side), `"noise"` (normal noise with the image's mean and deviation), a number, or an array that broadcasts to
        `images`. `"zero"` is another name of `None`.
      num_steps: intervals of the curve.
      chunk_size: images in one forward pass; altered images are made inside the pass. By default what suits the
        device.
      key: for `baseline="noise"`; a seed or a key.
      curve: return a `Curve`: fractions, scores and the area.

    Returns:
      `float32[n]` in units of the score.

    Raises:
      ValueError: arrays of a wrong shape, type or range; an unknown baseline.

    Reference: Petsiuk et al. 2018, RISE: Randomized Input Sampling for Explanation, https://arxiv.org/abs/1806.07421

    Example:
      >>> areas = jaxcam.metrics.insertion(model, images, heatmaps, num_steps=32)
    """
    return _removal(model, images, heatmaps, targets, score, baseline, num_steps, chunk_size, key, curve, insert=True)


def _removal(model, images, heatmaps, targets, score, baseline, num_steps, chunk_size, key, curve, *, insert):
    positive(num_steps=num_steps, chunk_size=chunk_size)
    model, images, targets, heatmaps, *fills = prepare_altered(model, images, targets, heatmaps, baseline, key)
    warn_of_zeros(heatmaps, stacklevel=4)
    options = {"score": score, "formula": area_under, "counts": pixel_counts(images, num_steps)}
    options |= {"chunk_size": chunk_size, "insert": insert}
    result = curve_engine(model, images, targets, heatmaps, *fills, **options)
    return result if curve else result.value


def average_drop(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = probability,
    form: str = "relative",
    baseline: Fill = None,
    key: Key = 0,
) -> Values:
    """Average drop: how much of the score is lost when only the highlighted part is shown; low is good.

    `drop = relu(Y - O) / Y` (relative) or `relu(Y - O)` (absolute), with `Y = score(image)` and
    `O = score(image * map)`.

    The relative form is the paper's, and needs a positive score such as the probability; it is zero where `Y` is not
    positive. The absolute form is pytorch-grad-cam's. The mean over images is the published number.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      heatmaps: `float[n, *space]` in [0, 1]: how much of each pixel is shown.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n,
        t]`.
      score: what is measured, `(output, targets[n]) -> [n]`.
      form: `"relative"` or `"absolute"`.
      baseline: what takes the pixels' place: `None` for zeros (the mean colour of the training data, for normalised
        images), `"mean"` (each image's own mean colour), `"blur"` (the image under a Gaussian of 1/20 of its shortest
        side), `"noise"` (normal noise with the image's mean and deviation), a number, or an array that broadcasts to
        `images`. `"zero"` is another name of `None`.
      key: for `baseline="noise"`; a seed or a key.

    Returns:
      `float32[n]`: a share in [0, 1], or units of the score in the absolute form.

    Raises:
      ValueError: arrays of a wrong shape, type or range; an unknown baseline; heatmaps outside [0, 1]; an unknown form.

    Reference: Chattopadhay et al. 2018, Grad-CAM++: Improved Visual Explanations, https://arxiv.org/abs/1710.11063

    Example:
      >>> drops = jaxcam.metrics.average_drop(model, images, heatmaps)
    """
    return _masked(_drop, model, images, targets, heatmaps, baseline, key, score=score, form=form)


def _drop(before, after, form):
    return _share(before - after, before, form)


def average_gain(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = probability,
    form: str = "relative",
    baseline: Fill = None,
    key: Key = 0,
) -> Values:
    """Average gain: how much of the possible rise the score makes when only the highlighted part is shown.

    `gain = relu(O - Y) / (1 - Y)` (relative) or `relu(O - Y)` (absolute), with `Y = score(image)` and
    `O = score(image * map)`.

    High is good. The relative form needs a probability; it is zero where `Y` is one.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      heatmaps: `float[n, *space]` in [0, 1]: how much of each pixel is shown.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n,
        t]`.
      score: what is measured, `(output, targets[n]) -> [n]`.
      form: `"relative"` or `"absolute"`.
      baseline: what takes the pixels' place: `None` for zeros (the mean colour of the training data, for normalised
        images), `"mean"` (each image's own mean colour), `"blur"` (the image under a Gaussian of 1/20 of its shortest
        side), `"noise"` (normal noise with the image's mean and deviation), a number, or an array that broadcasts to
        `images`. `"zero"` is another name of `None`.
      key: for `baseline="noise"`; a seed or a key.

    Returns:
      `float32[n]`: a share in [0, 1], or units of the score in the absolute form.

    Raises:
      ValueError: arrays of a wrong shape, type or range; an unknown baseline; heatmaps outside [0, 1]; an unknown form.

    Reference: Zhang et al. 2024, Opti-CAM: Optimizing Saliency Maps for Interpretability,
    https://arxiv.org/abs/2301.07002

    Example:
      >>> gains = jaxcam.metrics.average_gain(model, images, heatmaps)
    """
    return _masked(_gain, model, images, targets, heatmaps, baseline, key, score=score, form=form)


def _gain(before, after, form):
    return _share(after - before, 1 - before, form)


def average_increase(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = probability,
    baseline: Fill = None,
    key: Key = 0,
) -> Values:
    """Average increase: whether the score rises when only the highlighted part is shown; high is good.

    `increase = [O > Y]`, with `Y = score(image)` and `O = score(image * map)`.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      heatmaps: `float[n, *space]` in [0, 1]: how much of each pixel is shown.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n,
        t]`.
      score: what is measured, `(output, targets[n]) -> [n]`.
      baseline: what takes the pixels' place: `None` for zeros (the mean colour of the training data, for normalised
        images), `"mean"` (each image's own mean colour), `"blur"` (the image under a Gaussian of 1/20 of its shortest
        side), `"noise"` (normal noise with the image's mean and deviation), a number, or an array that broadcasts to
        `images`. `"zero"` is another name of `None`.
      key: for `baseline="noise"`; a seed or a key.

    Returns:
      `float32[n]`, one or zero; the mean over images is the published number.

    Raises:
      ValueError: arrays of a wrong shape, type or range; an unknown baseline; heatmaps outside [0, 1].

    Reference: Chattopadhay et al. 2018, Grad-CAM++: Improved Visual Explanations, https://arxiv.org/abs/1710.11063

    Example:
      >>> increases = jaxcam.metrics.average_increase(model, images, heatmaps)
    """
    return _masked(_increase, model, images, targets, heatmaps, baseline, key, score=score, form="relative")


def _increase(before, after, form):
    return or_nan(after > before, before, after)


def _masked(formula, model, images, targets, heatmaps, baseline, key, *, score, form):
    """A formula of the scores of the images and of what the maps let through."""
    choice(("relative", "absolute"), form=form)
    arguments = prepare_altered(model, images, targets, heatmaps, baseline, key, unit=True)
    return _masked_engine(*arguments, formula=formula, score=score, form=form)


@engine
def _masked_engine(model, images, targets, heatmaps, baseline, key, *, formula, score, form):
    targets, before = looked_at(model, images, targets, score)
    altered = let_through(images, heatmaps, fill(baseline, images, key))
    return formula(before, scores(score, model(altered), targets), form)


def _share(change, possible, form):
    change = jax.nn.relu(change)
    if form == "absolute":
        return change
    return jnp.where(possible > 0, change / jnp.where(possible > 0, possible, 1), 0)
