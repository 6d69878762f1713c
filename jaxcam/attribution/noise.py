"""Any method, averaged over noisy copies of the image.

One engine runs the method on noisy copies, a chunk of samples at a time, and gathers the sum of the maps and of their
squares; a method is a formula of the mean and the mean square. The noise is the same for every image, so one image's
map does not depend on its place in the batch.
"""

from collections.abc import Callable
from inspect import signature

import jax
import jax.numpy as jnp

from jaxcam._array import EXACT, flat, repeated
from jaxcam._engine import chunked_sum, spread
from jaxcam._errors import shown
from jaxcam._noise import Noise, deviations, noisy_copies
from jaxcam._scores import chosen
from jaxcam._typing import Images, Key, Score, Targets
from jaxcam.attribution._method import as_method
from jaxcam.attribution.gradient import saliency
from jaxcam.score import logit
from jaxcam.taps import Tap


@as_method
def smooth_grad(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    method: Callable = saliency,
    noise: float | int = 0.15,
    deviation: float | int | None = None,
    num_samples: int = 25,
    return_delta: bool = False,
    chunk_size: int | None = None,
    key: Key = 0,
) -> jax.Array | tuple:
    """SmoothGrad: the mean of a method's maps over noisy copies of the image.

    `attribution = mean_s method(image + e_s)`, `e_s ~ N(0, (noise * (max - min of the image))^2)`.

    As in the paper, the noise is a share of each image's range. Captum's NoiseTunnel takes it in absolute units (1 by
    default), as `deviation` does.

    Args:
      model: what `method` takes: a tap or, for methods that need no activations, any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the class predicted for the
        image without noise.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      method: any method of this package, or a function with the same first three arguments and `score`. Its options go
        in by `functools.partial(jaxcam.grad_cam, raw=True)`; a partial is compiled anew where it is made anew, so make
        it once. For a baseline or segments of each image in it, pass `chunk_size=len(images)`: one copy of each.
      noise: standard deviation of the noise, as a share of the image's range; that of a constant image counts as one.
      deviation: standard deviation in units of the pixel, in place of `noise`.
      num_samples: noisy copies of each image.
      return_delta: give also the deltas of a `method` that takes `return_delta`, one for each noisy copy.
      chunk_size: noisy images that `method` gets at a time; by default what suits the device.
      key: a seed, or a key such as `jax.random.key(0)`.

    Returns:
      What `method` returns, float32. With `return_delta` a pair of it and the deltas `float32[n, num_samples]`, or
      `[n, num_samples, m]` of `m` baselines.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; negative noise; counts below one.

    When: any gradient method whose map is noise. Not where exact sums matter: of the method's axioms only the average
    stays.

    Reference: Smilkov et al. 2017, SmoothGrad: removing noise by adding noise, https://arxiv.org/abs/1706.03825

    Example:
      >>> attributions = jaxcam.smooth_grad(model, images, method=jaxcam.input_x_gradient, num_samples=10)
    """
    options = score, method, Noise(noise, deviation), num_samples, return_delta, chunk_size, key
    return _moments(lambda mean, square: mean, model, images, targets, *options)


@as_method
def smooth_grad_squared(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    method: Callable = saliency,
    noise: float | int = 0.15,
    deviation: float | int | None = None,
    num_samples: int = 25,
    return_delta: bool = False,
    chunk_size: int | None = None,
    key: Key = 0,
) -> jax.Array | tuple:
    """SmoothGrad-Squared: the mean square of a method's maps over noisy copies of the image.

    `attribution = mean_s method(image + e_s)^2`.

    Args:
      model: what `method` takes: a tap or, for methods that need no activations, any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the class predicted for
        the image without noise.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      method: any method of this package, or a function with the same first three arguments and `score`. Its options
        go in by `functools.partial(jaxcam.grad_cam, raw=True)`; a partial is compiled anew where it is made anew, so
        make it once.
      noise: standard deviation of the noise, as a share of the image's range; that of a constant image counts as one.
      deviation: standard deviation in units of the pixel, in place of `noise`.
      num_samples: noisy copies of each image.
      return_delta: give also the deltas of a `method` that takes `return_delta`, one for each noisy copy.
      chunk_size: noisy images that `method` gets at a time; by default what suits the device.
      key: a seed, or a key such as `jax.random.key(0)`.

    Returns:
      What `method` returns, float32. With `return_delta` a pair of it and the deltas `float32[n, num_samples]`, or
      `[n, num_samples, m]` of `m` baselines.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; negative noise; counts below one.

    When: a sharper picture of where gradients are large. Not for their sign.

    Reference: Hooker et al. 2019, A Benchmark for Interpretability Methods, https://arxiv.org/abs/1806.10758

    Example:
      >>> attributions = jaxcam.smooth_grad_squared(model, images, num_samples=10)
    """
    options = score, method, Noise(noise, deviation), num_samples, return_delta, chunk_size, key
    return _moments(lambda mean, square: square, model, images, targets, *options)


@as_method
def var_grad(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    method: Callable = saliency,
    noise: float | int = 0.15,
    deviation: float | int | None = None,
    num_samples: int = 25,
    return_delta: bool = False,
    chunk_size: int | None = None,
    key: Key = 0,
) -> jax.Array | tuple:
    """VarGrad: the variance of a method's maps over noisy copies of the image.

    `attribution = mean_s method(image + e_s)^2 - (mean_s method(image + e_s))^2`, the biased variance, as in Captum.

    Args:
      model: what `method` takes: a tap or, for methods that need no activations, any callable `images -> output`.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the class predicted for
        the image without noise.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      method: any method of this package, or a function with the same first three arguments and `score`. Its options
        go in by `functools.partial(jaxcam.grad_cam, raw=True)`; a partial is compiled anew where it is made anew, so
        make it once.
      noise: standard deviation of the noise, as a share of the image's range; that of a constant image counts as one.
      deviation: standard deviation in units of the pixel, in place of `noise`.
      num_samples: noisy copies of each image.
      return_delta: give also the deltas of a `method` that takes `return_delta`, one for each noisy copy.
      chunk_size: noisy images that `method` gets at a time; by default what suits the device.
      key: a seed, or a key such as `jax.random.key(0)`.

    Returns:
      What `method` returns, float32. With `return_delta` a pair of it and the deltas `float32[n, num_samples]`, or
      `[n, num_samples, m]` of `m` baselines.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; negative noise; counts below one.

    When: where the explanation itself is unstable. Not as evidence for a class.

    Reference: Adebayo et al. 2018, Local Explanation Methods for Deep Neural Networks, https://arxiv.org/abs/1810.03307

    Example:
      >>> attributions = jaxcam.var_grad(model, images, num_samples=10)
    """
    options = score, method, Noise(noise, deviation), num_samples, return_delta, chunk_size, key
    return _moments(_variance, model, images, targets, *options)


def _variance(mean, square):
    return jnp.maximum(square - mean**2, 0)


def _moments(formula, model, images, targets, score, method, noise, num_samples, return_delta, chunk_size, key):
    """A method that is a formula of the mean and the mean square, `formula(mean, square) -> map`."""
    if return_delta and "return_delta" not in signature(method).parameters:
        name = shown(getattr(method, "__name__", repr(method)))
        raise ValueError(f"return_delta is True, and {name} has no deltas; jaxcam.integrated_gradients has.")
    targets = chosen(model, images, targets)
    deviation = deviations(images, noise)

    def add(samples, weights):
        count = len(samples)
        copies = spread(flat(noisy_copies(images, deviation, key, samples)))
        repeats = repeated(model, count), copies, jnp.repeat(targets, count, axis=0)

        def of_copies(maps):  # [n * m, ...] as [n, m, ...]
            return maps.astype(jnp.float32).reshape(images.shape[0], count, *maps.shape[1:])

        def total(maps):
            return jnp.sum(maps * weights.reshape(-1, *(1,) * (maps.ndim - 2)), axis=1)

        def placed(deltas):
            places = weights[:, None] * jax.nn.one_hot(samples, num_samples, dtype=jnp.float32)
            return jnp.einsum("nm...,ms->ns...", deltas, places, precision=EXACT)

        options = {"return_delta": True} if return_delta else {}
        found = jax.tree.map(of_copies, method(*repeats, score=repeated(score, count), **options))
        maps, deltas = found if return_delta else (found, ())
        squares = jax.tree.map(lambda each: total(each**2), maps)
        return jax.tree.map(total, maps), squares, jax.tree.map(placed, deltas)

    *sums, deltas = chunked_sum(add, num_samples, images, chunk_size)
    maps = jax.tree.map(formula, *jax.tree.map(lambda each: each / num_samples, sums))
    return (maps, deltas) if return_delta else maps
