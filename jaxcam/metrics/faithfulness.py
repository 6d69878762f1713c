"""Whether a map tells what the model uses: take away or show what it points at, and look at the score.

The score is the softmax probability by default, as the papers measure confidence; `targets=None` means the class
predicted for the unaltered image, throughout. A map matters only through the order of its pixels (deletion, insertion)
or as a mask with values in [0, 1] (drop, increase, gain).
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxcam._errors import unknown
from jaxcam._inputs import engine, positive
from jaxcam._typing import Images, Score, Targets
from jaxcam.metrics._altered import (
    Baseline,
    Curve,
    Model,
    check_all,
    classes,
    fill_for,
    original_scores,
    removal_order,
    scores_of,
)
from jaxcam.metrics._checks import AnyHeatmaps, Values, or_nan
from jaxcam.score import probability


def deletion(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = probability,
    baseline: Baseline = "zero",
    num_steps: int = 50,
    chunk_size: int | None = None,
    key=None,
    curve: bool = False,
) -> Values | Curve:
    """Deletion: the area under the score while the most important pixels are taken away; low is good.

    `AUC = integral_0^1 score(image without its share f of highest pixels) df`, by the trapezoid rule.

    Point `i` alters `round(i / num_steps * h w)` pixels, so the first is the image and the last the baseline; where
    `num_steps` divides the number of pixels, that is torch-cam's convention (it rounds the step up instead). Among
    equal pixels the first in reading order goes first.

    Args:
      model: a tap or any callable `images -> logits`.
      images: `float[n, h, w, c]`, normalised as the model expects.
      heatmaps: `float[n, h, w]`; only the order of the pixels counts.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class.
      score: what is measured, `(logits[n, k], targets[n]) -> [n]`.
      baseline: what takes the pixels' place: `"zero"` (the mean colour of the training data, for normalised images),
        `"mean"` (each image's own mean colour), `"blur"` (the image under a Gaussian of 1/20 of its shorter side),
        `"noise"` (normal noise with the image's mean and deviation), a number, or an array that broadcasts to `images`.
      num_steps: intervals of the curve.
      chunk_size: images in one forward pass; altered images are made inside the pass.
        By default what suits the device.
      key: for `baseline="noise"`; `None` means `jax.random.key(0)`.
      curve: return a `Curve`: fractions, scores and the area.

    Returns:
      `float32[n]` in units of the score.

    Raises:
      ValueError: arrays of a wrong shape, type or range; an unknown baseline.

    Reference: Petsiuk et al. 2018, RISE: Randomized Input Sampling for Explanation, https://arxiv.org/abs/1806.07421

    Example:
      >>> areas = jaxcam.metrics.deletion(model, images, heatmaps, num_steps=32)
    """
    options = {"score": score, "num_steps": num_steps, "chunk_size": chunk_size, "insert": False}
    return _removal(model, images, heatmaps, targets, baseline, key, curve, **options)


def insertion(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = probability,
    baseline: Baseline = "blur",
    num_steps: int = 50,
    chunk_size: int | None = None,
    key=None,
    curve: bool = False,
) -> Values | Curve:
    """Insertion: the area under the score while the most important pixels are put into a baseline; high is good.

    `AUC = integral_0^1 score(baseline with the image's share f of highest pixels) df`, by the trapezoid rule.

    Arguments, result and errors are those of `deletion`; the default baseline is the blurred image, as in the paper.

    Reference: Petsiuk et al. 2018, RISE: Randomized Input Sampling for Explanation, https://arxiv.org/abs/1806.07421

    Example:
      >>> areas = jaxcam.metrics.insertion(model, images, heatmaps, num_steps=32)
    """
    options = {"score": score, "num_steps": num_steps, "chunk_size": chunk_size, "insert": True}
    return _removal(model, images, heatmaps, targets, baseline, key, curve, **options)


def _removal(model, images, heatmaps, targets, baseline, key, curve, **static):
    positive(num_steps=static["num_steps"], chunk_size=static["chunk_size"])
    images, heatmaps, targets = check_all(model, images, heatmaps, targets)
    result = _removal_engine(model, images, heatmaps, targets, fill_for(baseline, images, key), **static)
    return result if curve else result.value


@engine(static=("score", "num_steps", "chunk_size", "insert"))
def _removal_engine(model, images, heatmaps, targets, fill, *, score, num_steps, chunk_size, insert):
    targets = classes(model, images, targets, chunk_size)
    ranks, pixels = removal_order(heatmaps), images.shape[1] * images.shape[2]
    counts = jnp.asarray(np.round(np.arange(num_steps + 1) / num_steps * pixels).astype(np.int32))
    start, end = (fill, images) if insert else (images, fill)

    def altered(image, step):
        changed = ranks[image] < counts[step, None, None]
        return jnp.where(changed[..., None], end[image], start[image])

    scores = or_nan(scores_of(model, targets, score, altered, (len(images), num_steps + 1), chunk_size), heatmaps)
    fractions = counts.astype(jnp.float32) / pixels
    return Curve(fractions, scores, jnp.trapezoid(scores, fractions, axis=-1))


def average_drop(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = probability,
    form: str = "relative",
    baseline: Baseline = "zero",
    chunk_size: int | None = None,
    key=None,
) -> Values:
    """Average drop: how much of the score is lost when only the highlighted part is shown; low is good.

    `drop = relu(Y - O) / Y` (relative) or `relu(Y - O)` (absolute), with `Y = score(image)` and
    `O = score(image * map)`.

    The relative form is the paper's, and needs a positive score such as the probability; it is zero where `Y` is not
    positive. The absolute form is pytorch-grad-cam's. The mean over images is the published number.

    Args:
      model, images, targets, score, chunk_size: as for `deletion`.
      heatmaps: `float[n, h, w]` in [0, 1]: how much of each pixel is shown.
      form: `"relative"` or `"absolute"`.
      baseline, key: what is shown in place of the rest, as for `deletion`: `map * image + (1 - map) * baseline`.

    Returns:
      `float32[n]`: a share in [0, 1], or units of the score in the absolute form.

    Raises:
      ValueError: as `deletion`; heatmaps outside [0, 1]; an unknown form.

    Reference: Chattopadhay et al. 2018, Grad-CAM++: Improved Visual Explanations, https://arxiv.org/abs/1710.11063

    Example:
      >>> drops = jaxcam.metrics.average_drop(model, images, heatmaps)
    """
    _check_form(form)
    before, after = _masked(model, images, heatmaps, targets, score, baseline, chunk_size, key)
    return _share(before - after, before, form)


def average_gain(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = probability,
    form: str = "relative",
    baseline: Baseline = "zero",
    chunk_size: int | None = None,
    key=None,
) -> Values:
    """Average gain: how much of the possible rise the score makes when only the highlighted part is shown.

    `gain = relu(O - Y) / (1 - Y)` (relative) or `relu(O - Y)` (absolute), with `Y` and `O` as for `average_drop`.

    High is good. The relative form needs a probability; it is zero where `Y` is one.
    Arguments, result and errors are those of `average_drop`.

    Reference: Zhang et al. 2024, Opti-CAM: Optimizing Saliency Maps for Interpretability,
    https://arxiv.org/abs/2301.07002

    Example:
      >>> gains = jaxcam.metrics.average_gain(model, images, heatmaps)
    """
    _check_form(form)
    before, after = _masked(model, images, heatmaps, targets, score, baseline, chunk_size, key)
    return _share(after - before, 1 - before, form)


def average_increase(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = probability,
    baseline: Baseline = "zero",
    chunk_size: int | None = None,
    key=None,
) -> Values:
    """Average increase: whether the score rises when only the highlighted part is shown; high is good.

    `increase = [O > Y]`, with `Y` and `O` as for `average_drop`.

    Arguments and errors are those of `average_drop`.

    Returns:
      `float32[n]`, one or zero; the mean over images is the published number.

    Reference: Chattopadhay et al. 2018, Grad-CAM++: Improved Visual Explanations, https://arxiv.org/abs/1710.11063

    Example:
      >>> increases = jaxcam.metrics.average_increase(model, images, heatmaps)
    """
    before, after = _masked(model, images, heatmaps, targets, score, baseline, chunk_size, key)
    return or_nan((after > before).astype(jnp.float32), before, after)


def _masked(model, images, heatmaps, targets, score, baseline, chunk_size, key):
    positive(chunk_size=chunk_size)
    images, heatmaps, targets = check_all(model, images, heatmaps, targets, unit=True)
    fill = fill_for(baseline, images, key)
    return _masked_engine(model, images, heatmaps, targets, fill, score=score, chunk_size=chunk_size)


@engine(static=("score", "chunk_size"))
def _masked_engine(model, images, heatmaps, targets, fill, *, score, chunk_size):
    """The scores of the images and of what the maps let through."""
    targets = classes(model, images, targets, chunk_size)

    def altered(image):
        shown = heatmaps[image][..., None].astype(images.dtype)
        return shown * images[image] + (1 - shown) * fill[image]

    before = original_scores(model, images, targets, score, chunk_size)
    return before, scores_of(model, targets, score, altered, (len(images),), chunk_size)


def _check_form(form):
    if form not in ("relative", "absolute"):
        raise unknown("form", form, ("relative", "absolute"))


def _share(change, possible, form):
    change = jax.nn.relu(change)
    if form == "absolute":
        return change
    return jnp.where(possible > 0, change / jnp.where(possible > 0, possible, 1), 0)
