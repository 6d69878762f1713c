"""Whether a map's numbers predict the score: its values on a set of pixels against what changing them does.

Infidelity compares the two as numbers, mu-fidelity and occlusion correlation as a correlation over sets of patches.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Float

from jaxcam._array import EXACT
from jaxcam._checks import as_array, functions, number, positive, random_key, sizes
from jaxcam._engine import chunked_map, engine
from jaxcam._scores import scores_of_copies
from jaxcam._typing import Images, Key, Score, Sizes, Targets
from jaxcam.attribution.occlusion import covered
from jaxcam.metrics._altered import (
    Curve,
    Fill,
    Model,
    check_perturbation,
    exchanged,
    fill,
    looked_at,
    patches_engine,
    prepare_altered,
)
from jaxcam.metrics._checks import AnyHeatmaps, AnyMaps, Values, check_fractions, check_maps, prepare_one
from jaxcam.metrics.similarity import pearson
from jaxcam.score import logit, probability


def infidelity(
    model: Model,
    images: Images,
    attributions: AnyMaps,
    targets: Targets = None,
    *,
    score: Score = logit,
    perturbation: str | Callable = "noise",
    noise: float | int = 0.15,
    deviation: float | int | None = None,
    window: Sizes = 8,
    normalize: bool = False,
    num_samples: int = 50,
    chunk_size: int | None = None,
    key: Key = 0,
) -> Values:
    """Infidelity: how badly the attributions predict what a random change of the image does to the score; low is good.

    `infidelity = mean_I (sum(I * attribution) - (score(image) - score(image - I)))^2`, as in Captum.

    The attributions must explain the very score that is measured, so the default here is the methods' own, the logit.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      attributions: `[n, *space, c]`, or `[n, *space]` where all channels share one value; of a local method, such as
        the gradient.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n,
        t]`.
      score: what is measured, `(output, targets[n]) -> [n]`.
      perturbation: `I`: `"noise"` (normal), `"square"` (the image inside a random square: taking it away leaves
        zeros), or a function `(key, image[*space, c]) -> [*space, c]`.
      noise: deviation of `"noise"`, as a share of each image's range.
      deviation: the same in units of the normalised pixel; it takes the place of `noise`.
      window: side of `"square"` in pixels, one for all axes of space or one for each.
      normalize: scale the attributions of each image so that they predict best; then their scale does not matter.
      num_samples: perturbations of each image.
      chunk_size: images in one forward pass; altered images are made inside the pass. By default what suits the
        device.
      key: a seed or a key.

    Returns:
      `float32[n]`, in units of the score squared.

    Raises:
      ValueError: arrays of a wrong shape, type or range; an unknown perturbation; a window larger than the images.

    Reference: Yeh et al. 2019, On the (In)fidelity and Sensitivity of Explanations, https://arxiv.org/abs/1901.09392

    Example:
      >>> values = jaxcam.metrics.infidelity(model, images, jaxcam.saliency(model, images))
    """
    positive(num_samples=num_samples, chunk_size=chunk_size)
    model, images, targets = prepare_one(model, images, targets)
    attributions, space = check_maps(attributions, "attributions"), images.shape[1:-1]
    if attributions.shape not in (images.shape, images.shape[:-1]):
        raise ValueError(f"attributions has shape {attributions.shape}, which does not fit images {images.shape}.")
    how = check_perturbation(perturbation, 0, noise, deviation, kinds=("noise", "square"))
    if perturbation == "square":
        window = sizes("window", window, space)
        if any(np.greater(window, space)):
            raise ValueError(f"window is {window}, larger than the images, {_by(space)}.")
        how = how._replace(perturbation=Partial(_square, window=window))
    options = {"score": score, "how": how, "normalize": normalize, "num_samples": num_samples, "chunk_size": chunk_size}
    return _infidelity_engine(model, images, targets, attributions, random_key(key), **options)


@engine
def _infidelity_engine(model, images, targets, attributions, key, *, score, how, normalize, num_samples, chunk_size):
    targets, before = looked_at(model, images, targets, score)
    attributions = attributions.reshape(*images.shape[:-1], -1)  # one value for all channels, or one for each

    def one_chunk(samples):
        keys = jax.vmap(lambda sample: jax.random.fold_in(key, sample))(samples)
        change = jax.vmap(lambda key: how(key, images), out_axes=1)(keys)
        after = scores_of_copies(model, images[:, None] - change.astype(images.dtype), targets, score)
        return jnp.sum(attributions[:, None] * change, tuple(range(2, change.ndim))), before[:, None] - after

    expected, actual = chunked_map(one_chunk, num_samples, images, chunk_size)
    if normalize:
        squares = jnp.sum(expected**2, -1, keepdims=True)
        expected *= jnp.sum(expected * actual, -1, keepdims=True) / jnp.where(squares == 0, 1, squares)
    return jnp.mean((expected - actual) ** 2, -1)


def _square(key, image, window: tuple[int, ...]):
    """The image inside of a random box, zeros elsewhere."""
    space = image.shape[:-1]
    inside = jnp.ones((1,) * image.ndim, bool)
    keys = jax.random.split(key, len(space))
    for axis, (size, side) in enumerate(zip(space, window, strict=True)):
        start = jax.random.randint(keys[axis], (), 0, size - side + 1, jnp.int32)
        places = jax.lax.broadcasted_iota(jnp.int32, (*(1,) * axis, size, *(1,) * (image.ndim - axis - 1)), axis)
        inside = inside & (places >= start) & (places < start + side)
    return jnp.where(inside, image, 0)


def mu_fidelity(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = probability,
    baseline: Fill = None,
    cells: Sizes = 8,
    fraction: float = 0.2,
    correlation: Callable = pearson,
    num_samples: int = 128,
    chunk_size: int | None = None,
    key: Key = 0,
) -> Values:
    """Mu-fidelity: whether random sets of patches lower the score by as much as the map says; high is good.

    `mu = corr_S (sum_S map, score(image) - score(image without S))`, over random sets `S` of one size.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      heatmaps: `float[n, *space]`, such as attributions summed over channels.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n,
        t]`.
      score: what is measured, `(output, targets[n]) -> [n]`.
      baseline: what takes the pixels' place: `None` for zeros (the mean colour of the training data, for normalised
        images), `"mean"` (each image's own mean colour), `"blur"` (the image under a Gaussian of 1/20 of its shortest
        side), `"noise"` (normal noise with the image's mean and deviation), a number, or an array that broadcasts to
        `images`. `"zero"` is another name of `None`.
      cells: how many patches the image is cut into along each axis of space, one number for all or one for each.
      fraction: part of the patches in each set, above 0 and below 1.
      correlation: `pearson` as in the paper, or `spearman` as in Xplique.
      num_samples: sets; the same for every image.
      chunk_size: images in one forward pass; altered images are made inside the pass. By default what suits the
        device.
      key: a seed or a key.

    Returns:
      `float32[n]` in [-1, 1]; zero where the map or the score does not change.

    Raises:
      ValueError: arrays of a wrong shape, type or range; an unknown baseline; more cells than pixels, or a
        fraction that is no patch or all.

    Reference: Bhatt et al. 2020, Evaluating and Aggregating Feature-based Model Explanations,
    https://arxiv.org/abs/2005.00631

    Example:
      >>> values = jaxcam.metrics.mu_fidelity(model, images, heatmaps, num_samples=64)
    """
    options = {"score": score, "cells": cells, "correlation": correlation}
    options |= {"num_samples": num_samples, "chunk_size": chunk_size}
    return _of_random_sets(model, images, heatmaps, targets, baseline, key, (fraction,), **options)[:, 0]


def sensitivity_n(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Fill = None,
    cells: Sizes = 8,
    fractions: Sequence[float] | Float[np.ndarray, "fractions"] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    correlation: Callable = pearson,
    num_samples: int = 32,
    chunk_size: int | None = None,
    key: Key = 0,
    curve: bool = False,
) -> Values | Curve:
    """Sensitivity-n: whether random sets of patches change the score as the map says, for sets of many sizes.

    `sensitivity = mean_n corr_S (sum_S map, score(image) - score(image without S))`, over random sets `S` of `n`
    patches each; high is good. For one size it is `mu_fidelity`.

    As in the paper, sets are random and each image has its own correlation. What Quantus calls SensitivityN removes one
    feature after the other in the map's order and correlates over the images of a batch, one step at a time.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      heatmaps: `float[n, *space]`, such as attributions summed over channels.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n,
        t]`.
      score: what is measured, `(output, targets[n]) -> [n]`; by default the logit, which attributions add up to.
      baseline: what takes the pixels' place: `None` for zeros (the mean colour of the training data, for normalised
        images), `"mean"` (each image's own mean colour), `"blur"` (the image under a Gaussian of 1/20 of its shortest
        side), `"noise"` (normal noise with the image's mean and deviation), a number, or an array that broadcasts to
        `images`. `"zero"` is another name of `None`.
      cells: how many patches the image is cut into along each axis of space, one number for all or one for each.
      fractions: the sizes of sets, as shares of the patches, each between 0 and 1.
      correlation: `pearson` as in the paper, or `spearman`.
      num_samples: sets of each size; the same for every image.
      chunk_size: images in one forward pass; altered images are made inside the pass. By default what suits the
        device.
      key: a seed or a key.
      curve: return a `Curve` with the correlation at each size.

    Returns:
      `float32[n]` in [-1, 1]; zero where the map or the score does not change.

    Raises:
      ValueError: arrays of a wrong shape, type or range; an unknown baseline; more cells than pixels, or a
        fraction that is no patch or all.

    Reference: Ancona et al. 2018, Towards better understanding of gradient-based attribution methods for Deep Neural
    Networks, https://arxiv.org/abs/1711.06104

    Example:
      >>> values = jaxcam.metrics.sensitivity_n(model, images, heatmaps, num_samples=8)
    """
    fractions = check_fractions(fractions)
    options = {"score": score, "cells": cells, "correlation": correlation}
    options |= {"num_samples": num_samples, "chunk_size": chunk_size}
    correlations = _of_random_sets(model, images, heatmaps, targets, baseline, key, fractions, **options)
    value = jnp.mean(correlations, -1)
    return Curve(as_array(fractions, np.float32), correlations, value) if curve else value


def _of_random_sets(
    model, images, heatmaps, targets, baseline, key, fractions, *, score, cells, correlation, num_samples, chunk_size
):
    """The correlation over random sets of patches, for each share of the patches, `[n, fractions]`."""
    positive(num_samples=num_samples, chunk_size=chunk_size)
    functions(correlation=correlation)
    model, images, *others = prepare_altered(model, images, targets, heatmaps, baseline, key)
    space = images.shape[1:-1]
    cells = sizes("cells", cells, space)
    if any(np.greater(cells, space)):
        raise ValueError(f"cells is {_by(cells)}, finer than the images, {_by(space)}.")
    count, chosen = math.prod(cells), []
    for fraction in fractions:
        number(fraction=fraction)
        chosen.append(round(fraction * count))
        if not 0 < chosen[-1] < count:
            raise ValueError(
                f"fraction is {fraction}, which makes {chosen[-1]} of {count} patches; some must go and some stay."
            )
    options = {"score": score, "cells": cells, "chosen": tuple(chosen), "correlation": correlation}
    options |= {"num_samples": num_samples, "chunk_size": chunk_size}
    return _sets_engine(model, images, *others, **options)


@engine
def _sets_engine(
    model, images, targets, heatmaps, baseline, key, *, score, cells, chosen, correlation, num_samples, chunk_size
):
    targets, before = looked_at(model, images, targets, score)
    fills, keys = fill(baseline, images, key), jax.random.split(key, num_samples)
    places = [np.arange(size) * count // size for size, count in zip(images.shape[1:-1], cells, strict=True)]
    patches = np.ravel_multi_index(np.ix_(*places), cells)  # which one each pixel belongs to
    chosen, space = jnp.asarray(chosen, jnp.int32), tuple(range(1, heatmaps.ndim))

    def one_chunk(samples):
        orders = jax.vmap(lambda key: jax.random.permutation(key, math.prod(cells)))(keys[samples % num_samples])
        gone = (orders < chosen[samples // num_samples, None])[:, patches]
        after = scores_of_copies(model, exchanged(images, fills, gone[None]), targets, score)
        sums = jnp.tensordot(heatmaps, gone.astype(jnp.float32), (space, space), precision=EXACT)
        return sums, before[:, None] - after

    pairs = chunked_map(one_chunk, len(chosen) * num_samples, images, chunk_size)
    pairs = [each.reshape(-1, len(chosen), num_samples) for each in pairs]
    return jax.vmap(correlation, in_axes=1, out_axes=1)(*pairs)


def occlusion_correlation(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = probability,
    baseline: Fill = None,
    window: Sizes = 8,
    stride: Sizes = None,
    correlation: Callable = pearson,
    chunk_size: int | None = None,
    key: Key = 0,
) -> Values:
    """Occlusion correlation: whether patches matter to the score as much as the map says; high is good.

    `r = corr_P (sum_P map, score(image) - score(image without P))`, over the patches `P` of a regular grid.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      heatmaps: `float[n, *space]`, such as attributions summed over channels.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class; one class an image, no `[n,
        t]`.
      score: what is measured, `(output, targets[n]) -> [n]`.
      baseline: what takes the pixels' place: `None` for zeros (the mean colour of the training data, for normalised
        images), `"mean"` (each image's own mean colour), `"blur"` (the image under a Gaussian of 1/20 of its shortest
        side), `"noise"` (normal noise with the image's mean and deviation), a number, or an array that broadcasts to
        `images`. `"zero"` is another name of `None`.
      window: side of a patch in pixels, one for all axes of space or one for each.
      stride: distance of patches, in pixels; `None` is `window`, so that they tile the image. The last ones are cut
        at its edge.
      correlation: `pearson` or `spearman`.
      chunk_size: images in one forward pass; altered images are made inside the pass. By default what suits the
        device.
      key: for `baseline="noise"`; a seed or a key.

    Returns:
      `float32[n]` in [-1, 1]; zero where the map or the score does not change.

    Raises:
      ValueError: arrays of a wrong shape, type or range; an unknown baseline; patches so large that there is only one.

    Reference: Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks (correlation of
    occlusion), https://arxiv.org/abs/1311.2901

    Example:
      >>> values = jaxcam.metrics.occlusion_correlation(model, images, heatmaps, window=8)
    """
    positive(chunk_size=chunk_size)
    functions(correlation=correlation)
    model, images, *others = prepare_altered(model, images, targets, heatmaps, baseline, key)
    space = images.shape[1:-1]
    window = sizes("window", window, space)
    stride = window if stride is None else sizes("stride", stride, space)
    if math.prod(map(len, map(covered, space, window, stride))) < 2:
        raise ValueError(f"window is {_by(window)}, which leaves one patch of an image {_by(space)}: too large.")
    options = {"score": score, "formula": correlation, "window": window, "stride": stride, "chunk_size": chunk_size}
    return patches_engine(model, images, *others, **options)


def _by(space) -> str:
    return " x ".join(map(str, space))
