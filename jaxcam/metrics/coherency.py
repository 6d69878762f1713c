"""ADCC and its parts: a good map is coherent, simple, and keeps the score.

Coherency asks the method again, for the image that its own map lets through; complexity is the mean of the map; both
are put together with average drop, or with ROAD in its place, as a harmonic mean: one bad part makes a bad whole.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxcam._checks import functions, random_key
from jaxcam._engine import engine
from jaxcam._typing import Images, Key, Score, Targets
from jaxcam.metrics._altered import Fill, Model, check_fill, fill, let_through, prepare_method
from jaxcam.metrics._checks import AnyHeatmaps, Values, check_heatmaps
from jaxcam.metrics.faithfulness import average_drop
from jaxcam.metrics.road import road
from jaxcam.metrics.similarity import pearson
from jaxcam.score import probability


def l1_complexity(heatmaps: AnyHeatmaps) -> Values:
    """L1 complexity: the mean of a heatmap, the share of the image that it shows; low is good.

    `complexity = mean |map|`, for maps in [0, 1].

    The papers of ADCC and ARCC call it complexity. Quantus's complexity is `entropy`.

    Args:
      heatmaps: `float[n, *space]` in [0, 1].

    Returns:
      `float32[n]` in [0, 1].

    Raises:
      ValueError: no maps, maps outside [0, 1], or NaN.

    Reference: Poppi et al. 2021, Revisiting the Evaluation of Class Activation Mapping for Explainability,
    https://arxiv.org/abs/2104.10252

    Example:
      >>> values = jaxcam.metrics.l1_complexity(heatmaps)
    """
    return _mean(check_heatmaps(heatmaps, unit=True))


@jax.jit
def _mean(heatmaps):
    return jnp.mean(jnp.abs(heatmaps), tuple(range(1, heatmaps.ndim)))


def coherency(
    method: Callable, model: Model, images: Images, targets: Targets = None, *, baseline: Fill = None, key: Key = 0
) -> Values:
    """Coherency: whether a method finds the same again in the part of the image that its map shows; high is good.

    `coherency = (pearson(method(image * map), map) + 1) / 2` with `map = method(image)`.

    A constant map has no pattern that could be found again: a half.

    Args:
      method: `(model, images, targets) -> heatmaps` in [0, 1], such as a CAM.
      model: what the method takes.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class, which is then explained for what
        the map shows too; one class an image, no `[n, t]`.
      baseline: what takes the place of what the map does not show: `None` for zeros (the mean colour of the training
        data, for normalised images), `"mean"`, `"blur"`, `"noise"`, a number, or an array that broadcasts to `images`.
        `"zero"` is another name of `None`.
      key: for `baseline="noise"`; a seed or a key.

    Returns:
      `float32[n]` in [0, 1].

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown baseline; maps outside [0, 1].

    Reference: Poppi et al. 2021, Revisiting the Evaluation of Class Activation Mapping for Explainability,
    https://arxiv.org/abs/2104.10252

    Example:
      >>> values = jaxcam.metrics.coherency(jaxcam.grad_cam, model, images)
    """
    return _coherency(method, *_mapped(method, model, images, targets, baseline), key)


def adcc(
    method: Callable,
    model: Model,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = probability,
    baseline: Fill = None,
    key: Key = 0,
) -> Values:
    """ADCC: average drop, coherency and complexity of a method's maps, in one number; high is good.

    `ADCC = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))`, the harmonic mean, with the mean of the map
    for complexity and the relative `average_drop`; zero where a part is.

    Args:
      method: `(model, images, targets) -> heatmaps` in [0, 1], such as a CAM.
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n, t]`.
      score: what drops, `(output, targets[n]) -> [n]`.
      baseline: what takes the place of what the map does not show: `None` for zeros (the mean colour of the training
        data, for normalised images), `"mean"`, `"blur"`, `"noise"`, a number, or an array that broadcasts to `images`.
        `"zero"` is another name of `None`.
      key: for `baseline="noise"`; a seed or a key.

    Returns:
      `float32[n]` in [0, 1].

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown baseline; maps outside [0, 1].

    Reference: Poppi et al. 2021, Revisiting the Evaluation of Class Activation Mapping for Explainability,
    https://arxiv.org/abs/2104.10252

    Example:
      >>> values = jaxcam.metrics.adcc(jaxcam.grad_cam, model, images)
    """
    model, images, targets, maps, baseline = _mapped(method, model, images, targets, baseline)
    drop = average_drop(model, images, maps, targets, score=score, baseline=baseline, key=key)
    return _adcc(_coherency(method, model, images, targets, maps, baseline, key), l1_complexity(maps), drop)


def arcc(
    method: Callable,
    model: Model,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = probability,
    fractions: Sequence[float] | Float[np.ndarray, "fractions"] = (0.2, 0.4, 0.6, 0.8),
    grain: float | int = 0.01,
    chunk_size: int | None = None,
    key: Key = 0,
) -> Values:
    """ARCC: ROAD, coherency and complexity of a method's maps, in one number; high is good.

    `ARCC = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / clip(2 road, 0, 1))`, the harmonic mean, with the mean of
    the map for complexity and the combined `road`; zero where a part is.

    Args:
      method: `(model, images, targets) -> heatmaps` in [0, 1], such as a CAM.
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n, t]`.
      score: what ROAD measures, `(output, targets[n]) -> [n]`, in [0, 1].
      fractions: shares of the pixels that ROAD removes, each between 0 and 1.
      grain: deviation of the normal noise that ROAD adds to the filled pixels, in units of the normalised pixel.
      chunk_size: images in one forward pass; altered images are made inside the pass. By default what suits the
        device.
      key: for the grain; a seed or a key.

    Returns:
      `float32[n]` in [0, 1].

    Raises:
      ValueError: images or targets of a wrong shape, type or range; maps outside [0, 1]; a fraction outside (0, 1), or
        a negative grain.

    Reference: Domeniconi et al. 2026, How to Evaluate and Refine your CAM, https://arxiv.org/abs/2605.14641

    Example:
      >>> values = jaxcam.metrics.arcc(jaxcam.grad_cam, model, images, fractions=(0.5,))
    """
    model, images, targets, maps, baseline = _mapped(method, model, images, targets, None)
    options = {"score": score, "fractions": fractions, "grain": grain, "chunk_size": chunk_size, "key": key}
    faithful = road(model, images, maps, targets, **options)
    return _arcc(_coherency(method, model, images, targets, maps, baseline, key), l1_complexity(maps), faithful)


def _mapped(method, model, images, targets, baseline):
    """The arguments, checked, with the method's heatmaps."""
    functions(method=method)
    model, images, targets = prepare_method(model, images, targets)
    baseline = check_fill(baseline, images)
    return model, images, targets, check_heatmaps(method(model, images, targets), images, unit=True), baseline


def _coherency(method, model, images, targets, maps, baseline, key):
    shown = _part_shown(model, images, targets, maps, baseline, random_key(key))
    return _found_again(check_heatmaps(method(model, shown, targets), images), maps)


@engine
def _part_shown(_model, images, _targets, maps, baseline, key):
    return let_through(images, maps, fill(baseline, images, key))


@jax.jit
def _found_again(again, maps):
    return (pearson(again, maps) + 1) / 2


@jax.jit
def _adcc(coherent, complexity, drop):
    return _harmonic_mean(coherent, 1 - complexity, 1 - drop)


@jax.jit
def _arcc(coherent, complexity, faithful):
    return _harmonic_mean(coherent, 1 - complexity, jnp.clip(2 * faithful, 0, 1))


def _harmonic_mean(*parts):
    """Zero where a part is."""
    parts = jnp.stack(parts)
    none = (parts <= 0).any(0)
    return jnp.where(none, 0, len(parts) / jnp.sum(1 / jnp.where(none, 1, parts), 0))
