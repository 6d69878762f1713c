"""Attributions from what the score does when parts of the image are replaced by a baseline.

One engine scores the images of which each sample keeps a part; it needs no gradient and no activations, so a plain
callable `images -> logits` serves as well as a tap. A method is a choice of samples and a formula that turns their
scores `[n, s]` into one number per part. Most methods share the parts, the segments of a segmentation, and differ in
nothing else: each is one `Design`. They return attributions `[n, h, w]`, which `heatmap` turns into heatmaps. The
samples are the same for all images, so that no image depends on its neighbours in the batch.
"""

from collections.abc import Callable
from math import comb
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer

from jaxcam._array import resize
from jaxcam._inputs import check_baseline, check_images, check_targets, engine, pair, positive, predicted
from jaxcam._loops import chunked_map, chunked_sum
from jaxcam._typing import Baseline, Heatmaps, Images, Score, Targets
from jaxcam._windows import covered, drops_without
from jaxcam.score import logit
from jaxcam.segments import grid
from jaxcam.tap import Tap

Segments = (
    Integer[Array, "h w"] | Integer[np.ndarray, "h w"] | Integer[Array, "n h w"] | Integer[np.ndarray, "n h w"] | None
)
EXACT = jax.lax.Precision.HIGHEST
PARTS = 8  # the default cuts each side of the image into this many
RIDGE = 1e-5  # beside a design whose columns have variance 1/4: a bias of 1e-4 at most, and never a singular matrix


def _scores(model, images, targets, baseline, keep, num_samples, score, chunk_size):
    """`[n, s]`: the score of each image of which sample `s` keeps a part, the rest being the baseline.

    `keep(image, sample)` gets vectors of indices and returns masks `[chunk, h, w]`, one where the image is kept.
    """
    targets = predicted(model(images)) if targets is None else targets

    def one_chunk(image, sample):
        mask = keep(image, sample)[..., None].astype(images.dtype)
        mixed = mask * images[image] + (1 - mask) * baseline[image]
        return score(model(mixed), targets[image]).astype(jnp.float32)

    return chunked_map(one_chunk, (images.shape[0], num_samples), chunk_size)


def occlusion(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Baseline = None,
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    chunk_size: int | None = None,
) -> Heatmaps:
    """Occlusion: how much the score drops when a window that slides over the image is covered.

    `attribution[y, x] = mean over the windows that cover (y, x) of score(image) - score(image without the window)`.

    As in Captum, windows start at every multiple of the stride, and the last one in each direction may overhang the
    edge of the image, so that every pixel is covered. The first layers of a convolutional network are computed again
    only where a window reaches.

    Args:
      model: a tap or any callable `images -> logits`.
      images: `float[n, h, w, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, or `None` for the class predicted for the whole image.
      score: the explained scalar, `(logits[n, k], targets[n]) -> [n]`.
      baseline: what covers the image: `[n, h, w, c]`, anything that broadcasts to it, or `None` for zeros (the mean
        colour).
      window: side of the window in pixels, or `(rows, columns)`; by default an eighth of each side of the image.
      stride: step of the window in pixels, or `(rows, columns)`; by default half the window.
      chunk_size: covered images in one forward pass; they are made inside the pass and never held all at once.
        By default what suits the device.

    Returns:
      Attributions `float32[n, h, w]`, signed, in units of the score.

    Raises:
      ValueError: images, targets or baseline of a wrong shape, type or range; a window larger than the image, or a
        stride that leaves gaps between windows.

    Reference: Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks,
    https://arxiv.org/abs/1311.2901

    Example:
      >>> attributions = jaxcam.occlusion(model, images, window=8, stride=4)
    """
    positive(chunk_size=chunk_size)
    images = check_images(images)
    shape = images.shape[1:3]
    window = pair("window", tuple(-(-side // PARTS) for side in shape) if window is None else window)
    stride = pair("stride", tuple(-(-side // 2) for side in window) if stride is None else stride)
    if window[0] > shape[0] or window[1] > shape[1]:
        raise ValueError(f"window is {window}, which is larger than the images, {shape}.")
    if any(step > side and side < whole for step, side, whole in zip(stride, window, shape, strict=True)):
        raise ValueError(f"stride is {stride}, which leaves pixels uncovered between windows of {window}.")
    targets = check_targets(model, images, targets)
    static = {"score": score, "window": window, "stride": stride, "chunk_size": chunk_size}
    return _occlusion_engine(model, images, targets, check_baseline(baseline, images), **static)


@engine(static=("score", "window", "stride", "chunk_size"))
def _occlusion_engine(model, images, targets, baseline, *, score, window, stride, chunk_size):
    rows, columns = map(covered, images.shape[1:3], window, stride)
    drops = drops_without(model, images, targets, baseline, rows, columns, score, chunk_size)
    return jnp.einsum("nab,ay,bx->nyx", drops, rows / rows.sum(0), columns / columns.sum(0), precision=EXACT)


def rise(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Baseline = None,
    num_samples: int = 1000,
    cells: int | tuple[int, int] = 7,
    keep: float = 0.5,
    chunk_size: int | None = None,
    key: Array | None = None,
) -> Heatmaps:
    """RISE: the mean score of the image seen through random soft masks, at each pixel over the masks that show it.

    `attribution = sum_s M_s score(M_s image) / sum_s M_s - constant`, where the masks `M_s` are coarse random grids,
    upsampled and shifted, and the constant makes the lowest pixel zero.

    The paper divides by the expected sum of the masks instead of their sum. Both tend to the same picture; with the sum
    itself, a constant added to the score changes nothing, so that logits serve as well as probabilities.
    Result and errors are those of `occlusion`, but the attributions are not negative. Arguments are those of
    `occlusion`, and:

    Args:
      num_samples: masks. The paper takes 4000 to 8000 at 224 pixels.
      cells: cells of the coarse grid along each side, or `(rows, columns)`.
      keep: the probability that a cell is shown.
      key: draws the masks; `None` is `jax.random.key(0)`.

    Reference: Petsiuk et al. 2018, RISE: Randomized Input Sampling for Explanation, https://arxiv.org/abs/1806.07421

    Example:
      >>> attributions = jaxcam.rise(model, images, num_samples=100, score=jaxcam.score.probability)
    """
    positive(chunk_size=chunk_size, num_samples=num_samples)
    images = check_images(images)
    cells = pair("cells", cells)
    if not 0 < keep < 1:
        raise ValueError(f"keep is {keep}; it is a probability, so it must lie between 0 and 1.")
    targets, baseline = check_targets(model, images, targets), check_baseline(baseline, images)
    key = jax.random.key(0) if key is None else key
    static = {"score": score, "num_samples": num_samples, "cells": cells, "chunk_size": chunk_size}
    return _rise_engine(model, images, targets, baseline, key, keep, **static)


@engine(static=("score", "num_samples", "cells", "chunk_size"))
def _rise_engine(model, images, targets, baseline, key, keep, *, score, num_samples, cells, chunk_size):
    shape = images.shape[1:3]
    grids, offsets = _rise_draws(key, keep, num_samples, cells, shape)
    upsampled = tuple((count + 1) * -(-side // count) for count, side in zip(cells, shape, strict=True))

    def masks(sample):
        large = resize(grids[sample], upsampled)
        return jax.vmap(lambda mask, offset: jax.lax.dynamic_slice(mask, offset, shape))(large, offsets[sample])

    def add(sample, counted):
        return jnp.einsum("ns,shw->nhw", weights[:, sample] * counted, masks(sample), precision=EXACT)

    scores = _scores(model, images, targets, baseline, lambda _, sample: masks(sample), num_samples, score, chunk_size)
    # The row of ones sums the masks themselves. Scores less their mean, so that a large offset costs no digits.
    weights = jnp.concatenate([scores - scores.mean(1, keepdims=True), jnp.ones((1, num_samples))])
    sums = chunked_sum(add, num_samples, chunk_size, jnp.zeros((len(weights), *shape)))
    means = sums[:-1] / jnp.where(sums[-1] > 0, sums[-1], 1)
    return means - means.min((1, 2), keepdims=True)


def _rise_draws(key, keep, num_samples, cells, shape):
    """Coarse grids `[s, rows, columns]` of zeros and ones, and the offsets `[s, 2]` of the crops from them."""
    grid_key, offset_key = jax.random.split(key)
    grids = jax.random.bernoulli(grid_key, keep, (num_samples, *cells)).astype(jnp.float32)
    cell = np.array([-(-side // count) for count, side in zip(cells, shape, strict=True)])
    return grids, jax.random.randint(offset_key, (num_samples, 2), 0, cell)


class Design(NamedTuple):
    """The samples of a method on segments, and what it makes of their scores."""

    num_samples: int
    keep: Callable  # indices of samples [m] -> how far each keeps each of the segments, [m, d] in [0, 1]
    attribute: Callable  # scores [n, s] -> attributions [n, d]


def _on_segments(
    design,
    model,
    images,
    targets,
    score,
    baseline,
    segments,
    num_segments,
    chunk_size,
    num_samples=1,
    key=None,
    **options,
):
    """Checks the arguments, then runs the engine with the method's design."""
    positive(chunk_size=chunk_size, num_samples=num_samples)
    images = check_images(images)
    segments, num_segments = _check_segments(segments, num_segments, images.shape[:3])
    targets, baseline = check_targets(model, images, targets), check_baseline(baseline, images)
    key = jax.random.key(0) if key is None else key
    static = {"num_segments": num_segments, "num_samples": num_samples, "score": score, "chunk_size": chunk_size}
    return _segments_engine(model, images, targets, baseline, segments, key, options, design=design, **static)


@engine(static=("design", "num_segments", "num_samples", "score", "chunk_size"))
def _segments_engine(
    model, images, targets, baseline, segments, key, options, *, design, num_segments, num_samples, score, chunk_size
):
    # A label out of range can only be seen here if it is traced: the maps are then NaN.
    segments = jnp.where(segments < 0, num_segments, segments)
    present = jax.vmap(lambda labels: jnp.zeros(num_segments).at[labels].set(1, mode="drop"))(segments)
    segments = jnp.broadcast_to(segments, images.shape[:3])
    plan = design(key, present, num_samples, **options)

    def keep(image, sample):
        return _spread(plan.keep(sample), segments[image])

    scores = _scores(model, images, targets, baseline, keep, plan.num_samples, score, chunk_size)
    return _spread(plan.attribute(scores), segments)


@jax.vmap
def _spread(values, labels):
    """Gives each pixel the value of its segment: `[d]` and `[h, w]` make `[h, w]`."""
    return values.astype(jnp.float32).at[labels].get(mode="fill", fill_value=jnp.nan)


def _check_segments(segments, num_segments, shape):
    """`segments` as labels `int32[1 or n, h, w]`, and how many there are."""
    if num_segments is not None:
        positive(num_segments=num_segments)
    if segments is None:
        segments = grid(shape[1:], tuple(-(-side // PARTS) for side in shape[1:]))
    if not hasattr(segments, "dtype") or not jnp.issubdtype(segments.dtype, jnp.integer):
        kind = getattr(segments, "dtype", type(segments).__name__)
        raise ValueError(f"segments is of type {kind}; it must be an array of whole numbers, [h, w] or [n, h, w].")
    if segments.shape not in (shape, shape[1:]):
        raise ValueError(f"segments has shape {segments.shape}; for images {shape} it must be {shape[1:]} or {shape}.")
    if isinstance(segments, jax.core.Tracer):
        if num_segments is None:
            raise ValueError(
                "The labels in segments are not known while jit traces, so their number must be given: pass "
                "num_segments (one more than the highest label), or segments as a NumPy array from outside."
            )
    else:
        segments = np.asarray(segments)
        low, high = int(segments.min()), int(segments.max())
        if low < 0 or (num_segments is not None and high >= num_segments):
            last = "" if num_segments is None else f" to {num_segments - 1}"
            raise ValueError(f"segments holds labels from {low} to {high}; they must count from 0{last}.")
        num_segments = high + 1 if num_segments is None else int(num_segments)
    return jnp.asarray(segments, jnp.int32).reshape(-1, *shape[1:]), num_segments


def feature_ablation(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Baseline = None,
    segments: Segments = None,
    num_segments: int | None = None,
    chunk_size: int | None = None,
) -> Heatmaps:
    """Feature ablation: how much the score drops when one segment is replaced by the baseline.

    `attribution = score(image) - score(image without the segment)`, the same at all pixels of a segment.

    Result and errors are those of `occlusion`; labels of a wrong shape, type or range raise `ValueError` as well (and
    give NaN inside `jit`, where they are not known). Arguments are those of `occlusion`, and:

    Args:
      segments: labels `int[h, w]` for all images or `int[n, h, w]`, from zero, such as `jaxcam.segments.superpixels`
        makes; by default a grid of patches, an eighth of each side long.
      num_segments: how many there are; by default one more than the highest label. Needed where `segments` is an
        argument of a function under `jit`.

    Reference: Meyes et al. 2019, Ablation Studies in Artificial Neural Networks, https://arxiv.org/abs/1901.08644

    Example:
      >>> attributions = jaxcam.feature_ablation(model, images, segments=jaxcam.segments.grid((32, 32), 8))
    """
    if segments is None and num_segments is None:  # windows that do not overlap
        window = tuple(-(-side // PARTS) for side in check_images(images).shape[1:3])
        options = {"baseline": baseline, "window": window, "stride": window, "chunk_size": chunk_size}
        return occlusion(model, images, targets, score=score, **options)
    where = (baseline, segments, num_segments, chunk_size)
    return _on_segments(_leave_one_out, model, images, targets, score, *where)


def _leave_one_out(key, present, num_samples):
    d = present.shape[-1]

    def keep(sample):  # sample 0 keeps all
        return jnp.arange(d) != sample[:, None] - 1

    return Design(d + 1, keep, lambda scores: scores[:, :1] - scores[:, 1:])


def lime(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Baseline = None,
    segments: Segments = None,
    num_segments: int | None = None,
    num_samples: int = 1000,
    kernel_width: float = 0.25,
    chunk_size: int | None = None,
    key: Array | None = None,
) -> Heatmaps:
    """LIME: the coefficients of a linear model of the score, fitted to images of which random segments are kept.

    `attribution = argmin_b sum_s w_s (score_s - a - b z_s)^2` with `w_s = exp(-D_s^2 / (2 width^2))`, where `z_s` says
    which segments sample `s` keeps and `D_s` is its cosine distance from keeping all.

    Each segment is kept with probability 1/2, and the first sample keeps all. Least squares with a ridge of 1e-5 (for
    weights that sum to one), where the authors' code shrinks much more and drops features.
    Result and errors are those of `feature_ablation`. Arguments are too, and:

    Args:
      num_samples: samples, that is forward passes for each image; take several times the number of segments.
      kernel_width: how fast the weight falls with the distance.
      key: draws the samples; `None` is `jax.random.key(0)`.

    Reference: Ribeiro et al. 2016, "Why Should I Trust You?", https://arxiv.org/abs/1602.04938

    Example:
      >>> attributions = jaxcam.lime(model, images, num_samples=100)
    """
    if not kernel_width > 0:
        raise ValueError(f"kernel_width is {kernel_width}; it must be above 0.")
    where = (baseline, segments, num_segments, chunk_size)
    options = {"num_samples": num_samples, "key": key, "kernel_width": kernel_width}
    return _on_segments(_local_linear_model, model, images, targets, score, *where, **options)


def _local_linear_model(key, present, num_samples, kernel_width):
    kept = jax.random.bernoulli(key, 0.5, (num_samples, present.shape[-1])).at[0].set(True).astype(jnp.float32)

    def attribute(scores):
        design = kept * present[:, None]
        distances = 1 - jnp.sqrt(design.sum(-1) / present.sum(-1, keepdims=True))
        weights = jax.nn.softmax(-((distances / kernel_width) ** 2) / 2)
        # Less their weighted means, which stands for the intercept.
        design -= jnp.einsum("ms,msd->md", weights, design, precision=EXACT)[:, None]
        values = scores - jnp.sum(weights * scores, 1, keepdims=True)
        return _least_squares(design, weights, values)

    return Design(num_samples, lambda sample: kept[sample], attribute)


def _least_squares(design, weights, values):
    """`argmin_b sum_s weights (values - design b)^2 + RIDGE |b|^2`, `[n, d]`, for weights that sum to one.

    `design` is `[1 or n, s, d]`, `weights` `[1 or n, s]` and `values` `[n, s]`.
    """
    weighted = weights[..., None] * design
    normal = jnp.einsum("msd,mse->mde", weighted, design, precision=EXACT) + RIDGE * jnp.eye(design.shape[-1])
    solver = jnp.linalg.solve(normal, weighted.mT)
    return jnp.matmul(solver, values[..., None], precision=EXACT)[..., 0]


def kernel_shap(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Baseline = None,
    segments: Segments = None,
    num_segments: int | None = None,
    num_samples: int = 1000,
    chunk_size: int | None = None,
    key: Array | None = None,
) -> Heatmaps:
    """Kernel SHAP: Shapley values of the segments, as the solution of a weighted least-squares problem.

    `attribution = argmin_b sum_s w_s (score_s - score(baseline) - b z_s)^2`, subject to `sum b = score(image) -
    score(baseline)`, with `w_s = (d - 1) / (binomial(d, |z_s|) |z_s| (d - |z_s|))` for sets `z_s` of the `d` segments.

    Where `num_samples` reaches `2^d - 2`, all sets are taken, and the result is the Shapley value itself. Otherwise
    sets are drawn in proportion to `w`, each with its complement, which takes much of the noise away, and count alike.
    The constraint holds exactly, as in Covert and Lee 2021 (https://arxiv.org/abs/2012.01536); Captum weights it by 1e6
    instead, and draws no pairs. The ridge is that of `lime`.
    Result and errors are those of `feature_ablation`. Arguments are too, and:

    Args:
      num_samples: sets of segments, that is forward passes for each image; take several times the number of segments.
      key: draws the sets; `None` is `jax.random.key(0)`.

    Reference: Lundberg and Lee 2017, A Unified Approach to Interpreting Model Predictions,
    https://arxiv.org/abs/1705.07874

    Example:
      >>> attributions = jaxcam.kernel_shap(model, images, num_samples=100)
    """
    where = (baseline, segments, num_segments, chunk_size)
    return _on_segments(_shapley_kernel, model, images, targets, score, *where, num_samples, key)


def _shapley_kernel(key, present, num_samples):
    d = present.shape[-1]
    coalitions, weights = _coalitions(key, d, num_samples)
    kept = jnp.concatenate([jnp.zeros((1, d)), jnp.ones((1, d)), coalitions])

    def attribute(scores):
        empty, full = scores[:, :1], scores[:, 1:2]
        share = present / present.sum(-1, keepdims=True)
        # Equal shares satisfy the constraint, and what is fitted beyond them sums to zero.
        equal = (full - empty) * share
        design = (coalitions - 0.5) * present[:, None]
        rest = scores[:, 2:] - (full + empty) / 2 - jnp.matmul(equal, (coalitions - 0.5).T, precision=EXACT)
        design -= design.sum(-1, keepdims=True) * share[:, None]
        beyond = _least_squares(design, weights[None], rest)
        return equal + beyond - beyond.sum(-1, keepdims=True) * share  # zero but for rounding: there the ridge is alone

    return Design(len(kept), lambda sample: kept[sample], attribute)


def _coalitions(key, d: int, num_samples: int):
    """Sets of `d` features, neither empty nor full, `float32[s, d]`, and their weights `[s]`, which sum to one."""
    sizes = np.arange(1, d)
    if 2**d - 2 <= num_samples:
        kept = (np.arange(1, 2**d - 1)[:, None] >> np.arange(d)) & 1
        weights = np.array([1 / (comb(d, size) * size * (d - size)) for size in kept.sum(1).tolist()])
        return jnp.asarray(kept, jnp.float32), jnp.asarray(weights / weights.sum(), jnp.float32)
    size_key, order_key = jax.random.split(key)
    half = -(-num_samples // 2)
    shares = np.cumsum(1 / (sizes * (d - sizes)))
    # Evenly spaced points shifted by one random number: each size comes up as often as it should, as nearly as it can.
    points = (jnp.arange(half) + jax.random.uniform(size_key)) / half
    drawn = 1 + jnp.searchsorted(jnp.asarray(shares[:-1] / shares[-1]), points)
    kept = _orders(order_key, half, d) < drawn[:, None]
    kept = jnp.concatenate([kept, ~kept])[:num_samples]
    return kept.astype(jnp.float32), jnp.full(num_samples, 1 / num_samples)


def _orders(key, count: int, d: int):
    """Random orders `[count, d]`: the place of each feature in each of them."""
    places = jnp.broadcast_to(jnp.arange(d), (count, d))
    return jax.random.permutation(key, places, axis=1, independent=True)


def shapley_sampling(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Baseline = None,
    segments: Segments = None,
    num_segments: int | None = None,
    num_samples: int = 20,
    chunk_size: int | None = None,
    key: Array | None = None,
) -> Heatmaps:
    """Shapley value sampling: what each segment adds to the score, averaged over random orders of adding them.

    `attribution = mean over orders of score(earlier segments and this one) - score(earlier segments)`.

    The attributions of the segments sum to `score(image) - score(baseline)` for any number of orders. The second half
    of the orders is the first half backwards, which is exact where no more than two segments interact, and closer than
    independent orders elsewhere (Captum draws them independently).
    Result and errors are those of `feature_ablation`. Arguments are too, and:

    Args:
      num_samples: orders. Each takes one forward pass for every segment but one.
      key: draws the orders; `None` is `jax.random.key(0)`.

    Reference: Castro et al. 2009, Polynomial Calculation of the Shapley Value Based on Sampling,
    https://doi.org/10.1016/j.cor.2008.04.004

    Example:
      >>> attributions = jaxcam.shapley_sampling(model, images, num_samples=2)
    """
    where = (baseline, segments, num_segments, chunk_size)
    return _on_segments(_random_orders, model, images, targets, score, *where, num_samples, key)


def _random_orders(key, present, num_samples):
    d = present.shape[-1]
    half = _orders(key, -(-num_samples // 2), d)
    places = jnp.concatenate([half, d - 1 - half])[:num_samples]

    def keep(sample):  # sample 0 keeps nothing, sample 1 all; the others are d - 1 for each order
        order, added = jnp.divmod(sample - 2, max(d - 1, 1))
        count = jnp.where(sample < 2, sample * d, added + 1)
        return places[order] < count[:, None]

    def attribute(scores):
        steps = scores[:, 2:].reshape(len(scores), num_samples, d - 1)
        empty, full = (jnp.broadcast_to(scores[:, i, None, None], (*steps.shape[:2], 1)) for i in (0, 1))
        gains = jnp.diff(jnp.concatenate([empty, steps, full], -1))
        return jnp.take_along_axis(gains, places[None], -1).mean(1)

    return Design(2 + num_samples * (d - 1), keep, attribute)


def sobol(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Baseline = None,
    segments: Segments = None,
    num_segments: int | None = None,
    num_samples: int = 32,
    chunk_size: int | None = None,
    key: Array | None = None,
) -> Heatmaps:
    """Sobol attribution: the share of the score's variance that a segment has a part in, alone or with others.

    `attribution_i = mean((score(A) - score(A with column i of B))^2) / (2 var(score))`, the total Sobol index by
    Jansen's estimator, where the rows of `A` and `B` say how far each segment shows through the baseline, from 0 to 1.

    `A` and `B` come from a scrambled Sobol sequence, whose bits `key` shifts. The variance is taken over both, as in
    SciPy; the authors' code takes `A` alone. Indices are shares of a whole: the scale of the score does not matter.
    Result and errors are those of `feature_ablation`, but the attributions are not negative. Arguments are too, and:

    Args:
      num_samples: rows of `A` and of `B`, best a power of two. Each takes one forward pass for every segment, and two.
      key: shifts the sequence; `None` is `jax.random.key(0)`.

    Reference: Fel et al. 2021, Look at the Variance! Efficient Black-box Explanations with Sobol-based Sensitivity
    Analysis, https://arxiv.org/abs/2111.04138

    Example:
      >>> attributions = jaxcam.sobol(model, images, num_samples=2)
    """
    where = (baseline, segments, num_segments, chunk_size)
    return _on_segments(_total_indices, model, images, targets, score, *where, num_samples, key)


def _total_indices(key, present, num_samples):
    d = present.shape[-1]
    shift = jax.random.bits(key, (2 * d,), jnp.uint32) >> 8
    points = (_sobol_sequence(num_samples, 2 * d) ^ shift).astype(jnp.float32) / 2**24
    A, B = points[:, :d], points[:, d:]

    def keep(sample):  # for each row: A, B, then A with each column of B in turn
        row, block = jnp.divmod(sample, d + 2)
        exchanged = (block == 1)[:, None] | (jnp.arange(d) == block[:, None] - 2)
        return jnp.where(exchanged, B[row], A[row])

    def attribute(scores):
        scores = scores.reshape(-1, num_samples, d + 2)
        variance = scores[..., :2].var((1, 2))[:, None]
        partial = ((scores[..., :1] - scores[..., 2:]) ** 2).mean(1) / 2
        return jnp.where(variance == 0, 0, partial / jnp.where(variance == 0, 1, variance))

    return Design(num_samples * (d + 2), keep, attribute)


def _sobol_sequence(count: int, dimensions: int) -> np.ndarray:
    """The first points of a scrambled Sobol sequence in units of 2^-24; always the same, for the key to shift.

    The shift is of the bits (exclusive or), which keeps the sequence's balance, where adding a number would not.
    """
    from scipy.stats import qmc

    # In powers of two, for which alone the sequence is balanced.
    points = qmc.Sobol(dimensions, rng=0).random_base2((count - 1).bit_length())
    return (points[:count] * 2**24).astype(np.uint32)
