"""Whether an explanation stays when the image nearly does."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcam._checks import check_images, functions, number, positive, random_key
from jaxcam._engine import scan
from jaxcam._typing import Images, Key
from jaxcam.metrics._checks import Values, check_maps


def max_sensitivity(
    explain: Callable, images: Images, *, radius: float | int = 0.02, num_samples: int = 10, key: Key = 0
) -> Values:
    """Max-sensitivity: how much the explanation itself changes when the image hardly does; low is good.

    `sensitivity = max_d |explain(image + d) - explain(image)| / |explain(image)|`, over random `d` with every value
    uniform in `[-radius, radius]`, as in Captum. A zero explanation is divided by one.

    Args:
      explain: `images -> maps`, such as `lambda images: jaxcam.saliency(model, images, targets)`. It gets all `n`
        images in their order, once for each sample, inside a compiled loop, so JAX must be able to trace it; fix the
        targets, or the class may change with the image.
      images: `float[n, *space, c]`.
      radius: largest change of a pixel, in units of the normalised image.
      num_samples: changes that are tried.
      key: a seed or a key.

    Returns:
      `float32[n]`, a ratio.

    Raises:
      ValueError: images of a wrong shape or type; a negative radius; what `explain` returns has not one map per image.
      TypeError: an `explain` that JAX cannot trace.

    Reference: Yeh et al. 2019, On the (In)fidelity and Sensitivity of Explanations, https://arxiv.org/abs/1901.09392

    Example:
      >>> values = jaxcam.metrics.max_sensitivity(lambda images: jaxcam.saliency(model, images, 3), images)
    """
    positive(num_samples=num_samples)
    functions(explain=explain)
    number(radius=radius)
    if not radius >= 0:
        raise ValueError(f"radius is {radius}; it must be zero or more.")
    images = check_images(images)
    original = check_maps(explain(images), "The result of `explain`")
    if original.shape[0] != images.shape[0]:
        raise ValueError(f"`explain` returned {original.shape} for images {images.shape}; one map per image is needed.")

    def one_sample(_, key):
        change = jax.random.uniform(key, images.shape[1:], jnp.float32, -radius, radius)
        changed = explain(images + change.astype(images.dtype))
        return None, _distances(changed.astype(jnp.float32), original)

    try:
        distances = scan(one_sample, None, jax.random.split(random_key(key), num_samples))[1]
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        raise TypeError(
            "JAX cannot trace `explain`: it looks at the values of its images, or hands them to another library. "
            "Write it with jax.numpy, or call the other library by `jax.pure_callback`."
        ) from error
    return _largest(distances, original)


def _distances(maps, others):
    """The Euclidean distance of two maps of each image."""
    return jnp.sqrt(jnp.sum((maps - others) ** 2, tuple(range(1, maps.ndim))))


@jax.jit
def _largest(distances, original):
    size = _distances(original, jnp.zeros_like(original))
    return distances.max(0) / jnp.where(size == 0, 1, size)
