"""Any method, averaged over noisy copies of the image.

One engine runs the method on noisy copies, a chunk at a time, and gathers the sum of the maps and of their squares; the
three wrappers are the mean, the mean square and the variance. The noise is the same for every image, so one image's
map does not depend on its place in the batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcam._inputs import check_images, check_targets, engine, positive, predicted
from jaxcam._loops import chunked_sum
from jaxcam._typing import Images, Score, Targets
from jaxcam.attribution.gradient import saliency
from jaxcam.score import logit
from jaxcam.tap import Tap


def smooth_grad(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    method: Callable = saliency,
    noise: float = 0.15,
    num_samples: int = 25,
    chunk_size: int | None = None,
    key=None,
) -> jax.Array:
    """SmoothGrad: the mean of a method's maps over noisy copies of the image.

    `attribution = mean_s method(image + e_s)`, `e_s ~ N(0, (noise * (max - min of the image))^2)`.

    Captum's NoiseTunnel takes the deviation in absolute units (1 by default); here it is a share of each image's range,
    as in the paper.

    Args:
      model: what `method` takes: a tap or, for methods that need no activations, any callable `images -> logits`.
      images: `float[n, h, w, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, or `None` for the class predicted for the image without noise.
      score: the explained scalar, `(logits[n, k], targets[n]) -> [n]`.
      method: any method of this package, or a function with the same first three arguments and `score`.
      noise: standard deviation, as a share of the image's range.
      num_samples: noisy copies of each image.
      chunk_size: noisy images that `method` gets at a time; by default what suits the device.
      key: `None` means `jax.random.key(0)`.

    Returns:
      What `method` returns, float32.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; negative noise; counts below one.

    Reference: Smilkov et al. 2017, SmoothGrad: removing noise by adding noise, https://arxiv.org/abs/1706.03825

    Example:
      >>> attributions = jaxcam.smooth_grad(model, images, method=jaxcam.input_x_gradient, num_samples=10)
    """
    return _moments(model, images, targets, score, method, noise, num_samples, chunk_size, key)[0]


def smooth_grad_squared(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    method: Callable = saliency,
    noise: float = 0.15,
    num_samples: int = 25,
    chunk_size: int | None = None,
    key=None,
) -> jax.Array:
    """SmoothGrad-Squared: the mean square of a method's maps over noisy copies of the image.

    `attribution = mean_s method(image + e_s)^2`.

    Arguments, result and errors are those of `smooth_grad`.

    Reference: Hooker et al. 2019, A Benchmark for Interpretability Methods, https://arxiv.org/abs/1806.10758

    Example:
      >>> attributions = jaxcam.smooth_grad_squared(model, images, num_samples=10)
    """
    return _moments(model, images, targets, score, method, noise, num_samples, chunk_size, key)[1]


def var_grad(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    method: Callable = saliency,
    noise: float = 0.15,
    num_samples: int = 25,
    chunk_size: int | None = None,
    key=None,
) -> jax.Array:
    """VarGrad: the variance of a method's maps over noisy copies of the image.

    `attribution = mean_s method(image + e_s)^2 - (mean_s method(image + e_s))^2`, the biased variance, as in Captum.

    Arguments, result and errors are those of `smooth_grad`.

    Reference: Adebayo et al. 2018, Local Explanation Methods for Deep Neural Networks, https://arxiv.org/abs/1810.03307

    Example:
      >>> attributions = jaxcam.var_grad(model, images, num_samples=10)
    """
    mean, square = _moments(model, images, targets, score, method, noise, num_samples, chunk_size, key)
    return jnp.maximum(square - mean**2, 0)


def _moments(model, images, targets, score, method, noise, num_samples, chunk_size, key):
    """Checks the arguments, then gives the mean and the mean square."""
    positive(num_samples=num_samples, chunk_size=chunk_size)
    if noise < 0:
        raise ValueError(f"noise is {noise}; it must be zero or more.")
    images = check_images(images)
    targets = check_targets(model, images, targets)
    key = jax.random.key(0) if key is None else key
    static = {"score": score, "method": method, "num_samples": num_samples, "chunk_size": chunk_size}
    return _moments_engine(model, images, targets, jnp.float32(noise), key, **static)


@engine(static=("score", "method", "num_samples", "chunk_size"))
def _moments_engine(model, images, targets, noise, key, *, score, method, num_samples, chunk_size):
    targets = predicted(model(images)) if targets is None else targets
    n, shape = images.shape[0], images.shape[1:]
    deviation = noise * jnp.ptp(images.astype(jnp.float32), axis=(1, 2, 3), keepdims=True)

    def add(indices, counts):
        image, sample = jnp.divmod(indices, num_samples)
        noises = jax.vmap(lambda each: jax.random.normal(jax.random.fold_in(key, each), shape))(sample)
        noisy = images[image].astype(jnp.float32) + deviation[image] * noises
        maps = method(model, noisy.astype(images.dtype), targets[image], score=score).astype(jnp.float32)
        maps = maps * counts.reshape(-1, *[1] * (maps.ndim - 1))
        return tuple(jax.ops.segment_sum(each, image, n, indices_are_sorted=True) for each in (maps, maps**2))

    like = jax.eval_shape(add, jax.ShapeDtypeStruct((chunk_size,), jnp.int32), jnp.zeros(chunk_size))
    zeros = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), like)
    return jax.tree.map(lambda each: each / num_samples, chunked_sum(add, n * num_samples, chunk_size, zeros))
