"""Which segments does the score depend on? Sensitivity analysis, of masks as random inputs and the score as output.

Unlike the methods of `perturbation` these have no sign and add up to nothing: they say how much of the score's
behaviour a segment is behind, also where it only acts together with others.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxcam._array import EXACT, ROUNDING
from jaxcam._typing import Baseline, Heatmaps, Images, Key, Score, Targets
from jaxcam.attribution._masked import Design, Segments, on_segments, orders
from jaxcam.score import logit
from jaxcam.taps import Tap


def sobol(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Baseline = None,
    segments: Segments = None,
    num_segments: int | None = None,
    perturbation: str = "baseline",
    num_samples: int = 32,
    key: Key = 0,
    chunk_size: int | None = None,
) -> Heatmaps:
    """Sobol attribution: the share of the score's variance that a segment has a part in, alone or with others.

    `attribution_i = mean((score(A) - score(A with column i of B))^2) / (2 var(score))`, the total Sobol index by
    Jansen's estimator, where the rows of `A` and `B` say how far each segment shows through the baseline, from 0 to 1.

    `A` and `B` come from a scrambled Sobol sequence, whose bits `key` shifts. The variance is taken over both, as in
    SciPy; the authors' code takes `A` alone. Indices are shares of a whole: the scale of the score does not matter.
    The attributions are not negative.

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
      perturbation: what shows where a segment does not: the `"baseline"`; or `"blur"`, the image under a Gaussian of
        1/20 of its shortest side; with `"amplitude"` it is `image + M - 0.5` instead of a mixture, `M` being the mask.
      num_samples: rows of `A` and of `B`, best a power of two. Each takes one forward pass for every segment, and
        two.
      key: of the sequence's shift, which is the same for every image: a key, or the seed of one.
      chunk_size: changed images in one forward pass; by default what suits the device.

    Returns:
      Attributions `float32[n, *space]`, signed, in units of the score.

    Raises:
      ValueError: images, targets or baseline of a wrong shape, type or range; labels of a wrong shape, type or range;
        counts below one.

    When: interactions: regions that matter only together with others count fully. Not for the sign of what matters.

    Reference: Fel et al. 2021, Look at the Variance! Efficient Black-box Explanations with Sobol-based Sensitivity
    Analysis, https://arxiv.org/abs/2111.04138

    Example:
      >>> attributions = jaxcam.sobol(model, images, num_samples=2)
    """
    shared = {"score": score, "baseline": baseline, "segments": segments, "num_segments": num_segments}
    options = {"num_samples": num_samples, "key": key, "chunk_size": chunk_size, "perturbation": perturbation}
    return on_segments(total_indices, model, images, targets, **shared, **options)


def total_indices(key, present, num_samples):
    """The samples for total Sobol indices, and Jansen's estimator of these from their scores."""
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
        constant = variance <= (ROUNDING * jnp.abs(scores).max((1, 2))[:, None]) ** 2
        return jnp.where(constant, 0, partial / jnp.where(constant, 1, variance))

    return Design(num_samples * (d + 2), keep, attribute)


def _sobol_sequence(count: int, dimensions: int) -> np.ndarray:
    """The first points of a scrambled Sobol sequence in units of 2^-24; always the same, for the key to shift.

    The shift is of the bits (exclusive or), which keeps the sequence's balance, where adding a number would not.
    """
    from scipy.stats import qmc

    # In powers of two, for which alone the sequence is balanced.
    points = qmc.Sobol(dimensions, rng=0).random_base2((count - 1).bit_length())
    return (points[:count] * 2**24).astype(np.uint32)


def hsic(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    baseline: Baseline = None,
    segments: Segments = None,
    num_segments: int | None = None,
    perturbation: str = "baseline",
    num_samples: int = 500,
    key: Key = 0,
    chunk_size: int | None = None,
) -> Heatmaps:
    """HSIC attribution: how much the score depends on whether a segment is shown, by a kernel measure of dependence.

    `attribution_i = 2 / s^2 sum_ab (m_ai - m_i) (m_bi - m_i) exp(-(score_a - score_b)^2 / (2 width^2))` over pairs of
    `s` samples, of which a half shows segment `i`, `m_ai` being one; `m_i` is their mean. It is the Hilbert-Schmidt
    independence criterion `tr(K H L H) / s^2` of a Dirac kernel of the mask and a Gaussian one of the score.

    The width is the median distance of two scores, as is usual with such kernels; the authors' code takes the median
    score, which an added constant would change. A pass less for each segment than in `sobol`.
    The attributions are not negative.

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
      perturbation: what shows where a segment does not: the `"baseline"`; or `"blur"`, the image under a Gaussian of
        1/20 of its shortest side; with `"amplitude"` it is `image + M - 0.5` instead of a mixture, `M` being the mask.
      num_samples: masks, each of which shows a half of the segments or so.
      key: of the masks, which are the same for every image: a key, or the seed of one.
      chunk_size: changed images in one forward pass; by default what suits the device.

    Returns:
      Attributions `float32[n, *space]`, signed, in units of the score.

    Raises:
      ValueError: images, targets or baseline of a wrong shape, type or range; labels of a wrong shape, type or range;
        counts below one.

    When: a black box with few passes to spend. Not for shares or signs: it measures dependence.

    Reference: Novello et al. 2022, Making Sense of Dependence: Efficient Black-box Explanations Using Dependence
    Measure, https://arxiv.org/abs/2206.06219

    Example:
      >>> attributions = jaxcam.hsic(model, images, num_samples=100)
    """
    shared = {"score": score, "baseline": baseline, "segments": segments, "num_segments": num_segments}
    options = {"num_samples": num_samples, "key": key, "chunk_size": chunk_size, "perturbation": perturbation}
    return on_segments(_dependence, model, images, targets, **shared, **options)


def _dependence(key, present, num_samples):
    d = present.shape[-1]
    kept = (num_samples // 2 > orders(key, d, num_samples).T).astype(
        jnp.float32
    )  # each segment in a half of the samples

    def attribute(scores):
        distances = jnp.abs(scores[:, :, None] - scores[:, None])
        middle, mean = (each(distances, (1, 2), keepdims=True) for each in (jnp.median, jnp.mean))
        width = jnp.where(middle > 0, middle, jnp.where(mean > 0, mean, 1))
        kernel = jnp.expm1(-((distances / width) ** 2) / 2)  # less one, which the centred masks do not see
        centred = kept - kept.mean(0)
        sums = jnp.sum(centred * jnp.matmul(kernel, centred, precision=EXACT), 1)
        return 2 * jax.nn.relu(sums) / num_samples**2 * present

    return Design(num_samples, lambda sample: kept[sample], attribute)
