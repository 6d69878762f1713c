"""Attributions from what the score does when parts of the image are replaced by a baseline.

It needs no gradient and no activations, so a plain callable `images -> output` serves as well as a tap. A method is a
choice of samples and a formula that turns their scores `[n, s]` into one number per part. Most methods share the parts,
the segments of a segmentation, and differ in nothing else (`_masked`). They return attributions `[n, *space]`, which
`heatmap` turns into heatmaps.
"""

from collections.abc import Callable
from math import comb

import jax
import jax.numpy as jnp
import numpy as np

from jaxcam._array import EXACT, resize
from jaxcam._checks import number, prepare, sizes
from jaxcam._engine import chunked_sum
from jaxcam._typing import Baseline, Heatmaps, Images, Key, Score, Targets
from jaxcam.attribution._masked import Design, Segments, masked_scores, on_segments, orders
from jaxcam.attribution._method import as_method
from jaxcam.attribution.occlusion import occlusion, parts
from jaxcam.score import logit
from jaxcam.taps import Tap

RIDGE = 1e-5  # beside a design whose columns have variance 1/4: a bias of 1e-4 at most, and never a singular matrix
SWEEPS = 100  # of the Lasso over all coefficients; columns are nearly independent, so that a few dozen are enough


@as_method
def rise(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Baseline = None,
    num_samples: int = 1000,
    cells: int | tuple[int, ...] = 7,
    fraction: float = 0.5,
    key: Key = 0,
    chunk_size: int | None = None,
) -> Heatmaps:
    """RISE: the mean score of the image seen through random soft masks, at each pixel over the masks that show it.

    `attribution = sum_s M_s score(M_s image) / sum_s M_s - constant`, where the masks `M_s` are coarse random grids,
    upsampled and shifted, and the constant makes the lowest pixel zero.

    The paper divides by the expected sum of the masks instead of their sum. Both tend to the same picture; with the sum
    itself, a constant added to the score changes nothing, so that logits serve as well as probabilities.
    The attributions are not negative.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the class predicted for
        the whole image.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      baseline: what covers the image: `[n, *space, c]`, anything that broadcasts to it, or `None` for zeros (the mean
        colour). Several are `[1 or n, m, *space, c]`; scores are then means over them.
      num_samples: masks. The paper takes 4000 to 8000 at 224 pixels.
      cells: number of cells of the coarse grid along each axis of space, or one number for each.
      fraction: the share of the cells that are shown: the probability that a cell is.
      key: of the masks, which are the same for every image: a key, or the seed of one.
      chunk_size: masked images in one forward pass; by default what suits the device.

    Returns:
      Attributions `float32[n, *space]`, signed, in units of the score.

    Raises:
      ValueError: images, targets or baseline of a wrong shape, type or range; a window larger than the image, or a
        stride that leaves gaps between windows; an output that the score cannot read.

    When: a robust map of any black box. Not in a hurry: it takes thousands of passes before the grain is gone.

    Reference: Petsiuk et al. 2018, RISE: Randomized Input Sampling for Explanation, https://arxiv.org/abs/1806.07421

    Example:
      >>> attributions = jaxcam.rise(model, images, num_samples=100, score=jaxcam.score.probability)
    """
    number(below=1, fraction=fraction)
    space = images.shape[1:-1]
    cells = sizes("cells", cells, space)
    grids, offsets = _rise_draws(key, fraction, num_samples, cells, space)
    upsampled = tuple((count + 1) * -(-side // count) for count, side in zip(cells, space, strict=True))

    def masks(samples):
        large = resize(grids[samples], upsampled)
        return jax.vmap(lambda mask, offset: jax.lax.dynamic_slice(mask, offset, space))(large, offsets[samples])

    def sums(samples, counted):
        shown = masks(samples)
        weighted = jnp.tensordot(weights[:, samples] * counted, shown, 1, precision=EXACT)
        return weighted, jnp.tensordot(counted, shown, 1, precision=EXACT)

    weights = masked_scores(model, images, targets, baseline, masks, num_samples, score, chunk_size)
    weights -= weights.mean(1, keepdims=True)  # so that a large offset costs no digits
    weighted, shown = chunked_sum(sums, num_samples, images, chunk_size)
    means = weighted / jnp.where(shown > 0, shown, 1)
    return means - means.min(range(1, means.ndim), keepdims=True)


def _rise_draws(key, fraction: float, num_samples: int, cells, space):
    """Coarse grids `[s, *cells]` of zeros and ones, and the offsets `[s, d]` of the crops from them."""
    grid_key, offset_key = jax.random.split(key)
    grids = jax.random.bernoulli(grid_key, jnp.float32(fraction), (num_samples, *cells)).astype(jnp.float32)
    cell = jnp.array([-(-side // count) for count, side in zip(cells, space, strict=True)], jnp.int32)
    return grids, jax.random.randint(offset_key, (num_samples, len(cells)), 0, cell, jnp.int32)


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

    Labels out of range give NaN inside `jit`, where they are not known.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the class predicted for
        the whole image.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      baseline: what covers the image: `[n, *space, c]`, anything that broadcasts to it, or `None` for zeros (the mean
        colour). Several are `[1 or n, m, *space, c]`; scores are then means over them.
      segments: labels `int[*space]` for all images or `int[n, *space]`, from zero, such as
        `jaxcam.segments.superpixels` makes; by default a grid of patches, an eighth of each side long.
      num_segments: how many there are; by default one more than the highest label. Needed where `segments` is an
        argument of a function under `jit`.
      chunk_size: changed images in one forward pass; by default what suits the device.

    Returns:
      Attributions `float32[n, *space]`, signed, in units of the score.

    Raises:
      ValueError: images, targets or baseline of a wrong shape, type or range; labels of a wrong shape, type or range;
        counts below one.

    When: what each given region is worth, such as segments or organs. Not for pixels, nor for regions that stand in for
    each other.

    Reference: Meyes et al. 2019, Ablation Studies in Artificial Neural Networks, https://arxiv.org/abs/1901.08644

    Example:
      >>> attributions = jaxcam.feature_ablation(model, images, segments=jaxcam.segments.grid((32, 32), 8))
    """
    shared = {"score": score, "baseline": baseline, "chunk_size": chunk_size}
    if segments is None and num_segments is None:  # windows that do not overlap, of which `occlusion` knows more
        model, images, targets = prepare(model, images, targets)
        window = parts(images.shape[1:-1])
        return occlusion(model, images, targets, window=window, stride=window, **shared)
    shared |= {"segments": segments, "num_segments": num_segments}
    return on_segments(_leave_one_out, model, images, targets, **shared)


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
    kernel_width: float | int = 0.25,
    alpha: float | int = 0.0,
    key: Key = 0,
    chunk_size: int | None = None,
) -> Heatmaps:
    """LIME: the coefficients of a linear model of the score, fitted to images of which random segments are kept.

    `attribution = argmin_b sum_s w_s (score_s - a - b z_s)^2 / (2 sum w) + alpha |b|_1` with
    `w_s = exp(-D_s^2 / (2 width^2))`, where `z_s` says which segments sample `s` keeps and `D_s` is its cosine distance
    from keeping all.

    Each segment is kept with probability 1/2, and the first sample keeps all. With `alpha` it is the Lasso, as
    scikit-learn has it, and Captum by default with 0.01: segments that matter little get zero. Without, it is least
    squares with a ridge of 1e-5 (for weights that sum to one), where the authors' code shrinks much more and drops
    features.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the class predicted for
        the whole image.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      baseline: what covers the image: `[n, *space, c]`, anything that broadcasts to it, or `None` for zeros (the mean
        colour). Several are `[1 or n, m, *space, c]`; scores are then means over them.
      segments: labels `int[*space]` for all images or `int[n, *space]`, from zero, such as
        `jaxcam.segments.superpixels` makes; by default a grid of patches, an eighth of each side long.
      num_segments: how many there are; by default one more than the highest label. Needed where `segments` is an
        argument of a function under `jit`.
      num_samples: samples, that is forward passes for each image; take several times the number of segments.
      kernel_width: how fast the weight falls with the distance.
      alpha: the Lasso's penalty, in units of the score; 0 for none.
      key: of the samples, which are the same for every image: a key, or the seed of one.
      chunk_size: changed images in one forward pass; by default what suits the device.

    Returns:
      Attributions `float32[n, *space]`, signed, in units of the score.

    Raises:
      ValueError: images, targets or baseline of a wrong shape, type or range; labels of a wrong shape, type or range;
        counts below one.

    When: which segments a simple model of the score would keep. Not for exact shares: it depends on segments, samples
    and width.

    Reference: Ribeiro et al. 2016, "Why Should I Trust You?", https://arxiv.org/abs/1602.04938

    Example:
      >>> attributions = jaxcam.lime(model, images, num_samples=100)
    """
    number(infinite=True, above=0, kernel_width=kernel_width)
    number(least=0, alpha=alpha)
    shared = {"score": score, "baseline": baseline, "segments": segments, "num_segments": num_segments}
    options = {"num_samples": num_samples, "key": key, "chunk_size": chunk_size}
    options |= {"kernel_width": kernel_width, "alpha": float(alpha)}
    return on_segments(_local_linear_model, model, images, targets, **shared, **options)


def _local_linear_model(key, present, num_samples, kernel_width, alpha):
    kept = jax.random.bernoulli(key, jnp.float32(0.5), (num_samples, present.shape[-1]))
    kept = kept.at[0].set(True).astype(jnp.float32)

    def attribute(scores):
        design = kept * present[:, None]
        distances = 1 - jnp.sqrt(design.sum(-1) / present.sum(-1, keepdims=True))
        weights = jax.nn.softmax(-((distances / kernel_width) ** 2) / 2)
        # Less their weighted means, which stands for the intercept.
        design -= jnp.einsum("ms,msd->md", weights, design, precision=EXACT)[:, None]
        values = scores - jnp.sum(weights * scores, 1, keepdims=True)
        return _least_squares(design, weights, values, alpha)

    return Design(num_samples, lambda sample: kept[sample], attribute)


def _least_squares(design, weights, values, alpha=0.0):
    """`argmin_b sum_s weights (values - design b)^2 / 2 + alpha |b|_1`, `[n, d]`, for weights that sum to one.

    `design` is `[1 or n, s, d]`, `weights` `[1 or n, s]` and `values` `[n, s]`. Without `alpha`, with a small ridge.
    """
    weighted = weights[..., None] * design
    normal = jnp.einsum("msd,mse->mde", weighted, design, precision=EXACT)
    if alpha:
        return _lasso(normal, jnp.matmul(values[:, None], weighted, precision=EXACT)[:, 0], alpha)
    ridge = RIDGE * jnp.eye(design.shape[-1], dtype=jnp.float32)
    solver = jnp.linalg.solve(normal + ridge, weighted.mT)
    return jnp.matmul(solver, values[..., None], precision=EXACT)[..., 0]


def _lasso(normal, products, alpha):
    """`argmin_b b normal b / 2 - products b + alpha |b|_1`, one coefficient after the other, again and again."""
    d = products.shape[-1]
    curvature = jnp.diagonal(normal, axis1=1, axis2=2)

    def improve(step, b):
        i = step % d
        left = products[:, i] - jnp.sum(normal[:, i] * b, -1) + curvature[:, i] * b[:, i]
        shrunk = jnp.sign(left) * jax.nn.relu(jnp.abs(left) - alpha)
        return b.at[:, i].set(jnp.where(curvature[:, i] > 0, shrunk / jnp.maximum(curvature[:, i], RIDGE), 0))

    return jax.lax.fori_loop(0, SWEEPS * d, improve, jnp.zeros_like(products))


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
    key: Key = 0,
    chunk_size: int | None = None,
) -> Heatmaps:
    """Kernel SHAP: Shapley values of the segments, as the solution of a weighted least-squares problem.

    `attribution = argmin_b sum_s w_s (score_s - score(baseline) - b z_s)^2`, subject to `sum b = score(image) -
    score(baseline)`, with `w_s = (d - 1) / (binomial(d, |z_s|) |z_s| (d - |z_s|))` for sets `z_s` of the `d` segments.

    Where `num_samples` reaches `2^d - 2`, all sets are taken, and the result is the Shapley value itself, by its
    definition: `sum_S (|S| - 1)! (d - |S|)! / d! (score_S - score_{S without i})`. Otherwise sets are drawn in
    proportion to `w`, each with its complement, which takes much of the noise away, and count alike.
    The constraint holds exactly, as in Covert and Lee 2021 (https://arxiv.org/abs/2012.01536); Captum weights it by 1e6
    instead, and draws no pairs. The ridge is that of `lime`.

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the class predicted for
        the whole image.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      baseline: what covers the image: `[n, *space, c]`, anything that broadcasts to it, or `None` for zeros (the mean
        colour). Several are `[1 or n, m, *space, c]`; scores are then means over them.
      segments: labels `int[*space]` for all images or `int[n, *space]`, from zero, such as
        `jaxcam.segments.superpixels` makes; by default a grid of patches, an eighth of each side long.
      num_segments: how many there are; by default one more than the highest label. Needed where `segments` is an
        argument of a function under `jit`.
      num_samples: sets of segments, that is forward passes for each image; take several times the number of segments.
      key: of the sets, which are the same for every image: a key, or the seed of one.
      chunk_size: changed images in one forward pass; by default what suits the device.

    Returns:
      Attributions `float32[n, *space]`, signed, in units of the score.

    Raises:
      ValueError: images, targets or baseline of a wrong shape, type or range; labels of a wrong shape, type or range;
        counts below one.

    When: Shapley values of some dozens of segments. Not for hundreds: their number outgrows the samples.

    Reference: Lundberg and Lee 2017, A Unified Approach to Interpreting Model Predictions,
    https://arxiv.org/abs/1705.07874

    Example:
      >>> attributions = jaxcam.kernel_shap(model, images, num_samples=100)
    """
    shared = {"score": score, "baseline": baseline, "segments": segments, "num_segments": num_segments}
    options = {"num_samples": num_samples, "key": key, "chunk_size": chunk_size}
    return on_segments(_shapley_kernel, model, images, targets, **shared, **options)


def _shapley_kernel(key, present, num_samples):
    d = present.shape[-1]
    if 2**d - 2 <= num_samples:
        return _all_sets(present)
    coalitions = _coalitions(key, d, num_samples)
    weights = jnp.full((1, num_samples), 1 / num_samples, jnp.float32)
    kept = jnp.concatenate([jnp.zeros((1, d), jnp.float32), jnp.ones((1, d), jnp.float32), coalitions])

    def attribute(scores):
        empty, full = scores[:, :1], scores[:, 1:2]
        share = present / present.sum(-1, keepdims=True)
        # Equal shares satisfy the constraint, and what is fitted beyond them sums to zero.
        equal = (full - empty) * share
        design = (coalitions - 0.5) * present[:, None]
        rest = scores[:, 2:] - (full + empty) / 2 - jnp.matmul(equal, (coalitions - 0.5).T, precision=EXACT)
        design -= design.sum(-1, keepdims=True) * share[:, None]
        beyond = _least_squares(design, weights, rest)
        return equal + beyond - beyond.sum(-1, keepdims=True) * share  # zero but for rounding: there the ridge is alone

    return Design(len(kept), lambda sample: kept[sample], attribute)


def _all_sets(present):
    """The Shapley value by its definition; a segment that does not occur changes no score, and no other's value."""
    d = present.shape[-1]
    kept = (np.arange(2**d)[:, None] >> np.arange(d)) & 1
    shares = np.array([1 / (comb(d, size) * max(size, 1)) for size in range(d + 1)])  # of a set of each size
    count = kept.sum(1)[:, None]
    factors = np.where(kept, shares[count], -shares[np.minimum(count + 1, d)]).astype(np.float32)

    def attribute(scores):
        return jnp.matmul(scores - scores[:, :1], factors, precision=EXACT) * present

    return Design(2**d, lambda sample: jnp.asarray(kept, jnp.float32)[sample], attribute)


def _coalitions(key, d: int, num_samples: int):
    """Sets of `d` features, neither empty nor full, `float32[s, d]`, as often as the Shapley kernel weighs them."""
    sizes = np.arange(1, d)
    size_key, order_key = jax.random.split(key)
    half = -(-num_samples // 2)
    shares = np.cumsum(1 / (sizes * (d - sizes)))
    # Evenly spaced points shifted by one random number: each size comes up as often as it should, as nearly as it can.
    points = (jnp.arange(half, dtype=jnp.float32) + jax.random.uniform(size_key, (), jnp.float32)) / half
    drawn = 1 + jnp.searchsorted(jnp.asarray(shares[:-1] / shares[-1], jnp.float32), points)
    places = orders(order_key, half, d)
    kept = places < drawn[:, None].astype(places.dtype)
    return jnp.concatenate([kept, ~kept])[:num_samples].astype(jnp.float32)


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
    key: Key = 0,
    chunk_size: int | None = None,
) -> Heatmaps:
    """Shapley value sampling: what each segment adds to the score, averaged over random orders of adding them.

    `attribution = mean over orders of score(earlier segments and this one) - score(earlier segments)`.

    The attributions of the segments sum to `score(image) - score(baseline)` for any number of orders. The second half
    of the orders is the first half backwards, which is exact where no more than two segments interact, and closer than
    independent orders elsewhere (Captum draws them independently).

    Args:
      model: a tap or any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the class predicted for
        the whole image.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      baseline: what covers the image: `[n, *space, c]`, anything that broadcasts to it, or `None` for zeros (the mean
        colour). Several are `[1 or n, m, *space, c]`; scores are then means over them.
      segments: labels `int[*space]` for all images or `int[n, *space]`, from zero, such as
        `jaxcam.segments.superpixels` makes; by default a grid of patches, an eighth of each side long.
      num_segments: how many there are; by default one more than the highest label. Needed where `segments` is an
        argument of a function under `jit`.
      num_samples: orders. Each takes one forward pass for every segment but one.
      key: of the orders, which are the same for every image: a key, or the seed of one.
      chunk_size: changed images in one forward pass; by default what suits the device.

    Returns:
      Attributions `float32[n, *space]`, signed, in units of the score.

    Raises:
      ValueError: images, targets or baseline of a wrong shape, type or range; labels of a wrong shape, type or range;
        counts below one.

    When: Shapley values that sum exactly after any number of orders. Not for many segments in little time.

    Reference: Castro et al. 2009, Polynomial Calculation of the Shapley Value Based on Sampling,
    https://doi.org/10.1016/j.cor.2008.04.004

    Example:
      >>> attributions = jaxcam.shapley_sampling(model, images, num_samples=2)
    """
    shared = {"score": score, "baseline": baseline, "segments": segments, "num_segments": num_segments}
    options = {"num_samples": num_samples, "key": key, "chunk_size": chunk_size}
    return on_segments(_random_orders, model, images, targets, **shared, **options)


def _random_orders(key, present, num_samples):
    d = present.shape[-1]
    half = orders(key, -(-num_samples // 2), d)
    places = jnp.concatenate([half, d - 1 - half])[:num_samples]

    def keep(sample):  # sample 0 keeps nothing, sample 1 all; the others are d - 1 for each order
        order, added = jnp.divmod(sample - 2, max(d - 1, 1))
        count = jnp.where(sample < 2, sample * d, added + 1)
        return places[order] < count[:, None]

    def attribute(scores):
        steps = scores[:, 2:].reshape(scores.shape[0], num_samples, d - 1)
        empty, full = (jnp.broadcast_to(scores[:, i, None, None], (*steps.shape[:2], 1)) for i in (0, 1))
        gains = jnp.diff(jnp.concatenate([empty, steps, full], -1))
        return jnp.take_along_axis(gains, places[None], -1).mean(1)

    return Design(2 + num_samples * (d - 1), keep, attribute)
