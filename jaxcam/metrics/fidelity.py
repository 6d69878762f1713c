"""Whether a map's numbers predict the score: its values on a set of pixels against what changing them does.

Infidelity compares the two as numbers, mu-fidelity and occlusion correlation as a correlation over sets of patches.
Max-sensitivity asks the same of the explanation itself: does it stay when the image nearly does?
"""

from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxcam._errors import unknown
from jaxcam._inputs import check_images, check_targets, engine, positive
from jaxcam._loops import chunked_map, scan
from jaxcam._typing import Images, Score, Targets
from jaxcam._windows import covered, drops_without
from jaxcam.metrics._altered import (
    Baseline,
    Model,
    check_all,
    classes,
    fill_for,
    original_scores,
    random_key,
)
from jaxcam.metrics._checks import AnyHeatmaps, AnyMaps, Values, check_maps
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
    noise: float = 0.1,
    window: int = 8,
    normalise: bool = False,
    num_samples: int = 50,
    chunk_size: int | None = None,
    key=None,
) -> Values:
    """Infidelity: how badly the attributions predict what a random change of the image does to the score; low is good.

    `infidelity = mean_I (sum(I * attribution) - (score(image) - score(image - I)))^2`, as in Captum.

    The attributions must explain the very score that is measured, so the default here is the methods' own, the logit.

    Args:
      model, images, targets, score, chunk_size: as for `deletion`.
      attributions: `[n, h, w, c]`, or `[n, h, w]` where all channels share one value; a local method's (a gradient).
      perturbation: `I`: `"noise"` (normal), `"square"` (the image inside a random square: taking it away leaves
        zeros), or a function `(key, image[h, w, c]) -> [h, w, c]`.
      noise: deviation of `"noise"`.
      window: side of `"square"`, in pixels.
      normalise: scale the attributions of each image so that they predict best; then their scale does not matter.
      num_samples: perturbations of each image.
      key: `None` means `jax.random.key(0)`.

    Returns:
      `float32[n]`, in units of the score squared.

    Raises:
      ValueError: as `deletion`; attributions of another shape, an unknown perturbation.

    Reference: Yeh et al. 2019, On the (In)fidelity and Sensitivity of Explanations, https://arxiv.org/abs/1901.09392

    Example:
      >>> values = jaxcam.metrics.infidelity(model, images, jaxcam.saliency(model, images))
    """
    positive(num_samples=num_samples, chunk_size=chunk_size, window=window)
    images, attributions = check_images(images), check_maps(attributions, "attributions")
    if attributions.shape not in (images.shape, images.shape[:3]):
        raise ValueError(f"attributions has shape {attributions.shape}, which does not fit images {images.shape}.")
    targets = check_targets(model, images, targets)
    if not callable(perturbation):
        if perturbation not in ("noise", "square"):
            raise unknown("perturbation", perturbation, ("noise", "square"))
        if perturbation == "square" and window > min(images.shape[1:3]):
            raise ValueError(f"window is {window}, larger than the images, {images.shape[1]} x {images.shape[2]}.")
        perturbation = _perturbation(perturbation, noise, window)
    attributions = attributions if attributions.ndim == 4 else attributions[..., None]
    static = {"score": score, "draw": perturbation, "normalise": normalise}
    static |= {"num_samples": num_samples, "chunk_size": chunk_size}
    return _infidelity_engine(model, images, attributions, targets, random_key(key), **static)


@engine(static=("score", "draw", "normalise", "num_samples", "chunk_size"))
def _infidelity_engine(model, images, attributions, targets, key, *, score, draw, normalise, num_samples, chunk_size):
    targets = classes(model, images, targets, chunk_size)
    before = original_scores(model, images, targets, score, chunk_size)

    def one_chunk(image, sample):
        keys = jax.vmap(partial(jax.random.fold_in, key))(sample)
        change = jax.vmap(draw)(keys, images[image])
        after = score(model(images[image] - change.astype(images.dtype)), targets[image])
        expected = jnp.sum(attributions[image] * change, (1, 2, 3))
        return jnp.stack([expected, before[image] - after.astype(jnp.float32)], -1)

    pairs = chunked_map(one_chunk, (len(images), num_samples), chunk_size)
    expected, actual = pairs[..., 0], pairs[..., 1]
    if normalise:
        squares = jnp.sum(expected**2, -1, keepdims=True)
        expected *= jnp.sum(expected * actual, -1, keepdims=True) / jnp.where(squares == 0, 1, squares)
    return jnp.mean((expected - actual) ** 2, -1)


@lru_cache(maxsize=64)  # an equal request gets the same function, and so the compiled program
def _perturbation(name, noise, window):
    return partial(_noise, deviation=noise) if name == "noise" else partial(_square, window=window)


def _noise(key, image, deviation):
    return deviation * jax.random.normal(key, image.shape)


def _square(key, image, window):
    rows, columns = (jnp.arange(size) for size in image.shape[:2])
    keys = jax.random.split(key)
    top = jax.random.randint(keys[0], (), 0, image.shape[0] - window + 1)
    left = jax.random.randint(keys[1], (), 0, image.shape[1] - window + 1)
    inside = _between(rows, top, window)[:, None] & _between(columns, left, window)
    return jnp.where(inside[..., None], image, 0)


def max_sensitivity(
    explain: Callable, images: Images, *, radius: float = 0.02, num_samples: int = 10, key=None
) -> Values:
    """Max-sensitivity: how much the explanation itself changes when the image hardly does; low is good.

    `sensitivity = max_d |explain(image + d) - explain(image)| / |explain(image)|`, over random `d` with every value
    uniform in `[-radius, radius]`, as in Captum. A zero explanation is divided by one.

    Args:
      explain: `images -> maps`, such as `lambda images: jaxcam.saliency(model, images, targets)`. It gets all `n`
        images in their order, once for each sample, inside a compiled loop, so JAX must be able to trace it; fix the
        targets, or the class may change with the image.
      images: `float[n, h, w, c]`.
      radius: largest change of a pixel, in units of the normalised image.
      num_samples: changes that are tried.
      key: `None` means `jax.random.key(0)`.

    Returns:
      `float32[n]`, a ratio.

    Raises:
      ValueError: images of a wrong shape or type; what `explain` returns has not one map per image.
      TypeError: an `explain` that JAX cannot trace.

    Reference: Yeh et al. 2019, On the (In)fidelity and Sensitivity of Explanations, https://arxiv.org/abs/1901.09392

    Example:
      >>> values = jaxcam.metrics.max_sensitivity(lambda images: jaxcam.saliency(model, images, 3), images)
    """
    positive(num_samples=num_samples)
    images = check_images(images)
    original = check_maps(explain(images), "The result of `explain`")
    if len(original) != len(images):
        raise ValueError(f"`explain` returned {original.shape} for images {images.shape}; one map per image is needed.")

    def norms(maps):
        return jnp.sqrt(jnp.sum(maps.astype(jnp.float32).reshape(len(images), -1) ** 2, -1))

    def one_sample(_, key):
        change = jax.random.uniform(key, images.shape[1:], minval=-radius, maxval=radius).astype(images.dtype)
        return None, norms(explain(images + change) - original)

    try:
        distances = scan(one_sample, None, jax.random.split(random_key(key), num_samples))[1]
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        raise TypeError(
            "JAX cannot trace `explain`: it looks at the values of its images, or hands them to another library. "
            "Write it with jax.numpy, or call the other library by `jax.pure_callback`."
        ) from error
    size = norms(original)
    return distances.max(0) / jnp.where(size == 0, 1, size)


def mu_fidelity(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = probability,
    baseline: Baseline = "zero",
    grid: int = 8,
    share: float = 0.2,
    correlation: Callable = pearson,
    num_samples: int = 128,
    chunk_size: int | None = None,
    key=None,
) -> Values:
    """Mu-fidelity: whether random sets of patches lower the score by as much as the map says; high is good.

    `mu = corr_S (sum_S map, score(image) - score(image without S))`, over random sets `S` of one size.

    Args:
      model, images, heatmaps, targets, score, baseline, chunk_size: as for `deletion`.
      grid: the image is cut into `grid x grid` patches.
      share: part of the patches in each set, above 0 and below 1.
      correlation: `pearson` as in the paper, or `spearman` as in Xplique.
      num_samples: sets; the same for every image.
      key: `None` means `jax.random.key(0)`.

    Returns:
      `float32[n]` in [-1, 1]; zero where the map or the score does not change.

    Raises:
      ValueError: as `deletion`; a grid finer than the image, or a share of no patch or of all.

    Reference: Bhatt et al. 2020, Evaluating and Aggregating Feature-based Model Explanations,
    https://arxiv.org/abs/2005.00631

    Example:
      >>> values = jaxcam.metrics.mu_fidelity(model, images, heatmaps, num_samples=64)
    """
    positive(grid=grid, num_samples=num_samples, chunk_size=chunk_size)
    images, heatmaps, targets = check_all(model, images, heatmaps, targets)
    if grid > min(images.shape[1:3]):
        raise ValueError(f"grid is {grid}, finer than the images, {images.shape[1]} x {images.shape[2]}.")
    chosen = round(share * grid**2)
    if not 0 < chosen < grid**2:
        raise ValueError(f"share is {share}, which makes {chosen} of {grid**2} patches; some must go and some stay.")
    rows, columns = (np.arange(size) * grid // size for size in images.shape[1:3])
    patches = jnp.asarray(rows[:, None] * grid + columns)
    orders = _orders(random_key(key), num_samples, grid**2)

    sets = Partial(_patches_of, orders < chosen, patches)
    static = {"score": score, "correlation": correlation, "num_sets": num_samples, "chunk_size": chunk_size}
    return _correlation_engine(model, images, heatmaps, targets, fill_for(baseline, images, key), sets, **static)


def _patches_of(chosen, patches, index):
    return chosen[index][patches]


@partial(jax.jit, static_argnums=(1, 2))
def _orders(key, num_samples, count):
    """Random permutations of `count` things, `[num_samples, count]`."""
    return jax.vmap(lambda key: jax.random.permutation(key, count))(jax.random.split(key, num_samples))


def occlusion_correlation(
    model: Model,
    images: Images,
    heatmaps: AnyHeatmaps,
    targets: Targets = None,
    *,
    score: Score = probability,
    baseline: Baseline = "zero",
    window: int = 8,
    stride: int | None = None,
    correlation: Callable = pearson,
    chunk_size: int | None = None,
    key=None,
) -> Values:
    """Occlusion correlation: whether patches matter to the score as much as the map says; high is good.

    `r = corr_P (sum_P map, score(image) - score(image without P))`, over the patches `P` of a regular grid.

    Args:
      model, images, heatmaps, targets, score, baseline, chunk_size, key: as for `deletion`.
      window: side of a patch, in pixels.
      stride: distance of patches; `None` is `window`, so that they tile the image. The last ones are cut at its edge.
      correlation: `pearson` or `spearman`.

    Returns:
      `float32[n]` in [-1, 1]; zero where the map or the score does not change.

    Raises:
      ValueError: as `deletion`; patches so large that there is only one.

    Reference: Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks (correlation of
    occlusion), https://arxiv.org/abs/1311.2901

    Example:
      >>> values = jaxcam.metrics.occlusion_correlation(model, images, heatmaps, window=8)
    """
    stride = window if stride is None else stride
    positive(window=window, stride=stride, chunk_size=chunk_size)
    images, heatmaps, targets = check_all(model, images, heatmaps, targets)
    rows, columns = (covered(size, window, stride) for size in images.shape[1:3])
    if len(rows) * len(columns) < 2:
        raise ValueError(f"window is {window}, which leaves one patch of an image {images.shape[1:3]}: too large.")
    static = {"score": score, "correlation": correlation, "window": window, "stride": stride, "chunk_size": chunk_size}
    return _occlusion_engine(model, images, heatmaps, targets, fill_for(baseline, images, key), **static)


@engine(static=("score", "correlation", "window", "stride", "chunk_size"))
def _occlusion_engine(model, images, heatmaps, targets, fill, *, score, correlation, window, stride, chunk_size):
    rows, columns = (covered(size, window, stride) for size in images.shape[1:3])
    drops = drops_without(model, images, targets, fill, rows, columns, score, chunk_size)
    sums = jnp.einsum("nyx,ay,bx->nab", heatmaps, rows, columns, precision=jax.lax.Precision.HIGHEST)
    return correlation(sums.reshape(len(images), -1), drops.reshape(len(images), -1))


@engine(static=("score", "correlation", "num_sets", "chunk_size"))
def _correlation_engine(model, images, heatmaps, targets, fill, sets, *, score, correlation, num_sets, chunk_size):
    """The correlation over the sets of pixels `sets(index) [h, w]` of the map's sum and the drop of the score."""
    targets = classes(model, images, targets, chunk_size)
    before = original_scores(model, images, targets, score, chunk_size)

    def one_chunk(image, index):
        gone = jax.vmap(sets)(index)
        after = score(model(jnp.where(gone[..., None], fill[image], images[image])), targets[image])
        return jnp.stack([jnp.sum(heatmaps[image] * gone, (1, 2)), before[image] - after.astype(jnp.float32)], -1)

    pairs = chunked_map(one_chunk, (len(images), num_sets), chunk_size)
    return correlation(pairs[..., 0], pairs[..., 1])


def _between(places, start, length):
    return (places >= start) & (places < start + length)
