"""Whether an explanation stays when the image nearly does.

Every metric here explains changed images, one set of changes after the other in a compiled loop (`over_changes`), and
is a formula of the maps before and after. Random changes are the same for every image, so that no image influences
another one's value.
"""

from collections.abc import Callable
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np

from jaxcam._checks import as_array, check_baseline, check_images, filled, functions, positive, random_key
from jaxcam._engine import scan
from jaxcam._typing import Baseline, Images, Key
from jaxcam.metrics._altered import check_perturbation
from jaxcam.metrics._checks import Values, check_maps


def max_sensitivity(
    explain: Callable,
    images: Images,
    *,
    perturbation: str | Callable = "uniform",
    radius: float | int = 0.02,
    noise: float | int = 0.15,
    deviation: float | int | None = None,
    num_samples: int = 10,
    key: Key = 0,
) -> Values:
    """Max-sensitivity: how much the explanation itself changes when the image hardly does; low is good.

    `sensitivity = max_d |explain(image + d) - explain(image)| / |explain(image)|`, over random `d`, by default with
    every value uniform in `[-radius, radius]`, as in Captum. A zero explanation is divided by one.

    Args:
      explain: `images -> maps`, such as `lambda images: jaxcam.saliency(model, images, targets)`. It gets all `n`
        images in their order, once for each sample, inside a compiled loop, so JAX must be able to trace it; fix the
        targets, or the class may change with the image.
      images: `float[n, *space, c]`.
      perturbation: the change `d`: `"uniform"`, `"noise"` (normal), or a function `(key, image[*space, c]) -> [*space,
        c]`.
      radius: largest change of a pixel for `"uniform"`, in units of the normalised image.
      noise: deviation for `"noise"`, as a share of each image's range.
      deviation: the same in units of the normalised pixel; it takes the place of `noise`.
      num_samples: changes that are tried.
      key: a seed or a key.

    Returns:
      `float32[n]`, a ratio.

    Raises:
      ValueError: images of a wrong shape or type; a negative radius or noise; an unknown perturbation; what `explain`
        returns has not one map per image.
      TypeError: an `explain` that JAX cannot trace.

    Reference: Yeh et al. 2019, On the (In)fidelity and Sensitivity of Explanations, https://arxiv.org/abs/1901.09392

    Example:
      >>> values = jaxcam.metrics.max_sensitivity(lambda images: jaxcam.saliency(model, images, 3), images)
    """
    how = check_perturbation(perturbation, radius, noise, deviation)
    return _sensitivity(explain, images, how, num_samples, key).max(0)


def average_sensitivity(
    explain: Callable,
    images: Images,
    *,
    perturbation: str | Callable = "uniform",
    radius: float | int = 0.02,
    noise: float | int = 0.15,
    deviation: float | int | None = None,
    num_samples: int = 10,
    key: Key = 0,
) -> Values:
    """Average sensitivity: how much the explanation changes on average when the image hardly does; low is good.

    `sensitivity = mean_d |explain(image + d) - explain(image)| / |explain(image)|`, over random `d`: the mean where
    `max_sensitivity` takes the maximum. A zero explanation is divided by one.

    Args:
      explain: `images -> maps`, which JAX can trace, with fixed targets:
        `lambda images: jaxcam.saliency(model, images, targets)`.
      images: `float[n, *space, c]`.
      perturbation: the change `d`: `"uniform"`, `"noise"` (normal), or a function `(key, image[*space, c]) -> [*space,
        c]`.
      radius: largest change of a pixel for `"uniform"`, in units of the normalised image.
      noise: deviation for `"noise"`, as a share of each image's range.
      deviation: the same in units of the normalised pixel; it takes the place of `noise`.
      num_samples: changes that are tried.
      key: a seed or a key.

    Returns:
      `float32[n]`, a ratio.

    Raises:
      ValueError: images of a wrong shape or type; a negative radius or noise; an unknown perturbation; what `explain`
        returns has not one map per image.
      TypeError: an `explain` that JAX cannot trace.

    Reference: Yeh et al. 2019, On the (In)fidelity and Sensitivity of Explanations, https://arxiv.org/abs/1901.09392

    Example:
      >>> values = jaxcam.metrics.average_sensitivity(lambda images: jaxcam.saliency(model, images, 3), images)
    """
    how = check_perturbation(perturbation, radius, noise, deviation)
    return _sensitivity(explain, images, how, num_samples, key).mean(0)


def _sensitivity(explain, images, how, num_samples, key):
    """The relative change of each image's map for each sample, `[num_samples, n]`."""
    images, original = explained(explain, images)
    size = norm(original)

    def change_of_map(_, maps):
        return norm(maps - original) / jnp.where(size == 0, 1, size)

    return over_changes(explain, images, change_of_map, how, num_samples, key)


def local_lipschitz(
    explain: Callable,
    images: Images,
    *,
    perturbation: str | Callable = "uniform",
    radius: float | int = 0.02,
    noise: float | int = 0.15,
    deviation: float | int | None = None,
    num_samples: int = 10,
    key: Key = 0,
) -> Values:
    """Local Lipschitz estimate: the largest change of the explanation per change of the image; low is good.

    `L = max_d |explain(image + d) - explain(image)| / |d|`, over random `d`. Unlike sensitivity it depends on the scale
    of the maps. Of 200 normal changes it is Quantus's, which scales each map to a largest magnitude of one first.

    Args:
      explain: `images -> maps`, which JAX can trace, with fixed targets:
        `lambda images: jaxcam.saliency(model, images, targets)`.
      images: `float[n, *space, c]`.
      perturbation: the change `d`: `"uniform"`, `"noise"` (normal), or a function `(key, image[*space, c]) -> [*space,
        c]`.
      radius: largest change of a pixel for `"uniform"`, in units of the normalised image.
      noise: deviation for `"noise"`, as a share of each image's range.
      deviation: the same in units of the normalised pixel; it takes the place of `noise`.
      num_samples: changes that are tried.
      key: a seed or a key.

    Returns:
      `float32[n]`, in units of the map for one of the pixel.

    Raises:
      ValueError: images of a wrong shape or type; a negative radius or noise; an unknown perturbation; what `explain`
        returns has not one map per image.
      TypeError: an `explain` that JAX cannot trace.

    Reference: Alvarez-Melis and Jaakkola 2018, On the Robustness of Interpretability Methods,
    https://arxiv.org/abs/1806.08049

    Example:
      >>> values = jaxcam.metrics.local_lipschitz(lambda images: jaxcam.saliency(model, images, 3), images)
    """
    how = check_perturbation(perturbation, radius, noise, deviation)
    images, original = explained(explain, images)

    def slope(changed, maps):
        return quotient(norm(maps - original), norm(difference(changed, images)))

    return over_changes(explain, images, slope, how, num_samples, key).max(0)


def continuity(explain: Callable, images: Images, *, baseline: Baseline = None, num_steps: int = 28) -> Values:
    """Continuity: the largest change of the explanation per change of the image, while the image is moved; low is good.

    `continuity = max_s |explain(image moved by s) - explain(image)|_1 / |image moved by s - image|_2`.

    The image moves along its last axis of space, from out of the picture on one side to out on the other, as in
    Quantus: for a side of `w` pixels `s = i floor((2 w + 1) / num_steps) - w` for `i = 1 ... num_steps`.

    Args:
      explain: `images -> maps`, which JAX can trace, with fixed targets:
        `lambda images: jaxcam.saliency(model, images, targets)`.
      images: `float[n, *space, c]`.
      baseline: what comes in at the edge: `None` for zeros, a number, or an array that broadcasts to `images`.
      num_steps: positions of the image.

    Returns:
      `float32[n]`, in units of the map for one of the pixel.

    Raises:
      ValueError: images of a wrong shape or type; what `explain` returns has not one map per image.
      TypeError: an `explain` that JAX cannot trace.

    Reference: Montavon et al. 2018, Methods for Interpreting and Understanding Deep Neural Networks,
    https://arxiv.org/abs/1706.07979

    Example:
      >>> explain = lambda images: jaxcam.saliency(model, images, 3)
      >>> values = jaxcam.metrics.continuity(explain, images, num_steps=8)
    """
    positive(num_steps=num_steps)
    images, original = explained(explain, images)
    padded, width = _between(check_baseline(baseline, images), images), images.shape[-2]

    def moved(step):
        begin = 2 * width - (step + 1) * max(1, (2 * width + 1) // num_steps)
        return jax.lax.dynamic_slice_in_dim(padded, jnp.clip(begin, 0, 2 * width), width, axis=-2)

    def slope(changed, maps):
        far = jnp.sum(jnp.abs(maps - original), tuple(range(1, maps.ndim)))
        return quotient(far, norm(difference(changed, images)))

    return _in_a_loop(explain, moved, slope, as_array(np.arange(num_steps, dtype=np.int32))).max(0)


@jax.jit
def _between(baseline, images):
    """Each image with the baseline on both sides; the image moved by `s` begins at its pixel `w - s`."""
    fill = filled(baseline, images)
    return jnp.concatenate([fill, images, fill], axis=-2)


def explained(explain, images):
    """The images, checked, and their maps `float32[n, ...]`."""
    functions(explain=explain)
    images = check_images(images)
    maps = check_maps(explain(images), "The result of `explain`")
    if maps.shape[0] != images.shape[0]:
        raise ValueError(f"`explain` returned {maps.shape} for images {images.shape}; one map per image is needed.")
    return images, maps


def over_changes(explain, images, measure, how, num_samples, key):
    """`measure(changed images, their maps) -> [n]` for each of the random changes, `[num_samples, n]`."""
    positive(num_samples=num_samples)

    def changed(key):
        return images + how(key, images).astype(images.dtype)

    return _in_a_loop(explain, changed, measure, jax.random.split(random_key(key), num_samples))


def _in_a_loop(explain, changed, measure, over):
    def one_sample(_, each):
        images = changed(each)
        return None, measure(images, explain(images).astype(jnp.float32))

    with traceable("explain"):
        return scan(one_sample, None, over)[1]


@contextmanager
def traceable(name: str):
    """What is wrong, where JAX cannot trace the function of this name."""
    try:
        yield
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        raise TypeError(
            f"JAX cannot trace `{name}`: it looks at the values of its images, or hands them to another library. "
            "Write it with jax.numpy, or call the other library by `jax.pure_callback`."
        ) from error


def norm(maps):
    """The Euclidean length of each image's map."""
    return jnp.sqrt(jnp.sum(maps**2, tuple(range(1, maps.ndim))))


def difference(images, others):
    """Their difference in float32, in which little is lost of images in half precision."""
    return images.astype(jnp.float32) - others.astype(jnp.float32)


@jax.jit
def quotient(change, of):
    """`change / of`, zero where nothing was changed."""
    return jnp.where(of == 0, 0, change / jnp.where(of == 0, 1, of))
